"""Edge attribution patching (EAP): every edge's score of every sample, from one forward and one backward pass.

1. Freeze the weights and let only the first layer's input require a gradient: no parameter gradient is ever computed.
2. Forward: keep each source's output O ``(batch, position, d_model)``; at head level the input z of the output
   projection instead, from which O[h] = z[h] W_O[h]ᵀ is formed later, outside automatic differentiation.
3. Loss L: mean negative log-likelihood of the (first `cut`) answer tokens given the prompt, or another (`losses`).
   Samples are summed, so that each keeps its own gradient. The last answer token is predicted, never read, and is left
   out of the input.
4. Backward: every branch reads the stream through an identity, whose gradient is that branch's own ∂L/∂H
   (block level). At qkv and head level it is caught at the projections' input or output and pulled back through the
   projection and the norm's Jacobian. Grouped-query attention, biases, rotary embeddings and q/k norms need
   no special case: the gradient at a projection's output already contains what follows it.
5. Score of an edge:  W[source, destination] = − Σ_t ⟨ ∂L/∂H[t], O[t] ⟩, one matrix product per destination layer,
   ``[sources, tokens·d] × [tokens·d, destinations]``, over chunks of tokens, in float32 or better.

Shorter samples of a batch are padded on the right: under causal attention padding is read by no real token, its
gradient is exactly zero, and no attention mask is needed. With ``resume``, a batch's scores are appended to a journal
(`rlcircuits.storage.journals`) when it is done; the same call runs only the batches that are not there. W is the first-order estimate of zero-ablating the edge,
L(edge removed) − L. Sources: arXiv 2509.21044, eq. for the edge weight; Syed et al. 2023 (EAP).
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.batching import Plan, bytes_per_token, in_batches
from rlcircuits.attribution.digests import digest, model_digests, traces_digest
from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.layers import embedding, hooked, wide
from rlcircuits.attribution.losses import Loss, Objective
from rlcircuits.attribution.norms import normed_scores
from rlcircuits.attribution.passes import fast_pass, lean_pass
from rlcircuits.attribution.paths import PATHS, EdgePath, nodes, streams
from rlcircuits.attribution.portions import Segments
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.recording import Recorder, logits_at, sources_of
from rlcircuits.attribution.replacements import Replacement
from rlcircuits.attribution.traces import Trace, checked
from rlcircuits.errors import InputError, choose
from rlcircuits.storage import Step, journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEMORY = ("auto", "fast", "lean")
#: the completeness gap of integrated gradients above which `attribute` warns
GAP = 0.1
#: modules that a score depends on: part of the keys under which scores are kept
SCORES = Step("scores", 1)
LOSSES = Step("losses", 1)
METHODS = ("eap", "exact-norms")


class NotConverged(UserWarning):
    """Integrated gradients whose scores do not add up to the change of the loss along their path."""


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
    groups: Sequence[Sequence[str]] | None = None,
    progress: bool = True,
    other: Any = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
    path: str = "input",
    resume: str | os.PathLike[str] | None = None,
    method: str = "eap",
) -> xr.DataArray:
    """Score every edge of the residual graph for every trace.

    Args:
        model: what `rlcircuits.load_model` returns, a Hugging Face causal language model in evaluation mode (also one
            spread over devices by ``device_map``), or a TransformerLens ``TransformerBridge``.
        traces: prompts and answers as token ids; one sample each.
        level: ``"block"``, ``"qkv"`` or ``"head"``, see `Graph`.
        cut: score only the first `cut` answer tokens (all of them when the answer is shorter, or when None).
        batch_size: traces in one pass, or ``"auto"``: traces of similar length together, as many as fit a token budget
            derived from the free memory. Running out of memory halves the batch. Scores depend on it only by rounding.
        memory: ``"fast"`` keeps what the backward pass needs; ``"lean"`` keeps the sources alone and recomputes one
            layer at a time, for about half more time; ``"auto"`` is fast, and lean for traces that would not fit
            (`bytes_per_token` is the estimate; running out of memory with a single trace has the same effect, with a
            warning).
        intervention: what takes the place of a source's output O: ``"zero"`` nothing; ``"mean"`` its mean over all
            tokens of all `traces`; ``"corrupted"`` its output at the same position of the trace's partner in
            `corrupted`; ``"model"`` its output in the model `other` on the same tokens. With a replacement O′, W = −
            Σ_t ⟨∂L/∂H[t], O[t] − O′[t]⟩, the gradient being that of the clean run.
        corrupted: for ``intervention="corrupted"``, one trace for each of `traces`, in their order, with as many prompt
            and answer tokens.
        ig_steps: with m > 1 steps, EAP with integrated gradients (EAP-IG, Hanna et al. 2024): the gradient is averaged
            over m runs whose first layer reads  I′ + (k − ½)/m · (I − I′),  k = 1 … m, the midpoints of the straight
            path from the replaced to the clean input I. 1 is EAP itself: the gradient at I. The scores out of ``input``
            should add up to L(I′) − L(I). On language models they often do not, whatever m: with I′ = 0 the inputs
            half-way are nonsense to the model and the loss is rough there. The attribute ``completeness_gap`` is Σ
            |gap| / Σ |L(I′) − L(I)| over traces, the coordinate ``gap`` what is too much for each, and ``end`` the loss
            at the path's end; above 0.1 there is a warning (`NotConverged`).
        groups: for each of `traces`, in their order, a label for each of its prompt and answer tokens (before the
            `cut`), such as `rlcircuits.token_groups` gives. Scores are then summed over the positions of each group
            apart.
        progress: show a bar for work that takes longer than a few seconds.
        other: for ``intervention="model"``, a model of the same vocabulary, depth and width, such as one after
            fine-tuning.
        loss: ``"nll"``, the mean negative log-likelihood per answer token; a `Loss` for the divergence from a reference
            or a difference of logits; or weights of the answer tokens' negative log-likelihoods, for each trace a
            sequence.
        path: of integrated gradients: ``"input"``, see `ig_steps`; or ``"edges"``, on which every edge goes from O to O′
            at the same pace (`rlcircuits.attribution.paths`), with m Gauss–Legendre nodes. There the scores of *all* edges
            add up to the loss with every edge replaced − the loss, which is what ``gap`` and ``end`` then are about.
            Between two models that are close, the nodes lie where both are at home, and few are enough.
        resume: a folder in which finished scores are kept while the call runs; an interrupted or killed call, made again,
            goes on from there. Calls that differ in what scores depend on keep files of their own there. The same
            batches give the same bits as no interruption.
        method: ``"eap"``, or ``"exact-norms"``: the norm before an edge's destination is run with and without the edge, and
            only what follows is linear (`rlcircuits.attribution.norms`, with what was measured of it); one trace at a
            time, in fast mode, in one to three times the time.

    Returns:
        DataArray ``(sample, source, destination)``, float32 (float64 for a float64 model), in nats (logits for a
        difference of logits): the estimated increase of the sample's loss when the edge is removed; NaN where there is
        no edge. Coordinates on `sample`: ``loss`` and ``tokens`` (answer tokens scored). With `groups` it is
        ``(sample, group, source, destination)``, groups in the order of their first appearance, 0 where a trace reads
        no token of a group, with the coordinate ``group_tokens`` (sample, group), how many it reads (the last token
        scored is predicted, never read); the sum over groups is the score without groups.

    Raises:
        InputError: no traces, ids outside the vocabulary, traces longer than the model's context, a model in training
            mode, an unsupported architecture, an unknown level, memory, intervention or loss, corrupted traces, another
            model or a loss that do not match, groups that do not label every token, or a score that is not finite
            (naming sample and edge).
        StoreError: `resume` is a file, or cannot be written.
    """
    hf = plain(model)
    whole, traces = traces, checked(hf, traces, cut)
    names, codes = ((), {}) if groups is None else _coded(groups, list(whole), traces)
    objective = Objective.of(loss, hf, traces, cut)
    replacement = Replacement.of(hf, level, traces, intervention, corrupted, other, cut, batch_size, progress)
    choose("memory", memory, MEMORY)
    if isinstance(ig_steps, bool) or not isinstance(ig_steps, int) or ig_steps < 1:
        raise InputError(f"ig_steps is {ig_steps!r}: expected a whole number of at least 1 (1 is plain EAP)")
    if choose("path", path, PATHS) != "input" and ig_steps == 1:
        raise InputError(f"path={path!r} is one of integrated gradients, and ig_steps is 1: give ig_steps=5 or more")
    normed = choose("method", method, METHODS) == "exact-norms"
    if normed and (ig_steps > 1 or groups is not None or memory == "lean"):
        raise InputError(
            f"method={method!r} has no integrated gradients, no groups and no lean memory: leave these out"
        )
    architecture = Architecture.of(hf)
    graph = Graph.of(hf, level)

    def inputs() -> dict[str, Any]:
        asked = {"level": level, "cut": cut, "ig_steps": ig_steps, "path": path, "method": method, "code": str(SCORES)}
        asked |= {"intervention": replacement.inputs(), "loss": objective.inputs()}
        labels = digest([list(names), [codes[trace.problem].tolist() for trace in traces]]) if names else None
        return {**model_digests(hf), "traces": traces_digest(traces), "groups": labels, **asked}

    def work(lean: bool) -> Callable[[list[Trace]], tuple[Tensor, Tensor] | None]:
        def score(rows: list[Trace]) -> tuple[Tensor, Tensor] | None:
            if all(row.problem in finished for row in rows):
                return None
            instead, segments = replacement.outputs(rows), None
            if normed:
                both, loss_of_one = normed_scores(architecture, graph, hf, objective.batch(hf, rows), instead)
                return both[:1], loss_of_one
            if codes:
                device = embedding(hf).device
                segments = Segments([codes[row.problem] for row in rows], len(names), device)
            how = ig_steps, objective, segments, path
            sums, losses = score_batch(architecture, graph, hf, rows, lean, instead, *how)
            return (sums if segments is None else segments.spread(sums)), losses

        return score

    dtype = np.float64 if wide(hf.dtype) == torch.float64 else np.float32
    values = np.full((len(traces), *((len(names),) if names else ()), *graph.mask.shape), np.nan, dtype)
    losses = np.empty(len(traces), dtype)
    logits = objective.numbers_per_logit * 4 * hf.get_output_embeddings().weight.shape[0]
    modes = (False,) if normed else _modes(memory)
    plans = [Plan(work(lean), bytes_per_token(hf, level, lean) + logits, ig_steps) for lean in modes]
    with _kept(resume, inputs, traces, graph, values, losses) as (finished, keep):
        for indices, scored in in_batches(hf, traces, 1 if normed else batch_size, plans, "attributing", progress):
            if scored is None:
                continue
            rows, found = (one.cpu().numpy() for one in scored)
            bad = np.argwhere(~np.isfinite(rows) & graph.mask)
            if len(bad):
                b, *_, s, d = at = tuple(bad[0])
                raise InputError(
                    f"the score of edge {graph.sources[s]}->{graph.destinations[d]} on trace "
                    f"{traces[indices[b]].problem!r} is {rows[at]}: the model overflows in {hf.dtype} or its weights "
                    "are damaged; load it in float32 or check the checkpoint"
                )
            new = [at for at, i in enumerate(indices) if traces[i].problem not in finished]
            at_once = [indices[at] for at in new]
            values[at_once] = np.where(graph.mask, rows[new], np.nan)
            losses[at_once] = found[new]
            keep(at_once)
    averaged = {
        "input": f"EAP-IG, {ig_steps} midpoints",
        "edges": f"EAP-IG over all edges, {ig_steps} Gauss–Legendre nodes",
    }
    label = averaged[path] if ig_steps > 1 else "EAP, exact norms" if normed else "EAP"
    result = labelled(values, losses, traces, graph, model, cut, label, intervention, objective.label, names)
    if names:
        counts = np.array([np.bincount(codes[trace.problem], minlength=len(names)) for trace in traces])
        result = result.assign_coords(group_tokens=(("sample", "group"), counts))
    if ig_steps == 1:
        return result
    return _with_gap(result, hf, architecture, graph, traces, replacement, objective, path, batch_size, progress)


def _coded(
    groups: Sequence[Sequence[str]], whole: Sequence[Trace], traces: Sequence[Trace]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The groups' names, and by problem the number of the group of each token that is read.

    Raises:
        InputError: the groups do not label every token of every trace.
    """
    per_trace = [] if isinstance(groups, str) else list(groups)
    if len(per_trace) != len(traces):
        raise InputError(
            f"groups has {len(per_trace)} sequences of labels for {len(traces)} traces: expected one for each, in the "
            "same order"
        )
    numbers: dict[str, int] = {}
    codes = {}
    for labels, full, trace in zip(per_trace, whole, traces):
        labels = [] if isinstance(labels, str) else list(labels)
        prompt, answer = len(full.prompt), len(full.answer)
        if len(labels) != prompt + answer:
            raise InputError(
                f"groups gives trace {trace.problem!r} {len(labels)} labels for its {prompt} prompt and {answer} "
                "answer tokens: expected one for each"
            )
        if wrong := [label for label in labels if not isinstance(label, str) or not label]:
            raise InputError(
                f"groups labels a token of trace {trace.problem!r} {wrong[0]!r}: expected a name, such as 'prompt'"
            )
        all_of_it = [numbers.setdefault(label, len(numbers)) for label in labels]
        codes[trace.problem] = np.array(all_of_it[: prompt + len(trace.answer) - 1])
    return tuple(numbers), codes


