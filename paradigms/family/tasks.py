"""What the trainings need of a task, whichever it is: problems of a split, and demonstrations of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from paradigms.family import stories, task


class TaskProblem(Protocol):
    """One problem: what a model is given, and whether what it says is right."""

    @property
    def prompt(self) -> str:
        """The text that an answer goes on from."""

    def is_right(self, text: str) -> bool:
        """Whether an answer is correct."""


PROBLEMS: dict[str, Callable[[str, int, int], Sequence[Any]]] = {
    "words": task.word_problems,
    "stories": stories.story_problems,
}
"""By kind of task: (split, n, seed) -> problems."""
DEMONSTRATIONS: dict[str, Callable[[Sequence[Any], float, int], list[tuple[str, str]]]] = {
    "words": task.demonstrations,
    "stories": stories.demonstrations,
}
"""By kind of task: (problems, rate of wrong operations, seed) -> (prompt, worked answer) of each."""
