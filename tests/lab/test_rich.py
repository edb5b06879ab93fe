"""Rich displays and completion, in a real IPython shell; figures as files."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest

from rlcircuits.answers.selection import Selection
from rlcircuits.attribution.graph import Graph
from rlcircuits.errors import InputError
from rlcircuits.lab import completion, rich
from rlcircuits.lab.display import export
from rlcircuits.metrics.inference import compare
from rlcircuits.models.pairing import ModelPair
from rlcircuits.studies.pipeline import PairStudy, Study
from tests.lab.test_explorer import EVIL, graph_scores


def one_pair() -> PairStudy:
    scores = graph_scores(0, n=6), graph_scores(1, n=6)
    dropped = pd.DataFrame({"rule": [EVIL], "dropped": [1], "left": [6], "detail": [EVIL]})
    answers = {f"p/{i}": SimpleNamespace(correct=i > 0, strict=False) for i in range(6)}
    reasons = pd.DataFrame(
        {"rule": [EVIL], "model": ["base"], "reason": ["wrong"], "problems": [1], "examples": [EVIL]}
    )
    chosen = Selection(tuple(answers), 7.5, 2, dropped, [], [], 0.3, reasons)
    pair = ModelPair(EVIL, "before", EVIL, "PPO")
    return PairStudy(pair, {}, answers, answers, chosen, *scores, {}, {}, compare(*scores, n_resamples=99))


@pytest.fixture(scope="module")
def shell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    rich.register(shell)
    return shell


def test_every_result_shows_itself_escaped(shell):
    one = one_pair()
    study = Study({EVIL: one}, "block", 0.3, 100, 42)
    said = {
        study: ("Study of 1 pair", "83.3% (0.0%)", "T_cut"),
        one: ("before", "83.3% → 83.3%", "0.0% → 0.0%", "activation intensity", "95 % interval"),
        one.selection: ("7.5 tokens", "left"),
        Graph.build("head", 2, 4, 2): ("4 query, 2 key/value", "a0.h0", "edges"),
    }
    for value, words in said.items():
        html = shell.display_formatter.format(value)[0]["text/html"]
        assert "<script" not in html and html.startswith('<div class="mathjax_ignore')
        assert all(word in html for word in words), html
        assert ("&lt;script&gt;" in html) is not isinstance(value, Graph)


def test_scores_show_their_strongest_edges_above_what_xarray_shows(shell):
    scores = graph_scores(3).assign_attrs(model=EVIL)
    html = shell.display_formatter.format(scores)[0]["text/html"]
    mean = scores.mean("sample")
    where = abs(mean).argmax(["source", "destination"])
    name = f"{mean.source.values[int(where['source'])]}-&gt;{mean.destination.values[int(where['destination'])]}"
    assert name in html and "xr-wrap" in html and "Edge scores" in html
    assert "<script>" not in html.split("xr-wrap")[0]
    plain = scores.mean("sample")
    assert shell.display_formatter.format(plain)[0]["text/html"].count("Edge scores") == 0


def test_edges_by_name_and_the_tab_key(shell):
    import rlcircuits as rc

    assert rc.activation_intensity  # what brings scores also brings their accessor
    scores = graph_scores(3)
    edge = scores.rlc["a0->m1"]
    assert (edge == scores.sel(source="a0", destination="m1")).all()
    assert set(scores.rlc.names) == set(Graph.build("block", 3, 4, 2).edge_names())
    with pytest.raises(InputError, match="unknown source 'a9'"):
        scores.rlc["a9->m1"]
    table = scores.rlc.strongest(3)
    assert list(table["mean"].abs()) == sorted(table["mean"].abs(), reverse=True) and len(table) == 3
    study = Study({"family/ppo": one_pair(), "mine": one_pair()}, "block", 0.3, 100, 42)
    shell.user_ns.update(edges=scores.rlc, study=study)
    found = [
        shell.Completer.complete(line_buffer=text, cursor_pos=len(text))[1] for text in ('study["fam', 'edges["a0->m')
    ]
    assert any("family/ppo" in one for one in found[0])
    assert {one.strip('"]').rpartition(">")[2] for one in found[1]} >= {"m0", "m1", "m2"}
    with pytest.raises(InputError, match="did you mean 'mine'"):
        study["mien"]


TAB = [
    ('rc.attribute(model, traces, level="', {"block", "qkv", "head"}),
    ("rc.attribute(model, traces, 'h", {"head"}),
    ('rc.attribute(model, [rc.Trace("p", [1], [2])],\n    batch_size=4, intervention="me', {"mean"}),
    ('%matplotlib inline\nx = {"a": 1}\nattribute(model, traces, level="q', {"qkv"}),
    ('rc.pair("family/g', {"family/grpo"}),
    ('rc.study("deepseek-', {"deepseek-math"}),
    ('rc.study(["family/ppo", "family/d', {"family/dpo"}),
    ('rc.problem_set("gs', {"gsm8k"}),
    ('study.at(level="b', {"block"}),
    ('rc.circuit(scores, 10, rank="', {"absolute", "signed"}),
    ('rc.figures.sample_scatter(base, tuned, metric="gi', {"gini"}),
    ('print(rc.pair(name="family/', {f"family/{m}" for m in ("sft-more", "rft", "grpo", "ppo", "dpo", "online-dpo")}),
    ('rc.attribute(model, traces, cut="', set()),  # no choice
    ('pandas.concat([], level="', set()),  # another's function
    ('unknown(level="', set()),
    ('study.table()(level="', set()),  # nothing is run to find out
    ('rc.pair("family/grpo")', set()),  # no string is begun
    ('level = "b', set()),
    ('rc.attribute(traces["', set()),  # a key
]


@pytest.mark.parametrize(("text", "expected"), TAB, ids=[text[-24:] for text, _ in TAB])
def test_the_tab_key_knows_what_a_parameter_chooses_from(text, expected):
    import rlcircuits as rc
    import rlcircuits.figures

    study = Study({"mine": one_pair()}, "block", 0.3, 100, 42)
    assert (
        set(completion.offered(text, {"rc": rc, "attribute": rc.attribute, "study": study, "pandas": pd})[0])
        == expected
    )


def test_the_tab_key_of_a_real_shell_offers_the_names_and_nothing_else(shell):
    import rlcircuits as rc

    rich.register(shell)  # once more: no second matcher
    shell.user_ns["rc"] = rc
    before = "values = 1\n"
    for text, expected in [row for row in TAB if row[1] and row[0].startswith("rc.")]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # completions are "provisional" there
            found = list(shell.Completer.completions(before + text, len(before + text)))
        assert {one.text for one in found} == expected, text
    assert sum(one.__name__ == "rlcircuits_names" for one in shell.Completer.custom_matchers) == 1


def test_every_choice_is_there_and_is_a_parameter_of_something():
    import rlcircuits as rc
    import rlcircuits.figures

    public = [getattr(rc, name) for name in rc.__all__ if callable(getattr(rc, name))] + [
        getattr(rc.figures, n) for n in rc.figures.__all__
    ]
    signatures = {one.__name__: set(inspect.signature(one).parameters) for one in public if inspect.isfunction(one)}
    for parameter, where in completion.CHOICES.items():
        function, _, name = parameter.rpartition(".")
        assert name in (signatures[function] if function else set().union(*signatures.values())), parameter
        assert list(completion._choices(where))


def test_results_register_themselves_in_ipython():
    code = "import rlcircuits as rc; f = get_ipython().display_formatter.formatters['text/html']; print(f.lookup_by_type('rlcircuits.attribution.graph.Graph').__name__)"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "-c", code], capture_output=True, text=True, check=False
    )
    assert "graph_html" in done.stdout, done.stderr


# --- figures as files ---


def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout_title_text="A line")


@pytest.mark.slow
def test_export_writes_what_the_ending_says(tmp_path: Path):
    pytest.importorskip("kaleido", reason="no kaleido here: pip install rlcircuits[export]")
    if not (os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no Chrome or Chromium here")
    assert "A line" in export(figure(), tmp_path / "a.svg").read_text()
    assert export(figure(), tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_export_of_html_needs_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    path = export(figure(), tmp_path / "a.html")
    assert "A line" in path.read_text() and path.stat().st_size > 1_000_000


def test_export_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="does not end in"):
        export(figure(), tmp_path / "a.jpg")
    with pytest.raises(InputError, match="expected a plotly figure, got dict"):
        export({}, tmp_path / "a.svg")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "kaleido", SimpleNamespace())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    with pytest.raises(InputError, match="BROWSER_PATH"):
        export(figure(), tmp_path / "a.svg")
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(InputError, match="rlcircuits\\[export\\]"):
        export(figure(), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
