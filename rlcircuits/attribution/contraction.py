"""From sources and gradients to scores:  W[source, destination] = − Σ_t ⟨ ∂L/∂H[t], O[t] ⟩.

1. Tokens are taken in chunks, so that memory stays bounded (`CHUNK_BYTES`); sums are in float32 or better. Where tokens
   have groups, each group of each row is a sum of its own (`rlcircuits.attribution.portions`).
2. The sources of a chunk are formed: as recorded, or at head level each head's share of the attention's output.
3. The gradients of a layer's destinations are formed: as caught at the stream (block level), or pulled back through the
   projections and the norm's Jacobian (qkv and head level).
4. One matrix product per layer,  [sources, tokens·d] × [tokens·d, destinations].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlcircuits.attribution.layers import wide
from rlcircuits.attribution.portions import Portion, slices
from rlcircuits.attribution.recording import Recorder

#: bytes that the contraction may use beside the stored sources and gradients
CHUNK_BYTES = 64 << 20


def blank(record: Recorder, written: list[Tensor]) -> Tensor:
    """Scores ``(sum, source, destination)``, all 0, where the first source is; one sum for each row, or for each
    segment.
    """
    first_source = written[0]
    sums = first_source.shape[0] if record.segments is None else len(record.segments)
    return torch.zeros(sums, *record.graph.mask.shape, dtype=wide(first_source.dtype), device=first_source.device)


def contract(
    record: Recorder,
    scores: Tensor,
    written: list[Tensor],
    instead: Recorder | None = None,
    layers: range | None = None,
) -> None:
    """Step 5: add W to the columns of `scores` that belong to `layers` (and, with the last layer, to the logits).

    Args:
        record: gradients and norm inputs of those layers.
        scores: ``(sum, source, destination)``, from `blank`.
        written: every source's output, as in `Recorder.sources`.
        instead: the sources O′ subtracted from them.
        layers: all of them when None.
    """
    graph, architecture = record.graph, record.architecture
    n_layers = len(architecture.layers)
    layers = range(n_layers) if layers is None else layers
    batch, length, width = written[0].shape
    dtype = scores.dtype
    readers, per_layer = (len(graph.destinations) - 1) // n_layers, (len(graph.sources) - 1) // n_layers
    token = width * torch.finfo(dtype).bits // 8
    copies = 1 if instead is None else 2
    chunk = CHUNK_BYTES // (token * (copies * (1 + layers.stop * per_layer) + readers))
    outputs = _head_weights(record, layers.stop, dtype)
    others = None if instead is None else _head_weights(instead, layers.stop, dtype)
    segments = record.segments
    for portion in slices(length, max(1, chunk // batch)) if segments is None else segments.portions(chunk):
        sums = scores[portion.sums]
        out = _sources(
            record, written[: 1 + 2 * layers.stop], portion, outputs, dtype
        )  # (source, batch, position, d_model)
        if instead is not None:
            everywhere = [one.expand(batch, length, -1) for one in instead.sources[: 1 + 2 * layers.stop]]
            out -= _sources(instead, everywhere, portion, others, dtype)
        if portion.real is not None:
            out *= portion.real.to(out.device)
        for index in layers:
            column = index * readers
            attention = _attention_gradients(record, index, portion, dtype)
            count = 1 + index * per_layer
            column = _accumulate(sums, out[:count], attention, column)
            mlp = portion.of(record.gradients[index, "mlp"])[None].to(scores.device, dtype)
            within = count if graph.parallel else count + per_layer - 1
            _accumulate(sums, out[:within], mlp, column)
        if layers.stop == n_layers:
            logits = portion.of(record.gradients["logits"])[None].to(scores.device, dtype)
            _accumulate(sums, out, logits, n_layers * readers)


def _accumulate(scores: Tensor, written: Tensor, gradients: Tensor, column: int) -> int:
    """Subtract ⟨gradients, written⟩ summed over the chunk into the columns from `column`; return the next column."""
    sources, destinations = (x.transpose(0, 1).flatten(2) for x in (written, gradients.to(written.device)))
    block = scores[:, : sources.shape[1], column : column + destinations.shape[1]]
    block.baddbmm_(sources, destinations.transpose(1, 2), alpha=-1)
    return column + destinations.shape[1]


def _sources(
    record: Recorder,
    written: list[Tensor],
    portion: Portion,
    outputs: list[tuple[Tensor, Tensor | None]] | None,
    dtype: torch.dtype,
) -> Tensor:
    """The source outputs of a chunk of tokens, ``(source, batch, position, d_model)``."""
    device = written[0].device
    if outputs is None:
        return torch.stack([portion.of(o).to(device, dtype) for o in written])
    begin, heads = portion.of(written[0]), record.architecture.n_heads
    batch, steps, width = begin.shape
    formed = torch.empty(1 + len(outputs) * (heads + 1), batch, steps, width, dtype=dtype, device=device)
    formed[0] = begin
    at = 1
    for (weight, bias), mixed, mlp in zip(outputs, written[1::2], written[2::2]):
        z = portion.of(mixed).to(device, dtype).reshape(batch * steps, heads, -1).transpose(0, 1)
        out = formed[at : at + heads].view(heads, batch * steps, width)
        torch.bmm(z, weight.to(device), out=out)
        if bias is not None:
            out += bias.to(device)
        formed[at + heads] = portion.of(mlp)
        at += heads + 1
    return formed


def _head_weights(record: Recorder, stop: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]] | None:
    """Of the layers before `stop` W_O as ``(head, d_head, d_model)``, and each head's equal share of what is added
    whatever the heads give; None where attention is not split into heads.
    """
    if record.graph.level != "head":
        return None
    return [layer.head_outputs(record.architecture.n_heads, dtype) for layer in record.architecture.layers[:stop]]


def formed(record: Recorder, dtype: torch.dtype) -> Tensor:
    """Every source's output as one tensor ``(batch, source, position, d_model)``, of what was recorded."""
    outputs = _head_weights(record, len(record.architecture.layers), dtype)
    length = record.sources[0].shape[1]
    (whole,) = slices(length, length)
    return _sources(record, record.sources, whole, outputs, dtype).transpose(0, 1)


