"""The explorer driven by its controls' values; what it shows is read back from its figures and tables."""

from __future__ import annotations

import os
import re
import signal
import struct
import zlib
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

from rlcircuits.attribution.graph import Graph
from rlcircuits.errors import InputError
from rlcircuits.lab.explorer import MEAN, explore
from rlcircuits.lab.panels import Shown, largest_differences, merged
from rlcircuits.lab.pictures import Dots, graph_svg, heatmap_svg, png, scatter_svg
from rlcircuits.metrics import definitions as metrics
from tests.fixtures.waiting import until

EVIL = '<script>alert("x")</script> $x^2$'
WORDS = ["29", "+", "1", "=", "30", EVIL]


class WordTokenizer:
    def decode(self, ids) -> str:
        return " ".join(WORDS[i] for i in ids)


def graph_scores(seed: int, level: str = "block", n: int = 3, n_layers: int = 3) -> xr.DataArray:
    graph = Graph.build(level, n_layers, 4, 2)
    w = np.random.default_rng(seed).laplace(scale=1e-3, size=(n, *graph.mask.shape))
    coords = {
        "sample": [f"p/{i}" for i in range(n)],
        "source": list(graph.sources),
        "destination": list(graph.destinations),
    }
    return xr.DataArray(np.where(graph.mask, w, np.nan), dims=metrics.DIMS, coords=coords, attrs={"level": level})


def answers(ids) -> dict:
    return {
        f"p/{i}": SimpleNamespace(
            problem=f"p/{i}", text=f"29 + 1 {EVIL}", answer=tuple(ids), correct=i != 1, strict=i == 0
        )
        for i in range(4)
    }


def pair_study(seed: int = 0, level: str = "block", **replaced) -> SimpleNamespace:
    """A pair with scores of problems 0, 1, 2 and answers to 3 as well."""
    parts = {
        "pair": SimpleNamespace(name="family/ppo", base="b", tuned="t", method="PPO"),
        "problems": {
            f"p/{i}": SimpleNamespace(id=f"p/{i}", question=f"how many {i}? {EVIL}", reference=EVIL) for i in range(4)
        },
        "base_answers": answers([0, 1, 2, 3, 4]),
        "tuned_answers": answers([0, 1, 5]),
        "selection": SimpleNamespace(t_cut=2, problems=("p/0", "p/1", "p/2")),
        "base_scores": graph_scores(seed, level),
        "tuned_scores": graph_scores(seed + 100, level),
        "tokenizer": WordTokenizer(),
    }
    return SimpleNamespace(**{k: v for k, v in (parts | replaced).items() if v is not None})


def study(**pairs) -> SimpleNamespace:
    return SimpleNamespace(pairs=pairs or {"ppo": pair_study(), "dpo": pair_study(7)})


def panels(explorer) -> list[np.ndarray]:
    return [np.array(t.z, float) for t in explorer.heatmap.figure.data]


def drawn_edges(explorer, panel: int) -> dict[str, list[float]]:
    """Edge to its scores in all panels, as hovering over one panel of the graph shows them."""
    axis = "x" if panel == 0 else f"x{panel + 1}"
    dots = [t for t in explorer.graph.figure.data if t.mode == "markers" and t.text and t.xaxis == axis]
    return {text: list(c) for t in dots for text, c in zip(t.text, t.customdata, strict=True)}


def test_it_opens_on_the_mean_of_the_first_pair():
    one = study()
    explorer = explore(one).explorer
    assert explorer.pair.value == "ppo" and explorer.problem.value == MEAN and explorer.message.value == ""
    base, tuned = one.pairs["ppo"].base_scores.mean("sample"), one.pairs["ppo"].tuned_scores.mean("sample")
    for found, expected in zip(panels(explorer), (base, tuned, tuned - base), strict=True):
        np.testing.assert_allclose(found, expected)


