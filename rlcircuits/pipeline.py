"""From pairs of models to a comparison, every step kept in the store.

For each pair:

1. both models answer every problem greedily (`rlcircuits.answers.generate`);
2. the problems that both answer correctly, with answers of balanced length, are selected and cut at
   T_cut = max(⌊α T̄⌋, 1) tokens (`rlcircuits.answers.select`);
3. each model's loss on its own cut answers is attributed to the edges of its graph (`rlcircuits.attribute`);
4. the metrics of both are compared, paired by problem (`rlcircuits.compare`).

A step is computed once for all inputs that matter (weights, problems, parameters, the code of the step) and found again
afterwards; a warm study loads no model. Source: arXiv 2509.21044, sections 3 and 4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rlcircuits.answers import Answer, Selection, generate, load_answers, save_answers, select
from rlcircuits.errors import InputError, choose
from rlcircuits.graph import LEVELS
from rlcircuits.inference import compare
from rlcircuits.models import Model, ModelPair, check_pair, fingerprint, load_tokenizer, local_checkpoint
from rlcircuits.models import pair as registered_pair
from rlcircuits.problems import Problem, ProblemSet
from rlcircuits.store import Store, load_scores, load_table, save_scores, save_table
from rlcircuits.traces import Trace

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class PairStudy:
    """One pair, answered, selected, attributed and compared.

    Attributes:
        pair: the models.
        problems: every problem by id.
        base_answers, tuned_answers: each model's answer by problem id.
        selection: which problems were kept, T̄, T_cut and what each rule dropped.
        base_scores, tuned_scores: edge scores ``(sample, source, destination)`` on each model's own answers, aligned.
        base_losses, tuned_losses: by problem id the loss of every answer token (the whole answer), in nats.
        comparison: one row per metric with base, tuned, difference, interval and p-value, see `rlcircuits.compare`.
    """

    pair: ModelPair
    problems: Mapping[str, Problem]
    base_answers: Mapping[str, Answer]
    tuned_answers: Mapping[str, Answer]
    selection: Selection
    base_scores: xr.DataArray
    tuned_scores: xr.DataArray
    base_losses: Mapping[str, Sequence[float]]
    tuned_losses: Mapping[str, Sequence[float]]
    comparison: pd.DataFrame

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer (the tuned model's has the same vocabulary)."""
        return load_tokenizer(self.pair.base, self.pair.base_revision, self.pair.trust_remote_code)

    @property
    def accuracy(self) -> tuple[float, float]:
        """Share of all problems answered correctly, base and tuned."""
        return tuple(
            sum(a.correct for a in answers.values()) / len(answers) for answers in (self.base_answers, self.tuned_answers)
        )

    def __repr__(self) -> str:
        before, after = self.accuracy
        return (
            f"PairStudy({self.pair.name!r}: {len(self.selection.problems)} problems, T_cut {self.selection.t_cut}, "
            f"accuracy {before:.1%} → {after:.1%})"
        )


@dataclass(frozen=True, eq=False)
class Study:
    """Several pairs under the same settings.

    Attributes:
        pairs: `PairStudy` by pair name.
        level, alpha, n, seed: the settings they share.
    """

    pairs: Mapping[str, PairStudy]
    level: str
    alpha: float
    n: int
    seed: int

    def table(self) -> pd.DataFrame:
        """All comparisons in one table, indexed by (pair, metric), with Holm-corrected p-values over all its rows."""
        import pandas as pd

        from rlcircuits.inference import holm

        table = pd.concat({name: one.comparison for name, one in self.pairs.items()}, names=["pair", "metric"])
        return table.assign(p_holm=holm(table["p"]))

    def __repr__(self) -> str:
        return f"Study(level={self.level!r}, alpha={self.alpha}, pairs={list(self.pairs)})"


def study(
    pairs: Iterable[ModelPair | str] | ModelPair | str,
    problems: ProblemSet,
    level: str = "block",
    alpha: float = 0.3,
    n: int = 100,
    seed: int = 42,
    mean: str = "paper",
    keep: str = "both-correct",
    beta: float = 0.5,
    gamma: float = 1.5,
    delta: float = 0.5,
    store: Store | str = "runs",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | str = "auto",
) -> Study:
    """Run every step for every pair, or find it in the store.

    Args:
        pairs: `ModelPair` objects or registered names.
        problems: what the models answer.
        level: of the graph, ``"block"``, ``"qkv"`` or ``"head"``.
        alpha: share α of the mean answer length that is scored, in (0, 1].
        n: problems drawn after filtering (fewer when fewer are left).
        seed: of the draw; the published value is 42.
        mean: T̄ as the ``"paper"`` or the published ``"code"`` takes it, see `rlcircuits.select`.
        keep: ``"both-correct"`` or ``"all"`` problems.
        beta, gamma, delta: which lengths of answers are kept, see `rlcircuits.select`.
        store: a `Store` or its folder.
        device, dtype, batch_size: for loading and running the models.

    Raises:
        InputError: a pair that cannot be loaded or compared, settings out of range, or no problem left by the rules.
    """
    choose("level", level, LEVELS)
    store = store if isinstance(store, Store) else Store(store)
    if isinstance(pairs, (ModelPair, str)):
        pairs = [pairs]
    chosen = [registered_pair(one) if isinstance(one, str) else one for one in pairs]
    if not chosen:
        raise InputError("no pairs given: expected at least one rlcircuits.ModelPair or the name of a registered pair")
    names = [one.name for one in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"two pairs are called {next(x for x in names if names.count(x) > 1)!r}: give each its own name")
    run = _Run(store, problems, level, batch_size)
    done = {}
    for one in chosen:
        sides = [run.side(one, name, device, dtype) for name in ("base", "tuned")]
        answers = run.answers(one, sides)
        selection = select(*answers, alpha, beta, gamma, delta, n=n, seed=seed, mean=mean, keep=keep)
        scores = [
            run.scores(side, traces, selection.t_cut)
            for side, traces in zip(sides, (selection.base_traces, selection.tuned_traces))
        ]
        losses = [
            run.losses(side, traces) for side, traces in zip(sides, (selection.base_traces, selection.tuned_traces))
        ]
        done[one.name] = PairStudy(
            pair=one,
            problems={problem.id: problem for problem in problems},
            base_answers={a.problem: a for a in answers[0]},
            tuned_answers={a.problem: a for a in answers[1]},
            selection=selection,
            base_scores=scores[0],
            tuned_scores=scores[1],
            base_losses=losses[0],
            tuned_losses=losses[1],
            comparison=run.comparison(*scores),
        )
    return Study(done, level, alpha, n, seed)


