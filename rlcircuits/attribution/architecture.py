"""Where a Hugging Face model writes to and reads from its residual stream.

1. TransformerLens' architecture adapters know, for about a hundred Hugging Face architectures, which module is a
   layer's norm, its query projection, its MLP, …  We ask them for those modules *of the plain model*, which keeps its own
   forward pass and its fused attention kernel. A branch without a norm before it (OLMo 2) reads at its own input; with a
   norm after it (Gemma 2, OLMo 2), that norm's output is what is written.
2. The answer is then checked on the model itself, once: run a few tokens, and the first layer's input plus all
   that was written must be what each branch read, to rounding; and no token may see a later one. That also tells whether
   attention and MLP read the same stream. A model for which it fails is refused by name, never scored wrongly.
3. The norms' Jacobians are taken from a closed form that is checked against automatic differentiation of the module.
4. Queries, keys and values may share one projection (GPT-2, GPT-NeoX, Phi-3). Which of its channels are whose is found by
   handing the adapter's own splitting function a weight that holds its row numbers.
5. Heads are checked on the attention module with random numbers in place of its projections' outputs: with the channels
   said to be head h's queries at 0, head h must not depend on any key; with its keys at 0, on no query; with its values
   at 0, it must be 0. A level whose parts cannot be told apart in this way is refused, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rlcircuits.attribution.graph import LEVELS, Graph
from rlcircuits.errors import InputError, choose

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
        return self.module.weight.shape[1 if self.transposed else 0]

    def of_output(self, x: Tensor) -> Tensor:
        """These channels of something ``(…, out)`` at the module's output."""
        if isinstance(self.channels, slice):
            return x[..., self.channels]
        return x.index_select(-1, self.channels.to(x.device))

    def weight(self, dtype: torch.dtype) -> Tensor:
        """W of these channels ``(channels, in)``."""
        held = self.module.weight.detach()
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
        weight, bias, norm = self.o.weight(dtype), self.o.module.bias, self.norm_written
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
class Architecture:
    """The modules of a causal language model at which its residual stream is written and read.

    Attributes:
        name: the Hugging Face class, e.g. ``"Qwen2ForCausalLM"``.
        layers: one `Layer` per layer.
        norm_final: the norm before the logits.
        n_heads, n_kv_heads, d_model, d_head: sizes.
        parallel: attention and MLP read the same stream.
        refused: levels that this model does not support, with the reason.
    """

    name: str
    layers: tuple[Layer, ...]
    norm_final: Norm
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    parallel: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Architecture:
        """Read (once per model object) and check the architecture of `model`.

        Raises:
            InputError: not a causal language model, unknown to TransformerLens, or a stream that does not add up.
        """
        hf = plain(model)
        if hf not in _KNOWN:
            with _evaluating(hf):
                _KNOWN[hf] = _check(_read(hf), hf)
        return _KNOWN[hf]

    def graph(self, level: str) -> Graph:
        """The residual graph at `level`; refuses a level whose nodes this architecture does not expose.

        Raises:
            InputError: unknown level, or one that this architecture does not support, with the reason.
        """
        choose("level", level, LEVELS)
        if level in self.refused:
            finest = next(one for one in reversed(LEVELS) if one not in self.refused)
            raise InputError(
                f"{self.name} is not supported at level {level!r}: {self.refused[level]}; use level={finest!r}"
            )
        return Graph.build(level, len(self.layers), self.n_heads, self.n_kv_heads, self.parallel)


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


def taken(args: tuple, kwargs: dict) -> Tensor:
    """The stream with which a module was called, by position or by name."""
    return args[0] if args else kwargs["hidden_states"]


