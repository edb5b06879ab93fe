"""Which pairs there are, how large their models are, and whether they are on this machine.

1. A model is here when its folder, or the hub's cache, holds its configuration and every weight file; an adapter, when
   its own files and its base are.
2. Its size is counted from the headers of its weight files where they are here; else it is what the registry says; else
   it is counted from its configuration, here or in the registry; else unknown.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError
from rlcircuits.extensions import provided
from rlcircuits.models.adapters import is_adapter
from rlcircuits.models.checkpoints import local_checkpoint
from rlcircuits.models.cost import config_of, parameters
from rlcircuits.models.known import GROUP, pairs
from rlcircuits.models.pairing import ModelPair
from rlcircuits.models.weights import stored_parameters

if TYPE_CHECKING:
    import pandas as pd

    from rlcircuits.storage import Store

COLUMNS = ["pair", "method", "base", "tuned", "parameters", "here", "note"]


def pair_table(
    file: str | os.PathLike[str] | None = None, store: Store | str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """The registered pairs and those that packages provide, one row each; nothing is trained or fetched.

    Args:
        file: YAML that adds pairs, see `rlcircuits.pairs`.
        store: where provided pairs are kept; ``runs`` by default.

    Returns:
        ``pair``, ``method``, ``base`` and ``tuned`` (path or hub id), ``parameters`` (of one model, None where
        unknown), ``here`` (``"both"``, ``"base"``, ``"tuned"`` or ``"no"``) and ``note``.

    Raises:
        InputError: as `rlcircuits.pairs`.
    """
    import pandas as pd

    return pd.DataFrame(pair_rows(file, store), columns=COLUMNS).astype({"parameters": "Int64"})


def pair_rows(
    file: str | os.PathLike[str] | None = None, store: Store | str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of `pair_table`, arguments and errors as there, without the seconds that importing pandas takes."""
    rows = [_row(one) for one in pairs(file).values()]
    return rows + [row for provider in provided(GROUP).values() for row in provider.rows(store)]


def folder_of(name: str, revision: str | None = None) -> Path | None:
    """The folder where a checkpoint's files are complete on this machine, the hub's cache included; None when they are
    not.
    """
    folder = _configured(name, revision)
    return folder if folder is not None and _complete(folder) else None


def _configured(name: str, revision: str | None) -> Path | None:
    """The folder on this machine that has at least a checkpoint's configuration."""
    try:
        return local_checkpoint(name) or _cached(name, revision)
    except InputError:
        return None


def _row(pair: ModelPair) -> dict[str, object]:
    base, tuned = folder_of(pair.base, pair.base_revision), folder_of(pair.tuned, pair.tuned_revision)
    return {
        "pair": pair.name,
        "method": pair.method,
        "base": pair.base,
        "tuned": pair.tuned,
        "parameters": _size(pair, base),
        "here": which_are_here(base is not None, tuned is not None),
        "note": " ".join(pair.note.split()),
    }


def which_are_here(base: bool, tuned: bool) -> str:
    """``"both"``, ``"base"``, ``"tuned"`` or ``"no"``."""
    return {(True, True): "both", (True, False): "base", (False, True): "tuned"}.get((base, tuned), "no")


def _size(pair: ModelPair, base: Path | None) -> int | None:
    if base is None and pair.parameters is not None:
        return pair.parameters
    if base is None and pair.config is None and _configured(pair.base, pair.base_revision) is None:
        return None
    try:
        return stored_parameters(base) if base is not None else parameters(config_of(pair, fetch=False))
    except InputError:
        return None


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _complete(folder: Path) -> bool:
    """Whether every weight file is there that the folder's index names, or a single one where it has none."""
    try:
        if is_adapter(folder):
            return True
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            return (folder / "model.safetensors").is_file() or any(folder.glob("*.safetensors"))
        return all(
            (folder / name).is_file() for name in set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        )
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
