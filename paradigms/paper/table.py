"""The main table of arXiv 2509.21044, its published numbers beside what a sweep found.

1. The published numbers are data: ``published.yaml``, as printed, with their arrows.
2. The table has a row for each of the 48 cells, pair × data set × α. A cell that a sweep's summary holds shows what was
   found; one that failed says so; every other is "not run".
3. A summary has one row per cell: ``pair``, ``problems``, ``alpha``, perhaps ``level``, ``seed`` and ``status``, and
   for each metric ``<metric>_base`` and ``<metric>_tuned`` (or with ``/``). Several rows of a cell, such as seeds, are
   averaged.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, choose, near

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"
_CELL = ["pair", "problems", "alpha"]


def published() -> dict[str, Any]:
    """What ``published.yaml`` holds: ``source``, ``pairs``, ``problems``, ``alphas``, ``metrics`` and ``cells``."""
    return _published()


def papers_table(summary: pd.DataFrame | str | os.PathLike[str] | None = None, level: str = "block") -> pd.DataFrame:
    """The paper's 48 cells, published and found.

    Args:
        summary: a sweep's summary or its file ``summary.parquet``; None when nothing was run.
        level: the level of the graph whose cells count, where the summary has several.

    Returns:
        Text, indexed by (pair, problems, alpha) in the paper's grid; columns are pairs (metric, ``"published"`` or
        ``"here"``), a value before → after, empty where nothing is published, "not run" or "failed" where nothing was
        found.

    Raises:
        InputError: no such file, or a table that is no summary; it names the column.
    """
    import pandas as pd

    known = published()
    found = None if summary is None else _summary(summary, level)
    printed = {(c["pair"], c["problems"], c["alpha"]): c for c in known["cells"]}
    index = pd.MultiIndex.from_product([known["pairs"], known["problems"], known["alphas"]], names=_CELL)
    columns = {}
    for metric in known["metrics"]:
        columns[metric, "published"] = [" → ".join(printed[cell][metric]) if cell in printed else "" for cell in index]
        columns[metric, "here"] = [_here(found, cell, metric) for cell in index]
    return pd.DataFrame(columns, index=index)


def cells_run(summary: pd.DataFrame | str | os.PathLike[str] | None, level: str = "block") -> int:
    """How many of the paper's cells a summary fills."""
    table = papers_table(summary, level)
    return int(table[published()["metrics"][0], "here"].str.contains("→").sum())


def directions(summary: pd.DataFrame | str | os.PathLike[str] | None, level: str = "block") -> pd.DataFrame:
    """The published cells that were run here, and whether each metric moved the same way.

    Returns:
        One row per published cell and metric that was run: ``pair``, ``problems``, ``alpha``, ``metric``, ``published``
            and ``here``
        (the ratio after / before) and ``same_direction``.

    Raises:
        InputError: as `papers_table`.
    """
    import pandas as pd

    found = None if summary is None else _summary(summary, level)
    rows = []
    for cell in published()["cells"] if found is not None else ():
        key = (cell["pair"], cell["problems"], cell["alpha"])
        for metric in published()["metrics"]:
            values = _values(found, key, metric)
            if values is None:
                continue
            before, after = map(float, cell[metric])
            ratio, ours = after / before, values[1] / values[0] if values[0] else float("nan")
            rows.append((*key, metric, ratio, ours, (ratio > 1) == (ours > 1)))
    return pd.DataFrame(rows, columns=[*_CELL, "metric", "published", "here", "same_direction"])


@lru_cache(maxsize=1)
def _published() -> dict[str, Any]:
    import yaml

    return yaml.safe_load((resources.files("paradigms.paper") / "published.yaml").read_text("utf-8"))


def _summary(given: Any, level: str) -> pd.DataFrame:
    """The summary's rows at a level, columns named alike, data sets without the file they were read from."""
    import pandas as pd

    from rlcircuits.attribution import LEVELS
    from rlcircuits.storage import load_table

    choose("level", level, LEVELS)
    table = given if isinstance(given, pd.DataFrame) else load_table(given)
    label = "the summary" if isinstance(given, pd.DataFrame) else repr(os.fspath(given))
    table = table.rename(columns=lambda name: str(name).replace("/", "_"))
    for column in _CELL:
        if column not in table:
            raise InputError(
                f"{label} has no column {column!r}: expected the summary of a sweep{near(column, table.columns)}"
            )
    if not pd.api.types.is_numeric_dtype(table["alpha"]):
        raise InputError(f"{label}: alpha is {table['alpha'].dtype}: expected numbers")
    if "level" in table:
        table = table[table["level"] == level]
    return table.assign(problems=table["problems"].astype(str).str.partition("=")[0], pair=table["pair"].astype(str))


def _rows(found: pd.DataFrame, cell: tuple[str, str, float]) -> pd.DataFrame:
    pair, problems, alpha = cell
    return found[(found["pair"] == pair) & (found["problems"] == problems) & ((found["alpha"] - alpha).abs() < 1e-9)]


def _values(found: pd.DataFrame, cell: tuple[str, str, float], metric: str) -> tuple[float, float] | None:
    """A metric before and after, the mean over the cell's rows that were done; None when there is none."""
    import pandas as pd

    rows = _rows(found, cell)
    if "status" in rows:
        rows = rows[rows["status"] == "done"]
    names = [f"{metric}_base", f"{metric}_tuned"]
    if not len(rows) or any(name not in rows for name in names):
        return None
    means = [pd.to_numeric(rows[name], errors="coerce").mean() for name in names]
    return None if any(mean != mean for mean in means) else (float(means[0]), float(means[1]))


def _here(found: pd.DataFrame | None, cell: tuple[str, str, float], metric: str) -> str:
    if found is None:
        return NOT_RUN
    values = _values(found, cell, metric)
    if values is not None:
        return " → ".join(f"{value:.3g}" for value in values)
    rows = _rows(found, cell)
    return "failed" if "status" in rows and (rows["status"] == "failed").any() else NOT_RUN
