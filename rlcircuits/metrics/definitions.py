"""The metrics: pure functions from edge scores to numbers (arXiv 2509.21044, and robust companions).

1. W is [n samples, sources, destinations]; NaN marks pairs that are no edge. The E real edges of each sample
   are laid out as a row, in float64. With ``structural_zeros=True`` every pair that is no edge counts as a
   zero instead, as in the paper's printed formulas, and E is sources × destinations.
2. The paper's metrics: **activation intensity** mean |W|; **information complexity** −Σ_b p_b ln(p_b + ε)
   over one linear histogram of all |W|; **distribution kurtosis**, the mean over samples of m4/m2² − 3;
   **inter-sample diversity** 1 − mean pairwise Pearson correlation; **output-edge entropy** per source.
3. Their robust companions, one value per sample, from the shares p = |W| / Σ|W| (`edge_entropy` H = −Σ p ln
   p, `effective_edges` exp H, `participation_ratio` 1/Σp², `gini`, `top_share`), from ln|W|
   (`log_histogram_entropy`) and from the ordered signed scores (`l_kurtosis`). The pooled histogram is ruled
   by its largest value: one edge of one sample, five times larger, squeezes all others into the first bins.
   None of these is.
4. `METRICS` names them all; `summary` evaluates them. Scores are in nats (the loss is a mean negative
   log-likelihood).

Where a metric is undefined (no score differs from zero, all scores of a sample equal, one sample only for
diversity) its value is NaN; what is no score at all (infinite, missing for some samples only) is an
`InputError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import entr

from rlcircuits.errors import InputError, choose

DIMS = ("sample", "source", "destination")


def edge_values(scores: xr.DataArray, structural_zeros: bool = False) -> np.ndarray:
    """Each sample's edge scores as one row, float64 `(sample, edge)`; edges in row-major order of the graph.

    Args:
        scores: W, dims ``sample``, ``source``, ``destination`` in any order; NaN where there is no edge.
        structural_zeros: keep every pair of source and destination, with 0 where there is no edge.

    Raises:
        InputError: not such an array, no sample, no edge, an infinite score, or a score missing for some
            samples only.
    """
    if not isinstance(scores, xr.DataArray) or set(scores.dims) != set(DIMS):
        given = f"dims {scores.dims}" if isinstance(scores, xr.DataArray) else type(scores).__name__
        grouped = isinstance(scores, xr.DataArray) and "group" in scores.dims
        choice = "; choose one with scores.sel(group=…), or add them up with scores.sum('group', skipna=False)"
        raise InputError(
            f"scores: expected a DataArray with dims {DIMS}, as `attribute` returns, not "
            f"{given}{choice if grouped else ''}"
        )
    scores = scores.transpose(*DIMS)
    if not scores.sizes["sample"]:
        raise InputError("scores hold no sample: expected at least one trace; attribute some first")
    values = np.asarray(scores.values, dtype=np.float64).reshape(scores.sizes["sample"], -1)
    missing = np.isnan(values)
    edges = ~missing.all(axis=0)
    if not edges.any():
        raise InputError("scores hold no edge: every value is NaN; expected numbers on the edges of the graph")
    broken = np.isinf(values) | (missing & edges)
    if broken.any():
        row, pair = np.argwhere(broken)[0]
        raise InputError(
            f"scores: sample {_name(scores, 'sample', row)!r} has {values[row, pair]} on edge "
            f"{_edge(scores, pair)}; expected a finite score for every sample, "
            "or NaN for all where there is no edge"
        )
    return np.where(missing, 0.0, values) if structural_zeros else values[:, edges]


def _name(scores: xr.DataArray, dim: str, i: int) -> str:
    return str(scores[dim].values[i]) if dim in scores.coords else str(i)


def _edge(scores: xr.DataArray, pair: int) -> str:
    source, destination = divmod(int(pair), scores.sizes["destination"])
    return f"{_name(scores, 'source', source)}->{_name(scores, 'destination', destination)}"


def _per_sample(scores: xr.DataArray, values: np.ndarray, name: str) -> xr.DataArray:
    coords = {"sample": scores["sample"].values} if "sample" in scores.coords else {}
    return xr.DataArray(values, dims=("sample",), coords=coords, name=name)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def _shares(scores: xr.DataArray) -> np.ndarray:
    """p = |W| / Σ|W| per sample, `(sample, edge)`; NaN for a sample whose scores are all zero."""
    sizes = np.abs(edge_values(scores))
    largest = sizes.max(axis=1, keepdims=True)
    sizes = _ratio(sizes, largest)  # first by the largest: a sum of subnormal numbers has no digits left
    return sizes / sizes.sum(axis=1, keepdims=True)


# --- the paper's metrics --------------------------------------------------------------------------


def sample_intensity(scores: xr.DataArray, structural_zeros: bool = False) -> xr.DataArray:
    """Mean |W| over each sample's edges, in nats per edge, `(sample,)`."""
    values = edge_values(scores, structural_zeros)
    return _per_sample(scores, np.abs(values).mean(axis=1), "activation_intensity")


