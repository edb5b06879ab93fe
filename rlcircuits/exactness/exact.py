"""Exact metrics from a sample of re-runs: what removing edges really does, without removing every one.

1. A cell is one edge of one trace; its exact effect costs one re-run (`rlcircuits.ablate`). Which cells are run is
   decided stage by stage (`rlcircuits.exactness.collecting`) with known probabilities
   (`rlcircuits.exactness.sampling`).
2. Every run gets a weight; the weights' expectation is 1 for every cell, whatever the proposal, so Σ w y / N is an
   **unbiased** estimate of a mean over all N cells. Other metrics are plug-in estimates
   (`rlcircuits.exactness.estimates`), with a bias that shrinks with the runs.
3. **Intervals** speak of all edges of *these* traces. Of means: Student's t with the variance and degrees of freedom of
   the design, for intensity on its logarithm; of ratios the same, linearised; of plug-in estimates: percentiles of the
   bootstrap.
   They are somewhat too narrow while a few runs rule the variance: of a small model's 4,116 head-level cells (16 draws),
   95 % intervals held the truth in .81 with 200 runs (root mean square error .12; .28 without scores of exact norms) and
   in .94 with 400 (.04; .09). Four answers of SmolLM2 at head level: ±19 % from .11 % of the cells, ±12 % from .23 %; a
   large effect that was thought small may still be met, and widens them.
4. To speak of other problems too, compare two models' estimates problem by problem: `ExactMetrics.compare`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.attribution import Graph, Trace, ablate, exact_norm_scores, inputs_of_ablation
from rlcircuits.errors import InputError
from rlcircuits.exactness import estimates
from rlcircuits.exactness.collecting import PILOT, Population, collect
from rlcircuits.exactness.sampling import Draws
from rlcircuits.metrics import METRICS, compare_values, edge_values
from rlcircuits.storage import journal

BUDGET = 500
#: bootstrap resamples of plug-in estimates
RESAMPLES = 399
#: runs between two entries in a journal, and runs a sample below which plug-in estimates are doubtful
TOGETHER, DOUBTFUL = 512, 30
#: the metric whose plug-in estimate has no honest interval
BINNED = "log_histogram_entropy"
ROW = np.dtype([("sample", "<i4"), ("source", "<i4"), ("destination", "<i4"), ("effect", "<f8")])


@dataclass(frozen=True, eq=False, repr=False)
class ExactMetrics:
    """What `exact_metrics` found.

    Attributes:
        table: by metric: ``estimate``, ``low``, ``high``, ``first_order`` (the same of the first scores given),
            ``kind`` ("unbiased", "ratio", "plug-in", "exact" when every cell was run, "none") and ``note``.
        problems: ``(problem, metric)``, each problem's own estimate, for the metrics that have one.
        effects: ``(sample, source, destination)``, the exact effects that were run, NaN elsewhere.
        weights: the same shape, how many cells each run stands for; 0 where none was run.
        draws: the design, see `rlcircuits.exactness.sampling.Draws`; its cells are sample × edges + edge.
        values: exact effects ``(run,)`` in the order of `draws`.
        runs, cells: how many were run, of how many.
        confidence: coverage of the intervals.
    """

    table: pd.DataFrame
    problems: pd.DataFrame
    effects: xr.DataArray
    weights: xr.DataArray
    draws: Draws
    values: np.ndarray
    runs: int
    cells: int
    confidence: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval of exact intensity, relative to the estimate."""
        row = self.table.loc["activation_intensity"]
        return float((row["high"] - row["low"]) / 2 / row["estimate"]) if row["estimate"] else math.nan

    def compare(
        self, tuned: ExactMetrics, confidence: float = 0.95, n_resamples: int = 9999, seed: int = 0
    ) -> pd.DataFrame:
        """Exact metrics of this model (base) and another (tuned), paired by problem, as `rlcircuits.compare` does for
        scores.

        Args:
            tuned: exact metrics of the other model on the same problems.
            confidence, n_resamples, seed: as for `rlcircuits.compare`.

        Returns:
            The table of `rlcircuits.compare`. Intervals and p-values are over problems and hold the sampling of edges
            too, since each problem's estimate is subject to it. Only metrics that have a value for each problem.

        Raises:
            InputError: the two hold different problems, or a parameter out of range.
        """
        if not isinstance(tuned, ExactMetrics):
            raise InputError(f"tuned is a {type(tuned).__name__}: expected what exact_metrics returns")
        return compare_values(self.problems, tuned.problems, confidence, n_resamples, seed)

    @property
    def title(self) -> str:
        """What was run, in a line."""
        narrow = "" if math.isnan(self.half_width) else f"; exact intensity to ±{self.half_width:.1%}"
        return f"Exact metrics from {self.runs:,} of {self.cells:,} re-runs ({self.runs / self.cells:.2%}){narrow}"

    def __repr__(self) -> str:
        with pd.option_context(
            "display.width", 160, "display.max_columns", None, "display.float_format", "{:.4g}".format
        ):
            return f"{self.title}\n{self.table.to_string(na_rep='')}"

    def _repr_html_(self) -> str:
        shown = self.table.copy()
        for column in ("estimate", "low", "high", "first_order"):
            shown[column] = [f"{value:.4g}" if math.isfinite(value) else "" for value in shown[column]]
        return f"<p><b>{self.title}</b></p>{shown.to_html(escape=True, border=0)}"


