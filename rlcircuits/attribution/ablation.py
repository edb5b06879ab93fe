"""The exact effect of removing an edge: the oracle beside which an edge's score is judged.

1. Choose an edge. Re-run the model on the same tokens, but let the edge's destination read  H − s · O  instead of H:
   the residual stream without that source's output O (s = 1; a smaller scale removes part of it). O − O′ where something
   takes its place (`rlcircuits.attribution.replacements`).
2. Every other destination still reads H; what follows is recomputed, nothing is linearised.
3. The effect is the loss of that run minus the loss of the untouched run, so it has the score's sign:
   effect ≈ W[source, destination] for a small effect.

A few traces' untouched runs are kept, and each re-run starts from there at its destination's layer
(`rlcircuits.attribution.suffixes`). Many edges run side by side: each row of a batch is one (trace, edge). At head level a
query head reads the changed stream through its own rows of the projection; its neighbours keep theirs. A model whose
layers do not allow that is re-run as a whole (`attrs["reruns"]` says which).

4. With ``resume``, each batch's losses are appended to a journal (`rlcircuits.storage.journals`) when it is done; the same call
   finds them there and runs only the rest. Batches stay the same, so the result has the same bits as without interruption.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.batching import in_batches
from rlcircuits.attribution.digests import digest, model_digests, traces_digest
from rlcircuits.attribution.eap import labelled
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import wide
from rlcircuits.attribution.losses import Loss, Objective
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.replacements import Replacement
from rlcircuits.attribution.reruns import rerun
from rlcircuits.attribution.suffixes import Kept, keep, rerun_suffixes, restarts
from rlcircuits.attribution.traces import Trace, checked
from rlcircuits.errors import InputError
from rlcircuits.storage import Step, journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EFFECTS = Step("effects", 1)

#: how many batches' worth of re-runs the traces that are kept at a time give
BATCHES_KEPT = 4
#: a finished run in a journal; source and destination are −1 for an untouched one, the loss is in nats
ROW = np.dtype([("sample", "<i4"), ("source", "<i4"), ("destination", "<i4"), ("loss", "<f8")])


@dataclass(frozen=True)
class _Run:
    """One row of a batch: a trace without one edge (row and column of the graph's mask), or untouched."""

    sample: int
    trace: Trace
    source: int | None = None
    destination: int | None = None

    @property
    def problem(self) -> str:
        return self.trace.problem

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.trace.prompt

    @property
    def answer(self) -> tuple[int, ...]:
        return self.trace.answer


def ablate(
    model: Any,
    traces: Sequence[Trace],
    level: str = "block",
    edges: Iterable[str] | xr.DataArray | None = None,
    cut: int | None = None,
    batch_size: int | str = "auto",
    scale: float = 1.0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    other: Any = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
) -> xr.DataArray:
    """Remove each edge of each trace, one at a time, and measure the loss by re-running the model.

    Args:
        model, traces, level, cut, batch_size, progress: as for `attribute`; a batch's rows are (trace, edge) runs.
        edges: names such as ``"a0->m1"``; or True for those to remove, as a DataArray ``(source, destination)``, such as a `circuit`, or
            ``(sample, source, destination)``, other ones for each trace; all edges of the graph when None.
        scale: share of the source's output that is removed; 1 is ablation, small values approach the derivative.
        resume: a folder in which finished effects are kept while the call runs; an interrupted call, made again, goes on
            from there, and a finished one runs nothing. Calls that differ in model weights, traces, level, cut, scale,
            edges, intervention or loss keep files of their own there. The same `batch_size` gives the same bits as no
            interruption.
        intervention, corrupted, other: what takes the place of what is removed, as for `attribute`: the destination reads
            H − s · (O − O′).
        loss: what is measured, as for `attribute`.

    Returns:
        DataArray ``(sample, source, destination)``, as from `attribute`: the increase of the loss, in nats (logits for a
        difference of logits); NaN where there is no edge or the edge was not asked for, and for the loss of a trace of which none was.

    Raises:
        InputError: as for `attribute`, or an edge that the graph does not have.
        StoreError: `resume` is a file, or cannot be written.
    """
    from tqdm.auto import tqdm

    hf = plain(model)
    traces = checked(hf, traces, cut)
    objective = Objective.of(loss, hf, traces, cut)
    replacement = Replacement.of(hf, level, traces, intervention, corrupted, other, cut, batch_size, progress)
    graph = Graph.of(hf, level)
    cells = _cells(graph, len(traces), edges)
    suffixes = restarts(hf)
    losses = _Losses(np.full(len(traces), np.nan), np.full((len(traces), *graph.mask.shape), np.nan))
    asked = [i for i in range(len(traces)) if cells[i].any()]

    def missing(group: Sequence[int]) -> list[_Run]:
        """What is left to run of some samples, by destination: rows of neighbouring ones run together."""
        left = cells[group] & np.isnan(losses.ablated[group])
        return [_Run(group[i], traces[group[i]], int(s), int(d)) for d, s, i in np.argwhere(left.transpose(2, 1, 0))]

    def untouched(rows: list[_Run]) -> tuple[Tensor, Kept | None] | None:
        group = [row.sample for row in rows]
        if not missing(group) and not np.isnan(losses.clean[group]).any():
            return None
        if not suffixes:
            return _losses(hf, graph, objective, rows), None
        pairs = {(int(s), int(d)) for s, d in np.argwhere(cells[group].any(0))}
        kept = keep(hf, graph, objective, [row.trace for row in rows], pairs, replacement)
        return kept.losses, kept

    with contextlib.ExitStack() as stack:
        book = None
        if resume is not None:
            chosen = [[int(i), int(s), int(d)] for i, d, s in np.argwhere(cells.transpose(0, 2, 1))]
            inputs = inputs_of_reruns(hf, traces, level, cut, replacement, objective)
            inputs |= {"scale": float(scale), "edges": digest(chosen)}
            book = stack.enter_context(journal(resume, "ablation", inputs, ROW))
            losses.put(book.rows)

        def take(runs: Sequence[_Run], found: Tensor) -> None:
            record = _record(runs, found.cpu().numpy(), graph)
            losses.put(record)
            if book is not None and len(record):
                book.add(record)

        left = int((cells & np.isnan(losses.ablated)).sum())
        bar = stack.enter_context(tqdm(total=left, desc="ablating edges", unit="run", delay=3, disable=not progress))
        # A few traces at a time are kept, enough of them to fill batches with their re-runs.
        share = min(1.0, BATCHES_KEPT * len(asked) / cells.sum())
        rows = [_Run(i, traces[i]) for i in asked]
        for places, ran in in_batches(hf, rows, batch_size, untouched, "running untouched", False, share):
            if ran is None:
                continue
            new = [at for at, place in enumerate(places) if np.isnan(losses.of(rows[place]))]
            take([rows[places[at]] for at in new], ran[0][new])
            runs = missing([asked[place] for place in places])

            def rerun_rows(rows: list[_Run], kept: Kept | None = ran[1]) -> Tensor:
                return _losses(hf, graph, objective, rows, scale, kept, replacement)

            for indices, found in in_batches(hf, runs, batch_size, rerun_rows, "ablating edges", bar=bar):
                take([runs[i] for i in indices], found)
    dtype = np.float64 if wide(hf.dtype) == torch.float64 else np.float32
    effects = (losses.ablated - losses.clean[:, None, None]).astype(dtype)
    result = labelled(
        effects, losses.clean.astype(dtype), traces, graph, model, cut, "exact ablation", intervention, objective.label
    )
    result.attrs |= {"scale": float(scale), "reruns": "from the edge's end" if suffixes else "whole"}
    return result


def _cells(graph: Graph, n: int, edges: Iterable[str] | xr.DataArray | None) -> np.ndarray:
    """Which edges of which traces to remove, bool ``(sample, source, destination)``.

    Raises:
        InputError: none at all, an edge that the graph does not have, or an array of other nodes or samples.
    """
    shape = (n, *graph.mask.shape)
    if isinstance(edges, xr.DataArray):
        dims = ("sample", "source", "destination")[-edges.ndim :]
        if set(edges.dims) != set(dims) or edges.dtype != bool or edges.transpose(*dims).shape != shape[-edges.ndim :]:
            raise InputError(
                f"edges: expected True or False over (source, destination) or (sample, source, destination), {shape}, "
                f"not {edges.dtype} over {dict(edges.sizes)}"
            )
        cells = np.broadcast_to(edges.transpose(*dims).values, shape)
        if (cells & ~graph.mask).any():
            _, s, d = np.argwhere(cells & ~graph.mask)[0]
            raise InputError(f"edges: {graph.sources[s]}->{graph.destinations[d]} is no edge of the model's graph")
    else:
        cells = np.zeros(shape, bool)
        for name in [edges] if isinstance(edges, str) else edges or ():
            cells[:, *graph.edge(name)] = True
        if edges is None:
            cells[:] = graph.mask
    if not cells.any():
        raise InputError("no edges given: name at least one, e.g. edges=['input->logits'], or leave edges out for all")
    return cells


@dataclass
class _Losses:
    """Losses measured so far, NaN where not yet: `clean` ``(sample,)``, `ablated` ``(sample, source, destination)``."""

    clean: np.ndarray
    ablated: np.ndarray

    def of(self, run: _Run) -> float:
        if run.source is None:
            return float(self.clean[run.sample])
        return float(self.ablated[run.sample, run.source, run.destination])

    def put(self, record: np.ndarray) -> None:
        """Take in rows as a journal keeps them: source and destination are −1 for an untouched run."""
        clean, ablated = record[record["source"] < 0], record[record["source"] >= 0]
        self.clean[clean["sample"]] = clean["loss"]
        self.ablated[ablated["sample"], ablated["source"], ablated["destination"]] = ablated["loss"]


def _record(rows: Sequence[_Run], losses: np.ndarray, graph: Graph) -> np.ndarray:
    """What a batch found, as rows of a journal.

    Raises:
        InputError: a loss that is not finite, naming trace and edge.
    """
    record = np.empty(len(rows), ROW)
    for i, (run, loss) in enumerate(zip(rows, losses)):
        if not np.isfinite(loss):
            edge = (
                ""
                if run.source is None
                else f" without {graph.sources[run.source]}->{graph.destinations[run.destination]}"
            )
            raise InputError(
                f"the loss of trace {run.problem!r}{edge} is {loss}: the model overflows in its dtype or its "
                "weights are damaged; load it in float32 or check the checkpoint"
            )
        nodes = (-1, -1) if run.source is None else (run.source, run.destination)
        record[i] = (run.sample, *nodes, loss)
    return record


def inputs_of_reruns(
    hf: PreTrainedModel,
    traces: Sequence[Trace],
    level: str,
    cut: int | None,
    replacement: Replacement,
    objective: Objective,
) -> dict[str, Any]:
    """What the loss of a re-run depends on, as JSON values."""
    return {
        **model_digests(hf),
        "traces": traces_digest(traces),
        "level": level,
        "cut": cut,
        "intervention": replacement.inputs(),
        "loss": objective.inputs(),
        "code": str(EFFECTS),
    }


def inputs_of_ablation(
    model: Any,
    traces: Sequence[Trace],
    level: str,
    cut: int | None,
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    other: Any = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
) -> dict[str, Any]:
    """What the effects that `ablate` measures depend on, as JSON values; arguments and errors as there."""
    hf = plain(model)
    traces = checked(hf, traces, cut)
    replacement = Replacement.of(hf, level, traces, intervention, corrupted, other, cut)
    return inputs_of_reruns(hf, traces, level, cut, replacement, Objective.of(loss, hf, traces, cut))


def _losses(
    hf: PreTrainedModel,
    graph: Graph,
    objective: Objective,
    rows: Sequence[Any],
    scale: float = 0.0,
    kept: Kept | None = None,
    replacement: Replacement | None = None,
) -> Tensor:
    """Loss ``(batch,)`` of every row with its edge scaled by 1 − `scale`; whole runs where nothing is kept."""
    if kept is not None:
        return rerun_suffixes(hf, graph, objective, rows, kept, scale)
    batch = objective.batch(hf, rows)
    removed = torch.zeros(len(rows), *graph.mask.shape, dtype=hf.dtype)
    if scale:
        removed[range(len(rows)), [row.source for row in rows], [row.destination for row in rows]] = scale
    instead = None if replacement is None else replacement.outputs(rows)
    return rerun(Architecture.of(hf), graph, hf, batch, removed, instead)
