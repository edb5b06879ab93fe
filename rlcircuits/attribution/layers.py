"""A layer's parts, and how they are read: norms, projections, heads, and hooks on them.

1. A norm's Jacobian is taken from a closed form that is checked against automatic differentiation of the module.
2. Queries, keys and values may share one projection (GPT-2, GPT-NeoX, Phi-3); then each is some of its output channels.
3. Modules are called with the stream by position or by name, and give a tensor or a tuple that begins with it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float64 stays, everything else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def embedding(hf: PreTrainedModel) -> Tensor:
    """The weights of the model's input embedding, ``(vocabulary, d_model)``."""
    return cast(Tensor, hf.get_input_embeddings().weight)


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


def taken(args: tuple, kwargs: dict) -> Tensor:
    """The stream with which a module was called, by position or by name."""
    return args[0] if args else kwargs["hidden_states"]


def given(stream: Tensor, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The same call with another stream."""
    return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})


@contextlib.contextmanager
def passed_over(blocks: Sequence[nn.Module], returns_tuple: bool, stream: Tensor | None = None) -> Iterator[None]:
    """Let blocks give what they are given, without running; the first gives `stream` where there is one."""

    def instead(given: Tensor | None) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            found = hidden_states if given is None else given
            return (found,) if returns_tuple else found

        return forward

    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = instead(None if index else stream)
        yield
    finally:
        for block, forward in zip(blocks, before):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


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
        weight = cast(Tensor, self.module.weight).detach()
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
class Projection:
    """A module, or a part of its output channels: queries, keys, values, or the attention's output.

    Attributes:
        module: what projects; at head level, and where the parts share it, it must give  x Wᵀ + b.
        transposed: it holds W as ``(in, out)`` (GPT-2's Conv1D), not ``(out, in)``; None where it does neither.
        channels: those of its output that are meant, in order of heads.
    """

    module: nn.Module
    transposed: bool | None = False
    channels: slice | Tensor = field(default_factory=lambda: slice(None))

    @property
    def affine(self) -> bool:
        """The module gives  x Wᵀ + b  with a weight that can be read."""
        return self.transposed is not None

    @property
    def size(self) -> int:
        """Number of channels of the whole module."""
        return cast(Tensor, self.module.weight).shape[1 if self.transposed else 0]

    def of_output(self, x: Tensor) -> Tensor:
        """These channels of something ``(…, out)`` at the module's output."""
        if isinstance(self.channels, slice):
            return x[..., self.channels]
        return x.index_select(-1, self.channels.to(x.device))

    def weight(self, dtype: torch.dtype) -> Tensor:
        """W of these channels ``(channels, in)``."""
        held = cast(Tensor, self.module.weight).detach()
        held = held.T if self.transposed else held
        held = held[self.channels] if isinstance(self.channels, slice) else held[self.channels.to(held.device)]
        return held.to(dtype)

    def heads(self, count: int) -> Tensor:
        """The channels of each of `count` heads, ``(head, d_head)``."""
        channels = torch.arange(self.size)[self.channels] if isinstance(self.channels, slice) else self.channels
        return channels.view(count, -1)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's modules: what reads (norms, projections) and what writes (attention output, MLP output).

    Attributes:
        block: the layer.
        attention: its attention.
        norm_attention: the norm before the attention; None where there is none (OLMo 2).
        attention_reader, mlp_reader: the module whose input is the stream that the branch reads: its norm, or itself.
        attention_out, mlp_out: the module whose output is added to the stream.
        norm_written: the norm after the attention, whose output is added to the stream; None where there is none.
        q, k, v: the projections, perhaps parts of one module; None where they are not known.
        o: the output projection of the heads; None where it is not known.
    """

    block: nn.Module
    attention: nn.Module
    norm_attention: Norm | None
    attention_reader: nn.Module
    mlp_reader: nn.Module
    attention_out: nn.Module
    mlp_out: nn.Module
    norm_written: Norm | None
    q: Projection | None
    k: Projection | None
    v: Projection | None
    o: Projection | None

    @property
    def fused(self) -> bool:
        """Queries, keys and values come from one module."""
        return self.q.module is self.k.module

    @property
    def projections(self) -> list[tuple[nn.Module, dict[str, Projection]]]:
        """Every module that projects the stream, with those of q, k and v that it gives."""
        parts = {"q": self.q, "k": self.k, "v": self.v}
        modules = dict.fromkeys(part.module for part in parts.values())
        return [(m, {name: part for name, part in parts.items() if part.module is m}) for m in modules]

    def head_outputs(self, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The matrices that take each head's mixed values z[h] to what it adds to the stream, and a constant share.

        A head adds  z[h] W_O[h] + b / H.  With a norm after the attention (x̂ = r · P o with o the sum over heads) it adds

            w ∘ r · P(z[h] W_O[h]) + b_norm / H,   with r as it is in that run,

        which sums to exactly what is written and can be taken away exactly. The norm's Jacobian at o would not do: a
        norm does not see its input's length, so Jacobian · o is 0 and the heads' shares would cancel. r goes with z:
        multiply `mixed` values, not these matrices, by it.

        Returns:
            ``(head, d_head, d_model)`` and ``(d_model,)`` or None.
        """
        weight, bias, norm = self.o.weight(dtype), cast("Tensor | None", self.o.module.bias), self.norm_written
        if norm is not None:
            bias = getattr(norm.module, "bias", None)
            weight = weight - weight.mean(0) if norm.centred else weight
            weight = weight * norm.scale.to(dtype)[:, None]
        share = None if bias is None else bias.detach().to(dtype) / heads
        return weight.view(weight.shape[0], heads, -1).permute(1, 2, 0), share

    def mixed(self, z: Tensor, o: Tensor) -> Tensor:
        """The heads' mixed values z ``(…, heads·d_head)``, times r of the norm after the attention, if there is one.

        Args:
            o: the output projection's output ``(…, d_model)``, which that norm reads.
        """
        return z if self.norm_written is None else (z * self.norm_written.normalised(o)[1]).to(z.dtype)


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules of a causal language model that write to or read from its residual stream.

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
    parallel: bool = False
