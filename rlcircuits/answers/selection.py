"""Which answers a pair is compared on: section 3 of the method (arXiv 2509.21044).

With T_base(q) and T_tuned(q) the two answers' lengths in tokens, `select`

1. keeps the problems that both models answer correctly, or those of another stratum: only one model, or neither;
2. takes T̄ = mean over these of (T_base + T_tuned) / 2; the published code takes min(mean T_base, mean T_tuned);
3. cuts at T_cut = max(⌊α T̄⌋, 1);
4. keeps (T_base + T_tuned) / 2 in [β T̄, γ T̄]; then |T_base − T_tuned| / ((T_base + T_tuned) / 2) ≤ δ; then prompts of
   the same length in both models' tokens;
5. draws n of them with a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rlcircuits.answers.answer import Answer
from rlcircuits.answers.problems import draw
from rlcircuits.answers.reasons import SHOWN, STRATA, reasons, stratum_of
from rlcircuits.attribution import Trace
from rlcircuits.errors import InputError, argument, choose, counted, expect_whole

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


MEANS = ("paper", "code")
KEEPS = (*STRATA, "all")
#: fewer problems than this, or answers cut to no more tokens, and a caution is due
FEW_PROBLEMS, FEW_TOKENS = 10, 4


class Caution(UserWarning):
    """What is left makes the numbers after it weak."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The problems a pair is compared on.

    Attributes:
        problems: ids of the problems kept, in the order of the base's answers.
        t_bar: mean answer length T̄ in tokens, before the rules on lengths.
        t_cut: T_cut, how many tokens of each answer are scored.
        dropped: one row per rule in the order they apply: ``rule``, how many problems it ``dropped``, how many are
            ``left``, and in ``detail`` what the rule came to here.
        base_traces, tuned_traces: the two models' whole answers to these problems, aligned.
        alpha: α.
        reasons: why problems fell away: for each rule and model how many, with examples, see `rlcircuits.answers.reasons`.
    """

    problems: tuple[str, ...]
    t_bar: float
    t_cut: int
    dropped: pd.DataFrame
    base_traces: list[Trace]
    tuned_traces: list[Trace]
    alpha: float
    reasons: pd.DataFrame

    def __repr__(self) -> str:
        return f"Selection({counted(len(self.problems), 'problem')}, T̄ {self.t_bar:.1f}, α {self.alpha}, T_cut {self.t_cut})"

    def cautions(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What makes the numbers from it weak, a sentence each: few problems, or few tokens of each, which are shown."""
        found, n, cut = [], len(self.problems), self.t_cut
        if n < FEW_PROBLEMS:
            found.append(
                f"only {n} problem{'s are' if n > 1 else ' is'} left to compare on: intervals are wide or cannot be had; give more problems"
            )
        if cut <= FEW_TOKENS:
            scored = [trace.answer[:cut] for trace in (*self.base_traces, *self.tuned_traces)]
            shown = ", ".join(repr(tokenizer.decode(list(ids))) for ids in list(dict.fromkeys(scored))[:SHOWN])
            first = "the first token" if cut == 1 else f"the first {cut} tokens"
            found.append(
                f"T_cut is {cut}: only {first} of each answer count, such as {shown}; a larger {argument('alpha')} scores more"
            )
        return found


