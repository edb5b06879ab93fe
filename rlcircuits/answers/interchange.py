"""Answers in and out: one file of JSON lines with token ids, whatever engine made them.

1. A line is one answer: ``side`` (``"base"`` or ``"tuned"``), ``problem`` (its id), ``prompt`` and ``answer`` (token
   ids), ``finished`` (whether the model ended it). ``text``, ``correct`` and ``strict`` are written for readers; read
   again they are made anew from the ids.
2. Read, each line is checked: known fields, an id of the problem set, token ids of the vocabulary, nothing after a
   token that ends an answer. A mistake names file and line. Each side must answer every problem once.
3. A prompt that is left out is made as `rlcircuits.models.prompts` makes it; one that differs from that
   is kept, and said.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.answers.answer import Answer, answer_of
from rlcircuits.answers.problems import ProblemSet
from rlcircuits.errors import InputError, near
from rlcircuits.models import Prompt, encode_prompt
from rlcircuits.storage import check_keys, written

if TYPE_CHECKING:
    from rlcircuits.models import Outline

SIDES = ("base", "tuned")
_FIELDS = {
    "side": str,
    "problem": str,
    "prompt": list,
    "answer": list,
    "finished": bool,
    "text": str,
    "correct": bool,
    "strict": bool,
    "note": str,
}
_NEEDED = {"problem": "the id of one", "answer": "token ids"}


class OtherPrompts(UserWarning):
    """Prompts of imported answers are not what the tokenizer makes of the pair's template."""


def write_answers(answers: Mapping[str, Sequence[Answer]], file: str | os.PathLike[str]) -> None:
    """Write the answers of one or both sides of a pair as JSON lines.

    Args:
        answers: ``{"base": …, "tuned": …}``, or one of them.
        file: a name that ends in ``.jsonl``; it is there whole or not at all.

    Raises:
        InputError: another suffix or side, or the file cannot be written.
    """
    if Path(file).suffix != ".jsonl":
        raise InputError(f"answers are exchanged as .jsonl, not as {os.fspath(file)!r}")
    for side in answers:
        if side not in SIDES:
            raise InputError(f"unknown side {side!r}: expected 'base' or 'tuned'{near(side, SIDES)}")
    with written(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for side, given in answers.items():
            for answer in given:
                stream.write(json.dumps({"side": side, **asdict(answer)}) + "\n")


def read_answers(
    file: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]],
    problems: ProblemSet,
    outlines: Sequence[Outline],
    prompt: Prompt | str = "{question}",
) -> dict[str, list[Answer]]:
    """Read and check both models' answers.

    Args:
        file: a file of `write_answers` or in its form; or two, the base's and the tuned model's, whose lines need no
            ``side``.
        problems: what was asked, and the grader.
        outlines: base and tuned, as `rlcircuits.ModelPair.check` returns them; or the base alone.
        prompt: how they were asked, as for `rlcircuits.generate`.

    Returns:
        ``{"base": …, "tuned": …}``, or the base's alone, each in the order of the problems.

    Raises:
        InputError: a file, line or field that is not as expected, or a problem without an answer.
    """
    if isinstance(file, (tuple, list)) and len(file) != 2:
        raise InputError(
            f"{len(file)} files of answers are given: expected one with both sides, or the base's and the tuned model's"
        )
    files = (
        [(one, side) for one, side in zip(file, SIDES)]
        if isinstance(file, (tuple, list))
        else [(file, SIDES[0] if len(outlines) == 1 else None)]
    )
    by_side = dict(zip(SIDES, outlines))
    reader = _Reader(problems, by_side, prompt)
    for one, side in files:
        reader.read(Path(one).expanduser(), side)
    return reader.complete()


