"""Which modules carry the change: chimaeras of two models' weights, run on both models' answers.

1. For a set of parts P (`rlcircuits.changes.chimaeras`) there are two chimaeras: the base with the tuned model's P
   (``into="base"``), and the tuned model with the base's P (``into="tuned"``). By default P is each of the 2L + 2 parts on
   its own, and the embeddings with the first k layers for k = 1 … L; what is left of those are the last layers, so both ways
   together are prefixes and suffixes.
2. Each is run on both models' answers: exact, nothing is linearised. Where between the two it **stands**,

       (L(base) − L(chimaera)) / (L(base) − L(tuned)),   a ratio of means over problems,

   is 0 for the base and 1 for the tuned model, whatever the answers; it may lie beyond both, and says little where the two
   losses hardly differ, which its interval shows.
3. Up to the first layer at which it is mixed a chimaera is one of the two models, so its run begins there, from that
   model's stream (`rlcircuits.attribution.continuing`): over all single parts half of the layers.
4. With ``problems``, each chimaera also answers them greedily, and its answers are graded.
5. With ``resume``, finished losses and answers are kept on disk as they come.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from rlcircuits.answers import SIDES, ProblemSet, generate, prompt_of
from rlcircuits.attribution import (
    Loss,
    Objective,
    Passed,
    Trace,
    checked,
    digest,
    in_batches,
    model_digests,
    plain,
    traces_digest,
)
from rlcircuits.changes.chimaeras import EMBEDDINGS, Chimaera, Weights, chimaera, named, parts_of, weights_of
from rlcircuits.changes.resampling import RESAMPLES, all_and_resampled, expect_intervals, percentiles, ratios
from rlcircuits.changes.sides import Pair, both, of_problems, sided
from rlcircuits.errors import InputError, choose
from rlcircuits.models import LONGEST_ANSWER, Model, ModelPair, Prompt, adapted_weights
from rlcircuits.models import pair as registered_pair
from rlcircuits.storage import Step, journal

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from transformers import PreTrainedModel

GRAFTS = Step("grafts", 1)
#: a finished run in a journal: whose answers, which trace, which chimaera, and its loss in nats
_ROW = np.dtype([("answers", "<i4"), ("sample", "<i4"), ("chimaera", "<u8"), ("loss", "<f8")])


@dataclass(frozen=True, eq=False, repr=False)
class Graft:
    """What chimaeras of two models do.

    Attributes:
        data: over ``chimaera`` (with coordinates ``modules``, ``into``, ``kind`` and ``depth``, how many layers a prefix
            has, −1 for others), ``answers`` (whose) and ``sample``: ``loss``; ``base_loss``, ``tuned_loss``
            (answers, sample), in nats; where problems were asked, ``correct`` (chimaera, problem), ``base_correct`` and
            ``tuned_correct`` (problem).
        confidence, resamples, seed: of the intervals over problems.
    """

    data: xr.Dataset
    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0

    def table(self) -> pd.DataFrame:
        """One row for each chimaera and whose answers it was run on.

        Returns:
            Columns ``modules``, ``into``, ``kind``, ``depth``, ``answers``, ``loss`` (nats, mean), ``change`` (from the
            model that it was grafted into) and ``stands`` (0 base, 1 tuned), each of the last two with ``…_low`` and
            ``…_high``; ``accuracy`` with its own where problems were asked.
        """
        import pandas as pd

        data, frames = self.data, []
        for answers in data["answers"].values:
            one = data.sel(answers=answers)
            frame = pd.DataFrame({name: data[name].values for name in ("modules", "into", "kind", "depth")})
            frame["answers"] = answers
            losses, base, tuned = one["loss"].values, one["base_loss"].values, one["tuned_loss"].values
            frame["loss"] = losses.mean(1)
            host = np.where((frame["into"] == "base").to_numpy()[:, None], base, tuned)
            self._interval(frame, "change", losses - host)
            self._interval(frame, "stands", base - losses, base - tuned)
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        if "correct" in data:
            each = pd.DataFrame(index=range(data.sizes["chimaera"]))
            self._interval(each, "accuracy", data["correct"].values.astype(float))
            table = table.join(pd.concat([each] * data.sizes["answers"], ignore_index=True))
        return table

    def on(self, problems: Collection[str]) -> Graft:
        """The same of some of its problems alone."""
        return replace(self, data=of_problems(self.data, problems))

    def _interval(self, frame: pd.DataFrame, name: str, values: np.ndarray, under: np.ndarray | None = None) -> None:
        """Means over problems of values ``(chimaera, problem)``, or their ratios to those of `under`, with intervals."""
        weights = all_and_resampled(values.shape[1], self.resamples, self.seed)
        found = weights @ values.T if under is None else ratios(weights @ values.T, (weights @ under)[:, None])
        frame[name] = found[0]
        frame[f"{name}_low"], frame[f"{name}_high"] = percentiles(found[1:], self.confidence)

    @property
    def title(self) -> str:
        """What was found, in a line."""
        table = self.table()
        single = table[(table["kind"] == "module") & (table["into"] == "base") & (table["answers"] == "tuned")]
        if not len(single) or single["stands"].isna().all():
            return f"{self.data.sizes['chimaera']} chimaeras on {self.data.sizes['sample']} problems"
        best = single.sort_values("stands").iloc[-1]
        return (
            f"{best['modules']} alone takes the base {best['stands']:.0%} [{best['stands_low']:.0%}, "
            f"{best['stands_high']:.0%}] of the way to the tuned model, on its answers"
        )

    def __repr__(self) -> str:
        return f"{self.title}\n{self.table().to_string(float_format='{:.3g}'.format, max_rows=12, index=False)}"


def graft(
    pair: Pair,
    traces: Sequence[Trace] | Mapping[str, Sequence[Trace]],
    modules: Iterable[str] | None = None,
    into: Sequence[str] = SIDES,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
    cut: int | None = None,
    problems: ProblemSet | None = None,
    prompt: Prompt | str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    resume: str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = True,
) -> Graft:
    """Take the weights of modules from one model into the other, and see what becomes of losses and accuracy.

    Args:
        pair: a `rlcircuits.ModelPair`, a registered pair's name, or two loaded models, base first. Of a pair whose tuned
            side is a LoRA adapter the base is loaded once; beside it there are the matrices that the adapter changes in
            the parts that are taken. The base's weights are its own again afterwards, whatever happens.
        traces: answers to run on; of both models as ``{"base": …, "tuned": …}``, the same problems in the same order.
        modules: sets of parts to take, each as text: a part (``"embeddings"``, ``"a3"``, ``"m3"``, ``"head"``), a layer or
            layers (``"l3"``, ``"l2-l5"``), ``"all"``, or several with ``+`` between. None: see step 1.
        into: ``"base"``, ``"tuned"`` or both.
        loss, cut, batch_size: as for `rlcircuits.attribute`.
        problems: for accuracy, which costs an answer to every problem for every chimaera. Needs a pair with tokenizer.
        prompt, max_new_tokens: as for `rlcircuits.generate`; the pair's when None.
        device, dtype: for loading the pair.
        resume: a folder in which losses and answers are kept as they come; the same call goes on from them.
        confidence, resamples, seed: of the intervals over problems.
        progress: show a bar for work that takes longer than a few seconds.

    Raises:
        InputError: two models that do not hold the same weights, or differ in more than weights; a module that does not
            exist; traces of other problems for base and tuned; or as for `rlcircuits.attribute`.
        StoreError: `resume` is a file, or cannot be written.
    """
    expect_intervals(confidence, resamples, seed)
    pair = registered_pair(pair) if isinstance(pair, str) else pair
    if unknown := [one for one in ([into] if isinstance(into, str) else into) if one not in SIDES]:
        choose("side in into", unknown[0], SIDES)
    base, tuned, weights = _sides(pair, device, dtype)
    hf = plain(base)
    by_side = sided(traces) if isinstance(traces, Mapping) else {"given": sided(traces)["base"]}
    rows = {name: checked(hf, some, cut) for name, some in by_side.items()}
    objectives = {name: Objective.of(loss, hf, some, cut) for name, some in rows.items()}
    chosen = _chosen(hf, modules, (into,) if isinstance(into, str) else tuple(into))
    with chimaera(base, weights) as mixed, contextlib.ExitStack() as stack:
        book = None
        if resume is not None:
            inputs = {
                **model_digests(hf),
                "tuned": _digest_of(weights, mixed),
                "traces": {name: traces_digest(some) for name, some in rows.items()},
                "cut": cut,
                "loss": {name: one.inputs() for name, one in objectives.items()},
                "code": str(GRAFTS),
            }
            book = stack.enter_context(journal(resume, "grafts", inputs, _ROW))
        work = _Losses(mixed, None if tuned is None else plain(tuned), chosen, book, batch_size, progress)
        measured: dict[str, dict[int, np.ndarray]] = {}
        for i, (name, some) in enumerate(rows.items()):
            known = [(rows[other], losses) for other, losses in measured.items()]
            measured[name] = work.measure(i, some, objectives[name], known)
        data = _dataset(measured, chosen, mixed.parts, [trace.problem for trace in next(iter(rows.values()))])
        if problems is not None:
            asked = _Asked(pair, base, tuned, problems, prompt, max_new_tokens, batch_size, resume)
            data = asked.added(data, mixed, chosen)
    data.attrs = {"base": _name(base), "tuned": _tuned_name(pair, tuned), "cut": "all" if cut is None else int(cut)}
    return Graft(data, confidence, resamples, seed)


@dataclass(frozen=True)
class _Mixed:
    """A chimaera: whose parts `taken` are the tuned model's."""

    modules: str
    into: str
    kind: str
    depth: int
    taken: frozenset[str]

    @property
    def key(self) -> int:
        return _key(self.taken)


