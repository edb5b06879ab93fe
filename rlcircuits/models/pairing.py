"""Pairs of models before and after fine-tuning.

1. A `ModelPair` names a base, what was tuned from it and how.
2. `check_pair` makes sure that the two can be compared: one architecture, one vocabulary. `ModelPair.check` does so
   before any work, from configurations and tokenizers alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError, choose
from rlcircuits.models.adapters import is_adapter
from rlcircuits.models.checkpoints import fingerprint, local_checkpoint, together
from rlcircuits.models.loading import Model, expect_room, load_model
from rlcircuits.models.outline import Outline, outline_of
from rlcircuits.models.prompts import Prompt

LONGEST_ANSWER = 1024
METHODS = ("PPO", "GRPO", "DPO", "online DPO", "RFT", "SFT", "other")


@dataclass(frozen=True)
class ModelPair:
    """A model before and after fine-tuning.

    Args:
        name: how the pair is called, e.g. ``"deepseek-math"`` or ``"family/ppo"``.
        base: path or hub id of the model before.
        tuned: path or hub id of the model after.
        method: how it was tuned, one of ``PPO``, ``GRPO``, ``DPO``, ``online DPO``, ``RFT``, ``SFT``, ``other``.
        prompt: template with one ``{question}``, or ``"chat"`` for the tokenizer's own chat template.
        system, instruction: as for `rlcircuits.Prompt`.
        few_shot: examples before each question: a problem set by name or file, ``"train.jsonl:4"`` for its first 4,
            without those that are asked; or questions and answers themselves.
        max_new_tokens: longest answer allowed.
        trust_remote_code: run code that comes with the checkpoint; off unless set for this pair.
        note: what a reader should know about it.
        base_revision, tuned_revision: hub branches, tags or commits.
        config: the shape of both models, as in ``config.json``, for estimates where neither is on this machine.
        parameters: how many numbers each model has, which is shown where neither is on this machine.
    """

    name: str
    base: str
    tuned: str
    method: str = "other"
    prompt: str = "{question}"
    system: str = field(default="", kw_only=True)
    instruction: str = field(default="", kw_only=True)
    few_shot: str | tuple[tuple[str, str], ...] = field(default="", kw_only=True)
    max_new_tokens: int = LONGEST_ANSWER
    trust_remote_code: bool = False
    note: str = ""
    base_revision: str | None = field(default=None, compare=False)
    tuned_revision: str | None = field(default=None, compare=False)
    config: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    parameters: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("name", "base", "tuned"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not isinstance(value, str) or not value:
                raise InputError(f"pair {self.name!r}: {name} is {value!r}, expected a path or a hub id")
        choose("method", self.method, METHODS)
        object.__setattr__(self, "few_shot", _examples(self.name, self.few_shot))
        try:
            Prompt(self.prompt, self.system, self.instruction)
        except InputError as error:
            raise InputError(f"pair {self.name!r}: {error}") from None
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise InputError(
                f"pair {self.name!r}: max_new_tokens is {self.max_new_tokens!r}, expected a whole number of at least 1"
            )
        if not isinstance(self.trust_remote_code, bool):
            raise InputError(
                f"pair {self.name!r}: trust_remote_code is {self.trust_remote_code!r}, expected true or false"
            )

    @classmethod
    def of(cls, base: str, tuned: str | None = None, method: str = "other") -> ModelPair:
        """Two checkpoints, called by the tuned one's name; or one alone, on both sides."""
        return cls(Path(tuned or base).name or base, base, tuned or base, method)

    @property
    def alone(self) -> bool:
        """Whether it is one model, which stands on both sides."""
        return self.base == self.tuned and self.base_revision == self.tuned_revision

    def load(self, side: str, device: str = "auto", dtype: str = "auto") -> Model:
        """Load the ``"base"`` or the ``"tuned"`` model."""
        choose("side", side, ("base", "tuned"))
        return load_model(
            getattr(self, side),
            device=device,
            dtype=dtype,
            revision=getattr(self, f"{side}_revision"),
            trust_remote_code=self.trust_remote_code,
            base=self.base if side == "tuned" else None,
            base_revision=self.base_revision,
        )

    def fingerprint(self, side: str) -> str | None:
        """What identifies a side's weights and tokenizer, as `Model.fingerprint`, where its files are here; else
        None.
        """
        choose("side", side, ("base", "tuned"))
        folder = local_checkpoint(getattr(self, side))
        if folder is None:
            return None
        if not is_adapter(folder):
            return fingerprint(folder)
        base = self.fingerprint("base") if side == "tuned" else None
        return None if base is None else together(base, fingerprint(folder))

    def outlines(self) -> tuple[Outline, Outline]:
        """What the small files of base and tuned say, see `rlcircuits.models.outline`.

        Raises:
            InputError: a side that cannot be read.
        """
        base = outline_of(self.base, self.base_revision, self.trust_remote_code)
        return base, outline_of(self.tuned, self.tuned_revision, self.trust_remote_code, base)

    def check(self) -> tuple[Outline, Outline]:
        """Make sure, without reading a weight, that base and tuned can be compared; returns their outlines.

        Raises:
            InputError: as `check_pair`, or a side that cannot be read.
        """
        base, tuned = self.outlines()
        check_pair(base, tuned)
        return base, tuned


def _examples(pair: str, given: Any) -> str | tuple[tuple[str, str], ...]:
    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given)
    try:
        return tuple((str(question), str(answer)) for question, answer in given)
    except (TypeError, ValueError):
        raise InputError(
            f"pair {pair!r}: few_shot is {repr(given)[:200]}, expected a problem set such as 'FILE:4', or questions "
            "with their answers"
        ) from None


def check_pair(base: Model | Outline, tuned: Model | Outline) -> None:
    """Make sure that two models can be compared.

    Args:
        base, tuned: loaded models, or what their small files say (`rlcircuits.models.outline`).

    Raises:
        InputError: another architecture, other sizes, or another vocabulary, naming the first difference.
    """
    for label, get in _SHAPE.items():
        if get(base) != get(tuned):
            raise InputError(
                f"the models of the pair differ in {label}: {base.name!r} has {get(base)}, {tuned.name!r} has "
                f"{get(tuned)}; a pair is one model before and after fine-tuning"
            )
    before, after = base.tokenizer.get_vocab(), tuned.tokenizer.get_vocab()
    different = sorted(token for token in before.keys() | after.keys() if before.get(token) != after.get(token))
    if different:
        token = different[0]
        raise InputError(
            f"the models of the pair have different vocabularies: {len(before)} tokens in {base.name!r}, {len(after)} "
            f"in {tuned.name!r}; first difference: {token!r} is {before.get(token)} and {after.get(token)}"
        )
    for one in (base, tuned):
        if rows := getattr(_config(one), "vocab_size", None):
            expect_room(one.name, max(one.tokenizer.get_vocab().values(), default=-1) + 1, rows)


def _config(model: Model | Outline) -> Any:
    return (model.hf.config if isinstance(model, Model) else model.config).get_text_config()


_SHAPE = {
    "architecture": lambda model: type(model.hf).__name__ if isinstance(model, Model) else model.architecture,
    "number of layers": lambda model: getattr(_config(model), "num_hidden_layers", None),
    "number of heads": lambda model: getattr(_config(model), "num_attention_heads", None),
    "number of key/value heads": lambda model: getattr(_config(model), "num_key_value_heads", None),
    "width": lambda model: getattr(_config(model), "hidden_size", None),
    "width of the MLP": lambda model: getattr(_config(model), "intermediate_size", None),
}
