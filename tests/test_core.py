"""The core alone: what ``pip install .`` brings is enough to attribute, compare and draw, and an extra is asked for by
name.

The empty environment is a virtual environment with a wheel built of this tree and, as links into the environment of the
tests, the distributions which the core's requirements lead to: the files that pip would unpack, without fetching them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.fixtures.checkpoints import save
from tests.test_setup import PROJECT, ROOT


def closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """What pip would install for these requirements, by name, as far as it is installed here; itself included."""
    found: dict[str, metadata.Distribution] = {}
    asked: set[tuple[str, str]] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for one, extra in asked if one == name}:
            asked.add((name, extra))
            found[name] = metadata.distribution(name)
            lines = map(Requirement, found[name].requires or [])
            todo += [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
    return found


def link(distribution: metadata.Distribution, site: Path) -> None:
    """Make a distribution's files importable from `site`, by one link for each of its folders and modules."""
    for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        target = site / top
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(top))))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the core, from a wheel built of this tree, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    tree = folder / "tree"
    for package in ("rlcircuits", "paradigms"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *offline, "-w", folder, tree], check=True)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    for distribution in closure(PROJECT["project"]["dependencies"]).values():
        link(distribution, site)
    return folder / "venv" / "bin" / "python"


def run(python: Path, code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in the environment, away from the checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


COMMAND = """
import sys
from importlib.metadata import entry_points
sys.argv[0] = "rlcircuits"
(command,) = entry_points(group="console_scripts", name="rlcircuits")
sys.exit(command.load()())
"""

USE = """
import importlib.util, json, sys
import rlcircuits as rc
from rlcircuits import figures

model = rc.load_model(sys.argv[1], device="cpu", dtype="float32")
traces = [rc.Trace(str(i), prompt=[3 + i, 4, 5], answer=[6, 7 + i]) for i in range(3)]
scores = rc.attribute(model, traces, progress=False)
exact = rc.ablate(model, traces, edges=["a0->m1"], progress=False)
table = rc.compare(scores, 2 * scores, n_resamples=50)
figures.adjacency(scores).to_json()
print(json.dumps({
    "file": rc.__file__,
    "shape": scores.shape,
    "losses": rc.token_losses(model, traces)[0].tolist(),
    "doubled": float(table.loc["activation_intensity", "tuned"] / table.loc["activation_intensity", "base"]),
    "there": [name for name in sys.argv[2:] if importlib.util.find_spec(name)],
}))
"""
TRAINS_OR_BUILDS = ("trl", "papermill", "jupyter_book", "ipykernel", "IPython", "ipywidgets", "ray", "peft", "pytest")


@pytest.mark.slow
def test_the_core_attributes_compares_and_draws(core: Path, tmp_path: Path) -> None:
    done = run(core, USE, save(tmp_path / "model"), *TRAINS_OR_BUILDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["file"].startswith(str(core.parents[1]))
    assert found["shape"][0] == 3
    assert found["doubled"] == pytest.approx(2)
    assert found["there"] == []


@pytest.mark.slow
def test_the_core_has_a_shell(core: Path, tmp_path: Path) -> None:
    done = run(core, COMMAND, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "attribute" in done.stdout, done.stderr
    assert "family" in done.stdout, "what trains says what it lacks when it is asked to, not before"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "arguments"),
    [("paradigms", ["family", "--members", "dpo"]), ("sweeps", ["sweep", "grid.yaml", "--dry-run"])],
)
def test_a_command_asks_for_the_extra_that_it_lacks(
    core: Path, tmp_path: Path, extra: str, arguments: list[str]
) -> None:
    (tmp_path / "book.ipynb").write_text("{}")
    (tmp_path / "grid.yaml").write_text("notebook: book.ipynb\ngrid: {level: [block]}\n")
    done = run(core, COMMAND, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert f"pip install 'rlcircuits[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_function_asks_for_the_extra_that_it_lacks(core: Path, tmp_path: Path) -> None:
    done = run(core, "import rlcircuits as rc; rc.explore(None)", cwd=tmp_path)
    assert "InputError" in done.stderr and "pip install 'rlcircuits[lab]'" in done.stderr
