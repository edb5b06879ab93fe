"""Edge attribution patching (EAP): every edge's score of every sample, from one forward and one backward pass.

1. Freeze the weights and let only the first layer's input require a gradient: no parameter gradient is ever computed.
2. Forward: keep each source's output O ``(batch, position, d_model)``; at head level the input z of the output
   projection instead, from which O[h] = z[h] W_O[h]ᵀ is formed later, outside automatic differentiation.
3. Loss L: mean negative log-likelihood of the (first `cut`) answer tokens given the prompt. Samples are summed, so that
   each keeps its own gradient. The last answer token is predicted, never read, and is left out of the input.
4. Backward: every branch reads the stream through an identity, whose gradient is that branch's own ∂L/∂H
   (block level). At qkv and head level it is caught at the projections' input or output and pulled back through the
   projection and the norm's Jacobian. Grouped-query attention, biases, rotary embeddings and q/k norms need
   no special case: the gradient at a projection's output already contains what follows it.
5. Score of an edge:  W[source, destination] = − Σ_t ⟨ ∂L/∂H[t], O[t] ⟩, one matrix product per destination layer,
   ``[sources, tokens·d] × [tokens·d, destinations]``, over chunks of tokens, in float32 or better.

Shorter samples of a batch are padded on the right: under causal attention padding is read by no real token, its gradient is
exactly zero, and no attention mask is needed. W is the first-order estimate of zero-ablating the edge, L(edge removed) − L.
Sources: arXiv 2509.21044, eq. for the edge weight; Syed et al. 2023 (EAP).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from rlcircuits.architecture import Architecture, first, hooked, plain, wide
from rlcircuits.errors import InputError
from rlcircuits.graph import Graph
from rlcircuits.traces import Trace

#: bytes that the contraction of step 5 may use beside the stored sources and gradients
CHUNK_BYTES = 64 << 20


def attribute(
    model: Any,
    traces: Sequence[Trace],
    level: str = "block",
    cut: int | None = None,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> xr.DataArray:
    """Score every edge of the residual graph for every trace.

    Args:
        model: what `rlcircuits.load_model` returns, or a Hugging Face causal language model in evaluation mode.
        traces: prompts and answers as token ids; one sample each.
        level: ``"block"``, ``"qkv"`` or ``"head"``, see `Graph`.
        cut: score only the first `cut` answer tokens (all of them when the answer is shorter, or when None).
        batch_size: samples per pass, or ``"auto"``: as many as fit a token budget derived from the free memory. A CUDA
            out-of-memory error halves the batch and goes on. Scores do not depend on it.
        progress: show a bar for work that takes longer than a few seconds.

    Returns:
        DataArray ``(sample, source, destination)``, float32 (float64 for a float64 model), in nats: the estimated
        increase of the sample's loss when the edge is removed; NaN where there is no edge. Coordinates on `sample`:
        ``loss`` (mean NLL per token, nats) and ``tokens`` (answer tokens scored).

    Raises:
        InputError: no traces, ids outside the vocabulary, traces longer than the model's context, a model in training
            mode, an unsupported architecture or level, or a score that is not finite (naming sample and edge).
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    architecture = Architecture.of(hf)
    graph = architecture.graph(level)

    def score(rows: list[Trace]) -> tuple[Tensor, Tensor]:
        return score_batch(architecture, graph, hf, rows)

    dtype = np.float64 if wide(hf.dtype) == torch.float64 else np.float32
    values = np.full((len(traces), *graph.mask.shape), np.nan, dtype)
    losses = np.empty(len(traces), dtype)
    for indices, (scores, loss) in in_batches(hf, traces, batch_size, score, "attributing", progress):
        rows = scores.cpu().numpy()
        bad = np.argwhere(~np.isfinite(rows) & graph.mask)
        if len(bad):
            b, s, d = bad[0]
            raise InputError(
                f"the score of edge {graph.sources[s]}->{graph.destinations[d]} on trace "
                f"{traces[indices[b]].problem!r} is {rows[b, s, d]}: the model overflows in {hf.dtype} or its weights are damaged; "
                "load it in float32 or check the checkpoint"
            )
        values[indices] = np.where(graph.mask, rows, np.nan)
        losses[indices] = loss.cpu().numpy()
    return labelled(values, losses, traces, graph, model, cut, method="EAP")


