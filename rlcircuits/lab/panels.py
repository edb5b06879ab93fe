"""Edges by name, kind and layer: the strongest of a matrix, and levels made of finer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits import figures
from rlcircuits.figures import NODE, node_of

KINDS = {"input": "input", "attention": "a", "MLP": "m", "logits": "logits"}


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