def _key(taken: frozenset[str]) -> int:
    """What names a chimaera in a journal: 64 bits of BLAKE2b over its parts."""
    return int.from_bytes(hashlib.blake2b("+".join(sorted(taken)).encode(), digest_size=8).digest(), "little")


def _sides(pair: Pair, device: str, dtype: str) -> tuple[Any, Any, Weights]:
    """The base, the tuned model unless it is an adapter, and the tuned model's weights."""
    if isinstance(pair, ModelPair):
        pair.check()
        base = pair.load("base", device, dtype)
        adapted = adapted_weights(base, pair.tuned, pair.tuned_revision)
        if adapted is not None:
            return base, None, adapted
    base, tuned = both(pair, device, dtype)
    return base, tuned, weights_of(tuned, base)


def _chosen(hf: PreTrainedModel, modules: Iterable[str] | None, into: Sequence[str]) -> list[_Mixed]:
    parts = parts_of(hf)
    layers = (len(parts) - 2) // 2
    sets: list[tuple[str, str, int, frozenset[str]]]
    if modules is None:
        sets = [(name, "module", -1, frozenset({name})) for name in parts]
        for depth in range(1, layers + 1):
            text = f"{EMBEDDINGS}+l0" + (f"-l{depth - 1}" if depth > 1 else "")
            sets.append((text, "prefix", depth, named(text, parts)))
    else:
        given = [modules] if isinstance(modules, str) else list(modules)
        sets = [(text, "module" if text in parts else "set", -1, named(text, parts)) for text in given]
        if not sets:
            raise InputError("no modules given: name at least one, such as 'a0', or leave modules out for all")
    whole = frozenset(parts)
    return [
        _Mixed(text, side, kind, depth, taken if side == "base" else whole - taken)
        for side in into
        for text, kind, depth, taken in sets
    ]