def labelled(
    values: np.ndarray, losses: np.ndarray, traces: Sequence[Trace], graph: Graph, model: Any, cut: int | None, method: str
) -> xr.DataArray:
    """Name the axes of scores ``(sample, source, destination)`` and note where they come from."""
    import transformers

    hf = plain(model)
    return xr.DataArray(
        values,
        dims=("sample", "source", "destination"),
        coords={
            "sample": [trace.problem for trace in traces],
            "source": list(graph.sources),
            "destination": list(graph.destinations),
            "loss": ("sample", losses),
            "tokens": ("sample", [len(trace.answer) for trace in traces]),
        },
        name="score",
        attrs={
            "level": graph.level,
            "cut": "all" if cut is None else int(cut),
            "method": method,
            "intervention": "zero",
            "dtype": str(hf.dtype).removeprefix("torch."),
            "model": getattr(model, "name", "") or hf.config.name_or_path or type(hf).__name__,
            "versions": json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}),
        },
    )


def checked(hf: nn.Module, traces: Sequence[Trace], cut: int | None) -> list[Trace]:
    """The traces, cut, after every check that needs no computation.

    Raises:
        InputError: see `attribute`.
    """
    if hf.training:
        raise InputError("the model is in training mode, where dropout would change every score: call model.eval() first")
    if isinstance(traces, Trace):
        raise InputError("expected a sequence of traces, not a single one: pass [trace]")
    traces = list(traces)
    if not traces:
        raise InputError("no traces given: expected at least one rlcircuits.Trace")
    context = getattr(hf.config, "max_position_embeddings", None)
    vocabulary = hf.get_input_embeddings().weight.shape[0]
    for number, trace in enumerate(traces):
        if not isinstance(trace, Trace):
            raise InputError(f"trace {number} is a {type(trace).__name__}: expected rlcircuits.Trace(problem, prompt, answer)")
        highest = max(*trace.prompt, *trace.answer)
        if highest >= vocabulary:
            raise InputError(
                f"trace {trace.problem!r} holds token id {highest}, but the model's vocabulary has {vocabulary}: "
                "was it made with another tokenizer?"
            )
    seen: set[str] = set()
    repeated = {trace.problem for trace in traces if trace.problem in seen or seen.add(trace.problem)}
    if repeated:
        raise InputError(f"trace {sorted(repeated)[0]!r} occurs more than once: samples are named by their problem")
    traces = [trace.cut(cut) for trace in traces]
    for trace in traces:
        length = len(trace.prompt) + len(trace.answer) - 1
        if context is not None and length > context:
            raise InputError(
                f"trace {trace.problem!r} is {length} tokens long, but the model's context holds {context}: shorten it or give a cut"
            )
    return traces