def test_choosing_a_pair_and_a_problem_shows_their_scores_and_answers():
    one = study()
    explorer = explore(one).explorer
    explorer.pair.value = "dpo"
    explorer.problem.value = "p/2"
    expected = one.pairs["dpo"].base_scores.sel(sample="p/2")
    np.testing.assert_array_equal(panels(explorer)[0], expected)
    assert (
        "how many 2?" in explorer.answers.value
        and "correct, not strictly, 5 tokens, first 2 scored" in explorer.answers.value
    )
    explorer.problem.value = "p/1"
    assert "(wrong, 3 tokens" in explorer.answers.value
    explorer.pair.value = "ppo"  # the problem stays
    assert explorer.problem.value == "p/1"
    np.testing.assert_array_equal(panels(explorer)[0], one.pairs["ppo"].base_scores.sel(sample="p/1"))


def test_k_is_the_number_of_edges_drawn_and_they_are_the_strongest():
    explorer = explore(study()).explorer
    explorer.problem.value = "p/0"
    explorer.k.value = 5
    matrix = panels(explorer)[2]
    expected = np.sort(np.abs(matrix[np.isfinite(matrix)]))[-5:]
    found = drawn_edges(explorer, 2)
    np.testing.assert_allclose(np.sort([abs(v[2]) for v in found.values()]), expected)
    for base, tuned, difference in found.values():
        assert difference == pytest.approx(tuned - base)


def test_filters_by_layer_and_kind():
    explorer = explore(study()).explorer
    explorer.k.value = 200
    explorer.destinations.value = "logits"
    assert all(edge.endswith("→ logits") for edge in drawn_edges(explorer, 0))
    assert len(drawn_edges(explorer, 0)) == 7  # input and two of each of three layers
    explorer.sources.value = "MLP"
    assert sorted(drawn_edges(explorer, 0)) == ["m0 → logits", "m1 → logits", "m2 → logits"]
    explorer.layers.value = (1, 2)
    assert sorted(drawn_edges(explorer, 0)) == ["m1 → logits", "m2 → logits"]
    assert "m1-&gt;logits" in explorer.largest.value and "m0-&gt;logits" not in explorer.largest.value
    explorer.sources.value, explorer.destinations.value = "input", "MLP"
    assert sorted(drawn_edges(explorer, 0)) == ["input → m1", "input → m2"]
    explorer.sources.value, explorer.destinations.value, explorer.layers.value = "MLP", "attention", (2, 2)
    assert drawn_edges(explorer, 0) == {} and "No edge is left" in explorer.largest.value
    assert explorer.message.value == ""
    explorer.sources.value = explorer.destinations.value = "all"
    explorer.layers.value = (0, 2)
    assert len(drawn_edges(explorer, 0)) == 28


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


def test_qkv_scores_can_be_shown_at_block_level():
    pair = pair_study(level="qkv")
    explorer = explore(study(ppo=pair)).explorer
    assert explorer.level.options == ("qkv", "block") and panels(explorer)[0].shape == (7, 13)
    explorer.level.value = "block"
    assert panels(explorer)[0].shape == (7, 7)
    a1 = pair.base_scores.sel(destination=["a1<q>", "a1<k>", "a1<v>"]).sum("destination", skipna=False).mean("sample")
    np.testing.assert_allclose(panels(explorer)[0][:, 2], a1)


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


def test_per_token_losses_are_shown_where_the_study_has_them():
    plain = explore(study(ppo=pair_study())).explorer
    plain.problem.value = "p/0"
    assert "loss" not in plain.answers.value
    pair = pair_study(base_losses={"p/0": [0.25, 1.5]})  # of the scored tokens only
    explorer = explore(study(ppo=pair)).explorer
    explorer.problem.value = "p/0"
    assert "loss 0.25 nats" in explorer.answers.value and explorer.answers.value.count("loss ") == 2


# --- text stays text ---


