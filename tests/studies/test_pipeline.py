"""From a pair of checkpoints to a comparison through the store, and what is kept when something goes wrong."""

from __future__ import annotations

import numpy as np
import pytest

import rlcircuits as rc
from tests.fixtures.checkpoints import WORDS, save

SETTINGS = {"keep": "all", "n": 6, "alpha": 1.0, "device": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: save(root / name, layers=2, seed=seed) for seed, name in enumerate(("base", "tuned", "third"))}


@pytest.fixture(scope="module")
def problems():
    asked = tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 4]), WORDS[i]) for i in range(8))
    return rc.ProblemSet("words", asked, grader="final")


def pair_of(folders, tuned="tuned", **options):
    return rc.ModelPair("own", folders["base"], folders[tuned], max_new_tokens=5, **options)


def test_every_step_is_what_calling_it_by_hand_gives(folders, problems, tmp_path):
    one = rc.study(pair_of(folders), problems, store=tmp_path, **SETTINGS).pairs["own"]
    for side, answers, scores, traces in (
        ("base", one.base_answers, one.base_scores, one.selection.base_traces),
        ("tuned", one.tuned_answers, one.tuned_scores, one.selection.tuned_traces),
    ):
        model = rc.load_model(folders[side], device="cpu")
        assert {a.problem: a for a in rc.generate(model, problems, max_new_tokens=5)} == dict(answers)
        expected = rc.attribute(model, traces, cut=one.selection.t_cut)
        np.testing.assert_array_equal(scores.values, expected.values)
        assert list(scores.sample.values) == list(one.selection.problems)
    assert one.comparison.loc["activation_intensity", "difference"] == pytest.approx(
        np.nanmean(np.abs(one.tuned_scores.values)) - np.nanmean(np.abs(one.base_scores.values)), rel=1e-4
    )


def test_integrated_gradients_and_means_are_scores_of_their_own(folders, problems, tmp_path):
    plain = rc.study(pair_of(folders), problems, store=tmp_path, **SETTINGS).pairs["own"]
    for given in ({"ig_steps": 3}, {"intervention": "mean"}):
        one = rc.study(pair_of(folders), problems, store=tmp_path, memory="lean", **given, **SETTINGS)
        found = one.pairs["own"]
        model = rc.load_model(folders["tuned"], device="cpu")
        expected = rc.attribute(model, found.selection.tuned_traces, cut=found.selection.t_cut, **given)
        np.testing.assert_allclose(found.tuned_scores.values, expected.values, rtol=1e-4, atol=1e-6)
        assert not np.allclose(found.tuned_scores.values, plain.tuned_scores.values, equal_nan=True)
        assert one.at(level="qkv").settings["ig_steps"] == given.get("ig_steps", 1)


def test_the_other_model_of_the_pair_replaces_or_is_the_reference(folders, problems, tmp_path):
    base, tuned = (rc.load_model(folders[side], device="cpu") for side in ("base", "tuned"))
    for given, asked in (
        ({"intervention": "model"}, lambda other: {"intervention": "model", "other": other}),
        ({"loss": "kl"}, lambda other: {"loss": rc.Loss("kl", reference=other)}),
    ):
        one = rc.study(pair_of(folders), problems, store=tmp_path, **given, **SETTINGS).pairs["own"]
        chosen = one.selection
        for found, model, traces, other in (
            (one.base_scores, base, chosen.base_traces, tuned),
            (one.tuned_scores, tuned, chosen.tuned_traces, base),
        ):
            expected = rc.attribute(model, traces, cut=chosen.t_cut, **asked(other))
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-6)
    third = rc.study(pair_of(folders, "third"), problems, store=tmp_path, intervention="model", **SETTINGS)
    own = rc.study(pair_of(folders), problems, store=tmp_path, intervention="model", **SETTINGS)
    base_scores = [study.pairs["own"].base_scores.values for study in (third, own)]
    assert not np.allclose(*base_scores, equal_nan=True)  # the same base on the same tokens, beside another model


