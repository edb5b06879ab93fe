"""Wrong sweep files and options, made by the thousand: each ends as one message and exit code 2, or is right after
all.
"""

from __future__ import annotations

import contextlib
import io
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlcircuits.cli.main import main
from tests.fixtures.sweeps import write_notebook

FILES, OPTIONS = 150, 60
NOTEBOOK = [
    'pair = ""\nalpha = 0.3\nlevel = "block"\nn = 100\nkeep = True\nmembers = ["grpo"]\nmodel = None',
    "from rlcircuits.attribution.graph import LEVELS\nfrom rlcircuits.lab.parameters import number, validate\n"
    "from rlcircuits.lab.inputs import known_pair\n\n"
    "validate(globals(), pair=[known_pair(pair)], alpha=number(above=0, most=1), level=LEVELS, n=number(int, least=1), "
    "keep=bool, members=list[str], model=str | None)",
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, -0.0, float("nan"), float("inf"), 10**30, "", " ", "block", "haed", "0.3", "1e-3", "\0", "\ud800",
    "a" * 5000, "<script>alert(1)</script>", "../..", "/", "ünï ©ode 🙂", "family/ppo", "famly/ppo", "family/ppo@x", "family/ppo@3", "%s{}{0}",
    [], [[]], [None], [1, "a"], {}, {"a": 1}, {1: 2}, [[[[[[[1]]]]]]], [{"alpha": 0.1}], b"bytes", {"x"}, (1, 2),
]  # fmt: skip
RAW = [
    b"", b"\xff\xfe\x00", b"\x00", b"notebook", b"- a\n- b", b"{", b"[" * 3000, b"a: b: c", b"\tnotebook: x", b"a: &a [*a]", b"%YAML 9.9",
    b"notebook: !!python/object/apply:os.system "
    b"['true']", b"? [a]\n: b", b"grid: {alpha: [0.1]}\ngrid: {alpha: [0.2]}", b"--- 1\n--- 2",
    b"a: &x [1]\nb: *x", b"notebook: 2024-13-45", b"notebook: 2024-01-01", b"n: " + b"9" * 5000, b"'" + b"x" * 100, b"<<: [1, 2]", b"=: 1",
    b"notebook: !!binary "
    b"zzz", b"notebook: !!int zz", b"notebook: !!float "
                                   b"zz", b"notebook: !!set {a, b}", b"!!omap 3", b"notebook: \"\\ud800\"",
    b"{a: 1, a: 2}", b"notebook: ~", b"1: 2", b"? {a: b}\n: c", b"notebook: !!timestamp x", b"&a", b"*a", b"!", b"!!null x", b"... ", b"@", b"`",
]  # fmt: skip


def valid(chance: random.Random) -> dict[str, Any]:
    """A right sweep file."""
    content: dict[str, Any] = {"notebook": "small.ipynb", "grid": {"alpha": [0.1, 0.3], "level": ["block", "head"]}}
    if chance.random() < 0.5:
        content["fixed"] = {"n": 5, "pair": "family/ppo"}
    if chance.random() < 0.3:
        content["cells"] = [{"alpha": 0.5, "keep": False}]
    if chance.random() < 0.3:
        content["share"] = ["pair"]
    if chance.random() < 0.2:
        content["timeout"] = 5
    return content