def activation_intensity(scores: xr.DataArray, structural_zeros: bool = False) -> float:
    """Mean |W| over samples and edges: 1/(nE) Σ_i Σ_e |W_ie|, in nats per edge.

    Scaling W by c scales it by |c|. ``structural_zeros=True`` multiplies it by edges / (sources ×
    destinations).
    """
    return float(sample_intensity(scores, structural_zeros).mean())


def histogram_bins(sizes: np.ndarray, largest: float, bins: int) -> np.ndarray:
    """Bin of each |W| among `bins` equal ones over [0, largest]: min(⌊bins·|W|/largest⌋, bins − 1).

    With ``largest`` 0 everything is in bin 0.
    """
    if not largest:
        return np.zeros(sizes.shape, dtype=np.intp)
    return np.minimum(sizes / largest * bins, bins - 1).astype(np.intp)


def histogram_entropy(counts: np.ndarray, epsilon: float) -> np.ndarray:
    """−Σ_b p_b ln(p_b + ε) over the last axis, p the counts divided by their sum, in nats."""
    p = counts / counts.sum(axis=-1, keepdims=True)
    return -(p * np.log(p + epsilon)).sum(axis=-1)


def information_complexity(
    scores: xr.DataArray, bins: int = 100, epsilon: float = 1e-12, structural_zeros: bool = False
) -> float:
    """−Σ_b p_b ln(p_b + ε), p_b the share of all |W| in bin b of one linear histogram over [0, max], in nats.

    The histogram is pooled over samples and edges. It depends on W only up to a common factor, lies in [0, ln
    bins] (up to ε), and is ruled by the single largest score. All scores zero: one bin holds all, and the
    value is 0.

    Args:
        bins: number of bins; the paper does not publish its own.
        epsilon: ε > 0, as small as to matter only in empty bins; not published either.

    Raises:
        InputError: `bins` is not a whole number above 0 or `epsilon` not a positive number.
    """
    _check_histogram(bins, epsilon)
    sizes = np.abs(edge_values(scores, structural_zeros))
    counts = np.bincount(histogram_bins(sizes, sizes.max(), bins).ravel(), minlength=bins)
    return float(histogram_entropy(counts, epsilon))


def _check_histogram(bins: int, epsilon: float) -> None:
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise InputError(f"bins is {bins!r}: expected a whole number, at least 1")
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon < math.inf:
        raise InputError(f"epsilon is {epsilon!r}: expected a small positive number")


def sample_kurtosis(scores: xr.DataArray, structural_zeros: bool = False) -> xr.DataArray:
    """m4/m2² − 3 over each sample's signed edges, `(sample,)`; NaN where a sample's scores are all equal."""
    values = edge_values(scores, structural_zeros)
    centred = values - values.mean(axis=1, keepdims=True)
    squares = _ratio(centred, np.ptp(values, axis=1)[:, None]) ** 2  # by the range: no overflow, and NaN if constant
    kurtosis = (squares**2).mean(axis=1) / squares.mean(axis=1) ** 2 - 3
    return _per_sample(scores, kurtosis, "distribution_kurtosis")


