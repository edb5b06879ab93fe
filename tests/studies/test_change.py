"""The whole of a change: each part is what calling it by hand gives, is kept, and goes on where it was interrupted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import rlcircuits as rc
from rlcircuits import figures
from rlcircuits.storage import Store
from rlcircuits.studies import PARTS
from tests.fixtures.checkpoints import WORDS, save

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SETTINGS = {"n": 8, "how": {"patching": {"exact": 2}}, "device": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: save(root / name, layers=2, seed=seed) for seed, name in enumerate(("base", "tuned"))}


@pytest.fixture(scope="module")
def problems():
    asked = tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 4]), WORDS[i]) for i in range(12))
    return rc.ProblemSet("words", asked, grader="final")


@pytest.fixture(scope="module")
def pair(folders):
    return rc.ModelPair("own", folders["base"], folders["tuned"], method="GRPO", max_new_tokens=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def found(pair, problems, store):
    return rc.change(pair, problems, store=store, **SETTINGS)


def test_each_part_is_what_calling_it_by_hand_gives(found, pair):
    chosen = found.study.selection
    traces = {"base": chosen.base_traces, "tuned": chosen.tuned_traces}
    models = pair.load("base", "cpu"), pair.load("tuned", "cpu")
    given = {"cut": chosen.t_cut, "progress": False}
    assert chosen.alpha == 1 and len(chosen.problems) == 8
    by_hand = rc.graft(models, traces, **given)
    pd.testing.assert_frame_equal(found.graft.table(), by_hand.table(), rtol=1e-4, atol=1e-5)
    by_hand = rc.cross_patch(models, traces, exact=2, **given)
    pd.testing.assert_frame_equal(found.patching.curves(), by_hand.curves(), rtol=1e-3, atol=1e-4)
    by_hand = rc.transfer(models, traces, interventions="mean", **given)
    ours = found.transfer.table().query("intervention == 'mean'").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, by_hand.table(), rtol=1e-3, atol=1e-4)
    by_hand = rc.divergence(models, traces["tuned"], progress=False)
    pd.testing.assert_frame_equal(found.divergence["tuned"].summary, by_hand.summary, rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(found.weights, rc.weight_change(pair, directions=16))
    by_hand = rc.overlap(found.study.base_scores, found.study.tuned_scores)
    pd.testing.assert_frame_equal(found.overlap.table, by_hand.table)


def test_it_is_there_without_loading_a_model_again(found, pair, problems, store, monkeypatch):
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    again = rc.change(pair, problems, store=store, **SETTINGS)
    pd.testing.assert_frame_equal(again.summary, found.summary)
    for name, table in found.tables().items():
        pd.testing.assert_frame_equal(again.tables()[name], table, check_dtype=False)
    some = rc.change(pair, problems, ["weights", "graft"], store=store, **SETTINGS)
    assert (
        some.overlap is None and not some.divergence and set(some.tables()) == {"summary", "strata", "weights", "graft"}
    )
    assert set(rc.change(pair, problems, "weights", store=store, **SETTINGS).tables()) == {"summary", "weights"}


def test_an_interrupted_part_goes_on(pair, problems, store, found, tmp_path, monkeypatch):
    from rlcircuits.attribution import Passed

    runs, real = [], Passed.losses_from

    def fails(self, *args):
        runs.append(args)
        if len(runs) == 10:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Passed, "losses_from", fails)
    given = dict(store=tmp_path, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        rc.change(pair, problems, "graft", **given)
    assert list((tmp_path / "unfinished").glob("*/grafts-*.journal"))
    again = rc.change(pair, problems, "graft", **given)
    pd.testing.assert_frame_equal(again.graft.table(), found.graft.table())
    assert len(runs) < 10 + len(found.graft.data["chimaera"]) * 2 and not list((tmp_path / "unfinished").iterdir())


def test_the_summary_has_a_line_for_each_angle_with_its_null(found):
    summary = found.summary
    assert list(dict.fromkeys(summary.index.get_level_values("angle"))) == list(PARTS)
    assert summary[["value", "null"]].notna().all(axis=None)
    measured = summary.drop(index=["weights"])
    assert (measured["low"] <= measured["high"]).all()
    table = found.transfer.table().set_index(["intervention", "model", "circuit", "area"])
    (row,) = [
        r
        for (_, q), r in summary.iterrows()
        if q.startswith("CPR of the tuned") and "zero" in q and r["against"] == "its own circuit"
    ]
    assert row["value"] == table.loc[("zero", "tuned", "other", "CPR"), "value"]
    assert row["null"] == table.loc[("zero", "tuned", "own", "CPR"), "value"]


def test_each_stratum_is_its_problems_alone_and_an_empty_one_says_so(found, pair):
    """Against the parts called by hand on a stratum's traces; who is right is set here, as random models never are."""
    from dataclasses import replace

    chosen = found.study.selection
    right = {name: (i % 3 > 0, i % 3 == 1) for i, name in enumerate(chosen.problems)}  # of base, of tuned
    answers = [
        {name: replace(answer, correct=name in right and right[name][side]) for name, answer in some.items()}
        for side, some in enumerate((found.study.base_answers, found.study.tuned_answers))
    ]
    one = replace(found, study=replace(found.study, base_answers=answers[0], tuned_answers=answers[1]))
    table = one.strata
    counts = table.groupby("stratum", sort=False)[["problems", "asked"]].first()
    assert counts["problems"].to_dict() == {"both-correct": 3, "only-tuned": 0, "only-base": 2, "neither": 3}
    assert counts["asked"].to_dict() == {"both-correct": 3, "only-tuned": 0, "only-base": 2, "neither": 7}
    assert table.loc["only-tuned"].index.tolist() == [("", "no problem is in this stratum")]
    assert "only-tuned" in one.report().sections[-1].says and "weights" not in table.index.get_level_values("angle")
    some = [name for name, sides in right.items() if sides == (True, False)]
    traces = {
        side: [trace for trace in rows if trace.problem in some]
        for side, rows in (("base", chosen.base_traces), ("tuned", chosen.tuned_traces))
    }
    models, given = (pair.load("base", "cpu"), pair.load("tuned", "cpu")), {"cut": chosen.t_cut, "progress": False}
    rows = table.loc["only-base"]
    by_hand = rc.divergence(models, traces["tuned"], progress=False).summary.loc["kl_tuned_base"]
    line = rows.loc[("divergence", "KL(tuned ‖ base) per token on the tuned model's answers, nats")]
    np.testing.assert_allclose(line[["value", "low", "high"]].astype(float), by_hand.astype(float), rtol=1e-3)
    grafts = rc.graft(models, traces, **given).table().query("into == 'base' and answers == 'tuned'")
    best = grafts[grafts["kind"] == "module"].sort_values("stands").iloc[-1]
    line = rows.loc[("graft", f"share of the change that {best['modules']} alone brings")]
    np.testing.assert_allclose(
        line[["value", "low", "high"]].astype(float),
        best[["stands", "stands_low", "stands_high"]].astype(float),
        rtol=1e-2,
    )
    scores = [one.sel(sample=some) for one in (found.study.base_scores, found.study.tuned_scores)]
    by_hand = rc.overlap(*scores).table.loc[("edges", "Jaccard 0.1"), "value"]
    assert rows.loc["overlap"].iloc[0]["value"] == by_hand


