"""The change edge by edge: models whose change is known, and what all edges together account for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.changes import cross_patch
from tests.changes.test_grafting import losses, traces, two
from tests.fixtures.models import in_float64, tiny

QUIET = "ignore::rlcircuits.attribution.NotConverged"


def silent(hf, layer, branch="mlp"):
    """The model without what a branch writes."""
    with torch.no_grad():
        block = hf.model.layers[layer]
        (block.mlp.down_proj if branch == "mlp" else block.self_attn.o_proj).weight.zero_()
    return hf


def edge_added():
    """A base whose last MLP writes nothing, and the same model where it does: one edge, m2->logits, was added."""
    tuned = in_float64(tiny("llama"))
    return silent(copy.deepcopy(tuned), 2), tuned


def test_an_edge_that_was_added_is_all_of_the_change():
    base, tuned = edge_added()
    some = traces()
    found = cross_patch((base, tuned), some, exact=None, steps=24, progress=False)
    b, t = losses(base, some), losses(tuned, some)
    for direction, change in (("bring", t - b), ("undo", b - t)):
        data = found.data[direction]
        for name in ("first", "integrated", "exact"):
            effects = data[name]
            others = abs(effects).where((effects.source != "m2") | (effects.destination != "logits"), 0)
            assert float(others.max()) < 1e-12
        added = {"source": "m2", "destination": "logits"}
        np.testing.assert_allclose(data["exact"].sel(added), change, rtol=1e-9)
        np.testing.assert_allclose(data["integrated"].sel(added), change, rtol=1e-4)
        np.testing.assert_allclose(data["there"] - data["here"], change, rtol=1e-9)
    curves = found.curves().set_index(["direction", "ranking", "patched"])["stands"]
    assert curves["bring", "integrated", 1] == pytest.approx(1) and curves["undo", "first", 1] == pytest.approx(
        0, abs=1e-9
    )
    assert found.title == "1 edges (3.6%) bring half of the change; 1 edges (3.6%) undo half of the change"
    assert found.edges(1)["edge"].tolist() == ["m2->logits"] * 2


def test_a_head_that_was_copied_is_the_source_of_every_effect():
    base = silent(in_float64(tiny("llama")), 2)
    tuned = copy.deepcopy(base)
    attention, size = tuned.model.layers[2].self_attn, 8
    with torch.no_grad():  # head 3 becomes head 2; both read the same key and value
        attention.q_proj.weight[3 * size : 4 * size] = attention.q_proj.weight[2 * size : 3 * size]
        attention.o_proj.weight[:, 3 * size : 4 * size] = attention.o_proj.weight[:, 2 * size : 3 * size]
    found = cross_patch((base, tuned), traces(), "head", directions="bring", exact=None, steps=4, progress=False)
    for name in ("first", "integrated", "exact"):
        effects = abs(found.data["bring"][name]).max("sample")
        changed = effects.where(effects > 1e-12).stack(edge=("source", "destination")).dropna("edge")
        assert {f"{s}->{d}" for s, d in changed["edge"].values} == {"a2.h3->logits"}


def test_a_changed_row_of_one_mlp_moves_nothing_that_was_written_before_it():
    base = in_float64(tiny("llama"))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight[3] += 1.0
    found = cross_patch((base, tuned), traces(), exact=None, steps=4, progress=False)
    for data in found.data.values():
        for name in ("first", "exact"):
            moved = abs(data[name]).max(["sample", "destination"])
            assert set(moved["source"].values[moved.values > 1e-12]) == {"m1", "a2", "m2"}


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("level", ["block", "head"])
def test_the_edges_and_what_lies_beyond_them_account_for_the_whole_change(level):
    base, tuned = two()
    for name, p in tuned.named_parameters():  # near the base, as after fine-tuning
        p.data = base.get_parameter(name).data + 0.05 * p.data
    mine, theirs = traces(seed=0), traces(seed=1)
    found = cross_patch((base, tuned), {"base": mine, "tuned": theirs}, level, steps=16, seeds=1, progress=False)
    accounts = found.accounts()
    for direction, (a, b, some) in {"bring": (base, tuned, theirs), "undo": (tuned, base, mine)}.items():
        row = accounts.loc[direction]
        assert row["here"] == pytest.approx(losses(a, some).mean()) and row["there"] == pytest.approx(
            losses(b, some).mean()
        )
        assert row["edges"] + row["beyond"] == pytest.approx(row["change"])
        assert row["integrated"] == pytest.approx(row["edges"], abs=1e-7) and abs(row["beyond"]) > 1e-4
        every = found.data[direction]["together"].isel(patched=-1)
        np.testing.assert_allclose(every, np.broadcast_to(found.data[direction]["all"], every.shape), rtol=1e-9)
    curves = found.curves()
    assert set(curves["ranking"]) == {"first", "integrated", "random"}
    ends = curves[curves["share"] == 1].groupby("direction")["stands"].unique()
    assert [len(one) for one in ends] == [1, 1]


def test_edges_patched_together_are_those_that_move_the_loss_furthest():
    base, tuned = two(layers=2)
    some = traces()
    found = cross_patch((base, tuned), some, directions=["bring"], counts=[3], seeds=0, progress=False).data["bring"]
    scores = rc.attribute(base, some, intervention="model", other=tuned)
    mean = scores.mean("sample").values
    best = np.sort(mean[~np.isnan(mean)])
    falls = float(found["all"].mean()) < float(found["here"].mean())
    chosen = (mean <= best[2]) if falls else (mean >= best[-3])
    # three edges patched in the base are the base with only the others kept in a run of the tuned model's outputs
    kept = xr_scores(scores, ~chosen)
    expected = rc.faithfulness(
        base,
        some,
        kept,
        shares=[0.0, (kept.attrs["n"] + 0.5) / (kept.attrs["n"] + 3)],
        seeds=0,
        intervention="model",
        other=tuned,
    )
    np.testing.assert_allclose(found["together"].sel(ranking="first")[0], expected["loss"][0, 1], rtol=1e-12)


def xr_scores(scores, kept):
    found = scores[:1].where(np.isnan(scores[:1]), np.where(kept, 1.0, 0.0)[None])
    found.attrs["n"] = int((found == 1).sum())
    return found


def test_a_model_against_itself_has_no_effects():
    base, _ = two()
    found = cross_patch((base, copy.deepcopy(base)), traces(), exact=None, steps=2, progress=False)
    for data in found.data.values():
        for name in ("first", "integrated", "exact"):
            assert float(abs(data[name]).max()) < 1e-12
        np.testing.assert_allclose(data["together"], np.broadcast_to(data["here"], data["together"].shape), rtol=1e-12)
    assert "the two losses are the same" in repr(found)


@pytest.mark.filterwarnings(QUIET)
def test_the_divergence_from_the_model_led_to_ends_at_what_is_beyond_the_edges():
    base, tuned = two("llama")
    tuned.model.norm, tuned.lm_head = base.model.norm, base.lm_head
    found = cross_patch((base, tuned), traces(), loss="kl", seeds=0, progress=False)
    for data in found.data.values():
        assert float(data["here"].min()) > 0.01
        np.testing.assert_allclose(data["there"], 0, atol=1e-12)
        np.testing.assert_allclose(data["all"], 0, atol=1e-12)
    stands = found.curves().query("share == 1").groupby("direction")["stands"].first()
    assert stands["bring"] == pytest.approx(1) and stands["undo"] == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings(QUIET)
def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    base, tuned = two(layers=2)
    given = {"exact": 3, "seeds": 1, "progress": False, "resume": tmp_path}
    first = cross_patch((base, tuned), traces(), **given)
    monkeypatch.setattr("rlcircuits.attribution.rankings.rerun", lambda *_a, **_k: pytest.fail("a circuit was run"))
    monkeypatch.setattr(
        "rlcircuits.attribution.ablation.rerun_suffixes", lambda *_a, **_k: pytest.fail("an edge was run")
    )
    again = cross_patch((base, tuned), traces(), **given)
    for direction, data in first.data.items():
        for name in ("exact", "together"):
            np.testing.assert_array_equal(again.data[direction][name], data[name])
    exact = first.data["bring"]["exact"]
    assert int(exact.notnull().any("sample").sum()) == 3


def test_bad_input_is_one_clear_message():
    base, tuned = two(layers=2)
    for options, says in (
        ({"directions": ["back"]}, "unknown direction 'back'"),
        ({"directions": []}, "no directions given"),
        ({"steps": 1}, "steps is 1"),
        ({"exact": -1}, "exact is -1"),
        ({"counts": [0]}, "count is 0"),
        ({"counts": [99]}, "numbers of edges from 1 to 15"),
        ({"level": "blocks"}, "unknown level"),
    ):
        with pytest.raises(rc.InputError, match=says):
            cross_patch((base, tuned), traces(), progress=False, **options)