class _Reader:
    """Answers read so far: side -> problem -> answer and the place where it stands."""

    def __init__(self, problems: ProblemSet, outlines: Mapping[str, Outline], prompt: Prompt | str) -> None:
        self.problems, self.outlines, self.prompt = problems, outlines, prompt
        self.index = {problem.id: i for i, problem in enumerate(problems)}
        self.found: dict[str, dict[str, tuple[Answer, str]]] = {side: {} for side in outlines}
        self.different: list[str] = []
        self.files: list[str] = []

    def read(self, file: Path, side: str | None) -> None:
        self.files.append(str(file))
        for where, row in _lines(file):
            which = self._side(row, side, where)
            answer = self._answer(row, self.outlines[which], where)
            if answer.problem in self.found[which]:
                raise InputError(
                    f"{where}: a second answer of {which} to {answer.problem!r}; the first is "
                    f"{self.found[which][answer.problem][1]}"
                )
            self.found[which][answer.problem] = (answer, where)

    def complete(self) -> dict[str, list[Answer]]:
        """All answers, once every problem has one of each side."""
        name = " and ".join(map(repr, self.files))
        for side, answers in self.found.items():
            missing = [problem.id for problem in self.problems if problem.id not in answers]
            if missing:
                raise InputError(
                    f"{name} lacks {len(missing)} of {len(self.problems)} answers of the {side} model, first to "
                    f"{missing[0]!r}: expected one line per problem and side"
                )
        if self.different:
            warnings.warn(
                f"{len(self.different)} prompts are not what the tokenizer makes of the pair's template (first: "
                f"{self.different[0]}): scores will be of the prompts as given",
                OtherPrompts,
                stacklevel=4,
            )
        return {side: [answers[problem.id][0] for problem in self.problems] for side, answers in self.found.items()}

    def _side(self, row: dict[str, Any], expected: str | None, where: str) -> str:
        side = row.get("side", expected)
        if side is None:
            raise InputError(f"{where} has no 'side': expected 'base' or 'tuned', or one file for each")
        if side not in SIDES or side != (expected or side):
            raise InputError(
                f"{where}: side is {side[:60]!r}: expected "
                f"{repr(expected) if expected else repr(SIDES[0]) + ' or ' + repr(SIDES[1])}{near(side, SIDES)}"
            )
        return side

    def _answer(self, row: dict[str, Any], outline: Outline, where: str) -> Answer:
        problem = row["problem"]
        if problem not in self.index:
            raise InputError(
                f"{where}: {problem[:60]!r} is no problem of {self.problems.name!r}{near(problem, self.index)}"
            )
        usual = encode_prompt(outline.tokenizer, self.prompt, self.problems[self.index[problem]].question)
        rows = outline.config.get_text_config().vocab_size
        for field in ("prompt", "answer"):
            _expect_ids(row.get(field, usual), field, rows, where)
        prompt = tuple(row.get("prompt", usual))
        if not prompt:
            raise InputError(f"{where}: the prompt has no tokens: expected some, or leave 'prompt' out")
        if prompt != usual:
            self.different.append(where)
        ids = row["answer"]
        end = next((k for k, token in enumerate(ids) if token in outline.ends), None)
        if end is not None and end < len(ids) - 1:
            raise InputError(
                f"{where}: the answer goes on after token {ids[end]} at position {end}, which ends it: cut it there"
            )
        finished = row.get("finished", end is not None)
        if end is not None and not finished:
            raise InputError(f"{where}: 'finished' is false, but the answer ends with token {ids[end]}, which ends it")
        return answer_of(outline.tokenizer, self.problems, self.index[problem], prompt, ids[:end], finished)


def _expect_ids(ids: Sequence[Any], field: str, rows: int, where: str) -> None:
    for k, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError(f"{where}: {field}[{k}] is {repr(token)[:40]}: expected a token id, a whole number")
        if not 0 <= token < rows:
            raise InputError(
                f"{where}: {field}[{k}] is {str(token)[:40]}: expected a token id of the model, 0 to {rows - 1}"
            )


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not file.is_file():
        raise InputError(f"no answers at {str(file)!r}: expected a file of JSON lines, as `rlcircuits answers` writes")
    empty = True
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{str(file)!r}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON ({error}): expected one object per line") from error
            if not isinstance(row, dict):
                raise InputError(
                    f"{where} holds a {type(row).__name__}: expected an object with 'problem' and 'answer'"
                )
            check_keys(where, row, _FIELDS, _NEEDED)
            empty = False
            yield where, row
    if empty:
        raise InputError(f"{str(file)!r} holds no answers: expected one per line")