def exact_metrics(
    model: Any,
    traces: Sequence[Trace],
    scores: xr.DataArray | Sequence[xr.DataArray] | Mapping[str, xr.DataArray],
    budget: int | None = None,
    until: float | None = None,
    large: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int | str = "auto",
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    other: Any = None,
    loss: Any = "nll",
) -> ExactMetrics:
    """Estimate the metrics of the exact effects of all edges of all traces from a sample of re-runs.

    Args:
        model, traces, batch_size, progress: as for `rlcircuits.attribute`.
        scores: of the same traces and model, at any level; several (EAP and EAP-IG, say) make a better proposal, to
            which scores with exact norms (`rlcircuits.attribution.norms`) are added, for one more pass a trace. The
            first is what the estimates are set beside.
        budget: how many re-runs at most: 500 when None, or, with `until`, as many as it takes.
        until: stop as soon as the interval of exact intensity is no wider than ± this share of it. Looking at the
            interval to decide when to stop costs it a little of its coverage.
        large: an edge whose removal changes the loss by more than this, in nats per token, counts in ``large_share``.
        confidence: coverage of the intervals.
        seed: of the draws; the same call gives the same numbers.
        resume: a folder in which finished runs are kept; the same call, made again, goes on from there, and a larger
            budget or a narrower `until` runs only what is new.
        intervention, corrupted, other, loss: what takes the place of what is removed, and what is measured, as for
            `rlcircuits.ablate`; give the scores the same.

    Returns:
        An `ExactMetrics`; its ``table`` holds every metric of `rlcircuits.METRICS` and

        - ``mean_effect``: the mean signed effect, nats per edge; above 0 if edges help on the whole;
        - ``helpful_share``: share of edges whose removal raises the loss;
        - ``large_share``: share of edges whose removal changes it by more than `large`.

    Raises:
        InputError: as for `rlcircuits.ablate`; a budget of 0 or beyond all cells, `until` not between 0 and 1, or
            scores of other traces or of another graph.
        StoreError: `resume` is a file, or cannot be written.
    """
    tables = aligned(scores, traces)
    first = tables[0]
    graph = graph_of(model, tables)
    edges = np.argwhere(graph.mask)
    n, per_sample = len(traces), len(edges)
    if until is not None and not _within(until, 0, 1):
        raise InputError(f"until is {until!r}: expected a relative half-width between 0 and 1, such as 0.1")
    if not _within(confidence, 0, 1):
        raise InputError(f"confidence is {confidence!r}: expected a number between 0 and 1, such as 0.95")
    if isinstance(large, bool) or not isinstance(large, (int, float)) or not 0 <= large < math.inf:
        raise InputError(f"large is {large!r}: expected nats per token, at least 0, such as 0.01")
    cells = n * per_sample
    if budget is None:
        budget = cells if until is not None else min(BUDGET, cells)
    if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or not 1 <= budget <= cells:
        raise InputError(
            f"budget is {budget!r}: expected how many of the {cells:,} cells ({n} traces × {per_sample:,} edges) to "
            "run, at least 1"
        )
    cut = None if first.attrs.get("cut", "all") == "all" else int(first.attrs["cut"])
    how = {
        "level": graph.level,
        "cut": cut,
        "intervention": intervention,
        "corrupted": corrupted,
        "other": other,
        "loss": loss,
    }

    def narrow(draws: Draws, values: np.ndarray) -> bool:
        if until is None:
            return False
        estimate, low, high = _intensity(draws, values, confidence)
        return estimate > 0 and (high - low) / 2 <= until * estimate

    with contextlib.ExitStack() as stack:
        runner = _Runner(model, traces, graph, edges, how, batch_size, progress)
        if resume is not None:
            inputs = inputs_of_ablation(model, traces, **how)
            runner.keep(stack.enter_context(journal(resume, "exact", inputs, ROW)))
        known = list(tables)
        if 2 * PILOT <= budget < cells:  # there is something to learn, and to learn it for
            known += exact_norm_scores(model, traces, progress=progress, **how)
        draws, values = collect(population(graph, edges, known), runner, int(budget), narrow, seed)
    return _result(draws, values, edges, graph, first, float(large), float(confidence), seed)


