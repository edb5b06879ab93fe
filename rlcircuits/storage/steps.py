"""Steps: computations whose results are kept, each with a version that is part of their keys.

1. A `Step` stands beside the function whose results it names. Its version is raised by hand when the function's results
   change, and only then: a comment, a new name or a moved file costs nobody what was computed.
2. A test holds each step's code (its module and what that imports within its room, without comments, docstrings, layout
   and type hints) against what it was when that was last recorded, so that no change of code goes by without this
   decision: ``python -m tests.fixtures.steps`` records it.
3. `versions` reads them from the sources: some, for the key of what several steps make together, or all of the
   package's and of those that extend it, which is what a whole notebook's results depend on.
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
        also: further modules whose code the results depend on, such as those of other rooms; for the test that notices
            changes.
        apart: modules that it imports, but that are another step's, which stands in the same keys; for that test, too.

    >>> str(Step('scores', 2))
    'scores 2'
    """

    name: str
    version: int
    also: Sequence[str] = ()
    apart: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def versions(*names: str) -> dict[str, int]:
    """The versions of the steps of these names, or of all steps, by name; no module is imported for it."""
    known = _all()
    return {name: known[name] for name in names or known}


@functools.cache
def _all() -> dict[str, int]:
    found: dict[str, int] = {}
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