def _digest_of(weights: Weights, mixed: Chimaera) -> str:
    """SHA-256 of the tuned model's weights that are not the base's."""
    whole = hashlib.sha256()
    own = mixed.weights
    for name in sorted(weights):
        weight = weights[name](own[name].data)
        whole.update(f"{name}\n".encode())
        whole.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


@dataclass
class _Losses:
    """Runs of all chimaeras; `tuned` is the tuned model where it is loaded, to check them against."""

    mixed: Chimaera
    tuned: PreTrainedModel | None
    chosen: Sequence[_Mixed]
    book: Any
    batch_size: int | str
    progress: bool

    def measure(
        self,
        answers: int,
        rows: list[Trace],
        objective: Objective,
        known: Sequence[tuple[list[Trace], dict[int, np.ndarray]]] = (),
    ) -> dict[int, np.ndarray]:
        """By key of base, tuned model and each chimaera, the losses ``(sample,)`` of traces.

        Args:
            answers: whose they are, as a number.
            known: traces of the same problems and their losses: an answer that both models give is run once.
        """
        hf, whole = self.mixed.hf, frozenset(self.mixed.parts)
        wanted = {_key(taken): taken for taken in (frozenset(), whole, *(one.taken for one in self.chosen))}
        found = {key: np.full(len(rows), np.nan) for key in wanted}
        for others, losses in known:
            alike = [i for i, (one, other) in enumerate(zip(rows, others)) if one == other]
            for key, values in found.items():
                values[alike] = losses[key][alike]
        for row in [] if self.book is None else self.book.rows:
            if row["answers"] == answers and row["chimaera"] in found:
                found[int(row["chimaera"])][row["sample"]] = row["loss"]
        waiting = [i for i in range(len(rows)) if any(np.isnan(found[key][i]) for key in wanted)]

        def run(batch: list[_Row]) -> None:
            places = [row.sample for row in batch]
            self.mixed.take(frozenset())
            inputs = objective.batch(hf, batch)
            passed = {}
            for taken in (frozenset(), whole):
                self.mixed.take(taken)
                passed[bool(taken)] = Passed.of(hf, inputs)
                self._put(found, answers, places, _key(taken), passed[bool(taken)].losses)
            if self.tuned is not None:
                self._check(passed[True].losses, inputs.losses, batch)
            for key, taken in wanted.items():
                if np.isnan(found[key][places]).any():
                    self.mixed.take(taken)
                    start, layer = self._begins(taken)
                    losses = passed[start].losses_from(layer, hf, inputs)
                    self._put(found, answers, places, key, losses)

        queue = [_Row(i, rows[i]) for i in waiting]
        for _ in in_batches(hf, queue, self.batch_size, run, f"grafting, {len(wanted)} models", self.progress):
            pass
        return found

    def _begins(self, taken: frozenset[str]) -> tuple[bool, int]:
        """Which model a chimaera is up to its first mixed layer, and that layer."""
        start = EMBEDDINGS in taken
        layers = (len(self.mixed.parts) - 2) // 2
        for layer in range(layers):
            if any((f"{branch}{layer}" in taken) != start for branch in "am"):
                return start, layer
        return start, layers

    def _check(self, losses: Tensor, run: Any, batch: Sequence[Any]) -> None:
        """All parts together must be the tuned model."""
        with torch.no_grad():
            expected = run(self.tuned)
        if not torch.allclose(losses, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            worst = int((losses - expected).abs().argmax())
            raise InputError(
                f"the base with all of the tuned model's weights has a loss of {float(losses[worst]):.4g} on trace "
                f"{batch[worst].problem!r}, the tuned model one of {float(expected[worst]):.4g}: the two differ in more "
                "than weights, compare their config.json"
            )

    def _put(self, found: dict[int, np.ndarray], answers: int, places: Sequence[int], key: int, losses: Tensor) -> None:
        values = losses.double().cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError(
                f"the loss of a chimaera is {values[~np.isfinite(values)][0]}: a model overflows in its dtype or its "
                "weights are damaged; load both in float32 or check the checkpoints"
            )
        new = np.isnan(found[key][places])
        found[key][places] = np.where(new, values, found[key][places])
        if self.book is not None and new.any():
            self.book.add(np.array([(answers, i, key, v) for i, v, fresh in zip(places, values, new) if fresh], _ROW))


@dataclass(frozen=True)
class _Row:
    """A trace and its place."""

    sample: int
    trace: Trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trace, name)


