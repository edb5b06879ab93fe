"""What the libraries raise for a checkpoint that cannot be read, in words that name it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rlcircuits.errors import InputError


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


def _why_not(name: str, local: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if local is None and "safetensors" in reason and "not" in reason:
        return (
            f"cannot load {name!r}: it seems to have no safetensors, and pickled weights are never loaded; name a "
            f"revision that has them, or convert a copy of your own ({reason})"
        )
    if local is None:
        return f"cannot load {name!r}: no such folder here, and as a hub id it could not be had ({reason})"
    damaged = type(error).__module__.startswith("safetensors")
    hint = "; a file of weights is cut off or damaged: fetch or save it again" if damaged else ""
    return f"cannot load the checkpoint in {name!r}: {reason}{hint}"
