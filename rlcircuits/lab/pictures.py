"""The explorer's pictures as SVG: drawn anew with every click, so they must cost a page almost nothing.

1. A picture is text: lines, dots and cells with a ``<title>`` that browsers show on hovering. A page takes it in within
   milliseconds, where a plotly figure with three panels takes some hundred.
2. What stands for an edge carries its name as ``data-edge``, so that a click on it can be told from a click beside it.
3. Places, colours and the range of colours are those of `rlcircuits.figures`; below zero is also dashed, for eyes that
   do not tell the colours apart.
4. The number of elements is bounded: k edges a panel, and a matrix of more than `MOST_CELLS` cells is one image.
5. All text is escaped. Model text also carries the class that keeps MathJax away.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlcircuits.figures import (
    DIVERGING,
    NEGATIVE,
    NEUTRAL,
    NO_EDGE,
    PALETTE,
    POSITIVE,
    SignedLog,
    has_heads,
    node_of,
    node_places,
    robust_range,
)

MOST_CELLS = 2500
PANEL = 330
STYLE = f"""
.rlc-svg text{{font:12px "Source Sans Pro","Segoe UI",Helvetica,Arial,sans-serif;fill:#222}}
.rlc-svg .rlc-name{{font-size:14px}} .rlc-svg .rlc-quiet{{fill:#555}} .rlc-svg .rlc-small{{font-size:9px}}
.rlc-e{{cursor:pointer}} .rlc-e path{{fill:none;stroke-width:1.5;opacity:.6}}
.rlc-e .rlc-hit{{stroke-width:9;opacity:0;stroke-dasharray:none}}
.rlc-pos path{{stroke:{POSITIVE}}} .rlc-pos circle{{fill:{POSITIVE}}}
.rlc-neg path{{stroke:{NEGATIVE};stroke-dasharray:6 3}} .rlc-neg circle{{fill:{NEGATIVE}}}
.rlc-e:hover path,.rlc-e.rlc-chosen path{{stroke-width:4;opacity:1}}
.rlc-e:hover .rlc-hit,.rlc-e.rlc-chosen .rlc-hit{{stroke-width:9;opacity:0}}
.rlc-e.rlc-chosen circle{{stroke:#000;stroke-width:2}}
.rlc-cell{{cursor:pointer}} .rlc-cell:hover,.rlc-cell.rlc-chosen{{stroke:#000;stroke-width:2}}
"""


def escaped(text: object) -> str:
    """`text` for a page: shown as it is, whatever it holds."""
    return html.escape(str(text), quote=True)


def graph_svg(
    panels: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str], k: int, chosen: str = ""
) -> str:
    """The residual graph, input below and logits above, with each panel's `k` strongest edges.

    Args:
        panels: name to scores in nats, ``(source, destination)``; NaN edges are not drawn.
        k: edges drawn in a panel.
        chosen: an edge to stand out, ``"source->destination"``; it is drawn even where it is not among the strongest.
    """
    places, ticks = node_places([*sources, *destinations])
    top = max((y for _, y in places.values()), default=1.0) or 1.0
    unit = min(46 if has_heads(places) else 30, 1000 / top)
    left, above, height = 66, 44, top * unit
    reach = 1.45 if has_heads(places) else 0.85
    at = {node: np.array([(x / reach + 1) / 2 * PANEL, above + (top - y) * unit]) for node, (x, y) in places.items()}
    parts = [
        f'<text class="rlc-quiet" x="{left - 8}" y="{above + (top - y) * unit + 4:.0f}" '
        f'text-anchor="end">{escaped(t)}</text>'
        for y, t in ticks
    ]
    for column, (name, matrix) in enumerate(panels.items()):
        edges = _strongest_edges(matrix, k, chosen, sources, destinations)
        drawn = [_edge(i, j, matrix, edges, at, panels, sources, destinations, chosen) for i, j in edges]
        word = (
            ""
            if drawn
            else f'<text x="{PANEL / 2}" y="{above + height / 2}" text-anchor="middle">no edge to show</text>'
        )
        title = f'<text class="rlc-name" x="{PANEL / 2}" y="20" text-anchor="middle">{escaped(name)}</text>'
        parts.append(
            f'<g transform="translate({left + column * PANEL},0)">{title}{word}{"".join(drawn)}{_nodes(at)}</g>'
        )
    said = f"Residual graph with the {k} strongest edges of {', '.join(panels)}"
    return _svg(left + PANEL * len(panels), above + height + 26, said, parts)


def _strongest_edges(
    matrix: np.ndarray, k: int, chosen: str, sources: Sequence[str], destinations: Sequence[str]
) -> list[tuple[int, int]]:
    """Rows and columns of the `k` largest |score|, weakest first so that the strongest lie above, then the chosen
    edge.
    """
    sizes = np.abs(np.where(np.isfinite(matrix), matrix, 0.0)).ravel()
    k = min(k, int(np.count_nonzero(sizes)))
    if not k:
        return []
    flat = np.argpartition(-sizes, k - 1)[:k]
    flat = flat[np.lexsort((flat, -sizes[flat]))][::-1]
    edges = [tuple(divmod(int(f), matrix.shape[1])) for f in flat]
    source, _, destination = chosen.partition("->")
    if source in sources and destination in destinations:
        edge = (list(sources).index(source), list(destinations).index(destination))
        if np.isfinite(matrix[edge]):
            edges = [one for one in edges if one != edge] + [edge]
    return edges


def _edge(
    i: int,
    j: int,
    matrix: np.ndarray,
    edges: Sequence[tuple[int, int]],
    at: Mapping[str, np.ndarray],
    panels: Mapping[str, np.ndarray],
    sources: Sequence[str],
    destinations: Sequence[str],
    chosen: str,
) -> str:
    """One edge: a curve that swings out to its own side, with a dot in its middle that grows with |score|."""
    start, end = at[node_of(sources[i])], at[node_of(destinations[j])]
    side = 1.0 if start[0] + end[0] > PANEL else -1.0
    control = (start + end) / 2
    control[0] = np.clip(control[0] + side * 0.09 * abs(end[1] - start[1]), 6, PANEL - 6)
    middle = start / 4 + control / 2 + end / 4
    largest = max(abs(matrix[e]) for e in edges) or 1.0
    name = f"{sources[i]}->{destinations[j]}"
    kind = ("rlc-pos" if matrix[i, j] >= 0 else "rlc-neg") + (" rlc-chosen" if name == chosen else "")
    line = f"M{start[0]:.0f} {start[1]:.0f}Q{control[0]:.0f} {control[1]:.0f} {end[0]:.0f} {end[1]:.0f}"
    radius = 2 + 6 * math.sqrt(abs(matrix[i, j]) / largest)
    return (
        f'<g class="rlc-e {kind}" '
        f'data-edge="{escaped(name)}"><title>{_said(i, j, panels, sources, destinations)}</title><path '
        f'd="{line}"/><path class="rlc-hit" d="{line}"/><circle cx="{middle[0]:.0f}" cy="{middle[1]:.0f}" '
        f'r="{radius:.1f}"/></g>'
    )


def _said(i: int, j: int, panels: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str]) -> str:
    """What hovering over an edge says: its name and its score in every panel."""
    scores = "".join(f"\n{name}: {matrix[i, j]:.3g} nats" for name, matrix in panels.items())
    return escaped(f"{sources[i]} → {destinations[j]}{scores}")


def _nodes(at: Mapping[str, np.ndarray]) -> str:
    crowded = len(at) > 60
    found = []
    for node, (x, y) in at.items():
        label = node.rpartition(".")[2] if "." in node else node
        shape = f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{3.5 if crowded else 11}" fill="#fff" stroke="#555"/>'
        size = "" if len(label) < 4 else ' class="rlc-small"'
        text = (
            "" if crowded else f'<text{size} x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escaped(label)}</text>'
        )
        found.append(f"<g><title>{escaped(node)}</title>{shape}{text}</g>")
    return f'<g pointer-events="{"all" if crowded else "none"}">{"".join(found)}</g>'


def heatmap_svg(
    panels: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str], chosen: str = ""
) -> str:
    """Every edge score, sources by destinations; grey where there is no edge.

    The first two panels share their colours' range, the difference has its own: the 98th percentile of |score|.
    """
    rows, columns = len(sources), len(destinations)
    cell = max(1.0, min(26.0, 250 / max(rows, columns)))
    left, above, wide, high = 74, 34, cell * columns, cell * rows
    matrices = list(panels.values())
    reaches = [robust_range(matrices[2:] if number == 2 else matrices[:2]) for number in range(len(matrices))]
    step = max(1, math.ceil(13 / cell))
    gap = 66
    parts = [
        f'<text class="rlc-quiet" x="{left - 6}" y="{above + (i + 0.5) * cell + 4:.0f}" '
        f'text-anchor="end">{escaped(sources[i])}</text>'
        for i in range(0, rows, step)
    ]
    for number, (name, matrix) in enumerate(panels.items()):
        reach = reaches[number]
        scale = f'<tspan class="rlc-quiet">±{reach:.2g} nats</tspan>'
        title = f'<text class="rlc-name" x="0" y="16">{escaped(name)} {scale}</text>'
        marks = "".join(
            f'<text class="rlc-quiet" transform="translate({(j + 0.5) * cell + 4:.0f},{above + high + 6:.0f}) '
            f'rotate(-60)" text-anchor="end">{escaped(destinations[j])}</text>'
            for j in range(0, columns, step)
        )
        body = _cells if rows * columns <= MOST_CELLS else _image
        drawn = body(matrix, reach, cell, above, panels, sources, destinations, chosen)
        parts.append(f'<g transform="translate({left + number * (wide + gap):.0f},0)">{title}{drawn}{marks}</g>')
    said = f"Heatmaps of edge scores, sources by destinations: {', '.join(panels)}"
    return _svg(left + len(panels) * (wide + gap), above + high + 62, said, parts)


def _colours(matrix: np.ndarray, reach: float) -> np.ndarray:
    """RGB of each score, uint8 ``(source, destination, 3)``."""
    stops = np.array([at for at, _ in DIVERGING])
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for _, c in DIVERGING], float)
    place = np.clip((np.nan_to_num(matrix) / reach + 1) / 2, 0, 1)
    found = np.stack([np.interp(place, stops, colours[:, channel]) for channel in range(3)], axis=-1)
    found[~np.isfinite(matrix)] = [int(NO_EDGE[i : i + 2], 16) for i in (1, 3, 5)]
    return found.round().astype(np.uint8)


def _cells(
    matrix: np.ndarray,
    reach: float,
    cell: float,
    above: float,
    panels: Mapping[str, np.ndarray],
    sources: Sequence[str],
    destinations: Sequence[str],
    chosen: str,
) -> str:
    colours = _colours(matrix, reach)
    high, wide = (cell * n for n in matrix.shape)
    found = [f'<rect x="0" y="{above}" width="{wide:.1f}" height="{high:.1f}" fill="{NO_EDGE}"/>']
    for i, j in np.argwhere(np.isfinite(matrix)):
        name = f"{sources[i]}->{destinations[j]}"
        kind = "rlc-cell rlc-chosen" if name == chosen else "rlc-cell"
        found.append(
            f'<rect class="{kind}" data-edge="{escaped(name)}" x="{j * cell:.1f}" y="{above + i * cell:.1f}" '
            f'width="{cell:.1f}" height="{cell:.1f}" '
            f'fill="#{colours[i, j].tobytes().hex()}">'
            f"<title>{_said(i, j, panels, sources, destinations)}</title></rect>"
        )
    return "".join(found)


def _image(matrix: np.ndarray, reach: float, cell: float, above: float, *_rest: object) -> str:
    high, wide = (cell * n for n in matrix.shape)
    data = base64.b64encode(png(_colours(matrix, reach))).decode()
    return (
        f'<image x="0" y="{above}" width="{wide:.1f}" height="{high:.1f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def png(rgb: np.ndarray) -> bytes:
    """A PNG of an image, uint8 ``(row, column, 3)``."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, columns, _ = rgb.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), rgb.reshape(rows, -1)], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Dots:
    """One series of a scatter.

    Attributes:
        name: for the legend.
        x, y: values, ``(problem,)``.
        labels: the problems.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    labels: Sequence[str]


def scatter_svg(
    series: Sequence[Dots],
    title: str,
    x_title: str,
    y_title: str,
    line: str,
    chosen: str | None = None,
    size: int = 300,
) -> str:
    """Dots on equal axes with the line y = x; the chosen problem stands out.

    Where a few values are far larger than the others, both axes are logarithmic away from 0 and say so.

    Args:
        line: what the line says.
        chosen: a label.
    """
    both = np.concatenate([np.concatenate([s.x, s.y]) for s in series] or [np.zeros(1)])
    both = np.append(both[np.isfinite(both)], 0.0)
    scale = SignedLog(both, both) if _spread_out(both) else None
    on_axis = scale if scale is not None else np.asarray
    low, high = on_axis(both).min(), on_axis(both).max()
    pad = 0.06 * (high - low) or 1e-6
    low, high = low - pad, high + pad
    ticks = _ticks(low, high) if scale is None else [t for t in scale.ticks() if low <= scale([t])[0] <= high]
    left, above = 70, 48

    def place(values: np.ndarray | float) -> Any:
        return (on_axis(np.asarray(values, float)) - low) / (high - low) * size

    parts = [f'<text class="rlc-name" x="4" y="18">{escaped(title)}</text>']
    frame = [f'<rect x="0" y="0" width="{size}" height="{size}" fill="none" stroke="#9a9a9a"/>']
    for tick in ticks:
        p = place(tick)
        frame.append(
            f'<line x1="{p:.1f}" x2="{p:.1f}" y1="0" y2="{size}" stroke="#e3e3e3"/><line x1="0" x2="{size}" '
            f'y1="{size - p:.1f}" y2="{size - p:.1f}" stroke="#e3e3e3"/><text class="rlc-quiet" x="{p:.1f}" '
            f'y="{size + 15}" text-anchor="middle">{tick:.3g}</text><text class="rlc-quiet" x="-6" '
            f'y="{size - p + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        )
    frame.append(
        f'<line x1="0" y1="{size}" x2="{size}" y2="0" stroke="{NEUTRAL}" stroke-dasharray="5 '
        f'4"><title>{escaped(line)}</title></line>'
    )
    legend = []
    for number, one in enumerate(series):
        colour = PALETTE[number]
        for x, y, label in zip(one.x, one.y, one.labels, strict=True):
            if not (np.isfinite(x) and np.isfinite(y)):
                continue
            found = label == chosen
            at = f'transform="translate({place(x):.1f},{size - place(y):.1f})"'
            radius = 7 if found else 4
            shape = (
                f'<circle r="{radius}"'
                if number == 0
                else f'<rect x="{-radius}" y="{-radius}" width="{2 * radius}" height="{2 * radius}"'
            )
            said = escaped(f"{label}, {one.name}: {x:.3g}, {y:.3g} nats")
            edge = ' stroke="#000" stroke-width="2"' if found else ""
            frame.append(
                f'<g {at} class="rlc-dot">{shape} fill="{colour}" '
                f'fill-opacity="{1 if found else 0.55}"{edge}/><title>{said}</title></g>'
            )
        legend.append(f'<tspan fill="{colour}">{"●" if number == 0 else "■"} {escaped(one.name)}</tspan>')
    parts.append(
        f'<text x="4" y="36">{"   ".join(legend)}   <tspan class="rlc-quiet">- - '
        f"{escaped(line)}{'; axes logarithmic away from 0' if scale else ''}</tspan></text>"
    )
    parts.append(f'<g transform="translate({left},{above})">{"".join(frame)}</g>')
    middle = above + size / 2
    parts.append(f'<text x="{left + size / 2}" y="{above + size + 36}" text-anchor="middle">{escaped(x_title)}</text>')
    parts.append(f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escaped(y_title)}</text>')
    return _svg(left + size + 24, above + size + 48, f"{title}: {x_title} against {y_title}", parts)


def _spread_out(values: np.ndarray) -> bool:
    """Whether most values would lie on top of each other on a linear axis: the median size is below a twentieth of the
    largest.
    """
    sizes = np.abs(values[values != 0])
    return sizes.size > 2 and bool(np.median(sizes) < sizes.max() / 20)


def _ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def _svg(width: float, height: float, said: str, parts: Sequence[str]) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="rlc-svg mathjax_ignore tex2jax_ignore" role="img" '
        f'aria-label="{escaped(said)}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'style="max-width:100%;height:auto;background:#fff"><style>{STYLE}</style><rect width="100%" height="100%" '
        f'fill="#fff"/>{"".join(parts)}</svg>'
    )
