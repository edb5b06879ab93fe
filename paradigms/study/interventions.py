"""Interventions on the base without reinforcement learning: does accuracy follow intensity?

1. **Logits times c** (`scale_logits`): the weights that make logits are multiplied by c > 0. The arg max stays, so
   greedy answers and accuracy cannot change, by construction; loss and intensity do. Intensity alone therefore cannot
   cause accuracy.
2. **A pushed intensity** (`push_intensity`): go on from the base on supervised demonstrations with the loss
   L_supervised + λ (ln mean |W| − ln(f · I₀))², W the scores of the base's own answers at block level, differentiated
   exactly, and I₀ the base's own mean |W|: intensity is pushed to f times the base's, f = 2 or ½. The control takes the
   same steps without the second term. Whether the supervised losses stay matched is measured beside accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rlcircuits.attribution import Trace

PUSHES = {"half": 0.5, "control": None, "double": 2.0}
"""The factor f of each arm; None for no push."""


def scale_logits(hf: nn.Module, factor: float) -> None:
    """Multiply every logit by `factor` > 0, in place, by multiplying the output embedding.

    Raises:
        InputError: a factor that is not positive, or an output embedding shared with the input's.
    """
    import torch

    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not factor > 0:
        raise InputError(f"factor is {factor!r}: expected a positive number, so that the arg max of the logits stays")
    head = hf.get_output_embeddings()
    if head.weight is hf.get_input_embeddings().weight:
        raise InputError("the model's output embedding is its input embedding: its logits cannot be scaled alone")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(factor)


def mean_intensity(hf: nn.Module, traces: Sequence[Trace]) -> Tensor:
    """Mean |W| over samples and block-level edges, a scalar that can be differentiated by the weights.

    The same numbers as `rlcircuits.attribute` and `activation_intensity`, with the graph of the backward pass kept. The
    model's attention must be differentiable twice ("eager").
    """
    import torch

    from rlcircuits.attribution import Architecture, Graph, first, given, hooked, mean_nll, padded, taken

    architecture = Architecture.of(hf)
    graph = Graph.of(hf, "block")
    sources: list[Tensor] = []
    reads: dict[Any, Tensor] = {}

    def start(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        sources.append(taken(args, kwargs))

    def wrote(_module: nn.Module, _args: Any, output: Any) -> None:
        sources.append(first(output))

    def branch(key: Any) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = taken(args, kwargs)
            reads[key] = stream.view_as(stream)
            return given(reads[key], args, kwargs)

        return hook

    def reader(module: nn.Module, key: Any) -> Any:
        return module.register_forward_pre_hook(branch(key), with_kwargs=True)

    handles = [architecture.layers[0].block.register_forward_pre_hook(start, with_kwargs=True)]
    for index, layer in enumerate(architecture.layers):
        handles.append(reader(layer.attention_reader, 2 * index))
        handles.append(layer.attention_out.register_forward_hook(wrote))
        handles.append(reader(layer.mlp_reader, 2 * index + 1))
        handles.append(layer.mlp_out.register_forward_hook(wrote))
    handles.append(reader(architecture.norm_final.module, 2 * len(architecture.layers)))
    with hooked(handles):
        loss = mean_nll(hf, *padded(traces, hf.get_input_embeddings().weight.device)).sum()
    streams = [reads[key] for key in sorted(reads)]
    gradients = torch.autograd.grad(loss, streams, create_graph=True)
    scores = torch.einsum("sbtw,dbtw->bsd", torch.stack(sources), torch.stack(gradients))
    return scores[:, torch.from_numpy(graph.mask.copy())].abs().mean()


def push_intensity(
    hf: nn.Module,
    demonstrations: Sequence[Trace],
    answers: Sequence[Trace],
    factor: float | None,
    strength: float = 0.1,
    batch: int = 32,
    learning_rate: float = 1e-4,
) -> None:
    """Train `hf` in place, one pass over `demonstrations`, its intensity on `answers` pushed to `factor` times what it
    is now.

    Args:
        demonstrations: the supervised data, in order, `batch` a step.
        answers: whose scores are pushed, cycled through, `batch` a step.
        factor: f; None for no push.
        strength: λ.
    """
    import torch

    from rlcircuits.attribution import mean_nll, padded

    device = hf.get_input_embeddings().weight.device
    target = None if factor is None else (factor * mean_intensity(hf.requires_grad_(True), answers)).log().detach()
    hf.requires_grad_(True)
    optimiser = torch.optim.AdamW(hf.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(len(demonstrations) // batch):
        shown = demonstrations[step * batch : (step + 1) * batch]
        loss = mean_nll(hf, *padded(shown, device)).mean()
        if target is not None:
            scored = [answers[(step * batch + i) % len(answers)] for i in range(min(batch, len(answers)))]
            loss = loss + strength * (mean_intensity(hf, scored).log() - target) ** 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimiser.step()
    hf.requires_grad_(False)
