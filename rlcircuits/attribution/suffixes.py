"""Re-runs of single edges that start where the edge ends: a third of the cost of re-running the whole model for every edge.

1. Keep the untouched run of a few traces (`keep`): the stream before every layer at which a re-run starts, and what the sources
   that are removed wrote.
2. Removing an edge changes nothing before its destination. The rows of a batch are sorted by their destination's layer; each
   **joins** the batch there with the kept stream, and layers before the first are passed over. So a batch holds the rows
   of any neighbouring destinations, and no row runs a layer before its own.
3. Within its destination's layer a row's destination reads  H − s · (O − O′),  everything else H, as in a re-run of the whole.
4. The model's own forward pass is what runs, with its embedding, masks, positions and layers: it is called with the tokens of a
   single row, so that what it prepares for all rows alike broadcasts to however many have joined. Whether a model's layers
   allow that is tried once for each model (`restarts`): rows that join untouched at each layer must end in the logits of
   the untouched run. A model for which they do not is re-run as a whole.

Over all block edges of L layers  Σ_l (4l + 3)(L − l) / (L · E)  of the layers of E forward passes are run, about a third.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import Layer, Projection, embedding, given, hooked, passed_over, taken, wide
from rlcircuits.attribution.losses import Batch, Objective
from rlcircuits.attribution.recording import Recorder, logits_at
from rlcircuits.attribution.replacements import Replacement
from rlcircuits.attribution.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RESTARTS: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Kept:
    """The untouched run of some traces.

    Attributes:
        losses: ``(trace,)``.
        place: each trace's row by its problem.
        streams: by layer, the stream before it ``(trace, position, d_model)``; by the number of layers, that before the logits.
        outputs: what the sources write.
        instead: what takes its place; None for nothing.
        returns_tuple: the model's layers return tuples.
    """

    losses: Tensor
    place: dict[str, int]
    streams: dict[int, Tensor]
    outputs: Outputs
    instead: Outputs | None
    returns_tuple: bool


class Outputs:
    """What single sources wrote in recorded runs."""

    def __init__(self, record: Recorder, wanted: Collection[int]) -> None:
        self.record, self.heads = record, None
        self.last: tuple[int, Tensor, Tensor | None] | None = None
        kept = {self._at(source)[0] for source in wanted}
        record.sources = [one if i in kept else one[:0] for i, one in enumerate(record.sources)]

    def _at(self, source: int) -> tuple[int, int | None]:
        """Where a source of the graph is among those recorded, and which head of it it is."""
        if self.record.graph.level != "head" or source == 0:
            return source, None
        heads = self.record.architecture.n_heads
        layer, head = divmod(source - 1, heads + 1)
        return (2 * layer + 2, None) if head == heads else (2 * layer + 1, head)

    def of(self, source: int, row: int) -> Tensor:
        """``(position or 1, d_model)`` of a row of the runs; a mean is every row's."""
        at, head = self._at(source)
        recorded = self.record.sources[at]
        found = recorded[row % len(recorded)]
        if head is None:
            return found
        if (
            self.last is None or self.last[0] != at
        ):  # the layer's matrices are made once for the heads that follow one another
            layer = self.record.architecture.layers[(at - 1) // 2]
            weight, share = layer.head_outputs(self.record.architecture.n_heads, wide(found.dtype))
            self.last = at, weight.to(found), None if share is None else share.to(found)
        _, weight, share = self.last
        mixed = found.unflatten(-1, (len(weight), -1))[:, head] @ weight[head]
        return mixed if share is None else mixed + share


def keep(
    hf: PreTrainedModel,
    graph: Graph,
    objective: Objective,
    traces: Sequence[Trace],
    pairs: Collection[tuple[int, int]],
    replacement: Replacement | None = None,
) -> Kept:
    """Run traces untouched and keep what re-runs without the edges `pairs` (source, destination) start from."""
    architecture, batch = Architecture.of(hf), objective.batch(hf, traces)
    record = Recorder(architecture, graph)
    streams: dict[int, Tensor] = {}
    tuples: list[bool] = []

    def remember(layer: int) -> Callable[[nn.Module, tuple, dict], None]:
        return lambda _module, args, kwargs: streams.__setitem__(layer, taken(args, kwargs))

    handles = record.attach_start()
    last = architecture.layers[-1].block
    handles.append(last.register_forward_hook(lambda _m, _a, output: tuples.append(isinstance(output, tuple))))
    for index in range(len(architecture.layers)):
        handles += record.attach_writers(index)
    for layer in {_layer(graph, destination) for _, destination in pairs}:
        handles.append(_entered(architecture, layer).register_forward_pre_hook(remember(layer), with_kwargs=True))
    with hooked(handles), torch.no_grad():
        losses = batch.losses(hf)
    wanted = {source for source, _ in pairs}
    other = None if replacement is None else replacement.outputs(traces)
    place = {trace.problem: row for row, trace in enumerate(traces)}
    instead = None if other is None else Outputs(_copied(other), wanted)
    return Kept(losses, place, streams, Outputs(record, wanted), instead, tuples[0])


def _copied(record: Recorder) -> Recorder:
    """Another record of the same outputs, whose list is its own."""
    copy = Recorder(record.architecture, record.graph)
    copy.sources = list(record.sources)
    return copy


def rerun_suffixes(
    hf: PreTrainedModel,
    graph: Graph,
    objective: Objective,
    rows: Sequence[Any],
    kept: Kept,
    scale: float,
) -> Tensor:
    """Loss ``(batch,)`` of every row with its edge scaled by 1 − `scale`.

    Args:
        rows: with ``problem``, ``prompt``, ``answer``, and ``source`` and ``destination``, row and column of the graph's mask.
        kept: the untouched run of their traces.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].destination, i))
    batch = objective.batch(hf, [rows[i] for i in order])
    with torch.no_grad():
        losses = batch.of(_logits(hf, graph, batch, [rows[i] for i in order], kept, scale))
    found = torch.empty_like(losses)
    found[torch.tensor(order, device=losses.device)] = losses
    return found


def restarts(hf: PreTrainedModel) -> bool:
    """Whether rows that join the model's own forward pass at any layer end where the untouched run does; tried once."""
    if hf not in _RESTARTS:
        _RESTARTS[hf] = _try(hf)
    return _RESTARTS[hf]


def _try(hf: PreTrainedModel) -> bool:
    graph = Graph.of(hf)
    vocabulary = embedding(hf).shape[0]
    ids = tuple((5 + 7 * i) % vocabulary for i in range(8))
    traces = [Trace("one", ids[:2], ids[2:4]), Trace("two", ids[4:7], ids[7:])]
    columns = [c for c, name in enumerate(graph.destinations) if name[0] in "al"]
    rows = [_Row(trace, 0, column) for column in columns for trace in traces]
    objective = Objective.of("nll", hf, traces, None)
    whole = objective.batch(hf, traces)
    try:
        kept = keep(hf, graph, objective, traces, [(0, column) for column in columns])
        with torch.no_grad():
            expected = logits_at(hf, whole.ids, whole.positions)
            found = _logits(hf, graph, objective.batch(hf, rows), rows, kept, 0.0).view(len(columns), *expected.shape)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        return False
    error = (found - expected).flatten(2).norm(dim=-1) / expected.flatten(1).norm(dim=-1)
    return bool((error <= max(1e-4, 10 * torch.finfo(hf.dtype).eps)).all())


@dataclass(frozen=True)
class _Row:
    """A trial row."""

    trace: Trace
    source: int
    destination: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trace, name)


