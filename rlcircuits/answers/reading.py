"""Problem sets from files: JSON lines or parquet, by the names of the fields that hold question and answer.

1. A row is read and its fields checked where it stands; a mistake names file, line and field.
2. Rows of another source (`rlcircuits.answers.sets` has the hub's) become problems in the same way, by `collected`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlcircuits.answers.grading import EXTRACTORS, GRADERS
from rlcircuits.answers.problems import Problem, ProblemSet, encodable
from rlcircuits.errors import InputError, argument, choose, near


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
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"load_problems was given a {type(path).__name__}: expected the path of a .jsonl or .parquet file; "
            "problems that are in memory already are rlcircuits.ProblemSet(name, (rlcircuits.Problem(id, question, "
            "reference), …))"
        )
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
                f"{where}: id {texts['id'][:60]!r} is that of {seen[texts['id']]} too; choose a field whose values "
                "differ"
            )
        seen[texts["id"]] = where.rpartition(", ")[2]
        problems.append(Problem(**texts))
        if len(problems) == limit:
            break
    if not problems:
        raise InputError(
            f"{source} holds no problems: expected one per line or row, with {fields['question']!r} and "
            f"{fields['reference']!r}"
        )
    return tuple(problems)


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
        shown = [repr(name)[:60] for name in names[:20]] + (["…"] if len(names) > 20 else [])
        raise InputError(
            f"{where} has no field {field!r}: its fields are {', '.join(shown) or 'none'}{near(field, names)}"
        )


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
    if not encodable(value):
        raise InputError(
            f"{where}: field {field!r} holds half of a character (a lone surrogate): expected Unicode text"
        )
    return value


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "it is a folder, expected a file of JSON lines or parquet"
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}"
    return f"no such file{near(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])}"


def _expect_limit(limit: int | None) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"{argument('limit')} is {limit!r}: expected a whole number of problems, at least 1, or None")
