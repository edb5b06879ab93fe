"""The steps of a study, each computed once for all inputs that matter and found in the store afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.answers import (
    ANSWERS,
    SIDES,
    Answer,
    ProblemSet,
    generate,
    load_answers,
    prompt_of,
    read_answers,
    save_answers,
)
from rlcircuits.attribution import LEVELS, Trace
from rlcircuits.errors import InputError, choose
from rlcircuits.metrics import COMPARISON, compare
from rlcircuits.models import LOADING, Model, ModelPair
from rlcircuits.storage import Store, load_scores, load_table, save_scores, save_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from rlcircuits.models import Outline


def digest_of_traces(traces: Iterable[Trace]) -> str:
    """What results of these traces depend on."""
    content = json.dumps([[trace.problem, trace.prompt, trace.answer] for trace in traces])
    return hashlib.sha256(content.encode()).hexdigest()


def digest_of_scores(scores: xr.DataArray) -> str:
    """What results made of these scores depend on."""
    return hashlib.sha256(scores.values.tobytes() + "\n".join(scores.sample.values).encode()).hexdigest()


_kept: dict[tuple, Model] | None = None


def keep_models() -> None:
    """From now on this process keeps the two models it used last, for work that comes in many small parts."""
    global _kept
    _kept = {} if _kept is None else _kept


class Side:
    """One model of a pair, loaded only when a step needs it."""

    def __init__(self, pair: ModelPair, side: str, device: str, dtype: str) -> None:
        self.pair, self.side, self.device, self.dtype = pair, side, device, dtype
        self.name = getattr(pair, side)
        self.label = pair.name if pair.alone else f"{pair.name} ({side})"

    @cached_property
    def model(self) -> Model:
        if _kept is None:
            return self.pair.load(self.side, self.device, self.dtype)
        key = (self.pair.fingerprint(self.side) or self.name, self.device, self.dtype)
        if key not in _kept:
            while len(_kept) > 1:  # a base and one model tuned from it
                _kept.pop(next(iter(_kept)))
            _kept[key] = self.pair.load(self.side, self.device, self.dtype)
        _kept[key] = _kept.pop(key)
        return _kept[key]

    @property
    def outline(self) -> Outline:
        return dict(zip(SIDES, self.pair.outlines()))[self.side]

    @cached_property
    def fingerprint(self) -> str:
        return self.pair.fingerprint(self.side) or self.model.fingerprint

    @property
    def key(self) -> dict[str, str]:
        return {"model": self.fingerprint, "dtype": self.dtype, "loading": str(LOADING)}


@dataclass(frozen=True)
class Scoring:
    """How `rlcircuits.attribute` is asked; see there. The other model of ``intervention="model"`` and the reference of
    ``loss="kl"`` are the other one of the pair.

    Raises:
        InputError: a value that is none of those known.
    """

    level: str
    memory: str = "auto"
    intervention: str = "zero"
    ig_steps: int = 1
    loss: str = "nll"

    def __post_init__(self) -> None:
        from rlcircuits.attribution import MEMORY

        choose("level", self.level, LEVELS)
        choose("memory", self.memory, MEMORY)
        if self.intervention == "corrupted":
            raise InputError(
                "intervention 'corrupted' needs a partner as long for every trace, which a pair's own answers do not "
                "have: expected zero, mean or model, or rlcircuits.attribute(…, corrupted=partners)"
            )
        choose("intervention", self.intervention, ("zero", "mean", "model"))
        choose("loss", self.loss, ("nll", "kl"))
        if isinstance(self.ig_steps, bool) or not isinstance(self.ig_steps, int) or self.ig_steps < 1:
            raise InputError(f"ig_steps is {self.ig_steps!r}: expected a whole number of at least 1 (1 is plain EAP)")

    @property
    def key(self) -> dict[str, Any]:
        """What the scores depend on; the memory mode changes them by rounding alone."""
        key = {"level": self.level, "intervention": self.intervention, "ig_steps": self.ig_steps}
        return key if self.loss == "nll" else {**key, "loss": self.loss}

    @property
    def paired(self) -> bool:
        """Whether one model's scores depend on the other."""
        return self.intervention == "model" or self.loss == "kl"

    def asked(self, other: Any) -> dict[str, Any]:
        """The arguments of `rlcircuits.attribute`, with the other model of the pair where it is needed."""
        from rlcircuits.attribution import Loss

        loss = Loss("kl", reference=other) if self.loss == "kl" else self.loss
        return {**asdict(self), "loss": loss, "other": other if self.intervention == "model" else None}


