"""Intervals of single numbers: a share, the difference of two shares of the same problems, a mean, one model's metrics.

1. A share k/n: Wilson's score interval, which does not shrink to nothing at 0 or 1.
2. Two shares of the same n problems: the square-and-add interval of their difference with the correlation of the
   pairs (Newcombe 1998, Statistics in Medicine 17:2635, method 10), and the exact sign test of the problems on which the
   two differ (McNemar).
3. A mean over problems, and a metric of one model: percentiles of the bootstrap over problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.metrics.definitions import METRICS, chosen, edge_values
from rlcircuits.metrics.multisets import statistic_of
from rlcircuits.storage import Step

METRIC_INTERVALS = Step("metric-intervals", 1)


class Interval(NamedTuple):
    """A number and the ends of its interval, NaN where there is none."""

    value: float
    low: float
    high: float


class PairedShares(NamedTuple):
    """The difference of two shares of the same problems: tuned − base, its interval, and the two-sided p of no change."""

    difference: float
    low: float
    high: float
    p: float


NOTHING = Interval(math.nan, math.nan, math.nan)


def share_interval(right: int, n: int, confidence: float = 0.95) -> Interval:
    """The share `right` of `n` with Wilson's interval; NaN for none at all.

    >>> "{:.3f} [{:.3f}, {:.3f}]".format(*share_interval(0, 10))
    '0.000 [0.000, 0.278]'
    """
    from scipy.stats import binomtest

    if not n:
        return NOTHING
    ends = binomtest(right, n).proportion_ci(confidence, method="wilson")
    return Interval(right / n, float(ends.low), float(ends.high))


def paired_shares(base: Sequence[bool], tuned: Sequence[bool], confidence: float = 0.95) -> PairedShares:
    """How much larger the share of `tuned` is than that of `base`, problem by problem in one order; NaN for none."""
    from scipy.stats import binomtest

    before, after = (np.asarray(one, bool) for one in (base, tuned))
    n = len(before)
    if not n:
        return PairedShares(math.nan, math.nan, math.nan, math.nan)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    one, other = (share_interval(int(side.sum()), n, confidence) for side in (after, before))
    product = math.prod((both + won, lost + neither, both + lost, won + neither))
    excess: float = both * neither - lost * won
    excess = max(excess - n / 2, 0) if excess > 0 else excess  # the correction of method 10
    φ = excess / math.sqrt(product) if product else 0.0

    def reach(here: float, there: float) -> float:
        return math.sqrt(max(0.0, here**2 - 2 * φ * here * there + there**2))

    difference = one.value - other.value
    low = difference - reach(one.value - one.low, other.high - other.value)
    high = difference + reach(one.high - one.value, other.value - other.low)
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return PairedShares(difference, low, high, p)


def mean_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean of one value per problem; no interval for fewer than two, or where a value is missing."""
    array = np.asarray(values, float)
    if not len(array):
        return NOTHING
    mean = float(array.mean())
    if len(array) < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan)
    found = _counts(len(array), n_resamples, seed) @ array / len(array)
    return Interval(mean, *_ends(found, confidence))


def metric_intervals(
    scores: xr.DataArray,
    metrics: Iterable[str] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 1999,
    seed: int = 0,
) -> pd.DataFrame:
    """One model's metrics with intervals over problems.

    Args:
        scores: as `attribute` returns.
        metrics, confidence, n_resamples, seed: as for `compare`.

    Returns:
        Indexed by metric: ``value``, ``low``, ``high``; ends are NaN for one problem, or where the metric is undefined.
        Information complexity has no interval: its largest value rules it, and the bootstrap knows no larger one.

    Raises:
        InputError: unusable scores or an unknown metric.
    """
    names, stacked = chosen(metrics), edge_values(scores)
    counts = _counts(len(stacked), n_resamples, seed)
    rows = {}
    for name in names:
        value = METRICS[name].value(scores)
        if len(stacked) < 2 or not math.isfinite(value) or name == "information_complexity":
            rows[name] = (value, math.nan, math.nan)
        else:
            rows[name] = (value, *_ends(statistic_of(name, [scores], stacked)(counts), confidence))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"]).rename_axis("metric")


def _counts(n: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each problem is in each resample, float64 ``(resample, problem)``."""
    return np.random.default_rng([seed, 4]).multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)


def _ends(found: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)
