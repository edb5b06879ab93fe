"""What takes the place of a source's output O when an edge is removed: O′.

- ``"zero"``: nothing.
- ``"mean"``: the source's mean output over all tokens that are read of all traces.
- ``"corrupted"``: its output at the same position of the trace's partner, a trace as long.
- ``"model"``: its output in another model on the same tokens, which must have the same vocabulary, depth and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.batching import in_batches
from rlcircuits.attribution.digests import model_digests, traces_digest
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import embedding, wide
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.recording import Recorder, sources_of
from rlcircuits.attribution.traces import Trace, checked
from rlcircuits.errors import InputError, choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INTERVENTIONS = ("zero", "mean", "corrupted", "model")


@dataclass(eq=False)
class Replacement:
    """O′ for the traces of one call.

    Attributes:
        name: one of `INTERVENTIONS`.
        hf: the model that writes O′; the attributed one unless it is another's.
        graph: that model's graph.
        traces: of the call, over which a mean is taken.
        partners: the trace on which O′ is written, by the trace's problem.
    """

    name: str
    hf: PreTrainedModel
    graph: Graph
    traces: Sequence[Trace]
    partners: dict[str, Trace]
    batch_size: int | str = "auto"
    progress: bool = True
    _mean: Recorder | None = None

    @classmethod
    def of(
        cls,
        hf: PreTrainedModel,
        level: str,
        traces: Sequence[Trace],
        intervention: str,
        corrupted: Sequence[Trace] | None = None,
        other: Any = None,
        cut: int | None = None,
        batch_size: int | str = "auto",
        progress: bool = True,
    ) -> Replacement:
        """Check what was given for an intervention; nothing is run but the check of the other model's architecture.

        Raises:
            InputError: an unknown intervention, one without what it needs, partners of other lengths, or another model
                that does not match in vocabulary, depth, width or heads.
        """
        choose("intervention", intervention, INTERVENTIONS)
        for needs, name, given in (("corrupted", "corrupted traces", corrupted), ("model", "another model", other)):
            if (intervention == needs) != (given is not None):
                example = "corrupted=[…]" if needs == "corrupted" else "other=…"
                raise InputError(
                    f"intervention is {intervention!r} and {name} {'was' if needs == 'model' else 'were'} "
                    f"{'' if given is not None else 'not '}given: intervention={needs!r} and {example} belong together"
                )
        partners = {} if corrupted is None else _partners(hf, traces, corrupted, cut)
        writer = hf if other is None else _matching(hf, plain(other), level)
        return cls(intervention, writer, Graph.of(writer, level), traces, partners, batch_size, progress)

    def outputs(self, rows: Sequence[Any]) -> Recorder | None:
        """O′ of the rows' sources, each ``(batch or 1, position or 1, …)`` as in `Recorder.sources`; None for nothing.

        Rows of one trace share what is run; a batch of one trace alone shares the tensors, too.
        """
        if self.name == "zero":
            return None
        if self.name == "mean":
            self._mean = self._mean or self._mean_outputs()
            return self._mean
        distinct = list({row.problem: row for row in rows}.values())
        record = self.record([self.partners.get(row.problem, row) for row in distinct])
        if 1 < len(distinct) < len(rows):
            place = {row.problem: i for i, row in enumerate(distinct)}
            index = torch.tensor([place[row.problem] for row in rows])
            record.sources = [one.index_select(0, index.to(one.device)) for one in record.sources]
        return record

    def record(self, rows: Sequence[Any]) -> Recorder:
        """What the writing model's sources write on rows."""
        return sources_of(Architecture.of(self.hf), self.graph, self.hf, rows)

    def _mean_outputs(self) -> Recorder:
        """Every source's mean output over all tokens that are read of all traces, each ``(1, 1, d_model)``."""

        def sums(rows: list[Trace]) -> list[Tensor]:
            lengths = torch.tensor([len(row.prompt) + len(row.answer) - 1 for row in rows])
            found = []
            for source in self.record(rows).sources:
                real = torch.arange(source.shape[1])[None] < lengths[:, None]
                found.append(source.to(torch.float64).mul_(real.to(source.device)[..., None]).sum((0, 1), keepdim=True))
            return found

        total: list[Tensor] = []
        found = in_batches(self.hf, self.traces, self.batch_size, sums, "mean of the sources", self.progress)
        for _, one in found:
            total = [a + b for a, b in zip(total, one)] if total else one
        tokens = sum(len(trace.prompt) + len(trace.answer) - 1 for trace in self.traces)
        record = Recorder(Architecture.of(self.hf), self.graph)
        record.sources = [(one / tokens).to(wide(self.hf.dtype)) for one in total]
        return record

    def inputs(self) -> Any:
        """What O′ depends on beside model and traces, as JSON values."""
        if self.name == "corrupted":
            return {"corrupted": traces_digest(list(self.partners.values()))}
        return {"model": model_digests(self.hf)} if self.name == "model" else self.name


def _partners(
    hf: PreTrainedModel, traces: Sequence[Trace], corrupted: Sequence[Trace], cut: int | None
) -> dict[str, Trace]:
    """The corrupted trace of every trace, by the trace's problem."""
    corrupted = list(corrupted)
    if len(corrupted) != len(traces):
        raise InputError(
            f"{len(corrupted)} corrupted traces for {len(traces)} traces: expected one for each, in the same order"
        )
    renamed = [Trace(t.problem, c.prompt, c.answer) if isinstance(c, Trace) else c for t, c in zip(traces, corrupted)]
    partners = dict(zip((t.problem for t in traces), checked(hf, renamed, cut)))
    for trace in traces:
        other = partners[trace.problem]
        sizes = (len(trace.prompt), len(trace.answer)), (len(other.prompt), len(other.answer))
        if sizes[0] != sizes[1]:
            raise InputError(
                f"trace {trace.problem!r} has {sizes[0][0]} prompt and {sizes[0][1]} answer tokens, its corrupted "
                f"partner {sizes[1][0]} and {sizes[1][1]}: positions are compared one by one, so both must be equally "
                "long"
            )
    return partners


def _matching(hf: PreTrainedModel, other: PreTrainedModel, level: str) -> PreTrainedModel:
    """The other model, if its sources can take the place of the model's."""
    if other.training:
        raise InputError("the other model is in training mode, where dropout would change it: call model.eval() first")
    ours, theirs = (
        {
            "vocabulary": embedding(one).shape[0],
            "depth": len(Architecture.of(one).layers),
            "width": Architecture.of(one).d_model,
            "number of heads": Architecture.of(one).n_heads if level == "head" else 0,
        }
        for one in (hf, other)
    )
    for name, size in ours.items():
        if theirs[name] != size:
            raise InputError(
                f"the other model has a {name} of {theirs[name]:,}, the model one of {size:,}: expected two models of "
                "one architecture, such as one before and after fine-tuning"
            )
    return other
