"""Weighted metrics: of a population where every run occurs as often as its weight says, they are the metrics
themselves.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import rlcircuits as rc
from rlcircuits.exactness import estimates


def _scores(values: np.ndarray) -> xr.DataArray:
    """Values ``(sample, edge)`` as scores of a graph with one source."""
    n, edges = values.shape
    coords = {
        "sample": [f"p{i}" for i in range(n)],
        "source": ["input"],
        "destination": [f"d{i}" for i in range(edges)],
    }
    return xr.DataArray(values[:, None, :], coords, dims=("sample", "source", "destination"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", list(estimates.PLUGINS))
def test_whole_weights_are_occurrences(name, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, size=23)
    weights = rng.integers(1, 9, size=23)
    population = np.repeat(values, weights)
    found = estimates.PLUGINS[name](values, weights.astype(float), len(population))
    assert found == pytest.approx(rc.METRICS[name].value(_scores(population[None])), rel=1e-9)


@pytest.mark.parametrize("name", list(estimates.PLUGINS))
def test_weights_are_scaled_to_the_number_of_edges(name):
    values = np.random.default_rng(1).normal(size=30)
    found = estimates.per_sample(name, values, np.full(30, 3.5), np.repeat([0, 1, 2], 10), 3, 10)
    assert found.mean() == pytest.approx(rc.METRICS[name].value(_scores(values.reshape(3, 10))), rel=1e-9)


def test_pooled_and_paired_metrics():
    values = np.random.default_rng(2).normal(size=(4, 15))
    scores, ones = _scores(values), np.ones(60)
    samples, edges = np.divmod(np.arange(60), 15)
    assert estimates.complexity(values.ravel(), ones) == pytest.approx(rc.information_complexity(scores))
    found = estimates.diversity(values.ravel(), ones, samples, edges, 4, 15)
    assert found == pytest.approx(rc.inter_sample_diversity(scores))


def test_a_sample_without_runs_or_effects_has_no_value():
    values, samples = np.array([1.0, 2.0, 0.0]), np.array([0, 0, 2])
    found = estimates.per_sample("edge_entropy", values, np.ones(3), samples, 3, 2)
    assert np.isfinite(found[0]) and np.isnan(found[1:]).all()
