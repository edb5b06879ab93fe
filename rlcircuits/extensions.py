"""What other packages add: pairs, problem sets and commands known by name, through entry points.

A package names an object for one of the groups below in its metadata (``[project.entry-points."rlcircuits.pairs"]``):

- ``rlcircuits.pairs``: a `rlcircuits.models.PairProvider`, the pairs whose names begin with the entry's name and a
  slash;
- ``rlcircuits.problems``: a `rlcircuits.answers.ProblemProvider`, the problem set of the entry's name;
- ``rlcircuits.commands``: a function that is given the shell's typer application, and adds a command to it.

`paradigms` does so for the family; the instrument knows nothing of it.
"""

from __future__ import annotations

import functools
import warnings
from importlib import metadata
from typing import Any

GROUPS = ("rlcircuits.pairs", "rlcircuits.problems", "rlcircuits.commands")


class BrokenExtension(UserWarning):
    """A package that should add something cannot be imported; what it adds is not known."""


@functools.cache
def provided(group: str) -> dict[str, Any]:
    """What the installed packages provide for a group, by the entry's name; one that cannot be imported is left out,
    with a warning.
    """
    found = {}
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # another package's code may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            warnings.warn(
                f"{entry.value!r} ({group}) cannot be imported ({reason}): left out", BrokenExtension, stacklevel=2
            )
    return found


def packages() -> list[str]:
    """Top-level packages that extend this one."""
    entries = [entry for group in GROUPS for entry in metadata.entry_points(group=group)]
    return sorted({entry.value.partition(":")[0].partition(".")[0] for entry in entries} - {"rlcircuits"})
