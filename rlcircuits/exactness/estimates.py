"""The metrics of `rlcircuits.metrics` from a weighted sample of cells: each run stands for `weight` cells like it.

1. Means over all cells are Σ w f(y) / N, unbiased (Horvitz and Thompson). Shares of cells are the ratio Σ w [y in it] /
   Σ w.
2. All other metrics are **plug-in**: the metric of the population in which each run's value occurs w times, of samples
   rescaled to their number of edges. Totals, moments and order statistics take fractional numbers of occurrences; with
   every cell run, all weights are 1 and the value is the metric's own.
3. Correlations between samples rest on the edges that were run in both: cells of two samples are drawn independently,
   so Σ_e w_ie y_ie w_je y_je is unbiased for Σ_e y_ie y_je.
4. `output_edge_entropy` needs nearly every edge of a source and is not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import entr

from rlcircuits.metrics import histogram_bins, histogram_entropy

#: a metric of one sample: values, weights (both ``(run,)``, the weights summing to the number of edges), number of
#: edges
Plugin = Callable[[np.ndarray, np.ndarray, int], float]


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else math.nan


def edge_entropy(values: np.ndarray, weights: np.ndarray, _edges: int) -> float:
    """−Σ p ln p with p = |y| / Σ w |y|."""
    sizes = np.abs(values)
    total = weights @ sizes
    return float(weights @ entr(sizes / total)) if total else math.nan


def effective_edges(values: np.ndarray, weights: np.ndarray, edges: int) -> float:
    """exp of `edge_entropy`."""
    return math.exp(edge_entropy(values, weights, edges))


def participation_ratio(values: np.ndarray, weights: np.ndarray, _edges: int) -> float:
    """(Σ w |y|)² / Σ w y²."""
    return _ratio((weights @ np.abs(values)) ** 2, weights @ values**2)


def gini(values: np.ndarray, weights: np.ndarray, edges: int) -> float:
    """Σ_k (2k − E − 1) |y|_(k) / (E Σ |y|); the occurrences of one run have consecutive ranks."""
    order = np.argsort(np.abs(values), kind="stable")
    sizes, weights = np.abs(values)[order], weights[order]
    below = np.cumsum(weights) - weights
    return _ratio((sizes * weights) @ (2 * below + weights - edges), edges * (sizes @ weights))


def top_share(values: np.ndarray, weights: np.ndarray, edges: int) -> float:
    """Share of Σ |y| that the strongest ⌈E / 100⌉ occurrences hold."""
    order = np.argsort(-np.abs(values), kind="stable")
    sizes, weights = np.abs(values)[order], weights[order]
    above = np.cumsum(weights) - weights
    top = max(1, math.ceil(0.01 * edges - 1e-9))
    return _ratio(sizes @ np.clip(top - above, 0, weights), sizes @ weights)


def distribution_kurtosis(values: np.ndarray, weights: np.ndarray, _edges: int) -> float:
    """m4 / m2² − 3."""
    p = weights / weights.sum()
    centred = values - p @ values
    return _ratio(p @ centred**4, (p @ centred**2) ** 2) - 3


def l_kurtosis(values: np.ndarray, weights: np.ndarray, edges: int) -> float:
    """λ4 / λ2; Σ_k C(k − 1, r) over the consecutive ranks of one run is C(above, r + 1) − C(below, r + 1)."""
    if edges < 4:
        return math.nan
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    reached = np.concatenate([[0.0], np.cumsum(weights)])
    values = values - weights @ values / reached[-1]  # moves b_r, but neither λ2 nor λ4
    b = []
    for r in range(4):
        chosen = np.prod([reached - i for i in range(r + 1)], axis=0) / math.factorial(r + 1)
        b.append(np.diff(chosen) @ values / math.comb(edges - 1, r) / edges)
    return _ratio(20 * b[3] - 30 * b[2] + 12 * b[1] - b[0], 2 * b[1] - b[0])


def log_histogram_entropy(values: np.ndarray, weights: np.ndarray, _edges: int, width: float = 0.25) -> float:
    """Entropy of the histogram of ln|y| in bins of `width` about its median."""
    some = (values != 0) & (weights > 0)
    if not some.any():
        return math.nan
    logs, weights = np.log(np.abs(values[some])), weights[some]
    order = np.argsort(logs)
    logs, weights = logs[order], weights[order]
    reached = np.cumsum(weights)
    total = reached[-1]
    # the median of an even number of occurrences is the mean of the two in the middle
    middle = [min(int(np.searchsorted(reached, rank - 1e-9)), len(logs) - 1) for rank in _middle(total)]
    bins = np.rint((logs - logs[middle].mean()) / width).astype(np.int64)
    counts = np.bincount(bins - bins.min(), weights=weights)
    return float(entr(counts / total).sum())


def _middle(total: float) -> tuple[float, float]:
    """The one or two ranks in the middle of `total` occurrences."""
    half = (total + 1) / 2
    return max(1.0, math.floor(half + 1e-9)), min(total, math.ceil(half - 1e-9))


#: metrics that are the mean over samples of a value of each
PLUGINS: dict[str, Plugin] = {
    "distribution_kurtosis": distribution_kurtosis,
    "edge_entropy": edge_entropy,
    "effective_edges": effective_edges,
    "log_histogram_entropy": log_histogram_entropy,
    "gini": gini,
    "participation_ratio": participation_ratio,
    "top_share": top_share,
    "l_kurtosis": l_kurtosis,
}


def per_sample(
    name: str, values: np.ndarray, weights: np.ndarray, samples: np.ndarray, n: int, edges: int
) -> np.ndarray:
    """A plug-in metric of each sample ``(n,)``; NaN where no run of it has a weight."""
    found = np.full(n, np.nan)
    for sample in range(n):
        mine = (samples == sample) & (weights > 0)
        if mine.any():
            w = weights[mine]
            found[sample] = PLUGINS[name](values[mine], w * (edges / w.sum()), edges)
    return found


def complexity(values: np.ndarray, weights: np.ndarray, bins: int = 100, epsilon: float = 1e-12) -> float:
    """`rlcircuits.information_complexity` of the weighted values, pooled."""
    sizes = np.abs(values)
    counts = np.bincount(histogram_bins(sizes, float(sizes.max()), bins), weights=weights, minlength=bins)
    return float(histogram_entropy(counts, epsilon))


def diversity(
    values: np.ndarray, weights: np.ndarray, samples: np.ndarray, edge: np.ndarray, n: int, edges: int
) -> float:
    """`rlcircuits.inter_sample_diversity`: 1 − mean correlation, from unbiased estimates of every sum in it.

    Args:
        values, weights: ``(run,)``.
        samples, edge: ``(run,)``, of each run.
    """
    if n < 2:
        return math.nan
    grid = np.zeros((n, edges))
    grid[samples, edge] = values * weights
    means = grid.sum(1) / edges
    products = grid @ grid.T / edges
    squares = np.bincount(samples, weights=weights * values**2, minlength=n) / edges
    spread = squares - means**2
    pairs = np.triu_indices(n, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviations = np.sqrt(np.where(spread > 0, spread, np.nan))
        correlation = (products - np.outer(means, means)) / np.outer(deviations, deviations)
    return float(1 - np.clip(correlation[pairs], -1, 1).mean())
