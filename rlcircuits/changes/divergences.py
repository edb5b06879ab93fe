"""Where on an answer two models part: the divergence of their next-token distributions at every position.

1. Both models read the same tokens. At answer position t they give the distributions b (base) and u (tuned) over the
   vocabulary; in nats:

   - KL(b ‖ u) = Σ_v b(v) ln(b(v) / u(v)), and KL(u ‖ b), whose mean on the tuned model's own answers is what it has
     moved away from its base, as the penalty of RL takes it, per token;
   - JS = ½ KL(b ‖ m) + ½ KL(u ‖ m) with m = ½ (b + u), symmetric and at most ln 2.
2. The models run without their vocabulary; its logits are made for a few positions at a time (`_NUMBERS`), and reduced
   in float64, so that the memory is bounded whatever the answers' length and two equal models give exactly 0.
3. **Critical** are the ⌈share · T⌉ positions of largest JS of each answer's T; the earlier one where two are alike.
4. `Divergence.attribute` attributes an answer's loss at those alone, and elsewhere alone. The loss is a weighted mean
   over tokens, so with s the share of tokens that are critical, the scores of the whole loss are
   s · critical + (1 − s) · elsewhere.

Sources: arXiv 2603.22446 (few tokens diverge); 2509.04259, 2510.18874 (KL from the base beside every difference).
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from rlcircuits.attribution import Loss, Trace, attribute, checked, in_batches, padded, plain
from rlcircuits.changes.resampling import RESAMPLES, all_and_resampled, expect_intervals, percentiles, ratios
from rlcircuits.changes.sides import Pair, both
from rlcircuits.errors import InputError
from rlcircuits.storage import Step

if TYPE_CHECKING:
    import xarray as xr
    from transformers import PreTrainedModel

DIVERGENCE = Step("divergence", 1)
#: logits held at a time, of each model
_NUMBERS = 2**22
_VALUES = ("kl_base_tuned", "kl_tuned_base", "js", "entropy_base", "entropy_tuned", "nll_base", "nll_tuned")


@dataclass(frozen=True, eq=False, repr=False)
class Divergence:
    """What `divergence` found.

    Attributes:
        table: by ``(problem, position)``, position 0 being the answer's first token: ``token``, the answer's; in nats
            ``kl_base_tuned``, ``kl_tuned_base``, ``js``, ``entropy_base``, ``entropy_tuned`` and, of the answer's
            token, ``nll_base``, ``nll_tuned``; ``base_token``, ``tuned_token``, each model's first choice, and
            ``base_probability``, ``tuned_probability``, what it gives to it; ``gained``, ``lost``, the tokens whose
            probability rose and fell most, by ``gain`` ≥ 0 and ``loss`` ≤ 0; ``critical``. Tokens are ids.
        problems: by problem, ``tokens`` and the means over its tokens of the quantities in nats, ``differs``, the share
            of positions where the two first choices differ, and ``critical_js``, the share of its JS that is at
            critical positions (NaN where there is none).
        summary: by quantity, those of `problems`: ``value``, the mean over problems, and its interval ``low``,
            ``high``. ``critical`` is the share of positions that are critical: what ``critical_js`` would be if all
            positions were alike.
        traces: the traces, cut.
        share: of positions that are critical, as asked for.
        confidence: coverage of the intervals, over problems (bootstrap, percentiles).
        tokenizer: spells tokens, when there is one.
    """

    table: pd.DataFrame
    problems: pd.DataFrame
    summary: pd.DataFrame
    traces: list[Trace]
    share: float
    confidence: float
    tokenizer: Any = None

    def on(self, problems: Collection[str]) -> Divergence:
        """The same of some of its problems alone."""
        chosen = self.problems[[name in problems for name in self.problems.index]]
        return replace(
            self,
            table=self.table[self.table.index.isin(chosen.index, level="problem")],
            problems=chosen,
            summary=_summary(chosen, self.confidence, RESAMPLES, 0),
            traces=[trace for trace in self.traces if trace.problem in problems],
        )

    @cached_property
    def _critical(self) -> dict[str, np.ndarray]:
        """By problem, which of its positions are critical."""
        return {str(name): part.to_numpy() for name, part in self.table["critical"].groupby("problem", sort=False)}

    def critical(self, n: int = 10) -> pd.DataFrame:
        """The `n` positions of largest JS, spelt out.

        Returns:
            Index (problem, position); ``before``, the end of the text up to there, ``token``, ``js``, ``base``,
            ``tuned``, ``gained`` and ``lost`` with their probabilities or how these changed. Ids stand for themselves
            where no tokenizer is known.
        """
        chosen = self.table.sort_values("js", ascending=False, kind="stable").head(n)
        traces = {trace.problem: trace for trace in self.traces}
        rows = []
        for row in chosen.reset_index().to_dict("records"):
            trace = traces[row["problem"]]
            before = (*trace.prompt, *trace.answer)[: len(trace.prompt) + row["position"]]
            rows.append(
                {
                    "before": self._spelt(before[-8:]),
                    "token": self._spelt([row["token"]]),
                    "js": row["js"],
                    "base": f"{self._spelt([row['base_token']])} {row['base_probability']:.2f}",
                    "tuned": f"{self._spelt([row['tuned_token']])} {row['tuned_probability']:.2f}",
                    "gained": f"{self._spelt([row['gained']])} {row['gain']:+.2f}",
                    "lost": f"{self._spelt([row['lost']])} {row['loss']:+.2f}",
                }
            )
        return pd.DataFrame(rows, index=chosen.index)

    def _spelt(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return " ".join(str(int(i)) for i in ids)
        return repr(self.tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=False))

    def attribute(self, model: Any, level: str = "block", **options: Any) -> dict[str, xr.DataArray]:
        """The loss at the critical positions alone, and elsewhere alone, attributed to a model's edges.

        Args:
            model: the one to attribute; base or tuned.
            level, options: as for `rlcircuits.attribute`, but for ``loss`` and ``cut``.

        Returns:
            ``{"critical": …, "elsewhere": …}``, scores ``(sample, source, destination)`` in nats per token scored, of
            the same problems: those whose answers have positions of both kinds.

        Raises:
            InputError: as for `rlcircuits.attribute`, a loss or a cut among the options, or no answer with positions of
                both kinds.
        """
        if wrong := {"loss", "cut"} & options.keys():
            raise InputError(f"{min(wrong)} is given: the loss and the cut are those of this divergence")
        two = [trace for trace in self.traces if not self._critical[trace.problem].all()]
        if not two:
            raise InputError(
                f"no answer has positions that are not critical: with share {self.share:g} an answer needs two tokens"
            )
        weights = [self._critical[trace.problem].astype(float) for trace in two]
        return {
            "critical": attribute(model, two, level, loss=Loss(weights=[list(w) for w in weights]), **options),
            "elsewhere": attribute(model, two, level, loss=Loss(weights=[list(1 - w) for w in weights]), **options),
        }

    @property
    def title(self) -> str:
        """What was found, in a line."""
        js, held, critical = self.summary["value"][["js", "critical_js", "critical"]].astype(float)
        parts = "" if math.isnan(held) else f"; {critical:.0%} of positions hold {held:.0%} of it"
        return f"JS {js:.3g} nats per token over {len(self.table):,} positions of {len(self.traces)} answers{parts}"

    def __repr__(self) -> str:
        return f"{self.title}\n{self.summary.to_string(float_format='{:.4g}'.format, na_rep='')}"

    def _repr_html_(self) -> str:
        tables = "".join(
            one.to_html(escape=True, border=0, float_format="{:.4g}".format, na_rep="")
            for one in (self.summary, self.critical(5))
        )
        return f'<div class="mathjax_ignore tex2jax_ignore"><p><b>{html.escape(self.title)}</b></p>{tables}</div>'


def divergence(
    pair: Pair,
    traces: Sequence[Trace],
    cut: int | None = None,
    share: float = 0.1,
    batch_size: int | str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = True,
) -> Divergence:
    """How far two models' next-token distributions lie apart at every position of answers.

    Args:
        pair: a `rlcircuits.ModelPair`, a registered pair's name, or two loaded models, base first.
        traces: prompts and answers, of whichever model; see step 1 for what the tuned model's own say.
        cut: read only the first `cut` answer tokens.
        share: of each answer's positions that are critical, above 0 and at most 1.
        batch_size: as for `rlcircuits.attribute`; values depend on it only by rounding.
        device, dtype: for loading the pair.
        confidence, resamples, seed: of the intervals over problems.
        progress: show a bar for work that takes longer than a few seconds.

    Returns:
        A `Divergence`.

    Raises:
        InputError: two models of another architecture or vocabulary, traces that do not fit them (as for
            `rlcircuits.attribute`), a distribution that is not finite, or a parameter out of range.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(f"share is {share!r}: expected a share of positions above 0 and at most 1, such as 0.1")
    expect_intervals(confidence, resamples, seed)
    base, tuned = both(pair, device, dtype)
    models = plain(base), plain(tuned)
    for hf in models:
        rows = checked(hf, traces, cut)

    def measure(batch: list[Trace]) -> list[dict[str, np.ndarray]]:
        return _measured(models, batch)

    found: list[dict[str, np.ndarray]] = [{}] * len(rows)
    for indices, parts in in_batches(models[0], rows, batch_size, measure, "divergence", progress):
        for index, part in zip(indices, parts):
            found[index] = part
    table = pd.concat([_of_trace(trace, part, share) for trace, part in zip(rows, found)])
    problems = _by_problem(table)
    summary = _summary(problems, confidence, resamples, seed)
    return Divergence(table, problems, summary, rows, float(share), confidence, getattr(base, "tokenizer", None))


