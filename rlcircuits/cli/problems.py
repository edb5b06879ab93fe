"""``rlcircuits problems``: which problem sets there are, or which answers of one cannot be graded."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcircuits.cli import options
from rlcircuits.extensions import provided


def problems(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="a set, NAME=FILE for a local copy of it, or a file")
    ] = None,
    sets: options.SetsFile = None,
    question: options.Question = None,
    answer: options.Right = None,
    id: options.Id = None,
    grader: options.Grader = None,
    extractor: options.Extractor = None,
    limit: options.Limit = None,
) -> None:
    """List the problem sets; or which reference answers of one cannot be graded."""
    from rlcircuits.answers import check_problems, problem_set, problem_sets

    if name is None:
        for known, entry in problem_sets(sets).items():
            print(f"{known:<14} {entry.get('hub') or entry['path']:<34} {' '.join(entry.get('note', '').split())}")
        for known, provider in provided("rlcircuits.problems").items():
            print(f"{known:<14} {'made by a package':<34} {provider.note}")
        return
    fields = {"question": question, "answer": answer, "id": id, "grader": grader, "extractor": extractor}
    found = problem_set(name, sets, limit, **fields)
    table = check_problems(found)
    for row in table.itertuples():
        print(f"{row.problem}: {row.reason}\n    {' '.join(str(row.answer).split())[:140]}")
    print(
        f"{found.name}: {len(found)} problems, {len(table)} whose reference answer is not graded as equal to itself "
        "by mathematics"
    )
