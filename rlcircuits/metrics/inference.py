"""Base against tuned, problem by problem: differences of metrics with intervals and p-values.

1. Stack the scores of the n problems, base first: samples 0 … n−1 are base's, n … 2n−1 tuned's. A metric of
   any multiset of samples is a function T of the times c each is in it, with the scores reduced once
   beforehand:
   - a mean over samples: the value of each; T = Σ c_i v_i / Σ c_i;
   - information complexity: histograms of each sample. The pooled histogram ranges to the largest |W| in the
     multiset, which is the largest of its samples' maxima: for each maximum that occurs, all samples are
     counted over exactly that range, once; T sums these counts;
   - inter-sample diversity: the correlation matrix r of all 2n samples; T = 1 − Σ c_i c_j r_ij / Σ c_i c_j
     over i ≠ j. A problem drawn twice is not a pair of samples, so it adds none.
2. The difference is D = T(tuned) − T(base), and D₀ its value as observed.
3. **Interval**: resample problems with replacement, the same ones for base and tuned
   (`scipy.stats.bootstrap`, paired), bias-corrected and accelerated; where that does not exist (all resamples
   alike, or D₀ beyond them) by percentiles. Column ``interval`` says which.
4. **p-value**: swap base and tuned within each problem at random (`scipy.stats.permutation_test`, type
   "samples", two-sided); every swap when there are no more than `n_resamples`. The null says that base and
   tuned are exchangeable within a problem. D₀ counts as one of the permutations, so p is never 0.
5. Differences closer to D₀ than rounding error (1e-9 of the metric) count as equal to it.
6. `holm` corrects the p-values of a family of comparisons.

The maximum of a sample is not something the bootstrap estimates well, so neither is the interval of
information complexity, which the maximum rules: rely on the p-value and on the robust metrics there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.errors import InputError
from rlcircuits.metrics.definitions import METRICS, chosen, edge_values
from rlcircuits.metrics.leaving_out import influence_of_values, left_out
from rlcircuits.metrics.multisets import ROUNDING, Statistic, mean_statistic, statistic_of
from rlcircuits.metrics.pairing import paired
from rlcircuits.storage import Step


class SureAnswers(UserWarning):
    """First-order scores of answers so sure that they do not tell what removing edges does."""


COMPARISON = Step("comparison", 2)
#: mean loss, in nats per token, below which first-order scores do not have the size of exact effects: on trained models
#: of half a million parameters with answers of .002 to .05 nats, exact intensity was 15 to 2,300 times that of EAP, and
#: signs agreed for .56 to .82 of edges; on a language model of 135 million parameters with .3 to .7 nats it was 1.5
#: times
SURE = 0.05


def compare(
    base_scores: xr.DataArray,
    tuned_scores: xr.DataArray,
    metrics: Iterable[str] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """Each metric of base and tuned, their difference, its interval and p-value, paired by problem.

    Args:
        base_scores, tuned_scores: scores of two models on the same problems (coordinate ``sample``, in any
            order) and the same graph, as `attribute` returns.
        metrics: names from `METRICS`; all of them by default.
        confidence: coverage of the interval, between 0 and 1.
        n_resamples: of the bootstrap, and of the permutation test; the smallest p is
            2 / (n_resamples + 1).
        seed: of both; the same call gives the same numbers.

    Returns:
        Indexed by metric: ``base``, ``tuned``, ``difference`` (tuned − base), ``low``, ``high`` (its
        interval), ``p`` (two-sided, uncorrected), ``ratio`` (tuned / base, NaN when base is 0), ``interval``
        ("BCa", "percentile" or "none"), ``note`` (why something is missing, else empty), and of the most influential
        problem ``problem``, ``share`` and ``ratio_without``, see `influence`: a change that is mostly one problem's is
        no finding, whatever its interval. ``attrs``: n, confidence, n_resamples, seed.

    Warns:
        SureAnswers: first-order scores of answers of less than `SURE` nats per token.

    Raises:
        InputError: the two hold different problems or graphs, an unknown metric, or a parameter out of range.
    """
    names = chosen(metrics)
    _check_parameters(confidence, n_resamples, seed)
    base, tuned = paired(base_scores, tuned_scores)
    _warn_if_sure(base, tuned)
    n = base.sizes["sample"]
    base_values, tuned_values = (np.array([METRICS[m].value(s) for m in names]) for s in (base, tuned))
    stacked = np.concatenate([edge_values(base), edge_values(tuned)])
    known = {name: statistic_of(name, (base, tuned), stacked) for name in names}

    def statistics(usable: np.ndarray) -> list[Statistic]:
        return [known[names[k]] for k in usable]

    table = _compared(names, base_values, tuned_values, n, statistics, confidence, n_resamples, seed)
    return _with_influence(table, left_out(known, (base, tuned)))


def _warn_if_sure(*scores: xr.DataArray) -> None:
    """Say so when what is compared are first-order scores of a loss near 0, where the gradient nearly vanishes and
    the effects do not.
    """
    first_order = [
        s
        for s in scores
        if s.attrs.get("method", "").startswith("EAP") and s.attrs.get("loss", "nll") == "nll" and "loss" in s.coords
    ]
    loss = min((float(s["loss"].mean()) for s in first_order), default=math.inf)
    if loss < SURE:
        warnings.warn(
            f"the answers are so sure ({loss:.2g} nats per token) that first-order scores say what the loss is "
            f"sensitive to, not what removing edges does: below {SURE:g} nats they were found too small by a factor "
            "of 15 to 2,300; rlcircuits.exact_metrics estimates exact effects",
            SureAnswers,
            stacklevel=3,
        )


def compare_values(
    base: pd.DataFrame, tuned: pd.DataFrame, confidence: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """`compare` for what is known as one value per problem: the metrics are the values' means.

    Args:
        base, tuned: ``(problem, metric)``, the same problems, in any order, and the same metrics.
        confidence, n_resamples, seed: as for `compare`.

    Raises:
        InputError: other problems or metrics, or a parameter out of range.
    """
    _check_parameters(confidence, n_resamples, seed)
    for what, one, other in (("problem", base.index, tuned.index), ("metric", base.columns, tuned.columns)):
        alone = sorted(map(str, set(one) ^ set(other)))
        if alone:
            raise InputError(
                f"base and tuned must hold the same {what}s: {len(alone)} in one only, such as {alone[0]!r}"
            )
    tuned = tuned.loc[base.index, base.columns]
    both = np.concatenate([base.to_numpy(float), tuned.to_numpy(float)])

    def statistics(usable: np.ndarray) -> list[Statistic]:
        return [mean_statistic(both[:, k]) for k in usable]

    means = base.to_numpy(float).mean(0), tuned.to_numpy(float).mean(0)
    table = _compared(list(base.columns), *means, len(base), statistics, confidence, n_resamples, seed)
    return _with_influence(table, influence_of_values(base, tuned))


def _with_influence(table: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare` with what its most influential problems do."""
    for column in ("problem", "share", "ratio_without"):
        table[column] = found[column].to_numpy()
    return table


