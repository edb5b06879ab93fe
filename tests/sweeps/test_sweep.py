"""Sweeps: what becomes of a sweep file, what is kept, what is told."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

import rlcircuits as rc
from rlcircuits.cli.main import main
from rlcircuits.errors import InputError
from rlcircuits.lab import parameters as notebook
from rlcircuits.lab.inputs import chosen_pair, known_pair, known_problems
from rlcircuits.sweeps import Settings, preview, sweep
from rlcircuits.sweeps.engines.local import Local
from rlcircuits.sweeps.plan import Cell, load_plan
from rlcircuits.sweeps.records import read_record, worth_retrying, write_record
from rlcircuits.sweeps.report import notebook_page
from rlcircuits.sweeps.run import _Queue
from tests.fixtures.sweeps import ROOT, counted, runs, write_notebook, write_sweep

SIMPLE = [
    'alpha = 0.3\nlevel = "block"\nwords = ["a"]\nmodel = None\nstatus = ""',
    "from rlcircuits.lab.parameters import glue, glue_table\nimport os, pandas as pd, numpy as np\n\n"
    "glue('twice', 2 * alpha)\nglue('level', level.upper())\nglue('share', np.float32(0.5))\nglue('nothing', "
    "float('nan'))\nglue('device', os.environ.get('CUDA_VISIBLE_DEVICES', 'unset'))\n"
    "glue_table(pd.DataFrame({'base': [1.0], 'p': [None]}, index=['gini']), ('base', 'missing'))",
    "print('<script>alert(1)</script>', status)",
]


def simple(folder: Path, **content: object) -> Path:
    write_notebook(folder / "simple.ipynb", SIMPLE)
    return write_sweep(folder / "simple.yaml", notebook="simple.ipynb", **content)


# --- from the file to the cells


def test_cells_are_the_product_then_the_explicit_ones(tmp_path: Path) -> None:
    file = simple(
        tmp_path,
        grid={"alpha": [0.1, 0.2], "level": ["block", "head"]},
        cells=[{"alpha": 0.5, "words": ["b", "c"]}],
        fixed={"words": ["a"]},
    )
    plan = load_plan(file)
    assert [(c.parameters["alpha"], c.parameters.get("level")) for c in plan.cells] == [
        (0.1, "block"), (0.1, "head"), (0.2, "block"), (0.2, "head"), (0.5, None),
    ]  # fmt: skip
    assert plan.cells[4].parameters["words"] == ["b", "c"] and plan.cells[0].parameters["words"] == ["a"]
    assert len({c.name for c in plan.cells}) == len({c.key for c in plan.cells}) == 5
    assert all(c.name.isascii() and "/" not in c.name for c in plan.cells)


def test_a_key_follows_notebook_parameters_and_files_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("1")
    file = simple(tmp_path, grid={"alpha": [0.1]}, fixed={"model": "data.jsonl"})

    def key() -> str:
        return load_plan(file).cells[0].key

    first = key()
    content = nbformat.read(tmp_path / "simple.ipynb", 4)
    content.cells[1].outputs = [nbformat.v4.new_output("stream", text="kept")]
    nbformat.write(content, tmp_path / "simple.ipynb")
    assert key() == first
    data.write_text("2")
    second = key()
    assert second != first
    content.cells[1].source += "\n"
    nbformat.write(content, tmp_path / "simple.ipynb")
    assert key() not in (first, second)


def test_paths_are_seen_from_the_sweep_file_wherever_they_stand(tmp_path: Path) -> None:
    """The notebook lies in another folder, and the command is given from a third."""
    for name in ("notebooks", "own/weights"):
        (tmp_path / name).mkdir(parents=True)
    write_notebook(
        tmp_path / "notebooks" / "n.ipynb",
        ['pair = ""\nbase = ""\nproblems = ""\nlevel = ""\nruns = "../runs"\nmore = []'],
    )
    (tmp_path / "own" / "p.jsonl").write_text("1")
    (tmp_path / "own" / "family").mkdir()
    for folder in ("own/weights", "own/family"):
        (tmp_path / folder / "config.json").write_text("{}")
    file = write_sweep(
        tmp_path / "own" / "s.yaml",
        notebook="../notebooks/n.ipynb",
        grid={"base": ["weights", "org/name"], "problems": ["p.jsonl", "../none.jsonl"]},
        fixed={"runs": "kept", "pair": "family", "level": "block"},
        cells=[{"base": str(tmp_path), "more": ["./a", "p.jsonl", "b"], "runs": "~/kept"}],
    )
    cells = load_plan(file).cells
    own = tmp_path / "own"
    assert [(c.inputs["base"], c.inputs["problems"]) for c in cells[:4]] == [
        (str(own / "weights"), str(own / "p.jsonl")),
        (str(own / "weights"), str(tmp_path / "none.jsonl")),
        ("org/name", str(own / "p.jsonl")),
        ("org/name", str(tmp_path / "none.jsonl")),
    ]
    assert {(c.inputs["runs"], c.inputs["pair"], c.inputs["level"]) for c in cells[:4]} == {
        (str(own / "kept"), "family", "block")
    }
    assert cells[4].inputs["more"] == [str(own / "a"), str(own / "p.jsonl"), "b"]
    assert cells[4].inputs["base"] == str(tmp_path) and cells[4].inputs["runs"] == str(Path("~/kept").expanduser())
    assert cells[0].parameters["base"] == "weights" and cells[0].parameters["runs"] == "kept"
    before = [cell.key for cell in cells]
    (own / "p.jsonl").write_text("2")
    assert [a == b.key for a, b in zip(before, load_plan(file).cells, strict=True)] == [False, True, False, True, False]


def test_a_dry_run_knows_what_known_pairs_will_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `rlcircuits.estimate` has it: the first cell of a group generates the answers, the others only attribute."""
    from rlcircuits.models import ModelPair, estimate
    from tests.fixtures.models import tiny

    monkeypatch.setattr("rlcircuits.models.cost.throughput", lambda *_: (1e6, "as pretended"))
    tiny("qwen2", layers=2).config.save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    (tmp_path / "pairs.yaml").write_text("mine: {base: ./base, tuned: ./tuned, method: GRPO, max_new_tokens: 9}\n")
    file = write_sweep(
        tmp_path / "s.yaml",
        notebook=str(ROOT / "notebooks" / "11_your_own_pair.ipynb"),
        grid={"alpha": [0.1, 0.5]},
        cells=[{"pair": "mine", "pairs": "pairs.yaml"}, {"pair": "family/ppo"}],
        fixed={"base": "base", "tuned": "tuned", "max_new_tokens": 20, "n_problems": 30, "n": 10},
        share=["base"],
    )
    content = yaml.safe_load(file.read_text())
    content["cells"] = [{**one, "base": "", "tuned": ""} for one in content["cells"]]
    file.write_text(yaml.safe_dump(content))
    pair = ModelPair("own", str(tmp_path / "base"), str(tmp_path / "tuned"), max_new_tokens=20)
    mine = ModelPair("mine", pair.base, pair.tuned, max_new_tokens=20)  # what is given goes before the pair's
    expected = [
        estimate(pair, 30, alpha=0.1, n=10).seconds,
        2 * 10 * estimate(pair, 30, alpha=0.5, n=10).trace_seconds,
        estimate(mine, 30, alpha=0.3, n=10).seconds,
    ]
    seconds = list(preview(file, tmp_path / "out")["seconds"])
    assert seconds[:3] == pytest.approx(expected) and math.isnan(seconds[3])


