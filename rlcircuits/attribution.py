"""Edge attribution patching (EAP): every edge's score of every sample, from one forward and one backward pass.

1. Freeze the weights and let only the first layer's input require a gradient: no parameter gradient is ever computed.
2. Forward: keep each source's output O ``(batch, position, d_model)``; at head level the input z of the output
   projection instead, from which O[h] = z[h] W_O[h]ᵀ is formed later, outside automatic differentiation.
3. Loss L: mean negative log-likelihood of the (first `cut`) answer tokens given the prompt. Samples are summed, so that
   each keeps its own gradient. The last answer token is predicted, never read, and is left out of the input.
4. Backward: every branch reads the stream through an identity, whose gradient is that branch's own ∂L/∂H
   (block level). At qkv and head level it is caught at the projections' input or output and pulled back through the
   projection and the norm's Jacobian. Grouped-query attention, biases, rotary embeddings and q/k norms need
   no special case: the gradient at a projection's output already contains what follows it.
5. Score of an edge:  W[source, destination] = − Σ_t ⟨ ∂L/∂H[t], O[t] ⟩, one matrix product per destination layer,
   ``[sources, tokens·d] × [tokens·d, destinations]``, over chunks of tokens, in float32 or better.

Shorter samples of a batch are padded on the right: under causal attention padding is read by no real token, its gradient is
exactly zero, and no attention mask is needed. W is the first-order estimate of zero-ablating the edge, L(edge removed) − L.
Sources: arXiv 2509.21044, eq. for the edge weight; Syed et al. 2023 (EAP).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from rlcircuits.architecture import Architecture, Layer, Projection, first, given, hooked, plain, taken, wide
from rlcircuits.errors import InputError, choose
from rlcircuits.graph import Graph
from rlcircuits.traces import Trace

MEMORY = ("auto", "fast", "lean")
INTERVENTIONS = ("zero", "mean", "corrupted")
#: bytes that the contraction of step 5 may use beside the stored sources and gradients
CHUNK_BYTES = 64 << 20
#: tokens of a pass that keep a processor busy; beyond them rows are batched only with rows of similar length
FULL = 1024
#: positions whose logits a lean pass holds at a time
LOGIT_POSITIONS = 1024


def attribute(
    model: Any,
    traces: Sequence[Trace],
    level: str = "block",
    cut: int | None = None,
    batch_size: int | str = "auto",
    memory: str = "auto",
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    ig_steps: int = 1,
    progress: bool = True,
) -> xr.DataArray:
    """Score every edge of the residual graph for every trace.

    Args:
        model: what `rlcircuits.load_model` returns, a Hugging Face causal language model in evaluation mode (also one
            spread over devices by ``device_map``), or a TransformerLens ``TransformerBridge``.
        traces: prompts and answers as token ids; one sample each.
        level: ``"block"``, ``"qkv"`` or ``"head"``, see `Graph`.
        cut: score only the first `cut` answer tokens (all of them when the answer is shorter, or when None).
        batch_size: samples per pass, or ``"auto"``: traces of similar length together, as many as fit a token budget
            derived from the free memory. Running out of memory halves the batch. Scores depend on it only by rounding.
        memory: ``"fast"`` keeps what the backward pass needs; ``"lean"`` keeps the sources alone and recomputes one
            layer at a time, for about half more time; ``"auto"`` is fast, and lean for traces that would not fit
            (`bytes_per_token` is the estimate; running out of memory with a single trace has the same effect, with a
            warning).
        intervention: what takes the place of a source's output O: ``"zero"`` nothing; ``"mean"`` its mean over all
            tokens of all `traces`; ``"corrupted"`` its output at the same position of the trace's partner in
            `corrupted`. With a replacement O′, W = − Σ_t ⟨∂L/∂H[t], O[t] − O′[t]⟩, the gradient being that of the clean run.
        corrupted: for ``intervention="corrupted"``, one trace for each of `traces`, in their order, with as many prompt
            and answer tokens.
        ig_steps: with m > 1 steps, EAP with integrated gradients (EAP-IG, Hanna et al. 2024): the gradient is averaged
            over m runs whose first layer reads  I′ + (k − ½)/m · (I − I′),  k = 1 … m, the midpoints of the straight path
            from the replaced to the clean input I. 1 is EAP itself: the gradient at I.
        progress: show a bar for work that takes longer than a few seconds.

    Returns:
        DataArray ``(sample, source, destination)``, float32 (float64 for a float64 model), in nats: the estimated
        increase of the sample's loss when the edge is removed; NaN where there is no edge. Coordinates on `sample`:
        ``loss`` (mean NLL per token, nats) and ``tokens`` (answer tokens scored).

    Raises:
        InputError: no traces, ids outside the vocabulary, traces longer than the model's context, a model in training
            mode, an unsupported architecture, an unknown level, memory or intervention, corrupted traces that do not
            match, or a score that is not finite (naming sample and edge).
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    partners = _partners(hf, traces, intervention, corrupted, cut)
    choose("memory", memory, MEMORY)
    if isinstance(ig_steps, bool) or not isinstance(ig_steps, int) or ig_steps < 1:
        raise InputError(f"ig_steps is {ig_steps!r}: expected a whole number of at least 1 (1 is plain EAP)")
    architecture = Architecture.of(hf)
    graph = architecture.graph(level)
    mean = _mean_sources(architecture, graph, hf, traces, batch_size, progress) if intervention == "mean" else None

    def work(lean: bool) -> Callable[[list[Trace]], tuple[Tensor, Tensor]]:
        def score(rows: list[Trace]) -> tuple[Tensor, Tensor]:
            instead = mean
            if partners:
                instead = sources_of(architecture, graph, hf, [partners[row.problem] for row in rows])
            return score_batch(architecture, graph, hf, rows, lean, instead, ig_steps)

        return score

    dtype = np.float64 if wide(hf.dtype) == torch.float64 else np.float32
    values = np.full((len(traces), *graph.mask.shape), np.nan, dtype)
    losses = np.empty(len(traces), dtype)
    plans = [Plan(work(lean), bytes_per_token(hf, level, lean)) for lean in _modes(memory)]
    for indices, (scores, loss) in in_batches(hf, traces, batch_size, plans, "attributing", progress):
        rows = scores.cpu().numpy()
        bad = np.argwhere(~np.isfinite(rows) & graph.mask)
        if len(bad):
            b, s, d = bad[0]
            raise InputError(
                f"the score of edge {graph.sources[s]}->{graph.destinations[d]} on trace "
                f"{traces[indices[b]].problem!r} is {rows[b, s, d]}: the model overflows in {hf.dtype} or its weights are damaged; "
                "load it in float32 or check the checkpoint"
            )
        values[indices] = np.where(graph.mask, rows, np.nan)
        losses[indices] = loss.cpu().numpy()
    method = "EAP" if ig_steps == 1 else f"EAP-IG, {ig_steps} midpoints"
    return labelled(values, losses, traces, graph, model, cut, method, intervention)


