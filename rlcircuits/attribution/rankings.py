"""Runs of circuits: the loss of traces with only the first edges of a ranking, however it was made.

Each circuit is run once: no edges and all edges are the same circuit in every ranking. With ``resume``, each batch's losses
are appended to a journal (`rlcircuits.storage.journals`) when it is done. A row there is named by what was kept, not by how
it was ranked, so other rankings and sizes for the same model and traces find the circuits they share.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlcircuits.attribution.ablation import inputs_of_reruns
from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.batching import in_batches
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.losses import Objective
from rlcircuits.attribution.replacements import Replacement
from rlcircuits.attribution.reruns import rerun
from rlcircuits.attribution.traces import Trace
from rlcircuits.errors import InputError
from rlcircuits.storage import Journal, Step, journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CIRCUITS = Step("circuits", 1)
#: a finished run in a journal: which trace, the edges kept (64 bits of BLAKE2b over which edges, in the graph's order),
#: loss in nats
ROW = np.dtype([("sample", "<i4"), ("kept", "<u8"), ("loss", "<f8")])


@dataclass(frozen=True)
class _Row:
    """One row of a batch: a trace with only the first `size` edges of a ranking (by its number)."""

    sample: int
    problem: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    ranking: int
    size: int


@dataclass(frozen=True, eq=False)
class Runs:
    """How circuits are run: model, graph, loss, what replaces the rest, and on which (checked) traces; see
    `rlcircuits.faithfulness` for the other arguments.
    """

    hf: PreTrainedModel
    graph: Graph
    objective: Objective
    replacement: Replacement
    traces: Sequence[Trace]
    cut: int | None
    batch_size: int | str
    progress: bool
    resume: str | os.PathLike[str] | None

    def losses(self, rankings: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
        """Losses ``(ranking, size, sample)`` with only the first edges of each ranking.

        Args:
            rankings: edges in order, as places in the row-major list of the graph's edges.
            sizes: how many are kept.

        Raises:
            InputError: a loss that is not finite, naming the trace.
        """
        ranks = np.stack([np.argsort(order) for order in rankings])  # (ranking, edge): place of each edge
        kept: contextlib.AbstractContextManager[Journal | None] = contextlib.nullcontext()
        if self.resume is not None:
            given = self.hf, self.traces, self.graph.level, self.cut, self.replacement, self.objective
            kept = journal(self.resume, "circuits", inputs_of_reruns(*given) | {"code": str(CIRCUITS)}, ROW)
        with kept as book:
            return self._measure(ranks, [int(size) for size in sizes], book)

    def _measure(self, ranks: np.ndarray, sizes: Sequence[int], book: Journal | None) -> np.ndarray:
        hf, graph, traces = self.hf, self.graph, self.traces

        def name(ranking: int, size: int) -> tuple[int, int]:
            return (0 if size in (0, graph.n_edges) else ranking, size)

        def kept(ranking: int, size: int) -> int:
            edges = np.packbits(ranks[ranking] < size).tobytes()
            return int.from_bytes(hashlib.blake2b(edges, digest_size=8).digest(), "little")

        def rerun_rows(batch: list[_Row]) -> Tensor:
            removed = np.zeros((len(batch), *graph.mask.shape), bool)
            for row, run in zip(removed, batch):
                row[graph.mask] = ranks[run.ranking] >= run.size
            inputs = self.objective.batch(hf, batch)
            gone = torch.from_numpy(removed).to(hf.dtype)
            return rerun(Architecture.of(hf), graph, hf, inputs, gone, self.replacement.outputs(batch))

        circuits = sorted({name(ranking, size) for ranking in range(len(ranks)) for size in sizes})
        names = {c: kept(*c) for c in circuits}
        finished = {} if book is None else {(row["sample"], row["kept"]): row["loss"] for row in book.rows}
        found = {c: np.array([finished.get((i, names[c]), np.nan) for i in range(len(traces))]) for c in circuits}
        rows = [
            _Row(i, t.problem, t.prompt, t.answer, *c)
            for i, t in enumerate(traces)
            for c in circuits
            if np.isnan(found[c][i])
        ]
        for indices, losses in in_batches(hf, rows, self.batch_size, rerun_rows, "re-running circuits", self.progress):
            record = []
            for index, loss in zip(indices, losses.cpu().numpy()):
                row = rows[index]
                if not np.isfinite(loss):
                    raise InputError(
                        f"the loss of trace {row.problem!r} with {row.size} of {graph.n_edges} edges is {loss}: the model "
                        "overflows in its dtype or its weights are damaged; load it in float32 or check the checkpoint"
                    )
                found[row.ranking, row.size][row.sample] = loss
                record.append((row.sample, names[row.ranking, row.size], loss))
            if book is not None:
                book.add(np.array(record, ROW))
        return np.array([[found[name(ranking, size)] for size in sizes] for ranking in range(len(ranks))])