def _within(value: object, low: float, high: float) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float, np.number)) and bool(low < value < high)


def aligned(
    scores: xr.DataArray | Sequence[xr.DataArray] | Mapping[str, xr.DataArray], traces: Sequence[Trace]
) -> list[xr.DataArray]:
    """The scores as a list, samples in the traces' order.

    Raises:
        InputError: none, of other traces, of different graphs, or of different cuts.
    """
    if isinstance(scores, xr.DataArray):
        given = [scores]
    else:
        given = list(scores.values()) if isinstance(scores, Mapping) else list(scores)
    if not given:
        raise InputError("no scores given: expected what rlcircuits.attribute returns for these traces")
    if isinstance(traces, Trace):
        raise InputError("expected a sequence of traces, not a single one: pass [trace]")
    wanted = [trace.problem for trace in traces]
    if not wanted:
        raise InputError("no traces given: expected at least one rlcircuits.Trace")
    found = []
    for one in given:
        edge_values(one)  # its checks
        one = one.transpose("sample", "source", "destination")
        names = [str(name) for name in one["sample"].values] if "sample" in one.coords else []
        if sorted(names) != sorted(wanted):
            odd = sorted(set(names) ^ set(wanted))
            raise InputError(
                f"scores of other traces: {len(names)} samples for {len(wanted)} traces"
                + (f", {odd[0]!r} in one only" if odd else "")
                + "; attribute these traces, or select them with .sel(sample=…)"
            )
        found.append(one.isel(sample=[names.index(name) for name in wanted]))
    for one in found[1:]:
        same = all(one[dim].values.tolist() == found[0][dim].values.tolist() for dim in ("source", "destination"))
        if not same or one.attrs.get("cut", "all") != found[0].attrs.get("cut", "all"):
            raise InputError("the scores differ in graph or cut: attribute at one level and with one cut")
    return found


def graph_of(model: Any, scores: Sequence[xr.DataArray]) -> Graph:
    """The model's graph, at the level of the scores.

    Raises:
        InputError: the scores are of another graph.
    """
    first = scores[0]
    names = [str(name) for name in first["destination"].values]
    level = "head" if any(".h" in name for name in names) else "qkv" if any("<" in name for name in names) else "block"
    graph = Graph.of(model, first.attrs.get("level", level))
    same = [str(name) for name in first["source"].values] == list(graph.sources) and names == list(graph.destinations)
    if not same or any((np.isnan(one.values[0]) == graph.mask).any() for one in scores):
        raise InputError(
            f"the scores are not of every edge of this model's graph at level {graph.level!r} ({graph.n_edges:,} "
            "edges): give what rlcircuits.attribute returns for this model"
        )
    return graph


def population(graph: Graph, edges: np.ndarray, scores: Sequence[xr.DataArray]) -> Population:
    """All cells, sample by sample, and what is known of them.

    Args:
        edges: ``(edge, 2)``, source and destination of each.
    """
    n = scores[0].sizes["sample"]
    ends = [
        np.array([_described(name, graph.n_layers) for name in names]) for names in (graph.sources, graph.destinations)
    ]
    sources, destinations = ends[0][edges[:, 0]], ends[1][edges[:, 1]]
    nodes = np.column_stack([sources[:, 0], destinations[:, 0], sources[:, 1:], destinations[:, 1:]])
    groups = np.column_stack(
        [
            np.repeat(np.arange(n), len(edges)),
            np.tile(np.arange(len(edges)), n),
            np.tile(edges[:, 0], n),
            np.tile(edges[:, 1], n),
        ]
    )
    flat = tuple(one.values[:, graph.mask].astype(np.float64).ravel() for one in scores)
    return Population(flat, np.tile(nodes, (n, 1)), groups)


