"""The paper's table: its 48 cells, what is published of them, and what a sweep fills in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paradigms.paper.table import cells_run, directions, papers_table, published
from rlcircuits.errors import InputError
from rlcircuits.lab import parameters as notebook

ROOT = Path(__file__).resolve().parents[2]


def summary():
    rows = [
        ("mistral", "math=data/math.jsonl", 0.3, "block", "done", 2.0, 3.0),
        ("mistral", "math", 0.3, "block", "done", 4.0, 5.0),
        ("mistral", "math", 0.3, "head", "done", 100.0, 1.0),
        ("qwen2.5", "college-math", 0.3, "block", "done", 1.0, 2.0),
        ("qwen2.5", "gsm8k", 0.5, "block", "failed", np.nan, np.nan),
        ("own", "gsm8k", 0.5, "block", "done", 1.0, 2.0),
    ]
    names = ["pair", "problems", "alpha", "level", "status", "activation_intensity_base", "activation_intensity_tuned"]
    return pd.DataFrame(rows, columns=names).assign(
        information_complexity_base=np.nan,
        information_complexity_tuned=np.nan,
        distribution_kurtosis_base=4.0,
        distribution_kurtosis_tuned=2.0,
    )


def test_without_a_sweep_every_cell_is_not_run_and_four_are_published():
    table = papers_table()
    assert len(table) == 48
    assert (table.xs("here", axis=1, level=1) == "not run").all(axis=None)
    intensity = table["activation_intensity", "published"]
    assert intensity[intensity != ""].to_dict() == {
        ("deepseek-math", "math", 0.1): "1.10e-3 → 1.31e-3",
        ("mistral", "math", 0.3): "4.49e-4 → 4.92e-4",
        ("distilled-qwen", "gsm8k", 0.1): "6.71e-4 → 7.72e-4",
        ("qwen2.5", "college-math", 0.3): "4.76e-4 → 4.69e-4",
    }
    assert table["information_complexity", "published"][("mistral", "math", 0.3)] == ".0413 → .286"
    assert table["distribution_kurtosis", "published"][("qwen2.5", "college-math", 0.3)] == "751 → 651"
    assert cells_run(None) == 0 and directions(None).empty


@pytest.mark.parametrize("as_file", [False, True])
def test_a_summary_fills_its_cells_and_no_others(tmp_path, as_file):
    given = summary()
    if as_file:
        given.to_parquet(tmp_path / "summary.parquet")
        given = tmp_path / "summary.parquet"
    here = papers_table(given).xs("here", axis=1, level=1)
    assert here["activation_intensity"][("mistral", "math", 0.3)] == "3 → 4"  # the mean of two rows
    assert here["activation_intensity"][("qwen2.5", "gsm8k", 0.5)] == "failed"
    assert here["information_complexity"][("mistral", "math", 0.3)] == "not run"  # no number, so none is shown
    filled = here["activation_intensity"][here["activation_intensity"].str.contains("→")]
    assert sorted(filled.index) == [("mistral", "math", 0.3), ("qwen2.5", "college-math", 0.3)]
    assert cells_run(given) == 2
    assert papers_table(given, "head")["activation_intensity", "here"][("mistral", "math", 0.3)] == "100 → 1"


def test_directions_are_those_of_the_published_cells():
    found = directions(summary()).set_index(["pair", "metric"]).same_direction
    assert found.to_dict() == {
        ("mistral", "activation_intensity"): True,  # published up, here up
        ("mistral", "distribution_kurtosis"): True,  # down, down
        ("qwen2.5", "activation_intensity"): False,  # published down, here up
        ("qwen2.5", "distribution_kurtosis"): True,
    }


def test_columns_with_a_slash_are_the_same():
    slashed = summary().rename(columns=lambda name: name.replace("_base", "/base").replace("_tuned", "/tuned"))
    pd.testing.assert_frame_equal(papers_table(slashed), papers_table(summary()))


def test_what_is_no_summary_is_refused(tmp_path):
    with pytest.raises(InputError, match="no column 'pair'.*did you mean 'pairs'"):
        papers_table(summary().rename(columns={"pair": "pairs"}))
    with pytest.raises(InputError, match="alpha is .*expected numbers"):
        papers_table(summary().assign(alpha="a"))
    with pytest.raises(InputError, match="did you mean 'head'"):
        papers_table(summary(), "heads")
    with pytest.raises(InputError, match="summary.parquet"):
        papers_table(tmp_path / "summary.parquet")


def test_the_published_grid_names_what_is_known():
    from rlcircuits.answers.sets import problem_sets
    from rlcircuits.metrics.definitions import METRICS
    from rlcircuits.models.known import pairs

    known = published()
    assert set(known["pairs"]) == set(pairs()) and set(known["problems"]) <= set(problem_sets())
    assert set(known["metrics"]) <= set(METRICS)
    assert all(cell["alpha"] in known["alphas"] for cell in known["cells"])


@pytest.mark.slow
def test_the_notebook_shows_the_cells_of_a_summary(tmp_path):
    summary().to_parquet(tmp_path / "summary.parquet")
    done = notebook.run_notebook(
        ROOT / "notebooks" / "14_all_tables_of_the_study.ipynb",
        tmp_path / "out.ipynb",
        {"summary": str(tmp_path / "summary.parquet"), "results": str(ROOT / "results" / "study")},
    )
    shown = " ".join(
        str(output.get("data", "")) for cell in done.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "3 → 4" in shown and "not run" in shown and "2 of 48 cells were run here" in shown
    assert "3 go in the same direction" in shown
