"""Artefacts on disk: computed once for the same inputs, complete or absent, and made again when damaged.

An artefact is a folder ``<root>/<kind>/<key>/`` with a ``manifest.json``.

1. key = hash of kind and inputs (`rlcircuits.storage.keys`). Inputs are everything that matters to the result:
   fingerprints of models and problems, parameters, seeds, the version of the step (`rlcircuits.storage.steps`).
2. Found: the manifest belongs to the key, and every file it lists has its size and its SHA-256. Nothing else is
   trusted.
3. Not found: under a lock per key, so that of two processes one builds and the other waits, ``build(folder)`` fills a
   temporary folder beside it; the manifest is written last; files and folders are flushed to the disk (fsync); one
   rename gives the folder its name. A crash at any moment leaves the old artefact or the new one.
4. Damaged: a `DamagedArtefact` warning, then as in 3; the damaged folder steps aside only when the new one is complete.
5. Left over by a process that died: nobody holds its lock any more. A complete temporary folder gets its name, any
   other is removed, when the next artefact of that kind is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.storage.files import DamagedArtefact, StoreError, explained, flush, lock_of, locked
from rlcircuits.storage.keys import FORMAT, canonical_json, key_of, sha256

MANIFEST = "manifest.json"
_TEMPORARY = re.compile(r"\.(?P<state>building|damaged)-(?P<key>[0-9a-f]{16})-.*")
_RACY_NS = 2_000_000_000
_digests: dict[tuple[str, int, int, int], str] = {}


class Store:
    """Artefacts under one folder.

    Args:
        root: the folder; it is made when the first artefact is.

    Raises:
        StoreError: `root` is there, but is no folder.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> folder = store.make("greeting", {"to": "world"}, lambda f: (f / "text.txt").write_text("hello") and None)
    >>> (folder / "text.txt").read_text()
    'hello'
    """

    def __init__(self, root: str | os.PathLike[str] = "runs") -> None:
        self.root = Path(root).expanduser()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(
                f"the store {str(self.root)!r} is a file: expected a folder, or a path where one can be made"
            )

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def path(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """Where the artefact of these inputs is or would be, ``<root>/<kind>/<key>``.

        Raises:
            InputError: `kind` is no plain name, or `inputs` cannot be hashed stably (see `key_of`).
        """
        key = key_of(kind, inputs)
        return self.root / kind / key

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a complete artefact of these inputs is there, its checksums verified."""
        return _damage(self.path(kind, inputs)) is None

    def make(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], None], *, note: str = "") -> Path:
        """The folder of the artefact of these inputs, built now if it is not there or damaged.

        Args:
            kind: what it is, a plain name such as ``"scores"``; the folder it is kept in.
            inputs: everything that matters to the result, as JSON values.
            build: writes the artefact's files into the empty folder it is given. Called at most once.
            note: a line for a human reader of the manifest; not part of the key.

        Returns:
            ``<root>/<kind>/<key>``, complete.

        Raises:
            InputError: as `path`.
            StoreError: the disk is full, the folder cannot be written, or `build` left no file.
        """
        final = self.path(kind, inputs)
        if _damage(final) is None:
            return final
        with explained(final, self.root), locked(final):
            _settle_left_over(final.parent, final.name)
            damage = _damage(final)
            if damage is None:
                return final
            if damage != "missing":
                warnings.warn(f"{final} is damaged ({damage}): making it again", DamagedArtefact, stacklevel=2)
            self._build(final, kind, inputs, build, note)
        return final

    def manifest(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What is recorded of an artefact: kind, key, inputs, note, versions, device, created, seconds and files.

        Raises:
            InputError: no artefact there, or its manifest is damaged.
        """
        manifest, damage = _read_manifest(Path(path))
        if manifest is None:
            raise InputError(f"no manifest of an artefact in {os.fspath(path)!r} ({damage}); make the artefact again")
        return manifest

    def _build(
        self, final: Path, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], None], note: str
    ) -> None:
        folder = _temporary("building", final)
        try:
            folder.mkdir()
            started = time.monotonic()
            build(folder)
            seconds = time.monotonic() - started
            files = _flushed_files(folder)
            manifest = {
                "kind": kind,
                "key": final.name,
                "format": FORMAT,
                "inputs": json.loads(canonical_json(inputs)),
                "note": note,
                "versions": _versions(),
                "device": _device(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
                "files": files,
            }
            manifest["checksum"] = sha256(canonical_json(manifest).encode())
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
            for path in (folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder):
                flush(path)
            _put_in_place(folder, final)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _damage(folder: Path, key: str | None = None) -> str | None:
    """None when the artefact `key` is complete, ``"missing"`` when there is none, otherwise what is wrong with it."""
    if not os.path.lexists(folder):
        return "missing"
    manifest, damage = _read_manifest(folder)
    if manifest is None:
        return damage
    if manifest["key"] != (key or folder.name):
        return f"its manifest is of {manifest['key']}"
    for name, expected in manifest["files"].items():
        try:
            status = os.stat(folder / name)
        except OSError:
            return f"{name} is not there"
        if not stat.S_ISREG(status.st_mode) or status.st_size != expected["bytes"]:
            return f"{name} has {status.st_size:,} bytes, not {expected['bytes']:,}"
        try:
            if _digest(folder / name, status) != expected["sha256"]:
                return f"{name} has another checksum"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _read_manifest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        checksum = manifest.pop("checksum")
        if sha256(canonical_json(manifest).encode()) != checksum:
            return None, f"{MANIFEST} has another checksum"
        if key_of(manifest["kind"], manifest["inputs"]) != manifest["key"]:
            return None, f"{MANIFEST} does not fit its key"
    except FileNotFoundError:
        return None, f"{MANIFEST} is not there"
    except OSError as error:
        return None, f"{MANIFEST} cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None, f"{MANIFEST} cannot be understood"
    return manifest, ""


def _digest(file: Path, status: os.stat_result) -> str:
    """SHA-256 of a file; not computed again in this process while its inode, size and time of change stay.

    A file changed within the last two seconds is always read: a second change could bear the same time.
    """
    identity = (str(file.absolute()), status.st_ino, status.st_size, status.st_mtime_ns)
    if identity in _digests:
        return _digests[identity]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > _RACY_NS:
        _digests[identity] = digest
    return digest


def _flushed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 by relative name of every file, each flushed to the disk.

    Raises:
        StoreError: there are none, a link, or one called as the manifest.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StoreError(
                f"building {folder.parent.name!r} left the link {name!r}: expected files with their content"
            )
        if name == MANIFEST:
            raise StoreError(
                f"building {folder.parent.name!r} wrote {MANIFEST}, which is the store's own: use another name"
            )
        if path.is_file():
            flush(path)
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name] = {"bytes": path.stat().st_size, "sha256": digest}
    if not found:
        raise StoreError(f"building {folder.parent.name!r} wrote no file into the folder it was given")
    return found


def _put_in_place(folder: Path, final: Path) -> None:
    """Give a complete folder its name; what is there (only ever a damaged artefact) steps aside and is removed."""
    aside = None
    if os.path.lexists(final):
        aside = _temporary("damaged", final)
        os.rename(final, aside)
    os.rename(folder, final)
    flush(final.parent)
    if aside is not None:
        _remove(aside)


def _settle_left_over(parent: Path, mine: str) -> None:
    """Name or remove temporary folders whose builder is dead; the caller holds the lock of the key `mine`."""
    from filelock import Timeout

    for folder in sorted(parent.iterdir()):
        match = _TEMPORARY.fullmatch(folder.name)
        if not match:
            continue
        final = parent / match["key"]
        with contextlib.ExitStack() as stack:
            if match["key"] != mine:
                try:
                    stack.enter_context(lock_of(final).acquire(timeout=0))
                except Timeout:
                    continue
            if match["state"] == "building" and _damage(folder, match["key"]) is None and _damage(final) is not None:
                _put_in_place(folder, final)
            else:
                _remove(folder)


def _temporary(state: str, final: Path) -> Path:
    return final.with_name(f".{state}-{final.name}-{uuid.uuid4().hex[:12]}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    from rlcircuits import __version__

    found = {"python": platform.python_version(), "rlcircuits": __version__}
    for package in ("torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
