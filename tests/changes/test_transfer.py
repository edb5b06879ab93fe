"""Circuits of one model in the other: against `faithfulness` itself, and changes that are known."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import rlcircuits as rc
from rlcircuits.changes import partners, transfer
from tests.changes.test_grafting import traces, two
from tests.changes.test_patching import edge_added

pytestmark = pytest.mark.filterwarnings("ignore:without any edge the loss")
SHARES = [0.1, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("intervention", ["zero", "mean", "corrupted"])
def test_each_circuit_is_run_in_each_model_on_that_models_answers(intervention):
    base, tuned = two(layers=2)
    rows = {"base": traces(seed=0), "tuned": traces(seed=1)}
    partners = {side: [rc.Trace("c", t.prompt[::-1], t.answer[::-1]) for t in some] for side, some in rows.items()}
    given = {"corrupted": partners} if intervention == "corrupted" else {}
    found = transfer((base, tuned), rows, interventions=[intervention], shares=SHARES, seeds=2, progress=False, **given)
    models = {"base": base, "tuned": tuned}
    replaced = {
        side: {"intervention": intervention} | ({"corrupted": partners[side]} if given else {}) for side in models
    }
    scores = {side: rc.attribute(models[side], rows[side], **replaced[side]) for side in models}
    curves = found.curves().set_index(["model", "circuit", "share"])["faithfulness"].sort_index()
    table = found.table().set_index(["model", "circuit", "area"])
    for side, other in (("base", "tuned"), ("tuned", "base")):
        for circuit, whose in (("own", side), ("other", other)):
            expected = rc.faithfulness(
                models[side], rows[side], scores[whose], shares=SHARES, seeds=2, **replaced[side]
            )
            np.testing.assert_allclose(curves[side, circuit], expected["faithfulness"].sel(ranking="signed"), rtol=1e-9)
            for area in ("CPR", "CMD"):
                assert table.loc[(side, circuit, area), "value"] == pytest.approx(float(expected[area]), rel=1e-9)
        random = expected["random_faithfulness"].mean("seed")
        np.testing.assert_allclose(curves[side, "random"], random, rtol=1e-9)
        lost = table.loc[(side, "other", "CPR"), "lost"]
        assert lost == pytest.approx(
            table.loc[(side, "own", "CPR"), "value"] - table.loc[(side, "other", "CPR"), "value"]
        )
        assert table.loc[(side, "own", "CMD"), "lost"] == 0


def test_a_model_runs_on_its_own_circuit_when_nothing_changed():
    base, _ = two(layers=2)
    found = transfer((base, copy.deepcopy(base)), traces(), shares=SHARES, progress=False)
    table = found.table()
    np.testing.assert_allclose(table[table["circuit"] == "other"][["lost", "lost_low", "lost_high"]], 0, atol=1e-12)
    for data in found.data.values():
        np.testing.assert_allclose(data["loss"].sel(circuit="own"), data["loss"].sel(circuit="other"), rtol=1e-12)


def test_the_old_circuit_lacks_exactly_the_edge_that_was_added():
    base, tuned = edge_added()
    some = traces()
    n = rc.Graph.of(base).n_edges
    almost = (n - 0.5) / n  # all edges but one
    found = transfer((base, tuned), some, interventions="zero", shares=[0.5, almost], seeds=0, progress=False)
    data = found.data["zero"].sel(model="tuned", circuit="other", ranking="absolute", share=almost)
    effect = rc.ablate(tuned, some, edges=["m2->logits"]).sel(source="m2", destination="logits")
    np.testing.assert_allclose(data["loss"] - data["full_loss"], effect, atol=1e-9)


def test_partners_are_other_problems_as_long_on_both_sides():
    def traces_of(**lengths):
        return [rc.Trace(name, [3 + i, 4], [5] * n) for i, (name, n) in enumerate(lengths.items())]

    rows = {"base": traces_of(p=2, q=2, r=3, s=3), "tuned": traces_of(p=2, q=3, r=3, s=2)}
    kept, found = partners(rows)
    assert [t.problem for t in kept["base"]] == [t.problem for t in kept["tuned"]] == ["p", "q", "r", "s"]
    assert [t.problem for t in found["base"]] == ["q", "p", "s", "r"]
    assert [t.problem for t in found["tuned"]] == ["s", "r", "q", "p"]
    for side in rows:
        assert all(len(a.answer) == len(b.answer) and a.prompt != b.prompt for a, b in zip(kept[side], found[side]))
    alone = {"base": traces_of(p=1, q=2), "tuned": traces_of(p=1, q=1)}
    assert partners(alone) is None
    base, tuned = two(layers=2)
    done = transfer(
        (base, tuned), kept, interventions="corrupted", corrupted=found, shares=SHARES, seeds=0, progress=False
    )
    data = done.data["corrupted"]
    assert data.sizes["sample"] == 4 and bool(np.isfinite(data["loss"]).all())


def test_intervals_hold_what_they_are_about():
    base, tuned = two(layers=2)
    found = transfer((base, tuned), traces(20), interventions="zero", shares=SHARES, seeds=3, progress=False)
    for frame, value in (
        (found.table(), "value"),
        (found.curves("absolute").query("0.5 <= share < 1"), "faithfulness"),
    ):
        assert ((frame["low"] <= frame[value]) & (frame[value] <= frame["high"])).mean() > 0.8
        assert (frame["low"] < frame["high"]).all()
    one = transfer((base, tuned), traces(1), interventions="zero", shares=SHARES, progress=False).table()
    assert one["low"].isna().all() and one["value"].notna().all()


def test_bad_input_is_one_clear_message():
    base, tuned = two(layers=2)
    some = traces()
    for options, says in (
        ({"interventions": ["model"]}, "unknown intervention 'model'"),
        ({"interventions": []}, "no interventions given"),
        ({"interventions": ["corrupted"]}, "belong together"),
        ({"corrupted": some}, "belong together"),
        ({"scores": {"base": None}}, "scores are of base: expected those of base and of tuned"),
        ({"traces": {"base": some}}, "traces are of base alone"),
        ({"shares": [0.5]}, "at least two rising numbers"),
    ):
        with pytest.raises(rc.InputError, match=says):
            transfer((base, tuned), options.pop("traces", some), progress=False, **options)