@contextlib.contextmanager
def _kept(
    resume: str | os.PathLike[str] | None,
    inputs: Callable[[], dict[str, Any]],
    traces: Sequence[Trace],
    graph: Graph,
    values: np.ndarray,
    losses: np.ndarray,
) -> Iterator[tuple[set[str], Callable[[Sequence[int]], None]]]:
    """Fill in the scores and losses that a journal holds.

    Yields:
        The problems of those samples, and what keeps further ones, given by index, once they are filled in.
    """
    if resume is None:
        yield set(), lambda indices: None
        return
    shape = values[0][..., graph.mask].shape
    row = np.dtype([("sample", "<i4"), ("loss", "<f8"), ("scores", values.dtype.newbyteorder("<"), shape)])
    with journal(resume, "scores", inputs(), row) as book:
        for sample, loss, scores in book.rows:
            values[sample][..., graph.mask], losses[sample] = scores, loss

        def keep(indices: Sequence[int]) -> None:
            book.add(np.array([(i, losses[i], values[i][..., graph.mask]) for i in indices], row))

        yield {traces[sample].problem for sample in book.rows["sample"]}, keep


def _modes(memory: str) -> tuple[bool, ...]:
    """Whether to be lean: in the order in which the modes are tried."""
    return {"fast": (False,), "lean": (True,), "auto": (False, True)}[memory]