def _modes(memory: str) -> tuple[bool, ...]:
    """Whether to be lean: in the order in which the modes are tried."""
    return {"fast": (False,), "lean": (True,), "auto": (False, True)}[memory]


def _partners(
    hf: nn.Module, traces: Sequence[Trace], intervention: str, corrupted: Sequence[Trace] | None, cut: int | None
) -> dict[str, Trace]:
    """The corrupted trace of every trace, by the trace's problem; empty for other interventions."""
    choose("intervention", intervention, INTERVENTIONS)
    if (intervention == "corrupted") != (corrupted is not None):
        raise InputError(
            f"intervention is {intervention!r} and corrupted traces were {'' if corrupted is not None else 'not '}given: "
            "intervention='corrupted' and corrupted=[…] belong together"
        )
    if corrupted is None:
        return {}
    corrupted = list(corrupted)
    if len(corrupted) != len(traces):
        raise InputError(f"{len(corrupted)} corrupted traces for {len(traces)} traces: expected one for each, in the same order")
    renamed = [Trace(t.problem, c.prompt, c.answer) if isinstance(c, Trace) else c for t, c in zip(traces, corrupted)]
    partners = dict(zip((t.problem for t in traces), checked(hf, renamed, cut)))
    for trace in traces:
        other = partners[trace.problem]
        sizes = (len(trace.prompt), len(trace.answer)), (len(other.prompt), len(other.answer))
        if sizes[0] != sizes[1]:
            raise InputError(
                f"trace {trace.problem!r} has {sizes[0][0]} prompt and {sizes[0][1]} answer tokens, its corrupted partner "
                f"{sizes[1][0]} and {sizes[1][1]}: positions are compared one by one, so both must be equally long"
            )
    return partners


