"""The numbers behind the explorer's pictures: scores of one or two models, cut to a problem, a level, an edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits import figures
from rlcircuits.figures import NODE, node_of

KINDS = {"input": "input", "attention": "a", "MLP": "m", "logits": "logits"}


@dataclass(frozen=True)
class Shown:
    """What the pictures show: the scores of one or two models, ready to be cut out of.

    Attributes:
        names: of the models.
        arrays: their scores ``(sample, source, destination)``, aligned.
        samples, sources, destinations: names.
        means: the mean over samples of each, float64 ``(source, destination)``.
    """

    names: tuple[str, ...]
    arrays: tuple[xr.DataArray, ...]
    samples: tuple[str, ...]
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    means: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, given: Mapping[str, xr.DataArray]) -> Shown:
        """From scores by model.

        Raises:
            InputError: two models that cannot be paired.
        """
        arrays = [scores.transpose("sample", "source", "destination") for scores in given.values()]
        if len(arrays) == 2:
            arrays = list(figures.paired_shown(*arrays))
        samples, sources, destinations = (
            tuple(str(n) for n in arrays[0][dim].values) for dim in ("sample", "source", "destination")
        )
        means = tuple(a.values.sum(axis=0, dtype=np.float64) / max(1, a.sizes["sample"]) for a in arrays)
        return cls(tuple(given), tuple(arrays), samples, sources, destinations, means)

    def panels(self, sample: str | None) -> dict[str, np.ndarray]:
        """Matrices by name, float64 ``(source, destination)``: each model, and with two their difference."""
        if sample is None:
            matrices = list(self.means)
        else:
            matrices = [a.values[self.samples.index(sample)].astype(np.float64) for a in self.arrays]
        found = dict(zip(self.names, matrices, strict=True))
        if len(matrices) == 2:
            found[f"{self.names[1]} − {self.names[0]}"] = matrices[1] - matrices[0]
        return found

    def kept(self, layers: tuple[int, int], sources: str, destinations: str) -> np.ndarray:
        """Which edges are of these layers and `KINDS`, bool ``(source, destination)``."""
        low, high = layers
        sides = [
            np.array(
                [
                    (kind == "all" or kind_of(n) == KINDS[kind]) and (layer_of(n) < 0 or low <= layer_of(n) <= high)
                    for n in names
                ],
                bool,
            )
            for names, kind in ((self.sources, sources), (self.destinations, destinations))
        ]
        return sides[0][:, None] & sides[1][None, :]

    def where(self, keep: np.ndarray) -> tuple[xr.DataArray, xr.DataArray | None]:
        """The scores with NaN for the edges that are not to be kept."""
        first, *second = (array.where(xr.DataArray(keep, dims=("source", "destination"))) for array in self.arrays)
        return first, second[0] if second else None

    def of_edge(self, edge: str) -> list[np.ndarray]:
        """Each model's scores of one edge, ``(sample,)``; none where the edge is not in this graph."""
        source, _, destination = edge.partition("->")
        if source not in self.sources or destination not in self.destinations:
            return []
        at = self.sources.index(source), self.destinations.index(destination)
        if not np.isfinite(self.means[0][at]):
            return []
        return [a.values[:, at[0], at[1]].astype(np.float64) for a in self.arrays]


def largest_differences(
    base: xr.DataArray,
    tuned: xr.DataArray | None = None,
    sample: str | None = None,
    names: Sequence[str] = ("base", "tuned"),
    n: int = 10,
) -> pd.DataFrame:
    """The `n` edges that differ most between tuned and base, or the strongest of one model.

    Returns:
        A column ``edge``, one for each model under its name and, with two, ``difference`` (second − first),
        in nats, largest |difference| first; of one problem, or of the mean over problems.

    Raises:
        InputError: an unknown problem, or two models that cannot be paired.
    """
    return largest(*figures.panels_of(base, tuned, sample, names), n)


def largest(
    matrices: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str], n: int = 50
) -> pd.DataFrame:
    """As `largest_differences`, of matrices by name."""
    values = list(matrices.values())
    rows, columns = np.nonzero(np.isfinite(values[-1]))
    order = np.argsort(-np.abs(values[-1][rows, columns]), kind="stable")[:n]
    rows, columns = rows[order], columns[order]
    table: dict[str, Any] = {
        "edge": [f"{sources[int(i)]}->{destinations[int(j)]}" for i, j in zip(rows, columns, strict=True)]
    }
    for name, matrix in zip([*list(matrices)[:2], "difference"], values, strict=False):
        table[name] = matrix[rows, columns]
    return pd.DataFrame(table)


def merged(scores: xr.DataArray) -> xr.DataArray:
    """Scores at level ``block`` from those at level ``qkv``: an attention's is the sum of its q, k and v.

    Exact, as the gradient at the attention's input is the sum of the gradients through its three readers.
    """
    nodes = [node_of(str(n)) for n in scores["destination"].values]
    names = list(dict.fromkeys(nodes))
    scores = scores.transpose("sample", "source", "destination")
    parts = [scores.values[:, :, [i for i, n in enumerate(nodes) if n == name]].sum(axis=2) for name in names]
    coords = {"sample": scores["sample"].values, "source": scores["source"].values, "destination": names}
    return xr.DataArray(
        np.stack(parts, axis=2),
        dims=scores.dims,
        coords=coords,
        name=scores.name,
        attrs={**scores.attrs, "level": "block"},
    )


def layer_of(name: object) -> int:
    """Layer of a source or destination; −1 for the input, the logits and names that have none."""
    found = NODE.fullmatch(node_of(str(name)))
    return int(found["layer"]) if found and found["layer"] else -1


def kind_of(name: str) -> str:
    """What a source or destination is: one of the values of `KINDS`, or empty."""
    found = NODE.fullmatch(node_of(name))
    return (found["kind"] or found[0]) if found else ""
