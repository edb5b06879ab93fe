"""The model of the first chapter: its numbers are rational and were worked out on paper."""

from __future__ import annotations

from fractions import Fraction
from math import exp, log

import pytest

import rlcircuits as rc
from rlcircuits.lessons.by_hand import TRACE, llama

# On paper: score as a fraction, exact effect as a loss without the edge minus ln 2.
PAPER = {
    "input->m1": (Fraction(51, 175), log(1 + exp(1.2))),
    "a0->m1": (Fraction(-51, 175), log(1 + exp(1.2))),
    "m0->m1": (Fraction(51, 25), log(1 + exp(1.2))),
    "a1->m1": (Fraction(-51, 25), log(1 + exp(1.2))),
    "m1->logits": (Fraction(3, 7), log(1 + exp(1.2))),
    "m0->logits": (Fraction(3, 7), log(1 + exp(1.2))),
}


@pytest.fixture(scope="module")
def scores():
    return rc.attribute(llama(), [TRACE])[0]


@pytest.fixture(scope="module")
def exact():
    return rc.ablate(llama(), [TRACE])[0]


@pytest.mark.slow
def test_the_streams_are_those_of_the_text() -> None:
    import torch

    out = llama()(torch.tensor([TRACE.prompt]), output_hidden_states=True)
    assert [state[0, 0].tolist() for state in out.hidden_states[:2]] == [[1, 1], [7, 7]]
    assert out.logits[0, 0].tolist() == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("edge", PAPER)
def test_scores_and_effects_are_those_on_paper(edge: str, scores, exact) -> None:
    source, destination = edge.split("->")
    score, loss = PAPER[edge]
    assert float(scores.sel(source=source, destination=destination)) == pytest.approx(float(score), abs=2e-6)
    assert float(exact.sel(source=source, destination=destination)) == pytest.approx(loss - log(2), abs=2e-6)


def test_a_norm_does_not_see_its_inputs_length(scores) -> None:
    """What flows into one destination sums to zero; an edge that is a destination's whole input scores zero."""
    assert scores.sum("source").values == pytest.approx(0, abs=5e-6)
    assert float(scores.sel(source="input", destination="a0")) == pytest.approx(0, abs=1e-6)
    assert scores.notnull().sum() == 15


def test_removing_all_of_what_a0_reads(exact) -> None:
    """Without its input, a0 writes nothing: m0 reads (1, 1) and writes 5 · 5 · (6, 0), and so on."""
    x = [151.0, 1.0]

    def unit(v: list[float]) -> list[float]:
        rms = ((v[0] ** 2 + v[1] ** 2) / 2) ** 0.5
        return [v[0] / rms, v[1] / rms]

    x[0] -= 6 * unit(x)[0]
    n = unit(x)
    x[0] += max(5 * n[0], 0) * (5 * n[1] - 5 * n[0])
    n = unit(x)
    assert float(exact.sel(source="input", destination="a0")) == pytest.approx(
        log(1 + exp(n[1] - n[0])) - log(2), abs=2e-6
    )
