"""Any loss and any replacement, first-order and exact, against a model written out edge by edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlcircuits as rc
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT, close
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import directional_scores, loss, nodes, outputs_of

OTHER = (50, 8, 8, 31, 12)
COUNTER = (9, 17, 60, 5)
WEIGHTS = (0.0, 2.0, 0.5, 1.0)
TRACE = [rc.Trace("p", PROMPT, ANSWER)]
NAMES = ("nll", "weighted", "kl", "kl given", "logit-difference", "logit-difference weighted")


def other_model(kind="llama", **options):
    return in_float64(tiny(kind, seed=1, **options))


def mean(values, weights=(1.0,) * len(ANSWER)):
    return (values * torch.tensor(weights, dtype=torch.float64)).sum() / sum(weights)


def made(name, reference):
    """The loss of that name, and the same written by hand: a function of logits ``(answer token, vocabulary)`` and
    answer.
    """
    rows = torch.arange(len(ANSWER))
    q = torch.softmax(loss(reference, PROMPT, ANSWER, "block", of=lambda logits, _: logits), -1).detach()

    def nll(logits, answer):
        return -torch.log_softmax(logits, -1)[rows, torch.tensor(answer)]

    def difference(logits, answer):
        return logits[rows, torch.tensor(COUNTER)] - logits[rows, torch.tensor(answer)]

    def kl(logits, _answer):
        return (q * (q.log() - torch.log_softmax(logits, -1))).sum(-1)

    return {
        "nll": ("nll", lambda z, y: mean(nll(z, y))),
        "weighted": ([WEIGHTS], lambda z, y: mean(nll(z, y), WEIGHTS)),
        "kl": (rc.Loss("kl", reference=reference), lambda z, y: mean(kl(z, y))),
        "kl given": (rc.Loss("kl", reference=[q], weights=[WEIGHTS]), lambda z, y: mean(kl(z, y), WEIGHTS)),
        "logit-difference": (rc.Loss("logit-difference", tokens=[COUNTER]), lambda z, y: mean(difference(z, y))),
        "logit-difference weighted": (
            rc.Loss("logit-difference", tokens=[COUNTER], weights=[WEIGHTS]),
            lambda z, y: mean(difference(z, y), WEIGHTS),
        ),
    }[name]


def replaced(hf, other, level, intervention):
    """Options for `intervention`, and what it replaces each source's output by, on the one trace."""
    clean = outputs_of(hf, PROMPT, ANSWER, level)
    if intervention == "zero":
        return {}, [torch.zeros_like(o) for o in clean]
    if intervention == "mean":
        return {}, [o[:-1].mean(0).expand_as(o) for o in clean]
    if intervention == "corrupted":
        return {"corrupted": [rc.Trace("c", OTHER, ANSWER)]}, outputs_of(hf, OTHER, ANSWER, level)
    return {"other": other}, outputs_of(other, PROMPT, ANSWER, level)


INTERVENTIONS = ("zero", "mean", "corrupted", "model")


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_derivative_of_the_loss_written_by_hand(name, memory):
    hf, other = in_float64(tiny("llama")), other_model()
    given, by_hand = made(name, other)
    scores = rc.attribute(hf, TRACE, memory=memory, loss=given)
    assert float(scores.loss[0]) == pytest.approx(float(loss(hf, PROMPT, ANSWER, "block", of=by_hand)), rel=1e-6)
    clean = outputs_of(hf, PROMPT, ANSWER, "block")
    close(scores[0], directional_scores(hf, PROMPT, ANSWER, "block", clean, of=by_hand), 2e-6)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_another_models_outputs_take_the_place_of_clean_ones(kind, level, memory):
    """With heads, what is replaced went through the other model's own output projection and norm."""
    hf, other = in_float64(tiny(kind)), other_model(kind)
    clean, theirs = (outputs_of(one, PROMPT, ANSWER, level) for one in (hf, other))
    scores = rc.attribute(hf, TRACE, level, memory=memory, intervention="model", other=other)
    expected = directional_scores(hf, PROMPT, ANSWER, level, [a - b for a, b in zip(clean, theirs)])
    close(scores[0], expected, 2e-6)
    assert scores.attrs["intervention"] == "model"
    assert float(abs(rc.attribute(hf, TRACE, level, intervention="model", other=hf)).max()) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_exact_effects_are_the_edge_by_edge_model_with_one_edge_replaced(level, intervention, name):
    hf, other = in_float64(tiny("llama", layers=2)), other_model(layers=2)
    given, by_hand = made(name, other)
    options, instead = replaced(hf, other, level, intervention)
    sources, destinations = nodes(hf, level)
    edges = np.argwhere([[w < r for _, r in destinations] for _, w in sources])
    edges = np.random.default_rng(0).permutation(edges)[:8]
    named = [f"{sources[s][0]}->{destinations[d][0]}" for s, d in edges]
    exact = rc.ablate(
        hf, TRACE, level, named, progress=False, scale=0.75, intervention=intervention, loss=given, **options
    )
    clean = loss(hf, PROMPT, ANSWER, level, of=by_hand)
    assert float(exact.loss[0]) == pytest.approx(float(clean), rel=1e-6)
    for s, d in edges:
        gone = torch.zeros(len(sources), len(destinations), dtype=torch.float64)
        gone[s, d] = 0.75
        expected = loss(hf, PROMPT, ANSWER, level, 1 - gone, added=(gone, instead), of=by_hand) - clean
        assert float(exact[0, s, d]) == pytest.approx(float(expected), rel=1e-5, abs=2e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_the_central_difference_of_exact_effects(level, intervention, name):
    hf, other = in_float64(tiny("qwen2", layers=2)), other_model("qwen2", layers=2)
    options, _ = replaced(hf, other, level, intervention)
    options |= {"intervention": intervention, "loss": made(name, other)[0], "progress": False}
    step = 1e-5
    up, down = (rc.ablate(hf, TRACE, level, scale=s, **options) for s in (step, -step))
    close((up - down)[0] / (2 * step), rc.attribute(hf, TRACE, level, **options)[0], 1e-6)
