"""``rlcircuits problems``: which problem sets there are, or which answers of one cannot be graded."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcircuits.cli import options
from rlcircuits.errors import counted
from rlcircuits.extensions import provided


def problems(
    fields: options.Fields,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="a set, NAME=FILE for a local copy of it, or a file")
    ] = None,
) -> None:
    """List the problem sets; or which reference answers of one cannot be graded."""
    from rlcircuits.answers import check_problems, problem_sets

    if name is None:
        options.refuse("no set is named", limit=fields.limit, **fields.names)
        for known, entry in problem_sets(fields.sets).items():
            print(f"{known:<14} {entry.get('hub') or entry['path']:<34} {' '.join(entry.get('note', '').split())}")
        for known, provider in provided("rlcircuits.problems").items():
            print(f"{known:<14} {'made by a package':<34} {provider.note}")
        return
    found = fields.chosen(name)
    table = check_problems(found)
    for row in table.itertuples():
        print(f"{row.problem}: {row.reason}\n    {' '.join(str(row.answer).split())[:140]}")
    print(
        f"{found.name}: {counted(len(found), 'problem')}, {len(table)} whose reference answer is not graded as equal to itself "
        "by mathematics"
    )
