"""How far fine-tuning moved the weights, module by module; neither model has to be loaded.

1. A checkpoint's safetensors, in one file or in shards, are read a few rows at a time, and not by mapping files into
   memory: of each parameter W of the base and W' of the tuned model no more is held than `_CHUNK` numbers, or `_HELD`
   where principal directions are asked for.
2. Per parameter: ‖W‖ and ‖W' − W‖ (Frobenius, summed in float64), their ratio, and the share of entries that are
   exactly equal, as stored and after rounding both to bfloat16. Reinforcement learning is reported to change few of
   them (arXiv 2505.11711); as an update that is lost to rounding counts as unchanged, the two shares stand side by side
   (2511.08567).
3. Of matrices, if asked for, the effective rank of the change and how much of it lies in the principal directions of W
   (`rlcircuits.models.spectra`).
4. A vocabulary matrix that one checkpoint ties and the other stores is compared with what it is tied to.
5. A plain LoRA adapter is W + (α / r) B A, rounded as W is, a few rows at a time; others are merged first. These, and
   models that are loaded already, are compared from memory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, expect_whole
from rlcircuits.models.adapters import adapter_settings, is_adapter
from rlcircuits.models.checkpoints import local_checkpoint
from rlcircuits.models.faults import explained
from rlcircuits.models.loading import Model, warn_of_other_base
from rlcircuits.models.pairing import ModelPair, check_pair
from rlcircuits.models.spectra import spectrum
from rlcircuits.storage import Step

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

WEIGHTS = Step("weights", 2)
_CHUNK, _HELD = 2**24, 2**27
_EMBEDDING = r"embed|wte|wpe"
Side = Model | str | os.PathLike[str]


def weight_change(
    base: Side | ModelPair,
    tuned: Mapping[str, Side] | Side | None = None,
    device: str = "cpu",
    directions: int | None = None,
) -> pd.DataFrame:
    """How far each weight of one or more tuned models lies from the base's.

    Args:
        base: the model before, loaded or as a folder or hub id; or a pair, without `tuned`.
        tuned: the model after, or several by name.
        device: where an adapter is merged, and directions are computed.
        directions: how many principal directions of each matrix to look along; None for none, which is faster.

    Returns:
        One row per model and parameter: ``model``, ``layer`` (−1 before the first, the number of layers after the
            last), in
        this order, ``module`` (name without the layer),
        ``parameters`` (how many numbers), ``norm`` (‖W‖), ``change`` (‖ΔW‖), ``relative`` (‖ΔW‖ / ‖W‖, Frobenius norms),
        ``unchanged`` (share of entries that are exactly equal) and ``unchanged_bfloat16`` (the same after rounding both to
        bfloat16). With `directions`, ``stable_rank`` of ΔW, and ``left``, ``right``, the shares of ‖ΔW‖² within W's
        leading left and right singular vectors, beside ``left_random``, ``right_random``, those of a change that knows
        nothing of W; NaN for what is no matrix, or unchanged.

    Raises:
        InputError: models that `check_pair` refuses, checkpoints without one and the same parameters, or `directions`
            below 1.
    """
    import pandas as pd

    if directions is not None:
        expect_whole("directions", directions, 1, "or None")

    if isinstance(base, ModelPair):
        base.check()
        before = _read(base.base, base.base_revision)
        return _table(before, {base.name: _tuned_side(base, before, device)}, device, directions, pd)
    named = tuned if isinstance(tuned, Mapping) else {_name(tuned): tuned}
    for one in named.values():
        if isinstance(base, Model) and isinstance(one, Model):
            check_pair(base, one)
        else:
            ModelPair("weights", _name(base), _name(one)).check()
    before = _read(base)
    sides = {
        name: _read(one)
        if isinstance(one, Model)
        else _tuned_side(ModelPair(name or "weights", _name(base), _name(one)), before, device)
        for name, one in named.items()
    }
    return _table(before, sides, device, directions, pd)


def stored_parameters(folder: str | os.PathLike[str]) -> int:
    """How many numbers the safetensors of a folder hold, from their headers alone; a tied matrix is there once.

    Raises:
        InputError: a file that is no safetensors.
    """
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


def _tuned_side(pair: ModelPair, base: Weights, device: str) -> Weights:
    folder = local_checkpoint(pair.tuned)
    if folder is not None and is_adapter(folder):
        return _Adapted.of(pair.tuned, folder, base) or _Loaded(pair.load("tuned", device))
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
    """The parameters of a checkpoint's safetensors, read from the files' own places.

    A mapped file would count, page by page, as memory of this process.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.entries: dict[str, tuple[Path, int, str, tuple[int, ...]]] = {}
        with explained(name, folder):
            for file in _files(folder):
                self.entries |= _entries(file)

    def names(self) -> list[str]:
        return list(self.entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.entries[key][3]

    def rows(self, key: str, start: int, end: int) -> Tensor:
        import torch

        file, begin, dtype, shape = self.entries[key]
        kind = getattr(torch, dtype)
        row = math.prod(shape[1:]) * kind.itemsize
        count = len(range(*slice(start, end).indices(shape[0]))) if shape else 1
        content = bytearray(count * row)
        with file.open("rb") as opened:
            opened.seek(begin + (start * row if shape else 0))
            if opened.readinto(content) != len(content):
                raise InputError(f"{str(file)!r} ends before {key!r}: is the download complete?")
        values = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        return values.reshape(count, *shape[1:]) if shape else values.reshape(())


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_DTYPES |= {"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def _entries(file: Path) -> dict[str, tuple[Path, int, str, tuple[int, ...]]]:
    """By parameter its file, the byte where it begins, its dtype in torch and its shape.

    Raises:
        SafetensorError: the file is none, or shorter than it says.
        InputError: a dtype that is not known.
    """
    import json

    from safetensors import safe_open

    with safe_open(file, "np"):  # checks lengths and offsets
        pass
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    if odd := {entry["dtype"] for entry in header.values()} - set(_DTYPES):
        raise InputError(f"{str(file)!r} holds numbers of the kind {min(odd)}: expected one of {', '.join(_DTYPES)}")
    return {
        key: (file, 8 + length + entry["data_offsets"][0], _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        for key, entry in header.items()
    }


class _Adapted:
    """The parameters of a base with a plain LoRA adapter, W + (α / r) B A, which is never whole in memory."""

    def __init__(self, name: str, base: Weights, changes: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
        self.name, self.base, self.changes, self.scale = name, base, changes, scale

    @classmethod
    def of(cls, name: str, folder: Path, base: Weights) -> _Adapted | None:
        """The adapter's, or None where it is not so plain, or does not fit by its names and shapes."""
        settings = adapter_settings(folder)
        if any(settings.get(x) for x in _NOT_PLAIN) or settings.get("bias", "none") != "none":
            return None
        try:
            adapter = _Stored(name, folder)
        except InputError:
            return None  # loading says what is wrong
        modules = {key.removesuffix(end) for key in adapter.names() for end in _LORA if key.endswith(end)}
        if sorted(adapter.names()) != sorted(module + end for module in modules for end in _LORA):
            return None
        shapes, changes = {key: base.shape(key) for key in base.names()}, {}
        for module in modules:
            a, b = (adapter.rows(module + end, 0, adapter.shape(module + end)[0]) for end in _LORA)
            key = module.removeprefix("base_model.model.") + ".weight"
            if a.ndim != 2 or b.ndim != 2 or len(a) != settings["r"] or shapes.get(key) != (len(b), a.shape[1]):
                return None
            dtype = base.rows(key, 0, 1).dtype  # which the adapter gets when it is put on
            changes[key] = (a.to(dtype).float(), b.to(dtype).float())
        warn_of_other_base(folder, name, base.name)
        scale = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
        return cls(name, base, changes, scale)

    def names(self) -> list[str]:
        return self.base.names()

    def shape(self, key: str) -> tuple[int, ...]:
        return self.base.shape(key)

    def rows(self, key: str, start: int, end: int) -> Tensor:
        whole = self.base.rows(key, start, end)
        if key not in self.changes:
            return whole
        a, b = self.changes[key]
        return whole + ((b[start:end] @ a) * self.scale).to(whole.dtype)


_LORA = (".lora_A.weight", ".lora_B.weight")
_NOT_PLAIN = [
    *("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices"),
    *("lora_bias", "use_qalora", "alora_invocation_tokens", "target_parameters", "layer_replication"),
]
Weights = _Loaded | _Stored | _Adapted


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


def _table(base: Weights, tuned: Mapping[str, Weights], device: str, directions: int | None, pd: Any) -> pd.DataFrame:
    rows = []
    for model, side in tuned.items():
        for key in base.names():
            there = _counterpart(key, side, base)
            if base.shape(key) != side.shape(there):
                raise InputError(
                    f"{key!r} has the shape {base.shape(key)} in {base.name!r} and {side.shape(there)} in {side.name!r}"
                )
            ((layer, module),) = re.findall(r"^(?:.*?\.(\d+)\.)?(.*)$", key)
            found = {"model": model, "layer": int(layer or -1), "module": module.removesuffix(".weight")}
            found |= _difference(base, key, side, there)
            if directions is not None:
                found |= _directions(base, key, side, there, directions, device)
            rows.append(found)
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
    squares = changes = 0.0
    equal = alike = 0
    for before, now in _both(base, key, tuned, there):
        squares += _square(before.double())
        changes += _square(now.double() - before.double())
        equal += int((now == before).sum())
        alike += int((now.bfloat16() == before.bfloat16()).sum())
    count = math.prod(base.shape(key))
    norm, change = squares**0.5, changes**0.5
    return {
        "parameters": count,
        "norm": norm,
        "change": change,
        "relative": change / norm if norm else math.nan,
        "unchanged": equal / count if count else math.nan,
        "unchanged_bfloat16": alike / count if count else math.nan,
    }


def _both(base: Weights, key: str, tuned: Weights, there: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A parameter of both, a few rows at a time."""
    shape = base.shape(key)
    rows = shape[0] if shape else 1
    step = max(1, _CHUNK * rows // max(math.prod(shape), 1))
    for start in range(0, rows, step):
        yield base.rows(key, start, start + step), tuned.rows(there, start, start + step)


def _directions(base: Weights, key: str, tuned: Weights, there: str, directions: int, device: str) -> dict[str, float]:
    """What `spectrum` finds of a matrix; it is read once if it can be held, else as often as it is gone through."""
    import torch

    shape = base.shape(key)
    if len(shape) != 2 or not math.prod(shape):
        return dict.fromkeys(("stable_rank", "left", "right", "left_random", "right_random"), math.nan)

    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for before, now in _both(base, key, tuned, there):
            wide = torch.float64 if before.dtype == torch.float64 else torch.float32
            before = before.to(device, wide)
            yield before, now.to(device, wide) - before

    if math.prod(shape) > _HELD:
        return spectrum(pieces, *shape, directions)
    held = list(pieces())
    return spectrum(lambda: held, *shape, directions)


def _square(values: Tensor) -> float:
    return float((values * values).sum())
