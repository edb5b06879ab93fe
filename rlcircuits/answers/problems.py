r"""Problem sets, and whether an answer to a problem is correct.

1. A `Problem` is an id, a question q and a reference answer; a `ProblemSet` is many of them and the name of their grader.
2. `load_problems` reads them from JSON lines or parquet, by the names of the fields that hold question and answer; `problem_set`
   finds a set by name (`rlcircuits.answers.sets`).
3. The set's extractor says what of a reference is the answer: what it states, or only a ``\boxed{…}``, or only what follows
   ``####``, or all of it.
4. A grader compares what a text *states* as its answer with what the reference states:

   - ``"final"``: what follows the last ``#``, exactly; numbers as exact rationals (``1,200`` = ``1200``, ``0.5`` = ``1/2``).
   - ``"math"``: the content of the last ``\boxed{…}``, else the line after the last ``####``, else what follows words such as "the
     answer is"; equal as text, or as mathematics by math-verify. A number that merely passes by is no answer.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from rlcircuits.errors import InputError, choose
from rlcircuits.storage import canonical_json

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Args:
        id: what names it everywhere, e.g. ``"gsm8k/17"``.
        question: the text that is put into the prompt.
        reference: the answer to compare with; a worked solution that ends in ``#### 18`` or ``\\boxed{18}`` will do.

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
            if not _encodable(value):
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
        return f"ProblemSet({self.name!r}: {len(self)} problems, grader {self.grader!r})"


def draw(items: Iterable[T], n: int, seed: int, name: Callable[[T], str]) -> tuple[T, ...]:
    """`n` of the items (all when fewer), uniformly at random, in the order given.

    The items are ranked by SHA-256 of seed and name, so the draw is the same on every machine, does not depend on the order of
    the items, and a larger `n` only adds to a smaller one.
    """
    items = list(items)
    ranked = sorted(items, key=lambda item: hashlib.sha256(f"{seed}/{name(item)}".encode()).digest())
    kept = {name(item) for item in ranked[:n]}
    return tuple(item for item in items if name(item) in kept)


def load_problems(
    path: str | os.PathLike[str],
    question: str = "question",
    answer: str = "answer",
    grader: str = "math",
    limit: int | None = None,
    id: str | None = None,
    name: str | None = None,
    extractor: str = "stated",
) -> ProblemSet:
    """Read a problem set from a file of JSON lines (``.jsonl``) or parquet (``.parquet``).

    Args:
        path: the file.
        question, answer: names of the fields that hold the question and the reference answer.
        grader: one of `GRADERS`.
        limit: read only the first so many problems.
        id: name of the field that holds a unique id; by default ids are ``"<name of the set>/<row>"``, rows from 0.
        name: of the set; by default the stem of the file.
        extractor: one of `EXTRACTORS`.

    Raises:
        InputError: no such file, a row or field that is not as expected (it names file, line and field), no problems,
            ids that are not unique, or an unknown grader or extractor.
    """
    path = Path(path).expanduser()
    choose("grader", grader, GRADERS)
    choose("extractor", extractor, EXTRACTORS)
    _expect_limit(limit)
    if not path.is_file():
        raise InputError(f"no problems at {str(path)!r}: {_what_is_there(path)}")
    readers = {".jsonl": _json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError(
            f"cannot read problems from {str(path)!r}: expected a file that ends in {' or '.join(readers)}"
        )
    fields = {"question": question, "reference": answer, **({} if id is None else {"id": id})}
    rows = readers[path.suffix](path, tuple(fields.values()))
    return ProblemSet(
        name or path.stem, collected(rows, fields, name or path.stem, repr(str(path)), limit), grader, extractor
    )


def collected(
    rows: Iterable[tuple[str, dict[str, Any]]], fields: dict[str, str], name: str, source: str, limit: int | None = None
) -> tuple[Problem, ...]:
    """The problems that rows hold.

    Args:
        rows: where a row stands, and the row.
        fields: the row's field for ``"question"``, ``"reference"`` and, if there is one, ``"id"``.
        name: of the set, for ids that are not given.
        source: where the rows come from, for the message that there are none.
        limit: take only the first so many.

    Raises:
        InputError: a field that is no text or number, an id that is there twice, or no rows.
    """
    _expect_limit(limit)
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        texts = {what: _text(row, field, where) for what, field in fields.items()}
        texts.setdefault("id", f"{name}/{len(problems)}")
        if texts["id"] in seen:
            raise InputError(
                f"{where}: id {texts['id'][:60]!r} is that of {seen[texts['id']]} too; choose a field whose values differ"
            )
        seen[texts["id"]] = where.rpartition(", ")[2]
        problems.append(Problem(**texts))
        if len(problems) == limit:
            break
    if not problems:
        raise InputError(
            f"{source} holds no problems: expected one per line or row, with {fields['question']!r} and {fields['reference']!r}"
        )
    return tuple(problems)


def problem_set(
    name: str | os.PathLike[str],
    file: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    question: str | None = None,
    answer: str | None = None,
    id: str | None = None,
    grader: str | None = None,
    extractor: str | None = None,
) -> ProblemSet:
    """A problem set by name, or from a file.

    Args:
        name: a name of ``sets.yaml`` such as ``"gsm8k"`` (from the hub, or where the user's file says);
            ``"gsm8k=FILE"`` for the same set from a local file; a set that a package provides, such as ``"family"``; or a file of JSON
            lines or parquet.
        file: YAML that adds to ``sets.yaml``; None stands for what the variable ``RLCIRCUITS_PROBLEM_SETS`` names.
        limit: take only the first so many problems.
        question, answer, id, grader, extractor: in place of what is registered, or of `load_problems`' defaults.

    Raises:
        InputError: no such set or file, rows that are not as expected, or a hub that cannot be reached.
    """
    from rlcircuits.answers.sets import find

    given = {"question": question, "answer": answer, "id": id, "grader": grader, "extractor": extractor}
    return find(os.fspath(name), file, limit, {key: value for key, value in given.items() if value is not None})


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
    if not isinstance(grader, ProblemSet):
        return GRADERS[choose("grader", grader, GRADERS)](problem.reference, text)
    reference = reference_answer(grader, problem)
    return reference is not None and GRADERS[grader.grader](reference, text)


def reference_answer(problems: ProblemSet, problem: Problem) -> str | None:
    """What of a reference the set's extractor takes as the answer; None where it finds none."""
    if problems.extractor == "stated":
        return problem.reference  # graders look for what is stated themselves
    return EXTRACTORS[problems.extractor](problem.reference)


def grade_final(reference: str, text: str) -> bool:
    """Whether what follows the last ``#`` of `text` is the reference, as a number or as text with its spaces normalised.

    A reference with a ``#`` is what follows its last one. A text without ``#`` is not correct.

    >>> grade_final("1,200", "12 * 100 = 1200 # 1200.0"), grade_final("28", "so it is 28")
    (True, False)
    """
    _, mark, stated = text.rpartition("#")
    stated, expected = " ".join(stated.split()), " ".join(reference.rpartition("#")[2].split())
    if not mark:
        return False
    numbers = _rational(stated), _rational(expected)
    return numbers[0] == numbers[1] if None not in numbers else stated == expected


def grade_math(reference: str, text: str) -> bool:
    r"""Whether `text` states the reference or something mathematically equal to it.

    What a text states is the content of its last ``\boxed{…}``, else the line after its last ``####``, else what math-verify finds
    after words such as "the answer is". A reference that states nothing in these ways is all answer. Equality is that of
    math-verify (https://github.com/huggingface/Math-Verify), which gives up after 5 seconds and then counts as unequal.

    Raises:
        InputError: math-verify is not installed.
    """
    parse_answer = _math_verify()
    expected = _unwrapped(stated_answer(reference) or reference)
    stated = stated_answer(text)
    if stated is not None and _unwrapped(stated) == expected:
        return True
    return parse_answer(expected, stated, text)


def stated_answer(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}``, else the line after the last ``####``, else None.

    >>> stated_answer(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    boxed = _boxed(text)
    return _after_hashes(text) if boxed is None else boxed


def _boxed(text: str) -> str | None:
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for i, character in enumerate(text[start:], start):
            escaped = text[i - 1] == "\\" and text[i - 2] != "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return text[start:i].strip()
    return None


def _boxed_reference(text: str) -> str | None:
    r"""As `_boxed`; references also write ``\boxed 5$``, which TeX takes as a box around the 5."""
    bare = re.findall(r"\\boxed\s+([^\s{$\\]+)\s*\$", text)
    boxed = _boxed(text)
    return bare[-1].rstrip(".,") or None if boxed is None and bare else boxed


def _after_hashes(text: str) -> str | None:
    _, mark, last = text.rpartition("####")
    return (last.strip().splitlines() or [""])[0].strip() if mark else None


#: extractors by name: what of a reference is the answer, or None when it is not there. "stated": the content of the last
#: boxed, else what follows ####, else all of it
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "stated": lambda text: stated_answer(text) or text,
    "boxed": _boxed_reference,
    "hashes": lambda text: _after_hashes(text) or None,
    "whole": lambda text: text.strip() or None,
}
GRADERS: dict[str, Callable[[str, str], bool]] = {"final": grade_final, "math": grade_math}
"""Graders by name: functions of the reference and of the text that is graded."""

_NUMBER = re.compile(r"([+-]?)\s*(\d+|\d{1,3}(?:,\d{3})+)?(\.\d+)?(?:\s*/\s*([1-9]\d*))?")


def _rational(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if not match or not (match[2] or match[3]) or len(text) > 1000:
        return None
    whole = Fraction((match[2] or "0").replace(",", "") + (match[3] or ""))
    return (-whole if match[1] == "-" else whole) / int(match[4] or 1)


def _unwrapped(text: str) -> str:
    r"""A text with its spaces normalised, and without the $…$, \(…\) or \[…\] around all of it."""
    text = " ".join(text.split())
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opening) : -len(closing)]
        if (
            text.startswith(opening)
            and text.endswith(closing)
            and len(text) > 2 * len(opening)
            and opening not in inner
        ):
            return inner.strip()
    return text


