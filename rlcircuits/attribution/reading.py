"""Which modules of a Hugging Face model are its layers' norms, projections and branches.

1. TransformerLens' architecture adapters know, for about a hundred Hugging Face architectures, which module is a
   layer's norm, its query projection, its MLP, …  We ask them for those modules *of the plain model*, which keeps its
   own forward pass and its fused attention kernel. A branch without a norm before it (OLMo 2) reads at its own input;
   with a norm after it (Gemma 2, OLMo 2), that norm's output is what is written.
2. Queries, keys and values may share one projection. Which of its channels are whose is found by handing the adapter's
   own splitting function a weight that holds its row numbers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rlcircuits.attribution.layers import Layer, Norm, Parts, Projection, wide
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNWRAPPED: weakref.WeakKeyDictionary[nn.Module, PreTrainedModel] = weakref.WeakKeyDictionary()


def plain(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside `model`.

    Raises:
        InputError: `model` is no Hugging Face causal language model.
    """
    hf = getattr(model, "hf", None) or model
    if isinstance(hf, nn.Module) and isinstance(getattr(hf, "original_model", None), nn.Module):
        hf = _without_bridge(cast(Any, hf))
    if not isinstance(hf, nn.Module) or not hasattr(hf, "config") or not hasattr(hf, "get_output_embeddings"):
        raise InputError(
            "expected a model from rlcircuits.load_model or a Hugging Face causal language model, not "
            f"{type(model).__name__}"
        )
    return cast("PreTrainedModel", hf)


def _without_bridge(bridge: Any) -> PreTrainedModel:
    """The plain model of a TransformerBridge, on the same weights: the bridge wraps each module of the one it was made
    from.

    Raises:
        InputError: the bridge's weights do not have the names that its model's class gives them.
    """
    if bridge in _UNWRAPPED:
        return _UNWRAPPED[bridge]
    from accelerate import init_empty_weights

    wrapped = bridge.original_model
    config = copy.deepcopy(wrapped.config)
    config._attn_implementation = None  # the bridge asks for eager attention; a plain model takes its fastest
    with init_empty_weights(include_buffers=False):
        hf = type(wrapped)._from_config(config, dtype=wrapped.dtype)
    weights = {name.replace("._original_component", ""): value for name, value in wrapped.state_dict().items()}
    expected = hf.state_dict()
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise InputError(
            f"cannot unwrap the TransformerBridge of a {type(wrapped).__name__}: it holds no weight {missing[0]!r}; "
            "load the checkpoint with rlcircuits.load_model instead"
        )
    hf.load_state_dict({name: weights[name] for name in expected}, assign=True)
    hf.tie_weights()
    _UNWRAPPED[bridge] = hf.to(next(wrapped.parameters()).device).train(bridge.training)
    return hf


