"""The benchmark runs as written, on sizes that take a moment; how fast it is, is not tested."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import rlcircuits as rc
from benchmarks import attribution as bench
from benchmarks import changes
from tests.fixtures.shell import make_world

ROOT = Path(__file__).resolve().parents[1]


def test_every_case_is_timed_and_weighed_against_the_floor(monkeypatch):
    shape = bench.Shape("tiny", "Qwen2", 2, 32, 4, 2, 48, 64)
    monkeypatch.setattr(bench, "peak", lambda case, *_: {"floor": 100}.get(case, 150))
    rows = {row["case"]: row for row in bench.levels(bench.Where(rounds=2), shape, 16)}
    assert list(rows) == list(bench.CASES)
    assert rows["floor"]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in rows.values())
    assert rows["block"]["peak_ratio"] == 1.5
    assert rows["head"]["target"] == 1.65 and math.isnan(rows["head lean"]["target"])


def test_another_models_messages_are_timed_beside_plain_scores():
    shape = bench.Shape("tiny", "Qwen2", 2, 32, 4, 2, 48, 64)
    rows = pd.DataFrame(changes.cross(shape, 16, rounds=1)).set_index("case")
    assert len(rows) == 12 and (rows["seconds"] > 0).all()
    assert (rows.loc[["block", "qkv", "head"], "ratio_plain"] == 1).all() and (rows.loc["floor", "ratio"] == 1).all()
    assert list(rows.index[rows["target"] == changes.TARGET]) == [f"{one}, other model" for one in changes.LEVELS]


def test_a_study_is_timed_from_nothing_and_with_its_answers_there(tmp_path):
    world = make_world(tmp_path)
    problems = rc.problem_set(f"{world}/problems.jsonl", answer="right", grader="final")
    pair = rc.ModelPair("own", world / "base", world / "tuned", max_new_tokens=6)
    rows = pd.DataFrame(changes.study(pair, problems, n=3)).set_index("case")
    assert list(rows.index) == ["from nothing", "answers there"] and (rows["problems"] == 3).all()
    assert (
        (rows["seconds"] > 0).all()
        and (rows["asked"] == len(problems)).all()
        and rows["peak_gib"].is_monotonic_increasing
    )


def test_made_up_scores_are_a_head_graphs():
    found = changes.scores(2, 3, 4, (0, 1))
    assert np.isfinite(found.values[0]).sum() == rc.Graph.build("head", 2, 3).n_edges and found.sizes["sample"] == 4


@pytest.mark.slow
def test_the_published_shapes_are_measured_as_on_a_device(monkeypatch):
    """The device's suite on a tiny model: every row that the chapter on cost reads is there."""
    monkeypatch.setattr(bench, "PUBLISHED", (bench.Shape("tiny", "Llama", 2, 32, 4, 4, 48, 64),))
    trace, asked = bench.trace, []
    monkeypatch.setattr(bench, "trace", lambda tokens, *more: trace(min(tokens, 8), *more))
    monkeypatch.setattr(bench, "peak", lambda case, hf, shape, tokens, where: asked.append((case, tokens)) or 2**20)
    where = bench.Where(rounds=1)
    rows = [row for part in bench.SUITES["shapes"](where) for row in part]
    rows += [row for suite in ("hundred", "long") for row in bench.SUITES[suite](where)]
    suites = {(row["suite"], row["case"]) for row in rows}
    assert {("levels", case) for case in bench.CASES} <= suites
    assert {("hundred", level) for level in ("block", "qkv", "head")} <= suites
    assert {("long", "block lean"), ("long", "qkv lean")} <= suites
    assert ("block lean", 32768) in asked
    assert next(row for row in rows if row["case"] == "head")["target"] == 1.5


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_cuda_device_it_says_so_and_succeeds():
    command = [sys.executable, str(ROOT / "benchmarks" / "attribution.py"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and "skipped" in done.stdout


@pytest.mark.slow
def test_an_unknown_suite_is_named():
    command = [sys.executable, str(ROOT / "benchmarks" / "attribution.py"), "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and "unknown suite 'speed'" in done.stderr
