"""Pairs and problem sets by name, as the parameters of a notebook give them.

1. A pair is registered, or one of the family's: ``family/<member>`` or ``family/<member>@<seed>``, trained when it is
   not there.
2. Problems are a set known by name (``family`` among them) or a file.
3. `known_pair` and `known_problems` check a name without loading a model; a notebook calls them within its
   ``validate``, and so does a sweep, before anything runs.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits import models
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import ModelPair


def known_pair(name: str, file: str = "", base: str = "", tuned: str = "") -> str:
    """The name of a pair; raises InputError, with the nearest name, when there is none of it, or when two checkpoints
    are given too.

    Args:
        name: a registered pair, or ``family/<member>`` with or without ``@<seed>``; empty stays empty.
        file: YAML with pairs besides the registered ones; none when empty.
        base, tuned: the two checkpoints given in place of a name; empty with one.
    """
    _expect_text("pair", name)
    if name == "":
        if bool(base) != bool(tuned):
            raise InputError(
                f"only {'base' if base else 'tuned'} is given: expected base and tuned, or the name of a pair"
            )
        return name
    if base or tuned:
        raise InputError(f"pair {name!r} is given, and base or tuned besides: expected a name, or two checkpoints")
    return models.known_pair(name, file or None)


def chosen_pair(name: str, file: str = "", store: str | os.PathLike[str] = "runs") -> ModelPair:
    """The pair of a name; members of the family are trained when they are not in the store.

    Args:
        name, file: as for `known_pair`.
        store: where the family is kept.

    Raises:
        InputError: no such pair.
    """
    return models.pair(name, file or None, store)


def known_problems(name: str, **fields: Any) -> str:
    """The name or path of a problem set; raises InputError when there is none. A file is read, so that its faults are
    told.

    Args:
        name: a set known by name, a ``.jsonl`` or ``.parquet`` file; empty is the family's.
        fields: ``question``, ``answer``, ``grader`` of a file.
    """
    _expect_text("problems", name)
    if name not in ("", *_sets()):
        chosen_problems(name, **fields)
    return name


def chosen_problems(name: str, **fields: Any) -> ProblemSet:
    """The problem set of a name or file; arguments as for `known_problems`.

    Raises:
        InputError: no such set or file, or one that cannot be read.
    """
    return _loaded(name or "family", tuple(sorted(fields.items())))


@functools.lru_cache(maxsize=8)
def _loaded(name: str, fields: tuple[tuple[str, Any], ...]) -> ProblemSet:
    from rlcircuits.answers import problem_set

    named = name.partition("=")[0] in _sets()  # also gsm8k=FILE, whose fields are known
    is_file = not named and (
        Path(name).suffix in (".jsonl", ".parquet") or os.sep in name or Path(name).expanduser().is_file()
    )
    return problem_set(name, **(dict(fields) if is_file else {}))


def _expect_text(parameter: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"parameter {parameter} is {value!r} ({type(value).__name__}); expected a text")


def _sets() -> list[str]:
    from rlcircuits.answers import known_sets

    return known_sets()
