"""What scores are good for: agreement against scipy where every edge is run, intervals where few are, and the
sentences.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import rlcircuits as rc
from rlcircuits.exactness import QUANTITIES, judging
from rlcircuits.exactness.words import sentences
from tests.attribution.test_attribution import traces
from tests.fixtures.models import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    """A model, traces, the exact effect of every edge, and what all runs and a part of them say."""
    hf, some = tiny("llama", layers=5, dtype=torch.float32), traces(0, 4)
    effects = rc.ablate(hf, some, progress=False)
    cells = int(effects.notnull().sum())
    whole = rc.trust(hf, some, {"removal": effects}, budget=cells, strongest=0.1, progress=False)
    return hf, some, effects, whole


def _flat(scores):
    values = scores.values
    return values[:, ~np.isnan(values[0])].ravel().astype(float)


def test_with_every_edge_run_the_numbers_are_scipys(world):
    hf, some, effects, whole = world
    x, y = _flat(rc.attribute(hf, some, progress=False)), _flat(effects)
    count = math.ceil(0.1 * len(y))
    top = [set(np.argsort(-np.abs(v))[:count]) for v in (x, y)]
    wanted = {
        "rank correlation": stats.spearmanr(x, y).statistic,
        "rank correlation of sizes": stats.spearmanr(np.abs(x), np.abs(y)).statistic,
        "Pearson correlation": np.corrcoef(x, y)[0, 1],
        "sign agreement": np.mean(np.sign(x) == np.sign(y)),
        "median slope": np.median(y / x),
        "overlap": len(top[0] & top[1]) / count,
    }
    for quantity, value in wanted.items():
        row = whole.table.loc[("EAP", quantity)]
        tolerance = (
            0.05 if quantity == "median slope" else 1e-3
        )  # of an even number, the lower of the two in the middle
        assert row["value"] == pytest.approx(value, rel=tolerance), quantity
        assert row["low"] == pytest.approx(row["high"]), quantity  # nothing was left out
    assert whole.table.loc[("removal", "rank correlation"), "value"] == pytest.approx(1)
    assert whole.table.loc[("removal", "overlap"), "value"] == pytest.approx(1)


def test_circuits_are_those_of_faithfulness(world):
    hf, some, effects, whole = world
    wanted = rc.faithfulness(hf, some, effects, seeds=0, progress=False)
    for quantity in ("CPR", "CMD"):
        row = whole.table.loc[("removal", quantity)]
        assert row["value"] == pytest.approx(float(wanted[quantity]), rel=1e-3)
        assert [row["low"], row["high"]] == pytest.approx(wanted[f"{quantity}_interval"].values.tolist(), rel=1e-3)
    random = rc.faithfulness(hf, some, effects, seeds=5, progress=False)["random_CPR"].mean()
    assert whole.table.loc[("random", "CPR"), "value"] == pytest.approx(float(random), rel=1e-3)


def test_samples_of_runs_give_intervals_that_hold_the_truth(world):
    hf, some, _, whole = world
    scores = {"EAP-IG": rc.attribute(hf, some, ig_steps=2, progress=False)}
    inside, found = [], None
    for seed in range(8):
        found = rc.trust(hf, some, scores, budget=130, strongest=0.1, circuits=False, seed=seed, progress=False)
        assert found.exact.runs == 130
        for quantity in QUANTITIES[:3]:
            row = found.table.loc[("EAP", quantity)]
            truth = whole.table.loc[("EAP", quantity), "value"]
            inside.append(row["low"] - 1e-9 <= truth <= row["high"] + 1e-9)
    assert np.mean(inside) > 0.75
    assert found.table.loc[(slice(None), "CPR"), "value"].isna().all() and found.answers["circuit"] == "not measured."
    assert list(found.shown().columns) == ["EAP", "EAP-IG", "exact norms", "random"]
    assert "130 exact removals" in repr(found) and "<li><b>sign</b>" in found._repr_html_()


def test_the_random_ranking_is_what_shuffled_scores_give(world):
    hf, some, effects, whole = world
    x, y = _flat(rc.attribute(hf, some, progress=False)), _flat(effects)
    rng = np.random.default_rng(0)
    shuffled = [np.mean(np.sign(rng.permutation(x)) == np.sign(y)) for _ in range(2000)]
    assert whole.table.loc[("random", "sign agreement"), "value"] == pytest.approx(np.mean(shuffled), abs=0.004)
    assert whole.table.loc[("random", "overlap"), "value"] == pytest.approx(0.1, abs=0.01)


def test_stability_is_one_for_problems_that_are_alike_and_unknown_for_one(world):
    effects = world[2]
    alike = effects.isel(sample=[0, 0, 0]).assign_coords(sample=["a", "b", "c"])
    for values in judging.stability(alike, 0.1).values():
        assert values == pytest.approx(1)
    for values in judging.stability(effects.isel(sample=[0]), 0.1).values():
        assert math.isnan(values[0])
    noise = effects.copy(data=np.random.default_rng(0).normal(size=effects.shape)).where(effects.notnull())
    assert abs(judging.stability(noise, 0.1)["stability of ranks"][0]) < 0.2


def _table(**quantities) -> pd.DataFrame:
    """Rows of methods by quantity, each value or (value, low, high); NaN where not given."""
    methods = ["A", "B", "random"]
    rows = {}
    for method in methods:
        for quantity in QUANTITIES:
            value = quantities.get(quantity.replace(" ", "_"), {}).get(method, math.nan)
            rows[method, quantity] = value if isinstance(value, tuple) else (value, math.nan, math.nan)
    index = pd.MultiIndex.from_tuples(rows, names=["method", "quantity"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["value", "low", "high"])


@pytest.mark.parametrize(
    ("quantities", "use", "said"),
    [
        ({}, "ranking many edges", "cannot be told from these runs."),
        ({}, "size", "cannot be told from these runs."),
        ({}, "circuit", "not measured."),
        (
            {"rank_correlation_of_sizes": {"A": (0.85, 0.8, 0.9), "B": (0.6, 0.5, 0.7), "random": 0.0}},
            "ranking many edges",
            "A orders edges by size well (rank correlation of sizes 0.85 [0.80, 0.90], 0.00 at random).",
        ),
        (
            {"rank_correlation_of_sizes": {"A": (0.6, 0.4, 0.8), "B": (0.5, 0.3, 0.7), "random": 0.0}},
            "ranking many edges",
            "A orders edges by size roughly (rank correlation of sizes 0.60 [0.40, 0.80], 0.00 at random); no clear "
            "difference to B.",
        ),
        (
            {"overlap": {"A": (0.1, 0.01, 0.3), "random": 0.02}},
            "finding the few large ones",
            "no score is shown to be better than a random order; A comes nearest (part of the strongest 2 % found "
            "0.10 [0.01, 0.30], 0.02 at random).",
        ),
        (
            {"sign_agreement": {"A": (0.62, 0.58, 0.66), "B": 0.61, "random": 0.5}},
            "sign",
            "A has the effect's sign poorly, though better than chance (same sign 0.62 [0.58, 0.66], 0.50 at random); "
            "no clear difference to B.",
        ),
        (
            {"median_slope": {"A": (0.9, 0.7, 1.1), "B": (5.0, 3.0, 8.0)}},
            "size",
            "A has about the size of the effects (median effect / score 0.90 [0.70, 1.10]); single edges differ from "
            "it.",
        ),
        (
            {"median_slope": {"A": (30.0, 20.0, 50.0), "B": (-2.0, -3.0, -1.0)}},
            "size",
            "no score has the size of the effects (A comes nearest: median effect / score 30.00 [20.00, 50.00]); take "
            "it from exact_metrics.",
        ),
        (
            {"median_slope": {"A": (-1.0, -2.0, -0.5)}},
            "size",
            "no score has the size of the effects: the median effect is against the score's sign.",
        ),
        (
            {"CMD": {"A": (0.2, 0.1, 0.25), "B": (0.4, 0.3, 0.5), "random": (0.5, 0.45, 0.55)}},
            "circuit",
            "A's strongest edges stay nearest to the model (CMD 0.20 [0.10, 0.25], 0.50 for random edges).",
        ),
        (
            {"CMD": {"A": (0.4, 0.1, 0.9), "random": (0.5, 0.45, 0.55)}},
            "circuit",
            "no circuit is shown to be nearer to the model than random edges; A's comes nearest (CMD 0.40 [0.10, "
            "0.90], 0.50 for random edges).",
        ),
    ],
)
def test_sentences_say_what_the_numbers_do(quantities, use, said):
    assert sentences(_table(**quantities), 0.02)[use] == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strongest": 0}, "strongest is 0"),
        ({"strongest": 1.0}, "strongest is 1.0"),
        ({"scores": [1]}, "scores is a list"),
        ({"budget": 0}, "budget is 0"),
    ],
)
def test_bad_input(world, options, message):
    hf, some, _, _ = world
    with pytest.raises(rc.InputError, match=message):
        rc.trust(hf, some, progress=False, **options)


def test_scores_of_other_traces_or_by_the_baselines_name(world):
    hf, some, effects, _ = world
    with pytest.raises(rc.InputError, match="scores of other traces"):
        rc.trust(hf, some[:2], {"mine": effects}, progress=False)
    with pytest.raises(rc.InputError, match="named 'random'"):
        rc.trust(hf, some, {"random": effects}, progress=False)
