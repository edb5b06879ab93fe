"""What the viewer is given: a study as one JSON document.

1. For each pair, what there is to choose: its problems, the levels at hand, its layers.
2. For each pair its texts: questions, references, and both models' answers as indices into the tokens that occur.
3. For each pair and level its scores: one number for each problem, edge and model. Arrays are base64 of little-endian
   bytes; as float32 while they fit the room there is, then as float16 of a scaled array (3 digits), then of the
   strongest edges only, which the document says.
4. Beside the scores, further measures of the same edges where the caller has them: exact effects, what another model's
   message does.

`rlcircuits.lab.page` puts the document into a page, `rlcircuits.lab.explorer` sends it to JupyterLab and computes what
it lacks. All text stays data: the viewer makes text nodes of it, never markup.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from rlcircuits import figures
from rlcircuits.errors import InputError, choose
from rlcircuits.figures import has_heads, node_of, node_places
from rlcircuits.lab.panels import KINDS, kind_of, layer_of, merged
from rlcircuits.lab.parts import levels_of, pairs_of, part, problem_of, question_of

FORMAT = 1
ROOM = 3_000_000
"""Bytes of scores in a document, before base64 makes 4 of 3."""
LONGEST = 800
"""Tokens of an answer that are shown one by one; the rest is counted."""
SIDES = ("base", "tuned")
MEAN = "mean of all problems"

Measures = Mapping[str, Mapping[str, Mapping[str, xr.DataArray]]]


def document(study: Any, more: Measures | None = None, room: int = ROOM) -> dict[str, Any]:
    """The whole study for a viewer without a kernel, as JSON values.

    Args:
        study: as for `rlcircuits.explore`.
        more: further measures of the edges: by pair, by name of the measure, by model, arrays with the dimensions
            ``(sample, source, destination)`` or ``(source, destination)``.
        room: bytes of scores of all pairs together.

    Raises:
        InputError: two models' scores that cannot be paired, or a measure that is none of this study.
    """
    pairs = pairs_of(study)
    for name in more or {}:
        choose("pair in more", name, pairs)
    told: dict[str, Any] = {"rlcircuits viewer": FORMAT, "alpha": alpha_of(study), "computes": False, "notes": []}
    told |= {"pairs": [summary(name, pair) for name, pair in pairs.items()], "scores": [], "texts": {}}
    share = room // max(1, sum(len(one["levels"]) for one in told["pairs"]))
    for one in told["pairs"]:
        name, pair = one["name"], pairs[one["name"]]
        told["texts"][name] = texts(pair)
        for level in one["levels"]:
            measures = (more or {}).get(name, {}) if level == one["levels"][0] else {}
            told["scores"].append({"pair": name, **scores(pair, level, alpha_of(study), measures, share)})
    return told


def alpha_of(study: Any) -> float | None:
    """The share of an answer that is scored; None where the study does not say."""
    alpha = getattr(study, "alpha", None)
    return None if alpha is None else float(alpha)


def summary(name: str, pair: Any) -> dict[str, Any]:
    """What there is to choose of a pair: problems as ``[id, question, scored]``, levels, the last layer; what is missing."""
    found = [part(pair, f"{side}_scores") for side in SIDES]
    known, notes = [s for s, _ in found if s is not None], [note for s, note in found if s is None]
    if len(known) == 2:
        try:
            figures.paired_shown(*known)
        except InputError as error:
            notes, known = [str(error)], []
    scored = [str(i) for i in known[0]["sample"].values] if known else []
    answered = [part(pair, f"{side}_answers")[0] or {} for side in SIDES]
    others = [i for i in dict.fromkeys(str(i) for a in answered for i in a) if i not in set(scored)]
    problems = part(pair, "problems")[0]
    last = max((layer_of(n) for n in known[0]["source"].values), default=0) if known else 0
    models = getattr(pair, "pair", None)
    return {
        "name": name,
        "models": {side: str(getattr(models, side, "")) for side in SIDES},
        "method": str(getattr(models, "method", "") or ""),
        "problems": [[i, shorten(question_of(problems, i)), i in set(scored)] for i in (*scored, *others)],
        "levels": levels_of(known[0]) if known else [],
        "layers": max(last, 0),
        "notes": notes,
    }


def texts(pair: Any) -> dict[str, Any]:
    """Questions, references and answers of a pair, token by token where it has a tokenizer."""
    notes: list[str] = []

    def asked(name: str) -> Any:
        value, note = part(pair, name)
        if value is None:
            notes.append(note)
        return value

    problems, tokenizer = asked("problems"), asked("tokenizer")
    answers = {side: {str(i): a for i, a in (asked(f"{side}_answers") or {}).items()} for side in SIDES}
    shown = list(dict.fromkeys(i for one in answers.values() for i in one))
    found = {i: problem_of(problems, i) for i in shown}
    ids = sorted({int(t) for one in answers.values() for a in one.values() for t in a.answer[:LONGEST]})
    index = {token: place for place, token in enumerate(ids)}
    told: dict[str, Any] = {
        "questions": {i: [str(p.question), str(p.reference)] for i, p in found.items() if p is not None},
        "longest": LONGEST,
        "ids": ids,
        "tokens": None if tokenizer is None else [str(tokenizer.decode([token])) for token in ids],
        "notes": notes,
    }
    for side, given in answers.items():
        flat = [index[int(t)] for a in given.values() for t in a.answer[:LONGEST]]
        told[side] = {
            "of": list(given),
            "correct": [bool(a.correct) for a in given.values()],
            "strict": [bool(getattr(a, "strict", a.correct)) for a in given.values()],
            "lengths": [len(a.answer) for a in given.values()],
            "answers": packed(np.array(flat), "u4" if len(ids) > 0xFFFF else "u2"),
        }
        if tokenizer is None:
            told[side]["texts"] = [a.text.strip() for a in given.values()]
    return told


def scores(
    pair: Any, level: str, alpha: float | None, more: Mapping[str, Mapping[str, xr.DataArray]], room: int
) -> dict[str, Any]:
    """A pair's edges, their scores and further measures of them, in `room` bytes.

    Raises:
        InputError: models that cannot be paired, or a measure of other edges.
    """
    given = {}
    for side in SIDES:
        if (one := part(pair, f"{side}_scores")[0]) is not None:
            own = str(one.attrs.get("level", "block"))
            given[side] = merged(one) if level != own and level in levels_of(one) else one
    arrays = [one.transpose("sample", "source", "destination") for one in given.values()]
    if len(arrays) == 2:
        arrays = list(figures.paired_shown(*arrays))
    first = arrays[0]
    samples, sources, destinations = ([str(n) for n in first[d].values] for d in first.dims)
    measures = {"score": dict(zip(given, arrays, strict=True))}
    for name, panels in more.items():
        measures[name] = {panel: _aligned(name, one, first) for panel, one in panels.items()}
    rows, columns, sizes = strongest(arrays)
    shown = [one for panels in measures.values() for one in panels.values()]
    kind, kept = _fitting(len(rows), [len(samples) * (one.ndim == 3) for one in shown], room)
    total = len(rows)
    order = np.sort(np.argsort(-sizes, kind="stable")[:kept])
    rows, columns = rows[order], columns[order]
    places, ticks = node_places([*sources, *destinations])
    index = {node: place for place, node in enumerate(places)}
    cut = getattr(getattr(pair, "selection", None), "t_cut", None)
    kinds = {value: name for name, value in KINDS.items()}
    return {
        "level": level,
        "alpha": alpha,
        "cut": None if cut is None else int(cut),
        "samples": samples,
        "nodes": [[n, x, y, layer_of(n), kinds.get(kind_of(n), "")] for n, (x, y) in places.items()],
        "ticks": [list(tick) for tick in ticks],
        "heads": has_heads(places),
        "sources": [[name, index[node_of(name)]] for name in sources],
        "destinations": [[name, index[node_of(name)]] for name in destinations],
        "rows": packed(rows, "u2"),
        "columns": packed(columns, "u2"),
        "total": total,
        "measures": [
            {"name": name, "panels": [_panel(panel, one, rows, columns, kind) for panel, one in panels.items()]}
            for name, panels in measures.items()
        ],
        "losses": {side: _losses(getattr(pair, f"{side}_losses", None), samples) for side in given},
    }


def strongest(arrays: Sequence[xr.DataArray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the edges there are, and the largest |mean| of each in one model or in their difference."""
    means = [a.values.sum(axis=0, dtype=np.float64) / max(1, a.sizes["sample"]) for a in arrays]
    if len(means) == 2:
        means.append(means[1] - means[0])
    rows, columns = np.nonzero(np.isfinite(means[0]))
    return rows, columns, np.max([np.abs(mean[rows, columns]) for mean in means], axis=0)


