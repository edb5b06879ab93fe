"""How results look as the last line of a cell, and what the Tab key knows of them.

1. `register` tells IPython how to show a `Study`, a `PairStudy`, a `Selection`, a `Graph` and scores: a title, a few
   facts and a small table. It names types by their modules, so nothing is imported for it. The Tab key learns the names
   that functions choose from (`rlcircuits.lab.completion`).
2. Scores stay an ``xarray.DataArray``; `rlcircuits.metrics.Edges`, the accessor ``scores.rlc``, is what a DataArray
   lacks: its edges by name (``scores.rlc["a0->m1"]``, completed by Tab) and its strongest ones.
3. All text is escaped, and kept from MathJax.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcircuits.lab import completion as completion

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from rlcircuits.attribution import Graph


def register(ipython: Any) -> None:
    """Tell an IPython shell how to show this package's types."""
    formatter = ipython.display_formatter.formatters["text/html"]
    formatter.for_type_by_name("rlcircuits.studies.pipeline", "Study", study_html)
    formatter.for_type_by_name("rlcircuits.studies.pipeline", "PairStudy", pair_html)
    formatter.for_type_by_name("rlcircuits.answers.selection", "Selection", selection_html)
    formatter.for_type_by_name("rlcircuits.attribution.graph", "Graph", graph_html)
    formatter.for_type_by_name("xarray.core.dataarray", "DataArray", scores_html)
    completion.register(ipython)


def card(title: str, facts: Mapping[str, object], *tables: str) -> str:
    """A title, facts and tables (HTML already) as one block."""
    cells = "".join(
        f'<tr><td style="text-align:left;color:#555">{_text(name)}</td><td '
        f'style="text-align:left">{_text(value)}</td></tr>'
        for name, value in facts.items()
    )
    return (
        f'<div class="mathjax_ignore tex2jax_ignore"><b>{_text(title)}</b><table>{cells}</table>{"".join(tables)}</div>'
    )


def table_html(table: pd.DataFrame) -> str:
    """A table with few digits, escaped."""
    from rlcircuits.lab.display import digits

    return digits(table).to_html(escape=True, border=0)


def study_html(study: Any) -> str:
    """A study: its settings, and one line for each pair."""
    import pandas as pd

    rows = {}
    for name, one in study.pairs.items():
        (before, after), strictly = one.accuracy, one.strict_accuracy
        rows[name] = {
            "method": one.pair.method,
            "accuracy, base (strictly)": f"{before:.1%} ({strictly[0]:.1%})",
            "accuracy, tuned (strictly)": f"{after:.1%} ({strictly[1]:.1%})",
            "problems": len(one.selection.problems),
            "T_cut": one.selection.t_cut,
        }
    facts = {"level": study.level, "α": study.alpha, "drawn": f"at most {study.n}, seed {study.seed}"}
    hint = f"<p>{_text('study.report() is everything on a pair, study.table() compares, rc.explore(study) explores, study[name] is one pair')}</p>"
    return card(
        f"Study of {len(rows)} pair{'s' * (len(rows) != 1)}",
        facts,
        table_html(pd.DataFrame.from_dict(rows, orient="index")),
        hint,
    )


def pair_html(one: Any) -> str:
    """A pair: the models, the selection, and the metrics compared."""
    from rlcircuits.lab.display import comparison

    (before, after), strictly = one.accuracy, one.strict_accuracy
    facts = {
        "base": one.pair.base,
        "tuned": f"{one.pair.tuned} ({one.pair.method})",
        "accuracy": f"{before:.1%} → {after:.1%}",
        "accuracy, strictly": f"{strictly[0]:.1%} → {strictly[1]:.1%}",
        "selected": f"{len(one.selection.problems)} of {len(one.base_answers)} problems, first {one.selection.t_cut} "
        "tokens scored",
    }
    return card(f"Pair {one.pair.name}", facts, comparison(one.comparison).to_html(escape=True, border=0))


def selection_html(selection: Any) -> str:
    """A selection: its lengths, what each rule dropped, and why."""
    facts = {
        "kept": f"{len(selection.problems)} problems",
        "T̄": f"{selection.t_bar:.1f} tokens",
        "T_cut": f"{selection.t_cut} tokens (α {selection.alpha:g})",
    }
    why = table_html(selection.reasons) if len(selection.reasons) else ""
    return card("Selection", facts, table_html(selection.dropped) + why)


def graph_html(graph: Graph) -> str:
    """A graph: its sizes, and the first of its nodes."""
    facts = {
        "layers": graph.n_layers,
        "heads": f"{graph.n_heads} query, {graph.n_kv_heads} key/value",
        "attention and MLP": "read the same stream" if graph.parallel else "one after the other",
        "sources": f"{len(graph.sources):,}: {_some(graph.sources)}",
        "destinations": f"{len(graph.destinations):,}: {_some(graph.destinations)}",
        "edges": f"{graph.n_edges:,}",
    }
    return card(f"Residual graph, level {graph.level}", facts)


def scores_html(array: xr.DataArray) -> str:
    """Edge scores: what they are, the strongest edges, then xarray's own view; any other DataArray: only that."""
    plain = array._repr_html_()
    if tuple(array.dims) != ("sample", "source", "destination") or "level" not in array.attrs:
        return plain
    from rlcircuits.metrics import Edges

    edges = Edges(array)
    facts = {
        "level": array.attrs["level"],
        "method": array.attrs.get("method", array.attrs.get("intervention", "")),
        "model": array.attrs.get("model", ""),
        "problems": array.sizes["sample"],
        "edges": f"{len(edges.names):,}",
    }
    facts = {name: value for name, value in facts.items() if value != ""}
    hint = "nats; strongest edges by mean score. One edge: scores.rlc[name]; more: scores.rlc.strongest(n)"
    return card("Edge scores", facts, table_html(edges.strongest(5)), f"<p>{_text(hint)}</p>", plain)


def register_accessor() -> None:
    """Give every DataArray ``.rlc``."""
    import xarray as xr

    from rlcircuits.metrics import Edges

    if not hasattr(xr.DataArray, "rlc"):
        xr.register_dataarray_accessor("rlc")(Edges)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) < 12 else [*names[:6], "…", *names[-3:]])


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
