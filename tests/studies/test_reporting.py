"""What a report measures beside a study: against calling it by hand, kept in the store, and not made twice."""

from __future__ import annotations

import numpy as np
import pytest

import rlcircuits as rc
from rlcircuits.reports import pair_report
from rlcircuits.studies import reporting
from tests.studies.test_pipeline import SETTINGS, folders, pair_of, problems

__all__ = ["folders", "problems"]  # fixtures


@pytest.fixture(scope="module")
def world(folders, problems, tmp_path_factory):
    """A study, and the findings that its report was made of."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "pair_report", lambda found: seen.append(found) or pair_report(found))
        study = rc.study(pair_of(folders), problems, store=tmp_path_factory.mktemp("runs"), **SETTINGS)
        study.report()
    return study, seen[0]


def test_each_number_is_what_calling_it_by_hand_gives(world, folders):
    study, found = world
    one = study["own"]
    models = {side: rc.load_model(folders[side], device="cpu") for side in ("base", "tuned")}
    traces = {"base": one.selection.base_traces, "tuned": one.selection.tuned_traces}
    cut = one.selection.t_cut
    for side, model in models.items():
        for text, some in traces.items():
            losses = rc.token_losses(model, some, cut=cut)
            assert found.crossed.loc[text, side] == pytest.approx(np.mean([np.mean(x) for x in losses]), rel=1e-4)
            scores = rc.attribute(model, some, cut=cut)
            expected = np.nanmean(np.abs(scores.values.astype(float)))
            assert found.shared[text].loc["activation_intensity", side] == pytest.approx(expected, rel=1e-4)
    for text, some in traces.items():
        by_loss = rc.token_losses(models["base"], some, loss=rc.Loss("kl", reference=models["tuned"]))
        row = found.divergence.loc[("tuned ‖ base", text)]
        assert row["value"] == pytest.approx(np.mean([np.mean(x) for x in by_loss]), rel=1e-3)
        assert row["largest"] == pytest.approx(max(np.max(x) for x in by_loss), rel=1e-3)
    exact = rc.ablate(models["tuned"], traces["tuned"], cut=cut)
    trust = found.trust["tuned"]
    assert trust.runs == min(trust.cells, reporting.RUNS_A_PROBLEM * trust.problems) and trust.problems == 2
    if trust.runs == trust.cells:  # all of the two problems' edges: the numbers are those of all effects
        chosen = [0, len(one.selection.problems) - 1]
        x, y = (s.values[chosen][np.isfinite(s.values[chosen])] for s in (one.tuned_scores, exact))
        assert trust.table.loc[("EAP", "sign agreement"), "value"] == pytest.approx(np.mean(np.sign(x) == np.sign(y)))


def test_a_report_is_found_again_without_a_model(world, monkeypatch, tmp_path):
    study, _ = world
    first = study.report(tmp_path / "a.html")
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    again = study.report(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes() and repr(first) == repr(again)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        study.report(trust=29)


def test_an_interrupted_check_goes_on_from_what_was_removed(folders, problems, tmp_path, monkeypatch):
    from rlcircuits.exactness import exact

    study = rc.study(pair_of(folders), problems, store=tmp_path, **SETTINGS)
    ran, ablate = [], exact.ablate

    def counted(*args, edges, **options):
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(int(edges.sum()))
        return ablate(*args, edges=edges, **options)

    monkeypatch.setattr(exact, "ablate", counted)
    monkeypatch.setattr(exact, "TOGETHER", 10)
    with pytest.raises(KeyboardInterrupt):
        study.report(trust=30)
    ran += [0, 0]  # from now on nothing is interrupted
    study.report(trust=30)
    assert sum(ran) == 60  # thirty of each model, none of them twice
    assert not [p for p in (tmp_path / "unfinished").glob("*") if p.is_dir()]


def test_one_model_alone_has_a_report_of_its_own(folders, problems, tmp_path):
    report = rc.study(pair_of(folders, "base"), problems, store=tmp_path, **SETTINGS).report()
    assert report.title == "One model: own" and "divergence" not in [section.name for section in report.sections]
    assert report["trust"].holds is not None


@pytest.mark.filterwarnings("ignore::rlcircuits.attribution.NotConverged")
def test_the_check_is_of_the_scores_that_the_study_has(folders, problems, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(reporting, "pair_report", lambda found: seen.append(found) or pair_report(found))
    rc.study(pair_of(folders), problems, store=tmp_path, ig_steps=2, **SETTINGS).report(trust=8, shared=False)
    methods = seen[0].trust["base"].table.index.get_level_values("method")
    assert seen[0].trust["base"].method == "EAP-IG" and list(dict.fromkeys(methods)) == ["EAP", "EAP-IG", "random"]
    model, traces = rc.load_model(folders["base"], device="cpu"), seen[0].selection.base_traces
    scores = rc.attribute(model, traces, cut=seen[0].selection.t_cut, ig_steps=2)
    np.testing.assert_allclose(seen[0].scores["base"].values, scores.values, rtol=1e-4, atol=1e-6)


def test_what_is_left_out_says_so(folders, problems, tmp_path):
    settings = {**SETTINGS, "intervention": "mean"}
    report = rc.study(pair_of(folders), problems, store=tmp_path, **settings).report(shared=False)
    assert "not for mean and nll" in report["trust"].says
    assert "it was switched off" in report["shared"].needs


def test_a_study_put_together_by_hand_has_a_report_without_models():
    from dataclasses import replace

    from rlcircuits.studies import Study
    from tests.lab.test_rich import one_pair

    one = one_pair()
    two = replace(one, selection=replace(one.selection, base_traces=[], tuned_traces=[]))
    report = Study({"own": two}, "block", 0.3, 100, 42).report()
    assert "put together by hand" in report["trust"].says and report["edges"].holds is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [({"trust": 0}, "trust is 0"), ({"trust": "all"}, "'all'"), ({"pair": "owm"}, "did you mean 'own'")],
)
def test_wrong_arguments(world, given, says):
    with pytest.raises(rc.InputError, match=says):
        world[0].report(**given)


def test_of_several_pairs_one_is_named(folders, problems, tmp_path):
    two = [rc.ModelPair(n, folders["base"], folders[n], max_new_tokens=5) for n in ("tuned", "third")]
    study = rc.study(two, problems, store=tmp_path, **SETTINGS)
    with pytest.raises(rc.InputError, match="expected pair=… among tuned, third"):
        study.report()
    assert study.report(pair="third", trust=None).title.endswith("third")
