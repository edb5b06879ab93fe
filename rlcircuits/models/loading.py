"""Models: a local checkpoint or a hub id, ready to be studied.

1. `load_model` reads safetensors only, in evaluation mode, without gradients.
2. A LoRA adapter (`rlcircuits.models.adapters`) is loaded by peft onto the base that the pair names, weights that do
   not fit it are refused, and W + (α / r) B A takes the place of each W it changes; what is left is a plain model.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlcircuits.errors import InputError, argument, choose
from rlcircuits.models.adapters import WEIGHTS, adapter_settings, hub_adapter, is_adapter
from rlcircuits.models.checkpoints import DTYPES, SPREAD, fingerprint, local_checkpoint, resolved_device, together
from rlcircuits.models.faults import explained
from rlcircuits.models.tokenizer import load_tokenizer, quiet
from rlcircuits.storage import Step

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOADING = Step("loading", 1, apart=("rlcircuits.models.gguf",))
"""What stands between a checkpoint's files and the model; part of the key of everything that is made with a model."""


class OtherBase(UserWarning):
    """An adapter is merged into a base of another name than the one it was trained on."""


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
        weight: Any = self.hf.get_input_embeddings().weight
        return weight.device

    @cached_property
    def fingerprint(self) -> str:
        """What identifies weights and tokenizer: the hub commit, or SHA-256 over the files; an adapter's with its
        base's.
        """
        own = self.commit or fingerprint(cast(Path, self.source))  # which is there where no commit is
        return own if self.base_fingerprint is None else together(self.base_fingerprint, own)

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.hf.parameters()) / 1e6
        dtype = str(self.hf.dtype).removeprefix("torch.")
        return f"Model({self.name!r}: {type(self.hf).__name__}, {millions:,.1f} M parameters, {dtype} on {self.device})"


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
        path: folder holding ``config.json`` and safetensors (in one file or in shards), or a hub id such as
            ``"org/name"``; or either of a LoRA adapter, which is merged into `base`.
        device: ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …, or ``"spread"`` over all
            there are (``device_map="auto"`` of transformers).
        dtype: ``"auto"`` (as saved; float32 for 16-bit checkpoints on a CPU without a GPU is your choice), or a name.
        revision: hub branch, tag or commit.
        trust_remote_code: run modelling code that comes with the checkpoint. Off by default, for safety.
        base, base_revision: what an adapter is merged into; whatever the adapter's own file names is not loaded.

    Raises:
        InputError: no such folder, a folder without a checkpoint or tokenizer, weights that are not safetensors,
            missing weights, a tokenizer that does not fit, an unknown dtype or device, or a hub that cannot be reached.
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
            raise InputError(
                f"{name!r} is a LoRA adapter: give the model it was trained on, load_model(…, base=…), or a pair"
            )
        whole = load_model(base, device, dtype, base_revision, trust_remote_code)
        return _merged(whole, adapter, name, adapter.name if local is None else None)
    kwargs: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with explained(name, local), quiet(local is not None):
        tokenizer = load_tokenizer(local or name, **kwargs)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            local or name,
            use_safetensors=True,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **({"device_map": "auto"} if where is None else {}),
            **kwargs,
        )
    hf, report = loaded
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", []))
    if missing:
        raise InputError(
            f"checkpoint {name!r} lacks weights or has them in another shape: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; is the download complete?"
        )
    surplus = sorted(str(key) for key in report["unexpected_keys"])
    if surplus:
        raise InputError(
            f"checkpoint {name!r} holds weights that its config.json knows no place for: {', '.join(surplus[:3])}"
            f"{' …' if len(surplus) > 3 else ''}; is config.json that of another model?"
        )
    expect_room(name, len(tokenizer), hf.get_input_embeddings().weight.shape[0])
    hf.requires_grad_(False)
    hf.eval()
    try:
        if where is not None:
            hf.to(where)
    except RuntimeError as error:
        raise InputError(
            f"{name!r} does not fit on {where}: {str(error).splitlines()[0]}; choose another {argument('device')} or a smaller {argument('dtype')}"
        ) from error
    in_one_piece(hf)
    return Model(hf, tokenizer, name, local, getattr(hf.config, "_commit_hash", None) if local is None else None)


def in_one_piece(hf: PreTrainedModel) -> None:
    """Have the output layer given its inputs in one piece.

    Of a slice of the positions PyTorch makes a batched product where the weight needs no gradient, which on a processor
    in bfloat16 means a copy of the vocabulary's weights for each sequence: 0.8 GB and 200 times the time for 16
    sequences of SmolLM2.
    """
    hf.get_output_embeddings().register_forward_pre_hook(_contiguous)


def _contiguous(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].contiguous(), *inputs[1:])


def expect_room(name: str, tokens: int, rows: int) -> None:
    """Raise unless every token of the tokenizer has its row of embeddings."""
    if tokens > rows:
        raise InputError(
            f"the tokenizer of {name!r} has {tokens} tokens, but its model embeds {rows}: they do not belong together"
        )