def test_model_text_is_escaped_everywhere():
    names = {"source": [EVIL, *pair_study().base_scores.source.values[1:]]}
    pair = pair_study()
    pair.base_scores, pair.tuned_scores = (s.assign_coords(names) for s in (pair.base_scores, pair.tuned_scores))
    explorer = explore(study(ppo=pair)).explorer
    explorer.problem.value = "p/0"
    for shown in (explorer.answers.value, explorer.largest.value, explorer.message.value):
        assert "<script" not in shown
    assert explorer.answers.value.count("&lt;script&gt;") == 3  # question, reference, a token of the tuned answer
    assert "mathjax_ignore" in explorer.answers.value
    assert "<script" not in str(explorer.graph.figure.data) + str(explorer.heatmap.figure.data)


# --- missing parts ---


@pytest.mark.parametrize("nothing", [None, SimpleNamespace(), SimpleNamespace(pairs={}), 3])
def test_no_pair_is_said(nothing):
    box = explore(nothing)
    assert "the study holds no pair; make one with rc.study" in box.explorer.message.value
    assert len(box.children) == 1


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
def test_a_missing_part_is_said_and_the_rest_shown(missing, said):
    explorer = explore(study(ppo=pair_study(**{missing: None}))).explorer
    explorer.problem.value = "p/1"
    assert (said or "") in explorer.message.value and bool(explorer.message.value) == (said is not None)
    left = "tuned" if missing.startswith("base") else "base"
    if missing.endswith("scores"):
        assert len(panels(explorer)) == 1 and explorer.heatmap.figure.layout.annotations[0].text == left
        assert f">{left}</th>" in explorer.largest.value and "difference" not in explorer.largest.value
    else:
        assert len(panels(explorer)) == 3
    assert "29" in explorer.answers.value


def test_no_scores_at_all():
    explorer = explore(study(ppo=pair_study(base_scores=None, tuned_scores=None))).explorer
    explorer.problem.value = "p/1"
    assert explorer.graph.figure is None and explorer.heatmap.figure is None
    assert "no edge scores of the base" in explorer.message.value and "29" in explorer.answers.value


def test_a_problem_that_was_not_selected_has_answers_but_no_scores():
    explorer = explore(study()).explorer
    explorer.problem.value = "p/3"
    assert "problem p/3 was not selected" in explorer.message.value
    assert explorer.graph.figure is None and "how many 3?" in explorer.answers.value
    explorer.problem.value = "p/0"
    assert explorer.message.value == "" and len(panels(explorer)) == 3


def test_a_tokenizer_that_cannot_be_loaded_is_said():
    class Unloadable(SimpleNamespace):
        @property
        def tokenizer(self):
            raise InputError("runs/gone holds no checkpoint")

    pair = Unloadable(**{k: v for k, v in vars(pair_study()).items() if k != "tokenizer"})
    explorer = explore(study(ppo=pair)).explorer
    explorer.problem.value = "p/0"
    assert "runs/gone holds no checkpoint" in explorer.message.value and "29 + 1" in explorer.answers.value


def test_scores_that_do_not_fit_together_are_said():
    pair = pair_study(tuned_scores=graph_scores(1, n_layers=2))
    explorer = explore(study(ppo=pair, dpo=pair_study())).explorer
    assert "same graph" in explorer.message.value and explorer.graph.figure is None
    explorer.pair.value = "dpo"
    assert explorer.message.value == "" and len(panels(explorer)) == 3


def test_one_pair_is_a_study_too():
    explorer = explore(pair_study()).explorer
    assert explorer.pair.options == ("family/ppo",) and len(panels(explorer)) == 3


# --- pictures ---


def drawn(explorer, panel: int = 0) -> set[str]:
    """The edges in a panel of the graph's picture, which is well-formed XML."""
    groups = ElementTree.fromstring(explorer.graph.svg).findall("{*}g")
    return {edge.get("data-edge") for edge in groups[panel].iterfind("{*}g[@data-edge]")}