@lru_cache(maxsize=None)
def source_digest(*modules: str) -> str:
    """SHA-256 over the source of modules of this package: part of a step's key, so that changed code computes anew."""
    whole = hashlib.sha256()
    for module in modules:
        whole.update((resources.files("rlcircuits") / f"{module}.py").read_bytes())
    return whole.hexdigest()[:16]


def _digest(traces: Iterable[Trace]) -> str:
    content = json.dumps([[trace.problem, trace.prompt, trace.answer] for trace in traces])
    return hashlib.sha256(content.encode()).hexdigest()


class _Side:
    """One model of a pair, loaded only when a step needs it."""

    def __init__(self, pair: ModelPair, side: str, device: str, dtype: str) -> None:
        self.pair, self.side, self.device, self.dtype = pair, side, device, dtype
        self.name = getattr(pair, side)
        self.label = f"{pair.name} ({side})"

    @cached_property
    def model(self) -> Model:
        return self.pair.load(self.side, self.device, self.dtype)

    @cached_property
    def fingerprint(self) -> str:
        folder = local_checkpoint(self.name)
        return self.model.fingerprint if folder is None else fingerprint(folder)

    @property
    def key(self) -> dict[str, str]:
        return {"model": self.fingerprint, "dtype": self.dtype}


class _Run:
    def __init__(self, store: Store, problems: ProblemSet, level: str, batch_size: int | str) -> None:
        self.store, self.problems, self.level, self.batch_size = store, problems, level, batch_size
        self.sides: dict[tuple, _Side] = {}

    def side(self, pair: ModelPair, side: str, device: str, dtype: str) -> _Side:
        """Pairs that share a model share its loaded weights."""
        key = (getattr(pair, side), getattr(pair, f"{side}_revision"), pair.trust_remote_code)
        return self.sides.setdefault(key, _Side(pair, side, device, dtype))

    def answers(self, pair: ModelPair, sides: list[_Side]) -> list[list[Answer]]:
        inputs = [
            {
                **side.key,
                "problems": self.problems.fingerprint,
                "prompt": pair.prompt,
                "max_new_tokens": pair.max_new_tokens,
                "code": source_digest("answers", "problems"),
            }
            for side in sides
        ]
        if not all(self.store.has("answers", one) for one in inputs):
            check_pair(sides[0].model, sides[1].model)
        found = []
        for side, one in zip(sides, inputs):

            def build(folder: Path, side: _Side = side) -> None:
                answers = generate(side.model, self.problems, pair.prompt, pair.max_new_tokens, self.batch_size, side.label)
                save_answers(answers, folder / "answers.parquet")

            folder = self.store.make("answers", one, build, note=f"{side.name} on {self.problems.name}")
            found.append(load_answers(folder / "answers.parquet"))
        return found

    def scores(self, side: _Side, traces: list[Trace], cut: int) -> xr.DataArray:
        from rlcircuits.attribution import CODE, attribute

        inputs = {
            **side.key,
            "traces": _digest([trace.cut(cut) for trace in traces]),
            "level": self.level,
            "cut": cut,
            "code": source_digest(*CODE),
        }

        def build(folder: Path) -> None:
            scores = attribute(side.model, traces, self.level, cut=cut, batch_size=self.batch_size)
            save_scores(scores, folder / "scores.nc")

        return load_scores(self.store.make("scores", inputs, build, note=f"{side.name}, {self.level}") / "scores.nc")

    def losses(self, side: _Side, traces: list[Trace]) -> dict[str, Sequence[float]]:
        import pandas as pd

        from rlcircuits.attribution import token_losses

        inputs = {**side.key, "traces": _digest(traces), "code": source_digest("attribution", "recording", "batching")}

        def build(folder: Path) -> None:
            losses = token_losses(side.model, traces, batch_size=self.batch_size)
            save_table(pd.DataFrame({"problem": [t.problem for t in traces], "losses": losses}), folder / "losses.parquet")

        table = load_table(self.store.make("losses", inputs, build, note=side.name) / "losses.parquet")
        return dict(zip(table["problem"], table["losses"]))

    def comparison(self, base: xr.DataArray, tuned: xr.DataArray) -> pd.DataFrame:
        digest = [hashlib.sha256(one.values.tobytes() + "\n".join(one.sample.values).encode()).hexdigest() for one in (base, tuned)]
        inputs = {"base": digest[0], "tuned": digest[1], "code": source_digest("inference", "metrics")}

        def build(folder: Path) -> None:
            save_table(compare(base, tuned).reset_index(), folder / "comparison.parquet")

        return load_table(self.store.make("comparison", inputs, build) / "comparison.parquet").set_index("metric")
