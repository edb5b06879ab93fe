"""The set-up agrees with itself: pyproject, lock, environment, Makefile, README, notebooks."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = {
    re.sub(r"[-_.]+", "-", name).lower(): version
    for name, version in (
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    )
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def tracked() -> list[Path]:
    """The repository's text files."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    suffixes = (
        ".py",
        ".md",
        ".yml",
        ".yaml",
        ".toml",
        ".lock",
        ".sh",
        ".ipynb",
        ".js",
        ".css",
        ".bib",
        "Makefile",
        "run",
    )
    paths = [ROOT / line for line in listed.stdout.splitlines() if line.endswith(suffixes)]
    return [path for path in paths if path.is_file()]


#: extras that are not installed along: they need a GPU
NOT_LOCKED = {"vllm"}
EXTRAS = {
    name: [Requirement(line) for line in lines] for name, lines in PROJECT["project"]["optional-dependencies"].items()
}


def direct() -> list[Requirement]:
    """What is required by name, apart from the package's own extras."""
    extras = [one for name, requirements in EXTRAS.items() if name not in NOT_LOCKED for one in requirements]
    whole = [*map(Requirement, PROJECT["project"]["dependencies"]), *extras]
    return list({str(one): one for one in whole if one.name != "rlcircuits"}.values())


def test_everything_is_all_extras_but_those_that_need_a_gpu() -> None:
    (everything,) = EXTRAS["all"]
    assert everything.extras == EXTRAS.keys() - NOT_LOCKED - {"all"}


@pytest.mark.parametrize("requirement", direct(), ids=lambda r: r.name)
def test_the_lock_meets_every_bound(requirement: Requirement) -> None:
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    assert name in LOCK, f"{name} is in pyproject.toml but not in requirements.lock"
    assert requirement.specifier.contains(Version(LOCK[name]))
    assert requirement.specifier, f"{name} has no bound"


#: imported along with what is declared: the modules of ipywidgets' own requirement, and of IPython's
ALONG = {"traitlets", "jedi"}


@pytest.mark.parametrize("package", ["rlcircuits", "paradigms"])
def test_what_is_imported_is_declared(package: str) -> None:
    """By the distribution that brings it."""
    nodes = [node for path in (ROOT / package).rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    imported = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ALONG
    declared = {
        canonicalize_name(one.name) for one in [*direct(), *(one for name in NOT_LOCKED for one in EXTRAS[name])]
    }
    brings = metadata.packages_distributions()
    for module in sorted(imported - {"rlcircuits", "paradigms"}):
        assert declared & {canonicalize_name(name) for name in brings.get(module, [module])}, module


def test_bounds_that_others_rely_on() -> None:
    bounds = {r.name: r.specifier for r in direct()}
    assert LOCK["torch"] == "2.13.0"
    for version in ("2.11.0", "2.12.1", "2.13.0"):
        assert bounds["torch"].contains(version)
    for version in ("5.17.0", "5.23.0"):
        assert bounds["transformers"].contains(version)
    assert bounds["jupyter-book"].contains("1.0.4.post1") and not bounds["jupyter-book"].contains("2.0.0")


def test_the_lock_names_no_index_no_build_and_no_path() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), line


def test_the_lock_installs_on_every_python_that_is_taken() -> None:
    """By what the installed packages say of themselves; `environment.sh` takes any 3.11 and 3.12, such as Debian's 3.11.2."""
    admit = {name: SpecifierSet(metadata.metadata(name)["Requires-Python"] or "") for name in LOCK}
    for python in ("3.11.0", "3.12.0"):
        assert not [name for name, admitted in admit.items() if not admitted.contains(python)], python


def test_conda_installs_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{python.removeprefix('python=')}.0")
    assert python.removeprefix("python=") in (ROOT / "environment.sh").read_text(), (
        "make and conda take the same Python"
    )
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert "-r requirements.lock" in pip
    assert "-e .[all]" in pip


def test_citation_changelog_and_package_agree() -> None:
    import rlcircuits

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert citation["version"] == rlcircuits.__version__
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Repository"]
    assert f"## {rlcircuits.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["sphinx"]["config"]["html_theme_options"]["repository_url"] == citation["repository-code"]


