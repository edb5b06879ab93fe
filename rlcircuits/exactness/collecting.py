"""Which cells to run, stage by stage, until the budget is spent or the estimate is narrow enough.

1. A **pilot**: the cells of the largest scores, one half; the other half evenly over the range of the first score, so
   that the regression sees small and large ones. Nothing is estimated from how it was chosen
   (`rlcircuits.exactness.sampling`).
2. Stages that double: each draws from the rest by the sizes that a regression on all that was run predicts
   (`rlcircuits.exactness.proposal`).
3. The stages do not depend on the budget, which only sets how long the last one is: a larger budget runs the same cells
   first. The last one is about half of all runs and alone stands for the rest (`rlcircuits.exactness.sampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rlcircuits.exactness.proposal import Regression, features, sizes
from rlcircuits.exactness.sampling import Draws

#: runs of the pilot and of the first stage, what each stage is of the one before, and the share of uniform sizes
PILOT, FIRST, GROWTH = 40, 40, 2
DEFENSIVE = 0.2


@dataclass(frozen=True)
class Population:
    """All cells, and what is known of them before any was run.

    Args:
        scores: scores of each cell, one array ``(cell,)`` or more; the first decides the evenly spread half of the pilot.
        nodes: numbers that describe both ends of the cell's edge ``(cell, k)``; the first two are how deep they lie.
        groups: ``(cell, 4)``, sample, edge, source and destination, numbered.
    """

    scores: tuple[np.ndarray, ...]
    nodes: np.ndarray
    groups: np.ndarray

    @property
    def samples(self) -> np.ndarray:
        """The sample of each cell ``(cell,)``."""
        return self.groups[:, 0]

    def __len__(self) -> int:
        return len(self.groups)


def stages(population: int, budget: int) -> Iterator[int]:
    """Sizes of pilot and stages, adding up to `budget`; a budget too small to learn from has no pilot.

    >>> list(stages(10_000, 500)), list(stages(10_000, 70)), list(stages(300, 300))
    ([40, 40, 80, 160, 180], [0, 70], [0, 300])
    """
    spent = PILOT if budget >= 2 * PILOT and budget < population else 0
    yield spent
    size = FIRST if spent else budget
    while spent < budget:
        now = min(size, budget - spent)
        if budget - spent - now < now:  # too few for a last stage
            now = budget - spent
        yield now
        spent, size = spent + now, GROWTH * size


def collect(
    population: Population,
    run: Callable[[np.ndarray], np.ndarray],
    budget: int,
    enough: Callable[[Draws, np.ndarray], bool],
    seed: int,
    defensive: float = DEFENSIVE,
) -> tuple[Draws, np.ndarray]:
    """Draw and run cells.

    Args:
        run: exact effects ``(cells,)`` of the places given ``(cells,)``.
        budget: how many to run at most.
        enough: whether to stop after a stage, from what was drawn and the values in its order.
        seed: the same one draws the same cells.
        defensive: share of uniform sizes.
    """
    rng = np.random.default_rng(seed)
    draws = Draws(len(population))
    values = np.empty(0)
    design = features(population.scores, population.nodes)
    for number, n in enumerate(stages(len(population), budget)):
        if not number:
            new = pilot(population, n, rng)
            draws.pilot(new)
        else:
            rest = draws.rest
            if len(values):
                known = draws.cells
                regression = Regression(design[known], population.groups[known], values)
                wanted = sizes(*regression.predict(design[rest], population.groups[rest]), defensive)
            else:
                size = np.abs(population.scores[0][rest])
                wanted = size / size.mean() + 1 if size.any() else np.ones(len(rest))
            new = draws.draw(wanted, n, rng, population.samples)
        values = np.concatenate([values, run(new)])
        if number and enough(draws, values):
            break
    return draws, values


def pilot(population: Population, n: int, rng: np.random.Generator) -> np.ndarray:
    """Places of the cells to begin with, see 1."""
    order = np.lexsort((rng.random(len(population)), -np.abs(population.scores[0])))
    top = [order[:0]]
    for score in population.scores:
        top.append(np.argsort(-np.abs(score), kind="stable")[: n // (2 * len(population.scores))])
    chosen = np.unique(np.concatenate(top))
    rest = order[~np.isin(order, chosen)]
    places = (np.arange(n - len(chosen)) + rng.random(n - len(chosen))) * len(rest) / max(1, n - len(chosen))
    return np.concatenate([chosen, rest[places.astype(int)]])
