"""Nulls: comparisons in which no paradigm is at work, to see how far metrics move anyway.

1. **another base**: the base of one seed against the base of the next.
2. **sft-more**: as many further supervised steps; a member of the family.
3. **two seeds**: a paradigm's model of one seed against its model of the next.
4. **weight noise**: the base with Gaussian noise, in each tensor of exactly the norm of the paradigm's own update
   ‖W_tuned − W_base‖ there; several draws.
5. The **spread** of a null is the root mean square of its effects over seeds and draws: its typical size, whichever its
   sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from torch import nn

ANOTHER_BASE = "null: another base"
TWO_SEEDS = "null: two seeds of "
NOISE = "null: weight noise like "
CONTROL = "sft-more"


def add_noise(base: nn.Module, tuned: nn.Module, draw: int) -> None:
    """Add Gaussian noise to `base` in place, in each parameter of the norm ‖W_tuned − W_base‖; `draw` seeds it.

    Raises:
        InputError: the models' parameters differ in name or shape.
    """
    import torch

    after = dict(tuned.named_parameters())
    before = dict(base.named_parameters())
    if {n: p.shape for n, p in before.items()} != {n: p.shape for n, p in after.items()}:
        raise InputError("weight noise needs two models of the same parameters: give a base and what was tuned from it")
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for name, weight in before.items():
            size = (after[name].double() - weight.double()).norm()
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_((noise * (size / noise.norm())).to(weight.dtype))


def neighbours(seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Each seed with the next, the last with the first; one pair of two seeds, none of a single one.

    >>> neighbours([0, 1, 2])
    [(0, 1), (1, 2), (2, 0)]
    """
    if len(seeds) < 3:
        return [tuple(seeds)] if len(seeds) == 2 else []
    return [(seed, seeds[(i + 1) % len(seeds)]) for i, seed in enumerate(seeds)]


def spread(effects: Sequence[float] | np.ndarray) -> float:
    """Root mean square of the effects that are defined; NaN when none is."""
    values = np.asarray(effects, dtype=float)
    values = values[np.isfinite(values)]
    return float(np.sqrt((values**2).mean())) if len(values) else float("nan")