def test_the_pictures_show_what_the_figures_show():
    explorer = explore(study()).explorer
    explorer.problem.value = "p/1"
    explorer.k.value = 7
    for panel in range(3):
        assert drawn(explorer, panel) == {name.replace(" → ", "->") for name in drawn_edges(explorer, panel)}
    cells = ElementTree.fromstring(explorer.heatmap.svg).findall("{*}g")[2].iterfind("{*}rect[@data-edge]")
    said = {cell.get("data-edge"): cell.findtext("{*}title") for cell in cells}
    pair = explorer.pairs["ppo"]
    at = {"sample": "p/1", "source": "a0", "destination": "m1"}
    difference = pair.tuned_scores.sel(at).item() - pair.base_scores.sel(at).item()
    assert len(said) == 28 and f"tuned − base: {difference:.3g} nats" in said["a0->m1"]


@pytest.mark.slow
def test_pictures_of_a_large_graph_stay_small():
    graph = Graph.build("head", 32, 32, 8)
    matrix = np.where(graph.mask, np.random.default_rng(0).laplace(size=graph.mask.shape), np.nan)
    panels = {"base": matrix, "tuned": -matrix, "tuned − base": -2 * matrix}
    svg = graph_svg(panels, graph.sources, graph.destinations, 200)
    assert svg.count("<path") == 2 * 3 * 200 and len(svg) < 1_500_000
    heat = heatmap_svg(panels, graph.sources, graph.destinations)
    assert heat.count("<image") == 3 and heat.count("<rect") < 10


def test_an_image_of_a_matrix_can_be_read_back(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = png(rgb)
    size = struct.unpack(">II", content[16:24])
    data = content[content.index(b"IDAT") + 4 : content.index(b"IEND") - 8]
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(5, -1)
    assert size == (7, 5) and not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), rgb)


# --- one edge, work that takes longer, saving ---


def test_a_clicked_edge_is_shown_on_every_problem():
    explorer = explore(study()).explorer
    explorer.problem.value = "p/1"
    if explorer.clicks is None:
        explorer.choose_edge("a0->m1")
    else:
        explorer.clicks.picked = {"edge": "a0->m1", "at": 1}
    assert explorer.edge.value == "a0->m1" and "Edge a0-&gt;m1" in explorer.one_edge.value
    svg = explorer.one_edge.value
    titles = re.findall(r"<title>(p/\d), problems: (\S+), (\S+) nats", svg)
    pair = explorer.pairs["ppo"]
    for problem, base, tuned in titles:
        at = {"sample": problem, "source": "a0", "destination": "m1"}
        assert float(base) == pytest.approx(pair.base_scores.sel(at).item(), rel=0.01)
        assert float(tuned) == pytest.approx(pair.tuned_scores.sel(at).item(), rel=0.01)
    assert len(titles) == 3
    explorer.pair.value = "dpo"  # the edge stays
    assert explorer.edge.value == "a0->m1"
    for wrong in ("a9->m1", "", "<script>", "m2->a0"):
        explorer.choose_edge(wrong)
        assert explorer.edge.value == "a0->m1"


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
def asked(monkeypatch):
    """Makes a choice while the worker takes nothing, and gives the jobs that the choice asked of it."""

    def choose(explorer, choice) -> list[tuple]:
        jobs = []
        with monkeypatch.context() as held:
            held.setattr(explorer.worker, "submit", lambda *job: jobs.append(job))
            choice()
        return jobs

    return choose


