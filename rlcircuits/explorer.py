"""The explorer: follow one problem through two models with a few clicks (ipywidgets).

1. Choose a pair, a problem (or the mean of all), the number k of edges, and which layers and kinds of edges
   to keep.
2. Read both answers token by token; the tokens whose loss is attributed stand out.
3. See the residual graph and the heatmap of base, tuned and their difference, and a table of the edges that
   differ most.

`explore` takes a study as `rlcircuits.study` makes it, or anything shaped like it. Where a part is missing
the explorer says which, and how to make it, and shows the rest. All text that a model or a data set wrote is
escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from rlcircuits import figures
from rlcircuits.display import PLOTLY
from rlcircuits.errors import InputError
from rlcircuits.figures import NODE, node_of

MEAN = "mean of all problems"
KINDS = {"input": "input", "attention": "a", "MLP": "m", "logits": "logits"}
ATTRIBUTE = "make them with rc.study(…) or rc.attribute(model, traces)"
GENERATE = "make them with rc.study(…) or rlcircuits.answers.generate(model, problems)"
MAKE = {
    "pairs": "the study holds no pair; make one with rc.study(pairs=[…], problems=…)",
    "base_scores": f"no edge scores of the base; {ATTRIBUTE}",
    "tuned_scores": f"no edge scores of the tuned model; {ATTRIBUTE}",
    "base_answers": f"no answers of the base; {GENERATE}",
    "tuned_answers": f"no answers of the tuned model; {GENERATE}",
    "problems": "no problems, so no questions; make the study with rc.study(pairs=[…], problems=…)",
    "tokenizer": "no tokenizer, so answers are shown whole; keep the base's checkpoint where the pair has it",
}


def explore(study: Any) -> Any:
    """The explorer of a study.

    Args:
        study: with ``pairs``, a dictionary from name to `PairStudy` (or to anything with some of its
            attributes); a single `PairStudy` is taken as a study of one pair.

    Returns:
        An ``ipywidgets.VBox`` to display; its attribute ``explorer`` is the `Explorer` with every control by
        name.
    """
    return Explorer(study).box


class Explorer:
    """The explorer's controls and views; changing a control's ``value`` redraws, with or without a browser.

    Attributes:
        box: all of it, an ``ipywidgets.VBox``.
        pair, problem, level: dropdowns. k: slider. layers: range slider. sources, destinations: dropdowns of
        kinds.
        message: what is missing. answers: both answers. largest: table of the largest differences, all
        ``HTML``.
        graph, heatmap: each a `View`; its ``figure`` is what it shows.
    """

    def __init__(self, study: Any) -> None:
        import ipywidgets as w

        self.pairs = _pairs(study)
        self._drawing = False
        wide = {"description_width": "90px"}
        self.pair = w.Dropdown(options=list(self.pairs), description="pair", style=wide)
        self.problem = w.Dropdown(
            options=[MEAN], description="problem", style=wide, layout={"width": "460px"}
        )
        self.level = w.Dropdown(options=["block"], description="level", style=wide)
        self.k = w.IntSlider(25, 1, 200, description="edges drawn", style=wide, continuous_update=False)
        self.layers = w.IntRangeSlider(
            value=(0, 0), min=0, max=0, description="layers", style=wide, continuous_update=False
        )
        kinds = ["all", *KINDS]
        self.sources = w.Dropdown(options=kinds[:-1], description="from", style=wide)
        self.destinations = w.Dropdown(options=["all", *kinds[2:]], description="into", style=wide)
        self.message, self.answers, self.largest = w.HTML(), w.HTML(), w.HTML()
        self.graph, self.heatmap = View(), View()
        rows = [self.pair, self.problem], [self.level, self.k], [self.layers, self.sources, self.destinations]
        # A row that is too wide for its page goes on below, so no control is out of sight.
        controls = w.VBox([w.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows])
        views = [self.answers, self.graph.widget, self.heatmap.widget, self.largest]
        self.box = w.VBox([controls, self.message, *views] if self.pairs else [self.message])
        self.box.explorer = self
        if not self.pairs:
            self.message.value = _notes([MAKE["pairs"]])
            return
        self.pair.observe(self._on_pair, "value")
        for control in (self.problem, self.level, self.k, self.layers, self.sources, self.destinations):
            control.observe(self._on_choice, "value")
        self._on_pair()

    def _on_pair(self, _change: Any = None) -> None:
        """Fill the controls with what the chosen pair has, then draw."""
        pair = self.pairs[self.pair.value]
        scores = [s for s in (_part(pair, "base_scores")[0], _part(pair, "tuned_scores")[0]) if s is not None]
        scored = [str(i) for i in scores[0]["sample"].values] if scores else []
        answered = [_part(pair, side)[0] or {} for side in ("base_answers", "tuned_answers")]
        others = [i for i in dict.fromkeys(str(i) for a in answered for i in a) if i not in set(scored)]
        questions = _part(pair, "problems")[0]
        self._drawing = True
        try:
            kept = self.problem.value
            options = [(_shorten(f"{i}: {_question(questions, i)}"), i) for i in scored]
            options += [(_shorten(f"{i} (not selected): {_question(questions, i)}"), i) for i in others]
            self.problem.options = [(MEAN, MEAN), *options]
            self.problem.value = kept if kept in [i for _, i in options] else MEAN
            self.level.options = _levels(scores[0]) if scores else ["block"]
            last = max((_layer(n) for n in scores[0]["source"].values), default=0) if scores else 0
            self.layers.max = max(last, 0)
            self.layers.value = (0, self.layers.max)
            if scores:
                n_edges = int(scores[0].notnull().any("sample").sum())
                self.k.max = max(1, min(200, n_edges))
        finally:
            self._drawing = False
        self._draw()

    def _on_choice(self, _change: Any = None) -> None:
        if not self._drawing:
            self._draw()

    def _draw(self) -> None:
        """Show the chosen problem of the chosen pair; what cannot be shown is said in `message`."""
        pair, notes = self.pairs[self.pair.value], []
        try:
            self.answers.value = _answers_html(pair, self.problem.value, notes)
            self._draw_scores(pair, notes)
        except InputError as error:
            self._clear()
            notes.append(str(error))
        self.message.value = _notes(notes)

    def _clear(self) -> None:
        self.graph.clear()
        self.heatmap.clear()
        self.largest.value = ""

    def _draw_scores(self, pair: Any, notes: list[str]) -> None:
        given = {}
        for name in ("base_scores", "tuned_scores"):
            scores, note = _part(pair, name)
            if scores is None:
                notes.append(note)
            else:
                given[name.removesuffix("_scores")] = self._filtered(scores)
        sample = None if self.problem.value == MEAN else self.problem.value
        if given and sample is not None:
            known = set(next(iter(given.values()))["sample"].values.astype(str))
            if sample not in known:
                notes.append(
                    f"problem {sample} was not selected, so it has no scores; "
                    "see selection.dropped for the rules"
                )
                given = {}
        if not given:
            self._clear()
            return
        names, arrays = list(given), list(given.values())
        shown = {"sample": sample, "names": names}
        self.graph.show(figures.residual_graph(*arrays, k=self.k.value, **shown))
        self.heatmap.show(figures.adjacency(*arrays, **shown))
        self.largest.value = _table_html(largest_differences(*arrays, **shown), two=len(arrays) == 2)

    def _filtered(self, scores: xr.DataArray) -> xr.DataArray:
        """Scores at the level shown, NaN on the edges that the layers and kinds chosen leave out."""
        scores = merged(scores) if self.level.value != _levels(scores)[0] else scores
        low, high = self.layers.value
        for dim, kind in (("source", self.sources.value), ("destination", self.destinations.value)):
            names = [str(n) for n in scores[dim].values]
            keep = [
                (kind == "all" or _kind(n) == KINDS[kind]) and (_layer(n) < 0 or low <= _layer(n) <= high)
                for n in names
            ]
            scores = scores.where(xr.DataArray(keep, dims=dim))
        return scores


class View:
    """A place for a figure: an ``Output`` that holds it in plotly's own form, drawn by JupyterLab and by the book.

    Attributes:
        widget: to put into the page.
        figure: the figure shown, None when there is none.
    """

    def __init__(self) -> None:
        import ipywidgets

        self.figure: go.Figure | None = None
        self.widget = ipywidgets.Output()

    def show(self, figure: go.Figure) -> None:
        """Replace what is shown by `figure`."""
        # The place keeps its height while one figure goes and the next is drawn, so nothing below it jumps.
        self.widget.layout.min_height = f"{figure.layout.height or 450}px"
        bundle = {PLOTLY: json.loads(figure.to_json()), "text/plain": figure.layout.title.text or "Figure"}
        self.widget.outputs = ({"output_type": "display_data", "data": bundle, "metadata": {}},)
        self.figure = figure

    def clear(self) -> None:
        """Show nothing."""
        self.widget.layout.min_height = None
        self.widget.outputs = ()
        self.figure = None


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
    matrices, sources, destinations = figures.panels_of(base, tuned, sample, names)
    values = list(matrices.values())
    rows, columns = np.nonzero(np.isfinite(values[-1]))
    order = np.argsort(-np.abs(values[-1][rows, columns]), kind="stable")[:n]
    rows, columns = rows[order], columns[order]
    table = {"edge": [f"{sources[i]}->{destinations[j]}" for i, j in zip(rows, columns, strict=True)]}
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


# --- parts of a study -----------------------------------------------------------------------------


def _pairs(study: Any) -> dict[str, Any]:
    """The study's pairs by name; none where there is nothing to show."""
    pairs = getattr(study, "pairs", None)
    if isinstance(pairs, Mapping):
        return {str(name): pair for name, pair in pairs.items()}
    if any(
        getattr(study, name, None) is not None for name in ("base_scores", "tuned_scores", "base_answers")
    ):
        return {str(getattr(getattr(study, "pair", None), "name", "pair")): study}
    return {}