def spoiled(chance: random.Random) -> bytes:
    """A sweep file with one to three faults, or plain nonsense."""
    if chance.random() < 0.1:
        return chance.choice(RAW)
    content = valid(chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(FAULTS)(content, chance)
    text = yaml.dump(content, sort_keys=False, allow_unicode=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance.random() < 0.15:  # a fault of the file itself
        at = chance.randrange(len(text) + 1)
        noise = bytes(chance.choices(range(256), k=chance.randrange(4)))
        text = text[:at] + noise + text[at + chance.randrange(5) :]
    return text


def _slip(name: str, chance: random.Random) -> str:
    at = chance.randrange(max(len(name), 1))
    return chance.choice(
        (
            name[:at] + name[at + 1 :],
            name[:at] + chance.choice(string.ascii_letters) + name[at:],
            name.upper(),
            name * 2,
        )
    )


def _misname(content: dict, chance: random.Random) -> None:
    if content:
        key = chance.choice(list(content))
        content[_slip(str(key), chance)] = content.pop(key)


def _misname_parameter(content: dict, chance: random.Random) -> None:
    if isinstance(content.get("grid"), dict):
        _misname(content["grid"], chance)


def _drop(content: dict, chance: random.Random) -> None:
    if content:
        content.pop(chance.choice(list(content)))


def _odd(content: dict, chance: random.Random) -> None:
    content[chance.choice(["notebook", "grid", "cells", "fixed", "share", "show", "timeout", "more", 3, None])] = (
        chance.choice(ODD)
    )


def _odd_grid(content: dict, chance: random.Random) -> None:
    if isinstance(content.get("grid"), dict):
        value = chance.choice(ODD)
        name = chance.choice(["alpha", "level", "n", "pair", "keep", "members", "model", "beta", "a b", "", 7])
        content["grid"][name] = value if chance.random() < 0.4 else [value, *chance.choices(ODD, k=chance.randrange(3))]


def _odd_cell(content: dict, chance: random.Random) -> None:
    name = chance.choice(["alpha", "level", "n", "pair", "keep", "members", "model", "beta"])
    content["cells"] = [chance.choice(ODD) if chance.random() < 0.3 else {name: chance.choice(ODD)}]


def _odd_fixed(content: dict, chance: random.Random) -> None:
    content["fixed"] = {
        chance.choice(["alpha", "level", "n", "pair", "keep", "members", "model", "seed"]): chance.choice(ODD)
    }


def _many(content: dict, chance: random.Random) -> None:
    content["grid"] = {name: list(range(1, 400)) for name in ("n", "alpha", "model")}


FAULTS: list[Callable[[dict, random.Random], None]] = [
    _misname, _misname_parameter, _drop, _odd, _odd, _odd_grid, _odd_grid, _odd_grid, _odd_cell, _odd_fixed, _many,
]  # fmt: skip


def called(arguments: list[str]) -> tuple[int, str]:
    """Exit code and messages of the command line, in this process: a crash of any other kind is the test's."""
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    return code, words.getvalue()


def check(code: int, words: str, what: object) -> bool:
    """Whether the input was refused; fails the test when it was neither refused in one message nor right."""
    assert code in (0, 2), (what, words)
    if code == 0:
        return False
    assert words.startswith("rlcircuits: ") and words.endswith("\n"), (what, words)
    assert len(words.splitlines()) <= 3 and len(words) < 1500 and "Traceback" not in words, (what, words)
    return True


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_notebook(tmp_path / "small.ipynb", NOTEBOOK)
    return tmp_path


@pytest.mark.slow
def test_wrong_sweep_files_end_in_one_message(small: Path) -> None:
    chance, refused = random.Random(1), 0
    for number in range(FILES):
        content = RAW[number] if number < len(RAW) else spoiled(chance)
        (small / "wrong.yaml").write_bytes(content)
        code, words = called(["sweep", str(small / "wrong.yaml"), "--out", str(small / "out"), "--dry-run"])
        if check(code, words, content):
            refused += 1
            assert "wrong.yaml" in words, (content, words)
    print(f"\n{FILES} sweep files: {refused} refused, {FILES - refused} right after all")
    assert refused > 0.7 * FILES
    assert not (small / "out").exists()


@pytest.mark.slow
def test_wrong_options_end_in_one_message(small: Path) -> None:
    (small / "right.yaml").write_text("notebook: small.ipynb\ngrid: {alpha: [0.1, 0.2]}\n")
    options = [
        "--engine",
        "--address",
        "--gpus-per-cell",
        "--processes",
        "--retries",
        "--only",
        "--out",
        "--fresh",
        "--resume",
        "--nope",
    ]
    odd = [
        "",
        "0",
        "-1",
        "nan",
        "1e9",
        "rya",
        "locl",
        "local",
        "failed",
        "faild",
        "x" * 300,
        "🙂",
        "1.5",
        "--",
        "none:none",
        str(small),
    ]
    chance, refused = random.Random(2), 0
    for _ in range(OPTIONS):
        given = [word for _ in range(chance.randrange(1, 3)) for word in (chance.choice(options), chance.choice(odd))]
        file = chance.choice(["right.yaml"] * 3 + ["wrogn.yaml", "", "."])
        code, words = called(["sweep", str(small / file), *given, "--dry-run"])
        refused += check(code, words, given)
    print(f"\n{OPTIONS} sets of options: {refused} refused")
    assert refused > 0.5 * OPTIONS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("notebok: small.ipynb", ["unknown key 'notebok'", "did you mean 'notebook'?"]),
        ("notebook: smal.ipynb\ngrid: {alpha: [1]}", ["no file 'smal.ipynb'", "did you mean 'small.ipynb'?"]),
        ("notebook: small.ipynb\ngrid: {alhpa: [0.1]}", ["grid", "unknown parameter 'alhpa'", "did you mean 'alpha'?"]),
        ("notebook: small.ipynb\ngrid: {alpha: 0.1}", ["grid: alpha is the number 0.1", "such as [0.1]"]),
        ("notebook: small.ipynb\ngrid: {alpha: [1e-3]}", ["parameter alpha is '1e-3' (str)", "1.0e-3"]),
        ("notebook: small.ipynb\ngrid: {alpha: [1.5]}", ["parameter alpha is 1.5", "at most 1"]),
        (
            "notebook: small.ipynb\ngrid: {pair: [family/pppo]}",
            ["unknown pair 'family/pppo'", "did you mean 'family/ppo'?"],
        ),
        ("notebook: small.ipynb\ngrid: {level: [haed]}", ["parameter level is 'haed'", "did you mean 'head'?"]),
        ("notebook: small.ipynb\ngrid: {n: [1, 1]}", ["n lists '1' twice"]),
        ("notebook: small.ipynb\ngrid: {n: [1]}\nfixed: {n: 2}", ["n stands in grid and in fixed"]),
        ("notebook: small.ipynb\ngrid: {n: [1]}\ngrid: {n: [2]}", ["line 3", "'grid' is given twice"]),
        ("notebook: small.ipynb\ngrid: {n: [1, 2]}\nshare: [piar]", ["share names 'piar'", "did you mean 'pair'?"]),
        ("notebook: small.ipynb\ncells: [{n: 1}, {n: 1}]", ["the same cell twice"]),
        ("notebook: small.ipynb\ncells: [{n: 1}, {n: one}]", ["cells, number 2: n", "parameter n is 'one' (str)"]),
        ("notebook: small.ipynb\ngrid: {n: [1]}\ntimeout: soon", ["timeout is the text 'soon'", "seconds"]),
        ("notebook: small.ipynb", ["has no cells"]),
    ],
)
def test_messages_name_file_key_and_the_nearest_name(small: Path, content: str, says: list[str]) -> None:
    (small / "one.yaml").write_text(content)
    code, words = called(["sweep", str(small / "one.yaml")])
    assert code == 2 and "one.yaml" in words and all(part in words for part in says), words
    assert not (small / "runs").exists()
