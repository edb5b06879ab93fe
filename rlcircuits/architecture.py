"""Where a Hugging Face model writes to and reads from its residual stream.

1. TransformerLens' architecture adapters know, for about a hundred Hugging Face architectures, which module is a
   layer's norm, its query projection, its MLP, …  We ask them for those modules *of the plain model*, which keeps its own
   forward pass and its fused attention kernel.
2. The answer is then checked on the model itself, once: run a few tokens, and the first layer's input plus all
   that was written must be what each norm read. A model for which that fails is refused by name, never scored wrongly.
3. The norms' Jacobians are taken from a closed form that is checked against automatic differentiation of the module.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlcircuits.errors import InputError, choose
from rlcircuits.graph import LEVELS, Graph

_UNWRAPPED: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()
_KNOWN: weakref.WeakKeyDictionary[nn.Module, Architecture] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation module and its closed form: x̂ = P x / rms(P x), output = w ∘ x̂ (+ b).

    P removes the mean over channels (LayerNorm) or does nothing (RMSNorm). With u = ∂L/∂output and r = 1 / rms,
    the gradient at the input is  Jᵀu = r · (P(w∘u) − x̂ ⟨x̂, w∘u⟩ / d_model).

    Attributes:
        module: the model's own norm.
        offset: w = module.weight + offset (1 for Gemma's norms), or None where no closed form fits.
        centred: P removes the mean.
        epsilon: added to the mean square.
    """

    module: nn.Module
    offset: float | None
    centred: bool
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        """Find the closed form that the module follows, by comparing values and gradients on random inputs."""
        weight = getattr(module, "weight", None)
        epsilon = next((float(getattr(module, n)) for n in ("variance_epsilon", "eps") if hasattr(module, n)), None)
        if weight is None or epsilon is None:
            return cls(module, None, False, 0.0)
        trial = copy.deepcopy(module).to(torch.float32).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        x, u = (torch.randn(3, weight.shape[0], generator=generator).to(weight.device) for _ in range(2))
        x.requires_grad_()
        with torch.enable_grad():
            expected = torch.autograd.grad(trial.forward(x), x, u)[0]
        for offset in (0.0, 1.0):
            for centred in (False, True):
                norm = cls(trial, offset, centred, epsilon)
                error = norm.pull_back(u, *norm.normalised(x.detach())) - expected
                if error.abs().max() <= 1e-5 * expected.abs().max():
                    return cls(module, offset, centred, epsilon)
        return cls(module, None, False, epsilon)

    @property
    def scale(self) -> Tensor:
        """Effective scale w, ``(d_model,)``, in float32 or better."""
        weight = self.module.weight.detach()
        return weight.to(wide(weight.dtype)) + self.offset

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x̂ ``(…, d_model)`` and r ``(…, 1)`` of inputs ``(…, d_model)``, in float32 or better."""
        x = x.to(wide(x.dtype))
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return x * r, r

    def pull_back(self, u: Tensor, xhat: Tensor, r: Tensor) -> Tensor:
        """Jᵀu ``(…, d_model)`` for gradients u at the norm's output; x̂ and r from `normalised`."""
        wu = u.to(xhat.dtype) * self.scale
        if self.centred:
            wu = wu - wu.mean(-1, keepdim=True)
        return r * torch.addcmul(wu, xhat, (wu * xhat).mean(-1, keepdim=True), value=-1)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's modules: what reads (norms, projections) and what writes (attention output, MLP output)."""

    block: nn.Module
    norm_attention: Norm
    norm_mlp: Norm
    attention_out: nn.Module
    mlp_out: nn.Module
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None
    o: nn.Module | None


@dataclass(frozen=True, eq=False)
class Architecture:
    """The modules of a causal language model at which its residual stream is written and read.

    Attributes:
        name: the Hugging Face class, e.g. ``"Qwen2ForCausalLM"``.
        layers: one `Layer` per layer.
        norm_final: the norm before the logits.
        n_heads, n_kv_heads, d_model, d_head: sizes.
        parallel: attention and MLP read the same stream.
    """

    name: str
    layers: tuple[Layer, ...]
    norm_final: Norm
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    parallel: bool

    @classmethod
    def of(cls, model: Any) -> Architecture:
        """Read (once per model object) and check the architecture of `model`.

        Raises:
            InputError: not a causal language model, unknown to TransformerLens, or a stream that does not add up.
        """
        hf = plain(model)
        if hf not in _KNOWN:
            _KNOWN[hf] = _check(_read(hf), hf)
        return _KNOWN[hf]

    def graph(self, level: str) -> Graph:
        """The residual graph at `level`; refuses a level whose nodes this architecture does not expose.

        Raises:
            InputError: unknown level, or one that this architecture does not support, with the reason.
        """
        choose("level", level, LEVELS)
        layer = self.layers[0]
        if level != "block":
            if None in (layer.q, layer.k, layer.v):
                self._refuse(level, "its queries, keys and values come from one fused projection")
        if level == "head":
            if layer.o is None or layer.o is not layer.attention_out:
                self._refuse(level, "its attention output is not a plain output projection of its heads")
            if any(one.norm_attention.offset is None for one in self.layers):
                self._refuse(level, "the norm before its attention has no closed form known here")
            if not all(isinstance(m, nn.Linear) for m in (layer.q, layer.k, layer.v, layer.o)):
                self._refuse(level, "its attention projections are not torch.nn.Linear")
        return Graph.build(level, len(self.layers), self.n_heads, self.n_kv_heads, self.parallel)

    def _refuse(self, level: str, reason: str) -> None:
        raise InputError(f"{self.name} is not supported at level {level!r}: {reason}; use level='block'")


