"""Artefacts on disk: computed once for the same inputs, complete or absent, and made again when damaged.

An artefact is a folder ``<root>/<kind>/<key>/`` with a ``manifest.json``.

1. key = the first 16 hex digits of SHA-256 over the canonical JSON of {kind, inputs, format of the store}. Inputs are
   everything that matters to the result: fingerprints of models and problems, parameters, seeds, the code of the step.
2. Found: the manifest belongs to the key, and every file it lists has its size and its SHA-256. Nothing else is trusted.
3. Not found: under a lock per key, so that of two processes one builds and the other waits, ``build(folder)`` fills a
   temporary folder beside it; the manifest is written last; files and folders are flushed to the disk (fsync); one
   rename gives the folder its name. A crash at any moment leaves the old artefact or the new one.
4. Damaged: a `DamagedArtefact` warning, then as in 3; the damaged folder steps aside only when the new one is complete.
5. Left over by a process that died: nobody holds its lock any more. A complete temporary folder gets its name, any other
   is removed, when the next artefact of that kind is made.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

FORMAT = 1
"""Version of the layout below; part of every key, so that another layout never reads this one's folders."""

MANIFEST = "manifest.json"
_LOG = logging.getLogger(__name__)
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TEMPORARY = re.compile(r"\.(?P<state>building|damaged)-(?P<key>[0-9a-f]{16})-.*")
_RACY_NS = 2_000_000_000
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|\bos error (?:27|28|122)\b|\berrno = (?:27|28|122)\b"
)
_digests: dict[tuple[str, int, int, int], str] = {}


class StoreError(InputError):
    """The store's folder cannot be used or written; what was computed before stays."""


