"""Every architecture at every level, against oracles that share no code with the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlcircuits as rc
from tests.models import KINDS, in_float64, tiny
from tests.reference import exact_scores, loss, nodes
from tests.test_attribution import ANSWER, LEVELS, PROMPT, close, traces

TRACE = [rc.Trace("p", PROMPT, ANSWER)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_derivative_of_an_edge_by_edge_model(kind, level):
    hf = in_float64(tiny(kind))
    expected = exact_scores(hf, PROMPT, ANSWER, level)
    for memory in ("fast", "lean"):
        scores = rc.attribute(hf, TRACE, level, memory=memory)
        assert float(scores.loss[0]) == pytest.approx(float(loss(hf, PROMPT, ANSWER, level)), rel=1e-6)
        close(scores[0], expected, 2e-6)  # rotary angles are float32 in transformers


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_central_difference_of_a_scaled_rerun(kind, level):
    hf = in_float64(tiny(kind, layers=2))
    step = 1e-5
    up, down = (rc.ablate(hf, TRACE, level, scale=s, progress=False) for s in (step, -step))
    close((up - down)[0] / (2 * step), rc.attribute(hf, TRACE, level)[0], 1e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_ablation_is_the_edge_by_edge_model_with_one_coefficient_zero(kind, level):
    hf = in_float64(tiny(kind, layers=2))
    sources, destinations = nodes(hf, level)
    clean = loss(hf, PROMPT, ANSWER, level)
    edges = np.argwhere([[w < r for _, r in destinations] for _, w in sources])
    edges = np.random.default_rng(0).permutation(edges)[:8]
    named = [f"{sources[s][0]}->{destinations[d][0]}" for s, d in edges]
    exact = rc.ablate(hf, TRACE, level, named, progress=False)
    for s, d in edges:
        coefficients = torch.ones(len(sources), len(destinations), dtype=torch.float64)
        coefficients[s, d] = 0
        expected = float(loss(hf, PROMPT, ANSWER, level, coefficients) - clean)
        assert float(exact[0, s, d]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
