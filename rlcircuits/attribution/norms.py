"""Scores in which norms are exact: what a destination reads without an edge, normed, and what follows linear.

1. EAP is linear in what is removed, and so is a norm to it: O is taken for small beside the stream H. Where it is not
   (a massive activation at the first token is most of the stream), the norm of the rest is another vector altogether,
   and EAP says nearly nothing, as a norm's Jacobian knows no length.
2. Here the norm n before the destination is run on both, and the gradient u is that at its output:

       W[source, destination] = Σ_t w_t,   w_t = ⟨ u[t], n(H[t] − O[t]) − n(H[t]) ⟩,

   for one forward and one backward pass, as EAP. A destination that reads the stream without a norm has EAP's score.
3. Beside W, Σ_t |w_t|: how much there is that might not cancel. A re-run is not linear, so large terms that cancel to
   first order say that the edge matters.

Against exact removal, rank correlation of sizes with EAP's in brackets: of two members of the small family (12 problems,
every edge) .77, .70 (.57, .52) at block level, .97, .96 (.87, .85) at head level, and .63 of the strongest 5 % of block
edges are among those of the largest Σ_t |w_t| (.11, .07). Of SmolLM2-135M at head level (1,200 weighted runs) .98 (.97)
and Pearson's correlation .74 (.34): m11->a24.kv2<v> of one trace changes the loss by .28 nats where W says .17 and EAP
.003; at block level (1,000 runs) .76 (.72), and .62 (.54) of the strongest 5 %. Circuits of the strongest edges are no
better than EAP's. Time: one to three times EAP's. To run the reading branch itself exactly, too (``local`` in
``benchmarks/exactness.py``), gains no more over EAP (sizes .76 on the family, .80 at block level of SmolLM2) and costs 5
to 40 times EAP, so it is not offered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.batching import in_batches
from rlcircuits.attribution.contraction import CHUNK_BYTES, formed
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import first, hooked, wide
from rlcircuits.attribution.losses import Batch, Loss, Objective
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.recording import Recorder, deterministic, frozen
from rlcircuits.attribution.replacements import Replacement
from rlcircuits.attribution.traces import Trace, checked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def exact_norm_scores(
    model: Any,
    traces: Sequence[Trace],
    level: str = "block",
    cut: int | None = None,
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    other: Any = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
    progress: bool = True,
) -> tuple[xr.DataArray, xr.DataArray]:
    """W and Σ_t |w_t| of every edge of every trace; W alone is ``attribute(…, method="exact-norms")``.

    Args:
        model, traces, level, cut, intervention, corrupted, other, loss, progress: as for `attribute`.

    Returns:
        Two DataArrays ``(sample, source, destination)``; NaN where there is no edge.

    Raises:
        InputError: as for `attribute`.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    objective = Objective.of(loss, hf, traces, cut)
    replacement = Replacement.of(hf, level, traces, intervention, corrupted, other, cut, 1, progress)
    architecture, graph = Architecture.of(hf), Graph.of(hf, level)

    def score(rows: list[Trace]) -> Tensor:
        instead = replacement.outputs(rows)
        return normed_scores(architecture, graph, hf, objective.batch(hf, rows), instead)[0]

    values = np.full((2, len(traces), *graph.mask.shape), np.nan)
    for (index,), found in in_batches(hf, traces, 1, score, "scores with exact norms", progress):
        values[:, index] = np.where(graph.mask, found.cpu().numpy(), np.nan)
    coords = {
        "sample": [trace.problem for trace in traces],
        "source": list(graph.sources),
        "destination": list(graph.destinations),
    }
    attrs = {"level": level, "cut": "all" if cut is None else int(cut)}
    signed, sizes = (xr.DataArray(one, coords, dims=tuple(coords), name="score", attrs=attrs) for one in values)
    return signed, sizes