class DamagedArtefact(UserWarning):
    """An artefact did not match its manifest and is being made again."""


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
        with _explained(final, self.root), _locked(final):
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
            manifest["checksum"] = _sha256(canonical_json(manifest).encode())
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
            for path in (folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder):
                _flush(path)
            _put_in_place(folder, final)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def key_of(kind: str, inputs: Mapping[str, Any]) -> str:
    """The key of an artefact: 16 hex digits that depend on the kind and the inputs, not on the order of their names.

    Raises:
        InputError: `kind` is no plain name; an input is NaN, infinite, or no JSON value; a name that is not a string.
    """
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise InputError(f"kind of artefact {kind!r}: expected a plain name of lower-case letters, digits, '-' and '_'")
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs of {kind!r} are {type(inputs).__name__}: expected a dictionary of JSON values")
    return _sha256(canonical_json({"kind": kind, "inputs": inputs, "format": FORMAT}).encode())[:16]


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: names sorted, no spaces, ASCII; tuples are lists; 1, 1.0 and true are different.

    >>> canonical_json({"b": (1, 2), "a": None})
    '{"a":null,"b":[1,2]}'

    Raises:
        InputError: NaN, infinity, an object that is no JSON value, or a name that is not a string; it names where.
    """
    return json.dumps(
        _plain(value, "inputs"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def save_scores(scores: xr.DataArray, file: str | os.PathLike[str]) -> None:
    """Save scores with their coordinates and attributes as netCDF 4 (through h5netcdf), whole or not at all.

    Args:
        scores: an array with named dimensions; its attributes are strings and numbers.

    Raises:
        StoreError: the file cannot be written.
    """
    with written(file) as temporary:
        scores.to_netcdf(temporary, engine="h5netcdf")


def load_scores(file: str | os.PathLike[str]) -> xr.DataArray:
    """The scores that `save_scores` saved, in memory, the file closed.

    Raises:
        InputError: no such file, or no scores in it.
    """
    import xarray as xr

    _expect_file(file, "scores")
    try:
        scores = xr.load_dataarray(file, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{os.fspath(file)!r} holds no scores that can be read ({_line(error)}); make them again"
        ) from error
    scores.attrs = {name: getattr(value, "tolist", lambda value=value: value)() for name, value in scores.attrs.items()}
    return scores


def save_table(table: pd.DataFrame, file: str | os.PathLike[str]) -> None:
    """Save a table as parquet, whole or not at all.

    Raises:
        StoreError: the file cannot be written.
    """
    with written(file) as temporary:
        table.to_parquet(temporary, engine="pyarrow")


def load_table(file: str | os.PathLike[str]) -> pd.DataFrame:
    """The table that `save_table` saved.

    Raises:
        InputError: no such file, or no table in it.
    """
    import pandas as pd

    _expect_file(file, "table")
    try:
        return pd.read_parquet(file, engine="pyarrow")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{os.fspath(file)!r} holds no table that can be read ({_line(error)}); make it again"
        ) from error


@contextlib.contextmanager
def written(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `file` to write to; on success it is flushed and takes the name of `file` in one step.

    Raises:
        StoreError: the file cannot be written; what was at `file` before is still there.
    """
    final = Path(file)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    with _explained(final, final.parent):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, final)
            _flush(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: expected a finite number, as NaN and infinity have no stable hash")
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one, f"{where}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise InputError(f"{where} has the name {name!r} ({type(name).__name__}): expected strings as names")
        return {name: _plain(one, f"{where}[{name!r}]") for name, one in value.items()}
    raise InputError(
        f"{where} is a {type(value).__name__}, which has no stable hash: "
        "expected None, bool, int, float, str, or lists and dictionaries of these"
    )


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
        if _sha256(canonical_json(manifest).encode()) != checksum:
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
            _flush(path)
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
    _flush(final.parent)
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
                    stack.enter_context(_lock_of(final).acquire(timeout=0))
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


def _lock_of(final: Path) -> Any:
    from filelock import FileLock

    return FileLock(final.with_name(f".{final.name}.lock"))


@contextlib.contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Hold the lock of a key; the operating system lets go of it when the process ends, however it ends."""
    from filelock import Timeout

    final.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(final)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process is making %s: waiting for it", final)
        held = lock.acquire()
    with held:
        yield


@contextlib.contextmanager
def _explained(path: Path, root: Path) -> Iterator[None]:
    """Turn what a full disk raises, in whichever library, and what a forbidden `root` raises into a `StoreError`."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else path
        if _FULL.search(str(error)) or (error.errno in _FORBIDDEN and _is_store(where, root)):
            raise _store_error(where, error.strerror or _line(error)) from error
        raise
    except Exception as error:  # safetensors and PyTorch have their own types for a full disk
        if _FULL.search(str(error)):
            raise _store_error(path, _line(error)) from error
        raise


def _is_store(path: Path, root: Path) -> bool:
    """Whether `path` is the store's own affair: in the store or above it, but not what a build does in its folder."""
    path, root = path.absolute(), root.absolute()
    building = any(part.startswith(".building-") for part in path.parts[len(root.parts) : -1])
    return root.is_relative_to(path) or (path.is_relative_to(root) and not building)


def _store_error(path: Path, reason: str) -> StoreError:
    full = re.search(r"No space left on device|Disk quota exceeded|File too large", reason)
    reason = full[0] if full else reason
    inside = [i for i, part in enumerate(path.parts) if part.startswith(".building-")]
    if inside:
        path = Path(*path.parts[: inside[0]], path.parts[inside[0]].split("-")[1])
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    try:
        free = f"{shutil.disk_usage(there).free / 2**20:,.0f} MiB free"
    except OSError:
        free = "free space unknown"
    return StoreError(
        f"cannot write {str(path)!r}: {reason} ({free} on that disk). Nothing already computed is lost: "
        "make room or choose a folder that can be written, then run the same again"
    )


def _flush(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


def _expect_file(file: str | os.PathLike[str], what: str) -> None:
    if not Path(file).is_file():
        raise InputError(f"no {what} at {os.fspath(file)!r}: expected a file that rlcircuits saved")


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
