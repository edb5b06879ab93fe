"""What came out of a sweep: a table, an index page, and a page for each executed notebook.

1. `summary_table`: one row per cell in the file's order: its parameters, ``status``, one column per glued number,
   ``seconds``, ``error``. It is made from the cells' records alone, so it is the same whichever way the sweep came to
   its end.
2. `index_page`: the same as a page, each cell with a link to its executed notebook. Every text is escaped.
3. `notebook_page`: an executed notebook as a page that needs no network; plotly.js lies once in the sweep's folder.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rlcircuits.sweeps.plan import Cell, Plan
from rlcircuits.sweeps.records import NOTEBOOK, PAGE

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

SUMMARY, INDEX, STATIC = "summary.parquet", "index.html", "static"
OWN = ("cell", "status", "seconds", "attempts", "error", "notebook")
_ROWS_SHOWN = 60

Records = Mapping[str, Mapping[str, Any]]


def summary_table(plan: Plan, records: Records, folder: Path) -> pd.DataFrame:
    """One row per cell.

    Args:
        plan: the sweep.
        records: by the cell's name, its record; a cell without one was not run.
        folder: of the sweep, for the links.

    Returns:
        Columns ``cell``, the parameters that the file gives, ``status`` (``"done"``, ``"failed"``, ``"not run"``), the
        metrics, ``seconds`` (of the last attempt, kernel and pages included), ``attempts``, ``error`` and ``notebook``
        (path of the executed notebook, seen from the folder). A parameter or metric that bears the name of another
        column is called ``parameter.<name>`` or ``metric.<name>``.
    """
    import pandas as pd

    given = list(dict.fromkeys(name for cell in plan.cells for name in cell.parameters))
    found = list(dict.fromkeys(name for cell in plan.cells for name in records.get(cell.name, {}).get("metrics", {})))
    rows = [records.get(cell.name, {}) for cell in plan.cells]
    columns: dict[str, list[Any]] = {"cell": [cell.name for cell in plan.cells]}
    for name in given:
        columns[_column(name)] = _uniform([cell.parameters.get(name) for cell in plan.cells])
    columns["status"] = [row.get("status", "not run") for row in rows]
    for name in found:
        column = f"metric.{name}" if name in columns or name in OWN else name
        columns[column] = _uniform([row.get("metrics", {}).get(name) for row in rows])
    columns["seconds"] = [row.get("seconds", math.nan) for row in rows]
    columns["attempts"] = [row.get("attempts", 0) for row in rows]
    columns["error"] = [row.get("error") for row in rows]
    columns["notebook"] = [_link(folder, cell, NOTEBOOK) for cell in plan.cells]
    return pd.DataFrame({name: _series(values) for name, values in columns.items()})


def write_report(plan: Plan, records: Records, folder: Path) -> pd.DataFrame:
    """Write ``summary.parquet`` and ``index.html`` into the sweep's folder; returns the table."""
    from rlcircuits.storage import save_table, written

    table = summary_table(plan, records, folder)
    save_table(table, folder / SUMMARY)
    with written(folder / INDEX) as temporary:
        temporary.write_text(index_page(plan, table, folder), "utf-8")
    return table


def shown(plan: Plan, table: pd.DataFrame) -> str:
    """The table for a terminal: what varies, status, seconds and a few metrics, then what failed and why."""
    varying = [_column(name) for name in plan.varying]
    metrics = [name for name in plan.show if name in table] or _metrics(plan, table)[:3]
    short = table[[*varying, "status", "seconds", *metrics]].head(_ROWS_SHOWN)
    text = short.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}", max_colwidth=40)
    if len(table) > _ROWS_SHOWN:
        text += f"\n… and {len(table) - _ROWS_SHOWN} more rows in {SUMMARY}"
    failed = table[table["status"] == "failed"]
    for row in failed.head(10).to_dict("records"):
        text += f"\n{row['cell']}: {(row['error'] or '').splitlines()[0][:300]}"
    return text + (f"\n… and {len(failed) - 10} more that failed" if len(failed) > 10 else "")