def select(
    base: Sequence[Answer],
    tuned: Sequence[Answer] | None,
    alpha: float,
    beta: float = 0.5,
    gamma: float = 1.5,
    delta: float = 0.5,
    n: int = 100,
    seed: int = 42,
    mean: str = "paper",
    keep: str = "both-correct",
) -> Selection:
    """Choose the problems a pair is compared on, and where its answers are cut (steps 1 to 5 above).

    Lengths are compared as exact fractions of the decimals given, so that α = 0.29 of 100 tokens are 29.

    Args:
        base, tuned: the two models' answers to the same problems; None for one model alone.
        alpha: share α of the mean length that is scored, in (0, 1].
        beta, gamma: keep mean lengths in [β T̄, γ T̄].
        delta: the largest difference of the two lengths, as a share of their mean.
        n: problems drawn; all when fewer are left, which the table says.
        seed: of the draw, see `rlcircuits.answers.problems.draw`.
        mean: T̄ as in the ``"paper"``, or min(mean T_base, mean T_tuned) as in the published ``"code"``.
        keep: ``"both-correct"`` problems only; of the other strata ``"only-tuned"`` or ``"only-base"``, right by that model
            alone, or ``"neither"``, right by none; or ``"all"``.

    Raises:
        InputError: settings out of range, a stratum of one model alone, or answers to different problems.
        NothingLeft: no problem left; it says by which rule, and holds the reasons.
    """
    expect_settings(alpha, beta, gamma, delta, n, seed, mean, keep)
    alone = tuned is None
    pairs = _paired(base, base if tuned is None else tuned)
    rules = _Rules(pairs, alone)
    α, β, γ, δ = (Fraction(str(float(value))) for value in (alpha, beta, gamma, delta))

    def t_base(q: str) -> int:
        return len(pairs[q][0].answer)

    def t_tuned(q: str) -> int:
        return len(pairs[q][1].answer)

    def t_mean(q: str) -> Fraction:
        return Fraction(t_base(q) + t_tuned(q), 2)

    if alone and keep not in ("both-correct", "all"):
        raise InputError(f"keep is {keep!r}, of one model alone: expected 'both-correct' (its right answers) or 'all'")
    if keep != "all":
        accuracies = [sum(pair[side].correct for pair in pairs.values()) / len(pairs) for side in (0, 1)]
        strictly = [sum(pair[side].strict for pair in pairs.values()) / len(pairs) for side in (0, 1)]
        answered = f"base {accuracies[0]:.1%} correct, tuned {accuracies[1]:.1%}; strictly {strictly[0]:.1%} and {strictly[1]:.1%}"
        if alone:
            answered = f"{accuracies[0]:.1%} correct, {strictly[0]:.1%} strictly"
        rule = "answer correct" if alone else STRATA[keep]
        rules.keep(rule, lambda q: stratum_of(*pairs[q]) == keep, answered)
    rules.keep("no answer empty", lambda q: t_base(q) > 0 and t_tuned(q) > 0)

    left = rules.left
    if mean == "paper":
        t_bar = _mean([t_mean(q) for q in left])
    else:
        t_bar = min(_mean([t_base(q) for q in left]), _mean([t_tuned(q) for q in left]))
    t_cut = max(math.floor(α * t_bar), 1)

    between = f"{float(β * t_bar):.1f} to {float(γ * t_bar):.1f} tokens, T̄ = {float(t_bar):.1f}"
    rules.keep("mean length in [βT̄, γT̄]", lambda q: β * t_bar <= t_mean(q) <= γ * t_bar, between)
    if not alone:
        apart = f"δ = {delta}"
        rules.keep("lengths differ by at most δ", lambda q: abs(t_base(q) - t_tuned(q)) / t_mean(q) <= δ, apart)
        rules.keep("prompts equally long", lambda q: len(pairs[q][0].prompt) == len(pairs[q][1].prompt), "in tokens")

    kept = set(draw(rules.left, n, seed, str))
    few = f"all, as fewer than n = {n} were left" if len(rules.left) < n else f"n = {n}, seed {seed}"
    rules.keep("drawn", lambda q: q in kept, few)
    return Selection(
        problems=tuple(rules.left),
        t_bar=float(t_bar),
        t_cut=t_cut,
        dropped=rules.table(),
        base_traces=[pairs[q][0].trace for q in rules.left],
        tuned_traces=[pairs[q][1].trace for q in rules.left],
        alpha=float(alpha),
        reasons=rules.reasons(),
    )


class NothingLeft(InputError):
    """No problem is left to compare on.

    Attributes:
        reasons: as of a `Selection`.
        answers: the base's and the tuned model's answers, in one order.
    """

    def __init__(self, message: str, reasons: pd.DataFrame, answers: Sequence[tuple[Answer, Answer]]) -> None:
        super().__init__(message)
        self.reasons = reasons
        self.answers = [pair[0] for pair in answers], [pair[1] for pair in answers]