def labelled(
    values: np.ndarray,
    losses: np.ndarray,
    traces: Sequence[Trace],
    graph: Graph,
    model: Any,
    cut: int | None,
    method: str,
    intervention: str = "zero",
    loss: str = "nll",
    groups: Sequence[str] = (),
) -> xr.DataArray:
    """Name the axes of scores ``(sample, [group,] source, destination)`` and note where they come from."""
    import transformers

    hf = plain(model)
    return xr.DataArray(
        values,
        dims=("sample", *(("group",) if groups else ()), "source", "destination"),
        coords={
            "sample": [trace.problem for trace in traces],
            **({"group": list(groups)} if groups else {}),
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
            "loss": loss,
            "d_model": embedding(hf).shape[1],
            "dtype": str(hf.dtype).removeprefix("torch."),
            "model": getattr(model, "name", "") or hf.config.name_or_path or type(hf).__name__,
            "versions": json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}),
        },
    )


def score_batch(
    architecture: Architecture,
    graph: Graph,
    hf: PreTrainedModel,
    traces: Sequence[Trace],
    lean: bool = False,
    instead: Recorder | None = None,
    ig_steps: int = 1,
    objective: Objective | None = None,
    segments: Segments | None = None,
    path: str = "input",
) -> tuple[Tensor, Tensor]:
    """Scores ``(sum, source, destination)`` and losses ``(batch,)`` of a batch; entries without an edge are arbitrary.

    Args:
        lean: recompute layer by layer, see `rlcircuits.attribution.passes`.
        instead: the sources O′ that take the place of O, broadcast against them; nothing (zero) when None.
        ig_steps, path: see `attribute`.
        objective: the loss; the negative log-likelihood when None.
        segments: the tokens of each row's groups, each of which then is a sum of its own; None for one sum a row.
    """
    batch = (objective or Objective.of("nll", hf, traces, None)).batch(hf, traces)
    run = lean_pass if lean else fast_pass
    if ig_steps == 1:
        return run(Recorder(architecture, graph, None, segments), hf, batch, lambda record: record.sources, instead)
    with torch.no_grad():
        losses = batch.losses(hf)
    total: Any = 0.0
    if path == "edges":
        there = _streams(graph, instead)
        for share, weight in nodes(ig_steps):
            record = Recorder(architecture, graph, None, segments, EdgePath(architecture, share, there))
            scores, _ = run(record, hf, batch, lambda record: record.sources, instead)
            total = total + weight * scores
        return total, losses
    clean = sources_of(architecture, graph, hf, traces)
    for step in range(ig_steps):
        share = (step + 0.5) / ig_steps

        record = Recorder(architecture, graph, _on_path(share, instead), segments)
        scores, _ = run(record, hf, batch, lambda _record: clean.sources, instead)
        total = total + scores / ig_steps
    return total, losses


