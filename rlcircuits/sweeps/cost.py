"""What the cells of a sweep will cost, as far as anything is known of it.

1. A cell that ran before under any key: the seconds it took.
2. Otherwise `rlcircuits.models.estimate`, for a cell that names a registered pair or two checkpoints.
3. Otherwise the mean of the cells that ran before in the same folder. Otherwise unknown, NaN.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError
from rlcircuits.sweeps.plan import Plan
from rlcircuits.sweeps.records import read_record

if TYPE_CHECKING:
    from rlcircuits.models import Estimate


def seconds_of(plan: Plan, folder: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Estimated seconds of every cell by name; NaN where nothing is known; 0 for what is kept.

    Args:
        plan: the sweep.
        folder: where it ran before, perhaps.
        records: of the cells that finished under their present keys.
    """
    before = {cell.name: read_record(folder / "cells" / cell.name) for cell in plan.cells}
    known = {name: record["seconds"] for name, record in before.items() if record and record["status"] == "done"}
    mean = sum(known.values()) / len(known) if known else math.nan
    seconds, answered = {}, set()
    for cell in plan.cells:
        if records.get(cell.name, {}).get("status") == "done":
            seconds[cell.name] = 0.0
            continue
        estimated = known.get(cell.name)
        if estimated is None:
            estimated = _estimate({**plan.defaults, **cell.inputs}, first=cell.group not in answered)
        seconds[cell.name] = mean if estimated is None else estimated
        answered.add(cell.group)
    return seconds


def _estimate(given: Mapping[str, Any], first: bool) -> float | None:
    """By the models' size; the first cell of a group also pays for the answers."""
    asked = given.get("n_problems") or (_count(given.get("problems", "")) if first else None)
    if first and asked is None:
        return None
    names = ("pair", "pairs", "base", "tuned", "max_new_tokens", "level", "alpha", "n", "dtype")
    try:
        found = _estimated(asked, **{name: given[name] for name in names if name in given})
    except (ValueError, OSError, TypeError):  # no configuration to be had, or values that this notebook means otherwise
        return None
    if found is None:
        return None
    return found.seconds if first else 2 * given.get("n", 100) * found.trace_seconds


@functools.cache
def _estimated(
    asked: int | None,
    pair: str = "",
    pairs: str = "",
    base: str = "",
    tuned: str = "",
    max_new_tokens: int = 0,
    **chosen: Any,
) -> Estimate | None:
    """Of a registered pair or two checkpoints; None for what a provider may have to make first."""
    from rlcircuits import models

    if (pair and models.provider_of(pair) is not None) or not (pair or (base and tuned)):
        return None
    own = models.pair(pair, pairs or None) if pair else models.ModelPair("own", base, tuned)
    own = dataclasses.replace(own, max_new_tokens=max_new_tokens or own.max_new_tokens)
    return models.estimate(own, asked, **chosen)


@functools.cache
def _count(problems: str) -> int | None:
    """How many problems a set has; None where that is not to be had without fetching it."""
    from rlcircuits.answers import problem_sets
    from rlcircuits.lab import chosen_problems

    registered = problem_sets().get(problems, {})
    if "size" in registered or "hub" in registered:
        return registered.get("size")
    try:
        return len(chosen_problems(problems))
    except (InputError, OSError):
        return None
