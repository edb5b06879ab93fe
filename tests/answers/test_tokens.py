"""Labels of tokens, on tokenizers whose pieces are known."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import rlcircuits as rc


def bytes_tokenizer():
    """Every byte is a token, so that a character may be several."""
    alphabet = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    inner = Tokenizer(BPE(vocab=alphabet, merges=[]))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False, use_regex=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def words_tokenizer(text):
    """Every word is a token, joined by spaces."""
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(dict.fromkeys(text.split()))}, unk_token="?"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize(
    ("answer", "result", "numbers"),
    [
        ("29 + 1 = 30 ; 30 - 2 = 28 # 28", "28", "291303022 8"),
        ("so 3 x 4 = 12, and \\boxed{12}.", "12", "3412"),
        ("so \\boxed{\\frac{1}{2}} of 8", "\\frac{1}{2}", "8"),
        ("3 apples\n#### 1,200\n", "1,200", "3"),
        ("There are 6 x 2 = 12 flowers in total.", "12", "62"),
        ("d’où 1 € à Noël, 7 €", "7", "1"),
        ("no number at all", "", ""),
    ],
)
def test_labels_of_bytes_spell_result_and_numbers(answer, result, numbers):
    tokenizer = bytes_tokenizer()
    ids = tokenizer(answer)["input_ids"]
    assert len(ids) == len(answer.encode())
    (labels,) = rc.token_groups(tokenizer, [rc.Trace("p", [1, 2, 3], ids)])
    assert labels[:3] == ["prompt"] * 3

    def spelt(label):
        return tokenizer.decode([token for token, one in zip(ids, labels[3:]) if one == label])

    assert spelt("result") == result
    assert spelt("numbers") == numbers.replace(" ", "")
    assert len(labels) == 3 + len(ids)


def test_labels_of_words():
    text = "29 + 1 = 30 ; 30 - 2 = 28 # 28"
    tokenizer = words_tokenizer(text)
    ids = tokenizer(text)["input_ids"]
    labels = rc.token_groups(tokenizer, [rc.Trace("a", ids[:2], ids), rc.Trace("b", ids[:1], ids[:5])])
    assert labels[0][2:] == [
        "result" if number == 12 else "numbers" if word.isdigit() else "working"
        for number, word in enumerate(text.split())
    ]
    assert labels[1] == ["prompt", "numbers", "working", "numbers", "working", "result"]


def test_a_tokenizer_is_expected():
    with pytest.raises(rc.InputError, match="expected a tokenizer"):
        rc.token_groups("smollm", [rc.Trace("p", [1], [2])])
