"""Models, and pairs of models before and after fine-tuning.

1. `load_model` reads a local checkpoint or a hub id: safetensors only, evaluation mode, no gradients. A LoRA adapter is merged
   into the base that the pair names.
2. A `ModelPair` names a base, what was tuned from it and how. The registry of known pairs is data: ``pairs.yaml``, and a file of
   one's own (``file=``, or the variable ``RLCIRCUITS_PAIRS``) that adds to it. ``family/<member>`` and
   ``family/<member>@<seed>`` are pairs of the family.
3. `check_pair` makes sure that the two can be compared: one architecture, one vocabulary. `ModelPair.check` does so before any
   work, from configurations and tokenizers alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.adapters import hub_adapter, is_adapter, merged
from rlcircuits.errors import InputError, choose
from rlcircuits.registry import entries, near

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlcircuits.outline import Outline
    from rlcircuits.store import Store

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
METHODS = ("PPO", "GRPO", "DPO", "online DPO", "RFT", "SFT", "other")
#: the device that spreads a model over all there are (`device_map="auto"` of transformers)
SPREAD = "spread"


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model ready to be studied.

    Attributes:
        hf: the Hugging Face model, in evaluation mode, no parameter requiring a gradient.
        tokenizer: its tokenizer.
        name: the path or hub id it was loaded from.
        source: the local folder its files were read from, when there is one.
        commit: the hub commit, when it came from a hub.
        base_fingerprint: of the model that an adapter was merged into.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: Path | None = None
    commit: str | None = None
    base_fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the input embedding."""
        return self.hf.get_input_embeddings().weight.device

    @cached_property
    def fingerprint(self) -> str:
        """What identifies weights and tokenizer: the hub commit, or SHA-256 over the files; an adapter's with its base's."""
        own = self.commit or fingerprint(self.source)
        return own if self.base_fingerprint is None else _together(self.base_fingerprint, own)

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.hf.parameters()) / 1e6
        dtype = str(self.hf.dtype).removeprefix("torch.")
        return f"Model({self.name!r}: {type(self.hf).__name__}, {millions:,.1f} M parameters, {dtype} on {self.device})"


@dataclass(frozen=True)
class ModelPair:
    """A model before and after fine-tuning.

    Args:
        name: how the pair is called, e.g. ``"deepseek-math"`` or ``"family/ppo"``.
        base: path or hub id of the model before.
        tuned: path or hub id of the model after.
        method: how it was tuned, one of ``PPO``, ``GRPO``, ``DPO``, ``online DPO``, ``RFT``, ``SFT``, ``other``.
        prompt: template with one ``{question}``, or ``"chat"`` for the tokenizer's own chat template.
        max_new_tokens: longest answer allowed.
        trust_remote_code: run code that comes with the checkpoint; off unless set for this pair.
        note: what a reader should know about it.
        base_revision, tuned_revision: hub branches, tags or commits.
        config: the shape of both models, as in ``config.json``, for estimates where neither is on this machine.
    """

    name: str
    base: str
    tuned: str
    method: str = "other"
    prompt: str = "{question}"
    max_new_tokens: int = 1024
    trust_remote_code: bool = False
    note: str = ""
    base_revision: str | None = field(default=None, compare=False)
    tuned_revision: str | None = field(default=None, compare=False)
    config: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("name", "base", "tuned"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not isinstance(value, str) or not value:
                raise InputError(f"pair {self.name!r}: {name} is {value!r}, expected a path or a hub id")
        choose("method", self.method, METHODS)
        if self.prompt != "chat" and self.prompt.count("{question}") != 1:
            raise InputError(f"pair {self.name!r}: prompt is {self.prompt[:200]!r}, expected a template with one '{{question}}', or 'chat'")
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise InputError(f"pair {self.name!r}: max_new_tokens is {self.max_new_tokens!r}, expected a whole number of at least 1")
        if not isinstance(self.trust_remote_code, bool):
            raise InputError(f"pair {self.name!r}: trust_remote_code is {self.trust_remote_code!r}, expected true or false")

    def load(self, side: str, device: str = "auto", dtype: str = "auto") -> Model:
        """Load the ``"base"`` or the ``"tuned"`` model."""
        choose("side", side, ("base", "tuned"))
        return load_model(
            getattr(self, side),
            device=device,
            dtype=dtype,
            revision=getattr(self, f"{side}_revision"),
            trust_remote_code=self.trust_remote_code,
            base=self.base if side == "tuned" else None,
            base_revision=self.base_revision,
        )

    def fingerprint(self, side: str) -> str | None:
        """What identifies a side's weights and tokenizer, as `Model.fingerprint`, where its files are here; else None."""
        choose("side", side, ("base", "tuned"))
        folder = local_checkpoint(getattr(self, side))
        if folder is None:
            return None
        if not is_adapter(folder):
            return fingerprint(folder)
        base = self.fingerprint("base") if side == "tuned" else None
        return None if base is None else _together(base, fingerprint(folder))

    def outlines(self) -> tuple[Outline, Outline]:
        """What the small files of base and tuned say, see `rlcircuits.outline`.

        Raises:
            InputError: a side that cannot be read.
        """
        from rlcircuits.outline import outline_of

        base = outline_of(self.base, self.base_revision, self.trust_remote_code)
        return base, outline_of(self.tuned, self.tuned_revision, self.trust_remote_code, base)

    def check(self) -> tuple[Outline, Outline]:
        """Make sure, without reading a weight, that base and tuned can be compared; returns their outlines.

        Raises:
            InputError: as `check_pair`, or a side that cannot be read.
        """
        base, tuned = self.outlines()
        check_pair(base, tuned)
        return base, tuned


def load_model(
    path: str | os.PathLike[str],
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | os.PathLike[str] | None = None,
    base_revision: str | None = None,
) -> Model:
    """Load a causal language model and its tokenizer from a local checkpoint or a hub id.

    Args:
        path: folder holding ``config.json`` and safetensors (in one file or in shards), or a hub id such as ``"org/name"``; or
            either of a LoRA adapter, which is merged into `base`.
        device: ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …, or ``"spread"`` over all there are
            (``device_map="auto"`` of transformers).
        dtype: ``"auto"`` (as saved; float32 for 16-bit checkpoints on a CPU without a GPU is your choice), or a name.
        revision: hub branch, tag or commit.
        trust_remote_code: run modelling code that comes with the checkpoint. Off by default, for safety.
        base, base_revision: what an adapter is merged into; whatever the adapter's own file names is not loaded.

    Raises:
        InputError: no such folder, a folder without a checkpoint or tokenizer, weights that are not safetensors, missing
            weights, a tokenizer that does not fit, an unknown dtype or device, or a hub that cannot be reached.
    """
    import torch
    from transformers import AutoModelForCausalLM

    name = os.fspath(path)
    choose("dtype", dtype, DTYPES)
    where = None if device == SPREAD else resolved_device(device)
    local = local_checkpoint(name)
    with explained(name, local):
        adapter = (local if is_adapter(local) else None) if local is not None else hub_adapter(name, revision)
    if adapter is not None:
        if base is None:
            raise InputError(f"{name!r} is a LoRA adapter: give the model it was trained on, load_model(…, base=…), or a pair")
        whole = load_model(base, device, dtype, base_revision, trust_remote_code)
        return merged(whole, adapter, name, adapter.name if local is None else None)
    kwargs: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with explained(name, local), _quiet(local is not None):
        tokenizer = load_tokenizer(local or name, **kwargs)
        hf, report = AutoModelForCausalLM.from_pretrained(
            local or name,
            use_safetensors=True,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **({"device_map": "auto"} if where is None else {}),
            **kwargs,
        )
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", []))
    if missing:
        raise InputError(
            f"checkpoint {name!r} lacks weights or has them in another shape: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; is the download complete?"
        )
    _expect_room(name, len(tokenizer), hf.get_input_embeddings().weight.shape[0])
    hf.requires_grad_(False)
    hf.eval()
    try:
        if where is not None:
            hf.to(where)
    except RuntimeError as error:
        raise InputError(f"{name!r} does not fit on {where}: {str(error).splitlines()[0]}; choose another device or a smaller dtype") from error
    return Model(hf, tokenizer, name, local, getattr(hf.config, "_commit_hash", None) if local is None else None)


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
        if type(error).__module__.split(".")[0] not in ("safetensors", "safetensors_rust", "huggingface_hub", "tokenizers", "builtins"):
            raise
        raise InputError(_why_not(name, local, error)) from error


@contextlib.contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Without transformers' notes while loading, and without its progress bars for what is here."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    try:
        hf_logging.set_verbosity_error()
        if local:
            hf_logging.disable_progress_bar()
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _expect_room(name: str, tokens: int, rows: int) -> None:
    if tokens > rows:
        raise InputError(
            f"the tokenizer of {name!r} has {tokens} tokens, but its model embeds {rows}: they do not belong together"
        )


def load_tokenizer(
    path: str | os.PathLike[str], revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer that a checkpoint's ``tokenizer.json`` describes.

    For some model types (Qwen2 among them) transformers 5 replaces the declared tokenizer by the model type's own and so may lose
    the file's rules. Where the checkpoint declares the generic class, or the rules for normalising and splitting that were loaded are
    not the file's, the generic class is used, which keeps them.

    Raises:
        OSError, ValueError: no tokenizer there (`load_model` turns these into an `InputError`).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = os.fspath(path)
    if Path(where).is_dir() and not any(Path(where).glob("tokenizer*")) and not (Path(where) / "vocab.json").exists():
        raise OSError("it holds no tokenizer files (tokenizer.json, tokenizer_config.json); save the tokenizer beside the model")
    declared = get_tokenizer_config(where, revision=revision).get("tokenizer_class")
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _quiet(True):
        if generic:
            return PreTrainedTokenizerFast.from_pretrained(where, **options)
        found = AutoTokenizer.from_pretrained(where, **options)
        return found if _by_the_file(found, where, revision) else PreTrainedTokenizerFast.from_pretrained(where, **options)


def _by_the_file(tokenizer: PreTrainedTokenizerBase, where: str, revision: str | None) -> bool:
    """Whether a tokenizer normalises and splits as its ``tokenizer.json`` says, if it has one."""
    from transformers.utils import cached_file

    file = cached_file(where, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None or not hasattr(tokenizer, "backend_tokenizer"):
        return True
    described, loaded = json.loads(Path(file).read_text("utf-8")), json.loads(tokenizer.backend_tokenizer.to_str())
    return all(described.get(rule) == loaded.get(rule) for rule in ("normalizer", "pre_tokenizer"))


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's weight, configuration and tokenizer files.

    A process reads each file once, as long as its size, time and place stay.
    """
    whole = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and (file.suffix in {".safetensors", ".json", ".model", ".jinja", ".txt"}) and file.name not in _NOT_MODEL:
            whole.update(file.name.encode() + b"\0")
            status = file.stat()
            whole.update(_content(str(file), status.st_size, status.st_mtime_ns, status.st_ino))
    return whole.hexdigest()


@lru_cache(maxsize=4096)
def _content(file: str, _size: int, _time: int, _place: int) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


_NOT_MODEL = {"manifest.json", "member.json", "trainer_state.json", "README.md"}


def _together(*parts: str) -> str:
    return hashlib.sha256("+".join(parts).encode()).hexdigest()


def check_pair(base: Model | Outline, tuned: Model | Outline) -> None:
    """Make sure that two models can be compared.

    Args:
        base, tuned: loaded models, or what their small files say (`rlcircuits.outline`).

    Raises:
        InputError: another architecture, other sizes, or another vocabulary, naming the first difference.
    """
    for label, get in _SHAPE.items():
        if get(base) != get(tuned):
            raise InputError(
                f"the models of the pair differ in {label}: {base.name!r} has {get(base)}, {tuned.name!r} has {get(tuned)}; "
                "a pair is one model before and after fine-tuning"
            )
    before, after = base.tokenizer.get_vocab(), tuned.tokenizer.get_vocab()
    different = sorted(token for token in before.keys() | after.keys() if before.get(token) != after.get(token))
    if different:
        token = different[0]
        raise InputError(
            f"the models of the pair have different vocabularies: {len(before)} tokens in {base.name!r}, {len(after)} in "
            f"{tuned.name!r}; first difference: {token!r} is {before.get(token)} and {after.get(token)}"
        )
    for one in (base, tuned):
        if rows := getattr(_config(one), "vocab_size", None):
            _expect_room(one.name, max(one.tokenizer.get_vocab().values(), default=-1) + 1, rows)


def _config(model: Model | Outline) -> Any:
    return (model.hf.config if isinstance(model, Model) else model.config).get_text_config()


_SHAPE = {
    "architecture": lambda model: type(model.hf).__name__ if isinstance(model, Model) else model.architecture,
    "number of layers": lambda model: getattr(_config(model), "num_hidden_layers", None),
    "number of heads": lambda model: getattr(_config(model), "num_attention_heads", None),
    "number of key/value heads": lambda model: getattr(_config(model), "num_key_value_heads", None),
    "width": lambda model: getattr(_config(model), "hidden_size", None),
    "width of the MLP": lambda model: getattr(_config(model), "intermediate_size", None),
}

_KEYS = {
    "base": str,
    "tuned": str,
    "method": str,
    "prompt": str,
    "max_new_tokens": int,
    "base_revision": (str, type(None)),
    "tuned_revision": (str, type(None)),
    "trust_remote_code": bool,
    "note": str,
    "config": dict,
}
ENVIRONMENT = "RLCIRCUITS_PAIRS"
FAMILY = re.compile(r"family/(?P<member>[^@]*)(?:@(?P<seed>.*))?", re.DOTALL)


def pairs(file: str | os.PathLike[str] | None = None) -> dict[str, ModelPair]:
    """The registered pairs by name: the package's ``pairs.yaml``, and what a file of one's own adds.

    Args:
        file: YAML as ``pairs.yaml``; None stands for what the variable ``RLCIRCUITS_PAIRS`` names, if it is set. Paths in it that
            begin with ``./`` or ``../`` are seen from its folder.

    Raises:
        InputError: a file that cannot be read, or an entry that is no pair; it names file, pair, key and what was expected.
    """
    found = {}
    for name, fields in entries("pairs.yaml", file, ENVIRONMENT, _KEYS).items():
        where = fields.pop("_file", None)
        label = repr(where or "pairs.yaml")
        for key in ("base", "tuned"):
            if key not in fields:
                raise InputError(f"{label}: {name!r} has no {key}: expected a path or a hub id{near(key, fields)}")
            if where is not None and fields[key].startswith(("./", "../")):
                fields[key] = str(Path(where).expanduser().parent / fields[key])
        if name.startswith("family/") or "@" in name:
            raise InputError(f"{label}: {name!r} cannot be the name of a pair: names with 'family/' or '@' are the family's")
        try:
            found[name] = ModelPair(name=name, **fields)
        except InputError as error:
            raise InputError(f"{label}: {name!r}: {str(error).removeprefix(f'pair {name!r}: ')}") from None
    return found


def pair(name: str, file: str | os.PathLike[str] | None = None, store: Store | str | os.PathLike[str] | None = None) -> ModelPair:
    """One registered pair, or one of the family.

    >>> pair("deepseek-math").method
    'GRPO'

    Args:
        name: a registered pair, ``"family/<member>"``, or ``"family/<member>@<seed>"`` for another seed than 0. A member of the
            family that is not in the store is trained, which takes minutes.
        file: as in `pairs`.
        store: where the family's members are; ``runs`` by default.

    Raises:
        InputError: no pair of that name, or a seed that is no whole number.
    """
    known = pairs(file)
    match = FAMILY.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return known[choose("pair", name, known_pairs(known))]
    from dataclasses import replace

    from rlcircuits.family import family_pairs, make_family

    member, seed = family_member(name)
    folders = make_family(seed, ("sft", member), store=store)
    return replace(family_pairs(folders)[f"family/{member}"], name=name)


def family_member(name: str) -> tuple[str, int]:
    """Member and seed of a pair of the family.

    >>> family_member("family/grpo@3")
    ('grpo', 3)

    Raises:
        InputError: no such member, or a seed that is no whole number.
    """
    match = FAMILY.fullmatch(name)
    member, seed = (match["member"], match["seed"]) if match else (name, None)
    choose("pair", f"family/{member}", known_pairs({}))
    if seed is not None and not (seed.isascii() and seed.isdecimal() and len(seed) < 10):
        raise InputError(f"pair {name!r}: the seed after '@' is {seed!r}, expected a whole number of at least 0, such as 3")
    return member, int(seed or 0)


def known_pair(name: str, file: str | os.PathLike[str] | None = None) -> str:
    """The name of a pair, which `pair` knows: checked without loading or training anything.

    Args:
        name, file: as in `pair`.

    Raises:
        InputError: as `pair`.
    """
    if isinstance(name, str) and FAMILY.fullmatch(name):
        family_member(name)
        return name
    return choose("pair", name, known_pairs(pairs(file)))


def known_pairs(registered: Mapping[str, ModelPair] | None = None) -> list[str]:
    """Names of the registered pairs and of the family's."""
    from rlcircuits.family.recipe import MEMBERS

    return [*(pairs() if registered is None else registered), *(f"family/{member}" for member in MEMBERS if member != "sft")]


def resolved_device(device: str) -> torch.device:
    """The device of a name; ``"auto"`` is CUDA when there is one, else the CPU.

    Raises:
        InputError: an unknown name, or CUDA where there is none.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}: expected 'auto', 'cpu', 'cuda', 'cuda:N' or '{SPREAD}'") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for, but PyTorch sees no CUDA device here; use device='cpu' or 'auto'")
    return where


def local_checkpoint(name: str) -> Path | None:
    """The folder when `name` is a path to a checkpoint, None when it can only be a hub id.

    Raises:
        InputError: a path that does not exist or holds no readable safetensors checkpoint.
    """
    folder = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
    if not looks_like_path:
        return None
    if not folder.exists():
        raise InputError(f"no checkpoint at {name!r}: expected a folder with config.json and *.safetensors, or a hub id 'organisation/name'")
    if not folder.is_dir():
        raise InputError(f"{name!r} is a file: expected the folder that holds config.json and *.safetensors")
    if is_adapter(folder):
        return folder
    if not (folder / "config.json").is_file():
        raise InputError(f"the folder {name!r} holds no config.json, so it is no Hugging Face checkpoint; expected config.json and *.safetensors")
    try:
        json.loads((folder / "config.json").read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{name}/config.json cannot be read ({error}); make or download the checkpoint again") from error
    if not any(folder.glob("*.safetensors")):
        other = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
        found = f" but {other[0]}, which is pickled and never loaded" if other else ""
        raise InputError(f"the folder {name!r} holds no *.safetensors{found}; save the model with save_pretrained(safe_serialization=True)")
    return folder


def _why_not(name: str, local: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if local is None and "safetensors" in reason and "not" in reason:
        return (
            f"cannot load {name!r}: it seems to have no safetensors, and pickled weights are never loaded; name a revision that has them, "
            f"or convert a copy of your own ({reason})"
        )
    if local is None:
        return f"cannot load {name!r}: no such folder here, and as a hub id it could not be had ({reason})"
    return f"cannot load the checkpoint in {name!r}: {reason}"
