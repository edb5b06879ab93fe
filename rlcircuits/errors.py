"""The one kind of error a user is meant to read.

A message says what was given, what was expected and what to do next, in one or two lines. The shell prints it
without a traceback and exits with code 2. Arguments are called as whoever reads it gives them (`argument`).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_flags: Mapping[str, str] = {}


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, why and what to do."""


def argument(name: str, value: object = None) -> str:
    """What a message calls an argument, alone or with a value: by the flag that the shell's command has for it, else as
    Python has it.

    >>> argument("batch_size"), argument("keep", "all")
    ('batch_size', "keep='all'")
    >>> with flags({"keep": "--keep"}):
    ...     argument("keep", "all")
    '--keep all'
    """
    if name in _flags:
        return _flags[name] if value is None else f"{_flags[name]} {shlex.quote(str(value))}"
    return name if value is None else f"{name}={value!r}"


@contextlib.contextmanager
def flags(names: Mapping[str, str]) -> Iterator[None]:
    """While a command of the shell runs: the flags by which messages call its arguments."""
    global _flags
    before, _flags = _flags, names
    try:
        yield
    finally:
        _flags = before


def counted(n: int, one: str, many: str = "") -> str:
    """How many of something.

    >>> counted(1, "problem"), counted(1200, "problem")
    ('1 problem', '1,200 problems')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def choose(kind: str, given: object, known: Iterable[str]) -> str:
    """Return `given` if it is one of the `known` names of a `kind`; otherwise raise with the nearest name.

    >>> choose("level", "block", ["block", "qkv", "head"])
    'block'

    Raises:
        InputError: `given` is not in `known`.
    """
    names = list(known)
    if isinstance(given, str) and given in names:
        return given
    shown = repr(given)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    raise InputError(f"unknown {kind} {shown}: expected one of {', '.join(names)}{near(given, names)}")


def near(given: object, known: Iterable[object]) -> str:
    """A hint at the nearest known name, or nothing.

    >>> near("methd", ["base", "method"])
    "; did you mean 'method'?"
    """
    found = difflib.get_close_matches(str(given)[:200], [str(one) for one in known], n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def expect_whole(name: str, value: Any, least: int, other: str = "") -> None:
    """Raise unless `value` is a whole number of at least `least`; `other` names what else would do.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise InputError(
            f"{argument(name)} is {value!r}: expected a whole number of at least {least}{f' {other}' if other else ''}"
        )


def require(module: str, extra: str, what: str) -> None:
    """Say which extra to install where an optional package is missing, before it is imported.

    Args:
        module: the package's top-level module.
        extra: the extra of ``pyproject.toml`` that brings it.
        what: the thing that needs it, as the message's subject.

    Raises:
        InputError: it is not installed.
    """
    if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
        raise InputError(f"{what} needs {module}, which is not installed: pip install 'rlcircuits[{extra}]'")