def read(hf: PreTrainedModel) -> Parts:
    """The model's parts, as TransformerLens' adapter for its class gives them.

    Raises:
        InputError: unknown to TransformerLens, or without layers of attention and MLP.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    name = type(hf).__name__
    try:
        config = build_bridge_config_from_hf(hf.config, name, name, hf.dtype)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    except Exception as error:
        raise InputError(
            f"{name} is not an architecture that TransformerLens knows ({type(error).__name__}: {error}); "
            "rlcircuits reads residual streams through its adapters"
        ) from error

    def module(path: str, required: bool = False) -> nn.Module | None:
        try:
            return adapter.get_component(hf, path)
        except (ValueError, AttributeError, KeyError, IndexError) as error:
            if required:
                raise InputError(
                    f"{name} is not supported: it has no {path!r} where rlcircuits expects layers of attention and MLP"
                ) from error
            return None

    forms: dict[tuple, bool | None] = {}

    def projection(path: str) -> Projection | None:
        found = module(path)
        if found is None:
            return None
        weight = getattr(found, "weight", None)
        form = (
            type(found),
            getattr(weight, "shape", None),
            getattr(weight, "dtype", None),
            getattr(weight, "is_meta", None),
        )
        if form not in forms:
            forms[form] = _transposed(found)
        return Projection(found, forms[form])

    def layer(index: int, block: nn.Module) -> Layer:
        parts = {part: module(f"blocks.{index}.{part}") for part in ("ln1", "ln2", "ln1_post", "ln2_post", "attn.o")}
        attention, mlp = (module(f"blocks.{index}.{branch}", required=True) for branch in ("attn", "mlp"))
        if parts["ln1"] is not None and parts["ln2"] is None:
            raise InputError(
                f"{name} is not supported: its MLP has no norm of its own: attention and MLP read one norm"
            )
        written = parts["ln1_post"]
        q, k, v = (projection(f"blocks.{index}.attn.{x}") for x in "qkv")
        if None in (q, k, v):
            q, k, v = _split(adapter, projection(f"blocks.{index}.attn.qkv"))
        return Layer(
            block=block,
            attention=attention,
            norm_attention=None if parts["ln1"] is None else Norm.of(parts["ln1"]),
            attention_reader=parts["ln1"] or attention,
            mlp_reader=parts["ln2"] or mlp,
            attention_out=written or parts["attn.o"] or attention,
            mlp_out=parts["ln2_post"] or mlp,
            norm_written=None if written is None else Norm.of(written),
            q=q,
            k=k,
            v=v,
            o=projection(f"blocks.{index}.attn.o"),
        )

    groups = getattr(config, "n_key_value_heads", None) or config.n_heads
    return Parts(
        name=name,
        layers=tuple(
            layer(index, block) for index, block in enumerate(cast(nn.ModuleList, module("blocks", required=True)))
        ),
        norm_final=Norm.of(module("ln_final", required=True)),
        n_heads=config.n_heads,
        n_kv_heads=config.n_heads if config.n_heads % groups else groups,  # latent attention may state any number
        d_model=config.d_model,
        d_head=config.d_head,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
    )


def _transposed(module: nn.Module) -> bool | None:
    """How the module holds its weight, by comparing with what it computes: see `Projection.transposed`."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.is_meta or not weight.is_floating_point():
        return None
    weight, bias = weight.detach(), getattr(module, "bias", None)
    for transposed in (False, True):
        held = (weight.T if transposed else weight).to(wide(weight.dtype))
        x = torch.randn(1, 2, held.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            expected = x.to(held.dtype) @ held.T + (0 if bias is None else bias.to(held.dtype))
            output = module.forward(x)
            if (
                output.shape == expected.shape
                and (output - expected).norm() <= _allowed(weight.dtype) * expected.norm()
            ):
                return transposed
    return None


def _allowed(dtype: torch.dtype) -> float:
    """Relative difference by which a product may miss the same product in a wider dtype."""
    return max(1e-3, 20 * torch.finfo(dtype).eps)


def _split(adapter: Any, fused: Projection | None) -> tuple[Projection | None, ...]:
    """Queries, keys and values as channels of one module, found by splitting a weight that holds its channels'
    numbers.
    """
    bridge = adapter.component_mapping["blocks"].submodules["attn"]
    split = getattr(bridge, "split_qkv_matrix", None)
    if split is None or fused is None or not fused.affine:
        return None, None, None
    numbers = torch.arange(fused.size, dtype=torch.float32)
    rows = (numbers[None] if fused.transposed else numbers[:, None]).expand(cast(Tensor, fused.module.weight).shape)
    stand_in = SimpleNamespace(weight=rows, bias=numbers)
    for name in reversed(bridge.submodules["qkv"].name.split(".")):
        stand_in = SimpleNamespace(**{name: stand_in})
    try:
        channels = [part.weight.detach()[:, 0].long() for part in split(stand_in)]
    except (
        AttributeError,
        AssertionError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # it needs more: the parts stay unknown
        return None, None, None
    if sorted(torch.cat(channels).tolist()) != list(range(fused.size)):
        return None, None, None
    return tuple(dataclasses.replace(fused, channels=_contiguous(one)) for one in channels)


def _contiguous(channels: Tensor) -> slice | Tensor:
    """A slice where the channels follow one another, which is read without a copy."""
    begin, size = int(channels[0]), len(channels)
    follow = torch.equal(channels, torch.arange(begin, begin + size))
    return slice(begin, begin + size) if follow else channels