def _measured(models: tuple[PreTrainedModel, PreTrainedModel], rows: list[Trace]) -> list[dict[str, np.ndarray]]:
    """By row, each quantity ``(answer token,)``."""
    answers = torch.tensor([token for row in rows for token in row.answer])
    step = max(1, _NUMBERS // max(_vocabulary(hf).shape[0] for hf in models))
    base, tuned = (_logits(hf, rows, step) for hf in models)
    pieces = [_compared(before, after, chosen) for before, after, chosen in zip(base, tuned, answers.split(step))]
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    ends = np.cumsum([len(row.answer) for row in rows])[:-1]
    split = {name: np.split(values, ends) for name, values in whole.items()}
    return [{name: values[i] for name, values in split.items()} for i in range(len(rows))]


def _vocabulary(hf: PreTrainedModel) -> Tensor:
    """The output embedding's weights ``(vocabulary, d_model)``."""
    return cast(Tensor, hf.get_output_embeddings().weight)


@torch.no_grad()
def _logits(hf: PreTrainedModel, rows: list[Trace], step: int) -> Iterator[Tensor]:
    """The logits at the rows' answer positions, one row after the other, `step` at a time: ``(step, vocabulary)``.

    The model below the vocabulary runs once. Then it stands aside and gives what it gave at a few positions to what
    comes after it: output embedding, soft-capping, scaling, whatever the architecture has there.
    """
    ids, _, _ = padded(rows, cast(Tensor, hf.get_input_embeddings().weight).device)
    output = hf.base_model(input_ids=ids, use_cache=False)
    states = torch.cat(
        [
            state[len(row.prompt) - 1 : len(row.prompt) + len(row.answer) - 1]
            for row, state in zip(rows, output.last_hidden_state)
        ]
    )
    for begin in range(0, len(states), step):
        part = states[None, begin : begin + step]
        with _standing_aside(hf.base_model, type(output)(last_hidden_state=part)):
            logits = hf(input_ids=ids.new_zeros(part.shape[:2]), use_cache=False).logits[0]
        yield logits


@contextlib.contextmanager
def _standing_aside(below: Any, output: Any) -> Iterator[None]:
    """Let a module give `output` without running."""
    own = vars(below).get("forward")
    below.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        del below.forward
        if own is not None:
            below.forward = own


def _compared(before: Tensor, after: Tensor, answers: Tensor) -> dict[str, np.ndarray]:
    """Each quantity ``(position,)`` of two models' logits ``(position, vocabulary)``."""
    wide = torch.float32 if before.device.type == "mps" else torch.float64  # which has no float64
    b, u = (torch.log_softmax(one.to(before.device, wide), -1) for one in (before, after))
    p, q = b.exp(), u.exp()
    moved = q - p
    chosen = answers.to(b.device)[:, None]
    (gain, gained), (loss, lost) = moved.max(-1), moved.min(-1)
    (base_probability, base_token), (tuned_probability, tuned_token) = p.max(-1), q.max(-1)
    found = {
        "kl_base_tuned": _sum(p, b - u),
        "kl_tuned_base": _sum(q, u - b),
        "js": (_sum(p, _to_the_middle(u - b)) + _sum(q, _to_the_middle(b - u))) / 2,
        "entropy_base": -_sum(p, b),
        "entropy_tuned": -_sum(q, u),
        "nll_base": -b.gather(1, chosen)[:, 0],
        "nll_tuned": -u.gather(1, chosen)[:, 0],
        "base_token": base_token,
        "base_probability": base_probability,
        "tuned_token": tuned_token,
        "tuned_probability": tuned_probability,
        "gained": gained,
        "gain": gain,
        "lost": lost,
        "loss": loss,
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def _to_the_middle(x: Tensor) -> Tensor:
    """ln(b / m) of x = ln(u / b), m being the mean of the two: ln 2 − ln(1 + eˣ), exactly 0 where they are equal."""
    return math.log(2) - functional.softplus(x, threshold=40)


def _sum(p: Tensor, value: Tensor) -> Tensor:
    """Σ_v p(v) value(v), where what has no probability counts for nothing."""
    return torch.where(p > 0, p * value, 0).sum(-1)


def _of_trace(trace: Trace, found: dict[str, np.ndarray], share: float) -> pd.DataFrame:
    length = len(trace.answer)
    if not np.isfinite(found["js"]).all():
        raise InputError(
            f"a distribution on trace {trace.problem!r}, answer position {int(np.isfinite(found['js']).argmin())}, is "
            "not finite: a model overflows in its dtype or its weights are damaged; load both in float32"
        )
    critical = np.zeros(length, bool)
    critical[np.argsort(-found["js"], kind="stable")[: math.ceil(share * length)]] = True
    index = pd.MultiIndex.from_product([[trace.problem], range(length)], names=["problem", "position"])
    return pd.DataFrame({"token": trace.answer, **found, "critical": critical}, index=index)


def _by_problem(table: pd.DataFrame) -> pd.DataFrame:
    differs = (table["base_token"] != table["tuned_token"]).astype(float)
    at_critical = table["js"].where(table["critical"], 0.0)
    columns = table[list(_VALUES)].assign(differs=differs, critical_js=at_critical, critical=table["critical"] * 1.0)
    grouped = columns.groupby("problem", sort=False)
    found = grouped.mean()
    found["critical_js"] = found["critical_js"] / found["js"].where(found["js"] > 0)
    found.insert(0, "tokens", grouped.size())
    return found


def _summary(problems: pd.DataFrame, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """Means over problems; of `critical_js` the ratio of means, as a share of all that diverges."""
    columns = problems.drop(columns="tokens")
    values = columns.assign(critical_js=(columns["critical_js"] * columns["js"]).fillna(0.0)).to_numpy(float)
    names = list(columns)
    js, held = names.index("js"), names.index("critical_js")

    means = all_and_resampled(len(problems), resamples, seed) @ values
    means[:, held] = ratios(means[:, held], means[:, js])
    low, high = percentiles(means[1:], confidence)
    return pd.DataFrame({"value": means[0], "low": low, "high": high}, index=pd.Index(names, name="quantity"))