def test_one_of_each_group_goes_first() -> None:
    cells = [Cell(f"{group}{i}", {}, "", group) for group in "ab" for i in range(3)]
    queue = _Queue(cells, set())
    assert [queue.take(0)[0].name for _ in range(2)] == ["a0", "b0"]
    assert queue.take(2) is None
    queue.ended(cells[3])
    assert [queue.take(1)[0].name for _ in range(2)] == ["b1", "b2"] and queue.take(0) is None
    queue.retry(cells[0], 0.0, alone=True)
    assert queue.take(1) is None and queue.take(0) == (cells[0], True)
    assert [_Queue(cells, {"a"}).take(0)[0].name for _ in range(2)] == ["b0", "b0"]


def test_the_grids_that_come_with_the_package() -> None:
    family = load_plan(ROOT / "sweeps" / "family.yaml")
    assert len(family.cells) == 36 and {c.parameters["pair"] for c in family.cells} == {
        "family/ppo",
        "family/grpo",
        "family/dpo",
    }
    assert len({c.group for c in family.cells}) == 3
    content = yaml.safe_load((ROOT / "sweeps" / "paper.yaml").read_text())
    assert [len(values) for values in content["grid"].values()] == [4, 3, 4]
    published = {"n": 100, "seed": 42, "beta": 0.5, "gamma": 1.5, "delta": 0.5, "level": "block"}
    assert published.items() <= content["fixed"].items() and content["grid"]["alpha"] == [0.03, 0.1, 0.3, 0.5]
    paper = load_plan(ROOT / "sweeps" / "paper.yaml")
    assert len(paper.cells) == 48 and len({c.group for c in paper.cells}) == 12


