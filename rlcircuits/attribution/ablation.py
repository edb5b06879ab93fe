"""The exact effect of removing an edge: the oracle beside which an edge's score is judged.

1. Choose an edge. Re-run the model on the same tokens, but let the edge's destination read  H − s · O  instead of H:
   the residual stream without that source's output O (s = 1; a smaller scale removes part of it).
2. Every other destination still reads H; what follows is recomputed, nothing is linearised.
3. The effect is the loss of that run minus the loss of the untouched run, so it has the score's sign:
   effect ≈ W[source, destination] for a small effect.

Many edges run side by side: each row of a batch is one (trace, edge), rows of one destination together. At head level a
query head reads the changed stream through its own rows of the projection; its neighbours keep theirs.

4. With ``resume``, each batch's losses are appended to a journal (`rlcircuits.storage.journals`) when it is done; the same call
   finds them there and runs only the rest. Batches stay the same, so the result has the same bits as without interruption.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.batching import in_batches
from rlcircuits.attribution.eap import checked, labelled
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import Layer, Norm, Projection, first, given, hooked, taken, wide
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.recording import mean_nll, padded
from rlcircuits.attribution.traces import Trace
from rlcircuits.errors import InputError
from rlcircuits.storage import Step, journal

EFFECTS = Step("effects", 1)

#: bytes of changed streams that are computed at once when many edges are removed
TOGETHER_BYTES = 64 << 20
#: a finished run in a journal; source and destination are −1 for an untouched one, the loss is in nats
ROW = np.dtype([("sample", "<i4"), ("source", "<i4"), ("destination", "<i4"), ("loss", "<f8")])


@dataclass(frozen=True)
class _Run:
    """One row of a batch: a trace without one edge (row and column of the graph's mask), or untouched."""

    sample: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    source: int | None
    destination: int | None

    @property
    def problem(self) -> str:
        return f"number {self.sample}"


def ablate(
    model: Any,
    traces: Sequence[Trace],
    level: str = "block",
    edges: Iterable[str] | None = None,
    cut: int | None = None,
    batch_size: int | str = "auto",
    scale: float = 1.0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """Remove each edge of each trace, one at a time, and measure the loss by re-running the model.

    Args:
        model, traces, level, cut, batch_size, progress: as for `attribute`; a batch's rows are (trace, edge) runs.
        edges: names such as ``"a0->m1"``; all edges of the graph when None.
        scale: share of the source's output that is removed; 1 is ablation, small values approach the derivative.
        resume: a folder in which finished effects are kept while the call runs; an interrupted call, made again, goes on
            from there, and a finished one runs nothing. Calls that differ in model weights, traces, level, cut, scale
            or edges keep files of their own there. The same `batch_size` gives the same bits as no interruption.

    Returns:
        DataArray ``(sample, source, destination)``, as from `attribute`: the increase of the loss in nats; NaN where there
        is no edge or the edge was not asked for.

    Raises:
        InputError: as for `attribute`, or an edge that the graph does not have.
        StoreError: `resume` is a file, or cannot be written.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    architecture = Architecture.of(hf)
    graph = Graph.of(hf, level)
    if isinstance(edges, str):
        edges = [edges]
    pairs = list(zip(*graph.mask.nonzero())) if edges is None else [graph.edge(name) for name in edges]
    if not pairs:
        raise InputError("no edges given: name at least one, e.g. edges=['input->logits'], or leave edges out for all")
    # Rows of one destination run together: only that destination's input has to be rebuilt.
    pairs = sorted(dict.fromkeys((int(s), int(d)) for s, d in pairs), key=lambda pair: pair[::-1])
    untouched = [_Run(i, t.prompt, t.answer, None, None) for i, t in enumerate(traces)]
    runs = [_Run(i, t.prompt, t.answer, s, d) for i, t in enumerate(traces) for s, d in pairs]
    runs.sort(key=lambda run: (len(run.prompt) + len(run.answer), run.destination), reverse=True)
    losses = _Losses(np.full(len(traces), np.nan), np.full((len(traces), *graph.mask.shape), np.nan))

    def rerun_rows(rows: list[_Run]) -> Tensor:
        return _losses(architecture, graph, hf, rows, scale)

    with contextlib.ExitStack() as stack:
        book = None
        if resume is not None:
            inputs = {**inputs_of_reruns(hf, traces, level, cut), "scale": float(scale), "edges": _digest(pairs)}
            book = stack.enter_context(journal(resume, "ablation", inputs, ROW))
            losses.put(book.rows)
        for rows, title in ((untouched, "running untouched"), (runs, "ablating edges")):
            rows = [run for run in rows if np.isnan(losses.of(run))]
            for indices, found in in_batches(hf, rows, batch_size, rerun_rows, title, progress):
                record = _record([rows[i] for i in indices], found.cpu().numpy(), traces, graph)
                losses.put(record)
                if book is not None:
                    book.add(record)
    dtype = np.float64 if wide(hf.dtype) == torch.float64 else np.float32
    effects = (losses.ablated - losses.clean[:, None, None]).astype(dtype)
    result = labelled(effects, losses.clean.astype(dtype), traces, graph, model, cut, method="exact ablation")
    result.attrs["scale"] = float(scale)
    return result


@dataclass
class _Losses:
    """Losses measured so far, NaN where not yet: `clean` ``(sample,)``, `ablated` ``(sample, source, destination)``."""

    clean: np.ndarray
    ablated: np.ndarray

    def of(self, run: _Run) -> float:
        if run.source is None:
            return self.clean[run.sample]
        return self.ablated[run.sample, run.source, run.destination]

    def put(self, record: np.ndarray) -> None:
        """Take in rows as a journal keeps them: source and destination are −1 for an untouched run."""
        clean, ablated = record[record["source"] < 0], record[record["source"] >= 0]
        self.clean[clean["sample"]] = clean["loss"]
        self.ablated[ablated["sample"], ablated["source"], ablated["destination"]] = ablated["loss"]


def _record(rows: Sequence[_Run], losses: np.ndarray, traces: Sequence[Trace], graph: Graph) -> np.ndarray:
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
                f"the loss of trace {traces[run.sample].problem!r}{edge} is {loss}: the model overflows in its dtype or its "
                "weights are damaged; load it in float32 or check the checkpoint"
            )
        nodes = (-1, -1) if run.source is None else (run.source, run.destination)
        record[i] = (run.sample, *nodes, loss)
    return record


def inputs_of_reruns(hf: nn.Module, traces: Sequence[Trace], level: str, cut: int | None) -> dict[str, Any]:
    """What the loss of a re-run depends on, as JSON values."""
    config = {k: v for k, v in json.loads(hf.config.to_json_string(use_diff=False)).items() if k not in _NOT_MODEL}
    return {
        "model weights": weights_digest(hf),
        "model configuration": _digest(config),
        "traces": _digest([[trace.problem, trace.prompt, trace.answer] for trace in traces]),
        "level": level,
        "cut": cut,
        "code": str(EFFECTS),
    }


_NOT_MODEL = {"_name_or_path", "transformers_version", "dtype", "architectures"}


def weights_digest(hf: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's weights as they are in memory."""
    whole = hashlib.sha256()
    for name, weight in sorted(hf.state_dict().items()):
        whole.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        whole.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _losses(architecture: Architecture, graph: Graph, hf: nn.Module, rows: Sequence[_Run], scale: float) -> Tensor:
    """Loss ``(batch,)`` of every row with its edge scaled by 1 − `scale`."""
    ids, positions, targets = padded(rows, hf.get_input_embeddings().weight.device)
    removed = torch.zeros(len(rows), *graph.mask.shape, dtype=hf.dtype, device=ids.device)
    for row, run in enumerate(rows):
        if run.source is not None:
            removed[row, run.source, run.destination] = scale
    return rerun(architecture, graph, hf, ids, positions, targets, removed)


def rerun(
    architecture: Architecture,
    graph: Graph,
    hf: nn.Module,
    ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    removed: Tensor,
) -> Tensor:
    """Loss ``(batch,)`` when destination d of row b reads  H − Σ_s removed[b, s, d] · O_s,  for any set of edges.

    Args:
        ids, positions, targets: from `rlcircuits.attribution.recording.padded`.
        removed: ``(batch, source, destination)``, 0 where an edge stays and 1 where it is removed.
    """
    edit = _Edit(architecture, graph, removed)
    with hooked(edit.attach()), torch.no_grad():
        return mean_nll(hf, ids, positions, targets)


class _Edit:
    """Hooks that let each destination read the stream without the removed share of its sources."""

    def __init__(self, architecture: Architecture, graph: Graph, removed: Tensor) -> None:
        self.architecture, self.graph, self.removed = architecture, graph, removed
        self.written: list[Tensor] = []  # every source's output so far, (batch, position, d_model)
        self.touched = removed.flatten(0, 1).any(0).tolist()
        self.column = {name: i for i, name in enumerate(graph.destinations)}

    def attach(self) -> list[Any]:
        level, architecture = self.graph.level, self.architecture
        handles = [architecture.layers[0].block.register_forward_pre_hook(self._start, with_kwargs=True)]
        for index, layer in enumerate(architecture.layers):
            if level == "block":
                handles.append(self._reader(layer.attention_reader, f"a{index}"))
            else:
                handles.append(layer.attention_reader.register_forward_pre_hook(self._remember, with_kwargs=True))
                for module, parts in layer.projections:
                    targets = [target for name, part in parts.items() for target in self._targets(index, name, part)]
                    handles.append(module.register_forward_hook(self._projects(layer.norm_attention, targets)))
            if level == "head":
                handles.append(layer.o.module.register_forward_hook(self._wrote_heads(layer)))
            else:
                handles.append(layer.attention_out.register_forward_hook(self._wrote))
            handles.append(self._reader(layer.mlp_reader, f"m{index}"))
            handles.append(layer.mlp_out.register_forward_hook(self._wrote))
        return [*handles, self._reader(architecture.norm_final.module, "logits")]

    def _reader(self, module: nn.Module, name: str) -> Any:
        return module.register_forward_pre_hook(self._reads(self.column[name]), with_kwargs=True)

    def _targets(self, index: int, name: str, part: Projection) -> list[tuple[slice | Tensor, int]]:
        """The channels of a projection that are destinations of their own, each with its column."""
        if self.graph.level == "qkv":
            return [(part.channels, self.column[f"a{index}<{name}>"])]
        count = self.architecture.n_heads if name == "q" else self.architecture.n_kv_heads
        names = (f"a{index}.{'h' if name == 'q' else 'kv'}{h}<{name}>" for h in range(count))
        return [(channels, self.column[name]) for channels, name in zip(part.heads(count), names)]

    def _start(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.written.append(taken(args, kwargs))

    def _wrote(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.written.append(first(output))

    def _wrote_heads(self, layer: Layer):
        def hook(_module: nn.Module, args: tuple, output: Tensor) -> None:
            heads = self.architecture.n_heads
            weight, share = layer.head_outputs(heads, wide(output.dtype))
            z = layer.mixed(args[0], output).unflatten(-1, (heads, -1))
            each = torch.einsum("bthe,hed->hbtd", z, weight.to(z.dtype))
            self.written += list(each if share is None else each + share.to(each.dtype))

        return hook

    _stack: Tensor | None = None
    _stacked = 0
    _changes: dict[int, Tensor] | None = None

    def _without(self, stream: Tensor, column: int) -> Tensor:
        """The stream as destination `column` reads it; exactly 0 for a row that keeps none of its edges."""
        rebuilt, weights = self._weights([column], stream)
        result = stream.masked_fill(rebuilt[:, 0, None, None], 0)
        used = weights[:, 0].nonzero().tolist()
        if len(used) <= 2 * len(stream):
            for row, source in used:
                result[row] += weights[row, 0, source] * self.written[source][row].to(stream.device)
            return result
        return result + self._change(column).to(stream.device)

    def _weights(self, columns: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """What of each source to add, ``(batch, column, source)``, and whether to the stream or, rebuilt, to 0.

        A row that loses less than half is the stream minus that; any other is the sum of what it keeps. So no small
        rest is ever the difference of two large numbers, which a norm would blow up.
        """
        count = int(self.graph.mask[:, columns[0]].sum())  # edges come from the sources written first
        removed = self.removed[:, :count, columns].transpose(1, 2).to(like)
        rebuilt = removed.sum(2) > count / 2
        return rebuilt, torch.where(rebuilt[..., None], 1 - removed, -removed)

    def _change(self, column: int) -> Tensor:
        """Sum of the weighted sources ``(batch, position, d_model)``, of destinations that read the same stream at once."""
        if column not in (self._changes or {}):
            mask, first = self.graph.mask, self.written[0]
            room = max(1, TOGETHER_BYTES // (first.numel() * first.element_size()))
            same = [
                c for c in range(column, mask.shape[1]) if self.touched[c] and (mask[:, c] == mask[:, column]).all()
            ]
            columns = same[:room]
            written = self._together(int(mask[:, column].sum()))
            _, weights = self._weights(columns, written)
            changes = torch.bmm(weights, written.flatten(2)).unflatten(-1, first.shape[1:])
            self._changes = dict(zip(columns, changes.unbind(1)))
        return self._changes.pop(column)

    def _together(self, count: int) -> Tensor:
        """The first `count` sources' outputs as one tensor ``(batch, source, position, d_model)``.

        They move there for good, as they are needed, so that nothing is held twice.
        """
        if self._stack is None:
            batch, length, width = self.written[0].shape
            self._stack = self.written[0].new_empty(batch, self.removed.shape[1], length, width)
        for source in range(self._stacked, count):
            self._stack[:, source] = self.written[source]
            self.written[source] = self._stack[:, source]
        self._stacked = max(self._stacked, count)
        return self._stack[:, :count]

    def _reads(self, column: int):
        if not self.touched[column]:
            return lambda _module, args, kwargs: None
        return lambda _module, args, kwargs: given(self._without(taken(args, kwargs), column), args, kwargs)

    def _remember(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.stream = taken(args, kwargs)

    def _projects(self, norm: Norm | None, targets: list[tuple[slice | Tensor, int]]):
        """Rebuild the projection's output for the destinations that read a changed stream, each its channels of it."""
        chosen = [(channels, column) for channels, column in targets if self.touched[column]]

        def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            if not chosen:
                return None
            output = output.clone()
            for channels, column in chosen:
                read = self._without(self.stream, column)
                changed = module.forward(read if norm is None else norm.module.forward(read))
                output[..., channels] = changed[..., channels]
            return output

        return hook
