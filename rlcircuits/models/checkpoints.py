"""Checkpoints as files: where they are, what identifies them, and why one cannot be read."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rlcircuits.errors import InputError, argument
from rlcircuits.models.adapters import is_adapter
from rlcircuits.models.gguf import SUFFIX, converted, packaged, packaged_folder

if TYPE_CHECKING:
    import torch


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")

#: the device that spreads a model over all there are (`device_map="auto"` of transformers)
SPREAD = "spread"
_LFS = b"version https://git-lfs"


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
    """One fingerprint of several, in their order."""
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
    if where.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            f"device {device!r} was asked for, but PyTorch sees no MPS device here; use {argument('device', 'cpu')}"
        )
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {device!r} was asked for, but PyTorch sees no CUDA device here; use {argument('device', 'cpu')}"
        )
    return where


def local_checkpoint(name: str) -> Path | None:
    """The folder when `name` is a path to a checkpoint, None when it can only be a hub id.

    A packaged model's name (``"smollm2"``) stands for where `rlcircuits.models.get` has put it, a GGUF file for the
    checkpoint that is made of it once.

    Raises:
        InputError: a path that does not exist or holds no readable safetensors checkpoint, or a packaged model that is
            not here.
    """
    folder = Path(name).expanduser()
    if name in packaged() and not folder.exists():
        found = packaged_folder(name)
        if found is None:
            raise InputError(f"the model {name!r} is not here yet: run `rlcircuits models get {name}` once")
        return found
    if folder.suffix == SUFFIX and folder.is_file():
        return converted(folder)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
    if not looks_like_path:
        return None
    if not folder.exists():
        raise InputError(
            f"no checkpoint at {name!r}: expected a folder with config.json and *.safetensors, or a hub id "
            "'organisation/name'"
        )
    if not folder.is_dir():
        raise InputError(f"{name!r} is a file: expected the folder that holds config.json and *.safetensors")
    if is_adapter(folder):
        expect_content(folder)
        return folder
    if not (folder / "config.json").is_file():
        raise InputError(
            f"the folder {name!r} holds no config.json, so it is no Hugging Face checkpoint; expected config.json and "
            "*.safetensors"
        )
    try:
        json.loads((folder / "config.json").read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{name}/config.json cannot be read ({error}); make or download the checkpoint again"
        ) from error
    if not any(folder.glob("*.safetensors")):
        other = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
        instead = f" but {other[0]}, which is pickled and never loaded" if other else ""
        raise InputError(
            f"the folder {name!r} holds no *.safetensors{instead}; save the model with "
            "save_pretrained(safe_serialization=True)"
        )
    expect_content(folder)
    return folder


def expect_content(folder: Path) -> None:
    """Refuse the pointers that Git LFS leaves in place of files that were not fetched.

    Raises:
        InputError: a weight file is one.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            if stream.read(len(_LFS)) == _LFS:
                raise InputError(
                    f"{str(file)!r} is a Git LFS pointer of {file.stat().st_size} bytes, not the weights: fetch them "
                    "with `git lfs pull` in that folder"
                )
