"""What this package adds to rlcircuits by name: the family's pairs, its problems, and the commands that train and study
it.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paradigms.family import DEFAULT, MEMBERS, METHODS, family_pairs, family_problems, make_family, member_inputs
from rlcircuits.errors import InputError, choose
from rlcircuits.models import ModelPair, stored_parameters, which_are_here
from rlcircuits.storage import Store

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet

_NAME = re.compile(r"family/(?P<member>[^@]*)(?:@(?P<seed>.*))?", re.DOTALL)


def family_member(name: str) -> tuple[str, int]:
    """Member and seed of a pair of the family.

    >>> family_member("family/grpo@3")
    ('grpo', 3)

    Raises:
        InputError: no such member, or a seed that is no whole number.
    """
    match = _NAME.fullmatch(name)
    member, seed = (match["member"], match["seed"]) if match else (name, None)
    choose("pair", f"family/{member}", pairs.names())
    if seed is not None and not (seed.isascii() and seed.isdecimal() and len(seed) < 10):
        raise InputError(
            f"pair {name!r}: the seed after '@' is {seed!r}, expected a whole number of at least 0, such as 3"
        )
    return member, int(seed or 0)


class FamilyPairs:
    """``family/<member>`` and ``family/<member>@<seed>``: the base against that member; see
    `rlcircuits.models.PairProvider`.
    """

    problems = "family"
    note = (
        "family/<member>@<seed> is the family of another seed; what is missing of it is trained when it is asked for."
    )

    def names(self) -> list[str]:
        return [f"family/{member}" for member in MEMBERS if member != "sft"]

    def known(self, name: str) -> str:
        family_member(name)
        return name

    def pair(self, name: str, store: Store | str | os.PathLike[str] | None = None) -> ModelPair:
        member, seed = family_member(name)
        folders = make_family(seed, ("sft", member), store=store)
        return replace(family_pairs(folders)[f"family/{member}"], name=name)

    def rows(self, store: Store | str | os.PathLike[str] | None = None) -> list[dict[str, object]]:
        found = store if isinstance(store, Store) else Store("runs" if store is None else store)
        base_inputs = member_inputs("sft", 0, DEFAULT)
        base = _there(found.path("family", base_inputs))
        key = found.path("family", base_inputs).name
        rows = []
        for name in self.names():
            member = name.removeprefix("family/")
            tuned = _there(found.path("family", member_inputs(member, 0, DEFAULT, key)))
            rows.append(
                {
                    "pair": name,
                    "method": METHODS[member],
                    "base": "the family's base",
                    "tuned": f"its {member} descendant",
                    "parameters": None if base is None else stored_parameters(base),
                    "here": which_are_here(base is not None, tuned is not None),
                    "note": "" if tuned is not None else "made by `rlcircuits family`, or when it is first asked for",
                }
            )
        return rows


class FamilyProblems:
    """The family's test problems; see `rlcircuits.answers.ProblemProvider`."""

    note = "The family's test problems."

    def problems(self, limit: int | None = None) -> ProblemSet:
        return family_problems(n=limit or 500)


def _there(folder: Path) -> Path | None:
    return folder if (folder / "manifest.json").is_file() else None


pairs = FamilyPairs()
problems = FamilyProblems()
