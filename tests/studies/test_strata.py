"""Strata: problems by who answers them right, on models whose answers decide what is right."""

from __future__ import annotations

import itertools

import pytest

import rlcircuits as rc
from rlcircuits.answers import GRADERS, STRATA, NothingLeft, stratum_of
from tests.fixtures.checkpoints import WORDS, save

SETTINGS = {"keep": "all", "alpha": 1.0, "beta": 0.0, "gamma": 9.0, "delta": 2.0, "device": "cpu"}


def said(problem, correct, length=4, model=0):
    return rc.Answer(problem, (1, 2), tuple(range(model, model + length)), "x", correct, True, correct)


def answers():
    """Of every two verdicts as many problems as the second number: 4 by both, 3 by the base, 2 by the tuned model, 1 by none."""
    verdicts = itertools.chain(*([two] * n for n, two in ((4, (1, 1)), (3, (1, 0)), (2, (0, 1)), (1, (0, 0)))))
    two = [(said(f"p{i}", bool(b), 4 + i % 3), said(f"p{i}", bool(t), 5, 1)) for i, (b, t) in enumerate(verdicts)]
    return [one for one, _ in two], [one for _, one in two]


@pytest.mark.parametrize(
    ("keep", "expected"), [("both-correct", 4), ("only-base", 3), ("only-tuned", 2), ("neither", 1)]
)
def test_a_stratum_is_selected_as_its_problems_alone_would_be(keep, expected):
    base, tuned = answers()
    found = rc.select(base, tuned, 0.5, keep=keep)
    chosen = [i for i in range(10) if stratum_of(base[i], tuned[i]) == keep]
    alone = rc.select([base[i] for i in chosen], [tuned[i] for i in chosen], 0.5, keep="all")
    assert len(found.problems) == expected and found.problems == alone.problems
    assert (found.t_bar, found.t_cut, found.tuned_traces) == (alone.t_bar, alone.t_cut, alone.tuned_traces)
    assert found.dropped["rule"][0] == STRATA[keep] and found.dropped["dropped"][0] == 10 - expected


def test_strata_part_all_problems():
    base, tuned = answers()
    kept = [problem for keep in STRATA for problem in rc.select(base, tuned, 1.0, keep=keep).problems]
    assert sorted(kept) == [f"p{i}" for i in range(10)]


def test_an_empty_stratum_is_said_to_be_with_where_its_problems_are():
    base, tuned = (one[:7] for one in answers())
    with pytest.raises(NothingLeft, match="only the tuned model's answer correct.*that stratum is empty") as caught:
        rc.select(base, tuned, 1.0, keep="only-tuned")
    counts = caught.value.reasons.set_index("reason")["problems"].to_dict()
    assert counts == {STRATA["both-correct"]: 4, STRATA["only-base"]: 3}


def test_one_model_alone_has_no_strata():
    with pytest.raises(rc.InputError, match="keep is 'only-tuned', of one model alone"):
        rc.select(answers()[0], None, 1.0, keep="only-tuned")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six problems; what is right is what the base, the tuned model or neither says. The two never say the same."""
    root, patch = tmp_path_factory.mktemp("strata"), pytest.MonkeyPatch()
    made = {}

    def grade(reference, text):
        side, number = reference.split()
        return bool(made) and side != "nobody" and text == made[side][int(number)].text

    patch.setitem(GRADERS, "whose", grade)
    folders = [save(root / name, layers=2, seed=seed) for seed, name in enumerate(("base", "tuned"))]
    pair = rc.ModelPair("own", *folders, max_new_tokens=5)
    asked = [" ".join(WORDS[i : i + 4]) for i in range(12)]

    def right(numbers, sides):
        chosen = zip(numbers, sides)
        return rc.ProblemSet(
            "words", tuple(rc.Problem(f"p{k}", asked[i], f"{side} {i}") for k, (i, side) in enumerate(chosen)), "whose"
        )

    made |= rc.generate_pair(pair, right(range(12), ["nobody"] * 12), store=root / "draft", device="cpu")
    differ = [i for i in range(12) if made["base"][i].text != made["tuned"][i].text]
    problems = right(differ, ["tuned", "tuned", "tuned", "base", "base", "nobody"])
    yield rc.study(pair, problems, store=root / "runs", **SETTINGS)
    patch.undo()


def test_every_stratum_is_a_study_of_its_problems(study):
    found = study.strata()
    assert dict(found.counts) == {"only-tuned": 3, "only-base": 2, "neither": 1}
    assert {name: sorted(one.selection.problems) for name, one in found.studies.items()} == {
        "only-tuned": ["p0", "p1", "p2"],
        "only-base": ["p3", "p4"],
        "neither": ["p5"],
    }
    one = found.studies["only-tuned"]
    expected = rc.compare(one.base_scores, one.tuned_scores)
    table = found.table().loc["only-tuned"]
    assert table["difference"].tolist() == pytest.approx(expected["difference"].tolist(), nan_ok=True)
    assert (table["problems"] == 3).all() and "p_holm" in table
    scores = rc.attribute(one.pair.load("tuned", "cpu"), one.selection.tuned_traces, cut=one.selection.t_cut)
    assert abs(one.tuned_scores - scores).max() < 1e-6
    assert found.selections().loc[("neither", STRATA["neither"]), "left"] == 1


def test_what_is_empty_is_shown_so(study):
    found = study.strata("own")
    assert list(found.empty) == ["both-correct"] and "both answers correct" in found.empty["both-correct"]
    assert found.shown().loc["both-correct", ["problems", "compared"]].tolist() == [0, 0]
    assert "both-correct: no problem is left" in repr(found) and "both-correct: no problem" in found._repr_html_()
    with pytest.raises(rc.InputError, match="unknown pair 'other'"):
        study.strata("other")