def _attention_gradients(record: Recorder, index: int, portion: Portion, dtype: torch.dtype) -> Tensor:
    """∂L/∂H of every attention destination of a layer over a chunk, ``(destination, batch, position, d_model)``."""
    level, layer = record.graph.level, record.architecture.layers[index]
    if level == "block":
        return portion.of(record.gradients[index, "attention"])[None].to(dtype)
    caught = [portion.of(record.gradients[index, name]).to(dtype) for name in "qkv"]
    norm, projections = layer.norm_attention, (layer.q, layer.k, layer.v)
    if level == "head":
        return _head_gradients(record, index, portion, caught)
    if layer.fused:
        caught = [gradient @ projection.weight(dtype) for gradient, projection in zip(caught, projections)]
    at_norm = torch.stack(caught)
    if norm is None:
        return at_norm
    read = portion.of(record.reads[index])
    if norm.offset is None:
        return _pull_back_by_autograd(norm.module, read, at_norm)
    return norm.pull_back(at_norm, *norm.normalised(read))


def _head_gradients(record: Recorder, index: int, portion: Portion, caught: list[Tensor]) -> Tensor:
    """∂L/∂H of a layer's heads' queries, then keys, then values, from the gradients at the projections' outputs.

    Jᵀ(W[h]ᵀ dq[h]) = r · (P(w∘W[h]ᵀ dq[h]) − x̂ ⟨x̂, w∘W[h]ᵀ dq[h]⟩ / d); w and P go into the weights and r into dq.
    Without a norm it is W[h]ᵀ dq[h].
    """
    layer, width, d_head = record.architecture.layers[index], record.architecture.d_model, record.architecture.d_head
    norm, (batch, steps, _), dtype = layer.norm_attention, caught[0].shape, caught[0].dtype
    if norm is not None:
        xhat, r = norm.normalised(portion.of(record.reads[index]))
    counts = [gradient.shape[-1] // d_head for gradient in caught]
    pulled = torch.empty(sum(counts), batch * steps, width, dtype=dtype, device=caught[0].device)
    at = 0
    for count, gradient, projection in zip(counts, caught, (layer.q, layer.k, layer.v)):
        weight = projection.weight(dtype)
        if norm is not None:
            weight, gradient = weight * norm.scale, gradient * r
            if norm.centred:
                weight = weight - weight.mean(-1, keepdim=True)
        heads = gradient.reshape(batch * steps, count, d_head).transpose(0, 1)
        torch.bmm(heads, weight.reshape(count, d_head, width), out=pulled[at : at + count])
        at += count
    if norm is not None:
        xhat = xhat.reshape(batch * steps, width)
        along = torch.einsum("htd,td->ht", pulled, xhat) / width
        pulled.addcmul_(along[..., None], xhat, value=-1)
    return pulled.view(-1, batch, steps, width)


def _pull_back_by_autograd(norm: nn.Module, read: Tensor, at_norm: Tensor) -> Tensor:
    """The norm's transposed Jacobian by automatic differentiation, for norms without a known closed form."""
    with torch.enable_grad():
        x = read.expand_as(at_norm).clone().requires_grad_()
        return torch.autograd.grad(norm.forward(x), x, at_norm.to(read.dtype))[0].to(at_norm.dtype)
