"""The tokenizer of a checkpoint, by the rules of its own file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextlib.contextmanager
def quiet(local: bool) -> Iterator[None]:
    """Without transformers' notes while loading, and without its progress bars for what is here."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    try:
        hf_logging.set_verbosity_error()
        if local:
            hf_logging.disable_progress_bar()
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def load_tokenizer(
    path: str | os.PathLike[str], revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer that a checkpoint's ``tokenizer.json`` describes.

    For some model types (Qwen2 among them) transformers 5 replaces the declared tokenizer by the model type's own and
    so may lose the file's rules. Where the checkpoint declares the generic class, or the rules for normalising and
    splitting that were loaded are not the file's, the generic class is used, which keeps them.

    Raises:
        OSError, ValueError: no tokenizer there (`load_model` turns these into an `InputError`).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = os.fspath(path)
    if Path(where).is_dir() and not any(Path(where).glob("tokenizer*")) and not (Path(where) / "vocab.json").exists():
        raise OSError(
            "it holds no tokenizer files (tokenizer.json, tokenizer_config.json); save the tokenizer beside the model"
        )
    declared = get_tokenizer_config(where, revision=revision).get("tokenizer_class")
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet(True):
        if generic:
            return PreTrainedTokenizerFast.from_pretrained(where, **options)
        found = AutoTokenizer.from_pretrained(where, **options)
        return (
            found if _by_the_file(found, where, revision) else PreTrainedTokenizerFast.from_pretrained(where, **options)
        )


def _by_the_file(tokenizer: PreTrainedTokenizerBase, where: str, revision: str | None) -> bool:
    """Whether a tokenizer normalises and splits as its ``tokenizer.json`` says, if it has one."""
    from transformers.utils import cached_file

    file = cached_file(where, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None or not hasattr(tokenizer, "backend_tokenizer"):
        return True
    described, loaded = json.loads(Path(file).read_text("utf-8")), json.loads(tokenizer.backend_tokenizer.to_str())
    return all(described.get(rule) == loaded.get(rule) for rule in ("normalizer", "pre_tokenizer"))
