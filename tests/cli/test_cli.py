"""`rlcircuits attribute` as a user runs it: from checkpoints and a file of problems to scores and a table."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rlcircuits as rc
from rlcircuits.cli.main import main
from tests.fixtures.shell import options
from tests.fixtures.viewer import document_of, matrices
from tests.fixtures.waiting import PATIENCE, ended

ROOT = Path(__file__).resolve().parents[2]


def shell(arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlcircuits", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.slow
def test_a_pair_of_checkpoints_from_the_shell(world):
    done = shell(options(world, id="name", html=world / "study.html"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    out = world / "out"
    for file in ("report.html", "base.nc", "tuned.nc", "metrics.parquet", "reasons.json", "settings.json"):
        assert str(out / file) in done.stdout
    found = json.loads((out / "settings.json").read_text())
    assert found["strict_accuracy"] == found["accuracy"]  # the grader "final" is strict by itself
    page = (out / "report.html").read_text()
    assert "Can the scores be trusted?" in page and str(world / "tuned") in page and "<script" not in page
    assert "Does it answer better?" in done.stdout and "Can the scores be trusted?" in done.stdout
    assert "why the others are not:\n" in done.stdout and "tuned: " in done.stdout
    reasons = json.loads((out / "reasons.json").read_text())
    assert {"rule", "model", "reason", "problems", "examples"} == set(reasons[0])
    assert found["accuracy"]["base"] == 1.0 and found["accuracy"]["tuned"] > 0
    assert len(found["kept"]) == 5 and all(name.startswith("q") for name in found["kept"])

    # The scores are what the library gives for each model's own answers, cut as the settings say.
    problems = rc.load_problems(world / "problems.jsonl", answer="right", grader="final", id="name")
    for side in ("base", "tuned"):
        scores = rc.load_scores(out / f"{side}.nc")
        assert list(scores.sample.values) == found["kept"]
        model = rc.load_model(world / side, device="cpu")
        answers = {a.problem: a for a in rc.generate(model, problems, max_new_tokens=6)}
        assert all(answers[name].correct for name in found["kept"])
        expected = rc.attribute(model, [answers[name].trace for name in found["kept"]], cut=found["t_cut"])
        edges = ~np.isnan(expected.values)
        np.testing.assert_allclose(scores.values[edges], expected.values[edges], rtol=1e-3, atol=1e-6)

    told = document_of(world / "study.html")
    assert str(world / "study.html") in done.stdout
    assert (
        [i for i, _, scored in told["pairs"][0]["problems"] if scored] == found["kept"] == told["scores"][0]["samples"]
    )
    assert set(matrices(told["scores"][0])) == {"base", "tuned"}

    table = pd.read_parquet(out / "metrics.parquet").set_index("metric")
    sides = {side: rc.load_scores(out / f"{side}.nc") for side in ("base", "tuned")}
    for metric in ("activation_intensity", "gini"):
        row = table.loc[metric]
        for side, scores in sides.items():
            assert row[side] == pytest.approx(rc.summary(scores)[metric])
        assert row.low <= row.difference <= row.high and 0 < row.p <= row.p_holm <= 1
        assert metric in done.stdout and f"{row.difference:.4g}" in done.stdout


def test_again_computes_nothing_and_changes_nothing(world, capsys, monkeypatch):
    assert main(options(world, out=world / "twice")) == 0
    first = capsys.readouterr().out
    before = {file.name: file.read_bytes() for file in (world / "twice").iterdir() if file.suffix != ".nc"}
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    assert main(options(world, out=world / "twice")) == 0
    assert capsys.readouterr().out == first
    assert before == {file.name: file.read_bytes() for file in (world / "twice").iterdir() if file.suffix != ".nc"}


def test_results_of_other_settings_are_not_written_over(world, capsys):
    assert main(options(world, out=world / "kept")) == 0
    before = {file: file.stat().st_mtime_ns for file in (world / "kept").iterdir()}
    capsys.readouterr()
    assert main(options(world, out=world / "kept", level="head")) == 2
    assert "holds results of other settings (level is 'block' there, 'head' here)" in capsys.readouterr().err
    assert main(options(world, out=world / "kept", limit=9)) == 2
    assert re.search("the number of problems is [0-9]+ there, 9 here", capsys.readouterr().err)
    assert before == {file: file.stat().st_mtime_ns for file in (world / "kept").iterdir()}


@pytest.mark.parametrize("level", ["qkv", "head"])
def test_levels_and_the_default_folder(world, capsys, monkeypatch, tmp_path, level):
    monkeypatch.chdir(tmp_path)
    assert main(options(world, out=None, level=level, alpha=0.5)) == 0
    scores = rc.load_scores(tmp_path / f"attribution/tuned-{level}-0.5" / "base.nc")
    assert scores.attrs["level"] == level and int(scores.attrs["cut"]) >= 1
    assert f"attribution/tuned-{level}-0.5/base.nc" in capsys.readouterr().out


def test_what_a_report_takes_longest_for_can_be_left_out(world, capsys):
    arguments = options(world, out=world / "short", trust="none")
    assert main([*arguments, "--no-shared"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Can the scores be trusted\?\s+it was switched off  \(not measured\)", said)
    assert re.search(r"The model, or its words\?.*\(not measured\)", said)
    assert main(options(world, out=world / "short", trust=7)) == 0  # no settings of the results: they stay
    assert "7 of " in capsys.readouterr().out


def test_integrated_gradients_and_means_from_the_shell(world):
    assert main(options(world, out=world / "ig", **{"ig-steps": 2, "intervention": "mean", "memory": "lean"})) == 0
    scores = rc.load_scores(world / "ig" / "base.nc")
    assert scores.attrs["method"] == "EAP-IG, 2 midpoints" and scores.attrs["intervention"] == "mean"


def test_one_model_alone(world, capsys):
    assert main(options(world, tuned=None, out=world / "alone", html=world / "alone.html")) == 0
    assert set(matrices(document_of(world / "alone.html")["scores"][0])) == {"base"}
    said = capsys.readouterr().out
    assert "100 % right; " in said and "strictly 100 %" in said and "tuned:" not in said
    assert "its intervals are in report.html; tests come with a pair" in said
    names = ["base.nc", "metrics.parquet", "reasons.json", "report.html", "settings.json"]
    assert sorted(file.name for file in (world / "alone").iterdir()) == names
    table = pd.read_parquet(world / "alone" / "metrics.parquet").set_index("metric")
    assert table.columns.tolist() == ["value"]
    scores = rc.load_scores(world / "alone" / "base.nc")
    assert table.value["activation_intensity"] == pytest.approx(np.nanmean(np.abs(scores.values.astype(float))))
    assert json.loads((world / "alone" / "settings.json").read_text())["asked"]["tuned"] is None


def test_nothing_speaks_of_a_tuned_model_where_there_is_none(world, tmp_path, capsys):
    own = shutil.copytree(world / "base", tmp_path / "own")
    alone = options(world, base=own, tuned=None, out=tmp_path / "out", store=tmp_path / "runs")
    fields = ["--problems", str(world / "problems.jsonl"), "--answer", "right", "--grader", "final"]
    file = tmp_path / "answers.jsonl"
    given = [
        "--base",
        str(own),
        *fields,
        "--max-new-tokens",
        "6",
        "--device",
        "cpu",
        "--store",
        str(tmp_path / "runs"),
    ]
    assert main(["answers", *given, "--out", str(file)]) == 0
    assert {json.loads(line)["side"] for line in file.read_text().splitlines()} == {"base"}
    assert main(alone) == 0
    first = (tmp_path / "out" / "metrics.parquet").read_bytes()
    del alone[alone.index("--max-new-tokens") : alone.index("--max-new-tokens") + 2]
    assert main([*alone, "--answers", str(file), "--out", str(tmp_path / "again")]) == 0  # the last --out counts
    assert (tmp_path / "again" / "metrics.parquet").read_bytes() == first
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "#w1 #w2", "right": "never"}) + "\n")
    assert main(options(world, base=own, tuned=None, problems=tmp_path / "p.jsonl", out=tmp_path / "none")) == 2
    said = capsys.readouterr()
    words = (said.out + said.err).replace(str(world), "").replace(str(tmp_path), "").replace("(--tuned)", "")
    assert not [line for line in words.splitlines() if re.search(r"tuned|both|\(base\)|base:|second", line)]
    assert "no problem is left by the rule 'answer correct' (0.0% correct, 0.0% strictly)" in said.err
    assert re.search(r"why no problem is left:\n +1  [a-z]", said.err)
    for file in (tmp_path / "out" / "reasons.json", tmp_path / "none" / "reasons.json"):
        assert {row["model"] for row in json.loads(file.read_text())} <= {""}


def test_no_problem_left_says_by_which_rule(world, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "#w1 #w2", "right": "never"}) + "\n")
    assert main(options(world, problems=tmp_path / "p.jsonl", out=tmp_path / "out")) == 2
    said = capsys.readouterr()
    assert said.out == "" and "no problem is left by the rule 'both answers correct'" in said.err.splitlines()[-1]
    assert "a larger --max-new-tokens or another --prompt" in said.err and "with --keep all" in said.err
    with pytest.raises(rc.InputError, match="a larger max_new_tokens or another prompt.* with keep='all'"):
        rc.study(
            rc.ModelPair("p", str(world / "base"), str(world / "tuned"), max_new_tokens=6),
            rc.load_problems(tmp_path / "p.jsonl", answer="right", grader="final"),
            store=world / "runs",
            device="cpu",
        )
    assert "why no problem is left:" in said.err and "base: " in said.err and "tuned: " in said.err
    rows = json.loads((tmp_path / "out" / "reasons.json").read_text())
    assert {row["model"] for row in rows} == {"base", "tuned"} and all(row["problems"] == 1 for row in rows)
    assert all(row["examples"].startswith("p/0: ") for row in rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No problem is left to compare on" in page and "0 of 1 kept" in page and "nan" not in page.lower()


_ENDLESS = """
import sys, threading
import rlcircuits.attribution.eap as attribution
from rlcircuits.cli.main import main
def endless(*args, **kwargs):
    print("attributing", flush=True)
    threading.Event().wait()