def math_verify_reads(answer: str) -> str | None:
    """Why math-verify cannot tell that an answer is equal to itself; None when it can.

    Raises:
        InputError: math-verify is not installed.
    """
    _math_verify()
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    limit = _time_limit()
    try:
        # Read twice, as reference and answer are: one object is equal to itself whatever it says.
        parsed = [parse(_as_math(answer), parsing_timeout=limit) for _ in range(2)]
        within = f" within {limit} s" if limit else ""
        if not all(parsed):
            return f"math-verify reads nothing from it{within}: only the same text is equal"
        if not verify(*parsed, timeout_seconds=limit):
            return f"math-verify does not find it equal to itself{within}: only the same text is equal"
        return None
    except TimeoutException:
        return f"math-verify does not compare it within {limit} s: only the same text is equal"


def _time_limit() -> int | None:
    """Seconds for math-verify; its time limit is a signal, which only a main thread can have."""
    return 5 if threading.current_thread() is threading.main_thread() else None


def _as_math(answer: str) -> str:
    answer = _unwrapped(answer)
    return answer if re.search(r"(?<!\\)\$", answer) else f"\\boxed{{{answer}}}"


@lru_cache(maxsize=1)
def _math_verify() -> Callable[[str, str | None, str], bool]:
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise InputError(
            "the 'math' grader needs math-verify, which is not installed: pip install 'rlcircuits[math]', or use grader='final'"
        ) from error
    anchored = [
        LatexExtractionConfig(try_extract_without_anchor=False),
        ExprExtractionConfig(try_extract_without_anchor=False),
    ]

    def equal(expected: str, stated: str | None, text: str) -> bool:
        limit = _time_limit()

        def parsed(answer: str) -> list[Any]:
            return parse(answer if re.search(r"(?<!\\)\$", answer) else f"\\boxed{{{answer}}}", parsing_timeout=limit)

        try:
            gold = parsed(expected)
            found = parse(text, anchored, parsing_timeout=limit) if stated is None else parsed(_unwrapped(stated))
            return bool(gold and found) and bool(verify(gold, found, timeout_seconds=limit))
        except TimeoutException:
            return False

    return equal