@pytest.mark.slow
def test_what_the_store_lacks_is_computed_beside_and_shown(computable, asked):
    from rlcircuits.attribution.ablation import ablate
    from rlcircuits.models.loading import load_model

    explorer = explore(computable).explorer

    def computed(jobs) -> None:
        (job,) = jobs
        explorer.worker.submit(*job)
        until(lambda: "being computed" not in explorer.message.value, "what is computed")

    jobs = asked(explorer, lambda: setattr(explorer.alpha, "value", 0.7))
    assert "α 0.7: being computed" in explorer.message.value
    assert explorer.progress.layout.display == "flex" and explorer.graph.svg == ""
    computed(jobs)
    expected = computable.at(alpha=0.7).pairs["one"]
    np.testing.assert_array_equal(panels(explorer)[1], expected.tuned_scores.mean("sample", dtype=float))
    assert explorer.progress.layout.display == "none" and explorer.message.value == ""

    computed(asked(explorer, lambda: explorer.choose_edge("a0->m1")))
    cut, traces = expected.selection.t_cut, expected.selection.tuned_traces
    exact = ablate(load_model(expected.pair.tuned), traces, edges=["a0->m1"], cut=cut).sel(
        source="a0", destination="m1"
    )
    said = re.search(r"tuned: score .*? exactly ([-\d.e]+)", explorer.one_edge.value)[1]
    assert float(said) == pytest.approx(float(exact.mean()), rel=0.01)
    computed(asked(explorer, lambda: setattr(explorer.level, "value", "qkv")))
    assert panels(explorer)[0].shape == (7, 13) and explorer.edge.value == "a0->m1"  # an edge of this level, too
    assert "exactly" in explorer.one_edge.value
    explorer.worker.stop()


def test_a_stopped_job_says_so_and_can_be_asked_for_again(computable, asked):
    explorer = explore(computable).explorer
    ((_, _, told),) = asked(explorer, lambda: setattr(explorer.alpha, "value", 0.9))
    explorer.worker.submit(signal.pause, {}, told)  # in its place, one that only a stop ends
    explorer.stop.click()
    until(lambda: "stopped" in explorer.message.value, "the stop to be told")
    assert explorer.progress.layout.display == "none"
    explorer.alpha.value = 0.3
    assert explorer.message.value == "" and explorer.graph.svg


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_the_next_one_runs():
    from rlcircuits.lab.jobs import Worker

    worker, told = Worker(), []
    worker.submit(os.path.getsize, {"filename": "/no/such/file"}, told.append)
    worker.submit(os.path.getsize, {"filename": __file__}, told.append)
    worker.submit(os._exit, {"status": 3}, told.append)
    worker.submit(os.path.getsize, {"filename": __file__}, told.append)
    until(lambda: sum(report.over for report in told) == 4, "four jobs")
    last = [report for report in told if report.over]
    assert [report.state for report in last] == ["failed", "done", "failed", "done"]
    assert "FileNotFoundError" in last[0].text and "has ended" in last[2].text
    assert last[1].result == last[3].result == os.path.getsize(__file__)
    worker.stop()


