"""Each metric as a function of how often every sample counts, with the scores reduced once beforehand.

What `rlcircuits.metrics.inference` resamples and `rlcircuits.metrics.leaving_out` leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from rlcircuits.metrics.definitions import METRICS, histogram_bins, histogram_entropy, standardised

Statistic = Callable[[np.ndarray], np.ndarray]  # counts (resample, sample) -> values (resample,)
BINS, EPSILON = 100, 1e-12  # information_complexity's defaults
ROUNDING = 1e-9  # differences below this share of the metric are rounding error


def statistic_of(name: str, scores: Sequence[xr.DataArray], stacked: np.ndarray) -> Statistic:
    """A metric as a function of how often each sample counts.

    Args:
        name: of the metric.
        scores: one or more arrays; their samples, one array after the other, are those that are counted.
        stacked: their edge values ``(sample, edge)``, see `edge_values`.
    """
    per_sample = METRICS[name].per_sample
    if per_sample is not None:
        return mean_statistic(np.concatenate([per_sample(one).values for one in scores]))
    return WHOLE_SET[name](stacked)


def mean_statistic(values: np.ndarray) -> Statistic:
    """The mean of one value per sample."""
    return lambda counts: counts @ values / counts.sum(axis=1)


def _complexity_statistic(stacked: np.ndarray) -> Statistic:
    """T of `information_complexity`, exact for every range that the pooled histogram can take.

    Args:
        stacked: scores of all samples, `(2n, edge)`.
    """
    sizes = np.abs(stacked)
    maxima = sizes.max(axis=1)
    histograms: dict[float, np.ndarray] = {}

    def histogram(largest: float) -> np.ndarray:
        """Counts of every sample over [0, largest], `(2n, bin)`; samples that reach beyond are not used."""
        if largest not in histograms:
            rows = np.arange(len(sizes))[:, None] * BINS
            flat = (histogram_bins(sizes, largest, BINS) + rows).ravel()
            histograms[largest] = np.bincount(flat, minlength=len(sizes) * BINS).reshape(-1, BINS).astype(float)
        return histograms[largest]

    def statistic(counts: np.ndarray) -> np.ndarray:
        largest = np.where(counts > 0, maxima, 0.0).max(axis=1)
        values = np.empty(len(counts))
        for range_end in np.unique(largest):  # a handful: a resample rarely misses all the largest samples
            rows = largest == range_end
            values[rows] = histogram_entropy(counts[rows] @ histogram(range_end), EPSILON)
        return values

    return statistic


def _diversity_statistic(stacked: np.ndarray) -> Statistic:
    """T of `inter_sample_diversity`; NaN for a multiset of one problem only."""
    z = standardised(stacked)
    correlation = z @ z.T
    np.fill_diagonal(correlation, 0.0)

    def statistic(counts: np.ndarray) -> np.ndarray:
        pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
        total = ((counts @ correlation) * counts).sum(axis=1)
        return 1 - np.divide(total, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return statistic


WHOLE_SET: dict[str, Callable[[np.ndarray], Statistic]] = {
    "information_complexity": _complexity_statistic,
    "inter_sample_diversity": _diversity_statistic,
}