def test_a_part_is_measured_as_it_is_told_to(found, pair, problems, store):
    how = {"transfer": {"interventions": ["mean"], "seeds": 1}, "graft": {"into": ["base"]}}
    one = rc.change(pair, problems, ["transfer", "graft"], n=8, how=how, device="cpu", store=store)
    assert list(one.transfer.data) == ["mean"] and one.transfer.data["mean"].sizes["seed"] == 1
    assert set(one.graft.data["into"].values) == {"base"}
    ours, theirs = (part.table().query("into == 'base'") for part in (one.graft, found.graft))
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True), rtol=1e-4, atol=1e-5)
    layers = {"graft": {"modules": ["l0", "l1", "a0+m1"], "into": ["base"]}}
    one_of_two = rc.change(pair, problems, "graft", n=8, how=layers, device="cpu", store=store)
    table = one_of_two.graft.table().query("answers == 'tuned' and modules != 'a0+m1'")
    (line,) = one_of_two.summary.loc["graft"].itertuples()
    assert (line.value, line.null, line.against) == (table["stands"].max(), 0.5, "all layers alike")
    assert one.settings["transfer, seeds"] == 1 and "1" in one.report()._repr_html_()


def test_the_report_answers_each_question_on_one_page(found, tmp_path):
    report = found.report(tmp_path / "change.html")
    assert [section.name for section in report.sections] == [*PARTS, "strata"]
    page = (tmp_path / "change.html").read_text("utf-8")
    for section in report.sections:
        assert section.says and f'id="rlr-{section.name}"' in page
    assert "<script" not in page and "What changed: own" in page
    assert "Which edges carry it?" in repr(report) and "overlap" in repr(found) and found._repr_html_()