def _described(name: str, layers: int) -> tuple[float, ...]:
    """How deep a node lies, 0 to 1, and which kind it is."""
    kind = re.fullmatch(r"([am])(\d+)(?:\.\w+?\d+)?(?:<(\w)>)?", name)
    if kind is None:
        return (float(name == "logits"), 0.0, 0.0, 0.0, 0.0, 0.0)
    branch, layer, part = kind.groups()
    depth = (2 * int(layer) + 1 + (branch == "m")) / (2 * layers + 1)
    return (depth, float(branch == "a"), float(branch == "m"), *(float(part == one) for one in "qkv"))


class _Runner:
    """Runs cells, a few hundred at a time, and keeps them in a journal if it has one."""

    def __init__(
        self,
        model: Any,
        traces: Sequence[Trace],
        graph: Graph,
        edges: np.ndarray,
        how: dict[str, Any],
        batch_size: int | str,
        progress: bool,
    ) -> None:
        self.model, self.traces, self.graph, self.edges = model, list(traces), graph, edges
        self.how, self.batch_size, self.progress = how, batch_size, progress
        self.finished: dict[tuple[int, int, int], float] = {}
        self.book: Any = None

    def keep(self, book: Any) -> None:
        """Take over what a journal has, and write to it."""
        self.book = book
        self.finished = {
            (int(r["sample"]), int(r["source"]), int(r["destination"])): float(r["effect"]) for r in book.rows
        }

    def __call__(self, cells: np.ndarray) -> np.ndarray:
        samples, edges = np.divmod(cells, len(self.edges))
        names = [(int(i), int(s), int(d)) for i, (s, d) in zip(samples, self.edges[edges])]
        wanted = sorted(name for name in set(names) if name not in self.finished)
        for begin in range(0, len(wanted), TOGETHER):
            some = wanted[begin : begin + TOGETHER]
            mask = np.zeros((len(self.traces), *self.graph.mask.shape), bool)
            mask[tuple(zip(*some))] = True
            asked = xr.DataArray(mask, dims=("sample", "source", "destination"))
            found = ablate(
                self.model, self.traces, edges=asked, batch_size=self.batch_size, progress=self.progress, **self.how
            ).values
            record = np.array([(*name, found[name]) for name in some], ROW)
            self.finished |= {(i, s, d): float(effect) for i, s, d, effect in record.tolist()}
            if self.book is not None:
                self.book.add(record)
        return np.array([self.finished[name] for name in names])


def _student(confidence: float, freedom: float) -> float:
    from scipy import stats

    if math.isnan(freedom):
        return math.nan
    return float(
        stats.t.ppf((1 + confidence) / 2, max(1.0, freedom))
        if math.isfinite(freedom)
        else stats.norm.ppf((1 + confidence) / 2)
    )