def given(stream: Tensor, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The same call with another stream."""
    return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})


@contextlib.contextmanager
def _evaluating(hf: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module as it was afterwards."""
    training = [module for module in hf.modules() if module.training]
    try:
        hf.eval()
        yield
    finally:
        for module in training:
            module.training = True


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
    return Architecture(
        name=name,
        layers=tuple(layer(index, block) for index, block in enumerate(module("blocks", required=True))),
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
    """Queries, keys and values as channels of one module, found by splitting a weight that holds its channels' numbers."""
    bridge = adapter.component_mapping["blocks"].submodules["attn"]
    split = getattr(bridge, "split_qkv_matrix", None)
    if split is None or fused is None or not fused.affine:
        return None, None, None
    numbers = torch.arange(fused.size, dtype=torch.float32)
    rows = (numbers[None] if fused.transposed else numbers[:, None]).expand(fused.module.weight.shape)
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


def _check(architecture: Architecture, hf: nn.Module) -> Architecture:
    """Steps 2 and 5: follow the stream over three tokens, and see which levels can be told apart."""
    name, written, read, call = architecture.name, {}, {}, {}

    def writes(node: str):
        return lambda _module, _args, output: written.__setitem__(node, first(output).detach())

    def reads(node: str):
        return lambda _module, args, kwargs: read.__setitem__(node, taken(args, kwargs).detach())

    def starts(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        written["input"] = taken(args, kwargs).detach()

    def called(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        call["attention"] = args, kwargs

    handles = [
        architecture.layers[0].block.register_forward_pre_hook(starts, with_kwargs=True),
        architecture.layers[0].attention.register_forward_pre_hook(called, with_kwargs=True),
        architecture.norm_final.module.register_forward_pre_hook(reads("logits"), with_kwargs=True),
    ]
    nodes = ["input"]
    for index, layer in enumerate(architecture.layers):
        nodes += [f"a{index}", f"m{index}"]
        for node, reader, writer in (
            (nodes[-2], layer.attention_reader, layer.attention_out),
            (nodes[-1], layer.mlp_reader, layer.mlp_out),
        ):
            handles.append(reader.register_forward_pre_hook(reads(node), with_kwargs=True))
            handles.append(writer.register_forward_hook(writes(node)))
    ids = torch.arange(3, device=hf.get_input_embeddings().weight.device).remainder(
        hf.config.get_text_config().vocab_size
    )[None]
    with hooked(handles), torch.no_grad():
        hf(input_ids=ids.flip(1), use_cache=False)
        other = read.get("logits")
        written.clear(), read.clear()
        hf(input_ids=torch.cat([ids.flip(1)[:, :-1], ids[:, 1:2]], 1), use_cache=False)
    if list(written) != nodes or set(read) != {*nodes[1:], "logits"}:
        raise InputError(
            f"{name} is not supported: expected the residual stream to be written and read by attention and MLP in turn, "
            f"{2 * len(architecture.layers) + 1} times each, met {len(written)} and {len(read)}"
        )
    if _difference(other[:, :-1], read["logits"][:, :-1]) > max(1e-5, 4 * torch.finfo(hf.dtype).eps):
        raise InputError(
            f"{name} is not supported: a token's stream depends on later tokens, so it is no causal language model"
        )
    parallel = _follow(architecture, nodes, written, read, torch.finfo(hf.dtype).eps)
    architecture = dataclasses.replace(architecture, parallel=parallel)
    return dataclasses.replace(architecture, refused=_refused(architecture, *call["attention"]))


def _difference(a: Tensor, b: Tensor) -> float:
    """Size of the difference, relative to b."""
    a, b = a.double(), b.double()
    return float((a - b.to(a.device)).norm() / b.norm().clamp_min(1e-30))


def _follow(
    architecture: Architecture, nodes: list[str], written: dict[str, Tensor], read: dict[str, Tensor], epsilon: float
) -> bool:
    """Compare what every node read with the sum of what was written before; returns whether attention and MLP are parallel.

    A sum that is rounded after each addition misses the exact one by at most ½ε Σ |partial sums|, in every single number;
    twice that and what the summands' own rounding adds are allowed. That is sharp enough to see a branch that is scaled.

    Raises:
        InputError: they differ.
    """
    name, sums, bounds = architecture.name, {}, {}
    stream = bound = torch.zeros(written["input"].shape, dtype=torch.float64)
    for node in nodes:  # the stream as it was before the node wrote
        sums[node], bounds[node] = stream, bound
        added = written[node].cpu().double()
        if added.shape != stream.shape:
            raise InputError(f"{name} is not supported: what {node} writes is no stream of one vector for each token")
        stream = stream + added
        bound = bound + epsilon * (stream.abs() + added.abs())
    sums["logits"], bounds["logits"] = stream, bound

    def excess(node: str, parallel: bool) -> float:
        """Largest difference, in units of what rounding allows."""
        at = f"a{node[1:]}" if parallel and node[0] == "m" else node
        if read[node].shape != stream.shape:
            return float("inf")
        return float(
            ((sums[at] - read[node].cpu().double()).abs() / (bounds[at] + bounds["logits"].mean() * 1e-3)).max()
        )

    for node, seen in read.items():
        if not torch.isfinite(seen).all():
            raise InputError(f"{name}: the residual stream before {node} is not finite; are the weights damaged?")
    worst = {way: max(excess(node, way) for node in read if node[0] == "m") for way in (False, True)}
    parallel = architecture.parallel
    if worst[parallel] > 4 * worst[not parallel]:
        parallel = not parallel
    for node in read:
        if (error := excess(node, parallel)) > 2:
            raise InputError(
                f"{name} is not supported: what {node} reads is not the sum of what was written before it "
                f"(off by {error:.1e} times what rounding allows)"
            )
    return parallel


def _refused(architecture: Architecture, args: tuple, kwargs: dict) -> dict[str, str]:
    """The levels at which the model's parts cannot be told apart, with the reason; arguments of the first attention's call."""
    layers, sample = architecture.layers, architecture.layers[0]
    if any(None in (layer.q, layer.k, layer.v) for layer in layers):
        reason = "its queries, keys and values are not known to be projections of the stream"
        return {"qkv": reason, "head": reason}
    affine = all(part is not None and part.affine for layer in layers for part in (layer.q, layer.k, layer.v, layer.o))
    alike = affine and all(_form(layer) == _form(sample) for layer in layers)
    known = alike and _heads_are(architecture, args, kwargs)
    refused = {}
    if any(layer.fused for layer in layers) and not known:
        refused["qkv"] = "the parts of its fused projection could not be told apart"
    norms = [norm for layer in layers for norm in (layer.norm_attention, layer.norm_written) if norm is not None]
    if not affine:
        refused["head"] = "the weights of its attention projections cannot be read as plain matrices"
    elif not known:
        refused["head"] = "its attention could not be told apart into heads"
    elif any(layer.norm_written is None and layer.o.module is not layer.attention_out for layer in layers):
        refused["head"] = "its attention output is not a plain output projection of its heads"
    elif any(layer.norm_written is not None and getattr(layer.o.module, "bias", None) is not None for layer in layers):
        refused["head"] = "its output projection has a bias, which the norm after it scales and which is no head's"
    elif any(norm.offset is None for norm in norms):
        refused["head"] = "a norm before or after its attention has no closed form known here"
    return refused


def _form(layer: Layer) -> tuple:
    """What must be equal for layers to be split in the same way."""
    parts = [
        (part.module.weight.shape, part.transposed, str(part.channels)) for part in (layer.q, layer.k, layer.v, layer.o)
    ]
    return type(layer.attention), layer.fused, *parts


def _heads_are(architecture: Architecture, args: tuple, kwargs: dict) -> bool:
    """Step 5 on the first layer, on one batch: a row for each part of each head, set to 0 there, and one left as it is."""
    layer, heads, groups = architecture.layers[0], architecture.n_heads, architecture.n_kv_heads
    parts = {"q": (layer.q, heads), "k": (layer.k, groups), "v": (layer.v, groups)}
    if any(len(torch.arange(part.size)[part.channels]) % count for part, count in parts.values()):
        return False
    cases = [(name, h) for name, (_, count) in parts.items() for h in range(count)]
    own = [list(range(heads))] + [[h] if name == "q" else _group(h, heads, groups) for name, h in cases]
    z, at = _with_parts_at_zero(layer, parts, cases, own, taken(args, kwargs), args, kwargs)
    if z is None:
        return False
    # Untouched, the last token's output depends on its own query alone, and on all tokens' keys and values.
    right = not at["q"][0, :-1].any() and all(x.any() for x in (at["q"][0, -1], at["k"][0, :-1], at["v"][0, :-1]))
    for row, (name, _) in enumerate(cases, 1):
        if name == "v":
            others = [h for h in range(heads) if h not in own[row]]
            right = right and not z[row][:, own[row]].any() and (not others or bool(z[row][:, others].any()))
        else:
            right = right and not at["k" if name == "q" else "q"][row].any()
    return bool(right)


def _with_parts_at_zero(
    layer: Layer,
    parts: dict[str, tuple[Projection, int]],
    cases: list[tuple[str, int]],
    own: list[list[int]],
    stream: Tensor,
    args: tuple,
    kwargs: dict,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Run an attention on random queries, keys and values, in row i + 1 with those of case i at 0.

    Returns:
        z ``(row, position, head, d_head)``, None if the attention does not run so; and by part the gradient of what the
        `own` heads of each row give at the last position, ``(row, position, channels)``.
    """
    generator = torch.Generator().manual_seed(0)
    leaves, mixed = {}, []
    for module, found in layer.projections:
        size = next(iter(found.values())).size
        leaf = torch.randn(len(own), stream.shape[1], size, generator=generator) / 2
        for row, (name, h) in enumerate(cases, 1):
            if name in found:
                leaf[row, :, found[name].heads(parts[name][1])[h]] = 0
        leaves[module] = leaf.to(stream).requires_grad_()
    args, kwargs = given(stream.expand(len(own), -1, -1).contiguous(), args, kwargs)
    handles = [module.register_forward_hook(lambda module, _args, _output: leaves[module]) for module in leaves]
    handles.append(layer.o.module.register_forward_pre_hook(lambda _module, args: mixed.append(args[0])))
    try:
        with hooked(handles), torch.enable_grad():
            layer.attention(*args, **kwargs)
            z = mixed[0].unflatten(-1, (len(own[0]), -1))
            last = sum(z[row, -1, heads].sin().sum() for row, heads in enumerate(own))
            gradients = dict(zip(leaves, torch.autograd.grad(last, list(leaves.values()))))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None, {}
    return z.detach(), {name: part.of_output(gradients[part.module]) for name, (part, _) in parts.items()}


def _group(h: int, heads: int, groups: int) -> list[int]:
    """The query heads that share key/value head h."""
    size = heads // groups
    return list(range(h * size, (h + 1) * size))
