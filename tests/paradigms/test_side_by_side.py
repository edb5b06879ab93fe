"""Small families beside the real model: the tables' numbers, and sentences that say no more where tables are thin."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paradigms.study import controlled, side_by_side
from paradigms.study import real_words as real
from paradigms.study.finding import INTENSITY, PER_GRADIENT
from paradigms.study.nulls import CONTROL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study() -> controlled.Results:
    return controlled.load(ROOT / "results" / "study")


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return real.load(ROOT / "results" / "smollm2")


def made(**words: str) -> pd.DataFrame:
    """A table of what was compared: ``model_way=…``, a word, s(upported), c(ontradicted), o(pen) or n(ot a number), a paradigm."""
    meaning = {"s": ("supported", 0.7), "c": ("contradicted", -0.7), "o": ("open", 0.1), "n": ("open", math.nan)}
    rows = []
    for where, word in words.items():
        model, way = where.split("_")
        for paradigm, letter in zip(("ppo", "grpo", CONTROL), word, strict=True):
            said, middle = meaning[letter]
            rows.append([model, {"f": "first order", "g": "per gradient", "e": "exact"}[way], paradigm, middle, said])
    found = pd.DataFrame(rows, columns=["model", "way", "paradigm", "middle", "word"])
    return found.assign(left=found["middle"] - 0.1, right=found["middle"] + 0.1, null=0.2).set_index(
        ["model", "way", "paradigm"]
    )


def test_the_numbers_are_those_of_the_tables(study, tables) -> None:
    found = side_by_side.compared(study, tables).sort_index()
    for way, metric in (("first order", INTENSITY), ("per gradient", PER_GRADIENT)):
        for model, effects in (("qwen2", study.effects), ("llama", study.effects), ("smollm2", tables["effects"])):
            rows = effects[(effects["metric"] == metric) & (effects["alpha"] == 1) & (effects["level"] == "block")]
            rows = rows[
                (rows["tokens"] == "own") & (rows["base"] == model) & rows["kind"].isin(["paradigm", "control"])
            ]
            one = found.loc[(model, way)].loc[list(rows["paradigm"])]
            np.testing.assert_allclose(one[["middle", "left", "right"]], rows[["log_ratio", "log_low", "log_high"]])
            assert one["null"].nunique() == 1 and one["null"].iloc[0] >= abs(one.loc[CONTROL, "middle"])
        halves = tables["halves"].query(f"metric == '{metric}' and alpha == 1")["spread"].iloc[0]
        assert found.loc[("smollm2", way, CONTROL), "null"] >= halves
    exact = study.exact_effects.query(f"alpha == 1 and method == 'exact' and metric == '{INTENSITY}'")
    for row in exact.itertuples():
        assert found.loc[(row.base, "exact", row.paradigm), "middle"] == pytest.approx(row.log_ratio)


def test_the_real_removals_have_both_models_doubt(tables) -> None:
    rows = pd.DataFrame(
        [("sft", 1.0, math.exp(-0.3), math.exp(0.3)), ("grpo", math.exp(0.5), math.exp(0.1), math.exp(0.9)),
         (CONTROL, math.exp(-0.2), 0.0, 1.0), ("ppo", 2.0, math.nan, math.nan)],
        columns=["member", "estimate", "low", "high"],
    ).assign(metric=INTENSITY)  # fmt: skip
    found = real.removals({"exact": rows})
    assert found.loc["grpo"].tolist() == pytest.approx([0.5, 0.0, 1.0, 0.2])  # √(0.3² + 0.4²)
    assert found.loc["ppo", "log_ratio"] == pytest.approx(math.log(2)) and math.isnan(found.loc["ppo", "log_low"])
    assert found.loc[CONTROL, "log_low"] == -math.inf
    for none in ({}, {"exact": rows[rows["member"] != "sft"]}):
        assert real.removals(none).empty


def test_the_figure_holds_every_change_and_every_null(study, tables) -> None:
    found, figure = side_by_side.compared(study, tables), side_by_side.figure(study, tables)
    models = list(dict.fromkeys(found.index.get_level_values("model")))
    drawn = [annotation.text for annotation in figure.layout.annotations]
    assert drawn == ["Qwen2 base", "Llama base", "SmolLM2"] and len(figure.data) == 3 * len(models)
    for trace, (model, way) in zip(figure.data, [(m, w) for m in models for w in side_by_side.WAYS], strict=True):
        rows = found[[index[:2] == (model, way) for index in found.index]]
        assert [name for name, _ in trace.customdata][-1] == side_by_side.NULL
        np.testing.assert_allclose(trace.x[:-1], np.exp(rows["middle"]))
        reach = math.exp(rows["null"].iloc[0])
        assert trace.x[-1] == 1 and trace.error_x.array[-1] == pytest.approx(reach - 1)
        assert trace.error_x.arrayminus[-1] == pytest.approx(1 - 1 / reach)


def test_the_committed_sentences_are_in_the_tables(study, tables) -> None:
    found = side_by_side.compared(study, tables)
    said = side_by_side.sentences(found)
    for (model, way), rows in found.groupby(level=["model", "way"]):
        rows = rows.droplevel(["model", "way"]).drop(index=CONTROL)
        beyond = (rows["left"] > 0) & (rows["middle"] > rows["null"])
        line = next(line for line in said.splitlines() if line.startswith(f"- *{side_by_side.WAYS[way][1]}*"))
        part = next(p for p in line.partition(": ")[2].split("; ") if side_by_side.named(model) in p)
        n = int(beyond.sum())
        word = f"all {n}" if n == len(rows) else f"{n} of {len(rows)}" if n else f"none of {len(rows)}"
        assert f"a rise after {word}" in part
        assert f"× {math.exp(rows['middle'].max()):.2f}" in part


def test_no_paradigm_every_paradigm_and_no_number() -> None:
    table = made(qwen2_f="ooo", smollm2_f="ooo")
    assert side_by_side.sentences(table).count("a rise after none of 2") == 2
    assert side_by_side.on_every_model(table).endswith("model**: to first order after none.")
    table = made(qwen2_f="sso", smollm2_f="sss", qwen2_e="coo", smollm2_e="soo")
    every = side_by_side.sentences(table)
    assert every.count("a rise after all 2") == 2
    assert "first order after PPO and GRPO (× 2.01); by removing edges after none." in side_by_side.on_every_model(
        table
    )
    assert "a rise after none of 2, a fall after PPO" in every and "a rise after 1 of 2 (PPO)" in every
    table = made(qwen2_f="sno", smollm2_f="nnn", smollm2_g="sso")
    undefined = side_by_side.sentences(table)
    assert side_by_side.on_every_model(table).endswith("model**: to first order after none.")
    assert "Qwen2 × 2.01, a rise after all 1; SmolLM2 not measured" not in undefined  # no "all 1"
    assert "Qwen2 × 2.01, a rise after PPO; SmolLM2 not measured" in undefined
    assert "*Per gradient at the logits*: Qwen2 not measured; SmolLM2 × 2.01" in undefined
    assert "nan" not in undefined.lower()


def test_one_model_alone_is_compared_with_nobody() -> None:
    table = made(qwen2_f="sso")
    assert side_by_side.on_every_model(table) == ""
    assert side_by_side.sentences(table).startswith("- *To first order*: Qwen2 × 2.01, a rise after all 2.")
