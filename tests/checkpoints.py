"""Small real checkpoints on disk: random weights, a saved word-level tokenizer, safetensors."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models import tiny

WORDS = [f"w{i}" for i in range(50)]


def tokenizer(words=tuple(WORDS)):
    """A saved-and-loadable word-level tokenizer with <pad>, <eos> and <unk>."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def save(folder: Path, architecture="qwen2", words=tuple(WORDS), **options) -> Path:
    """Write a tiny checkpoint to `folder`."""
    tiny(architecture, torch.float32, **options).save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder
