"""What to trust edge scores for: each method beside a sample of exact removals, with intervals, and in one sentence per
use.

1. Scores: EAP, EAP-IG, EAP with exact norms, and any given. A cell is one edge of one trace; exact effects y come from `exact_metrics`, each
   run with its weight w.
2. Of every method, over all cells (weighted by w): **rank correlation** of score and effect, signed and of sizes;
   **Pearson** correlation; **sign agreement**, the share of cells whose score has the effect's sign; **median slope** y
   / score; **overlap**, which part of the strongest K cells by score is among the strongest K by effect. Intervals:
   percentiles of the design's bootstrap.
3. **CPR** and **CMD** of the circuits of the strongest edges (`rlcircuits.faithfulness`), intervals over problems.
4. **Stability**: the problems in two random halves, many times: rank correlation of the two mean scores' sizes, and
   overlap of their strongest edges; intervals over splits.
5. Beside all of it a **random** ranking: what each number would be if the order said nothing.
6. `sentences` turns the numbers into one sentence for each use; nothing in them is typed by hand.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.attribution import Trace, attribute, faithfulness
from rlcircuits.errors import InputError, choose
from rlcircuits.exactness.exact import ExactMetrics, aligned, exact_metrics
from rlcircuits.exactness.words import RANDOM, sentences, with_interval
from rlcircuits.storage import Step

TRUST = Step("trust", 3)

#: quantities of each method, in the order of the table
QUANTITIES = (
    "rank correlation",
    "rank correlation of sizes",
    "Pearson correlation",
    "sign agreement",
    "median slope",
    "overlap",
    "CPR",
    "CMD",
    "stability of ranks",
    "stability of overlap",
)
#: bootstrap resamples and random halves of the problems
RESAMPLES, SPLITS = 399, 100
#: what is judged beside the scores given, and how `rlcircuits.attribute` makes it
METHODS: dict[str, dict[str, Any]] = {"EAP": {}, "EAP-IG": {"ig_steps": 5}, "exact norms": {"method": "exact-norms"}}


@dataclass(frozen=True, eq=False, repr=False)
class Trust:
    """What `trust` found.

    Attributes:
        table: by method and quantity (`QUANTITIES`): ``value``, ``low``, ``high``; the last method is "random".
        answers: by use a sentence: "ranking many edges", "finding the few large ones", "size", "sign", "circuit",
            "other problems".
        exact: the exact metrics from the same runs.
        strongest: share of cells or edges that counts as the strongest.
    """

    table: pd.DataFrame
    answers: dict[str, str]
    exact: ExactMetrics
    strongest: float

    @property
    def title(self) -> str:
        """What was run, in a line."""
        removals = f"{self.exact.runs:,} exact removals of {self.exact.cells:,}"
        return f"Scores against {removals}; strongest {self.strongest:.2g} of all"

    def shown(self) -> pd.DataFrame:
        """Methods by quantities, each as "value [low, high]"."""
        cells = [
            "–" if math.isnan(row[0]) else with_interval(*row)
            for row in self.table[["value", "low", "high"]].itertuples(index=False)
        ]
        wide = pd.Series(cells, index=self.table.index).unstack("method")
        methods = list(dict.fromkeys(self.table.index.get_level_values("method")))
        return wide.loc[list(QUANTITIES), methods].rename_axis(index=None, columns=None)

    def __repr__(self) -> str:
        said = "\n".join(f"{use}: {sentence}" for use, sentence in self.answers.items())
        return f"{self.title}\n{self.shown().to_string()}\n{said}"

    def _repr_html_(self) -> str:
        import html

        said = "".join(f"<li><b>{html.escape(use)}</b>: {html.escape(text)}</li>" for use, text in self.answers.items())
        return f"<p><b>{self.title}</b></p>{self.shown().to_html(escape=True, border=0)}<ul>{said}</ul>"


def trust(
    model: Any,
    traces: Sequence[Trace],
    scores: Mapping[str, xr.DataArray] | None = None,
    budget: int | None = None,
    level: str = "block",
    cut: int | None = None,
    strongest: float = 0.02,
    circuits: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int | str = "auto",
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    methods: Sequence[str] = tuple(METHODS),
) -> Trust:
    """How far EAP, EAP-IG, EAP with exact norms and other scores agree with removing edges for real, on this model and these
    traces.

    Args:
        model, traces, level, cut, batch_size, progress: as for `rlcircuits.attribute`.
        scores: more scores of the same traces by name, at the same level and cut, judged beside those. One with a name of
            `METHODS` takes the place of what would be computed.
        budget, seed, resume: of the exact runs, see `rlcircuits.exact_metrics`.
        strongest: share of cells (and edges) that counts as the strongest.
        circuits: whether to measure CPR and CMD, which re-runs each method's circuits.
        confidence: coverage of the intervals.
        methods: of `METHODS`, which of them to compute.

    Raises:
        InputError: as for `rlcircuits.exact_metrics`; `strongest` not between 0 and 1; a method named "random"; scores
            that are no mapping.
        StoreError: `resume` is a file, or cannot be written.
    """
    if isinstance(strongest, bool) or not isinstance(strongest, (int, float)) or not 0 < strongest < 1:
        raise InputError(f"strongest is {strongest!r}: expected a share between 0 and 1, such as 0.02")
    if scores is not None and not isinstance(scores, Mapping):
        raise InputError(f"scores is a {type(scores).__name__}: expected names with scores, such as {{'mine': scores}}")
    given = dict(scores or {})
    if RANDOM in given:
        raise InputError(f"a method is named {RANDOM!r}, as the baseline is: give it another name")
    if given:
        aligned(given, traces)  # its checks, before anything runs
    options: dict[str, Any] = {"level": level, "cut": cut, "batch_size": batch_size, "progress": progress}
    wanted = {choose("method", name, METHODS): METHODS[name] for name in methods}
    for name, how in wanted.items():
        if name not in given:
            given[name] = attribute(model, traces, **how, **options)
    names = [*wanted, *(name for name in given if name not in wanted)]
    tables = dict(zip(names, aligned([given[name] for name in names], traces)))
    exact = exact_metrics(
        model,
        traces,
        list(tables.values()),
        budget,
        confidence=confidence,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        resume=resume,
    )
    areas: dict[str, Any] = {}
    if circuits:
        for name, one in tables.items():
            seeds = 0 if areas else 5
            areas[name] = faithfulness(
                model,
                traces,
                one,
                seeds=seeds,
                batch_size=batch_size,
                confidence=confidence,
                progress=progress,
                resume=resume,
            )
    table = judged(tables, exact, areas, strongest, confidence, seed)
    return Trust(table, sentences(table, strongest), exact, float(strongest))


def judged(
    scores: Mapping[str, xr.DataArray],
    exact: ExactMetrics,
    areas: Mapping[str, xr.Dataset],
    strongest: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The table of `Trust`, from what was measured.

    Args:
        scores: by method, samples in the order of `exact`.
        areas: by method what `rlcircuits.faithfulness` gave; the first holds the random rankings. May be empty.
    """
    draws = exact.draws
    weights = np.vstack([draws.weights(), draws.resampled(np.random.default_rng([seed, 2]), RESAMPLES)])
    tail = (1 - confidence) / 2
    rows: dict[tuple[str, str], tuple[float, float, float]] = {}

    def put(method: str, quantity: str, values: np.ndarray) -> None:
        """The first value is the estimate, the others are resamples."""
        known = np.isfinite(values[1:])
        ends = np.quantile(values[1:][known], [tail, 1 - tail]) if known.mean() > 0.5 else (math.nan, math.nan)
        rows[method, quantity] = (float(values[0]), float(ends[0]), float(ends[1]))

    flat = {name: _flat(one) for name, one in scores.items()}
    for name, score in flat.items():
        for quantity, found in agreement(score, draws.cells, exact.values, weights, strongest).items():
            put(name, quantity, found)
        for quantity, found in stability(scores[name], strongest, seed).items():
            put(name, quantity, found)
        for quantity in ("CPR", "CMD"):
            area = areas.get(name)
            interval = (math.nan, math.nan) if area is None else tuple(area[f"{quantity}_interval"].values.tolist())
            rows[name, quantity] = (math.nan if area is None else float(area[quantity]), *interval)
    rows |= _random(flat, exact, areas, strongest)
    index = pd.MultiIndex.from_product([[*scores, RANDOM], QUANTITIES], names=["method", "quantity"])
    return pd.DataFrame([rows[key] for key in index], index=index, columns=["value", "low", "high"])