def in_batches(
    hf: nn.Module,
    traces: Sequence[Any],
    batch_size: int | str,
    work: Callable[[list[Any]], Any],
    title: str,
    progress: bool = True,
) -> Iterator[tuple[list[int], Any]]:
    """Run `work` on batches of rows of similar length, longest first, and yield (indices, result).

    Longest first, so that a batch that does not fit fails at once. On running out of CUDA memory the batch is halved.
    `traces` may be any objects with ``prompt`` and ``answer``.
    """
    from tqdm.auto import tqdm

    lengths = [len(trace.prompt) + len(trace.answer) - 1 for trace in traces]
    order = sorted(range(len(traces)), key=lambda i: (-lengths[i], i))
    if batch_size == "auto":
        budget = token_budget(hf)
    elif isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}: expected 'auto' or a whole number of at least 1")
    halvings = 0
    with tqdm(total=len(order), desc=title, unit="sample", delay=3, disable=not progress) as bar:
        start = 0
        while start < len(order):
            size = max(1, budget // lengths[order[start]]) if batch_size == "auto" else batch_size
            size = max(1, size >> halvings)
            indices = order[start : start + size]
            try:
                result = work([traces[i] for i in indices])
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise InputError(
                        f"trace {getattr(traces[indices[0]], 'problem', indices[0])!r} of {lengths[indices[0]]} tokens does not fit "
                        "into the device's memory even alone: use a shorter cut, a coarser level or a larger device"
                    ) from error
                halvings += 1
                torch.cuda.empty_cache()
                continue
            yield indices, result
            start += len(indices)
            bar.update(len(indices))


def token_budget(hf: nn.Module) -> int:
    """Tokens per pass that fit into half of the free memory, at most 8,192.

    A token keeps about 16 d_model + 4 d_mlp numbers per layer for the backward pass and 3 times its logits.
    """
    config, weight = hf.config, hf.get_input_embeddings().weight
    wide_mlp = getattr(config, "intermediate_size", None) or 4 * weight.shape[1]
    layers = getattr(config, "num_hidden_layers", 1)
    per_token = layers * (16 * weight.shape[1] + 4 * wide_mlp) * max(4, weight.element_size()) + 12 * weight.shape[0]
    if weight.device.type == "cuda":
        free = torch.cuda.mem_get_info(weight.device)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    return int(min(8192, max(1, free // 2 // per_token)))


@contextlib.contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; each is left as it was found."""
    trainable = [p for p in hf.parameters() if p.requires_grad]
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA, let the backward pass of fused attention add in a fixed order, so that the same call gives the same bits."""
    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type != "cuda" or enabled:
        yield
        return
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        with warnings.catch_warnings():  # cuBLAS is deterministic on one stream, but PyTorch cannot know
            warnings.filterwarnings("ignore", message="Deterministic behavior was enabled")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def padded(traces: Sequence[Any], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs padded on the right, the positions whose logits are needed, and the targets there.

    Returns:
        ids ``(batch, position)``; positions ``(kept,)``, the union over the batch; targets ``(batch, kept)``, −100 where
        a position predicts no answer token of that row.
    """
    rows = [(*trace.prompt, *trace.answer) for trace in traces]
    starts = [len(trace.prompt) - 1 for trace in traces]
    width = max(map(len, rows)) - 1
    low = min(starts)
    ids = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width - low), -100, np.int64)
    for i, (row, begin) in enumerate(zip(rows, starts)):
        ids[i, : len(row) - 1] = row[:-1]
        targets[i, begin - low : len(row) - 1 - low] = row[begin + 1 :]
    positions = torch.arange(low, width, device=device)
    return torch.from_numpy(ids).to(device), positions, torch.from_numpy(targets).to(device)


def nll(hf: nn.Module, ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target ``(batch, kept)``, 0 where there is none, in float32 or better."""
    logits = hf(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
    logits = logits.to(wide(logits.dtype))
    targets = targets.to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none").view_as(targets)


def mean_nll(hf: nn.Module, ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood per answer token of every row, ``(batch,)``."""
    each = nll(hf, ids, positions, targets)
    return each.sum(1) / (targets != -100).sum(1).to(each.device)


def token_losses(
    model: Any, traces: Sequence[Trace], cut: int | None = None, batch_size: int | str = "auto", progress: bool = True
) -> list[np.ndarray]:
    """Negative log-likelihood of every answer token given all before it, in nats.

    Args:
        model, traces, cut, batch_size, progress: as for `attribute`.

    Returns:
        One array ``(answer tokens,)`` per trace; its mean is the loss that `attribute` attributes.

    Raises:
        InputError: as for `attribute`.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)

    def losses(rows: list[Trace]) -> tuple[np.ndarray, np.ndarray]:
        ids, positions, targets = padded(rows, hf.get_input_embeddings().weight.device)
        with torch.no_grad():
            return nll(hf, ids, positions, targets).cpu().numpy(), (targets != -100).cpu().numpy()

    found: list[np.ndarray] = [np.empty(0)] * len(traces)
    for indices, (values, scored) in in_batches(hf, traces, batch_size, losses, "token losses", progress):
        for index, row, mask in zip(indices, values, scored):
            found[index] = row[mask]
    return found


class Recorder:
    """What one forward and backward pass leaves behind for step 5.

    Attributes:
        sources: outputs O of every block-level source in order, each ``(batch, position, d_model)``; an attention
            output at head level is the input z of its output projection instead, ``(batch, position, heads·d_head)``.
        reads: per layer the input of the norm before its attention (qkv and head level).
        gradients: per destination group the gradient caught there: ``(layer, "attention")`` and ``(layer, "mlp")`` and
            ``"logits"`` at the stream; ``(layer, "q")`` … at the projection's input (qkv) or output (head).
    """

    def __init__(self, architecture: Architecture, graph: Graph) -> None:
        self.architecture, self.graph = architecture, graph
        self.sources: list[Tensor] = []
        self.reads: list[Tensor] = []
        self.gradients: dict[Any, Tensor] = {}

    def attach(self) -> list[Any]:
        """Register every hook on the model; the caller removes them."""
        architecture, level = self.architecture, self.graph.level
        handles = [architecture.layers[0].block.register_forward_pre_hook(self._start, with_kwargs=True)]
        for index, layer in enumerate(architecture.layers):
            norm = layer.norm_attention.module
            if level == "block":
                handles.append(norm.register_forward_pre_hook(self._branch((index, "attention"))))
            else:
                handles.append(norm.register_forward_pre_hook(self._read))
                for name, projection in zip("qkv", (layer.q, layer.k, layer.v)):
                    if level == "qkv":
                        handles.append(projection.register_forward_pre_hook(self._branch((index, name))))
                    else:
                        handles.append(projection.register_forward_hook(self._output((index, name))))
            if level == "head":
                handles.append(layer.o.register_forward_pre_hook(self._mixed))
            else:
                handles.append(layer.attention_out.register_forward_hook(self._wrote))
            handles.append(layer.norm_mlp.module.register_forward_pre_hook(self._branch((index, "mlp"))))
            handles.append(layer.mlp_out.register_forward_hook(self._wrote))
        handles.append(architecture.norm_final.module.register_forward_pre_hook(self._branch("logits")))
        return handles

    def _start(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        self.sources.append(stream.detach())
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    def _wrote(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.sources.append(first(output).detach())

    def _mixed(self, _module: nn.Module, args: tuple) -> None:
        self.sources.append(args[0].detach())

    def _read(self, _module: nn.Module, args: tuple) -> None:
        self.reads.append(args[0].detach())

    def _catch(self, key: Any) -> Callable[[Tensor], None]:
        return lambda gradient: self.gradients.__setitem__(key, gradient.detach())

    def _branch(self, key: Any) -> Callable[[nn.Module, tuple], tuple]:
        """The branch reads through an identity of its own, so that the gradient there is the branch's alone."""

        def hook(_module: nn.Module, args: tuple) -> tuple:
            branch = args[0].view_as(args[0])
            branch.register_hook(self._catch(key))
            return (branch, *args[1:])

        return hook

    def _output(self, key: Any) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _args, output: output.register_hook(self._catch(key)) and None


def score_batch(architecture: Architecture, graph: Graph, hf: nn.Module, traces: Sequence[Trace]) -> tuple[Tensor, Tensor]:
    """Scores ``(batch, source, destination)`` and losses ``(batch,)`` of one batch; entries without an edge are arbitrary."""
    ids, positions, targets = padded(traces, hf.get_input_embeddings().weight.device)
    record = Recorder(architecture, graph)
    with frozen(hf), deterministic(ids.device), hooked(record.attach()), torch.enable_grad():
        losses = mean_nll(hf, ids, positions, targets)
        losses.sum().backward()
    with torch.no_grad():
        return contract(record), losses.detach()


def contract(record: Recorder) -> Tensor:
    """Step 5: W ``(batch, source, destination)`` from the recorded sources and gradients, over chunks of tokens."""
    graph, architecture = record.graph, record.architecture
    batch, length, width = record.sources[0].shape
    dtype, device = wide(record.sources[0].dtype), record.sources[0].device
    n_sources, n_destinations = graph.mask.shape
    scores = torch.zeros(batch, n_sources, n_destinations, dtype=dtype, device=device)
    readers = n_destinations // len(architecture.layers)
    row = batch * width * torch.finfo(dtype).bits // 8
    chunk = int(max(1, min(length, CHUNK_BYTES // (row * (n_sources + readers)))))
    outputs = _head_weights(architecture, dtype) if graph.level == "head" else None
    for begin in range(0, length, chunk):
        part = slice(begin, min(begin + chunk, length))
        written = _sources(record, part, outputs, dtype)  # (source, batch, position, d_model)
        column = 0
        for index in range(len(architecture.layers)):
            attention = _attention_gradients(record, index, part, dtype)
            mlp = record.gradients[index, "mlp"][None, :, part].to(device, dtype)
            count = 1 + index * (len(written) - 1) // len(architecture.layers)
            column = _accumulate(scores, written[:count], attention, column)
            within = count if graph.parallel else 1 + (index + 1) * (len(written) - 1) // len(architecture.layers) - 1
            column = _accumulate(scores, written[:within], mlp, column)
        _accumulate(scores, written, record.gradients["logits"][None, :, part].to(device, dtype), column)
    return scores


def _accumulate(scores: Tensor, written: Tensor, gradients: Tensor, column: int) -> int:
    """Subtract ⟨gradients, written⟩ summed over the chunk into the columns from `column`; return the next column."""
    sources, destinations = (x.transpose(0, 1).flatten(2) for x in (written, gradients.to(written.device)))
    block = scores[:, : sources.shape[1], column : column + destinations.shape[1]]
    block.baddbmm_(sources, destinations.transpose(1, 2), alpha=-1)
    return column + destinations.shape[1]


def _sources(record: Recorder, part: slice, outputs: list[tuple[Tensor, Tensor | None]] | None, dtype: torch.dtype) -> Tensor:
    """All source outputs of a chunk of tokens, ``(source, batch, position, d_model)``."""
    device = record.sources[0].device
    if outputs is None:
        return torch.stack([o[:, part].to(device, dtype) for o in record.sources])
    batch, _, width = record.sources[0].shape
    steps = part.stop - part.start
    heads = record.architecture.n_heads
    written = torch.empty(len(record.graph.sources), batch, steps, width, dtype=dtype, device=device)
    written[0] = record.sources[0][:, part]
    at = 1
    for (weight, bias), mixed, mlp in zip(outputs, record.sources[1::2], record.sources[2::2]):
        z = mixed[:, part].to(device, dtype).reshape(batch * steps, heads, -1).transpose(0, 1)
        out = written[at : at + heads].view(heads, batch * steps, width)
        torch.bmm(z, weight, out=out)
        if bias is not None:
            out += bias
        written[at + heads] = mlp[:, part]
        at += heads + 1
    return written


def _head_weights(architecture: Architecture, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
    """Per layer W_O as ``(head, d_head, d_model)``, and each head's equal share of the output bias."""
    pairs = []
    for layer in architecture.layers:
        weight = layer.o.weight.to(dtype)
        bias = None if layer.o.bias is None else layer.o.bias.to(dtype) / architecture.n_heads
        pairs.append((weight.view(weight.shape[0], architecture.n_heads, -1).permute(1, 2, 0), bias))
    return pairs


def _attention_gradients(record: Recorder, index: int, part: slice, dtype: torch.dtype) -> Tensor:
    """∂L/∂H of every attention destination of a layer over a chunk, ``(destination, batch, position, d_model)``."""
    level, layer = record.graph.level, record.architecture.layers[index]
    if level == "block":
        return record.gradients[index, "attention"][None, :, part].to(dtype)
    caught = [record.gradients[index, name][:, part].to(dtype) for name in "qkv"]
    read = record.reads[index][:, part]
    if level == "qkv":
        at_norm = torch.stack(caught)
        if layer.norm_attention.offset is None:
            return _pull_back_by_autograd(layer.norm_attention.module, read, at_norm)
        return layer.norm_attention.pull_back(at_norm, *layer.norm_attention.normalised(read))
    # Head level: Jᵀ(W[h]ᵀ dq[h]) = r · (P(w∘W[h]ᵀ dq[h]) − x̂ ⟨x̂, w∘W[h]ᵀ dq[h]⟩ / d); w and P go into the weights and r into dq.
    norm = layer.norm_attention
    xhat, r = norm.normalised(read)
    batch, steps, width = read.shape
    d_head = record.architecture.d_head
    counts = [gradient.shape[-1] // d_head for gradient in caught]
    pulled = torch.empty(sum(counts), batch * steps, width, dtype=dtype, device=read.device)
    at = 0
    for count, gradient, projection in zip(counts, caught, (layer.q, layer.k, layer.v)):
        weight = projection.weight.to(dtype) * norm.scale
        if norm.centred:
            weight = weight - weight.mean(-1, keepdim=True)
        heads = (gradient * r).reshape(batch * steps, count, d_head).transpose(0, 1)
        torch.bmm(heads, weight.view(count, d_head, width), out=pulled[at : at + count])
        at += count
    xhat = xhat.reshape(batch * steps, width)
    along = torch.einsum("htd,td->ht", pulled, xhat) / width
    pulled.addcmul_(along[..., None], xhat, value=-1)
    return pulled.view(-1, batch, steps, width)


def _pull_back_by_autograd(norm: nn.Module, read: Tensor, at_norm: Tensor) -> Tensor:
    """The norm's transposed Jacobian by automatic differentiation, for norms without a known closed form."""
    with torch.enable_grad():
        x = read.expand_as(at_norm).clone().requires_grad_()
        return torch.autograd.grad(norm.forward(x), x, at_norm.to(read.dtype))[0].to(at_norm.dtype)