def labelled(
    values: np.ndarray,
    losses: np.ndarray,
    traces: Sequence[Trace],
    graph: Graph,
    model: Any,
    cut: int | None,
    method: str,
    intervention: str = "zero",
) -> xr.DataArray:
    """Name the axes of scores ``(sample, source, destination)`` and note where they come from."""
    import transformers

    hf = plain(model)
    return xr.DataArray(
        values,
        dims=("sample", "source", "destination"),
        coords={
            "sample": [trace.problem for trace in traces],
            "source": list(graph.sources),
            "destination": list(graph.destinations),
            "loss": ("sample", losses),
            "tokens": ("sample", [len(trace.answer) for trace in traces]),
        },
        name="score",
        attrs={
            "level": graph.level,
            "cut": "all" if cut is None else int(cut),
            "method": method,
            "intervention": intervention,
            "dtype": str(hf.dtype).removeprefix("torch."),
            "model": getattr(model, "name", "") or hf.config.name_or_path or type(hf).__name__,
            "versions": json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}),
        },
    )


def checked(hf: nn.Module, traces: Sequence[Trace], cut: int | None) -> list[Trace]:
    """The traces, cut, after every check that needs no computation.

    Raises:
        InputError: see `attribute`.
    """
    if hf.training:
        raise InputError("the model is in training mode, where dropout would change every score: call model.eval() first")
    if isinstance(traces, Trace):
        raise InputError("expected a sequence of traces, not a single one: pass [trace]")
    traces = list(traces)
    if not traces:
        raise InputError("no traces given: expected at least one rlcircuits.Trace")
    context = getattr(hf.config, "max_position_embeddings", None)
    vocabulary = hf.get_input_embeddings().weight.shape[0]
    for number, trace in enumerate(traces):
        if not isinstance(trace, Trace):
            raise InputError(f"trace {number} is a {type(trace).__name__}: expected rlcircuits.Trace(problem, prompt, answer)")
        highest = max(*trace.prompt, *trace.answer)
        if highest >= vocabulary:
            raise InputError(
                f"trace {trace.problem!r} holds token id {highest}, but the model's vocabulary has {vocabulary}: "
                "was it made with another tokenizer?"
            )
    seen: set[str] = set()
    repeated = {trace.problem for trace in traces if trace.problem in seen or seen.add(trace.problem)}
    if repeated:
        raise InputError(f"trace {sorted(repeated)[0]!r} occurs more than once: samples are named by their problem")
    traces = [trace.cut(cut) for trace in traces]
    for trace in traces:
        length = len(trace.prompt) + len(trace.answer) - 1
        if context is not None and length > context:
            raise InputError(
                f"trace {trace.problem!r} is {length} tokens long, but the model's context holds {context}: shorten it or give a cut"
            )
    return traces


@dataclass(frozen=True)
class Plan:
    """A way to run a batch, and the device memory it needs for every token (0: unknown, then as for a fast pass)."""

    work: Callable[[list[Any]], Any]
    bytes_per_token: int = 0


def in_batches(
    hf: nn.Module,
    traces: Sequence[Any],
    batch_size: int | str,
    work: Callable[[list[Any]], Any] | Sequence[Plan],
    title: str,
    progress: bool = True,
) -> Iterator[tuple[list[int], Any]]:
    """Run `work` on batches of rows of similar length, longest first, and yield (indices, result).

    Longest first, so that a batch that does not fit fails at once. Rows that a model would treat otherwise beside longer ones
    (LongRoPE) are kept apart from those. On running out of memory the batch is halved; a single
    row that does not fit, or is not expected to, goes to the next plan, if there is one. `traces` may be any objects with
    ``prompt`` and ``answer``.
    """
    from tqdm.auto import tqdm

    plans = [Plan(work)] if callable(work) else list(work)
    lengths = [len(trace.prompt) + len(trace.answer) - 1 for trace in traces]
    order = sorted(range(len(traces)), key=lambda i: (-lengths[i], i))
    ordered = [lengths[i] for i in order]
    automatic = batch_size == "auto"
    if not automatic and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size is {batch_size!r}: expected 'auto' or a whole number of at least 1")
    budgets = [token_budget(hf, plan.bytes_per_token) for plan in plans]
    turning = _turning_length(hf)
    halvings, first_plan = 0, 0
    with tqdm(total=len(order), desc=title, unit="sample", delay=3, disable=not progress) as bar:
        start = 0
        while start < len(order):
            longest = lengths[order[start]]
            number = first_plan
            while automatic and number + 1 < len(plans) and longest > budgets[number]:
                number += 1
            size = batch_size
            if automatic:
                at_least = 1 if number == first_plan else budgets[number - 1] + 1  # shorter rows have a better plan
                size = _alike(ordered, start, budgets[number], at_least)
            size = max(1, size >> halvings)
            if longest > turning:
                size = max(1, sum(length > turning for length in ordered[start : start + size]))
            indices = order[start : start + size]
            try:
                result = plans[number].work([traces[i] for i in indices])
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if hf.device.type == "cuda":
                    torch.cuda.empty_cache()
                if len(indices) > 1:
                    halvings += 1
                elif number + 1 < len(plans):
                    warnings.warn(f"{title}: {longest} tokens do not fit into memory in one pass; recomputing layer by layer", stacklevel=3)
                    halvings, first_plan = 0, number + 1
                else:
                    raise InputError(
                        f"trace {getattr(traces[indices[0]], 'problem', indices[0])!r} of {longest} tokens does not fit "
                        "into the device's memory even alone: use a shorter cut, a coarser level or a larger device"
                    ) from error
                continue
            yield indices, result
            start += len(indices)
            bar.update(len(indices))