@dataclass
class Run:
    """The steps of one study, each found in the store or done now; what they share is loaded once."""

    store: Store
    problems: ProblemSet
    scoring: Scoring
    batch_size: int | str
    engine: str
    sides: dict[tuple, Side] = field(default_factory=dict)

    def side(self, pair: ModelPair, side: str, device: str, dtype: str) -> Side:
        """Pairs that share a model share its loaded weights; what was tuned may be an adapter, and then depends on its
        base.
        """
        key: tuple[Any, ...] = (getattr(pair, side), getattr(pair, f"{side}_revision"), pair.trust_remote_code)
        key += (pair.base, pair.base_revision) if side == "tuned" and pair.tuned != pair.base else ()
        return self.sides.setdefault(key, Side(pair, side, device, dtype))

    def _unfinished(self, kind: str, inputs: dict[str, Any]) -> Path:
        """Where a step that takes long keeps what it has finished, so that it goes on from there when it was killed."""
        return self.store.root / "unfinished" / self.store.path(kind, inputs).name

    def answers(self, pair: ModelPair, sides: list[Side]) -> list[list[Answer]]:
        prompt = prompt_of(pair, self.problems)
        inputs = [
            {
                **side.key,
                "problems": self.problems.fingerprint,
                "prompt": prompt.key,
                "max_new_tokens": pair.max_new_tokens,
                "engine": self.engine,
                "code": str(ANSWERS),
            }
            for side in sides
        ]
        if not all(self.store.has("answers", one) for one in inputs):
            pair.check()
        found = []
        for side, one in zip(sides, inputs):
            unfinished = self._unfinished("answers", one)

            def build(folder: Path, side: Side = side, unfinished: Path = unfinished) -> None:
                model = side.outline if self.engine == "vllm" else side.model
                settings = (self.problems, prompt, pair.max_new_tokens, self.batch_size, side.label, self.engine)
                save_answers(generate(model, *settings, resume=unfinished), folder / "answers.parquet")

            folder = self.store.make("answers", one, build, note=f"{side.name} on {self.problems.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            found.append(load_answers(folder / "answers.parquet"))
        return found

    def imported(self, pair: ModelPair, file: Any) -> list[list[Answer]]:
        """Answers that another engine made, checked against the pair and the problems; no model is loaded."""
        outlines = pair.check()
        read = outlines[:1] if pair.alone else outlines
        found = read_answers(file, self.problems, read, prompt_of(pair, self.problems))
        return [found[SIDES[0]], found.get(SIDES[1], found[SIDES[0]])]

    def scores(self, side: Side, traces: list[Trace], cut: int, other: Side) -> xr.DataArray:
        """Scores of one model on its traces; `other` is the other one of the pair."""
        from rlcircuits.attribution import SCORES, attribute

        inputs = {
            **side.key,
            "traces": digest_of_traces([trace.cut(cut) for trace in traces]),
            **self.scoring.key,
            "cut": cut,
            "code": str(SCORES),
        }
        if self.scoring.paired:
            inputs["other"] = other.fingerprint

        def build(folder: Path) -> None:
            asked = self.scoring.asked(other.model if self.scoring.paired else None)
            scores = attribute(side.model, traces, cut=cut, batch_size=self.batch_size, resume=unfinished, **asked)
            save_scores(scores, folder / "scores.nc")

        unfinished = self._unfinished("scores", inputs)
        folder = self.store.make("scores", inputs, build, note=f"{side.name}, {self.scoring.level}")
        shutil.rmtree(unfinished, ignore_errors=True)
        return load_scores(folder / "scores.nc")

    def losses(self, side: Side, traces: list[Trace]) -> dict[str, Sequence[float]]:
        import pandas as pd

        from rlcircuits.attribution import LOSSES, token_losses

        inputs = {**side.key, "traces": digest_of_traces(traces), "code": str(LOSSES)}

        def build(folder: Path) -> None:
            losses = token_losses(side.model, traces, batch_size=self.batch_size)
            save_table(
                pd.DataFrame({"problem": [t.problem for t in traces], "losses": losses}), folder / "losses.parquet"
            )

        table = load_table(self.store.make("losses", inputs, build, note=side.name) / "losses.parquet")
        return dict(zip(table["problem"], table["losses"]))

    def effects(self, side: Side, traces: list[Trace], cut: int, edge: str) -> pd.Series:
        """The exact effect of one edge on each trace, in nats, by problem."""
        import pandas as pd

        from rlcircuits.attribution import EFFECTS, ablate

        digest = digest_of_traces([trace.cut(cut) for trace in traces])
        inputs = {
            **side.key,
            "traces": digest,
            "level": self.scoring.level,
            "cut": cut,
            "edge": edge,
            "code": str(EFFECTS),
        }

        def build(folder: Path) -> None:
            exact = ablate(side.model, traces, self.scoring.level, [edge], cut=cut, batch_size=self.batch_size)
            source, _, destination = edge.partition("->")
            effect = exact.sel(source=source, destination=destination)
            table = pd.DataFrame({"problem": effect["sample"].values.astype(str), "effect": effect.values})
            save_table(table, folder / "effects.parquet")

        folder = self.store.make("edge-effects", inputs, build, note=f"{side.name} without {edge}")
        return load_table(folder / "effects.parquet").set_index("problem")["effect"]

    def comparison(self, base: xr.DataArray, tuned: xr.DataArray) -> pd.DataFrame:
        inputs = {"base": digest_of_scores(base), "tuned": digest_of_scores(tuned), "code": str(COMPARISON)}

        def build(folder: Path) -> None:
            save_table(compare(base, tuned).reset_index(), folder / "comparison.parquet")

        return load_table(self.store.make("comparison", inputs, build) / "comparison.parquet").set_index("metric")
