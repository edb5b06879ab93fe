"""What a checkpoint's small files say of it: shape, tokenizer and where answers end; no weight is read.

1. `outline_of` reads configuration, generation settings and tokenizer of a local folder or hub id. An adapter has the
   shape of its base, and its own tokenizer if it brings one.
2. `rlcircuits.models.pairing.ModelPair.check` compares two of them, so that a pair that cannot be compared is refused
   before any work.
3. Answers that another engine made are read with no more than this (`rlcircuits.answers.interchange`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError
from rlcircuits.models.adapters import hub_adapter, is_adapter
from rlcircuits.models.checkpoints import local_checkpoint
from rlcircuits.models.faults import explained
from rlcircuits.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Outline:
    """A checkpoint without its weights.

    Attributes:
        name: the path or hub id.
        config: the model's configuration.
        tokenizer: its tokenizer.
        ends: ids of the tokens that end an answer.
        source: the local folder, when there is one.
        adapter: whether it is an adapter to another checkpoint.
        revision, trust_remote_code: how it was read.
    """

    name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    source: Path | None = None
    adapter: bool = False
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def architecture(self) -> str:
        """The name of the model's class."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as classes

        known = classes.get(self.config.model_type)
        return known if isinstance(known, str) else (self.config.architectures or [self.config.model_type])[0]


def outline_of(
    name: str | os.PathLike[str],
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: Outline | None = None,
) -> Outline:
    """Read a checkpoint's small files.

    Args:
        name: folder or hub id.
        revision: hub branch, tag or commit.
        trust_remote_code: run configuration code that comes with the checkpoint.
        base: what it was made from; needed for an adapter.

    Raises:
        InputError: no such checkpoint, files that cannot be read, or an adapter without its base.
    """
    from transformers import AutoConfig

    name = os.fspath(name)
    local = local_checkpoint(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with explained(name, local):
        folder = (local if is_adapter(local) else None) if local is not None else hub_adapter(name, revision)
        if folder is not None:
            if base is None:
                raise InputError(
                    f"{name!r} is a LoRA adapter: give it as the tuned side of a pair, with the base it belongs to"
                )
            own = load_tokenizer(folder) if any(folder.glob("tokenizer*")) else base.tokenizer
            return Outline(name, base.config, own, base.ends, folder, True, revision, trust_remote_code)
        config = AutoConfig.from_pretrained(local or name, **options)
        tokenizer = load_tokenizer(local or name, **options)
    return Outline(name, config, tokenizer, _ends(local or name, revision, config, tokenizer), local, False, **options)


def end_tokens_of(*sources: object) -> tuple[int, ...]:
    """Ids of the tokens that end an answer, from generation settings, configuration and tokenizer, in this order."""
    found: list[int] = []
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        found += value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return tuple(dict.fromkeys(int(i) for i in found))


def _ends(where: str | Path, revision: str | None, config: Any, tokenizer: Any) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(where, revision=revision or "main")
    except (OSError, ValueError):
        settings = None
    return end_tokens_of(settings, config.get_text_config(), tokenizer)
