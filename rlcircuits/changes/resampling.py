"""Intervals over problems, from one product of matrices."""

from __future__ import annotations

import math

import numpy as np

from rlcircuits.errors import InputError, expect_whole

RESAMPLES = 999


def expect_intervals(confidence: float, resamples: int, seed: int) -> None:
    """Raise unless an interval can be made.

    Raises:
        InputError: a parameter out of range.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}: expected a number between 0 and 1, such as 0.95")
    expect_whole("resamples", resamples, 1)
    expect_whole("seed", seed, 0)


def resampled(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n problems is drawn in each resample, ``(resample, problem)``, as shares of n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n


def all_and_resampled(n: int, resamples: int, seed: int) -> np.ndarray:
    """Weights ``(1 + resample, problem)`` of means over problems: first all alike, then each resample; of one problem there
    is one.
    """
    return np.concatenate([np.full((1, n), 1 / n), resampled(n, resamples if n > 1 else 1, seed)])


def ratios(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """over / under, NaN where that is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = over / under
    return np.where(np.isfinite(found), found, math.nan)


def percentiles(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of each column of ``(resample, …)``; NaN where every value is, or with one resample."""
    tail = (1 - confidence) / 2
    ends = np.full((2, *values.shape[1:]), math.nan)
    known = np.isfinite(values).any(axis=0)
    if len(values) > 1:
        ends[:, known] = np.nanquantile(values[:, known], [tail, 1 - tail], axis=0)
    return ends[0], ends[1]
