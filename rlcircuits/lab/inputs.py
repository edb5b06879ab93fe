"""Pairs and problem sets by name, as the parameters of a notebook give them.

1. A pair is registered, or one of the family's: ``family/<member>`` or ``family/<member>@<seed>``, trained when it is
   not there.
2. Problems are a set known by name (``family`` among them) or a file.
3. `known_pair` and `known_problems` check a name without loading a model; a notebook calls them within its
   ``validate``, and so does a sweep, before anything runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcircuits import models
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import ModelPair


def known_pair(name: str, file: str = "", base: str = "", tuned: str = "", method: str = "", **asking: Any) -> str:
    """The name of a pair; raises InputError, with the nearest name, when there is none of it, or when something is given
    that would be ignored.

    Args:
        name: a registered pair, or ``family/<member>`` with or without ``@<seed>``; empty stays empty.
        file: YAML with pairs besides the registered ones; none when empty.
        base, tuned: the two checkpoints given in place of a name; empty with one.
        method: how they were tuned.
        asking: how the models are asked, as for `chosen_pair`; empty where no models are given.
    """
    _expect_text("pair", name)
    if name and (base or tuned):
        raise InputError(f"pair {name!r} is given, and base or tuned besides: expected a name, or two checkpoints")
    if bool(base) != bool(tuned):
        raise InputError(f"only {'base' if base else 'tuned'} is given: expected base and tuned, or the name of a pair")
    idle = {"method": "" if base else method, "pairs": "" if name else file, **({} if name or base else asking)}
    for parameter, value in idle.items():
        if value:
            whose = {"method": "base and tuned", "pairs": "a pair by name"}.get(parameter, "a pair, or base and tuned")
            raise InputError(f"parameter {parameter} is {value!r}, which is of {whose}: expected these with it")
    return models.known_pair(name, file or None) if name else name


def chosen_pair(
    name: str,
    file: str = "",
    store: str | os.PathLike[str] = "runs",
    base: str = "",
    tuned: str = "",
    method: str = "",
    problems: ProblemSet | None = None,
    fields: Mapping[str, Any] | None = None,
    **asking: Any,
) -> ModelPair:
    """The pair of a name, or two checkpoints; members of the family are trained when they are not in the store.

    Args:
        name, file, base, tuned, method: as for `known_pair`.
        store: where the family is kept.
        problems, fields: what is asked, and the fields of its file, which few-shot examples have, too.
        asking: ``prompt``, ``system``, ``instruction``, ``few_shot`` and ``max_new_tokens`` in place of the pair's, unless
            empty or 0.

    Raises:
        InputError: no such pair, or one that cannot be asked so.
    """
    from rlcircuits.answers import asked_as

    pair = models.ModelPair.of(base, tuned, method or "other") if base else models.pair(name, file or None, store)
    if problems is None:
        return pair
    given = {parameter: value or None for parameter, value in asking.items()}
    return asked_as(pair, problems, fields={key: value or None for key, value in (fields or {}).items()}, **given)


def pairs_here(names: Sequence[str], store: str | os.PathLike[str] = "runs") -> tuple[list[str], list[str]]:
    """Those of some pairs whose models are on this machine, and the others, in their order; nothing is trained or fetched.
    What a package could provide, but does not here (``smollm2/grpo`` without its adapter), is among the others.

    Args:
        names: as for `known_pair`; a pair of another seed than 0 (``family/grpo@3``) counts as here, and is made when it is
            asked for.
        store: where provided pairs are kept.

    Raises:
        InputError: a name that no package could provide, none given, or none of them is here.
    """
    if not names:
        raise InputError("no pairs are given: expected names such as 'family/grpo'")
    status = {row["pair"]: row["here"] for row in models.pair_rows(store=store)}
    here = []
    for name in names:
        try:
            if status.get(known_pair(name), "both") == "both":
                here.append(name)
        except InputError:
            if models.provider_of(name) is None:
                raise
    if not here:
        raise InputError(
            f"none of {', '.join(names)} is on this machine: run `rlcircuits family`, or name others of `rlcircuits pairs`"
        )
    return here, [name for name in names if name not in here]


def problems_of(pair: str, otherwise: str = "", limit: int | None = None) -> ProblemSet:
    """The problems that a package's pair comes with; for other pairs those of a name or file.

    Raises:
        InputError: as `chosen_problems`.
    """
    provider = models.provider_of(pair)
    if provider is None:
        found = chosen_problems(otherwise)
        return found if limit is None or limit >= len(found) else found.take(limit)
    from rlcircuits.answers import problem_set

    return problem_set(provider.problems, limit=limit)


def known_problems(name: str, **fields: Any) -> str:
    """The name or path of a problem set; raises InputError when there is none. A file is read, so that its faults are
    told.

    Args:
        name: a set known by name, a ``.jsonl`` or ``.parquet`` file; empty is the family's.
        fields: ``question``, ``answer``, ``grader`` in place of the set's, unless empty.
    """
    from rlcircuits.answers import known_sets

    _expect_text("problems", name)
    if any(fields.values()) or name not in ("", *known_sets()):
        chosen_problems(name, **fields)
    return name


def chosen_problems(name: str, **fields: Any) -> ProblemSet:
    """The problem set of a name or file; arguments as for `known_problems`.

    Raises:
        InputError: no such set or file, or one that cannot be read.
    """
    return _loaded(name or "family", tuple(sorted((key, value) for key, value in fields.items() if value)))


@functools.lru_cache(maxsize=8)
def _loaded(name: str, fields: tuple[tuple[str, Any], ...]) -> ProblemSet:
    from rlcircuits.answers import problem_set

    return problem_set(name, **dict(fields))


def _expect_text(parameter: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"parameter {parameter} is {value!r} ({type(value).__name__}); expected a text")
