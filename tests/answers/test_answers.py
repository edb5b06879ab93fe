"""Greedy answers against a token-by-token loop without cache or batch; selection against hand-made and brute-forced sets."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from fractions import Fraction
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcircuits as rc
from rlcircuits.answers.answer import Answer, load_answers, save_answers
from rlcircuits.answers.generation import end_tokens, generate
from rlcircuits.answers.grading import GRADERS
from rlcircuits.answers.selection import select
from rlcircuits.errors import InputError
from tests.fixtures.checkpoints import WORDS, save, tokenizer

ARCHITECTURES = ("qwen2", "llama", "mistral")
ENDS = [1, 5, 9, 24]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: rc.load_model(save(root / name, name, layers=2), device="cpu") for name in ARCHITECTURES}


def problem_set(n=16, grader="final"):
    asked = (
        rc.Problem(f"p{i}", " ".join(WORDS[(3 * i + k) % 50] for k in range(1 + (5 * i) % 7)), "x") for i in range(n)
    )
    return rc.ProblemSet("words", tuple(asked), grader)


def with_ends(model, ends):
    """The same model with other generation settings, as a checkpoint made for sampling has them."""
    from transformers import GenerationConfig

    model.hf.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=3,
        repetition_penalty=1.5,
        eos_token_id=ends,
        max_length=4,
    )
    return model


@torch.no_grad()
def one_by_one(model, prompt, ends, longest):
    """The oracle: arg max of a forward pass over the whole text, once per token, no batch, no padding, no cache."""
    said = []
    while len(said) < longest:
        token = int(model.hf(torch.tensor([[*prompt, *said]]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            return tuple(said), True
        said.append(token)
    return tuple(said), False


# Generation


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_what_one_forward_pass_per_token_says(models, architecture):
    model, problems = with_ends(models[architecture], ENDS), problem_set()
    answers = generate(model, problems, max_new_tokens=12)
    assert [a.problem for a in answers] == [p.id for p in problems]
    for answer, problem in zip(answers, problems, strict=True):
        assert answer.prompt == tuple(model.tokenizer(problem.question)["input_ids"])
        assert (answer.answer, answer.finished) == one_by_one(model, answer.prompt, ENDS, 12)
        assert answer.text == model.tokenizer.decode(answer.answer, skip_special_tokens=True)
        if answer.answer:
            assert answer.trace == rc.Trace(problem.id, answer.prompt, answer.answer)
    finished = sum(a.finished for a in answers)
    assert 0 < finished < len(answers)  # both kinds are there, so both were tested


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_do_not_depend_on_batches_or_order(models, architecture):
    model, problems = with_ends(models[architecture], ENDS), problem_set()
    expected = generate(model, problems, max_new_tokens=10)
    for size in (1, 3, 16, 100):
        assert generate(model, problems, max_new_tokens=10, batch_size=size) == expected
    backwards = rc.ProblemSet("words", problems.problems[::-1], "final")
    assert generate(model, backwards, max_new_tokens=10, batch_size=5) == expected[::-1]


def test_nothing_is_said_about_the_checkpoints_sampling_settings_and_they_come_back(models, caplog, monkeypatch):
    model = with_ends(models["qwen2"], ENDS)
    before = model.hf.generation_config
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, problem_set(3), max_new_tokens=4)
    assert [r.getMessage() for r in caplog.records] == []
    assert model.hf.generation_config is before and before.do_sample and before.repetition_penalty == 1.5
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())


@pytest.mark.parametrize("ends", [None, 1, [1], [24, 5]])
def test_a_tokenizer_without_padding_token(models, ends):
    model = with_ends(models["llama"], ends)
    bare = tokenizer()
    bare.pad_token = None
    bare.eos_token = None
    assert bare.pad_token_id is None
    unpadded = SimpleNamespace(hf=model.hf, tokenizer=bare, name="bare", device=torch.device("cpu"))
    model.hf.config.eos_token_id = None
    try:
        found = end_tokens(unpadded)
        assert found == (() if ends is None else (ends,) if isinstance(ends, int) else tuple(ends))
        for answer in generate(unpadded, problem_set(6), max_new_tokens=8, batch_size=6):
            assert (answer.answer, answer.finished) == one_by_one(model, answer.prompt, found, 8)
    finally:
        model.hf.config.eos_token_id = 1


def test_all_tokens_that_may_end_an_answer_do(models):
    model = with_ends(models["qwen2"], [24])
    model.hf.config.eos_token_id = 5
    try:
        assert end_tokens(model) == (24, 5, 1)  # generation settings, configuration, tokenizer
    finally:
        model.hf.config.eos_token_id = 1


def test_a_padding_token_in_an_answer_stays(models):
    """A model may say its padding token; only what follows the end of an answer is padding."""
    model = with_ends(models["mistral"], [24])
    problems = problem_set(8)
    common = generate(model, problems, max_new_tokens=8)
    said = max((t for a in common for t in a.answer), key=[t for a in common for t in a.answer].count)
    other = tokenizer()
    other.pad_token = WORDS[said - 3]
    assert other.pad_token_id == said
    odd = SimpleNamespace(hf=model.hf, tokenizer=other, name="odd", device=torch.device("cpu"))
    answers = generate(odd, problems, max_new_tokens=8)
    assert [a.answer for a in answers] == [a.answer for a in common]


def test_answers_are_graded(models, monkeypatch):
    monkeypatch.setitem(GRADERS, "same text", lambda reference, text: text == reference)
    model, problems = with_ends(models["qwen2"], None), problem_set(8)
    said = generate(model, problems, max_new_tokens=6)
    assert not any(a.correct for a in said)  # they state nothing after a '#'
    right = {a.problem for a in said if a.text.strip()} - {"p0", "p1"}
    assert 0 < len(right) < len(problems)
    known = rc.ProblemSet(
        "known",
        tuple(
            rc.Problem(p.id, p.question, a.text if p.id in right else f"{a.text} w")
            for p, a in zip(problems, said, strict=True)
        ),
        "same text",
    )
    assert {a.problem for a in generate(model, known, max_new_tokens=6, batch_size=3) if a.correct} == right


def test_the_end_of_the_context(models):
    model = with_ends(models["llama"], None)  # 64 positions
    words = [" ".join(WORDS[(i + k) % 50] for k in range(n)) for i, n in enumerate((4, 60, 55, 60))]
    problems = rc.ProblemSet("long", tuple(rc.Problem(f"p{i}", w, "x") for i, w in enumerate(words)), "final")
    with pytest.warns(UserWarning, match=r"3 of 4 prompts leave less than max_new_tokens=10 .*problem 'p1' leaves 4"):
        answers = generate(model, problems, max_new_tokens=10)
    for answer, longest in zip(answers, (10, 4, 9, 4), strict=True):
        assert (answer.answer, answer.finished) == one_by_one(model, answer.prompt, end_tokens(model), longest)
    too_long = rc.ProblemSet("l", (problems[0], rc.Problem("the-long-one", " ".join(WORDS * 2), "x")), "final")
    with pytest.raises(InputError, match="problem 'the-long-one' has 100 tokens.* 64 "):
        generate(model, too_long, max_new_tokens=10)


def test_an_interruption_leaves_the_model_as_it_was(models, monkeypatch):
    model = with_ends(models["qwen2"], ENDS)
    before, calls, real = model.hf.generation_config, [], model.hf.generate

    def interrupted(**kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(**kwargs)

    monkeypatch.setattr(model.hf, "generate", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        generate(model, problem_set(), max_new_tokens=3, batch_size=4)
    assert len(calls) == 2 and model.hf.generation_config is before


def test_too_little_memory_halves_an_automatic_batch(models, monkeypatch):
    model, problems = with_ends(models["qwen2"], ENDS), problem_set()
    expected = generate(model, problems, max_new_tokens=6)
    sizes, real = [], model.hf.generate

    def limited(at_most):
        def call(**kwargs):
            sizes.append(len(kwargs["input_ids"]))
            if sizes[-1] > at_most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(**kwargs)

        return call

    monkeypatch.setattr(model.hf, "generate", limited(3), raising=False)
    assert generate(model, problems, max_new_tokens=6) == expected
    assert sizes == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    with pytest.raises(InputError, match="batch_size=4 does not fit"):
        generate(model, problems, max_new_tokens=6, batch_size=4)
    monkeypatch.setattr(model.hf, "generate", limited(0), raising=False)
    with pytest.raises(InputError, match="not even one answer"):
        generate(model, problems, max_new_tokens=6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "no place"}, "expected a template with one '{question}'"),
        ({"prompt": "{question} {question}"}, "expected a template with one"),
        ({"prompt": "chat"}, "no chat template"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"batch_size": 0}, "batch_size is 0.*or 'auto'"),
        ({"batch_size": "big"}, "batch_size is 'big'"),
    ],
)
def test_bad_settings_of_generation(models, arguments, says):
    with pytest.raises(InputError, match=says):
        generate(models["qwen2"], problem_set(2), **arguments)


# Files


answers_strategy = st.lists(
    st.builds(
        Answer,
        problem=st.text(),
        prompt=st.lists(st.integers(0, 2**31), max_size=4),
        answer=st.lists(st.integers(0, 2**31), max_size=4),
        text=st.text(),
        correct=st.booleans(),
        finished=st.booleans(),
    ),
    max_size=4,
)


@settings(max_examples=30)
@given(answers_strategy, st.sampled_from(["parquet", "jsonl"]))
def test_answers_come_back(tmp_path_factory, answers, suffix):
    file = tmp_path_factory.mktemp("answers") / f"answers.{suffix}"
    save_answers(answers, file)
    assert load_answers(file) == answers


def test_files_that_hold_no_answers(tmp_path):
    with pytest.raises(InputError, match="not as '.*answers.csv'"):
        save_answers([], tmp_path / "answers.csv")
    with pytest.raises(InputError, match="no answers at"):
        load_answers(tmp_path / "answers.jsonl")
    for name, content in (("a.jsonl", b'{"problem": "a"'), ("b.parquet", b"PAR1"), ("c.jsonl", b"\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="holds no answers that can be read"):
            load_answers(tmp_path / name)
    (tmp_path / "d.jsonl").write_text('{"problem": "a", "prompt": [1], "answer": 3}\n')
    with pytest.raises(InputError, match="row 0: expected 'answer' to be a list"):
        load_answers(tmp_path / "d.jsonl")


# Selection


def answer(problem, length, correct=True, prompt=3):
    return Answer(problem, tuple(range(prompt)), tuple(range(length)), "", correct, True, correct)


def sides(base, tuned):
    """Answers from ``{problem: length}``; a length of None is a wrong answer of 10 tokens."""

    def made(lengths):
        return [answer(q, 10 if n is None else n, n is not None) for q, n in lengths.items()]

    return made(base), made(tuned)


def test_by_hand():
    base, tuned = sides(
        {"a": 10, "b": 12, "c": None, "d": 10, "e": 40, "f": 4, "g": 10, "h": 2},
        {"a": 10, "b": 8, "c": 10, "d": None, "e": 40, "f": 12, "g": 10, "h": 2},
    )
    tuned[6] = answer("g", 10, prompt=4)
    chosen = select(base, tuned, alpha=0.3)
    # Both correct: a b e f g h, mean lengths 10 10 40 8 10 2, so T̄ = 80 / 6; β T̄ = 6.67 drops h, γ T̄ = 20 drops e;
    # f differs by 8 of 8; the prompts of g differ.
    assert chosen.t_bar == pytest.approx(80 / 6) and chosen.t_cut == 4 and chosen.alpha == 0.3
    assert chosen.problems == ("a", "b")
    assert chosen.dropped[["dropped", "left"]].values.tolist() == [
        [2, 6],
        [0, 6],
        [2, 4],
        [1, 3],
        [1, 2],
        [0, 2],
    ]
    assert list(chosen.dropped.rule) == [
        "both answers correct",
        "no answer empty",
        "mean length in [βT̄, γT̄]",
        "lengths differ by at most δ",
        "prompts equally long",
        "drawn",
    ]
    assert "base 87.5% correct, tuned 87.5%" in chosen.dropped.detail[0]
    assert "fewer than n = 100 were left" in chosen.dropped.detail[5]
    assert [t.problem for t in chosen.base_traces] == [t.problem for t in chosen.tuned_traces] == ["a", "b"]
    assert [len(t.answer) for t in chosen.tuned_traces] == [10, 8]


def test_the_published_codes_mean():
    base, tuned = sides({"a": 10, "b": 20}, {"a": 8, "b": 12})
    assert select(base, tuned, 0.5).t_bar == 12.5
    assert select(base, tuned, 0.5, mean="code").t_bar == 10
    assert select(tuned, base, 0.5, mean="code").t_bar == 10
    assert select(base, tuned, 0.5).t_cut == 6 and select(base, tuned, 0.5, mean="code").t_cut == 5


@pytest.mark.parametrize(
    ("alpha", "length", "cut"),
    [
        (0.3, 9, 2),
        (0.29, 100, 29),
        (0.1, 30, 3),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.03, 10, 1),
        (0.001, 10, 1),
        (1, 7, 7),
        (0.57, 100, 57),
    ],
)
def test_the_cut_is_the_floor_of_the_decimal_product(alpha, length, cut):
    base, tuned = sides({"a": length}, {"a": length})
    assert select(base, tuned, alpha).t_cut == cut


def test_the_limits_themselves_are_kept():
    base, tuned = sides({"a": 5, "b": 15, "c": 10, "d": 10}, {"a": 5, "b": 15, "c": 10, "d": 10})
    assert select(base, tuned, 0.3).problems == ("a", "b", "c", "d")  # T̄ = 10, limits 5 and 15
    base, tuned = sides({"a": 5, "b": 15}, {"a": 3, "b": 17})
    assert select(base, tuned, 0.3, beta=0, gamma=9).problems == ("a", "b")  # 2 of 4 is just δ = 0.5
    assert select(base, tuned, 0.3, beta=0, gamma=9, delta=0.49).problems == ("b",)


def test_all_answers_may_be_kept_but_not_empty_ones():
    base, tuned = sides({"a": None, "b": 10, "c": 0}, {"a": 10, "b": None, "c": 10})
    chosen = select(base, tuned, 0.5, keep="all")
    assert chosen.problems == ("a", "b") and chosen.t_bar == 10
    assert chosen.dropped.rule[0] == "no answer empty" and list(chosen.dropped.dropped)[:2] == [1, 0]


def test_the_draw_is_seeded_and_in_order():
    names = [f"p{i}" for i in range(50)]
    base, tuned = sides(dict.fromkeys(names, 10), dict.fromkeys(names, 10))
    drawn = {seed: select(base, tuned, 0.5, n=10, seed=seed).problems for seed in range(5)}
    assert len(set(drawn.values())) == 5
    for seed, problems in drawn.items():
        assert len(set(problems)) == 10 and list(problems) == [n for n in names if n in problems]
        assert select(base[::-1], tuned, 0.5, n=10, seed=seed).problems == problems[::-1]
        assert set(problems) < set(select(base, tuned, 0.5, n=11, seed=seed).problems)
    last = select(base, tuned, 0.5, n=10).dropped.iloc[-1]
    assert (last["dropped"], last["left"], last["detail"]) == (40, 10, "n = 10, seed 42")


lengths = st.integers(0, 30)
rows = st.lists(
    st.tuples(lengths, lengths, st.booleans(), st.booleans(), st.sampled_from([3, 3, 4])),
    min_size=1,
    max_size=12,
)
hundredths = st.integers(0, 200).map(lambda i: i / 100)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    rows,
    st.integers(1, 100),
    st.lists(hundredths, min_size=2, max_size=2),
    hundredths,
    st.sampled_from(["paper", "code"]),
    st.sampled_from(["both-correct", "all"]),
)
def test_against_a_restatement(table, percent, limits, delta, mean, keep):
    """The rules once more, over integers only: all lengths doubled, all settings in hundredths."""
    base = [answer(str(i), b, ok) for i, (b, _, ok, _, _) in enumerate(table)]
    tuned = [answer(str(i), t, ok, prompt) for i, (_, t, _, ok, prompt) in enumerate(table)]
    beta, gamma = sorted(limits)
    arguments = {"beta": beta, "gamma": gamma, "delta": delta, "mean": mean, "keep": keep}

    frame = pd.DataFrame(table, columns=["base", "tuned", "base_ok", "tuned_ok", "prompt"])
    if keep == "both-correct":
        frame = frame[frame.base_ok & frame.tuned_ok]
    frame = frame[(frame.base > 0) & (frame.tuned > 0)]
    total = frame.base + frame.tuned
    count = len(frame)
    doubled = int(total.sum() if mean == "paper" else 2 * min(frame.base.sum(), frame.tuned.sum()))  # 2 T̄ × count
    expected = frame[
        (round(beta * 100) * doubled <= 100 * count * total)
        & (100 * count * total <= round(gamma * 100) * doubled)
        & (200 * (frame.base - frame.tuned).abs() <= round(delta * 100) * total)
        & (frame.prompt == 3)
    ]
    if expected.empty:
        with pytest.raises(InputError, match="no problem is left by the rule"):
            select(base, tuned, percent / 100, **arguments)
        return
    chosen = select(base, tuned, percent / 100, **arguments)
    assert chosen.problems == tuple(str(i) for i in expected.index)
    assert chosen.t_bar == pytest.approx(doubled / count / 2, rel=1e-15)
    assert chosen.t_cut == max((percent * doubled) // (200 * count), 1)
    flow = chosen.dropped
    assert list(flow.left + flow.dropped) == [len(table), *flow.left[:-1]]
    for traces, side in ((chosen.base_traces, 0), (chosen.tuned_traces, 1)):
        assert [len(t.answer) for t in traces] == [table[int(q)][side] for q in chosen.problems]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"alpha": 0}, "alpha is 0: expected a share"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": 1.01}, "at most 1"),
        ({"alpha": math.nan}, "alpha is nan: expected a finite number"),
        ({"alpha": "0.3"}, "alpha is '0.3'"),
        ({"alpha": True}, "alpha is True"),
        ({"beta": 2}, "beta is 2 and gamma is 1.5"),
        ({"beta": -1}, "beta is -1"),
        ({"gamma": math.inf}, "gamma is inf"),
        ({"delta": -0.5}, "delta is -0.5"),
        ({"n": 0}, "n is 0"),
        ({"n": 1.5}, "n is 1.5"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"mean": "papers"}, "unknown mean 'papers'.*did you mean 'paper'"),
        ({"keep": "both"}, "unknown keep 'both'"),
    ],
)
def test_settings_out_of_range(arguments, says):
    base, tuned = sides({"a": 5}, {"a": 5})
    with pytest.raises(InputError, match=says):
        select(base, tuned, **{"alpha": 0.3, **arguments})


def test_nothing_left_says_why_and_what_to_do():
    base, tuned = sides({"a": 10, "b": None, "c": None, "d": None}, {"a": None, "b": 10, "c": 10, "d": None})
    with pytest.raises(InputError, match=r"base 25.0% correct, tuned 50.0%.*easier problems.*keep='all'"):
        select(base, tuned, 0.3)
    base, tuned = sides({"a": 4}, {"a": 12})
    with pytest.raises(InputError, match="lengths differ by at most δ.*raise delta"):
        select(base, tuned, 0.3)
    with pytest.raises(InputError, match="lower beta or raise gamma"):
        select(base, tuned, 0.3, beta=0.1, gamma=0.2)
    base, tuned = sides({"a": 4}, {"a": 4})
    with pytest.raises(InputError, match="tokenizers or chat templates differ"):
        select(base, [answer("a", 4, prompt=9)], 0.3)
    with pytest.raises(InputError, match="end their answers at once"):
        select(*sides({"a": 0}, {"a": 0}), 0.3)


@pytest.mark.parametrize(
    ("base", "tuned", "says"),
    [
        ([], [("a", 1)], "no answers of the base model"),
        ([("a", 1)], [], "no answers of the tuned model"),
        ([("a", 1), ("a", 2)], [("a", 1)], "base model has two answers to problem 'a'"),
        ([("a", 1), ("b", 2)], [("a", 1)], "1 in one only, first 'b', of the base"),
        ([("a", 1)], [("a", 1), ("c", 1)], "first 'c', of the tuned"),
    ],
)
def test_answers_must_be_to_the_same_problems(base, tuned, says):
    with pytest.raises(InputError, match=says):
        select([answer(*b) for b in base], [answer(*t) for t in tuned], 0.3)


def test_a_whole_way_from_models_to_traces(models):
    base, tuned = (with_ends(models[name], ENDS) for name in ("qwen2", "llama"))
    problems = problem_set(30)
    answers = [generate(m, problems, max_new_tokens=12) for m in (base, tuned)]
    chosen = select(*answers, alpha=0.5, keep="all", n=5)
    by_problem = [{a.problem: a for a in side} for side in answers]
    for q, b, t in zip(chosen.problems, chosen.base_traces, chosen.tuned_traces, strict=True):
        assert (b.prompt, b.answer) == (by_problem[0][q].prompt, by_problem[0][q].answer)
        assert (t.prompt, t.answer) == (by_problem[1][q].prompt, by_problem[1][q].answer)
    all_lengths = [len(a.answer) for a in itertools.chain(*answers)]
    nonempty = [Fraction(x + y, 2) for x, y in zip(all_lengths[:30], all_lengths[30:], strict=True) if x and y]
    assert chosen.t_bar == float(sum(nonempty) / len(nonempty))


def test_a_question_that_spells_out_a_special_token_is_said(recwarn):
    from rlcircuits.answers.answer import SpecialTokens, expect_plain_text
    from tests.fixtures.checkpoints import tokenizer

    own = tokenizer()
    end = own.eos_token
    problems = rc.ProblemSet(
        "own", (rc.Problem("p0", f"what is {end} here", "x"), rc.Problem("p1", "what", "x")), "final"
    )
    with pytest.warns(SpecialTokens, match=f"1 question of own spells out special tokens .problem 'p0' holds '{end}'"):
        expect_plain_text(own, problems)
    recwarn.clear()
    expect_plain_text(own, rc.ProblemSet("own", problems.problems[1:], "final"))
    assert not recwarn.list


# Why problems fall away


def said_of(problem, text, correct=False, length=8, finished=True):
    return Answer(problem, (1, 2), tuple(range(length)), text, correct, finished, False)


def test_each_rule_says_of_each_model_how_many_fell_away_and_why():
    from rlcircuits.answers.reasons import told

    base = [said_of(f"p{i}", "so 5", True) for i in range(20)]
    tuned = list(base)
    for i in range(5):
        base[i] = said_of(f"p{i}", f"9 * 9 = {i}")
    base[5] = said_of("p5", "I do not know.")
    tuned[5] = said_of("p5", "9 * 9 = 8", finished=False)
    base[6] = said_of("p6", "", length=0)
    tuned[7] = said_of("p7", "so 5", True, length=30)
    chosen = select(base, tuned, 0.5)
    found = {(row["model"], row["reason"]): row["problems"] for row in chosen.reasons.to_dict("records")}
    assert found == {
        ("base", "wrong"): 5,
        ("base", "states no answer"): 1,
        ("base", "says nothing"): 1,
        ("tuned", "cut off"): 1,
        ("both", "mean length in [βT̄, γT̄]"): 1,
    }
    examples = chosen.reasons.set_index(["model", "reason"])["examples"]
    assert examples["base", "wrong"].splitlines() == [f"p{i}: '9 * 9 = {i}'" for i in range(3)]
    assert examples["both", "mean length in [βT̄, γT̄]"] == "p7: 8 and 30 tokens"
    text = told(chosen.reasons)
    assert "     5  base: wrong\n          p0: '9 * 9 = 0'" in text and "tuned: cut off" in text
    left = {row["rule"]: row["dropped"] for row in chosen.dropped.to_dict("records")}
    assert left["both answers correct"] == 7 and len(chosen.problems) == 12


def test_nothing_left_holds_the_reasons_too():
    from rlcircuits.answers import NothingLeft

    with pytest.raises(NothingLeft, match="no problem is left") as caught:
        select([said_of("p", "a long " * 30 + "tale")], [said_of("p", "5", True)], 0.5)
    (row,) = caught.value.reasons.to_dict("records")
    assert row["reason"] == "states no answer" and row["examples"].startswith("p: '…") and len(row["examples"]) < 100
    assert len(str(caught.value).splitlines()) == 1


def test_few_problems_and_few_tokens_are_cautioned_of():
    class Letters:
        def decode(self, ids):
            return "".join("abcdefgh"[i] for i in ids)

    many = [said_of(f"p{i}", "5", True) for i in range(10)]
    assert select(many, many, 0.9).cautions(Letters()) == []
    (few,) = select(many[:9], many[:9], 0.9).cautions(Letters())
    assert "only 9 problems are left" in few
    (cut,) = select(many, many, 0.3).cautions(Letters())
    assert cut == "T_cut is 2: only the first 2 tokens of each answer count, such as 'ab'; a larger alpha scores more"
