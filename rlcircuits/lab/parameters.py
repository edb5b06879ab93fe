"""Notebooks with parameters, checked twice.

papermill warns of a parameter that a notebook does not have and passes on a value of the wrong type. So

1. `validate` stands in a notebook's second code cell: it checks the values that are in force, whoever set them, and
   refuses names that papermill injected but the notebook does not declare;
2. `run_notebook` executes a notebook with parameters, and refuses, before a kernel is started, names that its
   `parameters` cell does not define and values of another type than the default there;
3. `glue` keeps a number under a name, so that prose can quote it and never types it; `glued` reads it from an executed
   notebook, so that a sweep can put it into a table.
"""

from __future__ import annotations

import ast
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from rlcircuits.errors import InputError, require

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

#: within which a kernel must answer: on a machine that others use, too, its imports may take a minute
KERNEL_SECONDS = 600
_INJECTED = "# Parameters"  # the first line of the cell that papermill injects
_GLUE = "application/papermill.record/"  # what myst-nb looks for


class CellError(InputError):
    """A cell of a notebook failed.

    Attributes:
        ename, evalue: type and message of what was raised in the kernel.
    """

    def __init__(self, message: str, ename: str, evalue: str) -> None:
        super().__init__(message)
        self.ename, self.evalue = ename, evalue


