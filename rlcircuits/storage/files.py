"""Files that are there whole or not at all, and what goes wrong with disks said in one message.

1. `written` gives a temporary name to write to; the file is flushed to the disk (fsync) and takes its name in one step.
2. A full disk or a folder that cannot be written is a `StoreError`, whichever library met it; what was there before
   stays.
3. A lock beside a file is held by one process at a time; the operating system lets go of it when its holder ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from filelock import FileLock


_LOG = logging.getLogger(__name__)
_FORBIDDEN = {
    errno.EACCES,
    errno.EIO,
    errno.EISDIR,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|\bos error (?:27|28|122)\b|\berrno = (?:27|28|122)\b"
)


class StoreError(InputError):
    """The store's folder cannot be used or written; what was computed before stays."""


class DamagedArtefact(UserWarning):
    """An artefact did not match its manifest and is being made again."""


def save_scores(scores: xr.DataArray, file: str | os.PathLike[str]) -> None:
    """Save scores with their coordinates and attributes as netCDF 4 (through h5netcdf), whole or not at all.

    Args:
        scores: an array with named dimensions; its attributes are strings and numbers.

    Raises:
        StoreError: the file cannot be written.
    """
    content = scores.to_netcdf(
        engine="h5netcdf"
    )  # in memory: HDF5 that meets a full disk ends the process when it closes its file
    with written(file) as temporary:
        temporary.write_bytes(content)


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
    with explained(final, final.parent):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            os.replace(temporary, final)
            flush(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def lock_of(final: Path) -> FileLock:
    """The lock of a file or folder, beside it."""
    from filelock import FileLock

    return FileLock(final.with_name(f".{final.name}.lock"))


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the lock of a file or folder, waiting for whoever holds it."""
    from filelock import Timeout

    final.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(final)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process is making %s: waiting for it", final)
        held = lock.acquire()
    with held:
        yield


@contextlib.contextmanager
def explained(path: Path, root: Path) -> Iterator[None]:
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


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of files, to the disk itself."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _expect_file(file: str | os.PathLike[str], what: str) -> None:
    if not Path(file).is_file():
        raise InputError(f"no {what} at {os.fspath(file)!r}: expected a file that rlcircuits saved")


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
