"""A first hour with one's own pair, walked from the first command to the report: an adapter of a chat model, killed twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import rlcircuits as rc
from rlcircuits.answers import generation
from rlcircuits.attribution import eap
from rlcircuits.cli.main import main
from rlcircuits.models import packaged_folder
from tests.fixtures.browser import chromium
from tests.fixtures.chat import SYSTEM, make
from tests.fixtures.waiting import ended

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
LONGEST = 40
# The command, stopped in the middle of its work: it says what it has done and waits to be killed.
VICTIM = """
import json, sys, threading
from rlcircuits.answers import generation
from rlcircuits.attribution import eap
from rlcircuits.cli.main import main

def stopping(module, name, after, note):
    real, noted = getattr(module, name), []
    def call(*given, **named):
        if len(noted) == after:
            print(json.dumps(rooms), flush=True)
            threading.Event().wait()
        noted.append(note(given))
        return real(*given, **named)
    setattr(module, name, call)
    return noted

generation._SECONDS = 0.0  # every token is kept
rooms = stopping(generation, "_answer_batch", None, lambda given: given[2])
where, after, *arguments = sys.argv[1:]
module, name = {"answers": (generation._Said, "add"), "scores": (eap, "score_batch")}[where]
stopping(module, name, int(after), lambda given: None)
main(arguments)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    pytest.importorskip("peft", reason="no peft here: pip install 'rlcircuits[lora]'")
    root = make(tmp_path_factory.mktemp("hour"))
    own = {"base": "./base", "tuned": "./adapter", "prompt": "chat", "system": SYSTEM, "max_new_tokens": LONGEST}
    (root / "pairs.yaml").write_text(yaml.safe_dump({"own": own}))
    return root


def attribute(root: Path, *more: str | Path, out: str, store: str = "runs") -> list[str]:
    """The command, as somebody types it for a pair of checkpoints."""
    models = ["--base", root / "base", "--tuned", root / "adapter", "--device", "cpu"]
    how = ["--prompt", "chat", "--system", SYSTEM, "--max-new-tokens", LONGEST]
    where = ["--problems", root / "problems.jsonl", "--store", root / store, "--out", root / out]
    return [str(one) for one in ["attribute", *models, *how, *where, *more]]


def killed(arguments: list[str], where: str, after: int) -> list[int]:
    """Kill the command in its `after`-th call; how many tokens each batch that it had begun had room for."""
    command = [sys.executable, "-c", VICTIM, where, str(after), *arguments]
    with ended(
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ) as process:
        rooms = json.loads(process.stdout.readline())
    assert process.returncode == -signal.SIGKILL
    return rooms


def rows(root: Path, kind: str) -> int:
    """How many rows the only unfinished journal of a kind holds."""
    (file,) = (root / "runs" / "unfinished").glob(f"*/{kind}-*.journal")
    header, content = file.read_bytes().split(b"\n", 1)
    found = 0
    while content:
        count, size = int.from_bytes(content[:4], "little"), 0
        for _, form, *shape in json.loads(header)["row"]:
            size += int(form[-1]) * (shape[0][0] if shape else 1)
        content, found = content[8 + count * size :], found + count
    return found


def test_killed_twice_and_nothing_is_lost(world, capsys, monkeypatch):
    block = attribute(world, "--batch-size", "2", out="block")
    # Killed after 5 tokens of each of the first two answers, and once more after 3 passes of attribution …
    assert killed(block, "answers", 5) == [LONGEST]
    assert rows(world, "answers") == 2 * 5 + 2 * 5  # a mark and a token of each
    rooms = killed(block, "scores", 3)
    assert sorted(rooms) == [LONGEST - 5] + [LONGEST] * 11  # the two went on at their sixth token
    assert rows(world, "scores") == 6
    # … the same command ends, and only what was not there is computed.
    passes, real = [], eap.score_batch
    monkeypatch.setattr(eap, "score_batch", lambda *a, **k: passes.extend(t.problem for t in a[3]) or real(*a, **k))
    monkeypatch.setattr(generation, "_answer_batch", lambda *_a, **_k: pytest.fail("answered again"))
    assert main([*block, "--trust", "none", "--no-shared"]) == 0
    kept = json.loads((world / "block" / "settings.json").read_text())["kept"]
    assert len(kept) >= 8 and set(passes) == set(kept) and len(passes) == 2 * len(kept) - 6
    assert not list((world / "runs" / "unfinished").glob("*/*.journal"))
    said = capsys.readouterr()
    assert "Does it answer better?" in said.out and ".py:" not in said.err and "Traceback" not in said.err
    monkeypatch.undo()

    # Never interrupted, it gives the same numbers.
    assert main(attribute(world, "--batch-size", "2", "--trust", "none", "--no-shared", out="whole", store="new")) == 0
    capsys.readouterr()
    tables = [pd.read_parquet(world / one / "metrics.parquet") for one in ("block", "whole")]
    pd.testing.assert_frame_equal(*tables)
    for side in ("base.nc", "tuned.nc"):
        scores = [rc.load_scores(world / one / side) for one in ("block", "whole")]
        assert scores[0].equals(scores[1])


