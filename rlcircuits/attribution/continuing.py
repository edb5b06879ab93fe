"""Runs that go on from a kept stream: what a layer does to it does not depend on how it came to be.

1. Run a batch once and keep the stream before every layer and before the final norm (`Passed.of`).
2. Whatever changes at layer l or after it, weights included, the layers before l are passed over and the model's own
   forward pass goes on from the stream that was kept (`Passed.losses_from`), with the same tokens, masks and positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.layers import first, hooked, passed_over
from rlcircuits.attribution.losses import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Passed:
    """A run of a batch.

    Attributes:
        losses: ``(batch,)``.
        streams: after each layer, ``(batch, position, d_model)``.
        returns_tuple: the model's layers return tuples.
    """

    losses: Tensor
    streams: list[Tensor]
    returns_tuple: bool

    @classmethod
    def of(cls, hf: PreTrainedModel, batch: Batch) -> Passed:
        """Run a batch and keep its streams."""
        kept: list[Any] = []

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            kept.append(output)

        with hooked([layer.block.register_forward_hook(keep) for layer in Architecture.of(hf).layers]), torch.no_grad():
            losses = batch.losses(hf)
        return cls(losses, [first(output) for output in kept], isinstance(kept[0], tuple))

    def losses_from(self, layer: int, hf: PreTrainedModel, batch: Batch) -> Tensor:
        """Losses ``(batch,)`` of a run of the same batch that begins at a layer, with the weights as they are now.

        Args:
            layer: 0 is a whole run, the number of layers one of the final norm and what follows it.
        """
        blocks = [one.block for one in Architecture.of(hf).layers[:layer]]
        stream = self.streams[layer - 1] if layer else None
        with passed_over(blocks, self.returns_tuple, stream), torch.no_grad():
            return batch.losses(hf)