def _flat(scores: xr.DataArray) -> np.ndarray:
    values = scores.transpose("sample", "source", "destination").values
    return values[:, ~np.isnan(values[0])].astype(np.float64).ravel()


def agreement(
    scores: np.ndarray, cells: np.ndarray, effects: np.ndarray, weights: np.ndarray, strongest: float
) -> dict[str, np.ndarray]:
    """Every quantity of 2. for each row of weights.

    Args:
        scores: of the whole population ``(cell,)``.
        cells: places of those that were run ``(run,)``.
        effects: their exact effects ``(run,)``.
        weights: ``(resample, run)``.
    """
    from scipy.stats import rankdata

    mine, count = scores[cells], max(1, math.ceil(strongest * len(scores) - 1e-9))
    total = weights.sum(1)
    order = np.argsort(-np.abs(effects), kind="stable")
    reached = np.cumsum(weights[:, order], axis=1) - weights[:, order]
    top = np.zeros(weights.shape)  # which part of each run is among the strongest by effect
    top[:, order] = np.clip(count - reached, 0, weights[:, order])
    by_score = np.zeros(len(scores), bool)
    by_score[np.argsort(-np.abs(scores), kind="stable")[:count]] = True
    unequal = mine != 0
    return {
        "rank correlation": _correlation(rankdata(scores)[cells], _ranks(effects, weights), weights),
        "rank correlation of sizes": _correlation(
            rankdata(np.abs(scores))[cells], _ranks(np.abs(effects), weights), weights
        ),
        "Pearson correlation": _correlation(mine, np.broadcast_to(effects, weights.shape), weights),
        "sign agreement": weights @ (np.sign(mine) == np.sign(effects)) / total,
        "median slope": _median(effects[unequal] / mine[unequal], weights[:, unequal]),
        "overlap": np.minimum(1.0, top @ by_score[cells] / count),
    }


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Middle ranks ``(resample, run)`` where each value occurs as often as its weight says; equal values share
    theirs.
    """
    different, group = np.unique(values, return_inverse=True)
    mass = np.zeros((len(weights), len(different)))
    np.add.at(mass, (slice(None), group), weights)  # type: ignore[arg-type]  # the stubs know no slices
    return (np.cumsum(mass, axis=1) - mass / 2)[:, group]


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation for each row; NaN where one does not vary."""
    p = weights / weights.sum(1, keepdims=True)
    x = np.broadcast_to(x, weights.shape)
    dx, dy = (v - (p * v).sum(1, keepdims=True) for v in (x, y))
    spread = (p * dx**2).sum(1) * (p * dy**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (p * dx * dy).sum(1) / np.sqrt(spread), np.nan)