def test_names_of_pairs_and_problems(tmp_path: Path) -> None:
    assert known_pair("family/ppo@3") == "family/ppo@3" and known_pair("mistral") == "mistral" and known_pair("") == ""
    for name, more, says in [
        ("mistrl", {}, "did you mean 'mistral'"),
        ("family/sft", {}, "unknown pair"),
        ("mistral", {"base": "x"}, "base or tuned besides"),
        ("", {"base": "x"}, "only base is given"),
        ("", {"prompt": "chat"}, "parameter prompt is 'chat', which is of a pair, or base and tuned"),
        ("", {"max_new_tokens": 9}, "parameter max_new_tokens is 9, which is of a pair"),
        ("", {"file": "p.yaml"}, "parameter pairs is 'p.yaml', which is of a pair by name"),
        ("mistral", {"method": "GRPO"}, "parameter method is 'GRPO', which is of base and tuned"),
    ]:
        with pytest.raises(InputError, match=says):
            known_pair(name, **more)
    assert known_pair("mistral", prompt="chat", max_new_tokens=9) == "mistral"
    with pytest.raises(InputError, match="'family' are made by a package: expected 'family' alone"):
        known_problems("", grader="final")
    with pytest.raises(InputError, match="unknown problem set 'famly'"):
        known_problems("famly")
    (tmp_path / "p.jsonl").write_text('{"question": "1 + 1", "answr": "2"}\n')
    with pytest.raises(InputError, match="no field 'answer'.*did you mean 'answr'"):
        known_problems(str(tmp_path / "p.jsonl"), question="question", answer="answer", grader="final")


def test_what_is_given_goes_before_what_a_pair_says(tmp_path: Path) -> None:
    asked = rc.ProblemSet("p", (rc.Problem("0", "1 + 1 ?", "2"),), "final")
    (tmp_path / "shown.jsonl").write_text('{"q": "1 + 1 ?", "a": "2"}\n{"q": "2 + 3 ?", "a": "5"}\n')
    fields = {"question": "q", "answer": "a", "grader": ""}
    given = {
        "prompt": "chat",
        "system": "",
        "instruction": "Add.",
        "few_shot": str(tmp_path / "shown.jsonl"),
        "max_new_tokens": 9,
    }
    pair, own = chosen_pair("mistral", problems=asked, fields=fields, **given), rc.pair("mistral")
    assert (pair.prompt, pair.instruction, pair.max_new_tokens) == ("chat", "Add.", 9) and pair.base == own.base
    assert pair.few_shot == (("2 + 3 ?", "5"),)
    assert (
        chosen_pair("mistral", problems=asked, prompt="", system="", instruction="", few_shot="", max_new_tokens=0)
        == own
    )
    two = chosen_pair("", base="models/sft", tuned="models/rl", problems=asked, max_new_tokens=0)
    assert (two.name, two.method, two.prompt, two.max_new_tokens) == ("rl", "other", "{question}", 1024)


