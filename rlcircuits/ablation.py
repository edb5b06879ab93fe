"""The exact effect of removing an edge: the oracle beside which an edge's score is judged.

1. Choose an edge. Re-run the model on the same tokens, but let the edge's destination read  H − s · O  instead of H:
   the residual stream without that source's output O (s = 1; a smaller scale removes part of it).
2. Every other destination still reads H; what follows is recomputed, nothing is linearised.
3. The effect is the loss of that run minus the loss of the untouched run, so it has the score's sign:
   effect ≈ W[source, destination] for a small effect.

Many edges run side by side: each row of a batch is one (trace, edge). At head level a query head reads the changed
stream through its own rows of the projection; its neighbours keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from rlcircuits.architecture import (
    Architecture,
    Layer,
    Norm,
    Projection,
    first,
    given,
    hooked,
    plain,
    taken,
    wide,
)
from rlcircuits.attribution import checked, in_batches, labelled, mean_nll, padded
from rlcircuits.errors import InputError
from rlcircuits.graph import Graph
from rlcircuits.traces import Trace


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
) -> xr.DataArray:
    """Remove each edge of each trace, one at a time, and measure the loss by re-running the model.

    Args:
        model, traces, level, cut, batch_size, progress: as for `attribute`; a batch's rows are (trace, edge) runs.
        edges: names such as ``"a0->m1"``; all edges of the graph when None.
        scale: share of the source's output that is removed; 1 is ablation, small values approach the derivative.

    Returns:
        DataArray ``(sample, source, destination)``, as from `attribute`: the increase of the loss in nats; NaN where there
        is no edge or the edge was not asked for.

    Raises:
        InputError: as for `attribute`, or an edge that the graph does not have.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    architecture = Architecture.of(hf)
    graph = architecture.graph(level)
    if isinstance(edges, str):
        edges = [edges]
    pairs = list(zip(*graph.mask.nonzero())) if edges is None else [graph.edge(name) for name in edges]
    if not pairs:
        raise InputError("no edges given: name at least one, e.g. edges=['input->logits'], or leave edges out for all")
    # Rows of one destination run together: only that destination's input has to be rebuilt.
    pairs = sorted(dict.fromkeys((int(s), int(d)) for s, d in pairs), key=lambda pair: pair[::-1])

    def rerun(rows: list[_Run]) -> Tensor:
        return _losses(architecture, graph, hf, rows, scale)

    clean = np.empty(len(traces), np.float64)
    untouched = [_Run(i, t.prompt, t.answer, None, None) for i, t in enumerate(traces)]
    for indices, losses in in_batches(hf, untouched, batch_size, rerun, "running untouched", progress):
        clean[indices] = losses.cpu().numpy()
    values = np.full((len(traces), *graph.mask.shape), np.nan, np.float64)
    runs = [_Run(i, t.prompt, t.answer, s, d) for i, t in enumerate(traces) for s, d in pairs]
    runs.sort(key=lambda run: (len(run.prompt) + len(run.answer), run.destination), reverse=True)
    for indices, losses in in_batches(hf, runs, batch_size, rerun, "ablating edges", progress):
        for index, loss in zip(indices, losses.cpu().numpy()):
            run = runs[index]
            values[run.sample, run.source, run.destination] = loss - clean[run.sample]
    dtype = np.float64 if wide(hf.dtype) == torch.float64 else np.float32
    result = labelled(values.astype(dtype), clean.astype(dtype), traces, graph, model, cut, method="exact ablation")
    result.attrs["scale"] = float(scale)
    return result


def _losses(architecture: Architecture, graph: Graph, hf: nn.Module, rows: Sequence[_Run], scale: float) -> Tensor:
    """Loss ``(batch,)`` of every row with its edge scaled by 1 − `scale`."""
    ids, positions, targets = padded(rows, hf.get_input_embeddings().weight.device)
    removed = torch.zeros(len(rows), *graph.mask.shape, dtype=hf.dtype, device=ids.device)
    for row, run in enumerate(rows):
        if run.source is not None:
            removed[row, run.source, run.destination] = scale
    return rerun(architecture, graph, hf, ids, positions, targets, removed)


def rerun(
    architecture: Architecture, graph: Graph, hf: nn.Module, ids: Tensor, positions: Tensor, targets: Tensor, removed: Tensor
) -> Tensor:
    """Loss ``(batch,)`` when destination d of row b reads  H − Σ_s removed[b, s, d] · O_s,  for any set of edges.

    Args:
        ids, positions, targets: from `rlcircuits.attribution.padded`.
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

    def _without(self, stream: Tensor, column: int) -> Tensor:
        """The stream as destination `column` reads it."""
        share = self.removed[:, : len(self.written), column].to(stream)
        result = stream
        for source in share.any(0).nonzero().flatten().tolist():
            result = result - share[:, source, None, None] * self.written[source].to(stream.device)
        return result

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
