"""The six angles of every paradigm: the committed tables against adapters, each other and the code."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import rlcircuits as rc
from paradigms.smollm2 import ADAPTERS, pairs
from paradigms.study import angles
from rlcircuits.models import packaged_folder
from rlcircuits.storage import load_table
from rlcircuits.studies import PARTS

real = pytest.mark.skipif(
    packaged_folder("smollm2") is None, reason="SmolLM2 is not on this machine: `make smollm2` fetches it"
)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {file.stem: load_table(file) for file in angles.OUT.glob("*.parquet")}


def test_every_pair_has_every_angle_beside_its_null(tables):
    assert set(tables) == {*PARTS, "summary", "strata"}
    summary = tables["summary"]
    assert list(summary["pair"].unique()) == angles.names()
    for name, rows in summary.groupby("pair"):
        assert set(rows["angle"]) == set(PARTS), name
        assert rows[["value", "null"]].notna().all(axis=None), name
    shown = angles.side_by_side(summary)
    assert list(shown.index) == angles.names() and shown.notna().all(axis=None)


def test_the_lines_are_found_again_in_the_tables_of_the_angles(tables):
    shown = tables["summary"].set_index(["pair", "angle"])
    for name in angles.names():
        graft = tables["graft"].query("pair == @name and into == 'base' and answers == 'tuned'")
        graft = graft[(graft["kind"] == "module") | graft["modules"].str.fullmatch(r"l\d+")]
        best = graft.sort_values("stands").iloc[-1]
        line = shown.loc[[(name, "graft")]].iloc[0]
        assert line["value"] == best["stands"] and f"that {best['modules']} alone" in line["quantity"]
        weights = tables["weights"].query("pair == @name")
        size = np.sqrt((weights["change"] ** 2).sum() / (weights["norm"] ** 2).sum())
        assert shown.loc[[(name, "weights")]]["value"].iloc[0] == pytest.approx(size)
        jaccard = tables["overlap"].query("pair == @name and of == 'edges' and quantity == 'Jaccard 0.1'").iloc[0]
        line = shown.loc[[(name, "overlap")]].iloc[1]
        assert line["value"] == jaccard["across"]
        assert line["null"] == pytest.approx((jaccard["own_a"] + jaccard["own_b"]) / 2)


@pytest.mark.parametrize("name", pairs.names())
def test_the_real_models_weights_moved_by_what_its_adapters_say(tables, name):
    """‖(α / r) B A‖ from the adapters alone: ‖B A‖² is the trace of (A Aᵀ)(Bᵀ B)."""
    folder = ADAPTERS / name.removeprefix("smollm2/")
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    lora = load_file(folder / "adapter_model.safetensors")
    table = tables["weights"].query("pair == @name")
    table = table.set_index(table["layer"].astype(str) + "." + table["module"])["change"]
    checked = 0
    for key, a in lora.items():
        if "lora_A" in key:
            a, b = (one.double().numpy() for one in (a, lora[key.replace("lora_A", "lora_B")]))
            size = settings["lora_alpha"] / settings["r"] * np.sqrt(np.trace((a @ a.T) @ (b.T @ b)))
            module = key.removeprefix("base_model.model.model.layers.").removesuffix(".lora_A.weight")
            assert table[module] == pytest.approx(size, rel=1e-3), key
            checked += 1
    assert checked == 7 * 30 and (table.drop(table.index[table > 0]) == 0).all() and (table > 0).sum() == checked


@real
@pytest.mark.slow
def test_the_weights_of_a_real_pair_come_out_as_they_are_kept(tables):
    found = rc.weight_change(rc.pair("smollm2/grpo"), directions=16)
    kept = tables["weights"].query("pair == 'smollm2/grpo'")[list(found)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, kept, rtol=1e-3, check_dtype=False)


def test_a_line_shows_value_interval_null_and_problems():
    row = dict.fromkeys(("low", "high", "null_low", "null_high"), np.nan)
    row |= {"pair": "family/grpo", "angle": "weights", "quantity": "size of the change", "value": 0.0321, "null": 0.0}
    table = pd.DataFrame([row | {"against": "the same model", "problems": 60}])
    assert angles.side_by_side(table).loc["family/grpo", "size of the weights' change · none"] == "0.032  · 0, 60"
