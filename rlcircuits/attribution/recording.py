"""What one pass leaves behind: losses, every source's output, and the gradient at every destination's input.

1. Rows are padded on the right: under causal attention padding is read by no real token, and its gradient is exactly
   zero.
2. Every branch reads the stream through an identity of its own, whose gradient is that branch's ∂L/∂H (`Recorder`).
3. No parameter requires a gradient meanwhile (`frozen`), and on CUDA the same call gives the same bits
   (`deterministic`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import Layer, Projection, embedding, first, given, hooked, taken, wide
from rlcircuits.attribution.paths import EdgePath
from rlcircuits.attribution.portions import Segments
from rlcircuits.attribution.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Recorder:
    """What one forward and backward pass leaves behind for step 5.

    Attributes:
        sources: outputs O of every block-level source in order, each ``(batch, position, d_model)``; an attention
            output at head level is the input z of its output projection instead, ``(batch, position, heads·d_head)``,
            scaled as the norm after it scales it, where there is one (`Layer.mixed`).
        reads: per layer the input of the norm before its attention (qkv and head level).
        gradients: per destination group the gradient caught there: ``(layer, "attention")`` and ``(layer, "mlp")`` and
            ``"logits"`` at the stream; ``(layer, "q")`` … at the projection's input (qkv, separate projections) or
            output (qkv, one projection for all three; head).
        segments: the tokens whose products are summed; all of a row when None.
        path: what every destination reads instead of the stream alone; the stream when None.
    """

    def __init__(
        self,
        architecture: Architecture,
        graph: Graph,
        start: Callable[[Tensor], Tensor] | None = None,
        segments: Segments | None = None,
        path: EdgePath | None = None,
    ) -> None:
        self.architecture, self.graph, self.start, self.segments, self.path = architecture, graph, start, segments, path
        self.sources: list[Tensor] = []
        self.reads: dict[int, Tensor] = {}
        self.gradients: dict[Any, Tensor] = {}

    def attach(self) -> list[Any]:
        """Register every hook on the model; the caller removes them."""
        handles = self.attach_start()
        for index in range(len(self.architecture.layers)):
            handles += self.attach_writers(index) + self.attach_readers(index)
        final = self.architecture.norm_final.module
        return [*handles, *self.attach_path(len(self.architecture.layers)), self._reader(final, "logits")]

    def attach_start(self) -> list[Any]:
        """Register the hook that records, and where asked to replaces, what enters the first layer."""
        return [self.architecture.layers[0].block.register_forward_pre_hook(self._start, with_kwargs=True)]

    def attach_writers(self, index: int) -> list[Any]:
        """Register the hooks that record what a layer writes."""
        layer = self.architecture.layers[index]
        if self.graph.level == "head":
            attention = layer.o.module.register_forward_hook(self._mixed(layer))
        else:
            attention = layer.attention_out.register_forward_hook(self._wrote)
        return [attention, layer.mlp_out.register_forward_hook(self._wrote)]

    def attach_path(self, index: int) -> list[Any]:
        """Register the hooks that let a layer's destinations, or after the last layer the logits, read what the path
        says.
        """
        return [] if self.path is None else self.path.attach(index)

    def attach_readers(self, index: int) -> list[Any]:
        """Register the hooks that catch the gradient at what a layer reads."""
        layer, level = self.architecture.layers[index], self.graph.level
        handles = [*self.attach_path(index), self._reader(layer.mlp_reader, (index, "mlp"))]
        if level == "block":
            return [*handles, self._reader(layer.attention_reader, (index, "attention"))]
        if layer.norm_attention is not None:
            handles.append(layer.norm_attention.module.register_forward_pre_hook(self._read(index)))
        for module, parts in layer.projections:
            if level == "qkv" and not layer.fused:
                handles += [self._reader(module, (index, name)) for name in parts]
            else:
                handles.append(module.register_forward_hook(self._output(index, parts)))
        return handles

    def _reader(self, module: nn.Module, key: Any) -> Any:
        return module.register_forward_pre_hook(self._branch(key), with_kwargs=True)

    def _start(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream = taken(args, kwargs).detach()
        stream = stream if self.start is None else self.start(stream)
        self.sources.append(stream)
        if torch.is_grad_enabled():
            stream = stream.detach().requires_grad_()
        return given(stream, args, kwargs)

    def _wrote(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.sources.append(first(output).detach())

    def _mixed(self, layer: Layer) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda _module, args, output: self.sources.append(layer.mixed(args[0].detach(), output.detach()))

    def _read(self, index: int) -> Callable[[nn.Module, tuple], None]:
        return lambda _module, args: self.reads.__setitem__(index, args[0].detach())

    def _catch(self, key: Any) -> Callable[[Tensor], None]:
        return lambda gradient: self.gradients.__setitem__(key, gradient.detach())

    def _branch(self, key: Any) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict]]:
        """The branch reads through an identity of its own, so that the gradient there is the branch's alone."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = taken(args, kwargs)
            branch = stream.view_as(stream)
            branch.register_hook(self._catch(key))
            return given(branch, args, kwargs)

        return hook

    def _output(self, index: int, parts: dict[str, Projection]) -> Callable[[nn.Module, Any, Tensor], None]:
        """Catch the gradient at a projection's output, and part it where queries, keys and values share the
        projection.
        """

        def catch(gradient: Tensor) -> None:
            for name, part in parts.items():
                self.gradients[index, name] = part.of_output(gradient.detach())

        return lambda _module, _args, output: output.register_hook(catch) and None


def sources_of(architecture: Architecture, graph: Graph, hf: PreTrainedModel, traces: Sequence[Trace]) -> Recorder:
    """Every source's output on a batch of traces, from a forward pass alone."""
    ids, _, _ = padded(traces, embedding(hf).device)
    record = Recorder(architecture, graph)
    handles = record.attach_start()
    for index in range(len(architecture.layers)):
        handles += record.attach_writers(index)
    with hooked(handles), torch.no_grad():
        hf(input_ids=ids, use_cache=False, logits_to_keep=1)
    return record


@contextlib.contextmanager
def frozen(hf: PreTrainedModel) -> Iterator[None]:
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
    """On CUDA, let the backward pass of fused attention add in a fixed order, so that the same call gives the same
    bits.
    """
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if device.type != "cuda" or enabled:
        yield
        return
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False
        with warnings.catch_warnings():  # cuBLAS is deterministic on one stream, but PyTorch cannot know
            warnings.filterwarnings("ignore", message="Deterministic behavior was enabled")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill


def padded(traces: Sequence[Any], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs padded on the right, the positions whose logits are needed, and the targets there.

    Returns:
        ids ``(batch, position)``; positions ``(kept,)``, the union over the batch; targets ``(batch, kept)``, −100
        where a position predicts no answer token of that row.
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


def logits_at(hf: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    """The model's logits at positions ``(batch, kept, vocabulary)``, in float32 or better."""
    logits = hf(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
    return logits.to(wide(logits.dtype))


def mean_nll(hf: PreTrainedModel, ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood per answer token of every row, ``(batch,)``; arguments from `padded`."""
    logits, counts = logits_at(hf, ids, positions), (targets != -100).sum(1)
    targets = targets.to(logits.device).flatten()
    each = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-100, reduction="none")
    return each.view(len(ids), -1).sum(1) / counts.to(each.device)
