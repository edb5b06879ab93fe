"""From a sweep file to its cells, everything checked before anything runs.

A sweep file is YAML::

    notebook: ../notebooks/11_your_own_pair.ipynb    # seen from this file, as every path in it is
    grid: {pair: [family/ppo, family/dpo], alpha: [0.1, 0.3]}
    fixed: {level: block}

1. **Read** by `yaml.safe_load`'s types only; a key given twice, an unknown key or a value of another type is refused.
2. **Expand**: the product of the lists in ``grid``, the last parameter fastest, then the mappings in ``cells``;
   ``fixed`` holds for all of them, and a cell's own value goes before it.
3. **Check** each cell against the notebook's `parameters` cell (names and types), then by the notebook's own call of
   `rlcircuits.lab.parameters.validate` (bounds, names of levels, pairs and problem sets). No other code of the notebook
   runs.
4. **Key** of a cell = hash of the notebook's source, the cell's parameters, the files these name
   (`rlcircuits.sweeps.named`) and the steps' versions (`rlcircuits.storage.steps`). A cell that finished under the same
   key need not run again.
5. **Group**: cells that agree in the parameters of ``share`` use the same answers of the models. One of each group runs
   first.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import json
import math
import os
import re
import reprlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlcircuits.errors import InputError, near
from rlcircuits.lab import check_parameter, default_parameters, read_notebook
from rlcircuits.storage import canonical_json, key_of, versions
from rlcircuits.sweeps.named import identified, named_files

KEYS = ("notebook", "grid", "cells", "fixed", "share", "show", "timeout")
SHARED = ("pair", "pairs", "base", "tuned", "problems")
"""Parameters that decide what the models are asked, for a file without ``share``."""
MOST_CELLS = 10_000
_NESTED = 20  # lists within lists that a value may have
_LONGEST = 1_000_000  # characters of a file


@dataclass(frozen=True)
class Cell:
    """One run of the notebook.

    Attributes:
        name: its folder, readable and distinct.
        parameters: what the notebook is given, as the file has it.
        key: of what its result depends on.
        group: cells of one group share artefacts; None where nothing is known to be shared.
        inputs: the parameters with the paths of files made absolute.
    """

    name: str
    parameters: Mapping[str, Any] = field(hash=False)
    key: str
    group: str | None
    inputs: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run.

    Attributes:
        file: the sweep file.
        notebook: the notebook it runs.
        cells: distinct, in the file's order.
        varying: the parameters that differ between cells, in the file's order.
        show: metrics that the table on the terminal shows.
        timeout: seconds a cell may take, or None.
        defaults: of the notebook's parameters.
    """

    file: Path
    notebook: Path
    cells: tuple[Cell, ...]
    varying: tuple[str, ...]
    show: tuple[str, ...]
    timeout: float | None
    defaults: Mapping[str, Any] = field(hash=False)


def load_plan(file: str | os.PathLike[str]) -> Plan:
    """Read a sweep file and check it.

    Args:
        file: YAML, as above.

    Raises:
        InputError: whatever is wrong with the file, its notebook or a cell's parameters; it names file and key.
    """
    path = Path(file).expanduser()
    content = _read(path)
    for key in content:
        if key not in KEYS:
            raise InputError(f"{path}: unknown key {reprlib.repr(key)}: expected {', '.join(KEYS)}{near(key, KEYS)}")
    source = _notebook(path, content)
    rows = list(_rows(path, content))
    checks = _Checks(path, source)
    inputs = [checks.checked(where, row) for where, row in rows]
    varying = _varying(path, [row for _, row in rows])
    share = _names(path, content, "share", [name for name in SHARED if name in varying])
    for name in share:
        if name not in checks.known:
            raise InputError(f"{path}: share names {name!r}, which the notebook has not{near(name, checks.known)}")
    digest = _Digest(path, source, checks.known)
    cells = tuple(
        Cell(_folder(row, varying), row, digest.key(row), _group(row, share), given)
        for (_, row), given in zip(rows, inputs, strict=True)
    )
    show = tuple(_names(path, content, "show", []))
    return Plan(path, source, cells, tuple(varying), show, _timeout(path, content), checks.known)


