"""The house keeps its rules: what may import what, one door to each room, no module too long to read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rlcircuits", "paradigms")
LONGEST = 500


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import between modules, those for the type checker alone and those inside functions too."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def rooms(graph: grimp.ImportGraph) -> list[str]:
    """The folders of the packages, each with its own ``__init__``."""
    return sorted(room for package in PACKAGES for room in graph.find_children(package) if graph.find_children(room))


def test_imports_keep_the_contracts_of_pyproject(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Layers, no circles: the contracts of import-linter."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_a_room_is_entered_through_its_door(graph: grimp.ImportGraph) -> None:
    """From outside a room is imported, never its modules; from within its modules, never the room, which would hide
    a circle.
    """
    wrong = [
        f"{importer} imports {inside}"
        for room in rooms(graph)
        for inside in (room, *graph.find_descendants(room))
        for importer in graph.find_modules_that_directly_import(inside)
        if (importer == room or importer.startswith(f"{room}.")) == (inside == room)
    ]
    assert not wrong, "\n".join(wrong)


def test_what_a_room_hands_on_is_there_and_no_module_hides_it(graph: grimp.ImportGraph) -> None:
    """Each name of a room's ``__init__.pyi`` can be had, and is no module's: importing the module would put it in
    the name's place.
    """
    for room in rooms(graph):
        names = getattr(import_module(room), "__all__", [])
        assert not [name for name in names if name.startswith("_") or f"{room}.{name}" in graph.modules], room
        assert [name for name in names if not hasattr(import_module(room), name)] == [], room


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_can_be_read_in_one_sitting(package: str) -> None:
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > LONGEST} == {}
