"""Effects over seeds and problems: how far a metric moves, with an interval, p-values and a correction for many cells.

A **cell** is one paradigm at one α, level and choice of tokens. In each seed s it holds n_s problems, each scored by up
to four combinations of model and answers, the **corners**: base and tuned on own answers (``bb``, ``tt``), each on the
other's (``bt``: the
base on tuned answers, ``tb``: tuned on the base's).

1. **Statistic**: T_k(s), the metric of corner k; D(s) = Σ_k c_k T_k(s) for a `CONTRASTS` vector c, or Σ_k c_k ln
   T_k(s), the log ratio, for metrics above 0. The effect is the mean of D(s) over seeds.
2. **Two levels vary**: seeds, and problems within a seed. s² is the variance of D over seeds, which holds the problems'
   part already; w is the mean over seeds of the variance of D when problems are drawn with replacement, the same ones
   at every corner (`paradigms.study.resampling`). s² falls below w by chance only, as it may with few seeds.
3. **Interval**: effect ± t(S−1) · √(max(s², w)/S). It is symmetric on purpose: a bootstrap's quantiles would put the
   longer side where the data lie instead of where the truth may lie, and where most differences are exactly 0 they
   would leave 0 out for a single problem that changed. One seed: the bootstrap over problems, laid off from the effect;
   it is about these trained models only.
4. **p** swaps base and tuned within problems at random, in every seed: for models that agree in distribution, D has
   mean 0. It says whether *these* models differ. **p_seed** swaps whole seeds, all 2^S ways, and says whether models of
   *another* seed would; its smallest value is 2^(1−S).
5. `holm` (of `rlcircuits.metrics.inference`) corrects p over the cells of a base, level and choice of tokens.

Metrics of the whole set of samples (`POOLED`) are resampled where their scores are at hand, with the same resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from paradigms.study.resampling import SWAPS, problem_counts, swap_signs
from rlcircuits.errors import InputError, choose

CORNERS = ("bb", "tt", "tb", "bt")
"""Model (base, tuned), then whose answers."""

CONTRASTS: Mapping[str, Mapping[str, float]] = {
    "own": {"tt": 1, "bb": -1},
    "base's": {"tb": 1, "bb": -1},
    "tuned's": {"tt": 1, "bt": -1},
    "other circuit": {"tb": 0.5, "bb": -0.5, "tt": 0.5, "bt": -0.5},
    "other tokens": {"bt": 0.5, "bb": -0.5, "tt": 0.5, "tb": -0.5},
}
"""Effects by whose tokens are scored. ``own`` = ``other circuit`` + ``other tokens``, exactly (the two orders of
changing one after the other, averaged).
"""

POOLED = ("information_complexity", "inter_sample_diversity")
EQUAL_LOSS = "intensity_at_equal_loss"


@dataclass(frozen=True, eq=False)
class SeedCell:
    """One seed's share of a cell.

    Attributes:
        metrics: names; first those of `sampled`, then those of `pooled`.
        corners: of `CORNERS`, those measured.
        sampled: per-sample values ``(corner, sample, metric)``.
        pooled: values of whole sets ``(corner, metric)``.
        pooled_boot: of the resamples of `problem_counts`, ``(corner, metric, resample)``.
        pooled_swap: differences tuned − base on own tokens under `swap_signs`, ``(metric, swap)``, or None.
        seed: of the family.
    """

    metrics: tuple[str, ...]
    corners: tuple[str, ...]
    sampled: np.ndarray
    pooled: np.ndarray
    pooled_boot: np.ndarray
    pooled_swap: np.ndarray | None
    seed: int

    @property
    def n(self) -> int:
        """Number of problems."""
        return self.sampled.shape[1]

    def observed(self) -> np.ndarray:
        """T, ``(corner, metric)``."""
        return np.concatenate([self.sampled.mean(axis=1), self.pooled], axis=1)

    def boot(self) -> np.ndarray:
        """T of every problem resample, ``(corner, metric, resample)``."""
        means = problem_counts(self.n, self.pooled_boot.shape[-1]) @ self.sampled / self.n  # (corner, resample, metric)
        return np.concatenate([means.swapaxes(1, 2), self.pooled_boot], axis=1)

    def swapped(self, contrast: str, swaps: int = SWAPS) -> np.ndarray:
        """D under swaps within problems ``(metric, swap)``; NaN where it was not measured."""
        weights = contrast_weights(contrast, self.corners)
        difference = np.tensordot(weights, self.sampled, axes=1)  # (sample, metric)
        found = (swap_signs(self.n, self.seed, swaps).astype(np.float64) @ difference / self.n).T
        pooled = np.full((self.pooled.shape[1], swaps), np.nan)
        if contrast == "own" and self.pooled_swap is not None:
            pooled[:] = self.pooled_swap[:, :swaps]
        return np.concatenate([found, pooled])


def contrast_weights(contrast: str, corners: Sequence[str]) -> np.ndarray:
    """The weights of a contrast in the order of `corners`, ``(corner,)``.

    Raises:
        InputError: an unknown contrast, or one that needs a corner that is not there.
    """
    weights = CONTRASTS[choose("contrast", contrast, CONTRASTS)]
    missing = [corner for corner in weights if corner not in corners]
    if missing:
        raise InputError(
            f"contrast {contrast!r} needs the corner {missing[0]!r}, but only {', '.join(corners)} were measured"
        )
    return np.array([weights.get(corner, 0.0) for corner in corners])


def logarithms(values: np.ndarray) -> np.ndarray:
    """ln of what is above 0, NaN elsewhere."""
    return np.log(values, out=np.full(values.shape, np.nan), where=values > 0)


def hierarchical_interval(
    observed: np.ndarray, boot: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and its interval (steps 2 and 3).

    Args:
        observed: D ``(seed, quantity)``.
        boot: D of problem resamples, ``(seed, quantity, resample)``.
        confidence: coverage.

    Returns:
        effect, low, high, each ``(quantity,)``; NaN where D of any seed, or of more than half of its resamples, is NaN.
    """
    from scipy import stats

    n_seeds = len(observed)
    effect = observed.mean(axis=0)
    boot = np.where(np.isfinite(boot), boot, np.nan)
    usable = np.isfinite(effect) & (np.isfinite(boot).mean(axis=2) >= 0.5).all(axis=0)
    kept = np.where(usable[None, :, None], boot, 0.0)
    if n_seeds == 1:
        ends = np.nanquantile(kept[0], [(1 - confidence) / 2, (1 + confidence) / 2], axis=1) - np.nanmean(
            kept[0], axis=1
        )
    else:
        variance = np.maximum(observed.var(axis=0, ddof=1), np.nanvar(kept, axis=2).mean(axis=0))
        half = stats.t.ppf((1 + confidence) / 2, n_seeds - 1) * np.sqrt(variance / n_seeds)
        ends = np.stack([-half, half])
    low, high = np.where(usable, effect + ends, np.nan)
    return effect, low, high


