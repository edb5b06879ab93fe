"""How far fine-tuning moved the weights, module by module; neither model has to be loaded.

1. A checkpoint's safetensors, in one file or in shards, are read a few rows at a time: of each parameter W of the base
   and W' of the tuned model no more is in memory than `_CHUNK` numbers.
2. Per parameter: ‖W‖ and ‖W' − W‖ (Frobenius, summed in float64), their ratio, and the share of entries that are
   exactly equal. Reinforcement learning is reported to change few of them (arXiv 2505.11711); an update lost to the
   rounding of bfloat16 counts as unchanged, too.
3. A vocabulary matrix that one checkpoint ties and the other stores is compared with what it is tied to.
4. Models that are loaded already, and adapters, which have to be merged first, are compared from memory.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError
from rlcircuits.models.adapters import is_adapter
from rlcircuits.models.checkpoints import local_checkpoint
from rlcircuits.models.faults import explained
from rlcircuits.models.loading import Model
from rlcircuits.models.pairing import ModelPair, check_pair
from rlcircuits.storage import Step

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

WEIGHTS = Step("weights", 1)
_CHUNK = 2**24
_EMBEDDING = r"embed|wte|wpe"
Side = Model | str | os.PathLike[str]


def weight_change(
    base: Side | ModelPair, tuned: Mapping[str, Side] | Side | None = None, device: str = "cpu"
) -> pd.DataFrame:
    """How far each weight of one or more tuned models lies from the base's.

    Args:
        base: the model before, loaded or as a folder or hub id; or a pair, without `tuned`.
        tuned: the model after, or several by name.
        device: where an adapter is merged.

    Returns:
        One row per model and parameter: ``model``, ``layer`` (−1 before the first, the number of layers after the
            last), in
        this order, ``module`` (name without the layer),
        ``parameters`` (how many numbers), ``norm`` (‖W‖), ``change`` (‖ΔW‖), ``relative`` (‖ΔW‖ / ‖W‖, Frobenius norms)
        and ``unchanged`` (share of entries that are exactly equal).

    Raises:
        InputError: models that `check_pair` refuses, or checkpoints without one and the same parameters.
    """
    import pandas as pd

    if isinstance(base, ModelPair):
        base.check()
        return _table(_read(base.base, base.base_revision), {base.name: _tuned_side(base, device)}, pd)
    named = tuned if isinstance(tuned, Mapping) else {_name(tuned): tuned}
    for one in named.values():
        if isinstance(base, Model) and isinstance(one, Model):
            check_pair(base, one)
        else:
            ModelPair("weights", _name(base), _name(one)).check()
    sides = {
        name: one
        if isinstance(one, Model)
        else _tuned_side(ModelPair(name or "weights", _name(base), _name(one)), device)
        for name, one in named.items()
    }
    return _table(_read(base), {name: _read(one) if isinstance(one, Model) else one for name, one in sides.items()}, pd)


def stored_parameters(folder: str | os.PathLike[str]) -> int:
    """How many numbers the safetensors of a folder hold, from their headers alone; a tied matrix is there once.

    Raises:
        InputError: a file that is no safetensors.
    """
    import math

    from safetensors import safe_open

    total = 0
    with explained(os.fspath(folder), Path(folder)):
        for file in _files(Path(folder)):
            with safe_open(file, "np") as opened:  # whose headers need no torch
                total += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    return total


def _name(side: Side | None) -> str:
    if side is None:
        raise InputError("no tuned model is given: expected rlcircuits.weight_change(base, tuned), or a pair alone")
    return side.name if isinstance(side, Model) else os.fspath(side)


def _tuned_side(pair: ModelPair, device: str) -> Weights:
    folder = local_checkpoint(pair.tuned)
    if folder is not None and is_adapter(folder):
        return _Loaded(pair.load("tuned", device))
    return _read(pair.tuned, pair.tuned_revision)


def _read(side: Side, revision: str | None = None) -> Weights:
    if isinstance(side, Model):
        return _Loaded(side)
    name = os.fspath(side)
    folder = local_checkpoint(name)
    if folder is None:
        from huggingface_hub import snapshot_download

        with explained(name, None):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json"]))
    return _Stored(name, folder)


class _Loaded:
    """The parameters of a loaded model."""

    def __init__(self, model: Model) -> None:
        self.name, self.weights = model.name, dict(model.hf.named_parameters())

    def names(self) -> list[str]:
        return list(self.weights)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.weights[key].shape)

    def rows(self, key: str, start: int, end: int) -> Tensor:
        whole = self.weights[key].detach()
        return (whole[start:end] if whole.ndim else whole).cpu()


class _Stored:
    """The parameters of a checkpoint's safetensors; its files stay open while it is in use."""

    def __init__(self, name: str, folder: Path) -> None:
        from safetensors import safe_open

        self.name, self.stack = name, contextlib.ExitStack()
        self.files: dict[str, Any] = {}
        with explained(name, folder):
            for file in _files(folder):
                opened = self.stack.enter_context(safe_open(file, "pt"))
                self.files |= dict.fromkeys(opened.keys(), opened)

    def names(self) -> list[str]:
        return list(self.files)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.files[key].get_slice(key).get_shape())

    def rows(self, key: str, start: int, end: int) -> Tensor:
        return self.files[key].get_slice(key)[start:end] if self.shape(key) else self.files[key].get_tensor(key)


