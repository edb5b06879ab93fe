"""Files that parameters name, identified, so that a cell whose data changed runs again.

1. Every text among the parameters may be a path, seen from the sweep file or the notebook; of ``name=FILE`` what
   follows the sign may be, too, and of ``FILE:4`` what stands before.
2. A file is identified by its SHA-256; a checkpoint or an adapter, which may be large, by names, sizes and times of its
   files.
3. What a YAML file names in turn, such as the checkpoints of a pair, counts as well, seen from the file's folder or the
   notebook's; so do the files that `rlcircuits.models.pairs` and `rlcircuits.answers.problem_sets` read when the
   environment names them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_LONGEST = 1000  # characters of a path
_REGISTRIES = ("RLCIRCUITS_PAIRS", "RLCIRCUITS_PROBLEM_SETS")


Read = Callable[[Path], tuple[str | None, tuple[str, ...]]]


def named_files(parameters: Mapping[str, Any], folder: Path, read: Read) -> dict[str, str]:
    """What identifies each file or checkpoint that parameters name, by how it is named.

    Args:
        parameters: of a cell.
        folder: from which relative paths are seen.
        read: `identified`, or that with a memory.
    """
    found: dict[str, str] = {}
    waiting = [(text, folder) for text in _texts(parameters)]
    waiting += [(os.environ[variable], folder) for variable in _REGISTRIES if os.environ.get(variable)]
    done: set[Path] = set()
    for text, seen_from in waiting:  # which grows meanwhile
        for one in (text, text.partition("=")[2], text.rpartition(":")[0]):
            for path in (_path(seen_from, one), _path(folder, one)):
                if path is None or path in done:
                    continue
                done.add(path)
                identity, inside = read(path)
                if identity is not None:  # two files may be named alike, from two folders
                    found[one] = hashlib.sha256((found.get(one, "") + identity).encode()).hexdigest()
                waiting += [(named, path.parent) for named in inside]
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)


def _path(folder: Path, text: str) -> Path | None:
    if not text or "\n" in text or "\0" in text or len(text) > _LONGEST:
        return None
    try:
        return Path(os.path.normpath(folder / Path(text).expanduser()))
    except RuntimeError:  # a home that is not known
        return None


def identified(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """What identifies a file or checkpoint, None when it is neither; and the texts in it, if it is YAML."""
    try:
        if path.is_file():
            content = path.read_bytes() if path.suffix in (".yaml", ".yml") else b""
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest(), _scalars(content)
        if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            files = sorted(file for file in path.iterdir() if file.is_file())
            return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]), ()
    except OSError:
        pass
    return None, ()


def _scalars(content: bytes) -> tuple[str, ...]:
    """The texts in a YAML file; whoever reads it will say if something is wrong with it."""
    try:
        return tuple(event.value for event in yaml.parse(content) if isinstance(event, yaml.ScalarEvent))
    except (yaml.YAMLError, ValueError):
        return ()