def test_a_view_is_saved_and_opened_again(tmp_path):
    one = study()
    explorer = explore(one).explorer
    explorer.pair.value, explorer.problem.value, explorer.k.value = "dpo", "p/2", 9
    explorer.layers.value, explorer.sources.value = (0, 1), "MLP"
    explorer.choose_edge("a0->m1")
    explorer.file.value = str(tmp_path / "view.json")
    explorer.save_view.click()
    assert "saved: " in explorer.saved.value
    again = explore(one, view=tmp_path / "view.json").explorer
    assert again.view() == explorer.view() and again.graph.svg == explorer.graph.svg
    explorer.file.value = str(tmp_path / "graph.svg")
    explorer.save_picture.click()
    assert (tmp_path / "graph.svg").read_text() == explorer.graph.svg
    explorer.file.value = "picture.jpg"
    explorer.save_picture.click()
    assert "ends in .svg or .html or .png or .pdf" in explorer.saved.value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rlcircuits view": 2}, "expected a file that the explorer saved"),
        ({"pair": "pp"}, "unknown pair 'pp'.*did you mean 'ppo'"),
        ({"problem": "p/77"}, "unknown problem 'p/77'"),
        ({"layers": [0, 9]}, "layers are 0 to 9: expected within 0 to 2"),
        ({"k": "many"}, "k is 'many', expected int"),
        ({"colour": "red"}, "unknown choice .*'colour'"),
        ({"sources": "MLPs"}, "did you mean 'MLP'"),
        ({"alpha": 7}, "alpha is 7"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(change, said):
    view = explore(study()).explorer.view() | change
    with pytest.raises(InputError, match=said):
        explore(study(), view=view)


def test_what_is_no_view_is_refused(tmp_path):
    with pytest.raises(InputError, match="no view at"):
        explore(study(), view=tmp_path / "none.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        explore(study(), view=tmp_path / "half.json")


def test_paths_and_one_model_only(tmp_path):
    from rlcircuits.storage import save_scores

    message = explore(str(tmp_path / "nowhere")).explorer.message.value
    assert "no study at" in message and "is no folder" in message and "rc.study" in message
    assert "holds neither base.nc nor tuned.nc" in explore(tmp_path).explorer.message.value
    scores = graph_scores(0).astype(np.float32)
    save_scores(scores, tmp_path / "base.nc")
    explorer = explore(tmp_path).explorer
    np.testing.assert_allclose(panels(explorer)[0], scores.mean("sample"), rtol=1e-4, atol=1e-9)
    assert len(panels(explorer)) == 1 and "no edge scores of the tuned model; make them" in explorer.message.value
    alone = explore(scores).explorer
    assert len(panels(alone)) == 1 and "no edge scores of the tuned model" in alone.message.value
    (tmp_path / "base.nc").write_text("no netCDF")
    assert "base.nc" in explore(tmp_path).explorer.message.value


def test_a_choice_draws_each_view_once_from_what_is_prepared(monkeypatch):
    explorer = explore(study()).explorer
    explorer.problem.value = "p/1"
    views = {name: getattr(explorer, name) for name in ("answers", "largest", "one_edge", "message")}
    views |= {"graph": explorer.graph.widget, "heatmap": explorer.heatmap.widget}
    drawn = []
    for name, widget in views.items():
        widget.observe(lambda _change, name=name: drawn.append(name), "value")
    monkeypatch.setattr(Shown, "of", lambda *_: pytest.fail("prepared again"))
    explorer.problem.value = "p/2"
    assert len(drawn) == len(set(drawn)) and {"answers", "largest", "graph", "heatmap"} <= set(drawn)


@pytest.mark.parametrize("outlier", [0.03, 40.0, -40.0])
def test_one_large_score_does_not_squeeze_the_others_of_a_scatter(outlier):
    """Dots keep their order and the line y = x its place; only where one value is far larger the axes are
    logarithmic, and say so.
    """
    x = np.array([0.010, 0.012, 0.015, 0.020, 0.025, -0.020, outlier])
    svg = scatter_svg(
        [Dots("scores", x, 1.1 * x, [f"p{i}" for i in range(len(x))])], "an edge", "base", "tuned", "no change"
    )
    places = np.array(
        [[float(v) for v in at] for at in re.findall(r'translate\(([-\d.]+),([-\d.]+)\)" class="rlc-dot"', svg)]
    )
    across, up = places[:, 0], 300 - places[:, 1]
    assert len(places) == len(x)
    assert (np.argsort(across) == np.argsort(x)).all() and (np.argsort(up) == np.argsort(x)).all()
    assert (np.sign(up - across) == np.sign(x)).all()  # above the line where tuned is larger
    assert np.ptp(across[:6]) > 60  # of 300 pixels, where a linear axis would leave one
    assert ("logarithmic" in svg) == (abs(outlier) > 1)
    ticks = [float(t) for t in re.findall(r'y="315" text-anchor="middle">([^<]*)</text>', svg)]
    assert 3 <= len(ticks) <= 10 and ticks == sorted(ticks) and 0 in ticks
