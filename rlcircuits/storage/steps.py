"""Steps: computations whose results are kept, each with a version that is part of their keys.

1. A `Step` stands beside the function whose results it names. Its version is raised by hand when the function's results change,
   and only then: a comment, a new name or a moved file costs nobody what was computed.
2. A test holds each step's code (its module and what that imports within its room, without comments, docstrings and layout)
   against what it was when the version was last set, so that no change of code goes by without this decision.
3. `versions` are all steps of the package and of those that extend it: what a whole notebook's results depend on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from rlcircuits.extensions import packages

_WRITTEN = re.compile(r'\bStep\(\s*"(?P<name>[a-z-]+)",\s*(?P<version>\d+)')


@dataclass(frozen=True)
class Step:
    """A step and the version of its results; as text it is what a key holds.

    Args:
        name: lower-case letters and hyphens.
        version: raised whenever the same inputs would give other results than before.
        also: modules of other rooms whose code the results depend on, for the test that notices changes.

    >>> str(Step('attribution', 2))
    'attribution 2'
    """

    name: str
    version: int
    also: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@functools.cache
def versions() -> dict[str, int]:
    """Every step's version by name, read from the sources without importing them."""
    found = {}
    for package in ("rlcircuits", *packages()):
        for file in _sources(resources.files(package)):
            found |= {match["name"]: int(match["version"]) for match in _WRITTEN.finditer(file.read_text("utf-8"))}
    return dict(sorted(found.items()))


def _sources(folder: Traversable) -> list[Traversable]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry)
        elif entry.name.endswith(".py"):
            found.append(entry)
    return found
