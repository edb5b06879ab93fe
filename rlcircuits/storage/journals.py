"""What a long computation has finished, on disk as it goes, so that an interrupted one goes on from there.

1. A journal is one file ``<folder>/<kind>-<key>.journal``; key is the hash of every input that matters
   (`rlcircuits.storage.keys.key_of`), so that other inputs have another file. Its first line is those inputs as JSON.
2. Finished rows are appended in blocks: number of rows and CRC-32 of their bytes (two little-endian uint32), then the
   rows. One write per block leaves it to the operating system, which keeps it when the process is killed; every few
   seconds it is flushed to the disk (fsync), which keeps it when the machine stops.
3. Opened again, blocks are read up to the first that is incomplete or has another CRC-32; what follows is cut off, with
   a warning.
4. One process at a time: a lock beside the file, which the operating system lets go of when its holder ends.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rlcircuits.storage.files import DamagedArtefact, StoreError, explained, locked
from rlcircuits.storage.keys import canonical_json, key_of

FLUSH_SECONDS = 5.0
_BLOCK = struct.Struct("<II")


class OtherInputs(UserWarning):
    """The folder holds journals of the same kind, but of other inputs: nothing of them is used."""


class Journal:
    """An open journal; made by `journal`.

    Attributes:
        path: its file.
        rows: what was finished when it was opened, a structured array of the dtype given.
    """

    def __init__(self, path: Path, stream: BinaryIO, rows: np.ndarray) -> None:
        self.path, self.rows = path, rows
        self._stream, self._flushed = stream, time.monotonic()

    def add(self, rows: np.ndarray) -> None:
        """Append finished rows, all of them or, if the process dies meanwhile, none.

        Raises:
            StoreError: the disk is full or the file cannot be written; what was added before stays.
        """
        content = np.ascontiguousarray(rows, self.rows.dtype).tobytes()
        block = _BLOCK.pack(len(rows), zlib.crc32(content)) + content
        with explained(self.path, self.path.parent):
            if self._stream.write(block) < len(block):  # a full disk takes a part of it without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Bring everything added to the disk itself."""
        os.fsync(self._stream.fileno())
        self._flushed = time.monotonic()


@contextlib.contextmanager
def journal(folder: str | os.PathLike[str], kind: str, inputs: Mapping[str, Any], dtype: np.dtype) -> Iterator[Journal]:
    """Open, or begin, the journal of these inputs.

    Args:
        folder: where journals are; made if it is not there.
        kind: what is computed, a plain name.
        inputs: everything that matters to the rows, as JSON values.
        dtype: of a row, structured, with little-endian fields.

    Raises:
        InputError: `kind` or `inputs` cannot be hashed (see `rlcircuits.storage.keys.key_of`).
        StoreError: `folder` is a file, or cannot be written.
    """
    folder = Path(folder).expanduser()
    path = folder / f"{kind}-{key_of(kind, inputs)}.journal"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{str(folder)!r} is a file: expected a folder for journals, or a path where one can be made")
    explain = functools.partial(explained, path, folder)
    with contextlib.ExitStack() as stack:
        with explain():
            stack.enter_context(locked(path))
        if not path.exists():
            _warn_of_others(path, kind, inputs)
        header = canonical_json({"kind": kind, "inputs": inputs, "row": np.dtype(dtype).descr}).encode() + b"\n"
        with explain():
            stream = stack.enter_context(path.open("r+b" if path.exists() else "x+b", buffering=0))
            opened = Journal(path, stream, _read(path, stream, header, np.dtype(dtype)))
        try:
            yield opened
        finally:
            with explain():
                opened.flush()


def _read(path: Path, stream: BinaryIO, header: bytes, dtype: np.dtype) -> np.ndarray:
    """The rows of all sound blocks; leaves the file ending after them, ready to be appended to."""
    content = stream.read()
    if not content.startswith(header):
        if content:
            warnings.warn(f"{path} does not begin as it should: starting it anew", DamagedArtefact, stacklevel=5)
        stream.seek(0)
        stream.truncate()
        stream.write(header)
        return np.empty(0, dtype)
    found, at = [], len(header)
    while at + _BLOCK.size <= len(content):
        count, crc = _BLOCK.unpack_from(content, at)
        block = content[at + _BLOCK.size : at + _BLOCK.size + count * dtype.itemsize]
        if len(block) < count * dtype.itemsize or zlib.crc32(block) != crc:
            break
        found.append(np.frombuffer(block, dtype))
        at += _BLOCK.size + len(block)
    rows = np.concatenate(found) if found else np.empty(0, dtype)
    if at < len(content):
        warnings.warn(
            f"{path} has a damaged end ({len(content) - at:,} bytes): going on from the {len(rows):,} rows before it",
            DamagedArtefact,
            stacklevel=5,
        )
    stream.seek(at)
    stream.truncate()
    return rows


def _warn_of_others(path: Path, kind: str, inputs: Mapping[str, Any]) -> None:
    """Say in which inputs the nearest of the other journals differs."""
    mine = json.loads(canonical_json(inputs))
    different = []
    for other in sorted(path.parent.glob(f"{kind}-*.journal")):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError), other.open("rb") as stream:
            theirs = json.loads(stream.readline())["inputs"]
            different.append(sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)))
    if different:
        nearest = min(different, key=len)
        warnings.warn(
            f"{str(path.parent)!r} holds no {kind} of these inputs: the nearest of {len(different)} there differs in "
            f"{', '.join(nearest)}. Starting anew beside it",
            OtherInputs,
            stacklevel=5,
        )
