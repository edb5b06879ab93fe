"""Pairs by name: which of them are on this machine, and what they are asked."""

from __future__ import annotations

import pytest

from rlcircuits import models
from rlcircuits.errors import InputError
from rlcircuits.lab import pairs_here, problems_of


def test_pairs_that_are_not_here_are_told_apart_and_not_made(monkeypatch):
    rows = [
        {"pair": "family/grpo", "here": "both"},
        {"pair": "family/ppo", "here": "base"},
        {"pair": "mistral", "here": "no"},
    ]
    monkeypatch.setattr(models, "pair_rows", lambda **_given: rows)
    names = ["mistral", "family/grpo", "family/ppo", "smollm2/nobody-trained-it"]
    assert pairs_here(names) == (["family/grpo"], ["mistral", "family/ppo", "smollm2/nobody-trained-it"])
    for given, says in (
        (["family/ppo", "mistral"], "none of family/ppo, mistral is on this machine"),
        (["mistrall"], "did you mean 'mistral'"),
        ([], "no pairs are given"),
    ):
        with pytest.raises(InputError, match=says):
            pairs_here(given)


def test_a_packages_pair_brings_its_own_problems(tmp_path):
    assert len(problems_of("family/grpo", limit=7)) == 7
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "1 + 2?", "answer": "3"}\n', "utf-8")
    assert len(problems_of("mistral", str(file))) == 2 and len(problems_of("mistral", str(file), 1)) == 1
