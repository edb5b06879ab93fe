"""``rlcircuits pairs``: which pairs of models there are, or how far the weights of one moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rlcircuits.cli import options
from rlcircuits.cli.options import option
from rlcircuits.extensions import provided

if TYPE_CHECKING:
    import pandas as pd


def pairs(
    pairs: Annotated[str | None, option(options.PAIRS, "FILE")] = None,
    weights: Annotated[
        str | None, option("how far each module of this pair moved, instead of the list", "NAME")
    ] = None,
    store: options.StoreFolder = "runs",
) -> None:
    """List the pairs of models: size, method, whether on this machine; or how far weights moved."""
    if weights is not None:
        _show_weights(weights, pairs, store)
        return
    from rlcircuits.models import pair_rows

    rows = pair_rows(pairs, store)
    columns = ("pair", "method", "base", "tuned", "parameters", "here")
    shown = [dict(zip(columns, columns, strict=True))]
    shown += [{**row, "parameters": _billions(row["parameters"])} for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in columns]
    for row in shown:
        print("  ".join(row[column].ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip())
    notes = [f"{row['pair']}: {row['note']}" for row in rows if row["note"]]
    for note in notes + [provider.note for provider in provided("rlcircuits.pairs").values()]:
        print(f"\n{note}")


def _billions(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


_SHARES = ["unchanged", "unchanged_bfloat16"]


def _by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Each layer's attention, MLP and whatever else it has: norms summed as squares, shares by the number of weights."""
    import numpy as np

    last = table["layer"].max()
    part = (
        table["module"].str.extract("(attn|attention|mlp)", expand=False).replace("attention", "attn").fillna("other")
    )
    outside = table["layer"].map({-1: "before", last: "after"})
    summed = table.assign(
        part=part.where(outside.isna(), table["module"]),
        norm=table["norm"] ** 2,
        change=table["change"] ** 2,
        **{share: table[share] * table["parameters"] for share in _SHARES},
    )
    columns = ["parameters", "norm", "change", *_SHARES]
    found = summed.groupby(["layer", "part"], sort=False)[columns].sum().reset_index()
    found[_SHARES] = found[_SHARES].div(found["parameters"], axis=0)
    found[["norm", "change"]] = np.sqrt(found[["norm", "change"]])
    found.insert(5, "relative", found["change"] / found["norm"])
    return found.assign(layer=[{-1: "before", last: "after"}.get(layer, str(layer)) for layer in found["layer"]])


def _show_weights(name: str, file: str | None, store: str) -> None:
    from rlcircuits.models import pair, weight_change

    table = weight_change(pair(name, file, store))
    print(_by_layer(table).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    share = (table["unchanged"] * table["parameters"]).sum() / table["parameters"].sum()
    print(f"\n{share:.2%} of {int(table['parameters'].sum()):,} weights are exactly what they were")