def _intensity(draws: Draws, values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Estimate and interval of the mean size of all cells; the interval is symmetric on the logarithm."""
    sizes = np.abs(values)
    estimate = float(draws.weights() @ sizes) / draws.population
    variance, freedom = draws.variance(sizes)
    if not estimate:
        return 0.0, 0.0 if variance == 0 else math.nan, 0.0 if variance == 0 else math.nan
    half = _student(confidence, freedom) * math.sqrt(variance) / draws.population / estimate
    return estimate, estimate * math.exp(-half), estimate * math.exp(half)


def _mean(draws: Draws, values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    estimate = float(draws.weights() @ values) / draws.population
    variance, freedom = draws.variance(values)
    half = _student(confidence, freedom) * math.sqrt(variance) / draws.population
    return estimate, estimate - half, estimate + half


def _share(draws: Draws, inside: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Share of cells, as a ratio of two totals; the interval from the linearised ratio."""
    total = float(draws.weights().sum())
    share = float(draws.weights() @ inside) / total
    _, low, high = _mean(draws, (inside - share) * (draws.population / total), confidence)
    return share, max(0.0, share + low), min(1.0, share + high)


def _result(
    draws: Draws,
    values: np.ndarray,
    edges: np.ndarray,
    graph: Graph,
    first: xr.DataArray,
    large: float,
    confidence: float,
    seed: int,
) -> ExactMetrics:
    n, per_sample = first.sizes["sample"], len(edges)
    samples, edge = np.divmod(draws.cells, per_sample)
    weights = draws.weights()
    whole = len(values) == draws.population
    rough = edge_values(first)
    rows: dict[str, tuple[Any, ...]] = {
        "activation_intensity": (*_intensity(draws, values, confidence), float(np.abs(rough).mean()), "unbiased", ""),
        "mean_effect": (*_mean(draws, values, confidence), float(rough.mean()), "unbiased", ""),
        "helpful_share": (*_share(draws, values > 0, confidence), float((rough > 0).mean()), "ratio", ""),
        "large_share": (
            *_share(draws, np.abs(values) > large, confidence),
            float((np.abs(rough) > large).mean()),
            "ratio",
            "",
        ),
    }
    resampled = draws.resampled(np.random.default_rng([seed, 1]), 1 if whole else RESAMPLES)
    functions = _plugins(values, samples, edge, n, per_sample)
    few = len(values) < DOUBTFUL * n and not whole
    for name in METRICS:
        if name in rows:
            continue
        expected = METRICS[name].value(first)
        if name not in functions:
            rows[name] = (math.nan, math.nan, math.nan, expected, "none", "needs nearly every edge of a source")
            continue
        note = f"fewer than {DOUBTFUL} runs a problem: doubtful" if few else ""
        if name == "inter_sample_diversity" and n < 2:
            rows[name] = (math.nan, math.nan, math.nan, expected, "none", "one problem")
            continue
        if name == BINNED and not whole:
            note = "too low: few runs fill few bins"
            rows[name] = (functions[name](weights), math.nan, math.nan, expected, "plug-in", note)
            continue
        found = np.array([functions[name](w) for w in resampled])
        tail = (1 - confidence) / 2
        low, high = np.nanquantile(found, [tail, 1 - tail]) if np.isfinite(found).any() else (math.nan, math.nan)
        rows[name] = (functions[name](weights), float(low), float(high), expected, "plug-in", note)
    columns = ["estimate", "low", "high", "first_order", "kind", "note"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")
    if whole:
        table.loc[table["kind"] != "none", ["kind", "note"]] = ["exact", ""]
        table["low"], table["high"] = table["estimate"], table["estimate"]
    shape = (n, *graph.mask.shape)
    coords = {dim: first[dim].values for dim in ("sample", "source", "destination")}
    at = (samples, edges[edge, 0], edges[edge, 1])
    effects, stands = np.full(shape, np.nan), np.zeros(shape)
    effects[at], stands[at] = values, weights
    attrs = {"level": graph.level, "method": "exact ablation, sampled", "cut": first.attrs.get("cut", "all")}
    return ExactMetrics(
        table=table,
        problems=_problems(values, weights, samples, list(coords["sample"]), per_sample, large),
        effects=xr.DataArray(effects, coords, dims=tuple(coords), name="effect", attrs=attrs),
        weights=xr.DataArray(stands, coords, dims=tuple(coords), name="weight"),
        draws=draws,
        values=values,
        runs=len(values),
        cells=draws.population,
        confidence=confidence,
    )


def _plugins(
    values: np.ndarray, samples: np.ndarray, edge: np.ndarray, n: int, edges: int
) -> dict[str, Callable[[np.ndarray], float]]:
    """Plug-in metrics as functions of the weights alone."""

    def averaged(name: str) -> Callable[[np.ndarray], float]:
        return lambda w: float(np.mean(estimates.per_sample(name, values, w, samples, n, edges)))

    return {
        **{name: averaged(name) for name in estimates.PLUGINS},
        "information_complexity": lambda w: estimates.complexity(values, w),
        "inter_sample_diversity": lambda w: estimates.diversity(values, w, samples, edge, n, edges),
    }


def _problems(
    values: np.ndarray, weights: np.ndarray, samples: np.ndarray, names: list[str], edges: int, large: float
) -> pd.DataFrame:
    """Each problem's own estimate of the metrics that have one."""
    n = len(names)

    def mean(of: np.ndarray) -> np.ndarray:
        return np.bincount(samples, weights=weights * of, minlength=n) / edges

    stands = np.bincount(samples, weights=weights, minlength=n) / edges
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "activation_intensity": mean(np.abs(values)),
            "mean_effect": mean(values),
            "helpful_share": mean(values > 0) / stands,
            "large_share": mean(np.abs(values) > large) / stands,
        }
    found |= {name: estimates.per_sample(name, values, weights, samples, n, edges) for name in estimates.PLUGINS}
    return pd.DataFrame(found, index=pd.Index(names, name="problem"))
