"""What moves a metric: change edge scores in one known way, by a factor, and watch every metric.

1. A deformation takes scores W ``(sample, source, destination)`` and a factor f > 0; f = 1 changes nothing.
2. `DEFORMATIONS` are four: all scores alike; one score of one sample, the largest; the strongest edge in every sample;
   and what the samples share: with each sample in units of its own root mean square, U + (f − 1) · mean of U over
       samples.
3. `responses` gives each metric's value under each deformation as a share of its value at f = 1. A metric that should
   not care about scale stays at 1 under the first; one that should describe a model stays near 1 under the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.errors import InputError
from rlcircuits.metrics import chosen, summary


def all_edges(scores: xr.DataArray, factor: float) -> xr.DataArray:
    """Every score times `factor`."""
    return scores * factor


def one_score(scores: xr.DataArray, factor: float) -> xr.DataArray:
    """The largest |W| of all samples and edges times `factor`, nothing else."""
    changed = scores.copy(deep=True)
    where = np.unravel_index(np.nanargmax(np.abs(changed.values)), changed.shape)
    changed.values[where] *= factor
    return changed


def strongest_edge(scores: xr.DataArray, factor: float) -> xr.DataArray:
    """The edge with the largest mean |W| times `factor`, in every sample."""
    mean = abs(scores).mean("sample")
    best = mean.where(mean.notnull(), -1).argmax(("source", "destination"))
    changed = scores.copy(deep=True)
    changed[{name: int(at) for name, at in best.items()}] *= factor
    return changed


def what_is_shared(scores: xr.DataArray, factor: float) -> xr.DataArray:
    """What the samples have in common times `factor`, their differences as they are.

    Samples differ in size by orders of magnitude, so what is common is the mean of U = W / r with r a sample's own root
    mean square: the result is r · (U + (factor − 1) · mean U).
    """
    size = (scores**2).mean(("source", "destination")) ** 0.5
    unit = scores / size.where(size > 0, 1.0)
    return size * (unit + (factor - 1) * unit.mean("sample"))


DEFORMATIONS: Mapping[str, Callable[[xr.DataArray, float], xr.DataArray]] = MappingProxyType(
    {
        "all edges": all_edges,
        "one score of one sample": one_score,
        "the strongest edge, in all samples": strongest_edge,
        "what samples share": what_is_shared,
    }
)


def responses(
    scores: xr.DataArray, factors: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0), metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Every metric under every deformation.

    Args:
        scores: W ``(sample, source, destination)``, in nats.
        factors: positive numbers.
        metrics: names of `METRICS`; all when None.

    Returns:
        One row for each deformation, factor and metric: ``deformation``, ``factor``, ``metric``, ``value`` and
            ``share``, the
        value over that of the unchanged scores.

    Raises:
        InputError: a factor that is not positive, unusable scores, or an unknown metric.
    """
    if not factors or not all(0 < factor < np.inf for factor in factors):
        raise InputError(f"factors are {list(factors)}: expected positive numbers, such as [0.5, 1, 2]")
    names = chosen(metrics)
    unchanged = summary(scores, names)
    rows = []
    for title, deform in DEFORMATIONS.items():
        for factor in factors:
            values = summary(deform(scores, factor), names)
            rows += [(title, factor, name, values[name], values[name] / unchanged[name]) for name in names]
    return pd.DataFrame(rows, columns=["deformation", "factor", "metric", "value", "share"])
