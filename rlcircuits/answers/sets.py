r"""Problem sets by name, and whether their references can be graded at all.

1. What is known by name is data: ``sets.yaml``, and a file of one's own that adds to it (``file=``, or the variable
   ``RLCIRCUITS_PROBLEM_SETS``). An entry says where the rows are, which fields hold question and answer, and how to
   grade.
2. Rows come from a local file, if the entry or the caller names one (``gsm8k=FILE``), else from the hub through
   ``datasets``.
3. `check_problems` grades every reference against itself, written as a model would write it, ``\boxed{…}``, by
   mathematics alone: equality as text, which any answer would pass, does not count. What fails is listed with the
       reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlcircuits.answers.grading import EXTRACTORS, GRADERS, math_verify_reads, stated_answer
from rlcircuits.answers.problems import ProblemSet, grade, reference_answer
from rlcircuits.answers.reading import collected, expect_field, load_problems
from rlcircuits.errors import InputError, choose, near, require
from rlcircuits.extensions import provided
from rlcircuits.storage import entries

if TYPE_CHECKING:
    import pandas as pd

ENVIRONMENT = "RLCIRCUITS_PROBLEM_SETS"
GROUP = "rlcircuits.problems"
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "hub": str,
    "path": str,
    "config": (str, list),
    "split": str,
    "question": str,
    "answer": str,
    "id": str,
    "grader": str,
    "extractor": str,
    "size": int,
    "note": str,
}
_NEEDED = dict.fromkeys(("question", "answer"), "the name of the field that holds it")
_SUFFIXES = (".jsonl", ".parquet")


class ProblemProvider(Protocol):
    """A problem set that a package makes; an object named by the entry point ``rlcircuits.problems``.

    Attributes:
        note: one line for a list of problem sets.
    """

    note: str

    def problems(self, limit: int | None = None) -> ProblemSet:
        """The problems, the first `limit` of them; as many as the package finds reasonable when None."""


def problem_sets(file: str | os.PathLike[str] | None = None) -> dict[str, dict[str, Any]]:
    """The registered problem sets by name: ``sets.yaml``, and what a file of one's own adds.

    Raises:
        InputError: a file that cannot be read, or an entry that is not as expected; it names file, set and key.
    """
    found = entries("rlcircuits.answers:sets.yaml", file, ENVIRONMENT, _KEYS, _NEEDED)
    for name, entry in found.items():
        where = entry.pop("_file", None)
        _check(repr(where or "sets.yaml"), name, entry)
        if where is not None and "path" in entry:
            entry["path"] = str(Path(where).expanduser().parent / Path(entry["path"]).expanduser())
    return found


def known_sets(registered: Mapping[str, Any] | None = None) -> list[str]:
    """Names of the registered problem sets and of those that packages provide."""
    return [*(problem_sets() if registered is None else registered), *provided(GROUP)]


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
            ``"gsm8k=FILE"`` for the same set from a local file; a set that a package provides, such as ``"family"``; or
            a file of JSON lines or parquet.
        file: YAML that adds to ``sets.yaml``; None stands for what the variable ``RLCIRCUITS_PROBLEM_SETS`` names.
        limit: take only the first so many problems.
        question, answer, id, grader, extractor: in place of what is registered, or of `load_problems`' defaults.

    Raises:
        InputError: no such set or file, rows that are not as expected, or a hub that cannot be reached.
    """
    told = {"question": question, "answer": answer, "id": id, "grader": grader, "extractor": extractor}
    given: dict[str, Any] = {key: value for key, value in told.items() if value is not None}
    name = os.fspath(name)
    label, mark, path = name.partition("=")
    known = problem_sets(file)
    if mark and label in known:
        return _load(label, known[label] | given | {"path": path}, limit)
    if label in provided(GROUP):
        if mark or given:
            raise InputError(
                f"the problems of {label!r} are made by a package: expected {label!r} alone, without file or fields"
            )
        return provided(GROUP)[label].problems(limit)
    if name in known:
        return _load(name, known[name] | given, limit)
    if mark and os.sep not in label:
        raise InputError(
            f"unknown problem set {label!r} in {name!r}: expected one of {', '.join(known)}{near(label, known)}"
        )
    if Path(name).suffix in _SUFFIXES or os.sep in name or Path(name).exists():
        return load_problems(name, limit=limit, **given)
    choose("problem set", name, known_sets(known))
    raise AssertionError("unreachable")