def _dataset(
    measured: Mapping[str, Mapping[int, np.ndarray]],
    chosen: Sequence[_Mixed],
    parts: Iterable[str],
    samples: Sequence[str],
) -> xr.Dataset:
    base, tuned = (
        np.stack([one[_key(taken)] for one in measured.values()]) for taken in (frozenset(), frozenset(parts))
    )
    losses = np.stack([np.stack([one[mixed.key] for one in measured.values()]) for mixed in chosen])
    coords: dict[str, Any] = {
        "answers": list(measured),
        "sample": list(samples),
        "modules": ("chimaera", [one.modules for one in chosen]),
        "into": ("chimaera", [one.into for one in chosen]),
        "kind": ("chimaera", [one.kind for one in chosen]),
        "depth": ("chimaera", [one.depth for one in chosen]),
    }
    dims = ("answers", "sample")
    values = {"loss": (("chimaera", *dims), losses), "base_loss": (dims, base), "tuned_loss": (dims, tuned)}
    return xr.Dataset(values, coords)


@dataclass(frozen=True)
class _Asked:
    """Problems that chimaeras answer."""

    pair: Pair
    base: Any
    tuned: Any
    problems: ProblemSet
    prompt: Prompt | str | None
    max_new_tokens: int | None
    batch_size: int | str
    resume: str | os.PathLike[str] | None

    def added(self, data: xr.Dataset, mixed: Chimaera, chosen: Sequence[_Mixed]) -> xr.Dataset:
        """The data with which problems each chimaera, base and tuned model answer correctly."""
        if not isinstance(self.base, Model):
            raise InputError("problems are given with bare models: accuracy needs a tokenizer, so give a pair")
        wanted = {one.taken for one in chosen} | {frozenset(), frozenset(mixed.parts)}
        correct = {taken: self._answered(mixed, taken) for taken in sorted(wanted, key=sorted)}
        each = np.stack([correct[one.taken] for one in chosen])
        data = data.assign_coords(problem=[problem.id for problem in self.problems])
        return data.assign(
            correct=(("chimaera", "problem"), each),
            base_correct=("problem", correct[frozenset()]),
            tuned_correct=("problem", correct[frozenset(mixed.parts)]),
        )

    def _answered(self, mixed: Chimaera, taken: frozenset[str]) -> np.ndarray:
        """Whether each problem is answered correctly ``(problem,)``; with the end tokens of the model that gives most."""
        mixed.take(taken)
        tuned = isinstance(self.tuned, Model) and 2 * len(taken) > len(mixed.parts)
        own = mixed.hf.generation_config
        # What names the answers in a journal: both models and the parts taken.
        theirs = self.tuned.fingerprint if isinstance(self.tuned, Model) else _tuned_name(self.pair, self.tuned)
        name = digest([self.base.fingerprint, theirs, sorted(taken)])
        resume = None if self.resume is None else Path(self.resume) / f"chimaera-{name[:16]}"
        model = replace(self.base, hf=mixed.hf, name=f"chimaera of {len(taken)} parts", commit=name)
        given = self.pair if isinstance(self.pair, ModelPair) else None
        prompt = self.prompt or (prompt_of(given, self.problems) if given is not None else "{question}")
        longest = self.max_new_tokens or (given.max_new_tokens if given is not None else LONGEST_ANSWER)
        try:
            if tuned:
                mixed.hf.generation_config = self.tuned.hf.generation_config
            answers = generate(model, self.problems, prompt, longest, self.batch_size, model.name, resume=resume)
        finally:
            mixed.hf.generation_config = own
        return np.array([answer.correct for answer in answers])


def _name(model: Any) -> str:
    return str(getattr(model, "name", "") or plain(model).config.name_or_path)


def _tuned_name(pair: Pair, tuned: Any) -> str:
    if tuned is not None:
        return _name(tuned)
    return pair.tuned if isinstance(pair, ModelPair) else ""  # an adapter, which only a pair has
