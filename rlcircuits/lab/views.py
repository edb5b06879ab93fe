"""What the explorer saves: the choices of a view, checked when they are read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError, choose
from rlcircuits.lab.panels import KINDS
from rlcircuits.storage import written

FORMAT = 1
CHOICES = ("pair", "problem", "level", "alpha", "k", "layers", "sources", "destinations", "edge", "exact")


def target(file: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Where to save.

    Raises:
        InputError: another suffix than those of `suffixes`.
    """
    path = Path(file).expanduser()
    if path.suffix not in suffixes:
        raise InputError(f"cannot save to {str(file)!r}: expected a file name that ends in {' or '.join(suffixes)}")
    return path


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(text, "utf-8")


def checked_view(view: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a saved view, each of its type.

    Raises:
        InputError: naming what is wrong.
    """
    where = "the view"
    if not isinstance(view, Mapping):
        path = Path(view).expanduser()
        where = f"the view {str(path)!r}"
        try:
            view = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(
                f"no view at {str(path)!r} ({error.strerror}): expected a file that the explorer saved"
            ) from None
        except ValueError as error:
            raise InputError(f"{where} cannot be read ({error}): expected a file that the explorer saved") from None
    if not isinstance(view, Mapping) or view.get("rlcircuits view") != FORMAT:
        raise InputError(f'{where} is none: expected a file that the explorer saved, with "rlcircuits view": {FORMAT}')
    for name in view:
        choose(f"choice in {where}:", name, ("rlcircuits view", *CHOICES))
    kinds: dict[str, Any] = {"alpha": (int, float), "k": int, "layers": list, "exact": bool}
    for name in CHOICES:
        kind = kinds.get(name, str)
        if not isinstance(view.get(name), kind):
            raise InputError(f"{where}: {name} is {view.get(name)!r}, expected {getattr(kind, '__name__', 'a number')}")
    if len(view["layers"]) != 2 or not all(isinstance(n, int) for n in view["layers"]):
        raise InputError(f"{where}: layers is {view['layers']!r}, expected the first and the last")
    kinds_of = ("all", *KINDS)
    for name in ("sources", "destinations"):
        choose(f"kind of {name} in {where}:", view[name], kinds_of)
    if not 0.001 <= view["alpha"] <= 1 or view["k"] < 1:
        raise InputError(
            f"{where}: alpha is {view['alpha']}, k is {view['k']}; expected α within 0.001 to 1 and k at least 1"
        )
    return dict(view)
