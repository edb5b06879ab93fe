"""LoRA adapters as files: what is one, and which are refused. `rlcircuits.models.loading` merges them into the base of
their pair.

1. A folder with ``adapter_config.json`` is an adapter. Its weights must be ``adapter_model.safetensors``; pickles are
   never read.
2. The base that the adapter's file records is never loaded: an adapter says what it changes, not what else is run. The
   pair's base is taken.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError

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
    adapter_settings(folder)
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


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What an adapter's own file says of it.

    Raises:
        InputError: it cannot be read, is no LoRA adapter, or one that also changes the base's weights.
    """
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
            f"the adapter in {str(folder)!r} began as {begun!r}, which changes the base's weights too: convert it to "
            "a plain LoRA adapter with peft, or save the merged model"
        )
    return settings
