"""Problem sets: what is asked, and how answers to it are graded.

1. A `Problem` is an id, a question q and a reference answer; a `ProblemSet` is many of them, the name of their grader
   and that of the extractor, which says what of a reference is the answer (`rlcircuits.answers.grading`).
2. `draw` takes some of them in a way that depends on the seed and their ids alone.
3. `grade` says whether a text answers a problem.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from rlcircuits.answers.grading import EXTRACTORS, GRADERS, Verdict
from rlcircuits.errors import InputError, choose, counted
from rlcircuits.storage import canonical_json

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    r"""One problem.

    Args:
        id: what names it everywhere, e.g. ``"gsm8k/17"``.
        question: the text that is put into the prompt.
        reference: the answer to compare with; a worked solution that ends in ``#### 18`` or ``\boxed{18}`` will do.

    Raises:
        InputError: one of them is empty or no text.
    """

    id: str
    question: str
    reference: str

    def __post_init__(self) -> None:
        for name in ("id", "question", "reference"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{name} of problem {self.id!r} is {value!r}: expected a text that is not empty")
            if not encodable(value):
                raise InputError(
                    f"{name} of problem {self.id!r} holds half of a character (a lone surrogate): expected Unicode text"
                )


@dataclass(frozen=True)
class ProblemSet(Sequence[Problem]):
    """Problems that are asked and graded in the same way; a sequence of `Problem`.

    Args:
        name: how reports call it.
        problems: at least one, their ids different.
        grader: one of `GRADERS`.
        extractor: one of `EXTRACTORS`.

    Raises:
        InputError: no problems, two with the same id, or an unknown grader or extractor.
    """

    name: str
    problems: tuple[Problem, ...]
    grader: str
    extractor: str = "stated"

    def __post_init__(self) -> None:
        choose("grader", self.grader, GRADERS)
        choose("extractor", self.extractor, EXTRACTORS)
        object.__setattr__(self, "problems", tuple(self.problems))
        if not self.problems:
            raise InputError(f"problem set {self.name!r} is empty: expected at least one problem")
        for problem in self.problems:
            if not isinstance(problem, Problem):
                raise InputError(
                    f"problem set {self.name!r} holds a {type(problem).__name__}: expected rlcircuits.Problem"
                )
        if double := _first_double(problem.id for problem in self.problems):
            raise InputError(f"problem set {self.name!r} has two problems with the id {double!r}: ids must differ")

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def __getitem__(self, index: Any) -> Any:
        """The problem at an index, or the `ProblemSet` of a slice."""
        if isinstance(index, slice):
            return ProblemSet(self.name, self.problems[index], self.grader, self.extractor)
        return self.problems[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, questions, references, grader and extractor: what the answers to the set depend on."""
        content = [self.grader, [[p.id, p.question, p.reference] for p in self.problems]]
        content += [] if self.extractor == "stated" else [self.extractor]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def take(self, n: int, seed: int = 42) -> ProblemSet:
        """`n` problems drawn without replacement by `draw`, in the order they have here.

        Raises:
            InputError: `n` is below 1 or above the number of problems.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(self):
            raise InputError(
                f"cannot take {n!r} of the {len(self)} problems of {self.name!r}: expected 1 to {len(self)}"
            )
        drawn = draw(self.problems, n, seed, lambda problem: problem.id)
        return ProblemSet(self.name, drawn, self.grader, self.extractor)

    def __repr__(self) -> str:
        return f"ProblemSet({self.name!r}: {counted(len(self), 'problem')}, grader {self.grader!r})"


def draw(items: Iterable[T], n: int, seed: int, name: Callable[[T], str]) -> tuple[T, ...]:
    """`n` of the items (all when fewer), uniformly at random, in the order given.

    The items are ranked by SHA-256 of seed and name, so the draw is the same on every machine, does not depend on the
    order of the items, and a larger `n` only adds to a smaller one.
    """
    items = list(items)
    ranked = sorted(items, key=lambda item: hashlib.sha256(f"{seed}/{name(item)}".encode()).digest())
    kept = {name(item) for item in ranked[:n]}
    return tuple(item for item in items if name(item) in kept)


def grade(grader: ProblemSet | str, problem: Problem, text: str) -> bool:
    """Whether a text answers a problem correctly.

    Args:
        grader: a problem set, or the name of one of `GRADERS`.
        problem: what was asked.
        text: what was answered.

    >>> grade("final", Problem("a", "1 + 1 ?", "2"), "1 + 1 = 2 # 2")
    True

    Raises:
        InputError: an unknown grader, or one whose package is not installed.
    """
    return verdict(grader, problem, text).correct


def verdict(grader: ProblemSet | str, problem: Problem, text: str) -> Verdict:
    """As `grade`, and whether the text states the right answer in a form made for it."""
    if isinstance(grader, ProblemSet):
        name, reference = grader.grader, reference_answer(grader, problem)
    else:
        name, reference = choose("grader", grader, GRADERS), problem.reference
    said = False if reference is None else GRADERS[name](reference, text)
    return said if isinstance(said, Verdict) else Verdict(said, said)


def reference_answer(problems: ProblemSet, problem: Problem) -> str | None:
    """What of a reference the set's extractor takes as the answer; None where it finds none."""
    if problems.extractor == "stated":
        return problem.reference  # graders look for what is stated themselves
    return EXTRACTORS[problems.extractor](problem.reference)


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half of a character (a lone surrogate)."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _first_double(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
