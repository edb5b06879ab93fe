"""LoRA adapters as the tuned side of a pair: merged into the base that the pair names.

1. A folder with ``adapter_config.json`` is an adapter. Its weights must be ``adapter_model.safetensors``; pickles are never read.
2. The base that the adapter's file records is never loaded: an adapter says what it changes, not what else is run. The pair's
   base is taken, and weights that do not fit it are refused.
3. peft loads the adapter onto the base, and W + (α / r) B A takes the place of each W it changes; what is left is a plain model.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from rlcircuits.models.loading import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: ways to begin an adapter that leave the base's weights as they are
_PLAIN = (True, False, None, "gaussian", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter.

    Raises:
        InputError: it holds an adapter that cannot be used, or an adapter and a whole model.
    """
    if not (folder / CONFIG).is_file():
        return False
    name = str(folder)
    if any(folder.glob("model*.safetensors")):
        raise InputError(
            f"the folder {name!r} holds both a whole model and an adapter: keep one, or give each its own folder"
        )
    if not (folder / WEIGHTS).is_file():
        found = (
            " but adapter_model.bin, which is pickled and never loaded"
            if (folder / "adapter_model.bin").exists()
            else ""
        )
        raise InputError(
            f"the adapter in {name!r} has no {WEIGHTS}{found}; save it with save_pretrained(safe_serialization=True)"
        )
    _settings(folder)
    return True


def hub_adapter(name: str, revision: str | None) -> Path | None:
    """The folder of a hub adapter's files, fetched without anything else of its repository; None when it is no adapter.

    Raises:
        OSError, ValueError: the hub cannot be reached and nothing of it is here.
    """
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    found = cached_file(
        name,
        CONFIG,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    files = [
        CONFIG,
        WEIGHTS,
        "tokenizer*",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    ]
    return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def merged(base: Model, folder: Path, name: str | os.PathLike[str], commit: str | None = None) -> Model:
    """The base with an adapter merged into its weights.

    Args:
        base: the pair's base, loaded; its weights are changed in place, so it is not to be used any more.
        folder: the adapter's files.
        name: what the result is called.
        commit: the adapter's hub commit, when it came from a hub.

    Raises:
        InputError: peft is not installed, another kind of adapter than LoRA, or one that does not fit the base.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise InputError(
            f"{os.fspath(name)!r} is a LoRA adapter, which needs peft, which is not installed: pip install 'rlcircuits[lora]'"
        ) from error
    from rlcircuits.models.tokenizer import load_tokenizer

    _settings(folder)
    own = base.fingerprint
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.base_model_name_or_path, config.auto_mapping, config.inference_mode = base.name, None, True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of, `_expect_all_keys` refuses
            wrapped = PeftModel.from_pretrained(base.hf, str(folder), config=config, autocast_adapter_dtype=False)
        _expect_all_keys(wrapped, folder, base.name)
        hf = wrapped.merge_and_unload(safe_merge=True)
        tokenizer = load_tokenizer(folder) if any(folder.glob("tokenizer*")) else base.tokenizer
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:250] or type(error).__name__
        raise InputError(f"the adapter {os.fspath(name)!r} does not fit its base {base.name!r}: {reason}") from error
    hf.requires_grad_(False)
    hf.eval()
    return replace(
        base, hf=hf, tokenizer=tokenizer, name=os.fspath(name), source=folder, commit=commit, base_fingerprint=own
    )


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text("utf-8"))
        kind, begun = settings["peft_type"], settings.get("init_lora_weights", True)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(folder / CONFIG)!r} cannot be read as the settings of an adapter ({error})") from error
    if kind != "LORA":
        raise InputError(
            f"the adapter in {str(folder)!r} is of the kind {kind!r}: only LoRA adapters can be merged here"
        )
    if not any(begun is known or (isinstance(known, str) and begun == known) for known in _PLAIN):
        raise InputError(
            f"the adapter in {str(folder)!r} began as {begun!r}, which changes the base's weights too: convert it to a plain "
            "LoRA adapter with peft, or save the merged model"
        )
    return settings


def _expect_all_keys(wrapped: Any, folder: Path, base: str) -> None:
    """Every weight of the file must have found its place, and every place its weight."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        there = set(file.keys())
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    # Vocabulary matrices may be saved whole beside the adapter.
    extra = {key for key in there - wanted if not key.endswith(("embed_tokens.weight", "lm_head.weight"))}
    for what, keys in (("lacks", wanted - there), ("has, without a place for it,", extra)):
        if keys:
            raise InputError(
                f"the adapter in {str(folder)!r} {what} {min(keys)!r}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: "
                f"it does not belong to the base {base!r}"
            )