# --- what comes out


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ran")
    file = simple(
        folder,
        cells=[
            {"alpha": 1, "status": "<b>"},
            {"alpha": 0.5, "level": "head", "model": 3},
            {"words": ["x"], "model": "m"},
        ],
    )
    outcome = sweep(file, folder / "out", Settings(processes=2))
    assert outcome.failed == 0
    return folder


def test_the_summary_has_parameters_metrics_and_what_happened(ran: Path) -> None:
    table = pd.read_parquet(ran / "out" / "summary.parquet")
    assert list(table["twice"]) == [2.0, 1.0, 0.6] and list(table["gini/base"]) == [1.0] * 3
    assert list(table["alpha"].head(2)) == [1.0, 0.5] and math.isnan(table["alpha"][2])
    assert list(table["metric.level"]) == ["BLOCK", "HEAD", "BLOCK"]
    assert table["parameter.status"].iloc[0] == "<b>" and list(table["status"]) == ["done"] * 3
    assert table["nothing"].isna().all() and list(table["share"]) == [0.5] * 3
    assert list(table["model"].dropna()) == ["3", "m"] and json.loads(table["words"][2]) == ["x"]
    assert (table["seconds"] > 0).all() and list(table["attempts"]) == [1] * 3 and table["error"].isna().all()
    for path in table["notebook"]:
        assert notebook.glued(notebook.read_notebook(ran / "out" / path))["share"] == 0.5


def test_pages_escape_and_need_no_network(ran: Path) -> None:
    pages = [ran / "out" / "index.html", *ran.glob("out/cells/*/notebook.html")]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text()
        assert "<script>alert(1)" not in text and "http:" not in text and "https:" not in text
    index = pages[0].read_text()
    assert "&lt;b&gt;" in index and "<b>" not in index
    assert index.count("notebook.html") == 3
    assert any("&lt;script&gt;alert(1)&lt;/script&gt;" in page.read_text() for page in pages[1:])


def test_figures_of_the_package_are_drawn_from_the_sweeps_own_plotly(ran: Path) -> None:
    html = '<figure class="rlc-figure" id="a"><div class="rlc-plot"></div></figure>'
    shown = nbformat.v4.new_output("display_data", {"text/html": html, "application/vnd.plotly.v1+json": {"data": []}})
    page = notebook_page(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=[shown])]), "cell")
    assert html in page and 'src="../../static/plotly.min.js"' in page
    assert (ran / "out" / "static" / "plotly.min.js").stat().st_size > 10**6