def _json_lines(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{str(path)!r}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{where} is not UTF-8 text ({error.reason}): expected one JSON object per line"
                ) from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON ({error}): expected one JSON object per line") from error
            if not line.strip():
                continue
            if not isinstance(row, dict):
                raise InputError(
                    f"{where} holds a {type(row).__name__}: expected a JSON object with {' and '.join(fields)}"
                )
            for field in fields:
                expect_field(field, row, where)
            yield where, row


def _parquet(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for field in fields:
                expect_field(field, file.schema_arrow.names, repr(str(path)))
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(fields))):
                for row in batch.to_pylist():
                    yield f"{str(path)!r}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read as parquet ({str(error).splitlines()[0]})") from error


def expect_field(field: str, found: Iterable[str], where: str) -> None:
    """Raise an `InputError` that names place and nearest field when a field is not among those found."""
    names = list(found)
    if field not in names:
        near = difflib.get_close_matches(str(field), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = [repr(name)[:60] for name in names[:20]] + (["…"] if len(names) > 20 else [])
        raise InputError(f"{where} has no field {field!r}: its fields are {', '.join(shown) or 'none'}{hint}")


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(
            f"{where}: field {field!r} is {type(value).__name__} {str(value)[:40]!r}: expected a text or a number"
        )
    if not value.strip():
        raise InputError(f"{where}: field {field!r} is empty: expected a text or a number")
    if not _encodable(value):
        raise InputError(
            f"{where}: field {field!r} holds half of a character (a lone surrogate): expected Unicode text"
        )
    return value


def _encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "it is a folder, expected a file of JSON lines or parquet"
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir() if p.is_file()], n=1)
    return f"no such file{f'; did you mean {near[0]!r}?' if near else ''}"


def _expect_limit(limit: int | None) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}: expected a whole number of problems, at least 1, or None")


def _first_double(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