def _alike(lengths: Sequence[int], start: int, budget: int, at_least: int = 1) -> int:
    """How many rows from `start` on to run together, given all `lengths`, longest first.

    As many as fit the budget of padded tokens and have `at_least` so many; but, once there are `FULL` tokens, only such as
    are nearly as long as the first, so that little is spent on padding.
    """
    longest, end = lengths[start], start + 1
    while end < len(lengths) and (end + 1 - start) * longest <= budget and lengths[end] >= at_least:
        if (end - start) * longest >= FULL and lengths[end] < 0.85 * longest:
            break
        end += 1
    return end - start


def _turning_length(hf: nn.Module) -> float:
    """The length beyond which the model turns queries and keys of the whole batch otherwise (LongRoPE), else infinity."""
    config = hf.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    changes = [one for one in kinds if one.get("rope_type") == "longrope"]
    lengths = [one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None) for one in changes]
    return min((length for length in lengths if length), default=float("inf"))


def _out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no memory, on a device or (a plain RuntimeError) on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def token_budget(hf: nn.Module, per_token: int = 0) -> int:
    """Tokens per pass that fit into half of the free memory, at most 8,192.

    Args:
        per_token: bytes per token, from `bytes_per_token`; 0 stands for a fast pass at block level.
    """
    per_token = per_token or bytes_per_token(hf)
    if hf.device.type == "cuda":
        devices = {p.device for p in hf.parameters()}
        free = min(torch.cuda.mem_get_info(device)[0] for device in devices if device.type == "cuda") * len(devices)
    else:
        import psutil

        free = psutil.virtual_memory().available
    return int(min(8192, max(1, free // 2 // per_token)))


def bytes_per_token(hf: nn.Module, level: str = "block", lean: bool = False) -> int:
    """Estimated memory of attribution for every token of a batch, above the loaded model, in bytes.

    Of a layer, the backward pass keeps about 16 d_model + 4 d_mlp numbers a token; sources, gradients and norm inputs
    take another 4 d_model at block, 7 at qkv and 8 at head level. A lean pass holds this for one layer (four at head level) and
    for each of the others the sources alone, 2 d_model (3 at head level). Attention is taken to be fused, linear in the length.
    A fast pass also holds the logits, in float32 and three times; a lean pass makes them for a few positions at a time.
    """
    config, weight = hf.config.get_text_config(), hf.get_input_embeddings().weight
    width, layers = weight.shape[1], getattr(config, "num_hidden_layers", 1)
    number = max(2, weight.element_size())
    recorded = {"block": 4, "qkv": 7, "head": 8}[level] * width
    layer = 16 * width + 4 * (getattr(config, "intermediate_size", None) or 4 * width) + recorded
    if not lean:
        return layers * layer * number + 12 * weight.shape[0]
    at_once = 4 if level == "head" else 1
    return (at_once * layer + layers * (3 if level == "head" else 2) * width) * number


@contextlib.contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; each is left as it was found."""
    trainable = [p for p in hf.parameters() if p.requires_grad]
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA, let the backward pass of fused attention add in a fixed order, so that the same call gives the same bits."""
    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type != "cuda" or enabled:
        yield
        return
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        with warnings.catch_warnings():  # cuBLAS is deterministic on one stream, but PyTorch cannot know
            warnings.filterwarnings("ignore", message="Deterministic behavior was enabled")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def padded(traces: Sequence[Any], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs padded on the right, the positions whose logits are needed, and the targets there.

    Returns:
        ids ``(batch, position)``; positions ``(kept,)``, the union over the batch; targets ``(batch, kept)``, −100 where
        a position predicts no answer token of that row.
    """
    rows = [(*trace.prompt, *trace.answer) for trace in traces]
    starts = [len(trace.prompt) - 1 for trace in traces]
    width = max(map(len, rows)) - 1
    low = min(starts)
    ids = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width - low), -100, np.int64)
    for i, (row, begin) in enumerate(zip(rows, starts)):
        ids[i, : len(row) - 1] = row[:-1]
        targets[i, begin - low : len(row) - 1 - low] = row[begin + 1 :]
    positions = torch.arange(low, width, device=device)
    return torch.from_numpy(ids).to(device), positions, torch.from_numpy(targets).to(device)


def nll(hf: nn.Module, ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target ``(batch, kept)``, 0 where there is none, in float32 or better."""
    logits = hf(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
    logits = logits.to(wide(logits.dtype))
    targets = targets.to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none").view_as(targets)


def mean_nll(hf: nn.Module, ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood per answer token of every row, ``(batch,)``."""
    each = nll(hf, ids, positions, targets)
    return each.sum(1) / (targets != -100).sum(1).to(each.device)


def token_losses(
    model: Any, traces: Sequence[Trace], cut: int | None = None, batch_size: int | str = "auto", progress: bool = True
) -> list[np.ndarray]:
    """Negative log-likelihood of every answer token given all before it, in nats.

    Args:
        model, traces, cut, batch_size, progress: as for `attribute`.

    Returns:
        One array ``(answer tokens,)`` per trace; its mean is the loss that `attribute` attributes.

    Raises:
        InputError: as for `attribute`.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)

    def losses(rows: list[Trace]) -> tuple[np.ndarray, np.ndarray]:
        ids, positions, targets = padded(rows, hf.get_input_embeddings().weight.device)
        with torch.no_grad():
            return nll(hf, ids, positions, targets).cpu().numpy(), (targets != -100).cpu().numpy()

    found: list[np.ndarray] = [np.empty(0)] * len(traces)
    for indices, (values, scored) in in_batches(hf, traces, batch_size, losses, "token losses", progress):
        for index, row, mask in zip(indices, values, scored):
            found[index] = row[mask]
    return found


class Recorder:
    """What one forward and backward pass leaves behind for step 5.

    Attributes:
        sources: outputs O of every block-level source in order, each ``(batch, position, d_model)``; an attention
            output at head level is the input z of its output projection instead, ``(batch, position, heads·d_head)``,
            scaled as the norm after it scales it, where there is one (`Layer.mixed`).
        reads: per layer the input of the norm before its attention (qkv and head level).
        gradients: per destination group the gradient caught there: ``(layer, "attention")`` and ``(layer, "mlp")`` and
            ``"logits"`` at the stream; ``(layer, "q")`` … at the projection's input (qkv, separate projections) or
            output (qkv, one projection for all three; head).
    """

    def __init__(self, architecture: Architecture, graph: Graph, start: Callable[[Tensor], Tensor] | None = None) -> None:
        self.architecture, self.graph, self.start = architecture, graph, start
        self.sources: list[Tensor] = []
        self.reads: dict[int, Tensor] = {}
        self.gradients: dict[Any, Tensor] = {}

    def attach(self) -> list[Any]:
        """Register every hook on the model; the caller removes them."""
        handles = self.attach_start()
        for index in range(len(self.architecture.layers)):
            handles += self.attach_writers(index) + self.attach_readers(index)
        final = self.architecture.norm_final.module
        return [*handles, self._reader(final, "logits")]

    def attach_start(self) -> list[Any]:
        """Register the hook that records, and where asked to replaces, what enters the first layer."""
        return [self.architecture.layers[0].block.register_forward_pre_hook(self._start, with_kwargs=True)]

    def attach_writers(self, index: int) -> list[Any]:
        """Register the hooks that record what a layer writes."""
        layer = self.architecture.layers[index]
        if self.graph.level == "head":
            attention = layer.o.module.register_forward_hook(self._mixed(layer))
        else:
            attention = layer.attention_out.register_forward_hook(self._wrote)
        return [attention, layer.mlp_out.register_forward_hook(self._wrote)]

    def attach_readers(self, index: int) -> list[Any]:
        """Register the hooks that catch the gradient at what a layer reads."""
        layer, level = self.architecture.layers[index], self.graph.level
        handles = [self._reader(layer.mlp_reader, (index, "mlp"))]
        if level == "block":
            return [*handles, self._reader(layer.attention_reader, (index, "attention"))]
        if layer.norm_attention is not None:
            handles.append(layer.norm_attention.module.register_forward_pre_hook(self._read(index)))
        for module, parts in layer.projections:
            if level == "qkv" and not layer.fused:
                handles += [self._reader(module, (index, name)) for name in parts]
            else:
                handles.append(module.register_forward_hook(self._output(index, parts)))
        return handles

    def _reader(self, module: nn.Module, key: Any) -> Any:
        return module.register_forward_pre_hook(self._branch(key), with_kwargs=True)

    def _start(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream = taken(args, kwargs).detach()
        stream = stream if self.start is None else self.start(stream)
        self.sources.append(stream)
        if torch.is_grad_enabled():
            stream = stream.detach().requires_grad_()
        return given(stream, args, kwargs)

    def _wrote(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.sources.append(first(output).detach())

    def _mixed(self, layer: Layer) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda _module, args, output: self.sources.append(layer.mixed(args[0].detach(), output.detach()))

    def _read(self, index: int) -> Callable[[nn.Module, tuple], None]:
        return lambda _module, args: self.reads.__setitem__(index, args[0].detach())

    def _catch(self, key: Any) -> Callable[[Tensor], None]:
        return lambda gradient: self.gradients.__setitem__(key, gradient.detach())

    def _branch(self, key: Any) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict]]:
        """The branch reads through an identity of its own, so that the gradient there is the branch's alone."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = taken(args, kwargs)
            branch = stream.view_as(stream)
            branch.register_hook(self._catch(key))
            return given(branch, args, kwargs)

        return hook

    def _output(self, index: int, parts: dict[str, Projection]) -> Callable[[nn.Module, Any, Tensor], None]:
        """Catch the gradient at a projection's output, and part it where queries, keys and values share the projection."""

        def catch(gradient: Tensor) -> None:
            for name, part in parts.items():
                self.gradients[index, name] = part.of_output(gradient.detach())

        return lambda _module, _args, output: output.register_hook(catch) and None


def score_batch(
    architecture: Architecture,
    graph: Graph,
    hf: nn.Module,
    traces: Sequence[Trace],
    lean: bool = False,
    instead: Recorder | None = None,
    ig_steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Scores ``(batch, source, destination)`` and losses ``(batch,)`` of one batch; entries without an edge are arbitrary.

    Args:
        lean: recompute layer by layer, see `rlcircuits.lean`.
        instead: the sources O′ that take the place of O, broadcast against them; nothing (zero) when None.
        ig_steps: see `attribute`.
    """
    from rlcircuits.lean import lean_pass

    batch = padded(traces, hf.get_input_embeddings().weight.device)
    run = lean_pass if lean else fast_pass
    if ig_steps == 1:
        return run(Recorder(architecture, graph), hf, batch, lambda record: record.sources, instead)
    with torch.no_grad():
        losses = mean_nll(hf, *batch)
    clean = sources_of(architecture, graph, hf, traces)
    total: Tensor | float = 0.0
    for step in range(ig_steps):
        share = (step + 0.5) / ig_steps
        replaced = None if instead is None else instead.sources[0]

        def start(stream: Tensor, share: float = share, replaced: Tensor | None = replaced) -> Tensor:
            return share * stream if replaced is None else torch.lerp(replaced.to(stream).expand_as(stream), stream, share)

        scores, _ = run(Recorder(architecture, graph, start), hf, batch, lambda _record: clean.sources, instead)
        total = total + scores / ig_steps
    return total, losses


def fast_pass(
    record: Recorder,
    hf: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    written: Callable[[Recorder], list[Tensor]],
    instead: Recorder | None,
) -> tuple[Tensor, Tensor]:
    """Steps 2 to 5 with all that the backward pass needs kept; scores and losses as from `score_batch`.

    Args:
        batch: from `padded`.
        written: the sources to score, given what was recorded.
        instead: see `score_batch`.
    """
    with frozen(hf), deterministic(batch[0].device), hooked(record.attach()), torch.enable_grad():
        losses = mean_nll(hf, *batch)
        losses.sum().backward()
    with torch.no_grad():
        scores = blank(record, written(record))
        contract(record, scores, written(record), instead)
        return scores, losses.detach()


def sources_of(architecture: Architecture, graph: Graph, hf: nn.Module, traces: Sequence[Trace]) -> Recorder:
    """Every source's output on a batch of traces, from a forward pass alone."""
    ids, _, _ = padded(traces, hf.get_input_embeddings().weight.device)
    record = Recorder(architecture, graph)
    handles = record.attach_start()
    for index in range(len(architecture.layers)):
        handles += record.attach_writers(index)
    with hooked(handles), torch.no_grad():
        hf(input_ids=ids, use_cache=False, logits_to_keep=1)
    return record


def _mean_sources(
    architecture: Architecture, graph: Graph, hf: nn.Module, traces: Sequence[Trace], batch_size: int | str, progress: bool
) -> Recorder:
    """Every source's mean output over all tokens that are read of all traces, each ``(1, 1, d_model)``."""

    def sums(rows: list[Trace]) -> list[Tensor]:
        lengths = torch.tensor([len(row.prompt) + len(row.answer) - 1 for row in rows])
        found = []
        for source in sources_of(architecture, graph, hf, rows).sources:
            real = torch.arange(source.shape[1])[None] < lengths[:, None]
            found.append(source.to(torch.float64).mul_(real.to(source.device)[..., None]).sum((0, 1), keepdim=True))
        return found

    total: list[Tensor] = []
    for _, found in in_batches(hf, traces, batch_size, sums, "mean of the sources", progress):
        total = [a + b for a, b in zip(total, found)] if total else found
    tokens = sum(len(trace.prompt) + len(trace.answer) - 1 for trace in traces)
    record = Recorder(architecture, graph)
    record.sources = [(one / tokens).to(wide(hf.dtype)) for one in total]
    return record


def blank(record: Recorder, written: list[Tensor]) -> Tensor:
    """Scores ``(batch, source, destination)``, all 0, where the first source is."""
    first_source = written[0]
    return torch.zeros(
        first_source.shape[0], *record.graph.mask.shape, dtype=wide(first_source.dtype), device=first_source.device
    )


def contract(
    record: Recorder,
    scores: Tensor,
    written: list[Tensor],
    instead: Recorder | None = None,
    layers: range | None = None,
) -> None:
    """Step 5: add W to the columns of `scores` that belong to `layers` (and, with the last layer, to the logits).

    Args:
        record: gradients and norm inputs of those layers.
        scores: ``(batch, source, destination)``.
        written: every source's output, as in `Recorder.sources`.
        instead: the sources O′ subtracted from them.
        layers: all of them when None.
    """
    graph, architecture = record.graph, record.architecture
    n_layers = len(architecture.layers)
    layers = range(n_layers) if layers is None else layers
    _, length, width = written[0].shape
    dtype = scores.dtype
    readers, per_layer = (len(graph.destinations) - 1) // n_layers, (len(graph.sources) - 1) // n_layers
    row = scores.shape[0] * width * torch.finfo(dtype).bits // 8
    copies = 1 if instead is None else 2
    chunk = int(max(1, min(length, CHUNK_BYTES // (row * (copies * (1 + layers.stop * per_layer) + readers)))))
    outputs = _head_weights(architecture, dtype)[: layers.stop] if graph.level == "head" else None
    for begin in range(0, length, chunk):
        part = slice(begin, min(begin + chunk, length))
        out = _sources(record, written[: 1 + 2 * layers.stop], part, outputs, dtype)  # (source, batch, position, d_model)
        if instead is not None:
            everywhere = [one.expand_as(like) for one, like in zip(instead.sources, written[: 1 + 2 * layers.stop])]
            out -= _sources(record, everywhere, part, outputs, dtype)
        for index in layers:
            column = index * readers
            attention = _attention_gradients(record, index, part, dtype)
            count = 1 + index * per_layer
            column = _accumulate(scores, out[:count], attention, column)
            mlp = record.gradients[index, "mlp"][None, :, part].to(scores.device, dtype)
            within = count if graph.parallel else count + per_layer - 1
            _accumulate(scores, out[:within], mlp, column)
        if layers.stop == n_layers:
            logits = record.gradients["logits"][None, :, part].to(scores.device, dtype)
            _accumulate(scores, out, logits, n_layers * readers)


def _accumulate(scores: Tensor, written: Tensor, gradients: Tensor, column: int) -> int:
    """Subtract ⟨gradients, written⟩ summed over the chunk into the columns from `column`; return the next column."""
    sources, destinations = (x.transpose(0, 1).flatten(2) for x in (written, gradients.to(written.device)))
    block = scores[:, : sources.shape[1], column : column + destinations.shape[1]]
    block.baddbmm_(sources, destinations.transpose(1, 2), alpha=-1)
    return column + destinations.shape[1]


def _sources(
    record: Recorder, written: list[Tensor], part: slice, outputs: list[tuple[Tensor, Tensor | None]] | None, dtype: torch.dtype
) -> Tensor:
    """The source outputs of a chunk of tokens, ``(source, batch, position, d_model)``."""
    device = written[0].device
    if outputs is None:
        return torch.stack([o[:, part].to(device, dtype) for o in written])
    batch, _, width = written[0].shape
    steps = part.stop - part.start
    heads = record.architecture.n_heads
    formed = torch.empty(1 + len(outputs) * (heads + 1), batch, steps, width, dtype=dtype, device=device)
    formed[0] = written[0][:, part]
    at = 1
    for (weight, bias), mixed, mlp in zip(outputs, written[1::2], written[2::2]):
        z = mixed[:, part].to(device, dtype).reshape(batch * steps, heads, -1).transpose(0, 1)
        out = formed[at : at + heads].view(heads, batch * steps, width)
        torch.bmm(z, weight.to(device), out=out)
        if bias is not None:
            out += bias.to(device)
        formed[at + heads] = mlp[:, part]
        at += heads + 1
    return formed


def _head_weights(architecture: Architecture, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
    """Per layer W_O as ``(head, d_head, d_model)``, and each head's equal share of what is added whatever the heads give."""
    return [layer.head_outputs(architecture.n_heads, dtype) for layer in architecture.layers]


def _attention_gradients(record: Recorder, index: int, part: slice, dtype: torch.dtype) -> Tensor:
    """∂L/∂H of every attention destination of a layer over a chunk, ``(destination, batch, position, d_model)``."""
    level, layer = record.graph.level, record.architecture.layers[index]
    if level == "block":
        return record.gradients[index, "attention"][None, :, part].to(dtype)
    caught = [record.gradients[index, name][:, part].to(dtype) for name in "qkv"]
    norm, projections = layer.norm_attention, (layer.q, layer.k, layer.v)
    if level == "head":
        return _head_gradients(record, index, part, caught)
    if layer.fused:
        caught = [gradient @ projection.weight(dtype) for gradient, projection in zip(caught, projections)]
    at_norm = torch.stack(caught)
    if norm is None:
        return at_norm
    read = record.reads[index][:, part]
    if norm.offset is None:
        return _pull_back_by_autograd(norm.module, read, at_norm)
    return norm.pull_back(at_norm, *norm.normalised(read))


def _head_gradients(record: Recorder, index: int, part: slice, caught: list[Tensor]) -> Tensor:
    """∂L/∂H of a layer's heads' queries, then keys, then values, from the gradients at the projections' outputs.

    Jᵀ(W[h]ᵀ dq[h]) = r · (P(w∘W[h]ᵀ dq[h]) − x̂ ⟨x̂, w∘W[h]ᵀ dq[h]⟩ / d); w and P go into the weights and r into dq.
    Without a norm it is W[h]ᵀ dq[h].
    """
    layer, width, d_head = record.architecture.layers[index], record.architecture.d_model, record.architecture.d_head
    norm, (batch, steps, _), dtype = layer.norm_attention, caught[0].shape, caught[0].dtype
    if norm is not None:
        xhat, r = norm.normalised(record.reads[index][:, part])
    counts = [gradient.shape[-1] // d_head for gradient in caught]
    pulled = torch.empty(sum(counts), batch * steps, width, dtype=dtype, device=caught[0].device)
    at = 0
    for count, gradient, projection in zip(counts, caught, (layer.q, layer.k, layer.v)):
        weight = projection.weight(dtype)
        if norm is not None:
            weight, gradient = weight * norm.scale, gradient * r
            if norm.centred:
                weight = weight - weight.mean(-1, keepdim=True)
        heads = gradient.reshape(batch * steps, count, d_head).transpose(0, 1)
        torch.bmm(heads, weight.reshape(count, d_head, width), out=pulled[at : at + count])
        at += count
    if norm is not None:
        xhat = xhat.reshape(batch * steps, width)
        along = torch.einsum("htd,td->ht", pulled, xhat) / width
        pulled.addcmul_(along[..., None], xhat, value=-1)
    return pulled.view(-1, batch, steps, width)


def _pull_back_by_autograd(norm: nn.Module, read: Tensor, at_norm: Tensor) -> Tensor:
    """The norm's transposed Jacobian by automatic differentiation, for norms without a known closed form."""
    with torch.enable_grad():
        x = read.expand_as(at_norm).clone().requires_grad_()
        return torch.autograd.grad(norm.forward(x), x, at_norm.to(read.dtype))[0].to(at_norm.dtype)