def test_figures_show_pairs_side_by_side(found):
    both = {"own": found, "<b>again</b>": found}
    summaries = {name: one.summary for name, one in both.items()}
    drawn = {
        "forest": figures.change_forest(summaries, {"transfer": 0, "graft": 0, "weights": 0}),
        "depth": figures.graft_depth({name: one.graft.table() for name, one in both.items()}),
        "modules": figures.graft_modules({name: one.graft.table() for name, one in both.items()}),
        "patching": figures.patching_curves({name: one.patching.curves() for name, one in both.items()}),
        "transfer": figures.transfer_curves({name: one.transfer.curves() for name, one in both.items()}),
    }
    for figure in drawn.values():
        assert isinstance(figure, go.Figure) and len(figure.layout.meta["alt"]) > 60
        assert "<b>again" not in figure.to_json().replace(figure.layout.meta["alt"], "").split('"meta"')[0]
    table = found.graft.table()
    row = table[(table["kind"] == "prefix") & (table["into"] == "base") & (table["answers"] == "tuned")]
    (curve,) = [t for t in drawn["depth"].data if t.name == "own"]
    np.testing.assert_allclose(np.array(curve.y, float), row.sort_values("depth")["stands"])
    alone = table[(table["kind"] == "module") & (table["into"] == "tuned") & (table["answers"] == "tuned")]
    np.testing.assert_allclose(np.array(drawn["modules"].data[1].z, float)[0], 1 - alone["stands"])
    values = [t for t in drawn["forest"].data if t.name == "value"]
    assert float(values[1].x[0]) == pytest.approx(found.summary.loc["graft"].iloc[0]["value"])
    for draw in (figures.graft_depth, figures.graft_modules, figures.patching_curves, figures.transfer_curves):
        with pytest.raises(rc.InputError, match="nothing to draw"):
            draw({})
    with pytest.raises(rc.InputError, match="unknown angle 'graf'"):
        figures.change_forest(summaries, {"graf": 0})


def test_bad_input_is_told_before_any_work(pair, problems, tmp_path, monkeypatch):
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    for options, says in (
        ({"parts": ["grafts"]}, "unknown part 'grafts'.*did you mean 'graft'"),
        ({"how": {"patching": {"steps": 1}}}, "steps is 1"),
        ({"how": {"patch": {}}}, "unknown part 'patch'.*did you mean 'patching'"),
        ({"how": {"graft": {"module": ["a0"]}}}, "unknown argument of graft 'module'.*did you mean 'modules'"),
        ({"level": "blok"}, "did you mean 'block'"),
    ):
        with pytest.raises(rc.InputError, match=says):
            rc.change(pair, problems, store=tmp_path, **options)
