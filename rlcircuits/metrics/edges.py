"""Scores by the names of their edges: what an ``xarray.DataArray`` lacks, there as ``scores.rlc``."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.errors import choose

DIMS = ("sample", "source", "destination")


class Edges:
    """``scores.rlc``: the edges of scores, by name.

    >>> import xarray
    >>> scores = xarray.DataArray([[[1.0, 2.0]]], dims=("sample", "source", "destination"),
    ...     coords={"sample": ["p"], "source": ["input"], "destination": ["a0", "logits"]})
    >>> float(Edges(scores)["input->logits"].mean())
    2.0
    """

    def __init__(self, scores: xr.DataArray) -> None:
        self._scores = scores

    @cached_property
    def names(self) -> list[str]:
        """Every edge, ``"source->destination"``."""
        values = self._scores.transpose(*DIMS).values
        sources, destinations = (self._scores[dim].values.astype(str) for dim in DIMS[1:])
        return [f"{sources[i]}->{destinations[j]}" for i, j in np.argwhere(np.isfinite(values).any(axis=0))]

    def __getitem__(self, edge: str) -> xr.DataArray:
        """The edge's score on each problem, in nats.

        Raises:
            InputError: no such source or destination.
        """
        source, _, destination = str(edge).partition("->")
        for dim, name in (("source", source), ("destination", destination)):
            choose(dim, name, [str(n) for n in self._scores[dim].values])
        return self._scores.sel(source=source, destination=destination)

    def _ipython_key_completions_(self) -> list[str]:
        return self.names

    def strongest(self, n: int = 10) -> pd.DataFrame:
        """The `n` edges of largest |mean score|: mean, lowest and highest score over problems, in nats."""
        values = self._scores.transpose(*DIMS).values.astype(np.float64)
        mean = values.sum(axis=0) / max(1, len(values))
        where = np.argwhere(np.isfinite(mean))
        where = where[np.argsort(-np.abs(mean[tuple(where.T)]), kind="stable")[:n]]
        sources, destinations = (self._scores[dim].values.astype(str) for dim in DIMS[1:])
        rows = [
            (f"{sources[i]}->{destinations[j]}", mean[i, j], values[:, i, j].min(), values[:, i, j].max())
            for i, j in where
        ]
        return pd.DataFrame(rows, columns=["edge", "mean", "lowest", "highest"]).set_index("edge")