def permutation_p(observed: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Two-sided p ``(quantity,)`` of D ``(seed, quantity)`` against swaps ``(seed, quantity, swap)`` (step 4).

    The observed order counts as one swap, so p is never 0. NaN where anything is.
    """
    effect = observed.mean(axis=0)
    null = swapped.mean(axis=0)
    reach = np.abs(effect) * (1 - 1e-9)
    as_far = (np.abs(null) >= reach[:, None]).sum(axis=1)
    p = (1 + as_far) / (1 + null.shape[1])
    return np.where(np.isfinite(effect) & np.isfinite(null).all(axis=1), p, np.nan)


def seed_p(observed: np.ndarray) -> np.ndarray:
    """Two-sided p ``(quantity,)`` of D ``(seed, quantity)`` when whole seeds are swapped, all 2^S ways (step 4).

    With more than 14 seeds, 9,999 random ones.
    """
    n = len(observed)
    if n <= 14:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
        extra = 0
    else:
        signs = np.random.default_rng([n, 2]).choice([1.0, -1.0], size=(9999, n))
        extra = 1
    null = np.abs(signs @ observed / n)
    reach = np.abs(observed.mean(axis=0)) * (1 - 1e-9)
    p = (extra + (null >= reach).sum(axis=0)) / (extra + len(signs))
    return np.where(np.isfinite(observed).all(axis=0), p, np.nan)


def equal_loss(
    ln_intensity: np.ndarray,
    ln_loss: np.ndarray,
    after_intensity: np.ndarray,
    after_loss: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """ln intensity beyond what the loss explains, ``(resample,)``, for problem resamples `counts`
    ``(resample, sample)``.

    Within the base, ln I = a + b ln L over problems by least squares; the value is the mean of ln I − (a + b ln L) over
    the same problems of the other model (all arguments per sample ``(sample,)``). NaN where all of a resample's losses
    are equal.
    """
    total = counts.sum(axis=1)
    x, y, xx, xy, x2, y2 = (
        counts @ v / total
        for v in (ln_loss, ln_intensity, ln_loss**2, ln_loss * ln_intensity, after_loss, after_intensity)
    )
    spread = xx - x**2
    slope = np.divide(xy - x * y, spread, out=np.full(len(total), np.nan), where=spread > 1e-15)
    return y2 - y - slope * (x2 - x)


def contrast_of(cells: Sequence[SeedCell], contrast: str, logarithm: bool) -> tuple[np.ndarray, np.ndarray]:
    """D ``(cell, metric)`` and D of the resamples ``(cell, metric, resample)`` of one contrast, or of its
    logarithms.
    """
    observed, boot = [], []
    for cell in cells:
        weights = contrast_weights(contrast, cell.corners)
        used = weights != 0
        values, resampled = cell.observed()[used], cell.boot()[used]
        if logarithm:
            values, resampled = logarithms(values), logarithms(resampled)
        observed.append(np.tensordot(weights[used], values, axes=1))
        boot.append(np.tensordot(weights[used], resampled, axes=1))
    return np.stack(observed), np.stack(boot)


def equal_loss_of(cells: Sequence[SeedCell], model_corner: str = "tt") -> tuple[np.ndarray, np.ndarray]:
    """`EQUAL_LOSS` as D ``(cell, 1)`` and ``(cell, 1, resample)``; a log ratio."""
    observed, boot = [], []
    for cell in cells:
        at = {name: cell.metrics.index(name) for name in ("activation_intensity", "loss")}
        before, after = (logarithms(cell.sampled[cell.corners.index(corner)]) for corner in ("bb", model_corner))
        columns = [values[:, at[name]] for values in (before, after) for name in at]
        usable = np.isfinite(columns).all(axis=0)
        resamples = cell.pooled_boot.shape[-1]
        if usable.sum() < 3:
            observed.append([np.nan])
            boot.append(np.full((1, resamples), np.nan))
            continue
        columns = [column[usable] for column in columns]
        counts = problem_counts(int(usable.sum()), resamples)
        observed.append(equal_loss(*columns, np.ones((1, usable.sum()))))
        boot.append(equal_loss(*columns, counts)[None])
    return np.stack(observed), np.stack(boot)


def by_seed(values: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Means over the rows of `values` that are of the same seed (several draws of a null), ``(seed, …)``."""
    distinct = list(dict.fromkeys(seeds))
    return np.stack([values[[s == one for s in seeds]].mean(axis=0) for one in distinct])


def cell_effects(cells: Sequence[SeedCell], contrast: str, tests: bool = True) -> dict[str, np.ndarray]:
    """All columns of one cell and contrast, arrays ``(metric,)``, over the seeds given; draws of one seed are averaged.

    `EQUAL_LOSS` comes last for own tokens; it is a log ratio in ``effect``, too.

    Returns:
        ``metric``; ``before``, ``after``: the two sides' means over seeds, the sides being the sums of the contrast's
        negative and positive corners; ``effect``, ``low``, ``high``; ``log_ratio``, ``log_low``, ``log_high`` (NaN for
        metrics not above 0); ``p``, ``p_seed``; ``n_seeds``, ``n_problems`` (mean over seeds).
    """
    seeds = [cell.seed for cell in cells]
    metrics = list(cells[0].metrics)
    weights = contrast_weights(contrast, cells[0].corners)
    values = np.stack([cell.observed() for cell in cells]).mean(axis=0)
    before, after = (np.tensordot(np.clip(sign * weights, 0, None), values, axes=1) for sign in (-1, 1))
    plain, logs = (list(contrast_of(cells, contrast, logarithm=which)) for which in (False, True))
    p = np.full(len(metrics), np.nan)
    if tests:
        p = permutation_p(plain[0], np.stack([cell.swapped(contrast) for cell in cells]))
    if contrast == "own":
        metrics.append(EQUAL_LOSS)
        extra = equal_loss_of(cells)
        for pair in (plain, logs):
            pair[:] = [np.concatenate([old, new], axis=1) for old, new in zip(pair, extra)]
        before, after, p = (np.append(column, np.nan) for column in (before, after, p))
    (observed, boot), (log_observed, log_boot) = ([by_seed(part, seeds) for part in pair] for pair in (plain, logs))
    effect, low, high = hierarchical_interval(observed, boot)
    log_ratio, log_low, log_high = hierarchical_interval(log_observed, log_boot)
    return {
        "metric": np.array(metrics, dtype=object),
        "before": before,
        "after": after,
        "effect": effect,
        "low": low,
        "high": high,
        "log_ratio": log_ratio,
        "log_low": log_low,
        "log_high": log_high,
        "p": p,
        "p_seed": seed_p(observed),
        "n_seeds": np.full(len(effect), len(observed)),
        "n_problems": np.full(len(effect), float(np.mean([cell.n for cell in cells]))),
    }
