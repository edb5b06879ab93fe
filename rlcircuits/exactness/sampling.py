"""Drawing a few of many cells with known probabilities, and what is known of all of them from those.

A cell is one edge of one sample; running it gives its value y. The population is every cell, N of them.

1. **Probabilities**: given sizes x > 0, a draw of n cells takes each with π = min(1, c · x), c such that Σ π = n.
2. **Draw without replacement**: cells in random order (sample by sample) are laid end to end, each π long; those are
   taken in which a point of the grid u, u + 1, u + 2, … falls, u uniform in [0, 1). That is systematic sampling in
   random order (Goodman and Kish 1950, Hartley and Rao 1962): each cell is in with exactly its π, and exactly n are
   taken.
3. **Stages**: what was run before is known; a stage draws from the rest, with sizes that may depend on all that is
   known. Σ y over the known plus Σ y/π over the last stage is an unbiased estimate of the total over all N, given all
   before (Horvitz and Thompson 1952), so it is unbiased, however the sizes were found. The first cells, the **pilot**,
   may be chosen in any way.
4. So every cell that was run has a **weight**, 1 or, in the last stage, 1/π; its expectation is 1 for every cell of the
   population, and with all N run all weights are 1. (Averaging the stages' estimates would be unbiased too, but the
   last knows the largest cells: on the populations tried the average's error was two to three times as large.)
5. **Variance**, of the last stage with m cells of π < 1 (Hájek 1964):  V = m/(m−1) Σ (1 − π)(y/π − B)²,  B the mean of
   y/π weighted by 1 − π. If y is in proportion to x, it is 0. V is itself uncertain, the more so the fewer cells rule
   it: with κ the kurtosis of the deviations it has 2m/(κ − 1) degrees of freedom (m − 1 and less for normal ones),
       which intervals take Student's t of.
6. **Bootstrap**: weights are multiplied by 1 + √(1 − π) ξ, ξ of mean 0 and variance 1, centred as B is, so that totals
   vary with 5's variance (a generalised bootstrap, Beaumont and Patak 2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


def inclusion_probabilities(sizes: np.ndarray, n: int) -> np.ndarray:
    """π = min(1, c · size) with Σ π = n.

    Args:
        sizes: ``(cell,)``, all above 0.
        n: from 0 to the number of cells.

    >>> inclusion_probabilities(np.array([1.0, 1.0, 2.0, 16.0]), 2).tolist()
    [0.25, 0.25, 0.5, 1.0]
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    if n >= len(sizes):
        return np.ones(len(sizes))
    falling = np.sort(sizes)[::-1]
    rest = np.cumsum(falling[::-1])[::-1]  # sum of a size and all smaller ones
    taken = np.arange(n)  # so many are taken for certain
    factor = (n - taken) / rest[:n]
    fits = factor * falling[:n] <= 1
    if not fits.any():
        return (sizes >= falling[n - 1]).astype(float) if n else np.zeros(len(sizes))
    return np.minimum(1.0, factor[np.argmax(fits)] * sizes)


def systematic(probabilities: np.ndarray, rng: np.random.Generator, strata: np.ndarray | None = None) -> np.ndarray:
    """Places of the cells drawn, rising; cell i is among them with exactly ``probabilities[i]``.

    Args:
        probabilities: ``(cell,)``, of a whole sum n; n cells are drawn.
        strata: ``(cell,)``; of each stratum the number drawn is its sum of probabilities, rounded down or up.
    """
    certain = np.flatnonzero(probabilities >= 1)
    rest = np.flatnonzero(probabilities < 1)
    order = rng.random(len(rest))
    rest = rest[np.argsort(order) if strata is None else np.lexsort((order, strata[rest]))]
    ends = np.cumsum(probabilities[rest])
    if not len(rest) or round(ends[-1]) == 0:
        return certain
    ends *= round(ends[-1]) / ends[-1]  # whole but for rounding
    ends[-1] = round(ends[-1])
    passed = np.floor(ends - rng.random())  # grid points up to each end, less one
    drawn = np.diff(passed, prepend=-1.0) > 0
    return np.sort(np.concatenate([certain, rest[drawn]]))


