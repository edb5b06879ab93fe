"""What the explorer gives to its viewer and answers to what the viewer asks; `test_viewer.py` looks at what is drawn."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from rlcircuits.errors import InputError
from rlcircuits.lab.document import MEAN
from rlcircuits.lab.explorer import explore
from rlcircuits.lab.panels import largest_differences, merged
from tests.fixtures.viewer import EVIL, WORDS, graph_scores, matrices, pair_study, scores_of, study, unpacked
from tests.fixtures.waiting import until

VIEW = {"rlcircuits view": 1, "pair": "ppo", "problem": MEAN, "level": "block", "alpha": 0.3, "k": 20, "layers": [0, 2],
        "sources": "all", "destinations": "all", "edge": "", "exact": False}  # fmt: skip


def told(given, **more) -> dict:
    return explore(given, **more).data


# --- the document ---


def test_scores_are_those_of_the_study():
    one = study()
    for name, pair in one.pairs.items():
        found = matrices(scores_of(told(one), name))
        for side in ("base", "tuned"):
            expected = getattr(pair, f"{side}_scores")
            np.testing.assert_allclose(found[side], expected, rtol=1e-6)


def test_means_are_over_problems():
    scores = scores_of(told(study()), "ppo")
    base = pair_study().base_scores.mean("sample").values[unpacked(scores["rows"]), unpacked(scores["columns"])]
    np.testing.assert_allclose(unpacked(scores["measures"][0]["panels"][0]["mean"]), base, rtol=1e-6)


def test_answers_are_tokens_and_losses_those_of_the_scored_ones():
    losses = {"p/0": [0.25, 1.5], "p/2": [0.5]}
    document = told(study(ppo=pair_study(base_losses=losses)))
    texts, scores = document["texts"]["ppo"], scores_of(document, "ppo")
    base = texts["base"]
    assert base["of"] == [f"p/{i}" for i in range(4)] and base["lengths"] == [5] * 4
    assert [texts["tokens"][i] for i in unpacked(base["answers"])] == WORDS[:5] * 4
    assert [texts["ids"][i] for i in unpacked(texts["tuned"]["answers"])] == [0, 1, 5] * 4
    assert base["correct"] == [True, False, True, True] and base["strict"] == [True, False, False, False]
    assert scores["cut"] == 2
    assert scores["losses"]["base"]["lengths"] == [2, 0, 1] and scores["losses"]["tuned"] is None
    np.testing.assert_allclose(unpacked(scores["losses"]["base"]["values"]), [0.25, 1.5, 0.5], rtol=1e-3)
    assert texts["questions"]["p/2"] == [f"how many 2? {EVIL}", EVIL]
    assert document["pairs"][0]["problems"][3] == ["p/3", f"how many 3? {EVIL}", False]


def test_qkv_scores_come_at_block_level_too():
    pair = pair_study(level="qkv")
    document = told(study(ppo=pair))
    assert document["pairs"][0]["levels"] == ["qkv", "block"]
    block = matrices(scores_of(document, "ppo"))["base"]
    a1 = pair.base_scores.sel(destination=["a1<q>", "a1<k>", "a1<v>"]).sum("destination", skipna=False)
    assert block.shape == (3, 7, 7)
    np.testing.assert_allclose(block[:, :, 2], a1, rtol=1e-6)


def test_merged_scores_are_those_attributed_at_block_level():
    from rlcircuits.attribution.eap import attribute
    from rlcircuits.attribution.traces import Trace
    from tests.fixtures.models import tiny

    model = tiny("qwen2")
    traces = [Trace("a", (3, 4, 5), (6, 7)), Trace("b", (8, 9), (10, 11, 12))]
    fine, block = (attribute(model, traces, level=level) for level in ("qkv", "block"))
    found = merged(fine)
    assert found.destination.values.tolist() == block.destination.values.tolist() and found.attrs["level"] == "block"
    np.testing.assert_allclose(found, block, rtol=1e-4, atol=1e-6)


def test_largest_differences_are_sorted_and_complete():
    pair = pair_study()
    table = largest_differences(pair.base_scores, pair.tuned_scores, "p/1", n=4)
    difference = (pair.tuned_scores - pair.base_scores).sel(sample="p/1")
    expected = np.sort(np.abs(difference.values[np.isfinite(difference.values)]))[::-1][:4]
    np.testing.assert_allclose(table["difference"].abs(), expected)
    for row in table.itertuples():
        source, destination = row.edge.split("->")
        at = {"sample": "p/1", "source": source, "destination": destination}
        assert row.base == pair.base_scores.sel(at).item() and row.tuned == pair.tuned_scores.sel(at).item()


# --- missing parts ---


@pytest.mark.parametrize("nothing", [None, SimpleNamespace(), SimpleNamespace(pairs={}), 3])
def test_no_pair_is_said(nothing):
    (note,) = told(nothing)["notes"]
    assert "the study holds no pair; make one with rc.study" in note


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("base_scores", "no edge scores of the base; make them with rc.study"),
        ("tuned_scores", "no edge scores of the tuned model; make them"),
        ("base_answers", "no answers of the base; make them"),
        ("tuned_answers", "no answers of the tuned model; make them"),
        ("problems", "no problems, so no questions; make the study"),
        ("tokenizer", "no tokenizer, so answers are shown whole"),
        ("selection", None),
    ],
)
def test_a_missing_part_is_said_and_the_rest_given(missing, said):
    document = told(study(ppo=pair_study(**{missing: None})))
    (pair,), texts = document["pairs"], document["texts"]["ppo"]
    notes = [*pair["notes"], *texts["notes"]]
    assert len(notes) == (said is not None) and (said or "") in "".join(notes)
    sides = {"base", "tuned"} - {missing.removesuffix("_scores")}
    assert set(matrices(scores_of(document, "ppo"))) == sides
    if missing == "tokenizer":
        assert texts["tokens"] is None and texts["base"]["texts"] == [f"29 + 1 {EVIL}"] * 4
    if missing == "selection":
        assert scores_of(document, "ppo")["cut"] is None


def test_no_scores_at_all():
    document = told(study(ppo=pair_study(base_scores=None, tuned_scores=None)))
    assert document["scores"] == [] and len(document["pairs"][0]["notes"]) == 2
    assert [scored for _, _, scored in document["pairs"][0]["problems"]] == [False] * 4


def test_a_tokenizer_that_cannot_be_loaded_is_said():
    class Unloadable(SimpleNamespace):
        @property
        def tokenizer(self):
            raise InputError("runs/gone holds no checkpoint")

    pair = Unloadable(**{k: v for k, v in vars(pair_study()).items() if k != "tokenizer"})
    texts = told(study(ppo=pair))["texts"]["ppo"]
    assert "runs/gone holds no checkpoint" in texts["notes"][0] and texts["base"]["texts"][0].startswith("29 + 1")


def test_scores_that_do_not_fit_together_are_said():
    document = told(study(ppo=pair_study(tuned_scores=graph_scores(1, n_layers=2)), dpo=pair_study()))
    assert "same graph" in document["pairs"][0]["notes"][0]
    assert [one["pair"] for one in document["scores"]] == ["dpo"]


def test_one_pair_is_a_study_too():
    assert [one["name"] for one in told(pair_study())["pairs"]] == ["family/ppo"]


def test_paths_and_one_model_only(tmp_path):
    from rlcircuits.storage import save_scores

    (note,) = told(str(tmp_path / "nowhere"))["notes"]
    assert "no study at" in note and "is no folder" in note and "rc.study" in note
    assert "holds neither base.nc nor tuned.nc" in told(tmp_path)["notes"][0]
    scores = graph_scores(0).astype(np.float32)
    save_scores(scores, tmp_path / "base.nc")
    document = told(tmp_path)
    np.testing.assert_allclose(matrices(document["scores"][0])["base"], scores, rtol=1e-4, atol=1e-9)
    assert "no edge scores of the tuned model; make them" in document["pairs"][0]["notes"][0]
    assert list(matrices(told(scores)["scores"][0])) == ["base"]
    (tmp_path / "base.nc").write_text("no netCDF")
    assert "base.nc" in told(tmp_path)["notes"][0]


# --- what takes longer ---


@pytest.fixture(scope="module")
def computable(tmp_path_factory):
    """A study of two tiny checkpoints that knows how it was made."""
    import rlcircuits as rc
    from tests.fixtures.checkpoints import save

    folder = tmp_path_factory.mktemp("computable")
    for seed, name in enumerate(("base", "one")):
        save(folder / name, seed=seed)
    problems = rc.ProblemSet("few", tuple(rc.Problem(f"p/{i}", f"w{i} w{i + 1}", "1") for i in range(6)), "final")
    pair = rc.ModelPair("one", str(folder / "base"), str(folder / "one"), max_new_tokens=8)
    return rc.study(pair, problems, keep="all", alpha=0.3, n=6, store=str(folder / "runs"))


@pytest.fixture
def heard(monkeypatch):
    """An explorer, and a list of what it sends to its viewer."""

    def of(given):
        explorer, messages = explore(given).explorer, []
        monkeypatch.setattr(type(explorer.widget), "send", lambda _self, content: messages.append(content))
        return explorer, messages

    return of


def last(messages: list[dict], kind: str):
    return next((one[kind] for one in reversed(messages) if kind in one), None)


@pytest.mark.slow
def test_what_the_store_lacks_is_computed_beside_and_sent(computable, heard):
    from rlcircuits.attribution.ablation import ablate
    from rlcircuits.models.loading import load_model

    explorer, messages = heard(computable)
    assert explorer.widget.data["computes"] and explorer.widget.data["levels"] == ["block", "qkv", "head"]

    def ask(kind: str, **of):
        messages.clear()
        explorer.answer({"ask": kind, "key": "k", "pair": "one", "level": "block", "alpha": 0.7, **of})
        until(lambda: last(messages, kind) or last(messages, "note"), kind)
        assert explorer.worker.waiting == 0 or last(messages, "progress")
        return last(messages, kind)

    expected = computable.at(alpha=0.7).pairs["one"]
    found = ask("scores")
    np.testing.assert_allclose(matrices(found)["tuned"], expected.tuned_scores, rtol=1e-6)
    assert found["cut"] == expected.selection.t_cut
    effects = ask("effects", edge="a0->m1")
    traces, cut = expected.selection.tuned_traces, expected.selection.t_cut
    exact = ablate(load_model(expected.pair.tuned), traces, edges=["a0->m1"], cut=cut)
    np.testing.assert_allclose(effects["tuned"], exact.sel(source="a0", destination="m1"), rtol=1e-4, atol=1e-7)
    assert matrices(ask("scores", level="qkv"))["base"].shape[1:] == (7, 13)
    assert ask("effects", edge="a0->m9") is None and "unknown destination 'm9'" in last(messages, "note")
    explorer.worker.stop()


def test_a_stopped_job_says_so_and_can_be_asked_for_again(computable, heard, monkeypatch):
    explorer, messages = heard(computable)
    asked, jobs = {"ask": "scores", "key": "k", "pair": "one", "level": "block", "alpha": 0.9}, []
    with monkeypatch.context() as held:
        held.setattr(explorer.worker, "submit", lambda *job: jobs.append(job))
        explorer.answer(asked)
    assert last(messages, "progress") == {"title": "one block 0.9", "text": "waiting for its turn", "share": None}
    explorer.worker.submit(signal.pause, {}, jobs[0][2])  # in its place, one that only a stop ends
    explorer.answer({"ask": "stop"})
    until(lambda: last(messages, "note"), "the stop to be told")
    assert "stopped" in last(messages, "note") and messages[-1]["again"] and messages[-1]["key"] == "k"
    assert next(one for one in reversed(messages) if "progress" in one)["progress"] is None


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_the_next_one_runs():
    from rlcircuits.lab.jobs import Worker

    worker, told = Worker(), []
    worker.submit(os.path.getsize, {"filename": "/no/such/file"}, told.append)
    worker.submit(os.path.getsize, {"filename": __file__}, told.append)
    worker.submit(os._exit, {"status": 3}, told.append)
    worker.submit(os.path.getsize, {"filename": __file__}, told.append)
    until(lambda: sum(report.over for report in told) == 4, "four jobs")
    ends = [report for report in told if report.over]
    assert [report.state for report in ends] == ["failed", "done", "failed", "done"]
    assert "FileNotFoundError" in ends[0].text and "has ended" in ends[2].text
    assert ends[1].result == ends[3].result == os.path.getsize(__file__)
    worker.stop()


# --- views ---


def test_a_view_is_saved_and_opened_again(tmp_path, heard):
    one = study()
    one.alpha = 0.3
    explorer, messages = heard(one)
    view = VIEW | {"pair": "dpo", "problem": "p/2", "k": 9, "layers": [0, 1], "sources": "MLP", "edge": "a0->m1"}
    file = tmp_path / "view.json"
    explorer.answer({"ask": "save", "file": str(file), "view": view})
    assert f"saved: {file}; open it with rc.explore(study, view=" in messages[-1]["saved"]
    again = explore(one, view=file).explorer
    assert again.view() == view
    explorer.open(view | {"measure": "score", "panel": "base"})
    assert explorer.widget.view["panel"] == messages[-1]["open"]["panel"] == "base"
    explorer.answer({"ask": "save", "file": "view.txt", "view": view})
    assert "ends in .json" in messages[-1]["saved"]
    with pytest.raises(InputError, match=r"ends in .svg or .html or .png or .pdf"):
        again.export("picture.jpg")
    again.export(tmp_path / "graph.html")
    assert "p/2" in (tmp_path / "graph.html").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rlcircuits view": 2}, "expected a file that the explorer saved"),
        ({"pair": "pp"}, "unknown pair 'pp'.*did you mean 'ppo'"),
        ({"problem": "p/77"}, "unknown problem 'p/77'"),
        ({"level": "head"}, "unknown level 'head'"),
        ({"layers": [0, 9]}, "layers are 0 to 9: expected within 0 to 2"),
        ({"k": "many"}, "k is 'many', expected int"),
        ({"colour": "red"}, "unknown choice .*'colour'"),
        ({"sources": "MLPs"}, "did you mean 'MLP'"),
        ({"alpha": 7}, "alpha is 7"),
        ({"panel": 3}, "panel is 3, expected str"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(change, said):
    one = study()
    one.alpha = 0.3
    with pytest.raises(InputError, match=said):
        explore(one, view=VIEW | change)


def test_what_is_no_view_is_refused(tmp_path):
    with pytest.raises(InputError, match="no view at"):
        explore(study(), view=tmp_path / "none.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        explore(study(), view=tmp_path / "half.json")