def _part(pair: Any, name: str) -> tuple[Any, str]:
    """An attribute of the pair, or None and how to make it."""
    try:
        value = getattr(pair, name, None)
    except (InputError, OSError) as error:
        return None, f"{MAKE[name]} ({error})"
    return (None, MAKE[name]) if value is None else (value, "")


def _problem(problems: Any, problem: str) -> Any:
    """The problem with this id, from a mapping or a problem set."""
    if isinstance(problems, Mapping):
        return problems.get(problem)
    return next((p for p in problems or () if str(getattr(p, "id", None)) == problem), None)


def _question(problems: Any, problem: str) -> str:
    return str(getattr(_problem(problems, problem), "question", ""))


def _shorten(text: str, length: int = 80) -> str:
    text = " ".join(text.split()).removesuffix(":")
    return text if len(text) <= length else text[: length - 1] + "…"


def _levels(scores: xr.DataArray) -> list[str]:
    """Levels that can be shown: that of the scores, and what they sum to."""
    level = str(scores.attrs.get("level", "block"))
    return ["qkv", "block"] if level == "qkv" else [level]


def _layer(name: object) -> int:
    """Layer of a source or destination; −1 for the input, the logits and names that have none."""
    found = NODE.fullmatch(node_of(str(name)))
    return int(found["layer"]) if found and found["layer"] else -1


