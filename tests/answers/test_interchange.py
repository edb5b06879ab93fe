"""Answers in and out of a file, from other engines, and after an interruption."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

import rlcircuits as rc
from rlcircuits.answers import generation as making
from rlcircuits.answers.interchange import OtherPrompts
from rlcircuits.cli.main import main
from rlcircuits.models.outline import outline_of
from tests.fixtures.checkpoints import WORDS, save

LONGEST = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("interchange")
    for seed, name in enumerate(("base", "tuned")):
        save(root / name, layers=2, seed=seed)
    asked = tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 3]), WORDS[i]) for i in range(6))
    problems = rc.ProblemSet("words", asked, "final")
    pair = rc.ModelPair("own", root / "base", root / "tuned", max_new_tokens=LONGEST)
    made = rc.generate_pair(pair, problems, root / "runs", "cpu")
    rc.write_answers(made, root / "answers.jsonl")
    return SimpleNamespace(
        root=root, pair=pair, problems=problems, made=made, outlines=pair.check(), file=root / "answers.jsonl"
    )


def lines(world):
    return [json.loads(line) for line in world.file.read_text().splitlines()]


def written(folder, rows, name="other.jsonl"):
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def read(world, file):
    return rc.read_answers(file, world.problems, world.outlines)


# Files


def test_answers_come_back_as_they_were(world, tmp_path):
    assert read(world, world.file) == world.made
    rows = lines(world)
    assert len(rows) == 12 and set(rows[0]) == {
        "side",
        "problem",
        "prompt",
        "answer",
        "text",
        "correct",
        "finished",
        "strict",
    }
    least = [{key: row[key] for key in ("side", "problem", "answer", "finished")} for row in reversed(rows)]
    assert read(world, written(tmp_path, least)) == world.made
    sides = [
        written(
            tmp_path,
            [{k: v for k, v in row.items() if k != "side"} for row in rows if row["side"] == side],
            f"{side}.jsonl",
        )
        for side in ("base", "tuned")
    ]
    assert read(world, tuple(sides)) == world.made


def test_texts_and_verdicts_are_made_anew(world, tmp_path):
    lies = [row | {"text": "# everything", "correct": True} for row in lines(world)]
    assert read(world, written(tmp_path, lies)) == world.made


def test_an_ending_token_ends_the_answer(world, tmp_path):
    end = world.outlines[0].ends[0]
    ended = [row | {"answer": row["answer"] + [end]} for row in lines(world)]
    for row in ended:
        del row["finished"]
    found = read(world, written(tmp_path, ended))
    assert [a.answer for a in found["base"]] == [a.answer for a in world.made["base"]]
    assert all(a.finished for a in found["base"])


@pytest.mark.slow
def test_a_study_of_imported_answers_is_that_of_generated_ones(world, monkeypatch):
    settings = {"keep": "all", "alpha": 1.0, "device": "cpu", "store": world.root / "runs"}
    expected = rc.study(world.pair, world.problems, **settings)
    monkeypatch.setattr("rlcircuits.studies.steps.generate", lambda *_a, **_k: pytest.fail("a model answered"))
    found = rc.study(world.pair, world.problems, answers=world.file, **settings)
    assert found.table().equals(expected.table())
    assert (
        rc.study([world.pair], world.problems, answers={"own": world.file}, **settings).table().equals(expected.table())
    )
    with pytest.raises(rc.InputError, match="unknown pair in answers 'ow'.*did you mean 'own'"):
        rc.study([world.pair], world.problems, answers={"ow": world.file}, **settings)


def test_other_prompts_are_kept_and_said(world, tmp_path):
    rows = lines(world)
    rows[3]["prompt"] = [5, *rows[3]["prompt"]]
    file = written(tmp_path, rows)
    with pytest.warns(OtherPrompts, match=r"1 prompts are not .*other.jsonl', line 4\)"):
        found = read(world, file)
    assert found["base"][3].prompt == tuple(rows[3]["prompt"])


def first(**changes):
    return lambda rows: [{k: v for k, v in (rows[0] | changes).items() if v is not None}, *rows[1:]]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda rows: rows[1:], "lacks 1 of 6 answers of the base model, first to 'p0'"),
        (lambda rows: [rows[0], *rows], "line 2: a second answer of base to 'p0'; the first is .*line 1"),
        (first(problem="p00"), "line 1: 'p00' is no problem of 'words'; did you mean"),
        (first(problem=None), "line 1 has no problem: expected the id of one; did you mean"),
        (first(problem=7), "line 1: problem is 7: expected a text"),
        (first(side=None), "line 1 has no 'side'"),
        (first(side="tune"), "side is 'tune'.*did you mean 'tuned'"),
        (first(answer=None), "line 1 has no answer: expected token ids"),
        (first(answer="3 4"), "answer is '3 4': expected a list"),
        (first(answer=[3, 61]), r"answer\[1\] is 61: expected a token id of the model, 0 to 60"),
        (first(answer=[3, -1]), r"answer\[1\] is -1"),
        (first(answer=[3, 4.0]), r"answer\[1\] is 4.0: expected a token id"),
        (first(answer=[True]), r"answer\[0\] is True"),
        (first(answer=[3, 1, 4]), "goes on after token 1 at position 1, which ends it"),
        (first(answer=[3, 1], finished=False), "'finished' is false, but the answer ends"),
        (first(prompt=[]), "the prompt has no tokens"),
        (first(finish=True), "unknown key 'finish'.*did you mean 'finished'"),
        (first(finished=1), "finished is 1: expected true or false"),
        (lambda rows: ["{", *rows], "line 1 is not JSON"),
        (lambda rows: ["[1]", *rows], "line 1 holds a list"),
        (lambda rows: ["", " "], "holds no answers"),
    ],
)
def test_mistakes_are_named_with_file_and_line(world, tmp_path, damage, says):
    file = written(tmp_path, damage(lines(world)))
    with pytest.raises(rc.InputError, match=says) as caught:
        read(world, file)
    assert "other.jsonl" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_files_that_are_not_there(world, tmp_path):
    with pytest.raises(rc.InputError, match="no answers at"):
        read(world, tmp_path / "none.jsonl")
    with pytest.raises(rc.InputError, match="3 files of answers are given"):
        read(world, (world.file,) * 3)
    with pytest.raises(rc.InputError, match="exchanged as .jsonl"):
        rc.write_answers(world.made, tmp_path / "a.parquet")
    with pytest.raises(rc.InputError, match="unknown side 'bas'.*did you mean 'base'"):
        rc.write_answers({"bas": []}, tmp_path / "a.jsonl")


@pytest.mark.slow
def test_the_shell_writes_and_reads_them(world, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(
        json.dumps(
            {"own": {"base": str(world.root / "base"), "tuned": str(world.root / "tuned"), "max_new_tokens": LONGEST}}
        )
    )
    rows = [json.dumps({"id": p.id, "question": p.question, "answer": p.reference}) + "\n" for p in world.problems]
    (tmp_path / "words.jsonl").write_text("".join(rows))
    common = [
        "--pair",
        "own",
        "--pairs",
        tmp_path / "own.yaml",
        "--problems",
        tmp_path / "words.jsonl",
        "--id",
        "id",
        "--grader",
        "final",
    ]
    common += ["--device", "cpu", "--store", tmp_path / "runs"]
    assert main([str(x) for x in ["answers", *common, "--out", tmp_path / "a.jsonl"]]) == 0
    assert (tmp_path / "a.jsonl").read_text() == world.file.read_text()
    more = ["--keep", "all", "--answers", tmp_path / "a.jsonl", "--out", tmp_path / "out"]
    assert main([str(x) for x in ["attribute", *common, *more]]) == 0
    assert main([str(x) for x in ["answers", *common, "--engine", "vlm", "--out", tmp_path / "b.jsonl"]]) == 2
    assert "did you mean 'vllm'" in capsys.readouterr().err


# An interrupted generation goes on


def test_answers_go_on_where_they_stopped(world, tmp_path, monkeypatch):
    model = rc.load_model(world.root / "base", device="cpu")
    expected = rc.generate(model, world.problems, max_new_tokens=LONGEST)
    sizes, real = [], making._answer_batch

    def counted(model, texts, room, hear, stop=None):
        if stop is not None and len(sizes) == stop:
            raise KeyboardInterrupt
        sizes.append(len(texts))
        return real(model, texts, room, hear)

    monkeypatch.setattr(making, "_answer_batch", lambda *a: counted(*a, stop=2))
    with pytest.raises(KeyboardInterrupt):
        rc.generate(model, world.problems, max_new_tokens=LONGEST, batch_size=2, resume=tmp_path)
    monkeypatch.setattr(making, "_answer_batch", counted)
    assert rc.generate(model, world.problems, max_new_tokens=LONGEST, batch_size=1, resume=tmp_path) == expected
    assert sizes == [2, 2, 1, 1]  # what was finished was not made again
    assert rc.generate(model, world.problems, max_new_tokens=LONGEST, resume=tmp_path) == expected and sizes == [
        2,
        2,
        1,
        1,
    ]
    with pytest.warns(UserWarning, match="differs in max_new_tokens"):
        rc.generate(model, world.problems, max_new_tokens=LONGEST - 1, resume=tmp_path)
    assert len(sizes) > 4


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_an_answer_goes_on_in_its_middle(world, tmp_path, monkeypatch, kept):
    """Interrupted after a few tokens of a batch, the same call prompts the model with what it had said already."""
    model = rc.load_model(world.root / "base", device="cpu")
    expected = rc.generate(model, world.problems, max_new_tokens=LONGEST)
    assert max(len(a.answer) for a in expected) > kept + 1
    monkeypatch.setattr(making, "_SECONDS", 0.0)
    add, heard = making._Said.add, []

    def interrupted(said, *more):
        if len(heard) == kept:
            raise KeyboardInterrupt
        add(said, *more)
        heard.append(dict(said.begun))

    monkeypatch.setattr(making._Said, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rc.generate(model, world.problems, max_new_tokens=LONGEST, resume=tmp_path)
    monkeypatch.setattr(making._Said, "add", add)
    begun = {i: a.answer[:kept] for i, a in enumerate(expected) if not (a.finished and len(a.answer) < kept)}
    assert not kept or {i: tuple(ids) for i, ids in heard[-1].items()} == begun
    calls, real = [], model.hf.generate
    monkeypatch.setattr(
        model.hf, "generate", lambda **given: calls.append(given["max_new_tokens"]) or real(**given), raising=False
    )
    assert rc.generate(model, world.problems, max_new_tokens=LONGEST, batch_size=2, resume=tmp_path) == expected
    assert set(calls) == {LONGEST - kept} and len(calls) == math.ceil(len(begun) / 2)
    calls.clear()
    assert rc.generate(model, world.problems, max_new_tokens=LONGEST, resume=tmp_path) == expected and not calls


def test_a_torn_journal_loses_only_its_end(world, tmp_path, monkeypatch):
    model = rc.load_model(world.root / "base", device="cpu")
    expected = rc.generate(model, world.problems, max_new_tokens=LONGEST, batch_size=2, resume=tmp_path)
    file = next(tmp_path.glob("*.journal"))
    whole, sizes, real = file.read_bytes(), [], making._answer_batch
    monkeypatch.setattr(
        making, "_answer_batch", lambda m, texts, *more: sizes.append(len(texts)) or real(m, texts, *more)
    )
    file.write_bytes(whole[:-3])
    with pytest.warns(UserWarning, match="damaged end"):
        assert rc.generate(model, world.problems, max_new_tokens=LONGEST, batch_size=2, resume=tmp_path) == expected
    assert sizes == [2]


# vLLM: a stand-in for it, as it cannot be run here; what is checked is the call and what is made of its output


class StandIn(ModuleType):
    """Answers a prompt by the oracle's ids, in the shape of vLLM's documented output; it is not vLLM."""

    def __init__(self, said, keep_end):
        super().__init__("vllm")
        self.calls = calls = []

        class SamplingParams:
            def __init__(self, **settings):
                self.settings = settings

        class LLM:
            def __init__(self, **settings):
                calls.append(settings)

            def generate(self, prompts, settings, use_tqdm):
                assert len(prompts) == len(settings) and use_tqdm is False
                calls.append([(p, s.settings) for p, s in zip(prompts, settings)])
                return [self.output(tuple(p["prompt_token_ids"]), s.settings) for p, s in zip(prompts, settings)]

            def output(self, prompt, settings):
                ids, finished = said[prompt]
                ends = settings["stop_token_ids"][:1] if finished and keep_end else []
                one = SimpleNamespace(token_ids=[*ids, *ends], finish_reason="stop" if finished else "length")
                return SimpleNamespace(outputs=[one])

        self.LLM, self.SamplingParams = LLM, SamplingParams


@pytest.mark.parametrize("keep_end", [True, False])
def test_the_call_of_vllm_by_a_stand_in(world, monkeypatch, keep_end):
    model = rc.load_model(world.root / "base", device="cpu")
    expected = rc.generate(model, world.problems, max_new_tokens=LONGEST)
    stand_in = StandIn({a.prompt: (a.answer, a.finished) for a in expected}, keep_end)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    outline = outline_of(world.root / "base")
    assert rc.generate(outline, world.problems, max_new_tokens=LONGEST, engine="vllm") == expected
    loaded, asked = stand_in.calls
    assert (
        loaded["model"] == str(world.root / "base")
        and loaded["trust_remote_code"] is False
        and loaded["generation_config"] == "vllm"
    )
    assert len(asked) == len(expected)
    for prompt, settings in asked:
        assert set(prompt) == {"prompt_token_ids"} and all(isinstance(i, int) for i in prompt["prompt_token_ids"])
        assert (
            settings["temperature"] == 0.0
            and settings["max_tokens"] == LONGEST
            and settings["stop_token_ids"] == list(outline.ends)
        )


def test_without_vllm_the_extra_is_named(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(rc.InputError, match=r"pip install 'rlcircuits\[vllm\]'"):
        rc.generate(outline_of(world.root / "base"), world.problems, engine="vllm")
    with pytest.raises(rc.InputError, match="did you mean 'transformers'"):
        rc.generate(outline_of(world.root / "base"), world.problems, engine="transformer")
