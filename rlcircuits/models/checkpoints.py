"""Checkpoints as files: where they are, what identifies them, and why one cannot be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rlcircuits.errors import InputError
from rlcircuits.models.adapters import is_adapter

if TYPE_CHECKING:
    import torch


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")

#: the device that spreads a model over all there are (`device_map="auto"` of transformers)
SPREAD = "spread"


@contextlib.contextmanager
def explained(name: str, local: Path | None) -> Iterator[None]:
    """What the libraries raise for a checkpoint that cannot be read, as an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError) as error:
        raise InputError(_why_not(name, local, error)) from error
    except Exception as error:  # safetensors raises its own type for a damaged file
        if type(error).__module__.split(".")[0] not in (
            "safetensors",
            "safetensors_rust",
            "huggingface_hub",
            "tokenizers",
            "builtins",
        ):
            raise
        raise InputError(_why_not(name, local, error)) from error


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's weight, configuration and tokenizer files.

    A process reads each file once, as long as its size, time and place stay.
    """
    whole = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if (
            file.is_file()
            and (file.suffix in {".safetensors", ".json", ".model", ".jinja", ".txt"})
            and file.name not in _NOT_MODEL
        ):
            whole.update(file.name.encode() + b"\0")
            status = file.stat()
            whole.update(_content(str(file), status.st_size, status.st_mtime_ns, status.st_ino))
    return whole.hexdigest()


@lru_cache(maxsize=4096)
def _content(file: str, _size: int, _time: int, _place: int) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


_NOT_MODEL = {"manifest.json", "member.json", "trainer_state.json", "README.md"}


def together(*parts: str) -> str:
    return hashlib.sha256("+".join(parts).encode()).hexdigest()


def resolved_device(device: str) -> torch.device:
    """The device of a name; ``"auto"`` is CUDA when there is one, else the CPU.

    Raises:
        InputError: an unknown name, or CUDA where there is none.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"unknown device {device!r}: expected 'auto', 'cpu', 'cuda', 'cuda:N' or '{SPREAD}'"
        ) from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {device!r} was asked for, but PyTorch sees no CUDA device here; use device='cpu' or 'auto'"
        )
    return where


def local_checkpoint(name: str) -> Path | None:
    """The folder when `name` is a path to a checkpoint, None when it can only be a hub id.

    Raises:
        InputError: a path that does not exist or holds no readable safetensors checkpoint.
    """
    folder = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
    if not looks_like_path:
        return None
    if not folder.exists():
        raise InputError(
            f"no checkpoint at {name!r}: expected a folder with config.json and *.safetensors, or a hub id 'organisation/name'"
        )
    if not folder.is_dir():
        raise InputError(f"{name!r} is a file: expected the folder that holds config.json and *.safetensors")
    if is_adapter(folder):
        return folder
    if not (folder / "config.json").is_file():
        raise InputError(
            f"the folder {name!r} holds no config.json, so it is no Hugging Face checkpoint; expected config.json and *.safetensors"
        )
    try:
        json.loads((folder / "config.json").read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{name}/config.json cannot be read ({error}); make or download the checkpoint again"
        ) from error
    if not any(folder.glob("*.safetensors")):
        other = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
        found = f" but {other[0]}, which is pickled and never loaded" if other else ""
        raise InputError(
            f"the folder {name!r} holds no *.safetensors{found}; save the model with save_pretrained(safe_serialization=True)"
        )
    return folder


def _why_not(name: str, local: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if local is None and "safetensors" in reason and "not" in reason:
        return (
            f"cannot load {name!r}: it seems to have no safetensors, and pickled weights are never loaded; name a revision that has them, "
            f"or convert a copy of your own ({reason})"
        )
    if local is None:
        return f"cannot load {name!r}: no such folder here, and as a hub id it could not be had ({reason})"
    return f"cannot load the checkpoint in {name!r}: {reason}"