def _merged(base: Model, folder: Path, name: str | os.PathLike[str], commit: str | None = None) -> Model:
    """The base with an adapter merged into its weights.

    Args:
        base: the pair's base, loaded; its weights are changed in place, so it is not to be used any more.
        folder: the adapter's files.
        name: what the result is called.
        commit: the adapter's hub commit, when it came from a hub.

    Raises:
        InputError: peft is not installed, another kind of adapter than LoRA, or one that does not fit the base.
    """
    own = base.fingerprint
    with _fitting(name, base):
        hf = _wrapped(base, folder, name).merge_and_unload(safe_merge=True)
        tokenizer = load_tokenizer(folder) if any(folder.glob("tokenizer*")) else base.tokenizer
    hf.requires_grad_(False)
    hf.eval()
    return replace(
        base, hf=hf, tokenizer=tokenizer, name=os.fspath(name), source=folder, commit=commit, base_fingerprint=own
    )


def adapted_weights(
    base: Model, adapter: str | os.PathLike[str], revision: str | None = None
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]] | None:
    """What an adapter makes of each of its base's weights, made one at a time when asked for: the same bits as merging it.

    Args:
        base: the base, which stays as it is.
        adapter, revision: as for `load_model`.

    Returns:
        By name of the parameter, what takes the base's weight W to  W + (α / r) B A;  None where `adapter` is no adapter,
        or changes more than single matrices (biases, vocabulary, whole modules, DoRA): then load it merged.

    Raises:
        InputError: as for `load_model`.
    """
    name = os.fspath(adapter)
    local = local_checkpoint(name)
    with explained(name, local):
        folder = (local if is_adapter(local) else None) if local is not None else hub_adapter(name, revision)
    if folder is None or not _only_matrices(folder):
        return None
    with _fitting(name, base):
        from peft.tuners.lora import LoraLayer

        wrapped = _wrapped(base, folder, name)
        layers = {f"{at}.weight": one for at, one in base.hf.named_modules() if isinstance(one, LoraLayer)}
        wrapped.unload()
    base.hf.requires_grad_(False)
    base.hf.eval()

    def change(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda weight: weight + layer.get_delta_weight(layer.active_adapters[0]).to(weight.dtype)

    return {at: change(layer) for at, layer in layers.items()}


def _only_matrices(folder: Path) -> bool:
    """Whether an adapter adds to single matrices, and changes nothing else."""
    from safetensors import safe_open

    settings = adapter_settings(folder)
    more = (
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
        "megatron_config",
    )
    with safe_open(folder / WEIGHTS, "np") as file:  # whose header needs no torch
        whole = [key for key in file.keys() if key.endswith(("embed_tokens.weight", "lm_head.weight"))]  # noqa: SIM118
    return not whole and settings.get("bias", "none") == "none" and not any(settings.get(name) for name in more)


@contextlib.contextmanager
def _fitting(name: str | os.PathLike[str], base: Model) -> Iterator[None]:
    """Say of whatever goes wrong that the adapter does not fit."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:250] or type(error).__name__
        raise InputError(f"the adapter {os.fspath(name)!r} does not fit its base {base.name!r}: {reason}") from error


def _wrapped(base: Model, folder: Path, name: str | os.PathLike[str]) -> Any:
    """The base with an adapter beside its weights, by peft.

    Raises:
        InputError: peft is not installed, or weights without a place and places without their weights.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise InputError(
            f"{os.fspath(name)!r} is a LoRA adapter, which needs peft, which is not installed: pip install "
            "'rlcircuits[lora]'"
        ) from error
    warn_of_other_base(folder, os.fspath(name), base.name, stacklevel=6)
    config = LoraConfig.from_pretrained(str(folder))
    config.base_model_name_or_path, config.auto_mapping, config.inference_mode = base.name, None, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft warns of, `_expect_all_keys` refuses
        wrapped = PeftModel.from_pretrained(base.hf, str(folder), config=config, autocast_adapter_dtype=False)
    _expect_all_keys(wrapped, folder, base.name)
    return wrapped


def warn_of_other_base(folder: Path, name: str, base: str, stacklevel: int = 2) -> None:
    """Warn where an adapter's own file names another base than the one it is put on."""
    recorded = str(adapter_settings(folder).get("base_model_name_or_path") or "").rstrip("/")
    if recorded and os.path.basename(recorded) != os.path.basename(base.rstrip("/")):
        warnings.warn(
            f"the adapter {name!r} was trained on {recorded!r} by its own file, and is merged into {base!r}: right if "
            "the two hold the same weights",
            OtherBase,
            stacklevel=stacklevel,
        )


def _expect_all_keys(wrapped: Any, folder: Path, base: str) -> None:
    """Every weight of the file must have found its place, and every place its weight."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        there = set(file.keys())
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    # Vocabulary matrices may be saved whole beside the adapter.
    extra = {key for key in there - wanted if not key.endswith(("embed_tokens.weight", "lm_head.weight"))}
    for what, keys in (("lacks", wanted - there), ("has, without a place for it,", extra)):
        if keys:
            raise InputError(
                f"the adapter in {str(folder)!r} {what} "
                f"{min(keys)!r}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: it does not belong to the "
                f"base {base!r}"
            )
