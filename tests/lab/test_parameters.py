"""Parameters of notebooks: handed over, checked, and refused when they are wrong, on every way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from rlcircuits.errors import InputError
from rlcircuits.lab import parameters as notebook
from rlcircuits.lab.parameters import number, validate
from tests.fixtures.waiting import PATIENCE

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A notebook of our form that needs nothing of the package but `validate`."""
    cells = [
        nbformat.v4.new_markdown_cell("# How much?"),
        nbformat.v4.new_code_cell(
            'alpha = 0.3\nlevel = "block"\nn: int = 10\nkeep = True\nmodel = None', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "from rlcircuits.lab.parameters import number, validate\n"
            "validate(globals(), alpha=number(float, above=0, most=1), level=['block', 'head'], n=number(int, least=1),"
            " keep=bool, model=str | None)"
        ),
        nbformat.v4.new_code_cell("shown = (alpha, level, n, keep, model)\nshown"),
        nbformat.v4.new_code_cell("# divides\n1 / (n - 7)"),
    ]
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def test_defaults_are_read_without_running(small: Path) -> None:
    assert notebook.default_parameters(small) == {"alpha": 0.3, "level": "block", "n": 10, "keep": True, "model": None}


@pytest.mark.kernel
def test_run_hands_the_parameters_over(small: Path, tmp_path: Path) -> None:
    given = {"alpha": 1, "level": "head", "n": 3, "model": "here"}
    done = notebook.run_notebook(small, tmp_path / "out" / "done.ipynb", given)
    shown = [o["data"]["text/plain"] for c in done.cells for o in c.get("outputs", []) if "data" in o]
    assert shown == ["(1, 'head', 3, True, 'here')", "-0.25"]
    assert (tmp_path / "out" / "done.ipynb").is_file()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alhpa": 0.5}, ["small.ipynb", "unknown parameter 'alhpa'", "did you mean 'alpha'?"]),
        ({"beta": 0.5}, ["unknown parameter 'beta'", "the notebook has alpha, level, n, keep, model"]),
        ({"alpha": "0.5"}, ["parameter alpha is '0.5' (str)", "expected a number"]),
        ({"n": 2.5}, ["parameter n is 2.5 (float)", "expected a whole number"]),
        ({"n": True}, ["parameter n is True (bool)"]),
        ({"keep": "true"}, ["parameter keep is 'true' (str)", "expected True or False"]),
        ({"level": 3}, ["parameter level is 3 (int)", "expected a text"]),
    ],
)
def test_run_refuses_before_anything_runs(small: Path, tmp_path: Path, given: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        notebook.run_notebook(small, tmp_path / "out.ipynb", given)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alhpa": 0.5}, ["unknown parameter 'alhpa'", "did you mean 'alpha'?"]),
        ({"keep": "true"}, ["parameter keep is 'true' (str)", "expected True or False"]),
        ({"alpha": 0.0}, ["parameter alpha is 0.0 (float)", "a number above 0 and at most 1"]),
        ({"alpha": float("nan")}, ["parameter alpha is nan"]),
        ({"level": "haed"}, ["one of 'block', 'head'", "did you mean 'head'?"]),
    ],
)
def test_plain_papermill_stops_at_the_second_cell(small: Path, tmp_path: Path, given: dict, words: list[str]) -> None:
    with pytest.raises(PapermillExecutionError) as error:
        papermill.execute_notebook(
            str(small), str(tmp_path / "out.ipynb"), parameters=given, progress_bar=False, start_timeout=PATIENCE
        )
    assert error.value.ename == "InputError"
    assert all(word in error.value.evalue for word in words), error.value.evalue
    assert "validate(" in error.value.source


@pytest.mark.kernel
def test_a_failing_cell_is_named_in_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        notebook.run_notebook(small, tmp_path / "out.ipynb", {"n": 7})
    assert str(error.value) == "small.ipynb, cell 5 (`1 / (n - 7)`): ZeroDivisionError: division by zero"
    assert (tmp_path / "out.ipynb").is_file()


def test_what_is_no_notebook_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no notebook at"):
        notebook.run_notebook(tmp_path / "none.ipynb", tmp_path / "out.ipynb")
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    with pytest.raises(InputError, match="half.ipynb is not a notebook"):
        notebook.run_notebook(tmp_path / "half.ipynb", tmp_path / "out.ipynb")


def test_a_parameters_cell_holds_plain_values(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("n = len([1])", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    with pytest.raises(InputError, match=r"plain value, not `n = len\(\[1\]\)`"):
        notebook.default_parameters(tmp_path / "n.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("n = 1")]), tmp_path / "n.ipynb")
    with pytest.raises(InputError, match="one cell tagged 'parameters', found 0"):
        notebook.default_parameters(tmp_path / "n.ipynb")


def test_validate_in_jupyterlab(tmp_path: Path) -> None:
    """There, nothing is injected: a slip in the parameters cell itself leaves a name unset, later names do not
    matter.
    """
    with pytest.raises(InputError, match="parameter alpha is not set; is 'alhpa' a slip for it"):
        validate({"alhpa": 0.3, "In": ["", "alhpa = 0.3"]}, alpha=float)
    validate({"alpha": 0.3, "later": 1, "In": ["", "alpha = 0.3", "later = 1"]}, alpha=float)


@pytest.mark.parametrize(
    ("value", "allowed", "fits"),
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        ("a", str | None, True),
        (None, str | None, True),
        (1, str | None, False),
        (["a", "b"], list[str], True),
        (["a", 1], list[str], False),
        ("ab", list[str], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": 1.5}, dict[str, int], False),
        (1, [1, 2], True),
        (True, [1, 2], False),
        ("x", {"x", "y"}, True),
        (0.5, number(above=0, below=1), True),
        (0, number(above=0), False),
        (0, number(least=0), True),
        (1, number(below=1), False),
        (1, number(most=1), True),
        (float("inf"), number(most=1), False),
        (0.5, number(int), False),
        ("1", number(int), False),
    ],
)
def test_validate_accepts_what_is_declared(value: object, allowed: Any, fits: bool) -> None:
    if fits:
        assert validate({"x": value}, x=allowed) is None
    else:
        with pytest.raises(InputError, match="parameter x is"):
            validate({"x": value}, x=allowed)


def test_glued_numbers_can_be_formatted(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What myst-nb reads from the notebook is a number as Python writes it, whatever library it came from."""
    import IPython.display
    import numpy as np

    kept = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **more: kept.append((data, more)))
    for value in (np.float64(0.25), np.array(0.25), 0.25):
        notebook.glue("share", value)
    notebook.glue("name", "grpo")
    texts = [data["application/papermill.record/text/plain"] for data, _ in kept]
    assert [float(text) for text in texts[:3]] == [0.25] * 3
    assert texts[3] == "'grpo'" or texts[3] == "grpo"
    assert kept[0][1]["metadata"]["scrapbook"]["name"] == "share"