def normed_scores(
    architecture: Architecture, graph: Graph, hf: PreTrainedModel, batch: Batch, instead: Recorder | None
) -> tuple[Tensor, Tensor]:
    """W and Σ_t |w_t| ``(2, source, destination)`` of a batch of one trace, and its loss ``(1,)``; entries without an edge
    are 0.
    """
    record = Recorder(architecture, graph)
    handles = [*record.attach(), *_at_norms(record)]
    with frozen(hf), deterministic(batch.ids.device), hooked(handles), torch.enable_grad():
        losses = batch.losses(hf)
        losses.sum().backward()
    with torch.no_grad():
        dtype = wide(hf.dtype)
        written = formed(record, dtype)[0]
        removed = written if instead is None else written - formed(instead, dtype)[0]
        scores = torch.zeros(2, *graph.mask.shape, dtype=dtype, device=written.device)
        width = written.shape[2] * dtype.itemsize
        for norm, gradients, begin in _destinations(record, dtype):
            count = int(graph.mask[:, begin].sum())  # edges come from the sources written first
            step = max(1, CHUNK_BYTES // (count * width))
            for low in range(0, written.shape[1], step):
                part = slice(low, low + step)
                stream = written[:count, part].sum(0)
                change = _changed(norm, stream, removed[:count, part]).to(gradients.device)
                each = torch.bmm(change.transpose(0, 1), gradients[:, part].permute(1, 2, 0)).to(scores.device)
                columns = slice(begin, begin + len(gradients))
                scores[0, :count, columns] += each.sum(0)
                scores[1, :count, columns] += each.abs().sum(0)
    return scores, losses.detach()


def _changed(norm: nn.Module | None, stream: Tensor, removed: Tensor) -> Tensor:
    """n(H − O) − n(H) ``(source, position, d_model)``; −O without a norm."""
    if norm is None:
        return -removed
    weight = next(norm.parameters(), stream)
    stream, removed = stream.to(weight.device), removed.to(weight.device)
    return norm.forward(stream - removed) - norm.forward(stream)


def _is_norm(module: nn.Module) -> bool:
    """Whether a branch's reader is its norm, and not the branch itself."""
    return all(parameter.ndim < 2 for parameter in module.parameters())


def _at_norms(record: Recorder) -> Iterator[Any]:
    """Register hooks that catch gradients at norms' outputs, beside those that the recorder catches at the stream."""

    def caught(key: Any) -> Callable[[nn.Module, Any, Any], None]:
        def catch(gradient: Tensor) -> None:
            record.gradients["normed", key] = gradient.detach()

        return lambda _module, _args, output: first(output).register_hook(catch) and None

    readers: list[tuple[Any, nn.Module]] = [("logits", record.architecture.norm_final.module)]
    for index, layer in enumerate(record.architecture.layers):
        readers.append(((index, "mlp"), layer.mlp_reader))
        if record.graph.level == "block":
            readers.append(((index, "attention"), layer.attention_reader))
    for key, module in readers:
        if _is_norm(module):
            yield module.register_forward_hook(caught(key))


def _destinations(record: Recorder, dtype: torch.dtype) -> Iterator[tuple[nn.Module | None, Tensor, int]]:
    """What reads one stream through one norm: the norm, in the dtype to accumulate in, the gradients at its output (at
    the stream without one) ``(destination, position, d_model)``, and the first destination's column.
    """
    graph, layers = record.graph, record.architecture.layers
    readers = (len(graph.destinations) - 1) // len(layers)

    def of(key: Any, module: nn.Module) -> tuple[nn.Module | None, Tensor]:  # of one destination and one trace
        if not _is_norm(module):
            return None, record.gradients[key].to(dtype)
        return _precise(module, dtype), record.gradients["normed", key].to(dtype)

    for index, layer in enumerate(layers):
        if graph.level == "block":
            yield (*of((index, "attention"), layer.attention_reader), index * readers)
        else:
            norm = None if layer.norm_attention is None else _precise(layer.norm_attention.module, dtype)
            yield norm, _projected(record, index, dtype), index * readers
        yield (*of((index, "mlp"), layer.mlp_reader), (index + 1) * readers - 1)
    yield (*of("logits", record.architecture.norm_final.module), len(graph.destinations) - 1)


def _precise(norm: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The norm in the dtype to accumulate in: in 16 bits the difference of two normed streams is mostly rounding."""
    return (
        norm if next(norm.parameters(), torch.empty(0, dtype=dtype)).dtype == dtype else copy.deepcopy(norm).to(dtype)
    )


def _projected(record: Recorder, index: int, dtype: torch.dtype) -> Tensor:
    """Gradients at what the projections of a layer read, of queries, then keys, then values (of every head)
    ``(destination, position, d_model)``.
    """
    layer, architecture = record.architecture.layers[index], record.architecture
    found = []
    for name, projection in zip("qkv", (layer.q, layer.k, layer.v)):
        gradient = record.gradients[index, name][0].to(dtype)
        if record.graph.level == "qkv" and not layer.fused:
            found.append(gradient[None])
            continue
        heads = 1 if record.graph.level == "qkv" else gradient.shape[-1] // architecture.d_head
        each = gradient.unflatten(-1, (heads, -1)).transpose(0, 1)
        found.append(each @ projection.weight(dtype).unflatten(0, (heads, -1)))
    return torch.cat(found)