def test_workflows_run_what_a_reader_would() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            commands += [step["run"] for step in job["steps"] if "run" in step]
            for step in job["steps"]:
                if "upload-pages-artifact" in step.get("uses", ""):
                    assert step["with"]["path"] == "_build/html"
    assert {"make book", "make test"} <= set(commands)
    assert {command.split()[1] for command in commands} <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), f"{page}: {target}"


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    home = re.compile(r"/(?:work|root|home/\w+|Users/\w+)/|/opt/|/tmp/work|extra-index-url|index-url|find-links")
    for path in tracked():
        if path.name == "test_setup.py":
            continue
        found = home.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


def test_every_make_command_that_is_written_down_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9]+):", makefile, re.MULTILINE))
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.md"), *NOTEBOOKS, ROOT / ".ci" / "run"]
    told = {
        word
        for page in pages
        for word in re.findall(r"(?:^|[`$ ])make ([a-z0-9]+)(?=[`\s\\])", page.read_text(), re.MULTILINE)
    }
    commands = {
        word
        for word in told
        if re.search(rf"`make {word}`|^make {word}\b", "\n".join(p.read_text() for p in pages), re.MULTILINE)
    }
    assert {"book", "test"} <= commands
    assert commands <= targets, f"no such target: {commands - targets}"
    documented = set(re.findall(r'echo "make ([a-z0-9]+)', makefile))
    assert documented <= targets


def test_make_without_a_target_helps(tmp_path: Path) -> None:
    shown = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    assert "make book" in shown.stdout and "make test" in shown.stdout


def test_an_unfit_python_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """With no Python in reach but one that does not run, the set-up says so and ends with 2."""
    for name in ("dirname", "grep", "date", "bash"):
        (tmp_path / name).symlink_to(
            subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        )
    script = (ROOT / "environment.sh").read_text().replace("/usr/bin/python3.11 /usr/bin/python3.12", "")
    (tmp_path / "environment.sh").write_text(script)
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\n")
    (tmp_path / "python3").write_text("#!/bin/bash\nexit 127\n")
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        [str(tmp_path / "bash"), "environment.sh", "venv"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no Python 3.11 or 3.12" in done.stderr and "make PYTHON=" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "venv").exists()


def test_import_is_light() -> None:
    code = (
        "import sys, rlcircuits; heavy = {'torch', 'transformers', 'trl', 'plotly', 'scipy', 'pandas', 'xarray', "
        "'numpy', 'transformer_lens', 'ipywidgets'} & set(sys.modules); print(sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import rlcircuits

    for name in rlcircuits.__all__:
        assert getattr(rlcircuits, name) is not None
        assert name in dir(rlcircuits)


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("rlcircuits")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    assert "Usage: rlcircuits" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
    assert [p.name[:2] for p in NOTEBOOKS] == sorted({p.name[:2] for p in NOTEBOOKS}), "one number, one notebook"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path: Path) -> None:
    notebook = json.loads(path.read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    source = {id(c): "".join(c["source"]) for c in notebook["cells"]}
    assert notebook["cells"][0]["cell_type"] == "markdown" and source[id(notebook["cells"][0])].startswith("# ")
    assert "?" in source[id(notebook["cells"][0])], "it opens with its question"
    tagged = [i for i, c in enumerate(code) if "parameters" in c["metadata"].get("tags", [])]
    assert tagged == [0], "the first code cell, and no other, is tagged 'parameters'"
    assert "validate(" in source[id(code[1])], "the second code cell validates"
    assert len({c["id"] for c in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert len(source[id(cell)].splitlines()) <= 40, "longer than a screen"
        assert "raises-exception" not in cell["metadata"].get("tags", [])
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None, "outputs are stripped"
        assert not source[id(cell)].lstrip().startswith("%%time")
    assert "widgets" not in notebook["metadata"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_prose_types_no_result(path: Path) -> None:
    """Decimal numbers in prose come from the run; only the parameters and the paper's own settings may be typed."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\$[^$]*\$|`[^`]*`|\{[^}]*\}", "", "".join(cell["source"]))
            assert not re.search(r"(?<![\w.])\d*\.\d{2,}\b", text), f"a typed result in: {text[:200]}"
