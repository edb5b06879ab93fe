"""What was read of an architecture, checked on the model itself, once.

1. Run a few tokens: the first layer's input plus all that was written must be what each branch read, to rounding; and
   no token may see a later one. That also tells whether attention and MLP read the same stream.
2. Heads are checked on the attention module with random numbers in place of its projections' outputs: with the channels
   said to be head h's queries at 0, head h must not depend on any key; with its keys at 0, on no query; with its values
   at 0, it must be 0. A level whose parts cannot be told apart in this way is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlcircuits.attribution.layers import Layer, Parts, Projection, embedding, first, given, hooked, taken
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(parts: Parts, hf: PreTrainedModel) -> tuple[bool, dict[str, str]]:
    """Follow the stream over three tokens, and see which levels can be told apart.

    Returns:
        Whether attention and MLP read the same stream, and the levels that are not supported, with the reason.

    Raises:
        InputError: a stream that does not add up, or a token that sees a later one.
    """
    name, call = parts.name, {}
    written: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}

    def writes(node: str) -> Callable[..., None]:
        return lambda _module, _args, output: written.__setitem__(node, first(output).detach())

    def reads(node: str) -> Callable[..., None]:
        return lambda _module, args, kwargs: read.__setitem__(node, taken(args, kwargs).detach())

    def starts(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        written["input"] = taken(args, kwargs).detach()

    def called(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        call["attention"] = args, kwargs

    handles = [
        parts.layers[0].block.register_forward_pre_hook(starts, with_kwargs=True),
        parts.layers[0].attention.register_forward_pre_hook(called, with_kwargs=True),
        parts.norm_final.module.register_forward_pre_hook(reads("logits"), with_kwargs=True),
    ]
    nodes = ["input"]
    for index, layer in enumerate(parts.layers):
        nodes += [f"a{index}", f"m{index}"]
        for node, reader, writer in (
            (nodes[-2], layer.attention_reader, layer.attention_out),
            (nodes[-1], layer.mlp_reader, layer.mlp_out),
        ):
            handles.append(reader.register_forward_pre_hook(reads(node), with_kwargs=True))
            handles.append(writer.register_forward_hook(writes(node)))
    ids = torch.arange(3, device=embedding(hf).device).remainder(hf.config.get_text_config().vocab_size)[None]
    with hooked(handles), torch.no_grad():
        hf(input_ids=ids.flip(1), use_cache=False)
        other = read.get("logits")
        written.clear()
        read.clear()
        hf(input_ids=torch.cat([ids.flip(1)[:, :-1], ids[:, 1:2]], 1), use_cache=False)
    if list(written) != nodes or set(read) != {*nodes[1:], "logits"}:
        raise InputError(
            f"{name} is not supported: expected the residual stream to be written and read by attention and MLP in "
            f"turn, {2 * len(parts.layers) + 1} times each, met {len(written)} and {len(read)}"
        )
    if _difference(other[:, :-1], read["logits"][:, :-1]) > max(1e-5, 4 * torch.finfo(hf.dtype).eps):
        raise InputError(
            f"{name} is not supported: a token's stream depends on later tokens, so it is no causal language model"
        )
    parallel = _follow(parts, nodes, written, read, torch.finfo(hf.dtype).eps)
    return parallel, _refused(parts, *call["attention"])


def _difference(a: Tensor, b: Tensor) -> float:
    """Size of the difference, relative to b."""
    a, b = a.double(), b.double()
    return float((a - b.to(a.device)).norm() / b.norm().clamp_min(1e-30))


def _follow(
    parts: Parts, nodes: list[str], written: dict[str, Tensor], read: dict[str, Tensor], epsilon: float
) -> bool:
    """Compare what every node read with the sum of what was written before; returns whether attention and MLP are
    parallel.

    A sum that is rounded after each addition misses the exact one by at most ½ε Σ |partial sums|, in every single
    number; twice that and what the summands' own rounding adds are allowed. That is sharp enough to see a branch that
    is scaled.

    Raises:
        InputError: they differ.
    """
    name, sums, bounds = parts.name, {}, {}
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
    parallel = parts.parallel
    if worst[parallel] > 4 * worst[not parallel]:
        parallel = not parallel
    for node in read:
        if (error := excess(node, parallel)) > 2:
            raise InputError(
                f"{name} is not supported: what {node} reads is not the sum of what was written before it "
                f"(off by {error:.1e} times what rounding allows)"
            )
    return parallel


def _refused(parts: Parts, args: tuple, kwargs: dict) -> dict[str, str]:
    """The levels at which the model's parts cannot be told apart, with the reason; arguments of the first attention's
    call.
    """
    layers, sample = parts.layers, parts.layers[0]
    if any(None in (layer.q, layer.k, layer.v) for layer in layers):
        reason = "its queries, keys and values are not known to be projections of the stream"
        return {"qkv": reason, "head": reason}
    affine = all(part is not None and part.affine for layer in layers for part in (layer.q, layer.k, layer.v, layer.o))
    alike = affine and all(_form(layer) == _form(sample) for layer in layers)
    known = alike and _heads_are(parts, args, kwargs)
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


def _heads_are(parts: Parts, args: tuple, kwargs: dict) -> bool:
    """Step 2 on the first layer, on one batch: a row for each part of each head, set to 0 there, and one left as it
    is.
    """
    layer, heads, groups = parts.layers[0], parts.n_heads, parts.n_kv_heads
    split = {"q": (layer.q, heads), "k": (layer.k, groups), "v": (layer.v, groups)}
    if any(len(torch.arange(part.size)[part.channels]) % count for part, count in split.values()):
        return False
    cases = [(name, h) for name, (_, count) in split.items() for h in range(count)]
    own = [list(range(heads))] + [[h] if name == "q" else _group(h, heads, groups) for name, h in cases]
    z, at = _with_parts_at_zero(layer, split, cases, own, taken(args, kwargs), args, kwargs)
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
