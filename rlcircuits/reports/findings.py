"""What was measured of a pair, or of one model, before it is put into words: plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlcircuits.answers import SIDES as SIDES
from rlcircuits.answers import Answer, Problem, Selection

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Trusted:
    """Scores beside exact removals, for one model.

    Attributes:
        table: by method and quantity, see `rlcircuits.Trust`.
        answers: by use a sentence.
        runs, cells: how many cells (an edge of a problem) were removed for real, of how many.
        problems: how many problems that was done on.
        method: the method that the report's scores are of.
    """

    table: pd.DataFrame
    answers: Mapping[str, str]
    runs: int
    cells: int
    problems: int
    method: str


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything a report on a pair is made of. What was not measured is empty or None, and `absent` says why.

    Attributes:
        name: of the pair.
        models: the models by side, as they were given: base and tuned, or base alone.
        method: how the tuned one was made.
        problems: by id.
        answers: both models' answers to all problems, in one order, by side.
        selection: which problems were kept; None where none was.
        reasons: why problems fell away, see `rlcircuits.Selection`.
        scores: edge scores on each model's own answers, by side.
        losses: by side and problem the loss of every token of the model's own answer, in nats.
        comparison: the table of `rlcircuits.compare`.
        single: with one model, its metrics with intervals (`rlcircuits.metrics.metric_intervals`).
        edges: of `rlcircuits.metrics.edge_changes`.
        influence: of `rlcircuits.metrics.influence`.
        divergence: rows (``direction``, ``answers of``): ``value``, ``low``, ``high`` in nats per token, and ``largest``, that
            of one token.
        critical: where the models part most on the tuned model's answers, see `rlcircuits.Divergence.critical`.
        crossed: each model's loss on each model's answers: rows answers of, columns base, tuned, difference, low, high, p.
        shared: a comparison as `comparison` by whose answers both were scored on, ``"base"`` and ``"tuned"``.
        trust: by side.
        tokenizer: that of the models; None where it is not to be had.
        settings: what was asked for.
        absent: by section why it is not measured.
    """

    name: str
    models: Mapping[str, str]
    method: str
    problems: Mapping[str, Problem]
    answers: Mapping[str, Sequence[Answer]]
    selection: Selection | None
    reasons: pd.DataFrame
    scores: Mapping[str, xr.DataArray] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    comparison: pd.DataFrame | None = None
    single: pd.DataFrame | None = None
    edges: pd.DataFrame | None = None
    influence: pd.DataFrame | None = None
    divergence: pd.DataFrame | None = None
    critical: pd.DataFrame | None = None
    crossed: pd.DataFrame | None = None
    shared: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    trust: Mapping[str, Trusted] = field(default_factory=dict)
    tokenizer: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        """Whether it is one model."""
        return len(self.models) == 1

    @property
    def kept(self) -> int:
        """How many problems were kept."""
        return 0 if self.selection is None else len(self.selection.problems)
