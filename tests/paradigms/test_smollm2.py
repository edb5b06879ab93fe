"""The real model: its conversion, its members, and what is said of them. Skipped where it is not on this machine."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import rlcircuits as rc
from paradigms.family import PROMPT, story_problems, story_set
from paradigms.smollm2 import ADAPTERS, base_folder, members, pairs
from rlcircuits.models import packaged_folder
from tests.fixtures.reference import exact_scores, loss

HERE = packaged_folder("smollm2") is not None
real = pytest.mark.skipif(not HERE, reason="SmolLM2 is not on this machine: `make smollm2` fetches it")
SHORT = rc.Trace("short", [504, 260, 347, 253], [216, 43, 56])


@pytest.fixture(scope="module")
def base() -> rc.Model:
    return rc.load_model(base_folder())


def test_every_member_is_an_adapter_of_at_most_three_megabytes():
    assert {"sft", "sft-more", "rft", "grpo", "ppo", "dpo", "online-dpo"} <= set(members())
    sizes = {member: (ADAPTERS / member / "adapter_model.safetensors").stat().st_size for member in members()}
    assert max(sizes.values()) <= 3e6 and sum(sizes.values()) <= 25e6
    for member in members():
        told = json.loads((ADAPTERS / member / "member.json").read_text("utf-8"))
        settings = json.loads((ADAPTERS / member / "adapter_config.json").read_text("utf-8"))
        assert told["member"] == member and 0.3 < told["accuracy"] < 0.9
        assert settings["base_model_name_or_path"] == ("smollm2" if member == "sft" else None)
        curve = pd.read_parquet(ADAPTERS / member / "curves.parquet")
        assert curve["kl"].iloc[0] == pytest.approx(0, abs=1e-6) and curve["kl"].iloc[-1] > 0


def test_names_are_checked_before_anything_is_made():
    with pytest.raises(rc.InputError, match="'smollm2/grop'.*smollm2/grpo"):
        rc.pair("smollm2/grop")
    assert [row["pair"] for row in pairs.rows()] == pairs.names()


@real
@pytest.mark.slow
def test_a_members_merged_weights_are_the_base_and_its_low_rank_change(base):
    """Against W + (α / r) B A, by hand."""
    from safetensors.torch import load_file

    pair = rc.pair("smollm2/grpo")
    tuned, change = pair.load("tuned"), load_file(f"{pair.tuned}/adapter_model.safetensors")
    settings = json.loads((ADAPTERS / "grpo" / "adapter_config.json").read_text("utf-8"))
    changed = 0
    for name, weight in tuned.hf.state_dict().items():
        expected = base.hf.state_dict()[name]
        lora = f"base_model.model.{name.removesuffix('.weight')}.lora_%s.weight"
        if lora % "A" in change:
            a, b = (change[lora % part].float() for part in "AB")
            expected, changed = expected + settings["lora_alpha"] / settings["r"] * (b @ a), changed + 1
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-7)
    assert changed == 7 * 30 == len(change) / 2


@real
@pytest.mark.slow
@pytest.mark.parametrize("level", ["block", "head"])
def test_its_scores_are_those_of_a_decoder_written_out_edge_by_edge(base, level):
    """In float64; in float32, which is what the study uses, its own rounding stays below a thousandth."""
    double = rc.load_model(base_folder(), dtype="float64")
    found = rc.attribute(double, [SHORT], level, progress=False).values[0]
    expected = exact_scores(double.hf, SHORT.prompt, SHORT.answer, level)
    edges = np.isfinite(found)
    assert edges.sum() == {"block": 1891, "head": 70651}[level]
    largest = np.abs(expected[edges]).max()
    np.testing.assert_allclose(found[edges], expected[edges], atol=1e-5 * largest)
    rounded = rc.attribute(base, [SHORT], level, progress=False).values[0]
    np.testing.assert_allclose(rounded[edges], expected[edges], atol=1e-3 * largest)


@real
@pytest.mark.slow
def test_edges_that_are_drawn_are_removed_as_if_by_hand(base):
    scores = rc.attribute(base, [SHORT], progress=False)
    found = rc.exact_metrics(base, [SHORT], scores, budget=40, progress=False)
    run = np.argwhere(np.isfinite(found.effects.values[0]))
    assert len(run) == 40
    whole = float(loss(base.hf, SHORT.prompt, SHORT.answer, "block"))
    for source, destination in run[::10]:
        kept = torch.ones(scores.shape[1:], dtype=torch.float64)
        kept[source, destination] = 0
        without = float(loss(base.hf, SHORT.prompt, SHORT.answer, "block", coefficients=kept))
        effect = float(found.effects.values[0, source, destination])
        assert effect == pytest.approx(without - whole, abs=2e-4 * max(1, abs(whole)))


@real
@pytest.mark.slow
def test_committed_answers_and_losses_are_found_again(base):
    """The first problems of the committed tables, measured anew on this machine."""
    table = pd.read_parquet(ADAPTERS / "problems.parquet")
    rows = table[table["member"] == "sft"].set_index("problem").iloc[:4]
    problems, stories = story_set(n=4), story_problems("test", 4, 0)
    assert list(rows.index) == [problem.id for problem in problems]
    said = rc.generate(base, problems, PROMPT, 48)
    same = [list(answer.answer) == list(row) for answer, row in zip(said, rows["answer"])]
    assert sum(same) >= 3  # two tokens may be as likely as each other to the last bits
    for answer, kept, one, story in zip(said, same, rows.itertuples(), stories):
        if kept:
            assert answer.correct == one.correct
            assert one.mistake == ("" if answer.correct else story.mistake(answer.text))
            (losses,) = rc.token_losses(base, [answer.trace], progress=False)
            assert np.mean(losses) == pytest.approx(one.loss, rel=1e-3, abs=1e-5)