def distribution_kurtosis(scores: xr.DataArray, structural_zeros: bool = False) -> float:
    """Excess kurtosis of the signed edges, averaged over samples: 1/n Σ_i (m4_i / m2_i² − 3), no unit.

    m_k is the population moment of one sample's edges about their mean. Neither the scale of W nor its sign
    matters. NaN when the scores of any sample are all equal.
    """
    return float(sample_kurtosis(scores, structural_zeros).mean(skipna=False))


def standardised(values: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and length 1, so that Z Zᵀ holds Pearson correlations; NaN for a constant row.

    Args:
        values: `(sample, edge)`.
    """
    centred = values - values.mean(axis=1, keepdims=True)
    centred = _ratio(centred, np.ptp(values, axis=1)[:, None])
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def inter_sample_diversity(scores: xr.DataArray, structural_zeros: bool = False) -> float:
    """1 − 2/(n(n−1)) Σ_{i<j} r_ij, r_ij the Pearson correlation of samples i and j over edges, no unit.

    0 when all samples use the edges in the same proportions. Neither the scale of W nor its sign matters. NaN
    for one sample, which has no pair, and when the scores of any sample are all equal, which then has no
    correlation.
    """
    z = standardised(edge_values(scores, structural_zeros))
    n = len(z)
    if n < 2:
        return math.nan
    total = z.sum(axis=0)
    return float(1 - (total @ total - n) / (n * (n - 1)))  # |Σz|² counts each pair twice and each sample once


def output_edge_entropy(scores: xr.DataArray) -> xr.DataArray:
    """Entropy of each source's outgoing |W|: −Σ_d p_d ln p_d, p_d = |W_sd| / Σ_d |W_sd|.

    In nats, `(sample, source)`. Between 0 (all on one edge) and the logarithm of the number of outgoing
    edges. NaN for a source that has no edge, or only zero scores in that sample. The paper's value per source
    is its mean over samples.
    """
    edge_values(scores)  # its checks
    scores = scores.transpose(*DIMS)
    sizes = np.abs(np.nan_to_num(scores.values.astype(np.float64), nan=0.0))
    sizes = _ratio(sizes, sizes.max(axis=2, keepdims=True))
    entropy = entr(sizes / sizes.sum(axis=2, keepdims=True)).sum(axis=2)
    coords = {dim: scores[dim].values for dim in DIMS[:2] if dim in scores.coords}
    return xr.DataArray(entropy, dims=DIMS[:2], coords=coords, name="output_edge_entropy")


def sample_output_edge_entropy(scores: xr.DataArray) -> xr.DataArray:
    """`output_edge_entropy` averaged over the sources that have one in that sample, in nats, `(sample,)`."""
    entropy = output_edge_entropy(scores).values
    defined = ~np.isnan(entropy)
    mean = _ratio(np.where(defined, entropy, 0.0).sum(axis=1), defined.sum(axis=1))
    return _per_sample(scores, mean, "output_edge_entropy")


# --- robust companions, per sample ----------------------------------------------------------------


def edge_entropy(scores: xr.DataArray) -> xr.DataArray:
    """H = −Σ_e p_e ln p_e with p = |W| / Σ|W|, in nats, `(sample,)`; 0 for one edge, ln E for all alike.

    NaN for a sample whose scores are all zero, here and in all that follow.
    """
    return _per_sample(scores, entr(_shares(scores)).sum(axis=1), "edge_entropy")


def effective_edges(scores: xr.DataArray) -> xr.DataArray:
    """exp H, the number of equally strong edges with the same `edge_entropy`, in edges, `(sample,)`."""
    return cast(xr.DataArray, np.exp(edge_entropy(scores))).rename("effective_edges")


def log_histogram_entropy(scores: xr.DataArray, width: float = 0.25) -> xr.DataArray:
    """Entropy −Σ_b p_b ln p_b of the histogram of ln|W|, in nats, `(sample,)`.

    Bins of `width` nats centred on the sample's own median of ln|W|: b = round((ln|W| − median) / width). So
    a common factor does not matter and no single edge sets the bins. Zeros have no logarithm and are left
    out. For smooth ln|W| it is the differential entropy of ln|W| minus ln `width`.

    Raises:
        InputError: `width` is not a positive number.
    """
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width < math.inf:
        raise InputError(f"width is {width!r}: expected a positive number of nats, for example 0.25")
    sizes = np.abs(edge_values(scores))
    n, counted = len(sizes), sizes > 0
    logs = np.log(sizes, out=np.full(sizes.shape, np.nan), where=counted)
    median = np.full((n, 1), np.nan)
    some = counted.any(axis=1)
    median[some, 0] = np.nanmedian(logs[some], axis=1)
    row, _ = np.nonzero(counted)
    bins = np.rint((logs - median) / width)[counted].astype(np.int64)
    _, where = np.unique(bins, return_inverse=True)
    n_bins = int(where.max(initial=0)) + 1
    counts = np.bincount(row * n_bins + where, minlength=n * n_bins).reshape(n, n_bins)
    p = _ratio(counts.astype(np.float64), counts.sum(axis=1, keepdims=True))
    return _per_sample(scores, entr(p).sum(axis=1), "log_histogram_entropy")


def gini(scores: xr.DataArray) -> xr.DataArray:
    """Gini coefficient of |W|: Σ_k (2k − E − 1) |W|_(k) / (E Σ|W|), k = 1…E in rising order, `(sample,)`.

    0 when all edges are alike, 1 − 1/E when one holds everything.
    """
    p = np.sort(_shares(scores), axis=1)
    n_edges = p.shape[1]
    rank = np.arange(1, n_edges + 1)
    return _per_sample(scores, p @ (2 * rank - n_edges - 1) / n_edges, "gini")


def participation_ratio(scores: xr.DataArray) -> xr.DataArray:
    """1 / Σ p² = (Σ|W|)² / Σ W², in edges, `(sample,)`: from 1 (one edge) to E (all alike).

    Like `effective_edges` an effective number of edges (the Hill number of order 2, not 1), led more by the
    strongest.
    """
    return _per_sample(scores, 1 / (_shares(scores) ** 2).sum(axis=1), "participation_ratio")


def top_share(scores: xr.DataArray, fraction: float = 0.01) -> xr.DataArray:
    """Share of Σ|W| that the strongest ⌈fraction·E⌉ edges of the sample hold, no unit, `(sample,)`.

    Raises:
        InputError: `fraction` is not above 0 and at most 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction!r}: expected a share of the edges above 0 and at most 1, such as 0.01")
    p = np.sort(_shares(scores), axis=1)
    top = max(1, math.ceil(fraction * p.shape[1] - 1e-9))  # 0.07 of 100 is 7, whatever its last bit says
    return _per_sample(scores, p[:, -top:].sum(axis=1), "top_share")