def _kind(name: str) -> str:
    found = NODE.fullmatch(node_of(name))
    return (found["kind"] or found[0]) if found else ""


# --- text -----------------------------------------------------------------------------------------


def escaped(text: object) -> str:
    """`text` for a page: shown as it is, whatever it holds."""
    return html.escape(str(text), quote=True)


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escaped(note)}</li>" for note in dict.fromkeys(notes))
    return f'<ul class="mathjax_ignore" style="color:#8a3b00">{items}</ul>' if items else ""


def _answers_html(pair: Any, problem: str, notes: list[str]) -> str:
    """The question, the reference and both answers token by token."""
    if problem == MEAN:
        return ""
    parts = []
    problems, note = _part(pair, "problems")
    found = _problem(problems, problem)
    if found is not None:
        parts.append(f"<p><b>{escaped(found.question)}</b><br>reference: {escaped(found.reference)}</p>")
    elif problems is None:
        notes.append(note)
    tokenizer, note = _part(pair, "tokenizer")
    if tokenizer is None:
        notes.append(note)
    cut = getattr(getattr(pair, "selection", None), "t_cut", None)
    for side in ("base", "tuned"):
        answers, note = _part(pair, f"{side}_answers")
        if answers is None:
            notes.append(note)
        elif (answer := answers.get(problem)) is None:
            notes.append(
                f"no answer of the {side} model to {problem}; make it with rlcircuits.answers.generate(…)"
            )
        else:
            losses = (getattr(pair, f"{side}_losses", None) or {}).get(problem)
            parts.append(_answer_html(side, answer, tokenizer, cut, losses))
    return f'<div class="mathjax_ignore tex2jax_ignore" style="line-height:1.9">{"".join(parts)}</div>'


def _answer_html(
    side: str, answer: Any, tokenizer: Any, cut: int | None, losses: Sequence[float] | None
) -> str:
    verdict = "correct" if answer.correct else "wrong"
    if tokenizer is None:
        return f"<p><b>{side}</b> ({verdict}): {escaped(answer.text.strip())}</p>"
    ids = list(answer.answer)
    spans = []
    for position, token in enumerate(ids):
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
    scored_tokens = f", first {min(cut, len(ids))} scored" if cut is not None else ""
    return f"<p><b>{side}</b> ({verdict}, {len(ids)} tokens{scored_tokens}): {' '.join(spans)}</p>"


def _table_html(table: pd.DataFrame, two: bool) -> str:
    if table.empty:
        return "<p>No edge is left by the layers and kinds chosen.</p>"
    title = "Largest differences (nats)" if two else "Strongest edges (nats)"
    head = "".join(f"<th style='padding:0 10px;text-align:right'>{escaped(c)}</th>" for c in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td style='padding:0 10px;text-align:right'>{escaped(cell)}</td>"
            for cell in (v if isinstance(v, str) else f"{v:.3g}" for v in row)
        )
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<p><b>{title}</b></p><table class="mathjax_ignore"><tr>{head}</tr>{rows}</table>'