# --- reading ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key given twice, whose second would silently win, and aliases, which can nest
    without end.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor[:40]} is not used here: write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value[:40]!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        hint = near(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise InputError(f"no sweep file at {str(path)!r}: expected YAML with notebook and grid{hint}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if len(text) > _LONGEST:
            raise InputError(f"{path} has {len(text):,} characters: expected a sweep file, at most {_LONGEST:,}")
        content = yaml.load(text, _Loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line} is not YAML that can be used: {error.problem or error.context}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{path} is not YAML that can be used: {reason[:200]}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {_what(content)}: expected a mapping with notebook and grid")
    return content


def _notebook(path: Path, content: Mapping[str, Any]) -> Path:
    if "notebook" not in content:
        raise InputError(f"{path}: the key notebook is missing: expected the path of a notebook, seen from this file")
    given = content["notebook"]
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise InputError(f"{path}: notebook is {_what(given)}: expected the path of a notebook, as a text")
    places = [path.absolute().parent / Path(given).expanduser(), Path(given).expanduser()]
    try:
        found = next((place for place in places if place.is_file()), None)
    except OSError:  # a name too long for any file
        found = None
    if found is None:
        parent = places[0].parent
        hint = near(places[0].name, (p.name for p in parent.glob("*.ipynb"))) if _is_folder(parent) else ""
        raise InputError(
            f"{path}: notebook: no file {reprlib.repr(given)} seen from {places[0].anchor and path.parent}{hint}"
        )
    return found.resolve()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _rows(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each cell is written, and its parameters."""
    fixed = _mapping(path, content, "fixed")
    grid = _mapping(path, content, "grid")
    for name, values in grid.items():
        if not isinstance(values, list):
            raise InputError(
                f"{path}: grid: {name} is {_what(values)}: expected a list of values, such as [{_short(values)}]"
            )
        if not values:
            raise InputError(f"{path}: grid: {name} is an empty list: expected at least one value")
        texts = [canonical_json(_value(path, f"grid: {name}", value)) for value in values]
        if double := next((text for i, text in enumerate(texts) if text in texts[:i]), None):
            raise InputError(f"{path}: grid: {name} lists {reprlib.repr(double)} twice: expected different values")
        if name in fixed:
            raise InputError(f"{path}: {name} stands in grid and in fixed: expected one of them")
    explicit = content.get("cells", [])
    if not isinstance(explicit, list):
        raise InputError(f"{path}: cells is {_what(explicit)}: expected a list of mappings of parameters")
    count = (math.prod(len(values) for values in grid.values()) if grid else 0) + len(explicit)
    if not count:
        raise InputError(f"{path} has no cells: expected grid with lists of values, or cells with mappings")
    if count > MOST_CELLS:
        raise InputError(f"{path} has {count:,} cells: expected at most {MOST_CELLS:,}; split it into several files")
    for name, value in fixed.items():
        _value(path, f"fixed: {name}", value)
    for values in itertools.product(*grid.values()) if grid else ():
        yield "grid", {**fixed, **dict(zip(grid, values))}
    for number, own in enumerate(explicit, 1):
        if not isinstance(own, dict):
            raise InputError(f"{path}: cells, number {number} is {_what(own)}: expected a mapping of parameters")
        _expect_names(path, f"cells, number {number}", own)
        for name, value in own.items():
            _value(path, f"cells, number {number}: {name}", value)
        yield f"cells, number {number}", {**fixed, **own}


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} is {_what(value)}: expected a mapping of parameters")
    _expect_names(path, key, value)
    return value


def _expect_names(path: Path, where: str, values: Mapping[Any, Any]) -> None:
    for name in values:
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{path}: {where}: {reprlib.repr(name)} is no name of a parameter")


def _value(path: Path, where: str, value: Any, depth: int = 0) -> Any:
    """The value itself when it is plain: what JSON knows, finite, not nested without end."""
    if depth > _NESTED:
        raise InputError(f"{path}: {where}: lists within lists more than {_NESTED} deep: expected a plain value")
    if isinstance(value, list):
        for one in value:
            _value(path, where, one, depth + 1)
    elif isinstance(value, dict):
        for name, one in value.items():
            if not isinstance(name, str):
                raise InputError(f"{path}: {where} has the name {reprlib.repr(name)}: expected texts as names")
            _value(path, where, one, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path}: {where} is {value}: expected a finite number")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        raise InputError(f"{path}: {where} is a number of {len(hex(value)) * 4} bits: expected one below 2^63")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise InputError(
            f"{path}: {where} is {_what(value)}: expected a text, a number, true or false; a text may need quotes"
        )
    elif isinstance(value, str) and not _is_unicode(value):
        raise InputError(f"{path}: {where} is no text that can be written: expected Unicode characters")
    return value


def _is_unicode(text: str) -> bool:
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _names(path: Path, content: Mapping[str, Any], key: str, default: list[str]) -> list[str]:
    value = content.get(key, default)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InputError(f"{path}: {key} is {_what(value)}: expected a list of names")
    return value


def _timeout(path: Path, content: Mapping[str, Any]) -> float | None:
    value = content.get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InputError(f"{path}: timeout is {_what(value)}: expected seconds, a number above 0")
    return float(value)


# --- checking -----------------------------------------------------------------------------------


class _Checks:
    """What the notebook says of its parameters: names and types, and its own call of ``validate``."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.name = path, source.name
        self.known = default_parameters(source)
        self.validation = _validation(source)
        self.done: set[str] = set()

    def checked(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a cell with their paths made absolute."""
        for name, value in row.items():
            try:
                check_parameter(name, value, self.known, self.name)
            except InputError as error:
                hint = ""
                if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+", value):
                    hint = "; YAML reads a number with an exponent only as 1.0e-3, with point and sign"
                raise InputError(f"{self.path}: {where}: {name}: {error}{hint}") from None
        inputs = {name: self._seen(name, value) for name, value in row.items()}
        values = {**self.known, **inputs}
        text = canonical_json(values)
        if self.validation is None or text in self.done:
            return inputs
        self.done.add(text)
        try:
            exec(self.validation, values)
        except InputError as error:
            raise InputError(f"{self.path}: {where}: {error}") from None
        except Exception:  # it needs more of the notebook than this: the notebook itself will say
            self.validation = None
        return inputs

    def _seen(self, name: str, value: Any) -> Any:
        """A path as seen from the sweep file: what is written as one, as its default is, or names something there."""
        if isinstance(value, list):
            return [self._seen(name, one) for one in value]
        if not isinstance(value, str) or not value or name == "pair":  # which is a name, whatever lies beside the file
            return value
        try:
            path = Path(os.path.abspath(self.path.absolute().parent / Path(value).expanduser()))
            written = any(str(one).startswith(("./", "../")) for one in (value, self.known[name]))
            return str(path) if written or path.is_file() or (path / "config.json").is_file() else value
        except (OSError, ValueError, RuntimeError):  # a text that can be no path
            return value


def _validation(source: Path) -> Any:
    """The notebook's top-level call of ``validate`` with the imports of names that it uses, compiled; None without
    one.
    """
    imports: list[ast.Import | ast.ImportFrom] = []
    for cell in read_notebook(source).cells:
        if cell.cell_type != "code":
            continue
        try:
            body = ast.parse(cell.source).body
        except (SyntaxError, ValueError):  # shell lines and magics
            continue
        imports += [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called(node.value) == "validate":
                used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                needed = [one for one in imports if any((a.asname or a.name).split(".")[0] in used for a in one.names)]
                return compile(ast.Module([*needed, node], []), source.name, "exec")
    return None


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


# --- names, keys, groups ------------------------------------------------------------------------


def _varying(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Names of the parameters that differ between cells; refuses two cells that are the same."""
    texts = [canonical_json(row) for row in rows]
    if len(set(texts)) < len(texts):
        double = next(row for i, row in enumerate(rows) if texts[i] in texts[:i])
        raise InputError(f"{path} has the same cell twice: {reprlib.repr(double)}")
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: {canonical_json(row.get(name, "\0")) for row in rows} for name in names}
    return [name for name in names if len(values[name]) > 1] or list(names)


def _folder(row: Mapping[str, Any], varying: Iterable[str]) -> str:
    """A folder's name: what varies, readable, and a hash of all parameters, which makes it distinct."""
    parts = [f"{name}={row[name]}" for name in varying if name in row and not isinstance(row[name], list | dict)]
    readable = re.sub(r"[^A-Za-z0-9.=_,@+-]+", "-", ",".join(parts))[:80].strip("-.,")
    return f"{readable or 'cell'}-{hashlib.sha256(canonical_json(row).encode()).hexdigest()[:8]}"


def _group(row: Mapping[str, Any], share: Iterable[str]) -> str | None:
    shared = {name: row[name] for name in share if name in row}
    return canonical_json(shared) if shared else None


class _Digest:
    """Keys of cells: the notebook, and each file that is named, are read once."""

    def __init__(self, path: Path, source: Path, known: Mapping[str, Any]) -> None:
        self.folder = source.parent
        cells = [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in read_notebook(source).cells]
        self.notebook = hashlib.sha256(json.dumps(cells).encode()).hexdigest()
        self.known, self.seen_from = known, path.absolute().parent
        self.read = functools.cache(identified)

    def key(self, row: Mapping[str, Any]) -> str:
        """Of a cell as the file has it: where the file lies does not count, what lies there does."""
        files = named_files({**self.known, **row}, self.folder, self.read)
        files |= named_files(row, self.seen_from, self.read)
        return key_of("sweep-cell", {"notebook": self.notebook, "steps": versions(), "parameters": row, "files": files})


def _short(value: object) -> str:
    text = reprlib.repr(value)
    return text.strip("[]{}'\"") or "1"


def _what(value: object) -> str:
    """A value in words, however large it is."""
    if value is None:
        return "empty"
    names = {
        dict: "a mapping",
        list: "a list",
        str: "the text",
        bool: "the truth value",
        int: "the number",
        float: "the number",
    }
    name = names.get(type(value), f"a {type(value).__name__}")
    return name if isinstance(value, dict | list) else f"{name} {reprlib.repr(value)}"