def l_kurtosis(scores: xr.DataArray) -> xr.DataArray:
    """τ4 = λ4 / λ2 of the sample's signed edges (Hosking 1990), no unit, `(sample,)`.

    λ2 = 2b1 − b0 and λ4 = 20b3 − 30b2 + 12b1 − b0, from the unbiased probability-weighted moments
    b_r = 1/E Σ_k C(k−1, r)/C(E−1, r) W_(k). Uniform 0, Gaussian 0.1226, Laplace 17/72. A heavy tail enters
    linearly, not by its fourth power. NaN with fewer than four edges and for a sample whose scores are all
    equal.
    """
    values = edge_values(scores)
    n, n_edges = values.shape
    if n_edges < 4:
        return _per_sample(scores, np.full(n, np.nan), "l_kurtosis")
    ordered = np.sort(_ratio(values, np.ptp(values, axis=1)[:, None]), axis=1)
    below = np.arange(n_edges, dtype=np.float64)  # k − 1
    weight = np.ones((4, n_edges))
    for r in range(1, 4):
        weight[r] = weight[r - 1] * (below - r + 1) / (n_edges - r)
    centred = ordered - ordered.mean(axis=1, keepdims=True)  # moves b_r, but neither λ2 nor λ4
    b0, b1, b2, b3 = weight @ centred.T / n_edges
    return _per_sample(scores, (20 * b3 - 30 * b2 + 12 * b1 - b0) / (2 * b1 - b0), "l_kurtosis")


