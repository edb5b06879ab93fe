"""Re-runs of the whole model in which destinations read a changed stream, for any set of edges at once.

1. Each row of a batch is a trace with edges removed, wholly or in part: its destination reads  H − Σ_s removed_s · (O_s
   − O′_s).
2. O_s is what the source writes in that very run; O′_s, which takes its place, is given, or nothing.
3. A row that loses more than half of a destination's edges has that input rebuilt from what it keeps, so that no small
   rest is the difference of two large numbers.

For one edge at a time `rlcircuits.attribution.suffixes` gives the same for less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.contraction import formed
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import Layer, Norm, Projection, first, given, hooked, taken, wide
from rlcircuits.attribution.losses import Batch
from rlcircuits.attribution.recording import Recorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: bytes of changed streams that are computed at once when many edges are removed
TOGETHER_BYTES = 64 << 20


def rerun(
    architecture: Architecture,
    graph: Graph,
    hf: PreTrainedModel,
    batch: Batch,
    removed: Tensor,
    instead: Recorder | None = None,
) -> Tensor:
    """Loss ``(batch,)`` when destination d of row b reads  H − Σ_s removed[b, s, d] · (O_s − O′_s),  for any set of
    edges.

    Args:
        batch: from `Objective.batch`.
        removed: ``(batch, source, destination)``, 0 where an edge stays and 1 where it is removed; on the CPU, since
            hooks and sums depend on it, and nothing must wait for a device to know it.
        instead: the sources O′, from `Replacement.outputs`; 0 when None.
    """
    with torch.no_grad():
        edit = _Edit(architecture, graph, removed, None if instead is None else formed(instead, wide(hf.dtype)))
        with hooked(edit.attach()):
            return batch.losses(hf)


class _Edit:
    """Hooks that let each destination read the stream without the removed share of its sources.

    Attributes:
        removed: ``(batch, source, destination)``.
        instead: what takes its place, ``(batch or 1, source, position or 1, d_model)``.
    """

    def __init__(self, architecture: Architecture, graph: Graph, removed: Tensor, instead: Tensor | None) -> None:
        self.architecture, self.graph, self.removed, self.instead = architecture, graph, removed, instead
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

    def _wrote_heads(self, layer: Layer) -> Callable[..., None]:
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
        result = stream.masked_fill(rebuilt[:, 0, None, None].to(stream.device), 0)
        used = weights[:, 0].nonzero().tolist()
        gone = [] if self.instead is None else self.removed[:, :, column].nonzero().tolist()
        if max(len(used), len(gone)) <= 2 * len(stream):
            for row, source in used:
                result[row] += float(weights[row, 0, source]) * self.written[source][row].to(stream.device)
            for row, source in gone:
                one = self.instead[row % len(self.instead), source].to(stream)
                result[row] += float(self.removed[row, source, column]) * one
            return result
        return result + self._change(column).to(stream.device)

    def _weights(self, columns: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """What of each source to add, ``(batch, column, source)``, and whether to the stream or, rebuilt, to 0; both on
        the CPU.

        A row that loses less than half is the stream minus that; any other is the sum of what it keeps. So no small
        rest is ever the difference of two large numbers, which a norm would blow up.
        """
        count = int(self.graph.mask[:, columns[0]].sum())  # edges come from the sources written first
        removed = self.removed[:, :count, columns].transpose(1, 2).to(like.dtype)
        rebuilt = removed.sum(2) > count / 2
        return rebuilt, torch.where(rebuilt[..., None], 1 - removed, -removed)

    def _change(self, column: int) -> Tensor:
        """Sum of the weighted sources ``(batch, position, d_model)``, of destinations that read the same stream at
        once.
        """
        if column not in (self._changes or {}):
            mask, first = self.graph.mask, self.written[0]
            room = max(1, TOGETHER_BYTES // (first.numel() * first.element_size()))
            same = [
                c for c in range(column, mask.shape[1]) if self.touched[c] and (mask[:, c] == mask[:, column]).all()
            ]
            columns = same[:room]
            written = self._together(int(mask[:, column].sum()))
            _, weights = self._weights(columns, written)
            changes = torch.bmm(weights.to(written.device), written.flatten(2)).unflatten(-1, first.shape[1:])
            if self.instead is not None:
                replaced = self.instead[:, : written.shape[1]].to(written).expand_as(written)
                gone = self.removed[:, : written.shape[1], columns].transpose(1, 2).to(written)
                changes += torch.bmm(gone, replaced.flatten(2)).unflatten(-1, first.shape[1:])
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

    def _reads(self, column: int) -> Callable[..., Any]:
        if not self.touched[column]:
            return lambda _module, args, kwargs: None
        return lambda _module, args, kwargs: given(self._without(taken(args, kwargs), column), args, kwargs)

    def _remember(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.stream = taken(args, kwargs)

    def _projects(self, norm: Norm | None, targets: list[tuple[slice | Tensor, int]]) -> Callable[..., Tensor | None]:
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