@dataclass
class Draws:
    """What was drawn from a population, stage by stage, and the weights that follow.

    Attributes:
        population: N, how many cells there are.
        cells: ``(run,)``, places of the cells that were run, in the order of the stages; no cell twice.
        probabilities: ``(run,)``, with which each was drawn from what was left then; NaN in the pilot.
        stages: ``(run,)``, which stage drew it; 0 is the pilot.
    """

    population: int
    cells: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    probabilities: np.ndarray = field(default_factory=lambda: np.empty(0))
    stages: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rest(self) -> np.ndarray:
        """Places of the cells that were not run, rising."""
        left = np.ones(self.population, bool)
        left[self.cells] = False
        return np.flatnonzero(left)

    def pilot(self, cells: np.ndarray) -> None:
        """Take these cells as known, whatever they were chosen by."""
        self._add(cells, np.full(len(cells), np.nan), 0)

    def draw(self, sizes: np.ndarray, n: int, rng: np.random.Generator, strata: np.ndarray | None = None) -> np.ndarray:
        """A stage of n cells from the rest, by `sizes` ``(rest,)``; `strata` ``(cell,)`` are of the whole
        population.
        """
        rest = self.rest
        probabilities = inclusion_probabilities(sizes, n)
        drawn = systematic(probabilities, rng, None if strata is None else strata[rest])
        self._add(rest[drawn], probabilities[drawn], 1 + int(self.stages.max(initial=0)))
        return rest[drawn]

    def _add(self, cells: np.ndarray, probabilities: np.ndarray, stage: int) -> None:
        self.cells = np.concatenate([self.cells, cells])
        self.probabilities = np.concatenate([self.probabilities, probabilities])
        self.stages = np.concatenate([self.stages, np.full(len(cells), stage)])

    @property
    def last(self) -> np.ndarray:
        """Whether each run ``(run,)`` is of the last stage, the one that stands for the rest."""
        return (self.stages == self.stages.max(initial=0)) & (self.stages > 0)

    def weights(self) -> np.ndarray:
        """What each run stands for ``(run,)``: 1, or 1/π in the last stage."""
        return np.where(self.last, 1 / np.where(self.last, self.probabilities, 1), 1.0)

    def _open(self) -> np.ndarray:
        """Places among the runs of those that were drawn with π < 1 in the last stage."""
        return np.flatnonzero(self.last & (self.probabilities < 1))

    def variance(self, values: np.ndarray) -> tuple[float, float]:
        """Of Σ weight · value for values ``(run,)``, and its degrees of freedom (both NaN where it cannot be known)."""
        at = self._open()
        if not len(at) and len(self.cells) == self.population:
            return 0.0, math.inf
        if len(at) < 2:
            return math.nan, math.nan
        spread = 1 - self.probabilities[at]
        parts = values[at] / self.probabilities[at]
        each = spread * (parts - (spread * parts).sum() / spread.sum()) ** 2
        total = float(each.sum())
        if not total:
            return 0.0, math.inf
        m = len(at)
        kurtosis = m * float((each**2).sum()) / total**2
        return m / (m - 1) * total, 2 * m / (kurtosis - 1) if kurtosis > 1 else math.inf

    def resampled(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Bootstrap weights ``(n, run)``: those of the last stage varied as its draw varies."""
        weights = np.tile(self.weights(), (n, 1))
        at = self._open()
        if len(at) > 1:
            spread = 1 - self.probabilities[at]
            noise = np.sqrt(spread) * (rng.exponential(size=(n, len(at))) - 1)
            noise -= spread * (noise.sum(1, keepdims=True) / spread.sum())
            weights[:, at] *= np.maximum(1 + np.sqrt(len(at) / (len(at) - 1)) * noise, 0)
        return weights
