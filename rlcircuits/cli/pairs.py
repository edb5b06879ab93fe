"""``rlcircuits pairs``: which pairs of models there are, or how far the weights of one moved."""

from __future__ import annotations

from typing import Annotated

from rlcircuits.cli import options
from rlcircuits.cli.options import option
from rlcircuits.extensions import provided


def pairs(
    pairs: options.PairsFile = None,
    weights: Annotated[
        str | None, option("how far each module of this pair moved, instead of the list", "NAME")
    ] = None,
    store: options.StoreFolder = "runs",
) -> None:
    """List the pairs of models: size, method, whether on this machine; or how far weights moved."""
    if weights is not None:
        _show_weights(weights, pairs, store)
        return
    from rlcircuits.models import pair_table

    table = pair_table(pairs, store)
    shown = table.drop(columns="note").assign(parameters=[_billions(n) for n in table["parameters"]])
    print(shown.to_string(index=False))
    for row in table[table["note"] != ""].itertuples():
        print(f"\n{row.pair}: {row.note}")
    for provider in provided("rlcircuits.pairs").values():
        print(f"\n{provider.note}")


def _billions(number: object) -> str:
    import pandas as pd

    if number is None or pd.isna(number):
        return "?"
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _show_weights(name: str, file: str | None, store: str) -> None:
    from rlcircuits.models import pair, weight_change

    table = weight_change(pair(name, file, store))
    print(table.drop(columns="model").to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    share = (table["unchanged"] * table["parameters"]).sum() / table["parameters"].sum()
    print(f"\n{share:.2%} of {int(table['parameters'].sum()):,} weights are exactly what they were")
