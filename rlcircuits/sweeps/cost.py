"""What the cells of a sweep will cost, as far as anything is known of it.

1. A cell that ran before under any key: the seconds it took.
2. Otherwise `rlcircuits.models.cost`, for a cell that names a pair.
3. Otherwise the mean of the cells that ran before in the same folder. Otherwise unknown, NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.sweeps.plan import Cell, Plan
from rlcircuits.sweeps.records import read_record


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
            estimated = _estimate(cell, first=cell.group not in answered)
        seconds[cell.name] = mean if estimated is None else estimated
        answered.add(cell.group)
    return seconds


def _estimate(cell: Cell, first: bool) -> float | None:
    """By the model's size; the first cell of a group also pays for the answers."""
    from rlcircuits.models import estimate, provider_of

    given = cell.parameters
    if not given.get("pair") or provider_of(given["pair"]) is not None:
        return None
    asked = given.get("n_problems") or (_count(given.get("problems", "")) if first else None)
    if first and asked is None:
        return None
    dtype = given.get("dtype", "auto")
    chosen = {name: given[name] for name in ("level", "alpha", "n") if name in given}
    try:
        found = estimate(given["pair"], asked, dtype="bfloat16" if dtype == "auto" else dtype, **chosen)
    except (InputError, OSError):
        return None
    return found.seconds if first else 2 * given.get("n", 100) * found.trace_seconds


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
