"""One forward and one backward pass, in two ways that give the same scores.

**Fast** keeps what the backward pass needs: a forward pass with the recorder's hooks, a backward pass, the contraction.

**Lean** keeps the sources and one layer:

1. Forward without gradients; keep every source's output O and the arguments with which each block was called.
2. Loss: a few positions at a time, the model's own final norm and output embedding read the final stream (its blocks are
   passed over meanwhile), which gives the losses and  g = ∂L/∂(final stream).
3. Backward, layer by layer from the last: the stream before layer l is the running sum  I + Σ_{k<l} (a_k + m_k)  of what was
   kept. The layer is run on it again, with gradients, g is pulled through it, its destinations' gradients are caught as in
   a fast pass and contracted with the sources at once, and forgotten.

Cost of a lean pass: one forward pass more. Memory per token: about 2 d_model numbers a layer, where a fast pass keeps more
than 16 d_model + 4 d_mlp. Source of the idea: gradient checkpointing (Chen et al. 2016), with the sources as checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlcircuits.attribution.contraction import blank, contract
from rlcircuits.attribution.layers import first, hooked, passed_over
from rlcircuits.attribution.losses import Batch
from rlcircuits.attribution.paths import EdgePath
from rlcircuits.attribution.recording import Recorder, deterministic, frozen, logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: positions whose logits a lean pass holds at a time
LOGIT_POSITIONS = 1024


def fast_pass(
    record: Recorder,
    hf: PreTrainedModel,
    batch: Batch,
    written: Callable[[Recorder], list[Tensor]],
    instead: Recorder | None,
) -> tuple[Tensor, Tensor]:
    """Steps 2 to 5 with all that the backward pass needs kept; scores and losses as from `score_batch`.

    Args:
        batch: rows and their loss, from `Objective.batch`.
        written: the sources to score, given what was recorded.
        instead: see `rlcircuits.attribution.eap.score_batch`.
    """
    with frozen(hf), deterministic(batch.ids.device), hooked(record.attach()), torch.enable_grad():
        losses = batch.losses(hf)
        losses.sum().backward()
    with torch.no_grad():
        scores = blank(record, written(record))
        contract(record, scores, written(record), instead)
        return scores, losses.detach()


def lean_pass(
    record: Recorder,
    hf: PreTrainedModel,
    batch: Batch,
    written: Callable[[Recorder], list[Tensor]],
    instead: Recorder | None,
) -> tuple[Tensor, Tensor]:
    """Scores ``(batch, source, destination)`` and losses ``(batch,)``; arguments as for `fast_pass`."""
    layers = record.architecture.layers
    at_once = 4 if record.graph.level == "head" else 1  # forming the heads' outputs is worth more than one layer
    with frozen(hf), deterministic(batch.ids.device):
        outputs, calls = _forward(record, hf, batch.ids)
        losses, gradient = _loss(hf, [layer.block for layer in layers], batch, calls, record.path)
        record.gradients["logits"] = gradient if record.path is None else gradient / (1 - record.path.share)
        with torch.no_grad():
            scores = blank(record, written(record))
        stop = len(layers)
        while stop:
            start = max(0, stop - at_once)
            for index in reversed(range(start, stop)):
                stream = _stream(outputs, index, calls.streams)
                gradient = _through(record, index, stream, calls.arguments[index], gradient)
            with torch.no_grad():
                contract(record, scores, written(record), instead, range(start, stop))
            record.gradients.clear()
            record.reads.clear()
            stop = start
    return scores, losses


class _Calls:
    """How each block was called, where its stream was, and the stream after the last one."""

    def __init__(self) -> None:
        self.arguments: dict[int, tuple[tuple, dict]] = {}
        self.streams: dict[int, torch.device] = {}
        self.final: Tensor
        self.returns_tuple = False

    def called(self, index: int) -> Callable[[nn.Module, tuple, dict], None]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            stream = args[0] if args else kwargs["hidden_states"]
            self.streams[index] = stream.device
            self.arguments[index] = (args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})

        return hook

    def returned(self, _module: nn.Module, _args: tuple, output: Any) -> None:
        self.returns_tuple = isinstance(output, tuple)

    def ended(self, _module: nn.Module, args: tuple) -> None:
        self.final = args[0]


def _forward(record: Recorder, hf: PreTrainedModel, ids: Tensor) -> tuple[list[Tensor], _Calls]:
    """Step 1: what was added to the stream, ``(batch, position, d_model)`` each, and the calls; `record` gets the sources."""
    architecture, calls = record.architecture, _Calls()
    handles = record.attach_start()
    added = record.sources
    if record.graph.level == "head":  # the sources there are the heads' values; the stream needs what they add up to
        added = []
        handles.append(
            architecture.layers[0].block.register_forward_pre_hook(lambda *_: added.append(record.sources[0]))
        )
        for layer in architecture.layers:
            for module in (layer.attention_out, layer.mlp_out):
                handles.append(module.register_forward_hook(lambda _m, _a, output: added.append(first(output))))
    for index, layer in enumerate(architecture.layers):
        handles += record.attach_path(index) + record.attach_writers(index)
        handles.append(layer.block.register_forward_pre_hook(calls.called(index), with_kwargs=True))
        handles.append(layer.block.register_forward_hook(calls.returned))
    handles.append(architecture.norm_final.module.register_forward_pre_hook(calls.ended))
    with hooked(handles), torch.no_grad():
        hf(input_ids=ids, use_cache=False, logits_to_keep=1)
    return added, calls


def _stream(added: Sequence[Tensor], index: int, devices: dict[int, torch.device]) -> Tensor:
    """The stream before layer `index`, summed in the order in which the model sums it."""
    stream = added[0].to(devices[index], copy=True)
    for one in added[1 : 1 + 2 * index]:
        stream += one.to(devices[index])
    return stream


def _loss(
    hf: PreTrainedModel, blocks: Sequence[nn.Module], batch: Batch, calls: _Calls, path: EdgePath | None
) -> tuple[Tensor, Tensor]:
    """Step 2: losses ``(batch,)`` and the gradient at the final stream ``(batch, position, d_model)``."""
    ids, kept, final = batch.ids, len(batch.positions), calls.final
    gradient = torch.zeros_like(final)
    low, step = ids.shape[1] - kept, max(1, LOGIT_POSITIONS // len(ids))
    total: Any = 0.0
    for begin in range(0, kept, step):
        chosen = slice(begin, begin + step)
        part = slice(low + chosen.start, min(low + chosen.stop, ids.shape[1]))
        stream = final[:, part].detach().requires_grad_()
        mixing = [] if path is None else path.of_positions(part).attach(len(blocks))
        with passed_over(blocks, calls.returns_tuple, stream), hooked(mixing), torch.enable_grad():
            logits = logits_at(hf, ids[:, part], torch.arange(stream.shape[1], device=ids.device))
            losses = batch.of(logits, chosen)
            gradient[:, part] = torch.autograd.grad(losses.sum(), stream)[0]
        total = total + losses.detach()
    return total, gradient


def _through(record: Recorder, index: int, stream: Tensor, call: tuple[tuple, dict], gradient: Tensor) -> Tensor:
    """Step 3 for one layer: catch its destinations' gradients, return the gradient at its input."""
    args, kwargs = call
    stream.requires_grad_()
    with hooked(record.attach_readers(index)), torch.enable_grad():
        output = first(record.architecture.layers[index].block(stream, *args, **kwargs))
        return torch.autograd.grad(output, stream, gradient.to(output.device))[0]