@dataclass(frozen=True)
class Number:
    """A number within bounds; see `number`."""

    kind: type
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        signs = (("above", self.above), ("at least", self.least), ("below", self.below), ("at most", self.most))
        bounds = " and ".join(f"{word} {bound:g}" for word, bound in signs if bound is not None)
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} {bounds}".rstrip()

    def accepts(self, value: Any) -> bool:
        """Whether `value` is of the kind and within the bounds (NaN never is)."""
        return (
            _is(value, self.kind)
            and not math.isnan(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )


def number(
    kind: type = float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Number:
    """What a numeric parameter may be: `kind` is int or float (whole numbers are floats, too; True is neither).

    >>> str(number(float, above=0, most=1))
    'a number above 0 and at most 1'
    """
    return Number(kind, above, least, below, most)


def validate(values: Mapping[str, Any], /, **expected: Any) -> None:
    """Check a notebook's parameters; its second code cell is
    ``validate(globals(), alpha=number(float, above=0), ...)``.

    Args:
        values: the notebook's ``globals()``.
        expected: for each parameter what it may be: a type (``int``, ``str``, ``list[str]``, ``str | None``), a
            `number` with bounds, or the allowed values as a list, tuple or set.

    Raises:
        InputError: a parameter is missing, of another type or outside what is allowed, or an injected name is unknown.
    """
    cells = values.get("In") or values.get("_ih") or []
    injected = [source for source in cells if isinstance(source, str) and source.lstrip().startswith(_INJECTED)]
    for name in _assigned("\n".join(injected[-1:])):
        if name not in expected:
            raise InputError(_unknown(name, expected))
    for name, allowed in expected.items():
        _check(name, values, allowed)


def run_notebook(
    path: str | Path,
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    cwd: str | Path | None = None,
    progress: bool = False,
) -> NotebookNode:
    """Execute the notebook at `path` with `parameters`, write it to `out` and return it.

    Args:
        path: the notebook.
        out: where the executed notebook is written, also when a cell fails.
        parameters: values in place of the defaults of its `parameters` cell.
        cwd: the folder it runs in; the notebook's own when not given.
        progress: show papermill's progress bar.

    Raises:
        InputError: the notebook cannot be read, or a parameter is unknown or of another type than its default.
        CellError: a cell failed; the message names notebook, cell, error and value.
    """
    require("papermill", "sweeps", "running a notebook")
    import papermill
    from papermill.exceptions import PapermillExecutionError

    path, out = Path(path), Path(out)
    given = dict(parameters or {})
    check_parameters(path, given)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        return papermill.execute_notebook(
            str(path),
            str(out),
            parameters=given,
            cwd=str(cwd or path.parent),
            progress_bar=progress,
            start_timeout=KERNEL_SECONDS,
            kernel_name="python3",
            language="python",
        )
    except PapermillExecutionError as error:
        message = f"{path.name}, {_place(path, error.source)}: {error.ename}: {error.evalue}"
        raise CellError(message, error.ename, error.evalue) from None


def _place(path: Path, source: str) -> str:
    """Which cell of the notebook holds `source`: its number, counted from 1, and its first line of code."""
    numbers = [number for number, cell in enumerate(read_notebook(path).cells, 1) if cell.source == source]
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return f"cell {numbers[0] if numbers else '?'} (`{lines[0] if lines else ''}`)"


def check_parameters(path: str | Path, parameters: Mapping[str, Any]) -> None:
    """Check `parameters` against the defaults in the notebook's `parameters` cell; raises InputError as
    `run_notebook` does.
    """
    known = default_parameters(path)
    for name, value in parameters.items():
        check_parameter(name, value, known, Path(path).name)


def check_parameter(name: str, value: object, known: Mapping[str, Any], where: str) -> None:
    """Check one parameter against the notebook's `default_parameters`.

    Args:
        name, value: what is given.
        known: names and default values.
        where: how the message begins, such as the notebook's name.

    Raises:
        InputError: an unknown name, or a value of another type than the default.
    """
    if name not in known:
        raise InputError(f"{where}: {_unknown(name, known)}")
    default = known[name]
    if default is not None and not _is(value, type(default)):
        raise InputError(
            f"{where}: parameter {name} is {reprlib.repr(value)} ({type(value).__name__}); "
            f"expected {_words(type(default))}, as its default {default!r}"
        )


def default_parameters(path: str | Path) -> dict[str, Any]:
    """The names and default values in the cell of the notebook at `path` that is tagged `parameters`."""
    notebook = read_notebook(path)
    cells = [c for c in notebook.cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{Path(path).name}: expected one cell tagged 'parameters', found {len(cells)}")
    found = {}
    for node in ast.parse(cells[0].source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target: Any = node.targets[0] if isinstance(node, ast.Assign) else node.target
        try:
            found[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            raise InputError(
                f"{Path(path).name}: the parameters cell may only give names a plain value, not `{ast.unparse(node)}`"
            ) from None
    return found


def read_notebook(path: str | Path) -> NotebookNode:
    """Read a notebook; raises InputError when there is none or it is damaged."""
    require("nbformat", "sweeps", "reading a notebook")
    import nbformat

    path = Path(path)
    if not path.is_file():
        raise InputError(f"no notebook at {path}")
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from None


def glue(name: str, value: object) -> None:
    """Keep `value` under `name` for the prose of the page: write {glue:text}`name` or, for a number,
    {glue:text}`name:.2f`.

    A number of numpy, torch or xarray becomes a plain one first, so that it can be formatted.
    """
    from IPython.display import display

    plain = value.item() if hasattr(value, "item") else value
    text = plain if isinstance(plain, str) else repr(plain)
    display({f"{_GLUE}text/plain": text}, metadata={"scrapbook": {"name": name, "mime_prefix": _GLUE}}, raw=True)


def glue_table(table: pd.DataFrame, columns: Iterable[str] | None = None) -> None:
    """Keep the numbers of a table, each under ``<row>/<column>``, such as ``gini/difference``.

    Args:
        table: its index names the rows.
        columns: which of its columns; those it does not have are left out; all when not given.
    """
    chosen = [column for column in (table.columns if columns is None else columns) if column in table]
    for row, values in table[chosen].iterrows():
        for column, value in values.items():
            glue(f"{row}/{column}", value)


def glued(notebook: NotebookNode) -> dict[str, int | float | bool | str | None]:
    """What an executed notebook kept by `glue`, by name, in the notebook's order."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get("scrapbook", {})
            text = output.get("data", {}).get(f"{_GLUE}text/plain")
            if "name" in record and isinstance(text, str):
                found[record["name"]] = _plain(text)
    return found


def _plain(text: str) -> int | float | bool | str | None:
    """The number, truth value or None whose `repr` a text is; any other text is itself."""
    if text in ("nan", "inf", "-inf"):
        return float(text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _check(name: str, values: Mapping[str, Any], allowed: Any) -> None:
    if name not in values:
        near = difflib.get_close_matches(name, [n for n in values if not n.startswith("_")], n=1)
        raise InputError(f"parameter {name} is not set" + (f"; is {near[0]!r} a slip for it?" if near else ""))
    value = values[name]
    if isinstance(allowed, Number):
        ok, words = allowed.accepts(value), str(allowed)
    elif isinstance(allowed, list | tuple | set | frozenset):
        options = sorted(allowed, key=repr) if isinstance(allowed, set | frozenset) else list(allowed)
        ok = any(value == option and type(value) is type(option) for option in options)
        words = "one of " + ", ".join(map(repr, options))
        near = difflib.get_close_matches(str(value), [str(o) for o in options], n=1)
        words += f"; did you mean {near[0]!r}?" if not ok and near else ""
    else:
        ok, words = _is(value, allowed), _words(allowed)
    if not ok:
        raise InputError(f"parameter {name} is {value!r} ({type(value).__name__}); expected {words}")


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of a type, as pydantic's strict mode has it: int is a float, bool is neither. A tuple may
    stand for a list.
    """
    try:
        TypeAdapter(list if kind is tuple else kind).validate_python(
            list(value) if isinstance(value, tuple) else value, strict=True
        )
    except ValidationError:
        return False
    return True


def _words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", list: "a list"}
    names |= {tuple: "a list", dict: "a mapping", types.NoneType: "None"}
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in typing.get_args(kind))
    return names.get(kind, str(kind))


def _unknown(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown parameter {name!r}: the notebook has {', '.join(names) or 'none'}{hint}"


def _assigned(source: str) -> list[str]:
    """The names that the source assigns at its top level."""
    names = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names
