"""An answer of a model: its token ids exactly as they were generated, its text, and whether it is correct.

1. `answer_of` makes an `Answer` of the ids that a model went on with: decoded, and graded. The final end-of-sequence
   token says that the answer is over and is no part of it, so lengths T count what was said, and no score contains it.
2. `save_answers` and `load_answers` keep them, as parquet or JSON lines.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlcircuits.answers.problems import ProblemSet, verdict
from rlcircuits.attribution import Trace
from rlcircuits.errors import InputError
from rlcircuits.storage import written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_FIELDS = {
    "problem": str,
    "prompt": list,
    "answer": list,
    "text": str,
    "correct": bool,
    "finished": bool,
    "strict": bool,
}


class SpecialTokens(UserWarning):
    """A question's text holds what the tokenizer reads as special tokens: the prompt is not what it seems."""


@dataclass(frozen=True)
class Answer:
    """What one model answered to one problem.

    Args:
        problem: the problem's id.
        prompt: token ids of the prompt, without padding.
        answer: token ids as generated, without the final end-of-sequence token and without padding; may be empty.
        text: the answer decoded, special tokens left out; what was graded.
        correct: the grader's verdict: the text states the right answer.
        finished: whether the model ended the answer itself, rather than being stopped at the longest answer allowed.
        strict: it is correct and states so in a form made for it (boxed, after ``####``, "the answer is"), see
            `rlcircuits.answers.grading`.
    """

    problem: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    correct: bool
    finished: bool
    strict: bool

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))

    @property
    def trace(self) -> Trace:
        """The answer as `rlcircuits.attribute` takes it.

        Raises:
            InputError: the answer is empty.
        """
        return Trace(self.problem, self.prompt, self.answer)


def expect_plain_text(tokenizer: PreTrainedTokenizerBase, problems: ProblemSet) -> None:
    """Warn of questions that spell out special tokens, such as the end of a turn: a model takes them for the real
    ones.
    """
    special = [token for token in tokenizer.all_special_tokens if len(token) > 2]
    found = [(problem.id, token) for problem in problems for token in special if token in problem.question]
    if found:
        count = len({name for name, _ in found})
        warnings.warn(
            f"{count} question{'s' if count > 1 else ''} of {problems.name} spell{'' if count > 1 else 's'} out "
            f"special tokens (problem {found[0][0]!r} holds {found[0][1]!r}), which the model takes for real ones",
            SpecialTokens,
            stacklevel=4,
        )


def answer_of(
    tokenizer: PreTrainedTokenizerBase,
    problems: ProblemSet,
    index: int,
    prompt: tuple[int, ...],
    ids: Sequence[int],
    finished: bool,
) -> Answer:
    """An answer from its token ids: decoded and graded. `index` is that of the problem."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    problem = problems[index]
    correct, strict = verdict(problems, problem, text)
    return Answer(problem.id, prompt, tuple(ids), text, correct, finished, strict)


def save_answers(answers: Sequence[Answer], file: str | os.PathLike[str]) -> None:
    """Save answers with their exact token ids, as parquet (``.parquet``) or JSON lines (``.jsonl``).

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    rows = [{**asdict(answer), "prompt": list(answer.prompt), "answer": list(answer.answer)} for answer in answers]
    if _suffix(file) == ".jsonl":
        with written(file) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), list: pa.list_(pa.int64()), bool: pa.bool_()}
    table = pa.Table.from_pylist(rows, pa.schema([(name, kinds[kind]) for name, kind in _FIELDS.items()]))
    with written(file) as temporary:
        pq.write_table(table, temporary)


def load_answers(file: str | os.PathLike[str]) -> list[Answer]:
    """The answers that `save_answers` saved.

    Raises:
        InputError: no such file, another suffix, or no answers in it.
    """
    suffix, name = _suffix(file), os.fspath(file)
    if not Path(file).is_file():
        raise InputError(f"no answers at {name!r}: expected a file that rlcircuits.answers.answer.save_answers wrote")
    try:
        if suffix == ".jsonl":
            rows = [json.loads(line) for line in Path(file).read_text("utf-8").split("\n") if line.strip()]
        else:
            import pyarrow.parquet as pq

            rows = pq.read_table(file).to_pylist()
    except (ValueError, OSError) as error:
        raise InputError(
            f"{name!r} holds no answers that can be read ({str(error).splitlines()[0]}); make them again"
        ) from error
    for number, row in enumerate(rows):
        for field, kind in _FIELDS.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise InputError(
                    f"{name!r}, row {number}: expected {field!r} to be a {kind.__name__}; make the answers again"
                )
    return [Answer(**{field: row[field] for field in _FIELDS}) for row in rows]


def _suffix(file: str | os.PathLike[str]) -> str:
    suffix = Path(file).suffix
    if suffix not in (".parquet", ".jsonl"):
        raise InputError(f"answers are kept as .parquet or .jsonl, not as {os.fspath(file)!r}")
    return suffix
