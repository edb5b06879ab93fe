"""An edge removed little by little: the loss of every token of an answer, and a figure with a slider for it.

1. `removal_losses` runs the model again without a share of an edge, once for each edge, share and answer token: a loss that weighs
   one token alone is that token's own.
2. `removal_html` writes these numbers as a `<figure>`: a table for who reads without scripts, and the numbers for the slider
   that `book/removal.js` puts in the table's place.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from rlcircuits.attribution import Trace, ablate, attribute
from rlcircuits.errors import InputError


def removal_losses(
    model: Any, trace: Trace, edges: Sequence[str], shares: Sequence[float], cut: int | None = None
) -> xr.DataArray:
    """The loss of every answer token when a share of an edge is removed.

    Args:
        model: as for `rlcircuits.attribute`.
        trace: one prompt and answer.
        edges: names of block edges, such as ``"a0->m1"``.
        shares: of an edge that is removed, in [0, 1].
        cut: answer tokens that are scored; all when None.

    Returns:
        DataArray ``(edge, share, token)``, in nats, with the edges' scores W as the coordinate ``score``: by first order, removing a
        share s changes the mean over tokens by s · W.

    Raises:
        InputError: no edge, an edge that the model lacks, or a share out of range.
    """
    if not edges or not all(0 <= share <= 1 for share in shares):
        raise InputError("removal_losses: expected at least one edge, and shares from 0 to 1")
    scores = attribute(model, [trace], cut=cut, progress=False)[0]
    n = len(trace.answer[:cut])
    each = [Trace(f"{trace.problem}:{i}", trace.prompt, trace.answer[:n]) for i in range(n)]
    losses = np.empty((len(edges), len(shares), n))
    ends = [dict(zip(("source", "destination"), edge.split("->"))) for edge in edges]
    for at, share in enumerate(shares):
        effects = ablate(model, each, edges=edges, scale=share, loss=np.eye(n).tolist(), progress=False)
        for row, end in enumerate(ends):
            losses[row, at] = effects.loss + effects.sel(end)
    score = [float(scores.sel(end)) for end in ends]
    coords = {"edge": list(edges), "share": list(shares), "score": ("edge", score)}
    return xr.DataArray(losses, dims=("edge", "share", "token"), coords=coords)


def removal_html(losses: xr.DataArray, tokens: Sequence[str], name: str, caption: str) -> str:
    """A `<figure>` of `removal_losses` for a page that loads the book's `removal.js`.

    Args:
        losses: ``(edge, share, token)``, in nats.
        tokens: the answer's tokens as text.
        name: the figure's id, unique on its page.
        caption: what to see in it.

    Raises:
        InputError: tokens and losses of different number.
    """
    if len(tokens) != losses.sizes["token"]:
        raise InputError(
            f"removal_html: {len(tokens)} tokens and losses of {losses.sizes['token']}; expected one for each"
        )
    edges, shares = losses.edge.values.tolist(), losses.share.values.tolist()
    data = {
        "edges": edges,
        "shares": shares,
        "scores": [float(f"{score:.4g}") for score in losses.score.values],
        "tokens": list(tokens),
        "losses": [[[float(f"{loss:.4g}") for loss in row] for row in edge] for edge in losses.values],
    }
    # "<" stands only inside strings of JSON, where "\\u003c" is the same: no token can end the script it stands in.
    numbers = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    few = losses.mean("token")[:, :: max(1, (len(shares) - 1) // 4)]
    columns = "".join(f'<th scope="col">{share:.0%}</th>' for share in few.share.values)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(edge)}</th>{"".join(f"<td>{value:.2g}</td>" for value in row)}</tr>'
        for edge, row in zip(edges, few.values)
    )
    answer = html.escape(" ".join(tokens))
    return (
        f'<figure class="rlc-removal" id="{name}"><div class="rlc-removal-live"></div>'
        f"<details open><summary>The same as a table</summary><table><caption>Loss of the answer “{answer}” when a share of an edge "
        f'is removed, in nats per token</caption><thead><tr><th scope="col">edge</th>{columns}</tr></thead>'
        f'<tbody>{rows}</tbody></table></details><script type="application/json">{numbers}</script>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