def _median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted median for each row; NaN without values."""
    if not len(values):
        return np.full(len(weights), np.nan)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    return values[order][(reached < reached[:, -1:] / 2).sum(1)]


def stability(scores: xr.DataArray, strongest: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Quantities of 4.: first the mean over splits, then each split; NaN for a single problem."""
    from scipy.stats import spearmanr

    values = _flat(scores).reshape(scores.sizes["sample"], -1)
    n, edges = values.shape
    count = max(1, math.ceil(strongest * edges - 1e-9))
    ranks, overlaps = [], []
    rng = np.random.default_rng([seed, 3])
    for _ in range(SPLITS if n > 1 else 0):
        order = rng.permutation(n)
        halves = [np.abs(values[part].mean(0)) for part in (order[: n // 2], order[n // 2 : n // 2 * 2])]
        vary = all(np.ptp(half) > 0 for half in halves)
        ranks.append(spearmanr(*halves).statistic if vary else math.nan)
        tops = [set(np.argsort(-half, kind="stable")[:count].tolist()) for half in halves]
        overlaps.append(len(tops[0] & tops[1]) / count)
    found = {}
    for name, each in (("stability of ranks", ranks), ("stability of overlap", overlaps)):
        known = [value for value in each if math.isfinite(value)]
        found[name] = np.array([np.mean(known) if known else math.nan, *(each or [math.nan])])
    return found


def _random(
    flat: Mapping[str, np.ndarray], exact: ExactMetrics, areas: Mapping[str, xr.Dataset], strongest: float
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """What each quantity is if the first method's scores are dealt out to the cells at random."""
    nothing = (math.nan, math.nan)
    first = next(iter(flat.values()))
    weights = exact.draws.weights()
    shares = [
        np.array([(first * sign > 0).mean(), weights @ (exact.values * sign > 0) / weights.sum()]) for sign in (1, -1)
    ]
    known: dict[str, tuple[float, float, float]] = {
        "rank correlation": (0.0, *nothing),
        "rank correlation of sizes": (0.0, *nothing),
        "Pearson correlation": (0.0, *nothing),
        "sign agreement": (float(sum(share.prod() for share in shares)), *nothing),
        "median slope": (math.nan, *nothing),
        "overlap": (max(1, math.ceil(strongest * len(first) - 1e-9)) / len(first), *nothing),
        "stability of ranks": (0.0, *nothing),
        "stability of overlap": (float(strongest), *nothing),
    }
    area = next(iter(areas.values()), None)
    for quantity in ("CPR", "CMD"):
        if area is None or not area.sizes.get("seed", 0):
            known[quantity] = (math.nan, *nothing)
        else:
            low, high = area[f"random_{quantity}_interval"].values.tolist()
            known[quantity] = (float(area[f"random_{quantity}"].mean()), low, high)
    return {(RANDOM, quantity): values for quantity, values in known.items()}