def _fitting(n_edges: int, values: Sequence[int], room: int) -> tuple[str, int]:
    """Type of the numbers and how many edges fit, for so many `values` of an edge in each array beside its mean."""
    for kind, size in (("f4", 4), ("f2", 2)):
        each = sum(4 + size * n for n in values) + 4
        if n_edges * each <= room:
            return kind, n_edges
    return "f2", min(n_edges, max(1, room // each))


def _aligned(name: str, one: xr.DataArray, first: xr.DataArray) -> xr.DataArray:
    """A measure in the order of the scores; NaN where it was not taken."""
    if not {"source", "destination"} <= set(one.dims) or not set(one.dims) <= set(first.dims):
        expected = "('source', 'destination'), with or without 'sample'"
        raise InputError(f"measure {name!r} has the dimensions {tuple(one.dims)}: expected {expected}")
    dims = [d for d in first.dims if d in one.dims]
    if any(not set(map(str, one[d].values)) & set(map(str, first[d].values)) for d in dims):
        raise InputError(f"measure {name!r} is of other problems or another graph than the scores")
    one = one.assign_coords({d: [str(n) for n in one[d].values] for d in dims})
    return one.reindex({d: [str(n) for n in first[d].values] for d in dims}).transpose(*dims)


def _panel(name: str, one: xr.DataArray, rows: np.ndarray, columns: np.ndarray, kind: str) -> dict[str, Any]:
    values = one.values[..., rows, columns].astype(np.float64)
    told: dict[str, Any] = {"name": name}
    if values.ndim == 2:
        told["each"] = packed(values, kind)
        counts = np.isfinite(values).sum(axis=0)
        values = np.where(counts, np.nansum(values, axis=0), np.nan) / np.maximum(1, counts)
    return told | {"mean": packed(values, "f4")}


def _losses(losses: Mapping[str, Sequence[float]] | None, samples: Sequence[str]) -> dict[str, Any] | None:
    """The losses of the samples' tokens one after another, with how many there are of each."""
    if not losses:
        return None
    found = [np.asarray(losses.get(i, ()), float)[:LONGEST] for i in samples]
    return {"lengths": [len(one) for one in found], "values": packed(np.concatenate(found), "f2")}


def packed(values: np.ndarray, kind: str) -> dict[str, Any]:
    """An array as base64 of little-endian numbers of a kind, ``f4``, ``f2``, ``u2`` or ``u4``.

    Half floats hold values / scale, where the largest becomes 2^15: what is 10^-9 of the largest is still told from 0.
    """
    told: dict[str, Any] = {"type": kind, "shape": list(values.shape)}
    if kind == "f2":
        sizes = np.abs(values[np.isfinite(values)])
        scale = float(sizes.max(initial=0.0)) / 2**15 or 1.0
        values, told["scale"] = values / scale, scale
    return told | {"data": base64.b64encode(np.ascontiguousarray(values, "<" + kind).tobytes()).decode()}


def shorten(text: str, length: int = 80) -> str:
    """A text on one line, no longer than `length`."""
    text = " ".join(text.split()).removesuffix(":")
    return text if len(text) <= length else text[: length - 1] + "…"
