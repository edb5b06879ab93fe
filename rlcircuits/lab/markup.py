"""The explorer's text as HTML: questions, answers token by token, tables, one edge. All that a model or a data set
wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlcircuits.lab.panels import Shown
from rlcircuits.lab.parts import part, problem_of
from rlcircuits.lab.pictures import Dots, escaped, scatter_svg

LONGEST = 800
"""Tokens of an answer that are shown one by one; the rest is counted."""


def shorten(text: str, length: int = 80) -> str:
    """A text on one line, no longer than `length`."""
    text = " ".join(text.split()).removesuffix(":")
    return text if len(text) <= length else text[: length - 1] + "…"


def notes_html(notes: Sequence[str]) -> str:
    """What is missing, as a list; empty where nothing is."""
    items = "".join(f"<li>{escaped(note)}</li>" for note in dict.fromkeys(notes))
    return f'<ul class="mathjax_ignore" style="color:#8a3b00">{items}</ul>' if items else ""


def answers_html(pair: Any, problem: str, notes: list[str]) -> str:
    """The question, the reference and both answers token by token."""
    parts = []
    problems, note = part(pair, "problems")
    found = problem_of(problems, problem)
    if found is not None:
        parts.append(f"<p><b>{escaped(found.question)}</b><br>reference: {escaped(found.reference)}</p>")
    elif problems is None:
        notes.append(note)
    tokenizer, note = part(pair, "tokenizer")
    if tokenizer is None:
        notes.append(note)
    cut = getattr(getattr(pair, "selection", None), "t_cut", None)
    for side in ("base", "tuned"):
        answers, note = part(pair, f"{side}_answers")
        if answers is None:
            notes.append(note)
        elif (answer := answers.get(problem)) is None:
            notes.append(
                f"no answer of the {side} model to {problem}; make it with rlcircuits.answers.generation.generate(…)"
            )
        else:
            losses = (getattr(pair, f"{side}_losses", None) or {}).get(problem)
            parts.append(_answer_html(side, answer, tokenizer, cut, losses))
    return f'<div class="mathjax_ignore tex2jax_ignore" style="line-height:1.9">{"".join(parts)}</div>'


def _answer_html(side: str, answer: Any, tokenizer: Any, cut: int | None, losses: Sequence[float] | None) -> str:
    strict = getattr(answer, "strict", answer.correct)  # in a form made for answers
    verdict = ("correct" if strict else "correct, not strictly") if answer.correct else "wrong"
    if tokenizer is None:
        return f"<p><b>{side}</b> ({verdict}): {escaped(answer.text.strip())}</p>"
    ids = list(answer.answer)
    spans = []
    for position, token in enumerate(ids[:LONGEST]):
        scored = cut is None or position < cut
        loss = losses[position] if losses is not None and position < len(losses) else None
        title = f"token {position + 1}, id {token}" + (f", loss {loss:.3g} nats" if loss is not None else "")
        shade = "#ffe3a3" if scored else "#f0f0f0"
        if loss is not None:
            shade = f"rgba(230,159,0,{min(1.0, max(0.0, float(loss)) / 3):.2f})"
        border = "border-bottom:2px solid #0072B2;" if scored else ""
        spans.append(
            f'<span title="{escaped(title)}" style="background:{shade};{border}padding:1px 4px;margin:1px;'
            f'white-space:pre">{escaped(tokenizer.decode([token]))}</span>'
        )
    if len(ids) > LONGEST:
        spans.append(f"… {len(ids) - LONGEST:,} more")
    scored_tokens = f", first {min(cut, len(ids))} scored" if cut is not None else ""
    return f"<p><b>{side}</b> ({verdict}, {len(ids)} tokens{scored_tokens}): {' '.join(spans)}</p>"


def table_html(table: pd.DataFrame, two: bool, chosen: str = "") -> str:
    """The strongest edges; a click on a row chooses its edge."""
    if table.empty:
        return "<p>No edge is left by the layers and kinds chosen.</p>"
    title = "Largest differences (nats); click an edge" if two else "Strongest edges (nats); click one"
    head = "".join(f"<th style='padding:0 10px;text-align:right'>{escaped(c)}</th>" for c in table.columns)
    rows = "".join(
        f'<tr data-edge="{escaped(row[0])}" tabindex="0" '
        f'style="cursor:pointer{";background:#ffe3a3" if row[0] == chosen else ""}">'
        + "".join(
            f"<td style='padding:0 10px;text-align:right;white-space:nowrap'>{escaped(cell)}</td>"
            for cell in (v if isinstance(v, str) else f"{v:.3g}" for v in row)
        )
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<p><b>{title}</b></p><table class="mathjax_ignore tex2jax_ignore"><tr>{head}</tr>{rows}</table>'


def edge_html(
    edge: str, shown: Shown, scores: Sequence[np.ndarray], effects: pd.DataFrame | None, sample: str | None
) -> str:
    """One edge in numbers and pictures."""
    rows = []
    for name, values in zip(shown.names, scores, strict=True):
        said = f"{name}: score {values.mean():.3g} nats on average over {len(values)} problems"
        if sample is not None:
            said += f", {values[shown.samples.index(sample)]:.3g} on this one"
        if effects is not None:
            exact = effects[name].to_numpy(float)
            said += f"; exactly {np.nanmean(exact):.3g}"
            if sample is not None:
                said += f", {exact[shown.samples.index(sample)]:.3g} on this one"
        rows.append(f"<li>{escaped(said)}</li>")
    head = f"<p><b>Edge {escaped(edge)}</b></p><ul>{''.join(rows)}</ul>"
    pictures = "".join(_edge_pictures(edge, shown, scores, effects, sample))
    return f'<div class="mathjax_ignore tex2jax_ignore">{head}{pictures}</div>'


def _edge_pictures(
    edge: str, shown: Shown, scores: Sequence[np.ndarray], effects: pd.DataFrame | None, sample: str | None
) -> Iterator[str]:
    """Its scores base against tuned, and against what removing it does, a dot for each problem."""
    if len(scores) == 2:
        dots = [Dots("problems", scores[0], scores[1], shown.samples)]
        title = f"{edge}: score on each problem"
        yield scatter_svg(dots, title, "base (nats)", "tuned (nats)", "no change", sample)
    if effects is not None:
        dots = [
            Dots(name, values, effects[name].to_numpy(float), shown.samples)
            for name, values in zip(shown.names, scores, strict=True)
        ]
        title, y = "What removing it really does", "loss without it − loss (nats)"
        yield scatter_svg(dots, title, "score (nats)", y, "exact = score", sample)


def saved_html(path: Path, more: str) -> str:
    """That something was saved, and where."""
    return f'<span class="mathjax_ignore">saved: {escaped(path)}{escaped("; " + more if more else "")}</span>'
