"""Prompts against texts and ids written out by hand."""

from __future__ import annotations

import json

import pytest

import rlcircuits as rc
from rlcircuits.answers import examples, prompt_of
from rlcircuits.errors import InputError
from rlcircuits.models import Prompt, decode_prompt, encode_prompt, packaged_folder
from rlcircuits.models.tokenizer import load_tokenizer
from tests.fixtures.checkpoints import WORDS, tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOWN = (("1 + 1 ?", "1 + 1 = 2\n#### 2"), ("2 + 3 ?", "5"))


def surrounding(start="<bos>", end=""):
    """A word-level tokenizer that puts special tokens around a text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer(("<bos>", "\\boxed{}", *WORDS))
    made.add_special_tokens({"bos_token": "<bos>"})
    ids = {token: made.convert_tokens_to_ids(token) for token in (start, end) if token}
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=list(ids.items())
    )
    return made


def ids_of(made, *tokens):
    return tuple(made.convert_tokens_to_ids(list(tokens)))


def test_templates_are_taken_as_they_are():
    made = tokenizer(("\\boxed{}", "{", "w0", "w1"))
    assert encode_prompt(made, "w1 {question} \\boxed{} {", "w0") == ids_of(made, "w1", "w0", "\\boxed{}", "{")


def test_special_tokens_come_before_once_and_never_after():
    made = surrounding(end="<eos>")
    assert made("w1")["input_ids"] == list(ids_of(made, "<bos>", "w1", "<eos>"))
    expected = ids_of(made, "<bos>", "w1", "w2")
    assert encode_prompt(made, "{question}", "w1 w2") == expected
    assert encode_prompt(made, "<bos> {question} w2", "w1") == expected
    assert encode_prompt(surrounding(start=""), "{question}", "w1 w2") == expected[1:]
    assert encode_prompt(made, "{question} <eos>", "w1") == ids_of(made, "<bos>", "w1", "<eos>")


def test_the_chat_template():
    made = tokenizer(("user", "assistant", *WORDS))
    made.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    assert encode_prompt(made, "chat", "w1 w2") == ids_of(made, "user", "w1", "w2", "assistant")


def test_a_prompt_needs_tokens():
    with pytest.raises(InputError, match="has no tokens"):
        encode_prompt(tokenizer(), "{question}", "  ")


def chat(template=CHATML):
    made = tokenizer()
    made.chat_template = template
    return made


def test_a_chat_with_system_text_instruction_and_examples():
    prompt = Prompt("chat", "Be brief.", "Think first.", SHOWN)
    assert prompt.text(chat(), "7 - 4 ?") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1 + 1 ?\nThink first.<|im_end|>\n<|im_start|>assistant\n1 + 1 = 2\n#### 2<|im_end|>\n"
        "<|im_start|>user\n2 + 3 ?\nThink first.<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
        "<|im_start|>user\n7 - 4 ?\nThink first.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_with_examples_is_as_lm_evaluation_harness_writes_them():
    prompt = Prompt("Question: {question}\nAnswer:", examples=SHOWN)
    assert prompt.text(tokenizer(), "7 - 4 ?") == (
        "Question: 1 + 1 ?\nAnswer: 1 + 1 = 2\n#### 2\n\nQuestion: 2 + 3 ?\nAnswer: 5\n\nQuestion: 7 - 4 ?\nAnswer:"
    )
    assert Prompt("Q {question}\n", instruction="Add: {question} !", examples=SHOWN[1:]).text(tokenizer(), "1 ?") == (
        "Q Add: 2 + 3 ? !\n5\n\nQ Add: 1 ? !\n"
    )


def test_a_prompt_enters_keys_as_its_template_until_it_is_more():
    assert Prompt("Q {question}").key == "Q {question}" and Prompt("chat").key == "chat"
    whole = Prompt("chat", "a", "b", SHOWN).key
    assert json.loads(json.dumps(whole)) == whole
    keys = [
        json.dumps(prompt.key)
        for prompt in (
            Prompt("chat"),
            Prompt("chat", "a"),
            Prompt("chat", instruction="a"),
            Prompt("chat", examples=(("a", "b"),)),
            Prompt("chat", examples=(("a", "c"),)),
        )
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Prompt("Q: {question}", system="Be brief."), "system is the first turn of a chat"),
        (
            lambda: Prompt("Q: {qestion}"),
            "prompt is 'Q: {qestion}': expected a template with one '{question}', or 'chat'",
        ),
        (lambda: Prompt(instruction="{question} {question}"), "expected '{question}' once, or not at all"),
        (lambda: Prompt(instruction=3), "instruction is 3: expected a text"),
        (lambda: Prompt("chat").text(tokenizer(), "1 ?"), "the tokenizer has no chat template"),
        (
            lambda: Prompt("chat", "Be brief.").text(chat("{{ messages[-1]['content'] }}"), "1 ?"),
            "leaves system out: say it in instruction",
        ),
        (
            lambda: Prompt("chat", "Be brief.").text(chat("{{ raise_exception('System role not supported') }}"), "1 ?"),
            "refuses these turns (System role not supported): say it in instruction, not in system",
        ),
        (lambda: rc.ModelPair("x", "a", "b", system="Be brief."), "pair 'x': system is the first turn of a chat"),
        (
            lambda: rc.ModelPair("x", "a", "b", few_shot=3),
            "pair 'x': few_shot is 3, expected a problem set such as 'FILE:4'",
        ),
    ],
)
def test_prompts_that_cannot_be(made, says):
    with pytest.raises(InputError) as error:
        made()
    assert says in str(error.value)


def rows(path, numbers):
    path.write_text(
        "".join(json.dumps({"question": f"{n}  + {n} ?", "answer": f"#### {2 * n}"}) + "\n" for n in numbers)
    )
    return str(path)


def test_examples_are_never_among_the_problems_asked(tmp_path):
    asked = rc.load_problems(rows(tmp_path / "test.jsonl", [3, 1, 4]))
    file = rows(tmp_path / "train.jsonl", [1, 2, 3, 5, 6])
    assert examples(f"{file}:2", asked) == (("2  + 2 ?", "#### 4"), ("5  + 5 ?", "#### 10"))
    assert [question for question, _ in examples(file, asked)] == ["2  + 2 ?", "5  + 5 ?", "6  + 6 ?"]
    with pytest.raises(
        InputError, match=r"3 of its 5 problems are not among those asked; expected .*:N' with N from 1 to 3"
    ):
        examples(f"{file}:4", asked)
    with pytest.raises(InputError, match="all of its problems are among those asked"):
        examples(tmp_path / "test.jsonl", asked)
    with pytest.raises(InputError, match="no problems at '.*/nowhere.jsonl'"):
        examples(tmp_path / "nowhere.jsonl:2", asked)
    pair = rc.ModelPair("x", "a", "b", few_shot=f"{file}:1")
    assert prompt_of(pair, asked) == Prompt(examples=(("2  + 2 ?", "#### 4"),))
    with pytest.raises(InputError, match=r"the example '1 \+ 1 \?' is among the problems asked"):
        prompt_of(rc.ModelPair("x", "a", "b", few_shot=[("1 + 1 ?", "2")]), asked)


def test_a_pair_in_yaml_says_how_it_is_asked(tmp_path):
    rows(tmp_path / "train.jsonl", [1, 2])
    (tmp_path / "pairs.yaml").write_text(
        "own: {base: ./a, tuned: ./b, prompt: chat, system: Be brief., instruction: Think., few_shot: './train.jsonl:1'}\n"
    )
    pair = rc.pairs(tmp_path / "pairs.yaml")["own"]
    asked = rc.ProblemSet("p", (rc.Problem("0", "3 ?", "3"),), "final")
    assert prompt_of(pair, asked) == Prompt("chat", "Be brief.", "Think.", (("1  + 1 ?", "#### 2"),))


def test_answers_to_a_longer_prompt_are_others(tmp_path):
    from tests.fixtures.checkpoints import save

    folder = str(save(tmp_path / "model", layers=2))
    asked = rc.ProblemSet("p", (rc.Problem("0", "w1 w2", "w3"),), "final")
    plain = rc.ModelPair("x", folder, folder, max_new_tokens=4)
    shown = rc.ModelPair("x", folder, folder, max_new_tokens=4, few_shot=[("w4 w5", "w6")])
    found = [rc.generate_pair(pair, asked, tmp_path / "runs", "cpu") for pair in (plain, shown, plain)]
    assert [decode_prompt(tokenizer(), one["base"][0].prompt) for one in found] == ["w1 w2", "w4 w5 w6 w1 w2", "w1 w2"]
    assert len(list((tmp_path / "runs" / "answers").glob("[0-9a-f]*"))) == 2
    by_itself = rc.generate(shown.load("base", "cpu"), asked, prompt_of(shown, asked), 4)
    assert by_itself == found[1]["base"]


def test_what_a_model_reads_first_is_shown_with_its_special_tokens(tmp_path):
    from rlcircuits.studies import first_prompts
    from tests.fixtures.checkpoints import save

    for side in ("base", "tuned"):
        save(tmp_path / side, layers=2)
    made = surrounding(end="")
    made.save_pretrained(tmp_path / "base")
    made.save_pretrained(tmp_path / "tuned")
    asked = rc.ProblemSet("p", (rc.Problem("0", "w1 w2", "w3"), rc.Problem("1", "w3", "w3")), "final")
    pair = rc.ModelPair("x", str(tmp_path / "base"), str(tmp_path / "tuned"))
    assert first_prompts(pair, asked) == {"base": "<bos> w1 w2", "tuned": "<bos> w1 w2"}


@pytest.mark.skipif(packaged_folder("smollm2") is None, reason="the model is not here")
def test_a_real_chat_model_is_asked_in_its_own_form():
    made = load_tokenizer(packaged_folder("smollm2"))
    ids = encode_prompt(made, Prompt("chat", "Be brief.", "Think.", (("1 + 1 ?", "2"),)), "2 + 3 ?")
    assert decode_prompt(made, ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 ?\nThink.<|im_end|>\n<|im_start|>assistant\n"
        "2<|im_end|>\n<|im_start|>user\n2 + 3 ?\nThink.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len([token for token in ids if token == made.convert_tokens_to_ids("<|im_start|>")]) == 5
    messages = [{"role": "user", "content": "2 + 3 ?"}]
    own = made.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    assert encode_prompt(made, "chat", "2 + 3 ?") == tuple(own)
