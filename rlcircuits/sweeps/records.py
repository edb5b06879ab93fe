"""What a cell is told, and the record that tells what became of it.

1. An `Order` is all that a process needs, here or on another machine.
2. A record carries its own checksum and the notebook's, and bears the order's key and token: half a record is no
   record, and an earlier attempt's is not this one's.
3. What failed is worth another try when the fault may pass (memory, a lost kernel, a connection), and not when the
   input is wrong.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from rlcircuits.storage import canonical_json, written

RECORD, NOTEBOOK, PAGE = "record.json", "notebook.ipynb", "notebook.html"
_PASSING = {
    errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED, errno.EPIPE, errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.EBUSY,
}  # fmt: skip
_PASSING_NAMES = {
    "MemoryError", "OutOfMemoryError", "DeadKernelError", "BlockingIOError", "InterruptedError", "TimeoutError",
    "ConnectionError",
    "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError", "ZMQError",
}  # fmt: skip
_PASSING_WORDS = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|Kernel died|Kernel didn't respond", re.IGNORECASE
)
_MEMORY = re.compile(r"memory", re.IGNORECASE)
_LONGEST_ERROR = 2000


class Order(TypedDict):
    """What a worker is told; plain values, so that it can travel to another machine.

    Attributes:
        folder: the cell's folder.
        source, source_sha256: the copy of the notebook, and what it must be.
        cwd: where the notebook runs, its own folder.
        environment: variables that are set for it.
        timeout: seconds, or None.
        token: of this attempt, repeated in the record.
    """

    name: str
    key: str
    parameters: dict[str, Any]
    folder: str
    source: str
    source_sha256: str
    cwd: str
    environment: dict[str, str]
    timeout: float | None
    attempt: int
    token: str


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a cell, None when there is none, when it is damaged, or when the notebook it speaks of is."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        checksum = record.pop("checksum")
        if hashlib.sha256(canonical_json(record).encode()).hexdigest() != checksum:
            return None
        if record["notebook_sha256"] is not None and sha256_of(folder / NOTEBOOK) != record["notebook_sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    record["metrics"] = {name: _number(value) for name, value in record["metrics"].items()}
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a cell, whole or not at all."""
    plain = {**record, "metrics": {name: _storable(value) for name, value in record["metrics"].items()}}
    plain["checksum"] = hashlib.sha256(canonical_json(plain).encode()).hexdigest()
    with written(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(plain, indent=1) + "\n", "utf-8")


def worth_retrying(name: str, text: str) -> bool:
    """Whether an error may pass by itself.

    Args:
        name, text: its type and message, as a kernel reports them.

    >>> worth_retrying("OSError", "[Errno 5] Input/output error"), worth_retrying("InputError", "unknown pair")
    (True, False)
    """
    if name in _PASSING_NAMES:
        return True
    if name == "OSError" and (number := re.match(r"\[Errno (\d+)\]", text)):
        return int(number[1]) in _PASSING
    return name in ("RuntimeError", "OSError", "CellError") and bool(_PASSING_WORDS.search(text))


def is_memory(error: str) -> bool:
    """Whether an error speaks of memory, or of a process that was killed, as the system does where memory runs out."""
    return bool(_MEMORY.search(error)) or "died" in error or "signal 9" in error


def record_of(
    order: Order,
    seconds: float,
    *,
    error: str | None = None,
    retry: bool = False,
    metrics: Mapping[str, Any] | None = None,
    compute: float = 0.0,
    notebook_sha256: str | None = None,
) -> dict[str, Any]:
    """What came of an order.

    Args:
        order: what was to be done.
        seconds: how long it took.
        error: why it failed; None when it did not.
        retry: whether the fault may pass.
        metrics: what the notebook glued.
        compute: seconds that the notebook's own cells took.
        notebook_sha256: of the executed notebook beside the record; None where there is none.
    """
    return {
        "name": order["name"],
        "key": order["key"],
        "token": order["token"],
        "parameters": order["parameters"],
        "status": "done" if error is None else "failed",
        "error": None if error is None else error.encode(errors="replace").decode()[:_LONGEST_ERROR],
        "retry": retry,
        "metrics": metrics or {},
        "seconds": round(seconds, 3),
        "compute": round(compute, 3),
        "attempts": order["attempt"],
        "notebook_sha256": notebook_sha256,
        "host": platform.node(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def sha256_of(path: Path) -> str | None:
    """Of a file, in hexadecimal; None where there is none."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _storable(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    return {"float": repr(value)} if isinstance(value, float) and value - value != 0 else value


def _number(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value
