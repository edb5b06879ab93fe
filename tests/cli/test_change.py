"""``rlcircuits change``: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest

import rlcircuits as rc
from rlcircuits.cli.main import main
from tests.fixtures.checkpoints import WORDS, save

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("change")
    for seed, name in enumerate(("base", "tuned")):
        save(root / name, layers=2, seed=seed)
    rows = [{"question": " ".join(WORDS[i : i + 4]), "answer": f"# {WORDS[i]}"} for i in range(8)]
    (root / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    words = f"--base {root}/base --tuned {root}/tuned --problems {root}/asked.jsonl --grader final --max-new-tokens 5"
    return root, ["change", *words.split(), "--device", "cpu", "--store", f"{root}/store", "--exact", "2"]


def test_it_writes_a_page_and_the_tables_and_says_the_same(given, capsys):
    root, command = given
    out = root / "out"
    assert main([*command, "--out", str(out), "--parts", "graft,divergence,weights", "--modules", "all,a0"]) == 0
    said = capsys.readouterr().out
    assert "Which weights carry it?" in said and f"written: {out}/report.html" in said
    assert {file.name for file in out.iterdir()} == {
        "report.html", "settings.json", "summary.parquet", "strata.parquet", "graft.parquet", "divergence-base.parquet",
        "divergence-tuned.parquet", "weights.parquet",
    }  # fmt: skip
    table = pd.read_parquet(out / "graft.parquet")
    assert set(table["modules"]) == {"all", "a0"} and set(table["into"]) == {"base", "tuned"}
    assert (table.query("modules == 'all' and into == 'base'")["stands"] - 1).abs().max() < 1e-6
    assert json.loads((out / "settings.json").read_text())["asked"]["parts"] == ["graft", "divergence", "weights"]


def test_the_same_command_again_loads_no_model_and_other_settings_are_refused(given, capsys, monkeypatch):
    root, command = given
    command = [*command, "--out", str(root / "again"), "--parts", "weights,graft", "--modules", "m1"]
    assert main(command) == 0
    monkeypatch.setattr(rc.ModelPair, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--modules", "m0"]) == 2
    assert "holds results of other settings (modules is ['m1'] there, ['m0'] here)" in capsys.readouterr().err


def test_the_explorer_gets_what_edges_do_with_the_other_models_message(given, capsys):
    root, command = given
    out = root / "patched"
    assert main([*command, "--out", str(out), "--parts", "patching"]) == 0
    assert f"{out}/explorer.html" in capsys.readouterr().out
    page = (out / "explorer.html").read_text("utf-8")
    (told,) = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])["scores"]
    measures = {one["name"]: [panel["name"] for panel in one["panels"]] for one in told["measures"]}
    assert measures == {"score": ["base", "tuned"]} | {
        f"other model's, {kind}": ["base", "tuned"] for kind in ("first", "integrated", "exact")
    }
    edges = pd.read_parquet(out / "edges.parquet").query("direction == 'bring'").set_index("edge")["integrated"]
    panel = next(one for one in told["measures"] if "integrated" in one["name"])["panels"][0]["mean"]
    means = np.frombuffer(base64.b64decode(panel["data"]), "<f4")
    names = [[told[dim][i][0] for i in np.frombuffer(base64.b64decode(told[key]["data"]), "<u2")]
             for dim, key in (("sources", "rows"), ("destinations", "columns"))]  # fmt: skip
    expected = [edges[f"{source}->{destination}"] for source, destination in zip(*names)]
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--parts", "graf"], "unknown part 'graf'.*did you mean 'graft'"),
        (["--steps", "1"], "steps is 1"),
        (["--exact", "-1"], "expected all or a whole number"),
        (["--modules", "a7", "--parts", "graft"], "unknown module 'a7'"),
        (["--level", "blocks"], "unknown level 'blocks'"),
        (["--n", "0"], "a whole number of at least 1"),
    ],
)
def test_bad_input_is_one_message(given, capsys, options, says, tmp_path):
    assert main([*given[1], "--out", str(tmp_path / "x"), *options]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("rlcircuits:")]
    assert re.search(says, line)


def test_one_model_has_no_change(given, capsys):
    root, _ = given
    assert main(["change", "--base", f"{root}/base", "--problems", f"{root}/asked.jsonl"]) == 2
    assert "one model has no change: give --tuned PATH" in capsys.readouterr().err