attribution.attribute = endless
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_an_interrupted_run_ends_with_130_and_goes_on(world, tmp_path, monkeypatch, capsys):
    arguments = options(world, store=tmp_path / "runs", out=tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with ended(process):
        assert process.stdout.readline().strip() == "attributing"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted; all that was finished is kept" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("rlcircuits.studies.steps.generate", lambda *_a, **_k: pytest.fail("answered again"))
    assert main(arguments) == 0
    assert (tmp_path / "out" / "tuned.nc").is_file()


_WARNS = """
import warnings
from rlcircuits.cli import main
main.application = lambda: lambda *_a, **_k: warnings.warn("few are left")
main.main([])
"""


def test_a_warning_is_a_caution_without_a_place_in_the_code():
    done = subprocess.run([sys.executable, "-c", _WARNS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "caution: few are left\n"


def test_help_says_how(capsys):
    for arguments, words in (
        ([], ["attribute", "pairs", "family", "and compare\n"]),
        (["attribute"], ["--pair", "--alpha", "[default: 0.3]", "scores:", "examples:", "metrics.parquet"]),
    ):
        assert main([*arguments, "--help"]) == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words)


# What takes seconds to import, and is not needed to say what there is, or what is wrong.
HEAVY = {"torch", "transformers", "pandas", "plotly", "xarray", "scipy", "IPython", "ray", "papermill"}


LIGHT = {
    "--help": 0,
    "--version": 0,
    "attribute --help": 0,
    "sweep --help": 0,
    "study --help": 0,
    "problems": 0,
    "problems gsm9k": 2,
    "answers --pair mistrl --problems gsm8k --out a.jsonl": 2,
    "estimate --pair mistrl": 2,
    "attribute --base a --level heads": 2,
    "attribute --pair mistrl": 2,
    "attribute --pair mistrl --problems gsm8k": 2,
    "attribute --base a": 2,
    "attribute --base a --tuned b --problems nowhere.jsonl": 2,
    "family --members gpro": 2,
    "study --members gpro": 2,
    "sweep nowhere.yaml": 2,
    "pairs --pairs nowhere.yaml": 2,
    "pairs": 0,
    "models": 0,
    "models get": 2,
    "models get smollm": 2,
}
_EACH = """
import json, sys
from rlcircuits.cli.main import main
heavy, found = set(json.loads(sys.argv[1])), {}
for command in json.loads(sys.argv[2]):
    found[command] = main(command.split()), sorted(heavy & set(sys.modules))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_nothing_heavy_is_imported_to_say_what_there_is_or_what_is_wrong(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _EACH, json.dumps(sorted(HEAVY)), json.dumps(list(LIGHT))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {command: [code, []] for command, code in LIGHT.items()}


@pytest.mark.parametrize("module", ["rlcircuits", "rlcircuits.cli"])
def test_python_runs_the_package(module):
    done = subprocess.run([sys.executable, "-m", module, "pars"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean 'pairs'" in done.stderr.lower()


def test_a_reader_who_goes_away_is_no_fault():
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcircuits", "problems"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # nobody reads
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_no_table_of_numbers_that_are_not_there(capsys):
    """A single problem: no intervals, and a metric that cannot be had is named, not shown as NaN."""
    from types import SimpleNamespace

    from rlcircuits.cli.results import show
    from tests.answers.test_answers import said_of

    table = pd.DataFrame(
        {"base": [1.0, np.nan], "tuned": [2.0, np.nan], "difference": [1.0, np.nan], "low": [np.nan] * 2, "p": [np.nan] * 2},
        index=["gini", "inter_sample_diversity"],
    )  # fmt: skip
    selection = rc.select([said_of("q", "5", True)], [said_of("q", "5", True)], 0.3)
    tokenizer = SimpleNamespace(decode=str)
    one = SimpleNamespace(selection=selection, tokenizer=tokenizer)
    show("report", one, table, alone=False)
    said = capsys.readouterr()
    assert "nan" not in said.out.lower() and "low" not in said.out
    assert "not defined on so few problems: inter_sample_diversity" in said.out and "at least two problems" in said.out
    assert "caution: only 1 problem is left" in said.err and "caution: T_cut is 2" in said.err