# --- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric as tables and figures need it.

    Args:
        function: from scores to a float, or to one value per sample or per sample and source.
        label: its name in the text.
        unit: of its value; empty when it has none.
        per_sample: from scores to one value per sample `(sample,)` whose mean is the metric; None for a
            statistic of the whole set of samples.
        paper: whether the paper defines it.
        doc: one line that says what a larger value means.
    """

    function: Callable[..., float | xr.DataArray]
    label: str
    unit: str
    per_sample: Callable[..., xr.DataArray] | None
    paper: bool
    doc: str

    def value(self, scores: xr.DataArray) -> float:
        """Of the whole set: `function`, or the mean of `per_sample` (NaN if any sample's value is)."""
        return float(self.per_sample(scores).mean(skipna=False) if self.per_sample else self.function(scores))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "activation_intensity": Metric(
            activation_intensity, "activation intensity", "nats per edge", sample_intensity, True,
            "mean strength of an edge"),
        "information_complexity": Metric(
            information_complexity, "information complexity", "nats", None, True,
            "entropy of the pooled histogram of strengths; ruled by the single largest"),
        "distribution_kurtosis": Metric(
            distribution_kurtosis, "distribution kurtosis", "", sample_kurtosis, True,
            "how far a few edges stand out of the rest"),
        "inter_sample_diversity": Metric(
            inter_sample_diversity, "inter-sample diversity", "", None, True,
            "how differently the samples use the edges"),
        "output_edge_entropy": Metric(
            output_edge_entropy, "output-edge entropy", "nats", sample_output_edge_entropy, True,
            "how evenly a source spreads over its outgoing edges, mean over sources"),
        "edge_entropy": Metric(
            edge_entropy, "edge entropy", "nats", edge_entropy, False,
            "how evenly strength is spread over all edges"),
        "effective_edges": Metric(
            effective_edges, "effective number of edges", "edges", effective_edges, False,
            "number of equally strong edges with the same entropy"),
        "log_histogram_entropy": Metric(
            log_histogram_entropy, "entropy of the histogram of ln|W|", "nats", log_histogram_entropy, False,
            "how many orders of magnitude the strengths span"),
        "gini": Metric(
            gini, "Gini coefficient", "", gini, False,
            "inequality of strengths: 0 all alike, near 1 one edge has it all"),
        "participation_ratio": Metric(
            participation_ratio, "participation ratio", "edges", participation_ratio, False,
            "effective number of edges, led by the strongest"),
        "top_share": Metric(
            top_share, "share of the top 1 % of edges", "", top_share, False,
            "part of all strength that the strongest 1 % of edges hold"),
        "l_kurtosis": Metric(
            l_kurtosis, "L-kurtosis", "", l_kurtosis, False,
            "heaviness of the tails, without fourth powers"),
    }
)  # fmt: skip


def chosen(metrics: str | Iterable[str] | None) -> list[str]:
    """The metric names asked for, all of `METRICS` for None.

    Raises:
        InputError: an unknown name (with the nearest known one), or none at all.
    """
    if metrics is None:
        return list(METRICS)
    names = [choose("metric", m, METRICS) for m in ([metrics] if isinstance(metrics, str) else metrics)]
    if not names:
        raise InputError(f"metrics is empty: expected at least one of {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


def summary(scores: xr.DataArray, metrics: Iterable[str] | None = None) -> pd.Series:
    """Every metric of one model's scores, float64, indexed by the metric's name.

    Those with one value per sample are averaged over samples, NaN if any sample's value is undefined.

    Raises:
        InputError: unusable scores or an unknown metric.
    """
    names = chosen(metrics)
    values = pd.Series([METRICS[name].value(scores) for name in names], index=names, dtype=float, name="value")
    return values.rename_axis("metric")
