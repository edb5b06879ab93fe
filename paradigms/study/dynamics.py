"""Does one quantity lead another along training? Lagged rank correlations of their changes, over seeds.

1. Take changes between checkpoints, Δx_t and Δy_t, so that two quantities that merely both rise are not called related.
2. For each lag k and seed: Spearman's correlation of Δx_t with Δy_{t+k}. At k > 0 the first comes before the second: it
   **leads**.
3. Over seeds: the mean and Student's interval, of each lag and of  lead = mean over k > 0 − mean over k < 0.  Above 0
   the first quantity leads, below 0 it follows.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from rlcircuits.errors import InputError

LAGS = (-3, -2, -1, 0, 1, 2, 3)
LEAST_PAIRS = 4


def lagged_correlation(x: np.ndarray, y: np.ndarray, lag: int) -> float:
    """Spearman's correlation of Δx_t with Δy_{t+lag}; NaN with fewer than `LEAST_PAIRS` pairs or where one is constant.

    Raises:
        InputError: x and y differ in length.
    """
    from scipy import stats

    if len(x) != len(y):
        raise InputError(f"{len(x)} and {len(y)} checkpoints: expected two quantities along the same checkpoints")
    dx, dy = np.diff(np.asarray(x, float)), np.diff(np.asarray(y, float))
    first, second = (dx[: len(dx) - lag], dy[lag:]) if lag >= 0 else (dx[-lag:], dy[: len(dy) + lag])
    usable = np.isfinite(first) & np.isfinite(second)
    first, second = first[usable], second[usable]
    if len(first) < LEAST_PAIRS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def student_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float, int]:
    """Mean, low, high and number of the values that are defined; no interval for fewer than two."""
    from scipy import stats

    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = len(values)
    if not n:
        return math.nan, math.nan, math.nan, 0
    mean = float(values.mean())
    if n < 2:
        return mean, math.nan, math.nan, n
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half, n


def lead_and_lag(x: np.ndarray, y: np.ndarray, lags: tuple[int, ...] = LAGS) -> pd.DataFrame:
    """Steps 1 to 3 for x and y ``(seed, checkpoint)``.

    Returns:
        One row per lag, and a row of ``lag`` "lead": ``lag``, ``correlation``, ``low``, ``high``, ``n_seeds``.
    """
    each = np.array([[lagged_correlation(a, b, lag) for lag in lags] for a, b in zip(x, y, strict=True)])
    after, before = (np.array([sign * lag > 0 for lag in lags]) for sign in (1, -1))
    with np.errstate(all="ignore"):
        means = [
            np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in each[:, side]])
            for side in (after, before)
        ]
    columns = {**{str(lag): each[:, i] for i, lag in enumerate(lags)}, "lead": means[0] - means[1]}
    rows = [
        {"lag": name, **dict(zip(("correlation", "low", "high", "n_seeds"), student_interval(values)))}
        for name, values in columns.items()
    ]
    return pd.DataFrame(rows)