Weights = _Loaded | _Stored


def _files(folder: Path) -> list[Path]:
    """The weight files: those the index names where there is one, else all.

    Raises:
        InputError: a shard is not there, or none is.
    """
    import json

    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        found = sorted(folder.glob("*.safetensors"))
    else:
        found = [
            folder / name for name in sorted(set(json.loads(indices[0].read_text("utf-8"))["weight_map"].values()))
        ]
    missing = [file.name for file in found if not file.is_file()]
    if missing or not found:
        raise InputError(
            f"{str(folder)!r} lacks {missing[0] if missing else '*.safetensors'}: is the download complete?"
        )
    return found


def _table(base: Weights, tuned: Mapping[str, Weights], pd: Any) -> pd.DataFrame:
    rows = []
    for model, side in tuned.items():
        for key in base.names():
            there = _counterpart(key, side, base)
            if base.shape(key) != side.shape(there):
                raise InputError(
                    f"{key!r} has the shape {base.shape(key)} in {base.name!r} and {side.shape(there)} in {side.name!r}"
                )
            ((layer, module),) = re.findall(r"^(?:.*?\.(\d+)\.)?(.*)$", key)
            rows.append(
                {"model": model, "layer": int(layer or -1), "module": module.removesuffix(".weight")}
                | _difference(base, key, side, there)
            )
    table = pd.DataFrame(rows)
    after = (table["layer"] == -1) & ~table["module"].str.contains(_EMBEDDING)
    table.loc[after, "layer"] = table["layer"].max() + 1
    return table.sort_values(["model", "layer"], kind="stable", key=_as_given(tuned)).reset_index(drop=True)


def _as_given(names: Iterable[str]) -> Callable[[pd.Series], pd.Series]:
    """A sort key that leaves models in the order they were given in."""
    place = {name: i for i, name in enumerate(names)}
    return lambda column: column.map(place) if column.name == "model" else column


def _counterpart(key: str, side: Weights, base: Weights) -> str:
    """The parameter of the other model to compare with: that of the same name, or what it is tied to."""
    if key in (names := set(side.names())):
        return key
    embedding = next((name for name in names if name.endswith("embed_tokens.weight")), None)
    if key.endswith("lm_head.weight") and embedding is not None:
        return embedding
    raise InputError(
        f"{side.name!r} has no parameter {key!r}, which {base.name!r} has: they are not of one architecture"
    )


def _difference(base: Weights, key: str, tuned: Weights, there: str) -> dict[str, float]:
    shape = base.shape(key)
    count = 1
    for size in shape:
        count *= size
    step = max(1, _CHUNK * (shape[0] if shape else 1) // max(count, 1))
    squares = changes = 0.0
    equal = 0
    for start in range(0, shape[0] if shape else 1, step):
        before, now = base.rows(key, start, start + step), tuned.rows(there, start, start + step)
        squares += _square(before.double())
        changes += _square(now.double() - before.double())
        equal += int((now == before).sum())
    norm, change = squares**0.5, changes**0.5
    return {
        "parameters": count,
        "norm": norm,
        "change": change,
        "relative": change / norm if norm else float("nan"),
        "unchanged": equal / count if count else float("nan"),
    }


def _square(values: Tensor) -> float:
    return float((values * values).sum())
