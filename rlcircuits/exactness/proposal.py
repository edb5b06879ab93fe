"""How large a cell's exact effect is likely to be, learned from those that were run.

1. ln|effect| is regressed on ln|score| of every score, their squares and products, and on what both ends of the edge
   are and how deep they lie. Scores are those given and, from `exact_metrics`, two in which norms are exact
   (`rlcircuits.attribution.norms`): what removes most of a stream is just what first order misses.
2. Source, destination, sample and the edge itself (which other samples share) have an effect of their own each, drawn
   towards 0: a Gaussian process whose kernel is the linear one of 1 plus one constant for each of those that two cells
       have in common. The
   variances are those of highest marginal likelihood.
3. The size to draw by is √E[effect²] = exp(mean + variance) of the predicted ln|effect|, mixed with a **defensive
   share** of uniform sizes, so that no cell's weight can exceed N / (n · share).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: values below this share of their mean size count as that large: what is small needs no telling apart
FLOOR = 1e-3
#: runs beyond which the variances are fitted to an even selection only
FITTED = 400


def logarithm(values: np.ndarray, mean: float | None = None) -> np.ndarray:
    """ln of the size of values, bounded below by `FLOOR` times their mean (or the mean given)."""
    sizes = np.abs(values)
    mean = float(sizes.mean()) if mean is None else mean
    floor = FLOOR * mean if mean > 0 else 1.0
    return np.log(np.maximum(sizes, floor))


def features(scores: Sequence[np.ndarray], nodes: np.ndarray) -> np.ndarray:
    """Columns of 1. for every cell, standardised ``(cell, feature)``, a constant first.

    Args:
        scores: each ``(cell,)``.
        nodes: ``(cell, k)``, numbers that describe the ends of each cell's edge.
    """
    logs = [logarithm(score) for score in scores]
    columns = [*logs, *(a * b for i, a in enumerate(_standard(logs)) for b in _standard(logs)[: i + 1])]
    columns += list(nodes.T) + list((nodes**2).T) + [nodes[:, 0] * nodes[:, 1]]
    kept = [column for column in _standard(columns) if column.any()]
    return np.stack([np.ones(len(nodes)), *kept], axis=1)


def _standard(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    spreads = [column.std() for column in columns]
    return [(c - c.mean()) / s if s > 1e-12 else np.zeros_like(c) for c, s in zip(columns, spreads)]


class Regression:
    """The regression of 1 and 2, fitted to the cells that were run.

    Args:
        design: features ``(run, feature)``.
        groups: ``(run, group)``, whole numbers; equal ones in a column share an effect.
        values: exact effects ``(run,)``.
    """

    def __init__(self, design: np.ndarray, groups: np.ndarray, values: np.ndarray) -> None:
        from scipy.linalg import cho_factor, cho_solve

        self.design, self.groups = design, groups
        logs = logarithm(values)
        self.centre = float(logs.mean())
        target = logs - self.centre
        self.variances = self._fit(target)
        kernel = self._kernel(design, groups) + self.variances[-1] * np.eye(len(design))
        self._factor = cho_factor(kernel, lower=True)
        self._solved = cho_solve(self._factor, target)

    def _kernel(self, design: np.ndarray, groups: np.ndarray, variances: np.ndarray | None = None) -> np.ndarray:
        """Covariance ``(cell, run)`` of the predictions of cells with those of the runs."""
        variances = self.variances if variances is None else variances
        kernel = variances[0] * (design @ self.design.T)
        for column, variance in enumerate(variances[1:-1]):
            kernel += variance * (groups[:, column, None] == self.groups[:, column])
        return kernel

    def _fit(self, target: np.ndarray) -> np.ndarray:
        """Variances of the linear part, of each group and of the rest, by the highest marginal likelihood."""
        from scipy.optimize import minimize

        some = np.unique(np.linspace(0, len(target) - 1, min(FITTED, len(target))).astype(int))
        design, groups, target = self.design[some], self.groups[some], target[some]
        parts = [design @ design.T / design.shape[1]]
        parts += [(g[:, None] == g).astype(float) for g in groups.T]
        parts.append(np.eye(len(some)))
        spread = max(float(target.var()), 1e-6)

        def cost(logs: np.ndarray) -> tuple[float, np.ndarray]:
            variances = np.exp(logs)
            kernel = sum(v * part for v, part in zip(variances, parts))
            inverse = np.linalg.inv(kernel)
            solved = inverse @ target
            value = 0.5 * (np.linalg.slogdet(kernel)[1] + target @ solved)
            slopes = [0.5 * v * ((inverse * p).sum() - solved @ p @ solved) for v, p in zip(variances, parts)]
            return value, np.array(slopes)

        start = np.log(spread * np.array([1.0, *([0.1] * groups.shape[1]), 0.3]))
        bounds = [(np.log(spread * 1e-4), np.log(spread * 10))] * len(start)
        best = minimize(cost, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 60}).x
        variances = np.exp(best)
        variances[0] /= design.shape[1]
        return variances

    def predict(self, design: np.ndarray, groups: np.ndarray, at_once: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of ln|effect| of other cells, each ``(cell,)``."""
        from scipy.linalg import solve_triangular

        mean, variance = np.empty(len(design)), np.empty(len(design))
        for begin in range(0, len(design), at_once):
            rows = slice(begin, begin + at_once)
            kernel = self._kernel(design[rows], groups[rows])
            mean[rows] = self.centre + kernel @ self._solved
            explained = solve_triangular(self._factor[0], kernel.T, lower=True)
            prior = self.variances[0] * (design[rows] ** 2).sum(1) + self.variances[1:-1].sum()
            variance[rows] = prior - (explained**2).sum(0) + self.variances[-1]
        return mean, np.maximum(variance, 0)


def sizes(mean: np.ndarray, variance: np.ndarray, defensive: float) -> np.ndarray:
    """Sizes to draw by ``(cell,)``, of mean 1."""
    logs = mean + np.minimum(variance, 4.0)
    expected = np.exp(logs - logs.max())
    return (1 - defensive) * expected / expected.mean() + defensive
