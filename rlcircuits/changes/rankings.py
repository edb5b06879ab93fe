"""How far two rankings of the same items agree, and what chance would give.

With E items ranked 1 … E by each of two vectors x and y, and X_d the number of items among the first d of both:

1. **Jaccard** index of the two sets of the first k: X_k / (2k − X_k).
2. **Rank-biased overlap**, extrapolated (Webber, Moffat and Zobel 2010, eq. 32), of the first K of both lists:
   RBO = (1 − p)/p Σ_{d ≤ K} p^d X_d / d + p^K X_K / K.  Depth d weighs as p^d: what is beyond 1 / (1 − p) counts for little. An
   item adds to X_d from the larger of its two ranks on, so RBO = Σ_items w(max of the two ranks), with w(m) =
   (1 − p)/p Σ_{d = m … K} p^d / d + p^K / K.
3. **Pearson** and **Spearman** correlation, of the values with their signs and of their sizes.
4. **Random** orders: X_k is hypergeometric; RBO is a sum over a random permutation, whose mean and variance are known
   exactly (Hoeffding 1951) and which is taken to be normal; correlations have mean 0 and variance 1 / (E − 1).

Equal values come in the order of the items. Nothing here sorts more than the first K and `_RANKED` items, as E may be
millions and the vectors hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rlcircuits.errors import InputError

CORRELATIONS = ("Pearson", "Spearman", "Pearson of sizes", "Spearman of sizes")
#: items beyond which rank-biased overlap is extrapolated, and of how many a resample's rank correlation is taken
_LISTED, _RANKED = 2**16, 2**12


@dataclass(frozen=True, eq=False)
class Agreement:
    """What to measure of two vectors of E values.

    Args:
        n: E.
        shares: of the items, each keeping ⌊share · E⌋ of them, at least one.
        p: persistence of the rank-biased overlap; None for a mean depth 1 / (1 − p) of 1 % of the items, at least 10.
        rank: ``"absolute"``, by size, or ``"signed"``, the most positive first.
    """

    n: int
    shares: Sequence[float]
    p: float | None = None
    rank: str = "absolute"

    @cached_property
    def kept(self) -> list[int]:
        """k of each share."""
        from fractions import Fraction

        return [max(1, math.floor(Fraction(str(float(share))) * self.n)) for share in self.shares]

    @cached_property
    def persistence(self) -> float:
        """p."""
        return 1 - 1 / max(10.0, self.n / 100) if self.p is None else self.p

    @cached_property
    def depth(self) -> int:
        """K: all items of short lists, else five times the mean depth, or more."""
        return min(self.n, max(_LISTED, round(5 / (1 - self.persistence)))) if self.p is None else self.n

    @cached_property
    def weights(self) -> np.ndarray:
        """w ``(K,)`` by the larger of the two ranks."""
        p, d = self.persistence, np.arange(1, self.depth + 1)
        each = np.exp(d * math.log(p)) / d
        return (1 - p) / p * np.cumsum(each[::-1])[::-1] + p**self.depth / self.depth

    @property
    def names(self) -> list[str]:
        """What `of` gives, in order."""
        return [*(f"Jaccard {share:g}" for share in self.shares), "rank-biased overlap", *CORRELATIONS]

    @property
    def lowest(self) -> np.ndarray:
        """The least value that each can have; the largest is 1."""
        return np.array([0.0] * (len(self.shares) + 1) + [-1.0] * len(CORRELATIONS))

    @cached_property
    def _sample(self) -> np.ndarray:
        """The items of which a resample's rank correlation is taken: all, or a fixed draw."""
        if self.n <= _RANKED:
            return np.arange(self.n)
        return np.sort(np.random.default_rng(0).choice(self.n, _RANKED, replace=False))

    def ranked(self, values: np.ndarray, every: bool = False) -> Ranked:
        """A vector of E values made ready for comparisons.

        Args:
            every: rank all items for the rank correlation, not `_RANKED` of them.
        """
        sizes = np.abs(values)
        by = sizes if self.rank == "absolute" else values
        lists = sorted({self.depth, *(k for k in self.kept if k > self.depth)}, reverse=True)
        place = np.full(self.n, self.n, np.int32)
        listed = items = _candidates(by, lists[0])
        for k in lists:
            items = items[_largest(by[items], k)]
            place[items] = k - 1
            listed = items if k == lists[0] else listed
        place[_in_order(by, items)] = np.arange(self.depth, dtype=np.int32)
        chosen = slice(None) if every else self._sample
        ranks = [_centred(_ranks(one[chosen])) for one in (values, sizes)]
        return Ranked(listed, place, (_centred(values), ranks[0], _centred(sizes), ranks[1]))

    def of(self, x: Ranked, y: Ranked) -> np.ndarray:
        """Every quantity, in the order of `names`; NaN for a correlation with a vector of equal values."""
        larger = np.maximum(x.place[x.listed], y.place[x.listed])
        common = [int(np.count_nonzero(larger < k)) for k in self.kept]
        overlap = float(self.weights[larger[larger < self.depth]].sum())
        correlations = [
            float(np.clip((one @ other) / (length * size), -1.0, 1.0))
            for (one, length), (other, size) in zip(x.centred, y.centred)
        ]
        return np.array([*(c / (2 * k - c) for c, k in zip(common, self.kept)), overlap, *correlations])

    def random(self, confidence: float) -> np.ndarray:
        """Mean, low and high of every quantity for random orders, ``(quantity, 3)``."""
        tail = (1 - confidence) / 2
        rows = [_random_jaccard(self.n, k, tail) for k in self.kept]
        rows.append(_normal(*self._moments(), tail))
        rows += [_normal(0.0, 1 / math.sqrt(self.n - 1) if self.n > 1 else math.nan, tail)] * len(CORRELATIONS)
        found = np.array(rows)
        found[:, 1:] = np.clip(found[:, 1:], self.lowest[:, None], 1.0)
        return found

    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the rank-biased overlap over all orders: of Σ_i c(i, π(i)), c(i, j) =
        w(max(i, j)).
        """
        w, n, rank = self.weights, self.n, np.arange(1, self.depth + 1)
        rows = rank * w + np.append(np.cumsum(w[:0:-1])[::-1], 0.0)  # Σ_j c(i, j), 0 beyond K
        total = rows.sum()
        squares = ((2 * rank - 1) * w * w).sum() - 2 / n * (rows * rows).sum() + (total / n) ** 2
        return total / n, math.sqrt(max(0.0, squares) / (n - 1)) if n > 1 else 0.0


@dataclass(frozen=True, eq=False)
class Ranked:
    """A vector made ready.

    Attributes:
        listed: the items that are among the first of the longest list, in their order.
        place: ``(E,)``: of the first K items their places, 0 to K − 1; of the others the last place of the shortest list that they
            are in, E where they are in none.
        centred: values, their ranks, their sizes, the ranks of these; each less its mean, with its length.
    """

    listed: np.ndarray
    place: np.ndarray
    centred: tuple[tuple[np.ndarray, float], ...]


def expect_shares(shares: Any) -> list[float]:
    """The shares, rising.

    Raises:
        InputError: none, one out of range, or two alike.
    """
    found = list(shares) if isinstance(shares, (Sequence, np.ndarray)) and not isinstance(shares, str) else []
    numbers = all(isinstance(s, (int, float, np.number)) and not isinstance(s, bool) and 0 < s <= 1 for s in found)
    if not found or not numbers or len(set(found)) < len(found):
        raise InputError(
            f"shares are {shares!r}: expected different numbers above 0 and at most 1, such as (0.01, 0.1)"
        )
    return sorted(float(s) for s in found)


def _candidates(values: np.ndarray, k: int) -> np.ndarray:
    """Items, in their order, among which are the k of largest value; of long lists not many more."""
    n = len(values)
    if n > _LISTED and k < n:
        bound = np.quantile(values[:: max(1, n // 2**12)], max(0.0, 1 - 1.1 * k / n - 0.01))
        found = np.flatnonzero(values >= bound)
        if len(found) >= k:
            return found
    return np.arange(n)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Which are the k largest; of equal ones the first."""
    bound = np.partition(values, len(values) - k)[len(values) - k]
    inside = values >= bound
    if surplus := int(np.count_nonzero(inside)) - k:
        inside[np.flatnonzero(values == bound)[-surplus:]] = False
    return inside


