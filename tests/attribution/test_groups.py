"""Scores by groups of tokens, against an oracle that shares no code with them, and against the scores without
groups.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcircuits as rc
from rlcircuits.attribution.portions import WASTE, Segments
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT, close, traces
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import directional_scores, outputs_of

LABELS = ["early", "late", "early", "odd", "late", "odd", "late", "early", "odd"]  # of PROMPT and ANSWER


def labels_of(some, seed=0, names="abcdefgh"):
    rng = np.random.default_rng(seed)
    return [rng.choice(list(names), len(trace.prompt) + len(trace.answer)).tolist() for trace in some]


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ["qwen2", "gpt-neox", "gemma2"])
def test_a_groups_score_is_the_derivative_along_the_sources_at_its_positions(architecture, level, memory):
    hf = in_float64(tiny(architecture, layers=2))
    scores = rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER)], level, groups=[LABELS], memory=memory)
    assert scores.dims == ("sample", "group", "source", "destination")
    assert list(scores.group.values) == ["early", "late", "odd"]
    outputs = outputs_of(hf, PROMPT, ANSWER, level)
    for name in scores.group.values:
        here = torch.tensor([label == name for label in LABELS])[:, None]
        there = [output * here[: len(output)] for output in outputs]
        close(scores[0].sel(group=name), directional_scores(hf, PROMPT, ANSWER, level, there), 2e-6)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 6),
    groups=st.integers(1, 8),
    chunk=st.integers(1, 1 << 16),
    level=st.sampled_from(LEVELS),
    memory=st.sampled_from(["fast", "lean"]),
    cut=st.none() | st.integers(1, 12),
)
def test_groups_add_up_in_any_batch_and_chunk(seed, batch, groups, chunk, level, memory, cut):
    from rlcircuits.attribution import contraction

    hf, some = _shared(), traces(seed, 6)
    labels = labels_of(some, seed, "abcdefgh"[:groups])
    alone = [rc.attribute(hf, [one], level, groups=[row], cut=cut, memory=memory) for one, row in zip(some, labels)]
    kept, contraction.CHUNK_BYTES = contraction.CHUNK_BYTES, chunk
    try:
        together = rc.attribute(hf, some, level, groups=labels, batch_size=batch, cut=cut, memory=memory)
    finally:
        contraction.CHUNK_BYTES = kept
    close(together.sum("group", skipna=False), rc.attribute(hf, some, level, cut=cut, memory=memory), 1e-11)
    scale = float(np.abs(together).max())
    for number, one in enumerate(alone):
        expected = one[0].reindex(group=together.group.values, fill_value=0.0)
        difference = together[number].values - expected.values
        assert np.nanmax(np.abs(difference)) <= 1e-11 * scale
    read = [len(t.prompt) + len(t.cut(cut).answer) - 1 for t in some]
    assert together.group_tokens.sum("group").values.tolist() == read


_MODELS: dict = {}


def _shared():
    if not _MODELS:
        _MODELS["qwen2"] = in_float64(tiny("qwen2", layers=2))
    return _MODELS["qwen2"]


def test_other_interventions_and_integrated_gradients_add_up():
    hf, some = _shared(), traces(3)
    labels = labels_of(some)
    partners = [rc.Trace(f"c{i}", t.prompt[::-1], t.answer[::-1]) for i, t in enumerate(some)]
    for options in (
        {"intervention": "mean"},
        {"intervention": "corrupted", "corrupted": partners},
        {"ig_steps": 3},
        {"intervention": "corrupted", "corrupted": partners, "ig_steps": 2},
    ):
        grouped = rc.attribute(hf, some, "head", groups=labels, **options)
        close(grouped.sum("group", skipna=False), rc.attribute(hf, some, "head", **options), 1e-11)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_the_same_call_gives_the_same_bits_and_order_does_not_matter(memory):
    hf, some = tiny("qwen2", torch.float32), traces()
    labels = labels_of(some)
    first = rc.attribute(hf, some, "head", groups=labels, memory=memory)
    np.testing.assert_array_equal(first, rc.attribute(hf, some, "head", groups=labels, memory=memory))
    turned = rc.attribute(hf, some[::-1], "head", groups=labels[::-1], batch_size=2, memory=memory)
    close(turned[::-1].sel(group=first.group), first, 2e-5)


def test_a_group_that_a_trace_does_not_read_is_zero():
    hf = tiny("llama", torch.float32)
    some = [rc.Trace("a", [5, 6], [7, 8]), rc.Trace("b", [5, 6], [7, 8])]
    scores = rc.attribute(hf, some, groups=[["p", "p", "w", "last"], ["p", "p", "p", "p"]])
    assert float(np.abs(scores.sel(group="last")).max()) == 0  # predicted, never read
    assert float(np.abs(scores.sel(sample="b", group="w")).max()) == 0
    assert float(np.abs(scores.sel(sample="a", group="w")).max()) > 0
    assert np.isnan(scores.sel(group="last", source="m2", destination="a0")).all()
    assert scores.group_tokens.values.tolist() == [[2, 1, 0], [3, 0, 0]]


def test_metrics_of_a_group():
    hf, some = tiny("llama", torch.float32), [rc.Trace(f"p{i}", PROMPT, [i, *ANSWER]) for i in range(5)]
    scores = rc.attribute(hf, some, groups=[list("abababbaab")] * 5)
    one = scores.sel(group="a")
    assert rc.activation_intensity(one) == pytest.approx(float(np.abs(one).mean()), rel=1e-6)
    assert rc.summary(one).notna().all()
    table = rc.compare(one, scores.sel(group="b"), metrics=["activation_intensity", "gini"])
    assert np.isfinite(table["difference"]).all()
    assert int(rc.circuit(one, 3).sum()) == 3
    with pytest.raises(rc.InputError, match=r"choose one with scores\.sel\(group=…\)"):
        rc.activation_intensity(scores)


def test_scores_by_group_are_saved_and_loaded(tmp_path):
    hf, some = tiny("llama", torch.float32), traces()
    scores = rc.attribute(hf, some, groups=labels_of(some, names="ab"))
    rc.save_scores(scores, tmp_path / "scores.nc")
    assert rc.load_scores(tmp_path / "scores.nc").identical(scores)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([LABELS], "1 sequences of labels for 5 traces"),
        ("prompt", "0 sequences of labels for 5 traces"),
        (["working"] * 5, "0 labels for its"),
        (
            [[*row, "x"] for row in labels_of(traces())],
            r"labels for its \d+ prompt and \d+ answer tokens: expected one",
        ),
        ([[3, *row[1:]] for row in labels_of(traces())], "a token of trace 'p0' 3: expected a name"),
    ],
)
def test_labels_that_do_not_cover_the_tokens_are_one_clear_message(groups, says):
    with pytest.raises(rc.InputError, match=says):
        rc.attribute(tiny("llama", torch.float32), traces(), groups=groups)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=8),
    tokens=st.integers(1, 200),
)
def test_every_token_is_taken_once_with_little_padding(rows, tokens):
    segments = Segments([np.array(row) for row in rows], 5, torch.device("cpu"))
    width = max(map(len, rows))
    seen, padding, taken = torch.zeros(len(rows), width, 5), 0, 0
    codes = torch.full((len(rows), width), -1)
    for number, row in enumerate(rows):
        codes[number, : len(row)] = torch.tensor(row)
    places = torch.arange(len(rows) * width).view(len(rows), width)
    row_and_group = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(5))
    whole = segments.spread(torch.arange(1, len(segments) + 1))
    for portion in segments.portions(tokens):
        found = portion.of(places)
        real = torch.ones_like(found) if portion.real is None else portion.real[..., 0]
        assert found.numel() <= max(tokens, 1)
        padding, taken = padding + int((real == 0).sum()), taken + int(real.sum())
        for index, where, one in zip(range(*portion.sums.indices(len(segments))), found, real):
            row, group = row_and_group[whole.flatten().tolist().index(index + 1)].tolist()
            for place in where[one.bool()].tolist():
                assert divmod(place, width)[0] == row and codes.flatten()[place] == group
                seen[row, place % width, group] += 1
    assert taken == sum(map(len, rows)) and seen.max() == 1
    assert padding <= WASTE * taken
