"""Keys: the one hash of everything that a result depends on.

1. A value's canonical JSON has its names sorted and no spaces, so that equal inputs have one text, on every machine.
2. key = the first 16 hex digits of SHA-256 over the canonical JSON of {kind, inputs, format of the store}.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from rlcircuits.errors import InputError

FORMAT = 1
"""Version of the store's layout; part of every key, so that another layout never reads this one's folders."""
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]*")


def key_of(kind: str, inputs: Mapping[str, Any]) -> str:
    """The key of an artefact: 16 hex digits that depend on the kind and the inputs, not on the order of their names.

    Raises:
        InputError: `kind` is no plain name; an input is NaN, infinite, or no JSON value; a name that is not a string.
    """
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise InputError(f"kind of artefact {kind!r}: expected a plain name of lower-case letters, digits, '-' and '_'")
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs of {kind!r} are {type(inputs).__name__}: expected a dictionary of JSON values")
    return sha256(canonical_json({"kind": kind, "inputs": inputs, "format": FORMAT}).encode())[:16]


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: names sorted, no spaces, ASCII; tuples are lists; 1, 1.0 and true are different.

    >>> canonical_json({"b": (1, 2), "a": None})
    '{"a":null,"b":[1,2]}'

    Raises:
        InputError: NaN, infinity, an object that is no JSON value, or a name that is not a string; it names where.
    """
    return json.dumps(
        _plain(value, "inputs"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: expected a finite number, as NaN and infinity have no stable hash")
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one, f"{where}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise InputError(f"{where} has the name {name!r} ({type(name).__name__}): expected strings as names")
        return {name: _plain(one, f"{where}[{name!r}]") for name, one in value.items()}
    raise InputError(
        f"{where} is a {type(value).__name__}, which has no stable hash: "
        "expected None, bool, int, float, str, or lists and dictionaries of these"
    )


def sha256(content: bytes) -> str:
    """SHA-256 in hex digits."""
    return hashlib.sha256(content).hexdigest()
