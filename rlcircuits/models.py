"""Models, and pairs of models before and after fine-tuning.

1. `load_model` reads a local checkpoint or a hub id: safetensors only, evaluation mode, no gradients.
2. A `ModelPair` names a base, what was tuned from it and how. The registry of known pairs is data: ``pairs.yaml``.
3. `check_pair` makes sure, before any work, that the two can be compared: one architecture, one vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, choose

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
METHODS = ("PPO", "GRPO", "DPO", "online DPO", "RFT", "SFT", "other")


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model ready to be studied.

    Attributes:
        hf: the Hugging Face model, in evaluation mode, no parameter requiring a gradient.
        tokenizer: its tokenizer.
        name: the path or hub id it was loaded from.
        source: the local folder its files were read from, when there is one.
        commit: the hub commit, when it came from a hub.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: Path | None = None
    commit: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the input embedding."""
        return self.hf.get_input_embeddings().weight.device

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the weights and tokenizer: the hub commit, or SHA-256 over the checkpoint's files."""
        return self.commit or fingerprint(self.source)

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

    def __post_init__(self) -> None:
        for name in ("name", "base", "tuned"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not isinstance(value, str) or not value:
                raise InputError(f"pair {self.name!r}: {name} is {value!r}, expected a path or a hub id")
        choose("method", self.method, METHODS)
        if self.prompt != "chat" and self.prompt.count("{question}") != 1:
            raise InputError(f"pair {self.name!r}: prompt is {self.prompt!r}, expected a template with one '{{question}}', or 'chat'")
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
        )


def load_model(
    path: str | os.PathLike[str],
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal language model and its tokenizer from a local checkpoint or a hub id.

    Args:
        path: folder holding ``config.json`` and safetensors, or a hub id such as ``"org/name"``.
        device: ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        dtype: ``"auto"`` (as saved; float32 for 16-bit checkpoints on a CPU without a GPU is your choice), or a name.
        revision: hub branch, tag or commit.
        trust_remote_code: run modelling code that comes with the checkpoint. Off by default, for safety.

    Raises:
        InputError: no such folder, a folder without a checkpoint or tokenizer, weights that are not safetensors, missing
            weights, a tokenizer that does not fit, an unknown dtype or device, or a hub that cannot be reached.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    name = os.fspath(path)
    choose("dtype", dtype, DTYPES)
    where = _device(device)
    local = local_checkpoint(name)
    kwargs: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    try:
        hf_logging.set_verbosity_error()
        if local is not None:
            hf_logging.disable_progress_bar()
        tokenizer = load_tokenizer(local or name, **kwargs)
        hf, report = AutoModelForCausalLM.from_pretrained(
            local or name,
            use_safetensors=True,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **kwargs,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(_why_not(name, local, error)) from error
    except Exception as error:  # safetensors raises its own type for a damaged file
        if type(error).__module__.split(".")[0] not in ("safetensors", "safetensors_rust", "huggingface_hub", "tokenizers", "builtins"):
            raise
        raise InputError(_why_not(name, local, error)) from error
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", []))
    if missing:
        raise InputError(
            f"checkpoint {name!r} lacks weights or has them in another shape: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; is the download complete?"
        )
    vocabulary = hf.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, but its model embeds {vocabulary}: they do not belong together"
        )
    hf.requires_grad_(False)
    hf.eval()
    try:
        hf.to(where)
    except RuntimeError as error:
        raise InputError(f"{name!r} does not fit on {where}: {str(error).splitlines()[0]}; choose another device or a smaller dtype") from error
    return Model(hf, tokenizer, name, local, getattr(hf.config, "_commit_hash", None) if local is None else None)


def load_tokenizer(
    path: str | os.PathLike[str], revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer that a checkpoint's ``tokenizer.json`` describes.

    For some model types (Qwen2 among them) transformers 5 replaces a declared generic tokenizer by the model type's own and so
    loses its splitting rules; where the checkpoint declares the generic class, that class is used.

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
    kind = PreTrainedTokenizerFast if generic else AutoTokenizer
    return kind.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's weight, configuration and tokenizer files."""
    whole = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and (file.suffix in {".safetensors", ".json", ".model", ".jinja", ".txt"}) and file.name not in _NOT_MODEL:
            whole.update(file.name.encode() + b"\0")
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


_NOT_MODEL = {"manifest.json", "member.json", "trainer_state.json", "README.md"}


def check_pair(base: Model, tuned: Model) -> None:
    """Make sure that two models can be compared.

    Raises:
        InputError: another architecture, other sizes, or another vocabulary, naming the first difference.
    """
    for label, get in (
        ("architecture", lambda m: type(m.hf).__name__),
        ("number of layers", lambda m: m.hf.config.num_hidden_layers),
        ("number of heads", lambda m: m.hf.config.num_attention_heads),
        ("number of key/value heads", lambda m: getattr(m.hf.config, "num_key_value_heads", None)),
        ("width", lambda m: m.hf.config.hidden_size),
    ):
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


def weight_change(base: Model, tuned: Mapping[str, Model] | Model) -> pd.DataFrame:
    """How far each weight of one or more tuned models lies from the base's.

    Args:
        base: the model before.
        tuned: the model after, or several by name.

    Returns:
        One row per model and parameter: ``model``, ``layer`` (−1 outside the layers), ``module`` (name without the layer),
        ``relative`` (‖ΔW‖ / ‖W‖, Frobenius norms) and ``unchanged`` (share of entries that are exactly equal).

    Raises:
        InputError: models that `check_pair` refuses.
    """
    import pandas as pd

    rows = []
    for name, model in (tuned if isinstance(tuned, Mapping) else {tuned.name: tuned}).items():
        check_pair(base, model)
        after = dict(model.hf.named_parameters())
        for parameter, before in base.hf.named_parameters():
            now = after[parameter].detach().to(before.device)
            layer, module = re.fullmatch(r"(?:.*?\.(\d+)\.)?(.*)", parameter).groups()
            size = float(before.float().norm())
            rows.append(
                {
                    "model": name,
                    "layer": -1 if layer is None else int(layer),
                    "module": module.removesuffix(".weight"),
                    "relative": float((now.float() - before.float()).norm()) / size if size else float("nan"),
                    "unchanged": float((now == before).float().mean()),
                }
            )
    return pd.DataFrame(rows)


def pairs() -> dict[str, ModelPair]:
    """The registered pairs by name, as in ``pairs.yaml``; the family's pairs are found by `rlcircuits.family`."""
    import yaml

    file = resources.files("rlcircuits") / "pairs.yaml"
    return {name: ModelPair(name=name, **fields) for name, fields in yaml.safe_load(file.read_text("utf-8")).items()}


def pair(name: str) -> ModelPair:
    """One registered pair.

    >>> pair("deepseek-math").method
    'GRPO'

    Raises:
        InputError: no pair of that name.
    """
    known = pairs()
    return known[choose("pair", name, known)]


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
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
    if local is None:
        return f"cannot load {name!r}: no such folder here, and as a hub id it could not be had ({reason})"
    return f"cannot load the checkpoint in {name!r}: {reason}"
