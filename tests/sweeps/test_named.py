"""Whatever a parameter names, directly or through YAML, is part of a cell's key."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcircuits.sweeps.named import identified, named_files

PARAMETERS = {
    "pair": "mine",
    "pairs": "own/pairs.yaml",
    "problems": ["gsm8k=rows.jsonl", "family"],
    "options": {"shots": "shots.txt"},
    "runs": "../runs",
    "alpha": 0.3,
}
FILES = {
    "notebooks/own/pairs.yaml": "mine: {base: ./base, tuned: ../adapter, prompt: '{question}', config: {layers: 2}}",
    "notebooks/own/base/config.json": "{}",
    "notebooks/own/base/model.safetensors": "base",
    "notebooks/adapter/adapter_config.json": "{}",
    "notebooks/adapter/adapter_model.safetensors": "tuned",
    "notebooks/rows.jsonl": "{}",
    "notebooks/shots.txt": "2 + 2 = 4",
    "sets.yaml": "more: {path: more.jsonl, question: q, answer: a}",
    "more.jsonl": "{}",
    "runs/answers/kept.parquet": "what was computed",
    "notebooks/another.jsonl": "{}",
}
NOT_NAMED = ("runs/answers/kept.parquet", "notebooks/another.jsonl")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("RLCIRCUITS_PROBLEM_SETS", str(tmp_path / "sets.yaml"))
    return tmp_path / "notebooks"


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_NAMED])
def test_a_file_that_is_named_is_in_the_key(folder: Path, name: str) -> None:
    before = named_files(PARAMETERS, folder, identified)
    file = folder.parent / name
    file.write_text(file.read_text() + " ")
    after = named_files(PARAMETERS, folder, identified)
    assert after != before and after.keys() == before.keys()


@pytest.mark.parametrize("name", NOT_NAMED)
def test_no_other_file_is(folder: Path, name: str) -> None:
    before = named_files(PARAMETERS, folder, identified)
    (folder.parent / name).write_text("changed")
    assert named_files(PARAMETERS, folder, identified) == before


@pytest.mark.parametrize("text", ["", "~nobody/x", "a\0b", "x" * 5000, "a\nb", "=", ".", "/", "no such file"])
def test_a_text_that_names_nothing_is_none(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLCIRCUITS_PROBLEM_SETS")
    assert named_files({"text": text, "list": [text, {"deep": text}]}, folder, identified) == {}


@pytest.mark.parametrize("content", ["a: [", "a: &x [*x]", "self.yaml", "- self.yaml\n- {deep: self.yaml}", "1: 2"])
def test_yaml_that_is_none_or_names_itself_ends(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLCIRCUITS_PROBLEM_SETS")
    (folder / "self.yaml").write_text(content)
    assert named_files({"file": "self.yaml"}, folder, identified).keys() == {"self.yaml"}
