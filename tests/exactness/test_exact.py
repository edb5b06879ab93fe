"""Exact metrics from a sample, on a tiny model whose every edge is run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.exactness import exact
from rlcircuits.exactness.collecting import collect, stages
from tests.attribution.test_attribution import traces
from tests.fixtures.models import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    """A model, traces, EAP and EAP-IG of them, and the exact effect of every edge."""
    hf = tiny("llama", layers=6, dtype=torch.float32)
    some = traces(0, 6)
    scores = [rc.attribute(hf, some, ig_steps=steps, progress=False) for steps in (1, 5)]
    return hf, some, scores, rc.ablate(hf, some, progress=False)


@pytest.fixture(scope="module")
def known(world):
    """The population of cells and the exact effect of each."""
    hf, _, scores, effects = world
    graph = rc.Graph.of(hf)
    return exact.population(graph, np.argwhere(graph.mask), scores), effects.values[:, graph.mask].ravel().astype(float)


@pytest.fixture(scope="module")
def many(known):
    """What 50 seeds draw with a budget of 200."""
    population, values = known
    return [collect(population, lambda cells: values[cells], 200, lambda *_: False, seed) for seed in range(50)]


def test_estimates_are_unbiased_and_intervals_cover(known, many):
    values = known[1]
    found = {}
    for draws, drawn in many:
        assert len(set(draws.cells.tolist())) == 200
        for name, estimate, wanted in (
            ("size", exact._intensity(draws, drawn, 0.95), np.abs(values).mean()),
            ("signed", exact._mean(draws, drawn, 0.95), values.mean()),
            ("share", exact._share(draws, drawn > 0, 0.95), (values > 0).mean()),
        ):
            found.setdefault(name, []).append((estimate[0] - wanted, estimate[1] <= wanted <= estimate[2]))
    for name, rows in found.items():
        errors, inside = np.array(rows).T
        assert abs(errors.mean()) < 3.5 * errors.std() / math.sqrt(len(errors)), name
        assert inside.mean() >= 0.86, name  # 0.95 less three standard errors of 50 draws


def test_learned_draws_beat_uniform_ones(known, many):
    """Even here, where sizes differ little: a random model has no few large edges."""
    values = known[1]
    rng = np.random.default_rng(0)
    uniform = np.std([np.abs(rng.choice(values, 200, replace=False)).mean() for _ in range(300)])
    assert np.std([exact._intensity(*one, 0.95)[0] for one in many]) < uniform


def test_every_cell_run_gives_the_metrics_themselves(world):
    hf, some, scores, effects = world
    found = rc.exact_metrics(hf, some, scores, budget=int(effects.notnull().sum()), progress=False)
    wanted = rc.summary(effects).drop("output_edge_entropy")
    assert np.allclose(found.table.loc[wanted.index, "estimate"], wanted, rtol=1e-4)
    assert found.table.loc["mean_effect", "estimate"] == pytest.approx(float(effects.mean()), rel=1e-3)
    assert set(found.table["kind"]) == {"exact", "none"} and found.half_width == 0
    assert np.allclose(found.effects, effects, atol=2e-6, equal_nan=True)
    assert found.problems["gini"].mean() == pytest.approx(wanted["gini"], rel=1e-4)


def test_a_sample_says_what_was_run_and_what_it_stands_for(world):
    hf, some, scores, effects = world
    found = rc.exact_metrics(hf, some, {"EAP": scores[0], "EAP-IG": scores[1]}, budget=150, progress=False)
    ran = found.effects.notnull()
    assert int(ran.sum()) == found.runs == 150
    assert np.allclose(found.effects.values[ran], effects.values[ran], atol=2e-6)
    assert ((found.weights > 0) == ran).all()
    first = found.table.loc["activation_intensity"]
    assert first["low"] < first["estimate"] < first["high"] and first["kind"] == "unbiased"
    assert first["first_order"] == pytest.approx(rc.activation_intensity(scores[0]))
    assert "150 of" in repr(found) and "activation_intensity" in found._repr_html_()
    assert found.problems["activation_intensity"].mean() == pytest.approx(first["estimate"])


def test_until_runs_on_and_a_finished_call_runs_nothing(world, tmp_path, monkeypatch):
    hf, some, scores, _ = world
    wide = rc.exact_metrics(hf, some, scores, budget=90, progress=False, resume=tmp_path)
    narrow = rc.exact_metrics(hf, some, scores, until=0.15, progress=False, resume=tmp_path)
    assert narrow.half_width <= 0.15 and narrow.runs > wide.runs
    monkeypatch.setattr(exact, "ablate", lambda *_args, **_options: pytest.fail("ran again"))
    again = rc.exact_metrics(hf, some, scores, until=0.15, progress=False, resume=tmp_path)
    assert again.table.equals(narrow.table)


def test_an_interrupted_call_goes_on(world, tmp_path, monkeypatch):
    hf, some, scores, _ = world
    whole = rc.exact_metrics(hf, some, scores, budget=120, progress=False)
    ablate, calls = exact.ablate, []

    def once(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ablate(*args, **options)

    monkeypatch.setattr(exact, "ablate", once)
    with pytest.raises(KeyboardInterrupt):
        rc.exact_metrics(hf, some, scores, budget=120, progress=False, resume=tmp_path)
    found = rc.exact_metrics(hf, some, scores, budget=120, progress=False, resume=tmp_path)
    assert np.allclose(found.table["estimate"], whole.table["estimate"], rtol=1e-4, equal_nan=True)
    assert len(calls) == 4  # pilot; interrupted; the two stages


def test_larger_budgets_begin_with_the_same_cells():
    for budget in (80, 100, 500, 3000):
        found, more = (list(stages(100_000, b)) for b in (budget, 4000))
        assert sum(found) == budget and found[:-1] == more[: len(found) - 1]


def test_two_models_are_compared_by_problem(world):
    hf, some, scores, effects = world
    cells = int(effects.notnull().sum())
    whole = rc.exact_metrics(hf, some, scores, budget=cells, progress=False)
    same = whole.compare(whole)
    assert (same["difference"] == 0).all() and (same["p"] == 1).all()
    other = tiny("llama", layers=6, seed=1, dtype=hf.dtype)
    tuned = rc.exact_metrics(other, some, rc.attribute(other, some, progress=False), budget=cells, progress=False)
    wanted = rc.compare(effects, rc.ablate(other, some, progress=False))
    found = whole.compare(tuned)
    numbers = ["base", "tuned", "low", "high", "p"]
    for name in ("activation_intensity", "gini", "edge_entropy"):
        assert np.allclose(found.loc[name, numbers].astype(float), wanted.loc[name, numbers].astype(float), rtol=1e-3)
    fewer = rc.exact_metrics(hf, some[:2], [s.isel(sample=[0, 1]) for s in scores], budget=20, progress=False)
    with pytest.raises(rc.InputError, match="same problems"):
        whole.compare(fewer)
    with pytest.raises(rc.InputError, match="tuned is a DataArray"):
        whole.compare(effects)


def test_other_replacements(world):
    hf, some, _, _ = world
    mean = rc.attribute(hf, some, intervention="mean", progress=False)
    wanted = rc.ablate(hf, some, intervention="mean", progress=False)
    found = rc.exact_metrics(hf, some, mean, budget=60, intervention="mean", progress=False)
    ran = found.effects.notnull().values
    assert np.allclose(found.effects.values[ran], wanted.values[ran], atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": 10**6}, "budget is 1000000"),
        ({"budget": True}, "budget is True"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"until": 0}, "until is 0"),
        ({"until": 1.0}, "until is 1.0"),
        ({"until": math.nan}, "until is nan"),
        ({"confidence": 95}, "confidence is 95"),
        ({"large": -1}, "large is -1"),
    ],
)
def test_bad_numbers_are_one_clear_error(world, options, message):
    hf, some, scores, _ = world
    with pytest.raises(rc.InputError, match=message):
        rc.exact_metrics(hf, some, scores, **options)


def test_scores_of_something_else_are_refused(world):
    hf, some, scores, _ = world
    with pytest.raises(rc.InputError, match="scores of other traces"):
        rc.exact_metrics(hf, some[:3], scores)
    with pytest.raises(rc.InputError, match="no scores"):
        rc.exact_metrics(hf, some, [])
    with pytest.raises(rc.InputError, match="graph or cut"):
        rc.exact_metrics(hf, some, [scores[0], rc.attribute(hf, some, cut=1, progress=False)])
    with pytest.raises(rc.InputError, match="every edge of this model's graph"):
        rc.exact_metrics(tiny("llama", layers=2, dtype=hf.dtype), some, scores)
    with pytest.raises(rc.InputError, match="no traces"):
        rc.exact_metrics(hf, [], scores)


def test_samples_may_come_in_any_order(world):
    hf, some, scores, _ = world
    turned = [one.isel(sample=slice(None, None, -1)) for one in scores]
    found = rc.exact_metrics(hf, some, turned, budget=60, progress=False)
    assert found.table.equals(rc.exact_metrics(hf, some, scores, budget=60, progress=False).table)