def _on_path(share: float, instead: Recorder | None) -> Callable[[Tensor], Tensor]:
    """The input of the first layer I ↦ I′ + share · (I − I′)."""

    def start(stream: Tensor) -> Tensor:
        if instead is None:
            return share * stream
        return torch.lerp(instead.sources[0].to(stream).expand_as(stream), stream, share)

    return start


def _streams(graph: Graph, instead: Recorder | None) -> list[Tensor] | None:
    """The streams H′ that the sources O′ add up to, see `rlcircuits.attribution.paths`; None for nothing."""
    return None if instead is None else streams(instead.architecture, graph.level, instead.sources)


def _with_gap(
    result: xr.DataArray,
    hf: PreTrainedModel,
    architecture: Architecture,
    graph: Graph,
    traces: Sequence[Trace],
    replacement: Replacement,
    objective: Objective,
    path: str,
    batch_size: int | str,
    progress: bool,
) -> xr.DataArray:
    """Integrated gradients with what their scores (on the path of the input those out of `input`) lack of the change of
    the loss along the path; warns above `GAP`.
    """
    ends = np.empty(len(traces))

    def end(rows: list[Trace]) -> Tensor:
        instead = replacement.outputs(rows)
        if path == "edges":
            handles = EdgePath(architecture, 1.0, _streams(graph, instead)).attach(graph.n_layers)
        else:
            handles = Recorder(architecture, graph, _on_path(0.0, instead)).attach_start()
        with hooked(handles), torch.no_grad():
            return objective.batch(hf, rows).losses(hf)

    for indices, found in in_batches(hf, traces, batch_size, end, "ends of the paths", progress):
        ends[indices] = found.cpu().numpy()
    change = ends - result["loss"].values
    on_path = result.isel(source=[0]) if path == "input" else result
    gaps = on_path.sum([d for d in result.dims if d != "sample"]).values - change
    gap = float(np.abs(gaps).sum() / np.abs(change).sum()) if change.any() else float(bool(gaps.any()))
    result = result.assign_coords(gap=("sample", gaps.astype(result.dtype)), end=("sample", ends.astype(result.dtype)))
    result.attrs["completeness_gap"] = gap
    if not gap <= GAP:
        what = "out of 'input' miss L(I′) − L(I)" if path == "input" else "of all edges miss L(all replaced) − L"
        warnings.warn(
            f"integrated gradients have not converged: the scores {what} by {gap:.0%} of it "
            "on average over the traces (coordinate 'gap'), so they depend on ig_steps, and more steps need not help; "
            "rlcircuits.trust says what the scores are good for",
            NotConverged,
            stacklevel=3,
        )
    return result


def token_losses(
    model: Any,
    traces: Sequence[Trace],
    cut: int | None = None,
    batch_size: int | str = "auto",
    progress: bool = True,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
) -> list[np.ndarray]:
    """The loss of every answer token given all before it: its negative log-likelihood, in nats, unless another loss is
    given.

    Args:
        model, traces, cut, batch_size, progress, loss: as for `attribute`.

    Returns:
        One array ``(answer tokens,)`` per trace; its mean, weighted where weights are given, is the loss that
        `attribute` attributes.

    Raises:
        InputError: as for `attribute`.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    objective = Objective.of(loss, hf, traces, cut)

    def losses(rows: list[Trace]) -> tuple[np.ndarray, np.ndarray]:
        batch = objective.batch(hf, rows)
        with torch.no_grad():
            each = batch.each(logits_at(hf, batch.ids, batch.positions))
        return each.cpu().numpy(), (batch.targets != -100).cpu().numpy()

    found: list[np.ndarray] = [np.empty(0)] * len(traces)
    for indices, (values, scored) in in_batches(hf, traces, batch_size, losses, "token losses", progress):
        for index, row, mask in zip(indices, values, scored):
            found[index] = row[mask]
    return found
