"""Which problems are for training, validation and test: disjoint for all seeds at once.

1. A problem's arithmetic, whatever of it is not dressing, is hashed into one of the splits: 8, 1 and 1 tenths.
2. The problems of a split are the different ones that a stream of problems has of it, in order; so a longer list begins with a
   shorter, and a test problem is never a renamed training problem.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rlcircuits.errors import InputError, choose

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet

SPLITS = ("train", "validation", "test")
_BUCKETS = 10


class Arithmetic(Protocol):
    """A problem that says what of it is not dressing."""

    @property
    def arithmetic(self) -> str:
        """What the splits are disjoint in."""


P = TypeVar("P", bound=Arithmetic)


def split_of(problem: Arithmetic) -> str:
    """``"train"``, ``"validation"`` or ``"test"``, from a hash of the arithmetic."""
    bucket = int(hashlib.sha256(problem.arithmetic.encode()).hexdigest()[:8], 16) % _BUCKETS
    return {0: "test", 1: "validation"}.get(bucket, "train")


def drawn(split: str, n: int, stream: Iterator[P]) -> tuple[P, ...]:
    """The first `n` different problems of a split that an endless stream has.

    Raises:
        InputError: an unknown split, or `n` below 1.
    """
    choose("split", split, SPLITS)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n is {n!r}: expected a whole number of problems, at least 1")
    found: dict[str, P] = {}
    while len(found) < n:
        problem = next(stream)
        if split_of(problem) == split:
            found.setdefault(problem.arithmetic, problem)
    return tuple(found.values())


def problem_set(
    name: str, problems: Callable[[str, int, int], Sequence[Any]], split: str, n: int, seed: int
) -> ProblemSet:
    """Problems of a task as a problem set, graded by what follows the last ``#``; `problems` takes split, n and seed."""
    from rlcircuits.answers import Problem, ProblemSet

    found = tuple(
        Problem(id=f"{name}/{split}/{seed}/{i}", question=problem.question, reference=problem.reference)
        for i, problem in enumerate(problems(split, n, seed))
    )
    return ProblemSet(name=f"{name}/{split}", problems=found, grader="final")
