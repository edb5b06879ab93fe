"""What attribution will cost in memory and time, from a model's configuration alone.

1. The model is built on PyTorch's "meta" device, which has shapes and no numbers: its parameters are counted, not
   guessed.
2. Memory above the weights is `rlcircuits.attribution.batching.bytes_per_token` times the tokens of a trace, in a fast
   pass and in a lean one.
3. Work of one trace of T tokens, in floating-point operations, 2 for a multiplication and an addition. Forward: 2 T for
   every number of a weight matrix, and 4 T² d for each layer's attention scores and mix, d the width of all heads
   (kernels that skip the masked half do half). Backward, to activations only: as much for the matrices, twice for
   attention. A lean pass goes forward twice. Scores: 2 T d_model for every edge of the full rectangle of sources and
   destinations.
4. Time is work over a rate: one that is given, or that of a matrix product timed here and now. Real passes do not reach
   the rate of a large product, so this is a lower bound; `basis` says what it was computed from.
5. For a pair and a problem set: n traces of each model, and a greedy answer of each to every problem, one forward pass
   per token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.attribution import LEVELS
from rlcircuits.errors import InputError, argument, choose, counted, expect_whole, near
from rlcircuits.models.checkpoints import DTYPES, local_checkpoint
from rlcircuits.models.faults import explained
from rlcircuits.models.gguf import packaged
from rlcircuits.models.known import pair, provider_of
from rlcircuits.models.pairing import ModelPair

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROMPT_TOKENS = 128
ANSWER_TOKENS = 512


@dataclass(frozen=True)
class Estimate:
    """What attribution will cost.

    Attributes:
        name: of the model or pair.
        parameters: numbers in the model, tied ones once.
        weight_bytes: its weights in the dtype.
        trace_bytes, lean_trace_bytes: memory of one trace above the weights, in a fast and in a lean pass.
        memory: least memory that will do, in bytes: the weights and one lean trace.
        flops: work of one trace, floating-point operations.
        trace_seconds: time of one trace.
        seconds: time of all that was asked for: one trace of a model, or all of a pair on a problem set.
        edges: edges of the graph at this level.
        tokens: length of a trace, prompt and answer.
        level, dtype: as asked for.
        basis: what the figures are computed from.
    """

    name: str
    parameters: int
    weight_bytes: int
    trace_bytes: int
    lean_trace_bytes: int
    memory: int
    flops: float
    trace_seconds: float
    seconds: float
    edges: int
    tokens: int
    level: str
    dtype: str
    basis: str


def estimate(
    model: ModelPair | Mapping[str, Any] | str | Path,
    problems: Sized | int | None = None,
    tokens: int | None = None,
    level: str = "block",
    dtype: str = "auto",
    device_flops: float | None = None,
    device: str = "auto",
    n: int = 100,
    alpha: float = 0.3,
    answer_tokens: int | None = None,
    lean: bool = False,
) -> Estimate:
    """Estimate memory and time; no weight is read.

    Args:
        model: a pair, the name of a registered pair, a folder, a ``config.json`` or a hub id, or a configuration as a
            mapping.
        problems: with a pair, what it is to be studied on, or how many problems; None for the cost of one trace.
        tokens: length of a trace; by default 128 of prompt and, cut at α, the answer.
        level: of the graph.
        dtype: of the weights; ``"auto"`` as the configuration says, bfloat16 where it does not.
        device_flops: floating-point operations a second; None measures a matrix product on `device`.
        device: where that is measured.
        n: traces drawn of each model.
        alpha: share of the answer that is scored.
        answer_tokens: length of an answer; by default 512, or the pair's longest where that is less.
        lean: estimate the time of lean passes, which keep one layer at a time.

    Raises:
        InputError: no configuration to be had, one that describes no causal language model, or a setting out of range.
    """
    choose("level", level, LEVELS)
    choose("dtype", dtype, DTYPES)
    for name, value in (("tokens", tokens), ("n", n), ("answer_tokens", answer_tokens)):
        if value is not None:
            expect_whole(name, value, 1)
    if device_flops is not None and not (isinstance(device_flops, (int, float)) and 0 < device_flops < float("inf")):
        raise InputError(f"{argument('device_flops')} is {device_flops!r}: expected operations a second, above 0")
    name, hf, pair = _on_meta(model, dtype)
    dtype = str(hf.dtype).removeprefix("torch.")
    longest = answer_tokens or (min(ANSWER_TOKENS, pair.max_new_tokens) if pair is not None else ANSWER_TOKENS)
    length = tokens or PROMPT_TOKENS + max(1, int(alpha * longest))
    rate, measured = (device_flops, "as given") if device_flops is not None else throughput(dtype, device)
    shape = _Shape(hf, level)
    flops = shape.trace(length, lean)
    seconds = trace_seconds = flops / rate
    basis = [f"{rate:.3g} floating-point operations a second, {measured}", f"traces of {length} tokens"]
    if problems is not None:
        asked = problems if isinstance(problems, int) else len(problems)
        models = 1 if pair is not None and pair.base == pair.tuned else 2
        said = models * asked * longest * shape.token(PROMPT_TOKENS + longest) / rate
        seconds = models * min(n, asked) * trace_seconds + said
        basis += [
            f"{'one model' if models == 1 else 'two models'}, {counted(asked, 'problem')}, answers of {longest} tokens each ({said:,.0f} s), {min(n, asked)} traces "
            "of each"
        ]
    else:
        basis += ["one trace of one model"]
    one, small = (length * shape.bytes_per_token(mode) for mode in (False, True))
    weights = sum(p.numel() * p.element_size() for p in hf.parameters())
    return Estimate(
        name=name,
        parameters=sum(p.numel() for p in hf.parameters()),
        weight_bytes=weights,
        trace_bytes=one,
        lean_trace_bytes=small,
        memory=weights + min(one, small),
        flops=flops,
        trace_seconds=trace_seconds,
        seconds=seconds,
        edges=shape.edges,
        tokens=length,
        level=level,
        dtype=dtype,
        basis="; ".join(basis) + "; a lower bound",
    )


def parameters(config: PretrainedConfig | Mapping[str, Any]) -> int:
    """How many numbers a model of a configuration has, tied ones once.

    Raises:
        InputError: no configuration of a causal language model.
    """
    return _count(json.dumps(_plain(config), sort_keys=True, default=str))


@cache
def _count(config: str) -> int:
    return sum(p.numel() for p in _built(json.loads(config), "bfloat16").parameters())


@cache
def throughput(dtype: str = "bfloat16", device: str = "auto", seconds: float = 0.3) -> tuple[float, str]:
    """Floating-point operations a second of a square matrix product, and in words how that was found.

    Args:
        dtype: of the matrices.
        device: where.
        seconds: how long to measure; the fastest product counts.
    """
    import torch

    from rlcircuits.models.checkpoints import resolved_device

    where = resolved_device(device)
    size = 4096 if where.type == "cuda" else 512
    a = torch.randn(size, size, device=where).to(getattr(torch, dtype))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        started = time.perf_counter()
        a @ a
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best, f"as a product of {size} × {size} in {dtype} just ran on {where}"


class _Shape:
    """What the work of a pass depends on."""

    def __init__(self, hf: PreTrainedModel, level: str) -> None:
        from rlcircuits.attribution import Graph

        config = hf.config.get_text_config()
        self.hf, self.level = hf, level
        embedding: Any = hf.get_input_embeddings().weight
        self.width = embedding.shape[1]
        self.layers, heads = config.num_hidden_layers, config.num_attention_heads
        self.mixed = heads * (getattr(config, "head_dim", None) or self.width // heads)
        unembedding: Any = hf.get_output_embeddings()
        matrices = sum(p.numel() for p in hf.parameters() if p.ndim == 2) - embedding.numel()
        tied = unembedding is not None and unembedding.weight is embedding
        self.matrices = matrices + (unembedding.weight.numel() if tied else 0)
        parallel = bool(getattr(config, "use_parallel_residual", False))
        graph = Graph.build(level, self.layers, heads, getattr(config, "num_key_value_heads", None) or heads, parallel)
        self.edges, self.rectangle = graph.n_edges, len(graph.sources) * len(graph.destinations)

    def token(self, length: int) -> float:
        """Work of a forward pass for one token more, after `length` others."""
        return 2 * self.matrices + 4 * self.layers * length * self.mixed

    def trace(self, length: int, lean: bool = False) -> float:
        matrices = 2 * self.matrices * length
        attention = 4 * self.layers * length**2 * self.mixed
        forward = 2 if lean else 1
        return (forward + 1) * matrices + (forward + 2) * attention + 2 * length * self.width * self.rectangle

    def bytes_per_token(self, lean: bool) -> int:
        from rlcircuits.attribution import bytes_per_token

        return bytes_per_token(self.hf, self.level, lean)


def _on_meta(model: Any, dtype: str) -> tuple[str, PreTrainedModel, ModelPair | None]:
    """The name, the model without numbers, and the pair if it is one."""
    if (
        isinstance(model, str)
        and not Path(model).exists()
        and (model.count("/") != 1 or provider_of(model) is not None)
    ):
        model = pair(model)
    if isinstance(model, ModelPair):
        return model.name, _built(config_of(model), dtype), model
    if isinstance(model, Mapping):
        return str(model.get("model_type", "?")), _built(dict(model), dtype), None
    return str(model), _built(_read(str(model)), dtype), None


def config_of(pair: ModelPair, fetch: bool = True) -> dict[str, Any]:
    """The configuration of a pair's models: of the base's files where they are here, else of the registry, else of the
    hub.

    Args:
        pair: the models.
        fetch: whether to ask the hub in the end.

    Raises:
        InputError: none of them is to be had.
    """
    try:
        return _read(pair.base, pair.base_revision, here=True)
    except InputError:
        if pair.config is not None:
            return dict(pair.config)
        if not fetch:
            raise
        return _read(pair.base, pair.base_revision)


def _read(name: str, revision: str | None = None, here: bool = False) -> dict[str, Any]:
    from transformers import AutoConfig

    path = Path(name).expanduser()
    if name in packaged() and not path.exists():
        path = local_checkpoint(name) or path
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} cannot be read as a configuration ({error}); expected a model's config.json"
            ) from error
        if not isinstance(found, dict):
            raise InputError(f"{str(path)!r} holds a {type(found).__name__}: expected a model's config.json")
        return found
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"no configuration at {name!r}: expected a pair, a folder with config.json, that file, or a hub id"
        )
    with explained(name, None):
        return AutoConfig.from_pretrained(name, revision=revision, local_files_only=here).to_dict()


def _plain(config: PretrainedConfig | Mapping[str, Any]) -> dict[str, Any]:
    return dict(config) if isinstance(config, Mapping) else config.to_dict()


def _built(fields: dict[str, Any], dtype: str) -> PreTrainedModel:
    """The model of a configuration on the meta device.

    Raises:
        InputError: no configuration of a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as known

    kind = fields.get("model_type")
    if dtype == "auto":
        dtype = str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if kind not in known:
        raise InputError(
            f"the configuration's model_type is {kind!r}: expected one that transformers knows, such as "
            f"'llama'{near(kind, known)}"
        )
    try:
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except Exception as error:  # each model class checks its configuration in its own way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"no causal language model can be made of the {kind!r} configuration ({type(error).__name__}: {reason})"
        ) from error