def _in_order(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Items, given in their order, by falling value; equal ones as they were."""
    if values.dtype != np.float32:
        return items[np.argsort(-values[items], kind="stable")]
    bits = (values[items] + np.float32(0)).view(np.uint32)  # sorted as whole numbers that hold value and item
    falling = np.where(bits >> np.uint32(31), bits, ~(bits | np.uint32(0x80000000)))
    keys = falling.astype(np.uint64) << np.uint64(32) | items.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing the mean of theirs."""
    from scipy.stats import rankdata

    return rankdata(values)


def _centred(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Less the mean, and the length of that; NaN where all values are equal."""
    mean = values.mean()
    centred = values - mean
    with np.errstate(over="ignore"):
        length = math.sqrt(float(centred @ centred))
    typical = length / math.sqrt(len(values))
    if 1e-15 < typical < 1e15 and typical > 1e-3 * abs(mean):  # else rounding may be all there is, or squares 0 or ∞
        return centred, length
    if values.min() == values.max():
        return centred, math.nan
    centred = values - values.mean(dtype=float).astype(values.dtype)
    centred /= np.abs(centred).max()
    return centred, math.sqrt(float(centred @ centred))


def _random_jaccard(n: int, k: int, tail: float) -> tuple[float, float, float]:
    from scipy.stats import hypergeom

    mean, spread = k * k / n, math.sqrt(k * k / n * (1 - k / n) ** 2 * n / max(1, n - 1))
    low = max(0, 2 * k - n, math.floor(mean - 12 * spread - 12))
    x = np.arange(low, min(k, math.ceil(mean + 12 * spread + 12)) + 1)
    chance = hypergeom.pmf(x, n, k, k)
    jaccard = x / (2 * k - x)
    below = np.cumsum(chance) / chance.sum()
    low_at, high_at = (min(int(np.searchsorted(below, q)), len(x) - 1) for q in (tail, 1 - tail))
    return float(chance @ jaccard / chance.sum()), float(jaccard[low_at]), float(jaccard[high_at])


def _normal(mean: float, spread: float, tail: float) -> tuple[float, float, float]:
    from scipy.stats import norm

    half = -float(norm.ppf(tail)) * spread
    return mean, mean - half, mean + half
