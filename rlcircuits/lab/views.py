"""What the explorer saves: the choices of a view, checked when they are read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError, choose
from rlcircuits.lab.document import MEAN
from rlcircuits.lab.panels import KINDS
from rlcircuits.storage import written

FORMAT = 1
CHOICES = ("pair", "problem", "level", "alpha", "k", "layers", "sources", "destinations", "edge", "exact")
LATER = ("measure", "panel")
"""Choices that a view need not have: they came after the first ones."""


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


def checked_view(view: str | os.PathLike[str] | Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a saved view, each of its type and one that the study of the document `told` has.

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
        choose(f"choice in {where}:", name, ("rlcircuits view", *CHOICES, *LATER))
    kinds: dict[str, Any] = {"alpha": (int, float), "k": int, "layers": list, "exact": bool}
    for name in (*CHOICES, *(name for name in LATER if name in view)):
        kind = kinds.get(name, str)
        if name == "alpha" and told["alpha"] is None:  # scores alone do not say what was scored
            continue
        if not isinstance(view.get(name), kind):
            raise InputError(f"{where}: {name} is {view.get(name)!r}, expected {getattr(kind, '__name__', 'a number')}")
    if len(view["layers"]) != 2 or not all(isinstance(n, int) for n in view["layers"]):
        raise InputError(f"{where}: layers is {view['layers']!r}, expected the first and the last")
    kinds_of = ("all", *KINDS)
    for name in ("sources", "destinations"):
        choose(f"kind of {name} in {where}:", view[name], kinds_of)
    alpha = None if told["alpha"] is None else view["alpha"]
    if not (alpha is None or 0.001 <= alpha <= 1) or view["k"] < 1:
        raise InputError(f"{where}: alpha is {alpha}, k is {view['k']}; expected α within 0.001 to 1 and k at least 1")
    _expect_of(told, view)
    return {**view, "alpha": alpha}


def _expect_of(told: Mapping[str, Any], view: Mapping[str, Any]) -> None:
    """Raise unless the study of a document has what a view chooses."""
    pairs = {one["name"]: one for one in told["pairs"]}
    pair = pairs[choose("pair", view["pair"], pairs)]
    choose("problem", view["problem"], [MEAN, *(i for i, _, _ in pair["problems"])])
    if levels := [*pair["levels"], *told.get("levels", ())]:
        choose("level", view["level"], levels)
    low, high = view["layers"]
    if not 0 <= low <= high <= pair["layers"]:
        raise InputError(
            f"the view's layers are {low} to {high}: expected within 0 to {pair['layers']}, as this pair has"
        )