def _layer(graph: Graph, destination: int) -> int:
    """The layer that a destination is in; the number of layers for the logits."""
    return destination // ((len(graph.destinations) - 1) // graph.n_layers)


def _entered(architecture: Architecture, layer: int) -> nn.Module:
    """The module that the stream enters where rows of that layer join."""
    return architecture.layers[layer].block if layer < len(architecture.layers) else architecture.norm_final.module


def _logits(hf: PreTrainedModel, graph: Graph, batch: Batch, rows: Sequence[Any], kept: Kept, scale: float) -> Tensor:
    """Logits ``(batch, kept, vocabulary)`` of rows sorted by their destinations."""
    joining = _Joining(Architecture.of(hf), graph, rows, batch.ids.shape[1], kept, scale)
    with passed_over(joining.skipped, kept.returns_tuple), hooked(joining.attach()):
        return logits_at(hf, batch.ids[:1], batch.positions)


class _Joining:
    """Hooks that let rows join at their destination's layer and their destinations read the changed stream.

    Attributes:
        spans: the rows of each destination, by its column.
        joins: the rows that join at each layer.
        skipped: the layers before the first of them.
    """

    def __init__(
        self, architecture: Architecture, graph: Graph, rows: Sequence[Any], width: int, kept: Kept, scale: float
    ) -> None:
        self.architecture, self.graph, self.rows = architecture, graph, rows
        self.width, self.kept, self.scale = width, kept, scale
        self.place = torch.tensor([kept.place[row.problem] for row in rows])
        self.spans = _spans([row.destination for row in rows])
        self.joins = _spans([_layer(graph, row.destination) for row in rows])
        self.skipped = [layer.block for layer in architecture.layers[: min(self.joins)]]
        self.stream: Tensor

    def attach(self) -> list[Any]:
        """Register the hooks; the caller removes them."""
        handles = []
        for index, span in self.joins.items():
            entered = _entered(self.architecture, index)
            handles.append(entered.register_forward_pre_hook(self._joins(index, span), with_kwargs=True))
            if index == len(self.architecture.layers):
                handles.append(self._reader(entered, len(self.graph.destinations) - 1))
                continue
            layer, columns = self.architecture.layers[index], self._columns(index)
            handles.append(self._reader(layer.mlp_reader, columns[-1]))
            if self.graph.level == "block":
                handles.append(self._reader(layer.attention_reader, columns[0]))
                continue
            handles.append(layer.attention_reader.register_forward_pre_hook(self._remember, with_kwargs=True))
            column = iter(columns)
            targets = {
                name: self._targets(part, name, column) for name, part in zip("qkv", (layer.q, layer.k, layer.v))
            }
            for module, parts in layer.projections:
                chosen = [target for name in parts for target in targets[name] if target[1] in self.spans]
                handles += [module.register_forward_hook(self._projects(layer, chosen))] if chosen else []
        return handles

    def _columns(self, index: int) -> range:
        """The destinations of a layer, in the graph's order."""
        count = (len(self.graph.destinations) - 1) // self.graph.n_layers
        return range(index * count, (index + 1) * count)

    def _targets(self, part: Projection, name: str, column: Any) -> list[tuple[slice | Tensor, int]]:
        """The channels of queries, keys or values that are destinations of their own, each with its column."""
        if self.graph.level == "qkv":
            return [(part.channels, next(column))]
        count = self.architecture.n_heads if name == "q" else self.architecture.n_kv_heads
        return [(channels, next(column)) for channels in part.heads(count)]

    def _joins(self, index: int, span: slice) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict]]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream, kept = taken(args, kwargs), self.kept.streams[index]
            joined = kept[self.place[span].to(kept.device), : self.width].to(stream.device)
            return given(joined if span.start == 0 else torch.cat([stream, joined]), args, kwargs)

        return hook

    def _without(self, stream: Tensor, span: slice) -> Tensor:
        """The streams ``(row, position, d_model)`` of the rows of a span without what their edges bring."""
        read = stream[span].clone()
        for one, row, place in zip(read, self.rows[span], self.place[span].tolist()):
            one.sub_(self.kept.outputs.of(row.source, place)[: self.width].to(one), alpha=self.scale)
            if self.kept.instead is not None:
                one.add_(self.kept.instead.of(row.source, place)[: self.width].to(one), alpha=self.scale)
        return read

    def _reader(self, module: nn.Module, column: int) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if column not in self.spans:
                return None
            span, stream = self.spans[column], taken(args, kwargs)
            whole = torch.cat([stream[: span.start], self._without(stream, span), stream[span.stop :]])
            return given(whole, args, kwargs)

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _remember(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.stream = taken(args, kwargs)

    def _projects(
        self, layer: Layer, chosen: list[tuple[slice | Tensor, int]]
    ) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """Project what the rows of each chosen destination read, and take its channels of that."""

        def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output, norm = output.clone(), layer.norm_attention
            for channels, column in chosen:
                span = self.spans[column]
                read = self._without(self.stream, span)
                changed = module.forward(read if norm is None else norm.module.forward(read))
                output[span][..., channels] = changed[..., channels]
            return output

        return hook


def _spans(values: Sequence[int]) -> dict[int, slice]:
    """Where each value of a sorted sequence stands."""
    found: dict[int, slice] = {}
    for at, value in enumerate(values):
        found[value] = slice(found[value].start if value in found else at, at + 1)
    return found
