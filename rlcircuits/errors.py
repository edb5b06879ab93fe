"""The one kind of error a user is meant to read.

A message says what was given, what was expected and what to do next, in one or two lines. The shell prints it
without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, why and what to do."""


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
    near = difflib.get_close_matches(str(given)[:200], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = repr(given)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    raise InputError(f"unknown {kind} {shown}: expected one of {', '.join(names)}{hint}")