class _Rules:
    """The ids still left, and a row for each rule that was applied to them."""

    def __init__(self, pairs: Mapping[str, tuple[Answer, Answer]], alone: bool) -> None:
        self.pairs, self.alone = pairs, alone
        self.left: list[str] = list(pairs)
        self.gone: list[tuple[str, list[str]]] = []
        self.rows: list[dict[str, Any]] = []

    def keep(self, rule: str, holds: Callable[[str], bool], detail: str = "") -> None:
        """Apply one rule.

        Raises:
            NothingLeft: it leaves nothing.
        """
        before, self.left = self.left, [q for q in self.left if holds(q)]
        kept = set(self.left)
        self.gone.append((rule, [q for q in before if q not in kept]))
        self.rows.append(
            {"rule": rule, "dropped": len(before) - len(self.left), "left": len(self.left), "detail": detail}
        )
        if not self.left:
            rules = "; ".join(f"{row['rule']}: {row['left']} left" for row in self.rows)
            raise NothingLeft(
                f"no problem is left by the rule {rule!r}{f' ({detail})' if detail else ''}, of {len(before)} before "
                f"it [{rules}]; {_ADVICE[rule]()}",
                self.reasons(),
                list(self.pairs.values()),
            )

    def reasons(self) -> pd.DataFrame:
        return reasons(self.pairs, self.gone, self.alone)

    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["rule", "dropped", "left", "detail"])


def _more_right() -> str:
    return (
        f"give more or easier problems, a larger {argument('max_new_tokens')} or another {argument('prompt')}, check the "
        f"{argument('grader')}, or compare all answers with {argument('keep', 'all')}"
    )


_ADVICE: dict[str, Callable[[], str]] = {
    "both answers correct": _more_right,
    "answer correct": _more_right,
    **{
        STRATA[stratum]: lambda: f"that stratum is empty: give more problems, or another {argument('keep')}"
        for stratum in ("only-tuned", "only-base", "neither")
    },
    "no answer empty": lambda: f"the models end their answers at once: check the {argument('prompt')}",
    "mean length in [βT̄, γT̄]": lambda: f"lower {argument('beta')} or raise {argument('gamma')}",
    "lengths differ by at most δ": lambda: f"raise {argument('delta')}, or give more problems",
    "prompts equally long": lambda: (
        "the two tokenizers or chat templates differ: give both the same template with '{question}' as "
        f"{argument('prompt')}"
    ),
}


def _paired(base: Sequence[Answer], tuned: Sequence[Answer]) -> dict[str, tuple[Answer, Answer]]:
    """Both answers by problem, in the order of the base's."""
    sides = []
    for side, answers in (("base", base), ("tuned", tuned)):
        by_problem = {answer.problem: answer for answer in answers}
        if not by_problem:
            raise InputError(f"no answers of the {side} model: expected one per problem")
        if len(by_problem) < len(answers):
            ids = [answer.problem for answer in answers]
            double = next(i for i in ids if ids.count(i) > 1)
            raise InputError(f"the {side} model has two answers to problem {double!r}: expected one")
        sides.append(by_problem)
    if different := sorted(sides[0].keys() ^ sides[1].keys()):
        who = "base" if different[0] in sides[0] else "tuned"
        raise InputError(
            f"the two models answered different problems ({len(different)} in one only, first {different[0]!r}, of "
            f"the {who} model): generate both on the same problem set"
        )
    return {q: (sides[0][q], sides[1][q]) for q in sides[0]}


def _mean(values: Sequence[int | Fraction]) -> Fraction:
    return Fraction(sum(values), len(values))


def expect_settings(
    alpha: float, beta: float, gamma: float, delta: float, n: int, seed: int, mean: str, keep: str
) -> None:
    """Make sure of the settings of `select`, before anything is answered.

    Raises:
        InputError: one out of range.
    """
    choose("mean", mean, MEANS)
    choose("keep", keep, KEEPS)
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("delta", delta)):
        if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or not math.isfinite(value):
            raise InputError(f"{argument(name)} is {value!r}: expected a finite number")
    if not 0 < alpha <= 1:
        raise InputError(
            f"{argument('alpha')} is {alpha}: expected a share of the mean answer length, above 0 and at most 1"
        )
    if not 0 <= beta <= gamma:
        raise InputError(
            f"{argument('beta')} is {beta} and {argument('gamma')} is {gamma}: expected 0 <= β <= γ, such as 0.5 and 1.5"
        )
    if delta < 0:
        raise InputError(
            f"{argument('delta')} is {delta}: expected a share of the mean length of at least 0, such as 0.5"
        )
    expect_whole("n", n, 1)
    expect_whole("seed", seed, 0)
