"""The notebooks run, with their defaults and with others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from rlcircuits.lab import parameters as notebook

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# In place of the defaults, wherever a notebook has a parameter of the name; few problems, as they were all run for the
# book.
OTHERS: dict[str, Any] = {
    "alpha": 0.5,
    "n_problems": 60,
    "n": 12,
    "ig_steps": 4,
    "level": "qkv",
    "members": ["grpo"],
    "member": "ppo",
    "sample": 1,
    "bins": 50,
    "points": 21,
    "claimants": ["dpo"],
    "compared": ["family/ppo"],
    "live": False,
}
#: the one notebook without any of these: benchmarks of a single kind of machine are kept
NO_OTHERS = ["13_cost"]
CHANGED = {
    path: {
        name: OTHERS[name]
        for name, value in notebook.default_parameters(path).items()
        if OTHERS.get(name, value) != value
    }
    for path in NOTEBOOKS
}


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "welcome"], ids=lambda p: p.stem)
def test_with_its_defaults_it_runs_to_its_end(path: Path, book: Path) -> None:
    """As it was run for the book, which is the one time it is: every cell, none with an error, nothing but what is in
    git.
    """
    given, ran = (nbformat.read(file, as_version=4).cells for file in (path, book.parent / "notebooks" / path.name))
    assert [cell.source for cell in ran] == [cell.source for cell in given]
    code = [cell for cell in ran if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


@pytest.mark.kernel
def test_nbval_runs_what_make_lab_opens_on(family: None) -> None:
    """The one notebook that the book does not run; other plugins would take a second to load and have no part in it."""
    command = [sys.executable, "-m", "pytest", "-p", "nbval.plugin", "--nbval-lax", "--nbval-current-env", "-q"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command += ["-p", "no:cacheprovider", "notebooks/welcome.ipynb"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_every_notebook_has_a_parameter_that_is_changed_here() -> None:
    """A parameter under a new name would otherwise take its notebook out of the tests below."""
    assert [path.stem for path in NOTEBOOKS if not CHANGED[path]] == NO_OTHERS


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if CHANGED[path] and path.stem != "welcome"], ids=lambda p: p.stem
)
def test_papermill_with_other_parameters(path: Path, book: Path, tmp_path: Path) -> None:
    """papermill as its command, from the folder of the notebooks, as the README says."""
    given = json.dumps(CHANGED[path])  # JSON is YAML
    command = [
        sys.executable,
        "-m",
        "papermill",
        path.name,
        str(tmp_path / path.name),
        "-y",
        given,
        "--no-progress-bar",
    ]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    changed = _outputs(tmp_path / path.name)
    assert changed != _outputs(book.parent / "notebooks" / path.name), "the parameters change nothing that is shown"


def _outputs(path: Path) -> list[str]:
    """What an executed notebook shows, as text."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs if output.output_type != "stream"]
    kinds = ("text/html", "text/markdown", "text/plain")
    return [str(next((output["data"][k] for k in kinds if output.get("data", {}).get(k)), None)) for output in shown]