@pytest.mark.parametrize(
    "given", [{"ig_steps": 0}, {"ig_steps": True}, {"intervention": "corrupted"}, {"memory": "little"}, {"loss": "mse"}]
)
def test_scoring_that_is_unknown_is_refused_before_any_work(folders, problems, tmp_path, monkeypatch, given):
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    with pytest.raises(rc.InputError, match=next(iter(given))):
        rc.study(pair_of(folders), problems, store=tmp_path, **given, **SETTINGS)


def test_a_warm_study_loads_no_model(folders, problems, tmp_path, monkeypatch):
    first = rc.study(pair_of(folders), problems, store=tmp_path, **SETTINGS)
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    again = rc.study(pair_of(folders), problems, store=tmp_path, **SETTINGS)
    assert first.table().equals(again.table())
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        rc.study(pair_of(folders), problems, level="head", store=tmp_path, **SETTINGS)


def test_pairs_share_what_they_have_in_common(folders, problems, tmp_path, monkeypatch):
    loaded = []
    load = rc.ModelPair.load
    monkeypatch.setattr(
        rc.ModelPair, "load", lambda self, side, *a: loaded.append(getattr(self, side)) or load(self, side, *a)
    )
    two = [rc.ModelPair(n, folders["base"], folders[n], max_new_tokens=5) for n in ("tuned", "third")]
    study = rc.study(two, problems, store=tmp_path, **SETTINGS)
    assert sorted(loaded) == sorted(str(f) for f in folders.values())
    table = study.table()
    assert set(table.index.get_level_values("pair")) == {"tuned", "third"}
    assert (table.p_holm >= table.p).all()


def test_a_model_against_itself_shows_no_difference(folders, problems, tmp_path):
    comparison = rc.study(pair_of(folders, "base"), problems, store=tmp_path, **SETTINGS).pairs["own"].comparison
    assert (comparison.difference == 0).all() and (comparison.p == 1).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": "both-correct"}, "correct"),
        ({"alpha": 0}, "alpha"),
        ({"level": "heads"}, "did you mean 'head'"),
        ({"keep": "al"}, "'al'"),
    ],
)
def test_bad_settings(folders, problems, tmp_path, settings, says):
    with pytest.raises(rc.InputError, match=says):
        rc.study(pair_of(folders), problems, store=tmp_path, **{**SETTINGS, **settings})


def test_models_that_cannot_be_compared_are_refused_before_they_answer(folders, problems, tmp_path, monkeypatch):
    other = save(tmp_path / "other", layers=2, words=tuple(WORDS[::-1]))
    monkeypatch.setattr("rlcircuits.studies.steps.generate", lambda *_a, **_k: pytest.fail("a model answered"))
    with pytest.raises(rc.InputError, match="different vocabularies"):
        rc.study(rc.ModelPair("own", folders["base"], other), problems, store=tmp_path / "runs", **SETTINGS)


def test_no_pairs_and_repeated_names(folders, problems, tmp_path):
    with pytest.raises(rc.InputError, match="no pairs given"):
        rc.study([], problems, store=tmp_path)
    with pytest.raises(rc.InputError, match="two pairs are called 'own'"):
        rc.study([pair_of(folders), pair_of(folders, "third")], problems, store=tmp_path)
    with pytest.raises(rc.InputError, match="no checkpoint at '/nowhere/x'"):
        rc.study(rc.ModelPair("own", "/nowhere/x", "/nowhere/y"), problems, store=tmp_path, **SETTINGS)


def test_no_public_name_is_hidden_by_a_module_of_the_same_name():
    import importlib
    import pkgutil

    modules = {m.name for m in pkgutil.iter_modules(rc.__path__)}
    for name in modules:
        importlib.import_module(f"rlcircuits.{name}")
    assert not modules & set(rc.__all__)
    assert callable(rc.study) and callable(rc.attribute)