@pytest.mark.kernel
def test_resume_fresh_only_failed_and_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What each choice runs, counted by the notebook itself."""
    file = counted(tmp_path, xs=2, groups="a")
    command = ["sweep", str(file), "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0 and runs(tmp_path) == 0 and not (tmp_path / "out").exists()
    assert "2 cells, 2 to run" in capsys.readouterr().out
    assert main(command) == 0 and runs(tmp_path) == 2
    assert main([*command, "--resume"]) == 0 and runs(tmp_path) == 2
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0 and "2 cells, 0 to run: about 0 s" in capsys.readouterr().out
    cell = next((tmp_path / "out" / "cells").iterdir())
    write_record(cell, {**read_record(cell), "status": "failed", "error": "as a test"})
    (tmp_path / "store" / "square").rename(tmp_path / "elsewhere")
    assert main([*command, "--only", "failed"]) == 0 and runs(tmp_path) == 3
    assert main([*command, "--fresh"]) == 0 and runs(tmp_path) == 5
    (file.parent / "counted.ipynb").write_text(
        (file.parent / "counted.ipynb").read_text().replace("'length'", "'size'")
    )
    assert main(command) == 0 and runs(tmp_path) == 7
    assert list(pd.read_parquet(tmp_path / "out" / "summary.parquet")["size"]) == [5000, 5000]


@pytest.mark.kernel
def test_gpus_are_shared_out_among_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert list(Local(Settings(gpus=1)).devices) == ["3", "5", "7"]
    assert list(Local(Settings(gpus=2)).devices) == ["3,5"]
    file = simple(tmp_path, grid={"alpha": [0.1, 0.2]})
    outcome = sweep(file, tmp_path / "out", Settings(gpus=2))
    assert list(outcome.table["device"]) == ["3,5", "3,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="only 0 GPUs can be seen"):
        Local(Settings(gpus=1))


@pytest.mark.parametrize(
    ("name", "text", "again"),
    [
        ("MemoryError", "", True),
        ("OutOfMemoryError", "CUDA out of memory", True),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory", True),
        ("RuntimeError", "shapes do not fit", False),
        ("DeadKernelError", "Kernel died", True),
        ("OSError", "[Errno 116] Stale file handle", True),
        ("OSError", "[Errno 2] No such file", False),
        ("FileNotFoundError", "[Errno 2] No such file", False),
        ("StoreError", "cannot write: No space left on device", False),
        ("InputError", "unknown pair; out of memory", False),
        ("ZeroDivisionError", "", False),
    ],
)
def test_what_is_worth_another_try(name: str, text: str, again: bool) -> None:
    assert worth_retrying(name, text) is again


# --- the notebook of the sweeps


@pytest.mark.kernel
def test_a_model_that_gives_nan_fails_alone(tmp_path: Path) -> None:
    """Notebook 8 on three pairs of tiny checkpoints, one of them with NaN weights and one whose vocabulary differs."""
    import torch

    import rlcircuits as rc
    from tests.fixtures.checkpoints import tokenizer
    from tests.fixtures.models import tiny
    from tests.fixtures.shell import WORDS, make_world

    make_world(tmp_path)
    damaged = tiny("qwen2", torch.float32, layers=2)
    with torch.no_grad():
        for parameter in damaged.parameters():
            parameter.fill_(math.nan)
    damaged.save_pretrained(tmp_path / "nan")
    tokenizer(WORDS).save_pretrained(tmp_path / "nan")
    file = write_sweep(
        tmp_path / "own.yaml",
        notebook=str(ROOT / "notebooks" / "11_your_own_pair.ipynb"),
        grid={"tuned": [str(tmp_path / name) for name in ("tuned", "nan", "other")]},
        fixed={
            "base": str(tmp_path / "base"), "problems": str(tmp_path / "problems.jsonl"), "answer": "right", "grader": "final",
            "max_new_tokens": 6, "alpha": 1.0, "n": 5, "device": "cpu", "runs": str(tmp_path / "runs"), "delta": 2.0, "beta": 0.0, "gamma": 9.0,
        },
    )  # fmt: skip
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--processes", "2"]) == 1
    table = pd.read_parquet(tmp_path / "out" / "summary.parquet")
    assert list(table["status"]) == ["done", "failed", "failed"], list(table["error"])
    pair = rc.ModelPair("own", str(tmp_path / "base"), str(tmp_path / "tuned"), max_new_tokens=6)
    problems = rc.load_problems(tmp_path / "problems.jsonl", answer="right", grader="final")
    study = rc.study(
        pair, problems, alpha=1.0, n=5, store=tmp_path / "elsewhere", device="cpu", beta=0.0, gamma=9.0, delta=2.0
    )
    expected = study.pairs["own"].comparison
    for metric in expected.index:
        for column in ("base", "tuned", "difference", "low", "high", "p"):
            found = table[f"{metric}/{column}"][0]
            assert found == expected.loc[metric, column] or (
                math.isnan(found) and math.isnan(expected.loc[metric, column])
            )
    assert "vocabular" in table["error"][2] and "Traceback" not in "".join(table["error"].dropna())


@pytest.mark.kernel
def test_the_benchmark_of_sweeps_runs(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/sweep.py", "--cells", "2", "--work-cells", "0", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    measured = json.loads((tmp_path / "sweep.json").read_text())["overhead"][0]
    assert measured["cells"] == 2 and 0 < measured["overhead_per_cell"] < 60
    assert measured["seconds_when_kept"] < measured["seconds"]