def plain(model: Any) -> nn.Module:
    """The Hugging Face model inside `model`.

    Raises:
        InputError: `model` is no Hugging Face causal language model.
    """
    hf = getattr(model, "hf", None) or model
    if isinstance(hf, nn.Module) and isinstance(getattr(hf, "original_model", None), nn.Module):
        hf = _without_bridge(hf)
    if not isinstance(hf, nn.Module) or not hasattr(hf, "config") or not hasattr(hf, "get_output_embeddings"):
        raise InputError(
            f"expected a model from rlcircuits.load_model or a Hugging Face causal language model, not {type(model).__name__}"
        )
    return hf


def _without_bridge(bridge: nn.Module) -> nn.Module:
    """The plain model of a TransformerBridge, on the same weights: the bridge wraps each module of the one it was made from.

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


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float64 stays, everything else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Remove hooks on the way out, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first(output: Any) -> Tensor:
    """The tensor of a module's output, which may be a tuple whose first entry it is."""
    return output[0] if isinstance(output, tuple) else output


def _read(hf: nn.Module) -> Architecture:
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

    def module(path: str, required: bool = True) -> nn.Module | None:
        try:
            return adapter.get_component(hf, path)
        except (ValueError, AttributeError, KeyError, IndexError) as error:
            if required:
                raise InputError(
                    f"{name} is not supported: it has no {path!r} where rlcircuits expects one norm before each branch"
                ) from error
            return None

    blocks = list(module("blocks"))
    layers = []
    for index, block in enumerate(blocks):
        at = f"blocks.{index}."
        parts = {x: module(f"{at}attn.{x}", required=False) for x in "qkvo"}
        layers.append(
            Layer(
                block=block,
                norm_attention=Norm.of(module(at + "ln1")),
                norm_mlp=Norm.of(module(at + "ln2")),
                # With a norm after the branch, what is added to the stream is that norm's output.
                attention_out=module(at + "ln1_post", required=False) or parts["o"] or module(at + "attn"),
                mlp_out=module(at + "ln2_post", required=False) or module(at + "mlp"),
                **parts,
            )
        )
    return Architecture(
        name=name,
        layers=tuple(layers),
        norm_final=Norm.of(module("ln_final")),
        n_heads=config.n_heads,
        n_kv_heads=getattr(config, "n_key_value_heads", None) or config.n_heads,
        d_model=config.d_model,
        d_head=config.d_head,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
    )


def _check(architecture: Architecture, hf: nn.Module) -> Architecture:
    """Run three tokens: the first input plus all that was written must be what every norm read."""
    written: list[Tensor] = []
    read: dict[str, tuple[Tensor, int]] = {}

    def writes(_module: nn.Module, _args: Any, output: Any) -> None:
        written.append(first(output).detach())

    def reads(name: str, seen: int):
        return lambda _module, args: read.__setitem__(name, (args[0].detach(), seen))

    def starts(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        written.append((args[0] if args else kwargs["hidden_states"]).detach())

    handles = [architecture.layers[0].block.register_forward_pre_hook(starts, with_kwargs=True)]
    for index, layer in enumerate(architecture.layers):
        mlp_reads = 2 * index + (1 if architecture.parallel else 2)
        handles += [
            layer.norm_attention.module.register_forward_pre_hook(reads(f"a{index}", 2 * index + 1)),
            layer.norm_mlp.module.register_forward_pre_hook(reads(f"m{index}", mlp_reads)),
            layer.attention_out.register_forward_hook(writes),
            layer.mlp_out.register_forward_hook(writes),
        ]
    final = 2 * len(architecture.layers) + 1
    handles.append(architecture.norm_final.module.register_forward_pre_hook(reads("logits", final)))
    ids = torch.arange(3, device=hf.get_input_embeddings().weight.device).remainder(hf.config.vocab_size)[None]
    with hooked(handles), torch.no_grad():
        hf(input_ids=ids, use_cache=False)
    if len(written) != final or len(read) != final:
        raise InputError(
            f"{architecture.name} is not supported: expected {final} writes and reads of the residual stream, "
            f"met {len(written)} and {len(read)}"
        )
    tolerance = 50 * torch.finfo(hf.dtype).eps
    for name, (seen, count) in read.items():
        stream = sum(w.to(seen.device, wide(seen.dtype)) for w in written[:count])
        error = (stream - seen).abs().max() / seen.abs().max().clamp_min(1e-30)
        if not torch.isfinite(seen).all():
            raise InputError(f"{architecture.name}: the residual stream before {name} is not finite; are the weights damaged?")
        if error > tolerance:
            raise InputError(
                f"{architecture.name} is not supported: what {name} reads is not the sum of what was written before it "
                f"(relative difference {float(error):.1e})"
            )
    return architecture