def index_page(plan: Plan, table: pd.DataFrame, folder: Path) -> str:
    """The index as HTML; every text in it is escaped."""
    varying = [_column(name) for name in plan.varying]
    metrics = _metrics(plan, table)
    heads = ["cell", *varying, "status", "seconds", *metrics, "error"]
    rows = []
    for cell, row in zip(plan.cells, table.to_dict("records")):
        link = _link(folder, cell, PAGE) or _link(folder, cell, NOTEBOOK)
        name = _text(cell.name)
        first = f'<a href="{_text(quote(link))}">{name}</a>' if link else name
        rest = "".join(f"<td>{_text(_short(row[head]))}</td>" for head in heads[1:])
        rows.append(f'<tr class="{_text(row["status"].replace(" ", "-"))}"><td>{first}</td>{rest}</tr>')
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    title = f"Sweep {plan.file.name}"
    head = "".join(f"<th>{_text(one)}</th>" for one in heads)
    body = f"<h1>{_text(title)}</h1>\n<p>{_text(plan.notebook.name)}: {_text(counts)}. All numbers: {SUMMARY}.</p>"
    body += (
        f'\n<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )
    return _page(title, body)


def notebook_page(executed: NotebookNode, name: str) -> str | None:
    """An executed notebook as HTML, for ``cells/<name>/``; None where nbconvert is not installed."""
    try:
        from nbconvert.exporters import HTMLExporter
    except ImportError:
        return None
    for cell in executed.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if "scrapbook" not in output.get("metadata", {})]
            for output in cell.outputs:  # a figure is drawn from its own HTML, see `rlcircuits.lab.display`
                if "rlc-figure" in str(output.get("data", {}).get("text/html", "")):
                    output["data"].pop("application/vnd.plotly.v1+json", None)
    exporter = HTMLExporter(
        template_name="basic", mathjax_url="", require_js_url="", jquery_url="", widget_renderer_url=""
    )
    body, _ = exporter.from_notebook_node(executed)
    figures = _FIGURES if "rlc-figure" in body else ""
    return _page(name, f'<p><a href="../../{INDEX}">All cells</a></p>\n<h1>{_text(name)}</h1>\n{body}{figures}')


def write_static(folder: Path) -> None:
    """Put plotly.js, out of the installed package, where the notebooks' pages look for it."""
    import shutil
    from importlib import resources

    target = folder / STATIC / "plotly.min.js"
    source = resources.files("plotly") / "package_data" / "plotly.min.js"
    with resources.as_file(source) as file:
        if target.is_file() and target.stat().st_size == file.stat().st_size:
            return
        from rlcircuits.storage import written

        with written(target) as temporary:
            shutil.copyfile(file, temporary)


def _column(parameter: str) -> str:
    return f"parameter.{parameter}" if parameter in OWN else parameter


def _metrics(plan: Plan, table: pd.DataFrame) -> list[str]:
    """Columns of metrics: those the file asks for, else the numeric ones that differ between cells."""
    import pandas as pd

    given = {name for cell in plan.cells for name in cell.parameters}
    names = [
        name for name in map(str, table) if name not in OWN and name not in given and not name.startswith("parameter.")
    ]
    asked = [name for name in plan.show if name in names]
    return asked or [name for name in names if pd.api.types.is_numeric_dtype(table[name])][:12]


def _link(folder: Path, cell: Cell, file: str) -> str | None:
    return f"cells/{cell.name}/{file}" if (folder / "cells" / cell.name / file).is_file() else None


def _uniform(values: Sequence[Any]) -> list[Any]:
    """Values of one type, as a column of a parquet file must be: all numbers, all truth values, or else all text."""
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there) or all(isinstance(value, str) for value in there):
        return list(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        whole = all(isinstance(value, int) for value in values)
        return list(values) if whole else [math.nan if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _series(values: list[Any]) -> pd.Series:
    import pandas as pd

    mixed = any(value is None for value in values) or any(isinstance(value, str) for value in values)
    return pd.Series(values, dtype=object if mixed else None)


def _short(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1a1a1a;
background: #fff }
a { color: #00528a } h1 { font-size: 1.4rem } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ccc }
tr.failed td { background: #fdece4 } tr.not-run td { color: #595959 }
pre { overflow-x: auto; background: #f6f6f6; padding: .5rem; font-size: .85rem }
.jp-InputPrompt, .jp-OutputPrompt { display: none }
img { max-width: 100% }
"""

_FIGURES = """
<script src="../../static/plotly.min.js"></script>
<script>
document.querySelectorAll(".rlc-plot").forEach(function (place) {
  if (!window.Plotly) { return; } // the text that stands for the figure stays
  var figure = JSON.parse(place.parentNode.querySelector('script[type="application/json"]').textContent);
  place.replaceChildren();
  window.Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
});
</script>
"""
