"""Which pairs there are, how large their models are, and whether they are on this machine.

1. A model is here when its folder, or the hub's cache, holds its configuration and every weight file; an adapter, when its own files
   and its base are.
2. Its size is counted from the headers of its weight files where they are here, else from its configuration, else from what the
   registry says of its shape, else unknown.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

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
        ``pair``, ``method``, ``base`` and ``tuned`` (path or hub id), ``parameters`` (of one model, None where unknown), ``here``
        (``"both"``, ``"base"``, ``"tuned"`` or ``"no"``) and ``note``.

    Raises:
        InputError: as `rlcircuits.pairs`.
    """
    import pandas as pd

    rows = [_row(one) for one in pairs(file).values()]
    rows += [row for provider in provided(GROUP).values() for row in provider.rows(store)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"parameters": "Int64"})


def folder_of(name: str, revision: str | None = None) -> Path | None:
    """The folder where a checkpoint's files are complete on this machine, the hub's cache included; None when they are not."""
    try:
        folder = local_checkpoint(name)
    except InputError:
        return None
    if folder is None:
        folder = _cached(name, revision)
    return folder if folder is not None and _complete(folder) else None


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
