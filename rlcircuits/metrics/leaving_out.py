"""What single problems do to a comparison: how much of a change is one problem's, and what is left without it.

1. A metric that is a mean over problems changes by D = Σ_i d_i / n. Problem i's **share** is |d_i| / Σ_j |d_j|: 1/n when all
   change alike, near 1 when one problem is the change.
2. **Leave one out**: the change of the other n − 1 problems, for each problem; where its sign turns, the change hangs on
   that problem. For metrics of the whole set (complexity, diversity) there is no share, only this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.metrics.definitions import METRICS, chosen, edge_values
from rlcircuits.metrics.multisets import ROUNDING, Statistic, statistic_of
from rlcircuits.metrics.pairing import paired
from rlcircuits.storage import Step

INFLUENCE = Step("influence", 1)
_COLUMNS = ["value", "problem", "share", "without", "lowest", "highest", "ratio", "ratio_without"]


def influence(
    base_scores: xr.DataArray, tuned_scores: xr.DataArray | None = None, metrics: Iterable[str] | None = None
) -> pd.DataFrame:
    """The most influential problem of each metric.

    Args:
        base_scores, tuned_scores: as for `compare`; with the first alone, of its values instead of changes.
        metrics: names from `METRICS`; all of them by default.

    Returns:
        Indexed by metric: ``value`` (tuned − base, or the value), ``problem`` (the one of the largest share; for metrics
        of the whole set, the one without which the value is farthest from what it is), ``share``, ``without`` (the value
        without that problem), ``lowest`` and ``highest`` (without any one problem), ``ratio`` and ``ratio_without``
        (tuned / base, of all and without that problem). NaN where there are too few problems or the metric is
        undefined.

    Raises:
        InputError: as `compare`.
    """
    names = chosen(metrics)
    sides = [base_scores] if tuned_scores is None else list(paired(base_scores, tuned_scores))
    stacked = np.concatenate([edge_values(one) for one in sides])
    return left_out({name: statistic_of(name, sides, stacked) for name in names}, sides)


def left_out(statistics: Mapping[str, Statistic], sides: Sequence[xr.DataArray]) -> pd.DataFrame:
    """`influence` by metrics that are already functions of how often each sample counts.

    Args:
        statistics: by metric, of the samples of `sides`, one array after the other.
        sides: base and tuned with the same problems in one order, or one alone.
    """
    n = sides[0].sizes["sample"]
    problems = [str(i) for i in sides[0]["sample"].values] if "sample" in sides[0].coords else list(map(str, range(n)))
    left = np.vstack([np.ones(n), *(1 - np.eye(n) if n > 1 else ())])  # all of them, then without each
    counts = [np.hstack([left if k == side else 0 * left for k in range(len(sides))]) for side in range(len(sides))]
    rows = {}
    for name, statistic in statistics.items():
        each = [statistic(one) for one in counts]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = each[-1] / each[0] if len(each) > 1 else np.full(len(left), np.nan)
        change = each[-1] - each[0] if len(each) > 1 else each[0]
        change[np.abs(change) < ROUNDING * sum(map(np.abs, each))] = 0.0
        per_sample = METRICS[name].per_sample
        parts = None
        if per_sample is not None:
            values = [per_sample(one).values for one in sides]
            parts = values[-1] - values[0] if len(values) > 1 else values[0]
        rows[name] = _row(problems, change, ratio, parts)
    return pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS).rename_axis("metric")


def influence_of_values(base: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """`influence` for what is known as one value per problem ``(problem, metric)``, in the same order."""
    n, problems = len(base), [str(i) for i in base.index]
    left = np.vstack([np.ones(n), *(1 - np.eye(n) if n > 1 else ())])
    rows = {}
    for name in base.columns:
        before, after = base[name].to_numpy(float), tuned[name].to_numpy(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            change, ratio = left @ (after - before) / left.sum(axis=1), left @ after / (left @ before)
        rows[name] = _row(problems, change, ratio, after - before)
    return pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS).rename_axis("metric")


def _row(problems: list[str], change: np.ndarray, ratio: np.ndarray, parts: np.ndarray | None) -> tuple[object, ...]:
    """One metric's row, from its change and ratio of all problems and without each ``(1 + problem,)``."""
    value, without = float(change[0]), change[1:]
    if not np.isfinite(without).any():
        return (value, "", *[math.nan] * 4, float(ratio[0]), math.nan)
    share = math.nan
    if parts is None:
        at = int(np.nanargmax(np.abs(without - value))) if math.isfinite(value) else int(np.isfinite(without).argmax())
    else:
        sizes = np.where(np.isfinite(parts), np.abs(parts), 0.0)
        at = int(np.argmax(sizes))
        share = float(sizes[at] / sizes.sum()) if sizes.any() and np.isfinite(parts).all() else math.nan
    ends = float(np.nanmin(without)), float(np.nanmax(without))
    return (value, problems[at], share, float(without[at]), *ends, float(ratio[0]), float(ratio[1:][at]))