def _compared(
    names: list[str],
    base_values: np.ndarray,
    tuned_values: np.ndarray,
    n: int,
    statistics: Callable[[np.ndarray], list[Statistic]],
    confidence: float,
    n_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The table of `compare`; `statistics` gives those of the metrics whose numbers are asked for."""
    observed = tuned_values - base_values
    usable = np.flatnonzero(np.isfinite(observed)) if n > 1 else np.array([], dtype=int)

    low, high, p = (np.full(len(names), np.nan) for _ in range(3))
    interval = np.full(len(names), "none", dtype=object)
    if usable.size:
        difference = _differences(statistics(usable), n, np.abs(base_values) + np.abs(tuned_values), usable)
        low[usable], high[usable], interval[usable] = _bootstrap(difference, n, confidence, n_resamples, seed)
        p[usable] = _permutation(difference, n, n_resamples, seed)

    table = pd.DataFrame(
        {
            "base": base_values,
            "tuned": tuned_values,
            "difference": observed,
            "low": low,
            "high": high,
            "p": p,
            "ratio": np.divide(tuned_values, base_values, out=np.full(len(names), np.nan), where=base_values != 0),
            "interval": interval.astype(str),
            "note": [_note(n, *pair) for pair in zip(base_values, tuned_values, strict=True)],
        },
        index=pd.Index(names, name="metric"),
    )
    table.attrs = {"n": n, "confidence": confidence, "n_resamples": n_resamples, "seed": seed}
    return table


def holm(p: Iterable[float]) -> pd.Series | np.ndarray:
    """Holm's step-down correction: p-values whose threshold at α keeps the chance of any false finding ≤ α.

    With m p-values in rising order, the k-th becomes max_{j≤k} min(1, (m − j + 1) p_(j)). NaN stays NaN and
    is not one of the m. A Series keeps its index; anything else comes back as an array.

    Raises:
        InputError: a p-value outside [0, 1].
    """
    values = np.asarray(list(p) if not isinstance(p, (pd.Series, np.ndarray)) else p, dtype=float)
    if ((values < 0) | (values > 1)).any():
        raise InputError(f"p-values must lie between 0 and 1; got {values[(values < 0) | (values > 1)][0]}")
    flat = values.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    corrected = np.full(flat.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(flat[order] * np.arange(len(order), 0, -1)), 1.0)
    return (
        pd.Series(corrected, index=p.index, name=p.name)
        if isinstance(p, pd.Series)
        else corrected.reshape(values.shape)
    )


def _check_parameters(confidence: float, n_resamples: int, seed: int) -> None:
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}: expected a number between 0 and 1, such as 0.95")
    for name, value, least in (("n_resamples", n_resamples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} is {value!r}: expected a whole number, at least {least}")


def _note(n: int, base: float, tuned: float) -> str:
    undefined = [which for which, value in (("base", base), ("tuned", tuned)) if not math.isfinite(value)]
    if n < 2:
        return "one problem: no interval or test without at least two"
    return f"undefined for {' and '.join(undefined)}: a sample's scores are all zero or all equal" if undefined else ""


def _differences(
    statistics: list[Statistic], n: int, scale: np.ndarray, usable: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """D of all metrics for samples chosen as base and as tuned.

    Returns:
        A function of two integer arrays `(…, m)` of indices into the 2n stacked samples, to float64 `(…,
        metric)`.
    """

    def raw(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        counts_x, counts_y = _counts(x, 2 * n), _counts(y, 2 * n)
        return np.stack([T(counts_y) - T(counts_x) for T in statistics], axis=-1)

    observed = raw(np.arange(n)[None], n + np.arange(n)[None])[0]
    quantum = np.maximum(ROUNDING * scale[usable], np.finfo(float).tiny)
    observed = np.where(np.abs(observed) < quantum, 0.0, observed)

    def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shape = x.shape[:-1]
        values = raw(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
        values = np.where(np.abs(values - observed) < quantum, observed, values)
        return values.reshape(*shape, -1)

    return difference


def _counts(indices: np.ndarray, n_samples: int) -> np.ndarray:
    """Times each sample is in each multiset, float64 `(resample, sample)`, from indices `(resample, m)`."""
    rows = np.arange(len(indices))[:, None] * n_samples
    return (
        np.bincount((indices + rows).ravel(), minlength=len(indices) * n_samples).reshape(-1, n_samples).astype(float)
    )


# --- resampling -----------------------------------------------------------------------------------


def _batch(n: int) -> int:
    """Resamples at once: counts of 2n samples in about 32 MiB."""
    return max(1, 2_000_000 // n)


def _bootstrap(
    difference: Callable, n: int, confidence: float, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends of the interval of each metric and the method's name, each `(metric,)`."""
    from scipy import stats

    def statistic(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.moveaxis(difference(x, y), -1, 0)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate data: answered below by percentiles
        result = stats.bootstrap(
            (np.arange(n), n + np.arange(n)),
            statistic,
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=n_resamples,
            batch=_batch(n),
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng([seed, 0]),
        )
        tail = (1 - confidence) / 2
        # a resample of one problem only has no diversity: NaN, left out
        percentiles = np.nanquantile(result.bootstrap_distribution, [tail, 1 - tail], axis=-1)
    low, high = result.confidence_interval
    found = np.isfinite(low) & np.isfinite(high)
    low, high = (np.where(found, bca, pct) for bca, pct in zip((low, high), percentiles, strict=True))
    method = np.where(found, "BCa", np.where(np.isfinite(low) & np.isfinite(high), "percentile", "none"))
    return low, high, method


def _permutation(difference: Callable, n: int, n_resamples: int, seed: int) -> np.ndarray:
    """Two-sided p-value of each metric, `(metric,)`."""
    from scipy import stats

    def statistic(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return difference(x, y)

    result = stats.permutation_test(
        (np.arange(n), n + np.arange(n)),
        statistic,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=n_resamples,
        batch=_batch(n),
        rng=np.random.default_rng([seed, 1]),
    )
    return np.asarray(result.pvalue)
