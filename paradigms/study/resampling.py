"""Which problems each resample and each swap of the controlled study takes: the same for all who ask with the same
numbers.

1. **Resamples**: each of n problems as often as n draws with replacement take it.
2. **Swaps**: base and tuned change places in each problem with probability one half, independently in every seed of the
   family.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RESAMPLES, SWAPS = 1000, 9999


@lru_cache(maxsize=64)
def problem_counts(n: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of `n` problems is in each resample, float64 ``(resample, problem)``; the same for the same n."""
    rng = np.random.default_rng([n, 0])
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    counts.setflags(write=False)
    return counts


@lru_cache(maxsize=64)
def swap_signs(n: int, seed: int, swaps: int = SWAPS) -> np.ndarray:
    """−1 where a problem's base and tuned are swapped, else 1, int8 ``(swap, problem)``; independent between seeds."""
    signs = 2 * np.random.default_rng([n, seed, 1]).integers(0, 2, size=(swaps, n), dtype=np.int8) - 1
    signs.setflags(write=False)
    return signs