@pytest.fixture(scope="module")
def done(world):
    """The same, uninterrupted, with everything in its report."""
    assert main(attribute(world, out="done", store="store")) == 0
    return world


@pytest.mark.browser
def test_the_report_answers_in_a_browser(done, tmp_path):
    page = done / "done" / "report.html"
    with chromium(tmp_path / "profile") as chrome:
        chrome.get(page.as_uri())
        text = chrome.execute_script("return document.body.textContent")
        for told in ("Does it answer better?", "Can the scores be trusted?", SYSTEM, "10 of 12 kept"):
            assert told in text
        assert chrome.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
        assert not [line for line in chrome.get_log("browser") if line["level"] == "SEVERE"]


def test_every_head_from_the_answers_that_are_there(done, capsys, monkeypatch):
    monkeypatch.setattr(generation, "_answer_batch", lambda *_a, **_k: pytest.fail("answered again"))
    assert main(attribute(done, "--level", "head", "--trust", "none", "--no-shared", out="head", store="store")) == 0
    scores = rc.load_scores(done / "head" / "tuned.nc")
    assert scores.attrs["level"] == "head" and scores.sizes["source"] == 1 + 2 * (4 + 1)
    assert capsys.readouterr().out.count("head/") == 6


def test_answers_out_and_in(done, capsys):
    own = ["--pair", "own", "--pairs", str(done / "pairs.yaml"), "--problems", str(done / "problems.jsonl")]
    own += ["--device", "cpu", "--store", str(done / "store")]
    assert main(["answers", *own, "--out", str(done / "answers.jsonl")]) == 0
    lines = [json.loads(line) for line in (done / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 12 and all(line["finished"] for line in lines)
    given = ["--answers", str(done / "answers.jsonl"), "--out", str(done / "given"), "--trust", "none", "--no-shared"]
    assert main(["attribute", *own, *given]) == 0
    tables = [pd.read_parquet(done / one / "metrics.parquet") for one in ("done", "given")]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.kernel
def test_a_sweep_of_four_cells(done):
    settings = {
        "pair": "own",
        "pairs": str(done / "pairs.yaml"),
        "problems": str(done / "problems.jsonl"),
        "device": "cpu",
        "trust": False,
        "shared": False,
        "runs": str(done / "store"),
    }
    sweep = {
        "notebook": str(ROOT / "notebooks" / "11_your_own_pair.ipynb"),
        "grid": {"level": ["block", "head"], "alpha": [0.3, 1.0]},
        "fixed": settings,
    }
    (done / "own.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", str(done / "own.yaml"), "--out", str(done / "sweep"), "--processes", "1"]) == 0
    table = pd.read_parquet(done / "sweep" / "summary.parquet")
    assert len(table) == 4 and set(table["status"]) == {"done"}


@pytest.mark.skipif(packaged_folder("smollm2") is None, reason="the model is not here (make smollm2)")
def test_a_real_model_walks_it_too(world, tmp_path, capsys):
    """SmolLM2-135M-Instruct and an adapter of it: two problems, eight tokens."""
    from peft import LoraConfig, get_peft_model

    base = packaged_folder("smollm2")
    adapted = get_peft_model(rc.load_model(base, device="cpu").hf, LoraConfig(r=2, init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    models = ["--base", base, "--tuned", tmp_path / "adapter", "--device", "cpu", "--max-new-tokens", 8]
    how = [
        "--prompt",
        "chat",
        "--system",
        SYSTEM,
        "--problems",
        world / "problems.jsonl",
        "--limit",
        2,
        "--keep",
        "all",
    ]
    less = ["--trust", "none", "--no-shared", "--store", tmp_path / "runs", "--out", tmp_path / "out"]
    assert main([str(one) for one in ["attribute", *models, *how, *less]]) == 0
    said = capsys.readouterr()
    assert f"<|im_start|>system\n  │ {SYSTEM}<|im_end|>" in said.err and (tmp_path / "out" / "report.html").is_file()
    scores = rc.load_scores(tmp_path / "out" / "tuned.nc")
    assert scores.sizes["source"] == 61 and float(abs(scores).max()) > 0
