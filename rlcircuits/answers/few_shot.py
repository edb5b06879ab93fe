"""Examples that are asked and answered before each question, from a problem set, never among the problems asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlcircuits.answers.problems import Problem, ProblemSet
from rlcircuits.answers.sets import known_sets, problem_set, problem_sets
from rlcircuits.errors import InputError, argument
from rlcircuits.models import Prompt

if TYPE_CHECKING:
    from rlcircuits.models import ModelPair

_MOST = 64


def examples(
    few_shot: str | os.PathLike[str],
    problems: ProblemSet,
    file: str | os.PathLike[str] | None = None,
    **fields: Any,
) -> tuple[tuple[str, str], ...]:
    """Questions and their reference answers, in the order of the set they come from.

    Args:
        few_shot: a problem set by name or file; ``"train.jsonl:4"`` stands for the first 4 of it. Problems that are
            asked are left out.
        problems: what is asked.
        file, fields: as for `rlcircuits.problem_set`; a set known by name has fields of its own.

    Raises:
        InputError: as `rlcircuits.problem_set`, or too few or too many of them.
    """
    name, _, number = os.fspath(few_shot).rpartition(":")
    name, number = (name, number) if name and number.isdigit() else (os.fspath(few_shot), "")
    asked = {_words(problem) for problem in problems}
    own = name.partition("=")[0] in known_sets(problem_sets(file))
    found = problem_set(name, file, **({} if own else fields))
    others = [problem for problem in found if _words(problem) not in asked]
    wanted = int(number) if number else len(others)
    if not 1 <= wanted <= min(len(others), _MOST):
        raise InputError(
            f"{argument('few_shot')} is {os.fspath(few_shot)!r}: {len(others)} of its {len(found)} problems are not among those "
            f"asked; expected '{name}:N' with N from 1 to {min(len(others), _MOST)}"
            if others
            else f"{argument('few_shot')} is {os.fspath(few_shot)!r}: all of its problems are among those asked; expected others"
        )
    return tuple((problem.question, problem.reference) for problem in others[:wanted])


def asked_as(
    pair: ModelPair, problems: ProblemSet, file: Any = None, fields: Mapping[str, Any] | None = None, **given: Any
) -> ModelPair:
    """A pair that is asked in another way; what is given goes before what the pair says.

    Args:
        problems: what is asked.
        file, fields: of few-shot examples, as for `examples`.
        given: ``prompt``, ``system``, ``instruction``, ``few_shot`` and ``max_new_tokens``; None stands for the pair's.

    Raises:
        InputError: as `rlcircuits.ModelPair` and `examples`.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if isinstance(changes.get("few_shot"), str) and changes["few_shot"]:
        changes["few_shot"] = examples(changes["few_shot"], problems, file, **(fields or {}))
    return replace(pair, **changes)


def prompt_of(pair: ModelPair, problems: ProblemSet) -> Prompt:
    """How a pair's models are asked these problems.

    Raises:
        InputError: as `examples`, or examples given as texts of which one is asked.
    """
    shown = pair.few_shot
    if isinstance(shown, str):
        shown = examples(shown, problems) if shown else ()
    elif both := {" ".join(question.split()) for question, _ in shown} & {_words(problem) for problem in problems}:
        raise InputError(f"the example {min(both)[:60]!r} is among the problems asked: expected others")
    return Prompt(pair.prompt, pair.system, pair.instruction, shown)


def _words(problem: Problem) -> str:
    return " ".join(problem.question.split())
