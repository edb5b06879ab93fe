"""Wrong files of every kind: each is valid, or one `InputError`; nothing else ever comes out.

Each generator starts from a right file and breaks it: bytes, structure, types, names. Seeded, so that a failure comes
back. RLCIRCUITS_FUZZ sets how many files of each kind are tried (default 40; the whole campaign is 1,000).
"""

from __future__ import annotations

import json
import os
import random
import re

import pytest
import yaml

import rlcircuits as rc
from rlcircuits.answers.reading import load_problems
from rlcircuits.answers.sets import problem_set, problem_sets
from rlcircuits.cli.main import main
from rlcircuits.errors import InputError
from rlcircuits.models.known import pairs
from tests.fixtures.checkpoints import WORDS, save

COUNT = int(os.environ.get("RLCIRCUITS_FUZZ", "40"))
ODD = [
    None, True, False, 0, -1, 3, 1.5, 10**30, float("nan"), float("inf"), "", " ", "a/b", "family/ppo", "../x", "{question}", "{}", "chat", "PPO",
    "math", "test", "\ud800", "\x00", "é漢", "a" * 300, [], [1], ["a", None], {}, {"a": 1}, {"base": "a/b"}, [[[]]], "2001-01-01", "~", "1e3", "=",
]  # fmt: skip
PAIR = {
    "base": "a/b",
    "tuned": "a/c",
    "method": "PPO",
    "prompt": "Q {question}",
    "max_new_tokens": 9,
    "note": "n",
    "trust_remote_code": False,
}
SET = {
    "path": "x.jsonl",
    "question": "q",
    "answer": "a",
    "grader": "math",
    "extractor": "hashes",
    "config": "main",
    "split": "test",
}
ROW = {"question": "1 + 1?", "answer": "#### 2", "uid": "u"}


def slipped(rng, text):
    """A text with letters swapped, dropped, doubled or made up."""
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        [
            text[:at] + text[at + 1 :],
            text[:at] + rng.choice("aé \t:-{}[]#&*!|>'\"%@`\x07\ud800") + text[at:],
            text.upper(),
            text[::-1],
        ]
    )


def broken_mapping(rng, entry):
    """An entry with keys renamed, removed or added and values exchanged."""
    entry = dict(entry)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(5)
        key = rng.choice(list(entry) or ["base"])
        if kind == 0:
            entry.pop(key, None)
        elif kind == 1:
            entry[slipped(rng, str(key))] = entry.pop(key, 1)
        elif kind == 2:
            entry[rng.choice([1, None, True, "x", "hub", "id", 2.5])] = rng.choice(ODD)
        else:
            entry[key] = rng.choice(ODD)
    return entry


def broken_bytes(rng, content):
    """Bytes changed, cut off, doubled or put in."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = content[: rng.randrange(40)]
        elif kind == 3:
            content[at:at] = rng.choice(
                [
                    b"\x00",
                    b"\xff",
                    b"[" * 2000,
                    b"{" * 200,
                    b"&a *a",
                    b"!!python/name:os.system ",
                    b"\n---\n",
                    b"<<: *x",
                    b"2001-99-99",
                    b"9" * 5000,
                ]
            )
        else:
            del content[at : at + rng.randrange(20)]
    return bytes(content)


def yaml_file(rng, entry):
    """A YAML file about one entry, wrong in some way."""
    kind = rng.randrange(4)
    if kind == 0:
        return broken_bytes(rng, yaml.safe_dump({"own": entry}).encode())
    if kind == 1:
        return _dumped(rng.choice([entry, [entry], rng.choice(ODD), {"own": rng.choice(ODD)}]))
    name = rng.choice(["own", "gsm8k", "mistral", *[one for one in ODD if not isinstance(one, (list, dict))]])
    return _dumped({name: broken_mapping(rng, entry)})


def _dumped(content):
    return yaml.safe_dump(content, allow_unicode=False).encode("utf-8", "surrogatepass")


def json_lines(rng, row):
    """JSON lines, some of them wrong."""
    lines = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(4)
        if kind == 0:
            lines.append(broken_bytes(rng, json.dumps(row).encode()))
        else:
            lines.append(
                json.dumps(
                    rng.choice([row, broken_mapping(rng, row), broken_mapping(rng, row), rng.choice(ODD)]), default=str
                ).encode()
            )
    return rng.choice([b"\n", b"\r\n", b"\n\n", b""]).join(lines)


def ends_well(read):
    """Whether a reader took the file; anything but a value or an `InputError` of one printable line or two fails."""
    try:
        read()
    except InputError as error:
        message = str(error)
        assert 10 < len(message) < 2000 and len(message.splitlines()) <= 2, message
        assert re.search(
            r"expected|did you mean|holds|is not|cannot|has|could not|no |lacks|differ|unknown|second|goes on", message
        ), message
        message.encode("utf-8")
        return False
    return True


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    save(root / "m", layers=2)
    asked = tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 3]), WORDS[i]) for i in range(3))
    pair = rc.ModelPair("own", root / "m", root / "m", max_new_tokens=4)
    return root, rc.ProblemSet("words", asked, "final"), pair.check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pairs", "problem sets", "problems", "answers"])
def test_wrong_files_are_one_message(world, kind):
    root, problems, outlines = world
    answer = {
        "side": "base",
        "problem": "p0",
        "prompt": [3, 4],
        "answer": [5, 6],
        "finished": True,
        "text": "t",
        "correct": False,
    }
    rng = random.Random(f"fuzz {kind}")
    taken = 0
    for _ in range(COUNT):
        if kind == "pairs":
            (root / "own.yaml").write_bytes(yaml_file(rng, PAIR))
            taken += ends_well(lambda: pairs(root / "own.yaml"))
        elif kind == "problem sets":
            (root / "own.yaml").write_bytes(yaml_file(rng, SET))
            taken += ends_well(lambda: problem_sets(root / "own.yaml"))
        elif kind == "problems":
            (root / "own.jsonl").write_bytes(json_lines(rng, ROW))
            options = rng.choice([{}, {}, {"id": "uid"}, {"question": "uid"}, {"grader": "final"}, {"limit": 2}])
            taken += ends_well(
                lambda: (load_problems(root / "own.jsonl", **options), problem_set(f"gsm8k={root / 'own.jsonl'}"))
            )
        else:
            (root / "own.jsonl").write_bytes(json_lines(rng, answer))
            taken += ends_well(lambda: rc.read_answers(root / "own.jsonl", problems, outlines))
    assert taken < COUNT / 2  # nearly all are wrong; a few slips are harmless


@pytest.mark.filterwarnings("ignore")
def test_the_shell_ends_with_2_and_one_message(world, tmp_path, capsys):
    rng = random.Random("fuzz shell")
    for _ in range(max(10, COUNT // 4)):
        (tmp_path / "own.yaml").write_bytes(yaml_file(rng, SET))
        (tmp_path / "x.jsonl").write_bytes(json_lines(rng, {"q": "1?", "a": "#### 2"}))
        code = main(["problems", "own", "--sets", str(tmp_path / "own.yaml"), "--grader", "final"])
        said = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in said.err
        if code:
            lines = [line for line in said.err.splitlines() if line.strip()]
            assert lines[-1].startswith("rlcircuits: ") and said.out == ""
