"""Scores of two models on the same problems and the same graph, in one order."""

from __future__ import annotations

import numpy as np
import xarray as xr

from rlcircuits.errors import InputError
from rlcircuits.metrics.definitions import edge_values


def paired(base_scores: xr.DataArray, tuned_scores: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Both scores with tuned's samples in base's order.

    Raises:
        InputError: the problems differ or repeat, there is no ``sample`` coordinate, or the graphs differ.
    """
    edge_values(base_scores), edge_values(tuned_scores)  # their checks
    return aligned(base_scores, tuned_scores)


def aligned(
    first: xr.DataArray, second: xr.DataArray, names: tuple[str, str] = ("base", "tuned")
) -> tuple[xr.DataArray, xr.DataArray]:
    """`paired` for scores that were checked one by one; nothing is copied but samples in another order.

    Args:
        names: what messages call the two.

    Raises:
        InputError: as `paired`.
    """
    both = " and ".join(names)
    ids = [_sample_ids(scores, which) for scores, which in zip((first, second), names)]
    for one, other, which in ((*ids, names[0]), (*ids[::-1], names[1])):
        alone = sorted(set(one) - set(other))
        if alone:
            raise InputError(
                f"{both} must hold scores of the same problems: {len(alone)} only in {which}, "
                f"such as {alone[0]!r}; keep the problems that both have, for example with .sel(sample=…)"
            )
    order = ("sample", "source", "destination")
    first, second = first.transpose(*order), second.transpose(*order)
    if ids[0] != ids[1]:
        place = {name: i for i, name in enumerate(ids[1])}
        second = second.isel(sample=[place[i] for i in ids[0]])
    for dim in order[1:]:
        if first[dim].values.tolist() != second[dim].values.tolist():
            raise InputError(
                f"{both} must be scored on the same graph: their {dim}s differ "
                f"({first.sizes[dim]} and {second.sizes[dim]}); attribute both at the same level"
            )
    if (np.isnan(first.values[0]) != np.isnan(second.values[0])).any():
        raise InputError(f"{both} must be scored on the same edges: some are NaN in one only")
    return first, second


def _sample_ids(scores: xr.DataArray, which: str) -> list[str]:
    if "sample" not in scores.coords:
        raise InputError(f"{which} scores have no coordinate 'sample': expected problem ids, to pair the models by")
    ids = [str(i) for i in scores["sample"].values]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{which} scores hold problem {repeated!r} more than once; keep one sample per problem")
    return ids
