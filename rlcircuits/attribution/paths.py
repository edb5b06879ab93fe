"""The path on which integrated gradients account for the whole change of the loss, edge by edge.

1. Every edge s → d carries  (1 − a) O_s(a) + a O′_s,  the same a for all: O_s(a) is what the source writes in that very run,
   O′_s what takes its place. So every destination reads  H_d(a) = (1 − a) Σ_s O_s(a) + a H′_d,  with  H′_d = Σ_s O′_s.
2. At a = 0 that is the untouched run. At a = 1 every destination reads H′, the logits' too: with another model's outputs
   for O′, that model's final stream goes through this one's final norm and output embedding.
3. The loss depends on a through the edges alone, so with

       W[s, d] = ∫₀¹ Σ_t ⟨ ∂L/∂H_d[t], O′_s[t] − O_s(a)[t] ⟩ da

   the sum of W over *all* edges is L(1) − L(0). On the straight path of the input (EAP-IG) only the scores out of ``input``
   add up to something.
4. The integral is taken at Gauss–Legendre nodes: exact for polynomials of degree 2m − 1 in a.

What another model's final norm and output embedding do to the loss is beyond any edge, and so is not in the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rlcircuits.attribution.layers import given, taken, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlcircuits.attribution.layers import Parts

PATHS = ("input", "edges")


def nodes(steps: int) -> list[tuple[float, float]]:
    """Gauss–Legendre nodes of [0, 1] and their weights.

    >>> [(round(a, 4), weight) for a, weight in nodes(2)]
    [(0.2113, 0.5), (0.7887, 0.5)]
    """
    places, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(place + 1) / 2, float(weight) / 2) for place, weight in zip(places, weights)]


def streams(writer: Parts, level: str, sources: Sequence[Tensor]) -> list[Tensor]:
    """H′ before each attention, each MLP and the logits, ``(batch or 1, position or 1, d_model)`` in order.

    Args:
        writer: of the model that writes O′.
        level: of the graph, which says in what form sources are recorded.
        sources: O′, as in `rlcircuits.attribution.recording.Recorder.sources`.
    """
    stream, found = sources[0], []
    for index, layer in enumerate(writer.layers):
        attention, mlp = sources[1 + 2 * index : 3 + 2 * index]
        if level == "head":
            weight, share = layer.head_outputs(writer.n_heads, wide(attention.dtype))
            attention = attention.to(weight.dtype) @ weight.flatten(0, 1).to(attention.device)
            attention = attention if share is None else attention + (share * writer.n_heads).to(attention.device)
        before = stream
        stream = stream + attention.to(stream.device)
        found += [before, before if writer.parallel else stream]
        stream = stream + mlp.to(stream.device)
    return [*found, stream]


@dataclass(frozen=True, eq=False)
class EdgePath:
    """One point of the path: every destination reads  (1 − a) H + a H′.

    Attributes:
        architecture: of the model that is run.
        share: a.
        streams: H′, from `streams`; None for 0.
    """

    architecture: Parts
    share: float
    streams: Sequence[Tensor] | None

    def attach(self, index: int) -> list[Any]:
        """Register the hooks on what a layer's attention and MLP read; for the number of layers, on what the logits
        read. They must come before any that record what is read.
        """
        if index == len(self.architecture.layers):
            return [self._hooked(self.architecture.norm_final.module, 2 * index)]
        layer = self.architecture.layers[index]
        modules = layer.attention_reader, layer.mlp_reader
        return [self._hooked(module, 2 * index + number) for number, module in enumerate(modules)]

    def _hooked(self, module: nn.Module, place: int) -> Any:
        return module.register_forward_pre_hook(self._reads(place), with_kwargs=True)

    def _reads(self, place: int) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict]]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = taken(args, kwargs)
            if self.streams is None:
                return given((1 - self.share) * stream, args, kwargs)
            return given(torch.lerp(stream, self._there(place, stream), self.share), args, kwargs)

        return hook

    def _there(self, place: int, stream: Tensor) -> Tensor:
        assert self.streams is not None
        return self.streams[place].to(stream).expand_as(stream)

    def of_positions(self, part: slice) -> EdgePath:
        """The same path for some positions alone."""
        if self.streams is None:
            return self
        return EdgePath(
            self.architecture, self.share, [one if one.shape[1] == 1 else one[:, part] for one in self.streams]
        )