def check_problems(problems: ProblemSet) -> pd.DataFrame:
    r"""Which reference answers cannot be graded, and why.

    Args:
        problems: the set; with the grader ``"math"`` this takes some milliseconds a problem, and seconds for some.

    Returns:
        One row per problem that fails, none if all is well: ``problem``, ``answer`` (what the extractor took, or None),
        ``graded`` (whether the same answer in ``\boxed{}`` is graded as correct) and ``reason``. ``.attrs["problems"]``
        is how many were tried. Where ``graded`` is true, only the very same text will be taken as correct.

    Raises:
        InputError: the grader's package is not installed.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    rows = []
    for problem in tqdm(problems, desc=f"references of {problems.name}", unit="problem", delay=3):
        answer = reference_answer(problems, problem)
        reason = _why_ungradable(problems, answer)
        if reason:
            said = f"\\boxed{{{_final(answer)}}}" if problems.grader == "math" else f"# {_final(answer)}"
            graded = answer is not None and grade(problems, problem, said)
            rows.append((problem.id, answer, graded, reason))
    table = pd.DataFrame(rows, columns=["problem", "answer", "graded", "reason"])
    table.attrs["problems"] = len(problems)
    return table


def _why_ungradable(problems: ProblemSet, answer: str | None) -> str | None:
    if answer is None:
        mark = {"boxed": "\\boxed{…}", "hashes": "####"}.get(problems.extractor, "answer")
        return f"the reference has no {mark}"
    if problems.grader == "math":
        return math_verify_reads(_final(answer))
    said = f"# {_final(answer)}"
    return None if GRADERS[problems.grader](answer, said) else "not equal to itself"


def _final(answer: str | None) -> str:
    return "" if answer is None else stated_answer(answer) or answer.rpartition("#")[2].strip() or answer


def _check(where: str, name: str, entry: dict[str, Any]) -> None:
    """One entry, its keys' types already checked."""
    if ("hub" in entry) == ("path" in entry):
        both = "both hub and path" if "hub" in entry else "neither hub nor path"
        raise InputError(
            f"{where}: {name!r} has {both}: expected one of them{near('hub', entry) or near('path', entry)}"
        )
    if name in provided(GROUP) or "=" in name or os.sep in name:
        but = "".join(f", not {one!r}" for one in provided(GROUP))
        raise InputError(
            f"{where}: {name!r} cannot be the name of a problem set: choose one without '=' and {os.sep!r}{but}"
        )
    if any(not isinstance(one, str) for one in _configs(entry) if one is not None) or entry.get("config") == []:
        raise InputError(
            f"{where}: {name!r}: config is {str(entry['config'])[:80]}: expected a text or a list of texts"
        )
    for key in ("hub", "path", "question", "answer", "id", "split"):
        if key in entry and not entry[key].strip():
            raise InputError(f"{where}: {name!r}: {key} is empty: expected a text")
    for key, known in (("grader", GRADERS), ("extractor", EXTRACTORS)):
        if key in entry:
            try:
                choose(key, entry[key], known)
            except InputError as error:
                raise InputError(f"{where}: {name!r}: {error}") from None


def _configs(entry: dict[str, Any]) -> list[str | None]:
    config = entry.get("config")
    return config if isinstance(config, list) else [config]


def _load(name: str, entry: dict[str, Any], limit: int | None) -> ProblemSet:
    grader, extractor = entry.get("grader", "math"), entry.get("extractor", "stated")
    if "path" in entry:
        fields = {key: entry[key] for key in ("question", "answer", "id") if key in entry}
        return load_problems(entry["path"], **fields, grader=grader, limit=limit, name=name, extractor=extractor)
    named: dict[str, str] = {"question": entry["question"], "reference": entry["answer"]}
    named |= {"id": entry["id"]} if "id" in entry else {}
    choose("grader", grader, GRADERS)
    choose("extractor", extractor, EXTRACTORS)
    rows = _hub_rows(name, entry, tuple(named.values()))
    return ProblemSet(name, collected(rows, named, name, f"{entry['hub']!r} on the hub", limit), grader, extractor)


def _hub_rows(name: str, entry: dict[str, Any], fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a hub dataset, its configurations one after another.

    Raises:
        InputError: it cannot be had, or lacks a field.
    """
    require("datasets", "hub", f"the problem set {name!r} from the hub")
    import datasets

    for config in _configs(entry):
        try:
            table = datasets.load_dataset(entry["hub"], config, split=entry.get("split", "test"))
        except Exception as error:  # datasets, the hub's client and file systems each raise types of their own
            reason = " ".join(str(error).split())[:250] or type(error).__name__
            raise InputError(
                f"the problem set {name!r} could not be had from the hub ({entry['hub']!r}: {reason}); give a local "
                f"copy of its rows, JSON lines or parquet, as '{name}=FILE'"
            ) from error
        label = entry["hub"] + (f"/{config}" if config else "")
        for field in fields:
            expect_field(field, table.column_names, repr(label))
        for number, row in enumerate(table):
            yield f"{label!r}, row {number}", row
