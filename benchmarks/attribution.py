"""What attribution costs beside the least that any gradient method must do: one plain forward and backward pass.

1. The floor is an activation-only forward and backward pass (frozen weights, only the input embedding requires a gradient)
   of the same model with its fastest attention on the same tokens and the same loss.
2. Floor and cases are interleaved round by round in one run; each ratio is the median over rounds, with the range beside it,
   because a machine's speed drifts.
3. CPU: one thread, CPU seconds of the process. CUDA: events around each pass. Peak memory is measured on its own, one
   process per case, above what the loaded model takes.

Nine suites: ``levels`` (each level and memory mode), ``lengths`` (traces of unequal length against equal ones),
``growth`` (tokens and layers), ``exact`` (every edge removed, against as many forward passes), ``groups`` (scores by eight groups of tokens against scores without groups), ``transformer_lens``
(its own edge attribution on a model that it supports) and, with a CUDA device and random bfloat16 weights in the shapes of
published 7-billion-parameter models, ``shapes`` (each level and memory mode), ``hundred`` (traces in one call) and ``long`` (one of 32,768 tokens). ``make bench`` runs what
fits a CPU, ``make bench-gpu`` the rest; both write a table and a note of date, device and versions to results/benchmarks.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import functools
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A random model's sizes; `family` is "Qwen2" or "Llama"."""

    name: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int


SMALL = Shape("12 x 512", "Qwen2", 12, 512, 8, 2, 1408, 1024)
PUBLISHED = (
    Shape("DeepSeek-Math 7B", "Llama", 30, 4096, 32, 32, 11008, 102400),
    Shape("Qwen2.5 7B", "Qwen2", 28, 3584, 28, 4, 18944, 152064),
)
CASES = ("floor", "block", "qkv", "head", "block lean", "qkv lean", "head lean")
GROUPS = 8
TIME = {"block": 1.08, "qkv": 1.15, "head": 1.65}
TIME_GPU = {"block": 1.05, "qkv": 1.10, "head": 1.50}
EXACT = {"block": 0.42, "qkv": 0.45}
#: runs in a batch where every edge is removed
RERUNS = 16
PEAK = {"exact": 1.3, "block": 1.3, "qkv": 1.3, "head": 2.0}


@dataclass(frozen=True)
class Where:
    """Device and dtype of a run, and how many rounds it takes."""

    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 9


# --- models and passes ----------------------------------------------------------------------------


def build(shape: Shape, where: Where) -> Any:
    """A random model of that shape, frozen, in evaluation mode."""
    import torch
    import transformers

    config = getattr(transformers, f"{shape.family}Config")(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=65536,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, where.dtype))
    try:
        with torch.device(where.device):
            hf = getattr(transformers, f"{shape.family}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(kept)
    return hf.eval().requires_grad_(False)


def trace(tokens: int, vocabulary: int, name: str = "bench", seed: int = 0) -> Any:
    """A random trace of `tokens` tokens read, half prompt, half answer."""
    import numpy as np

    import rlcircuits as rc

    ids = np.random.default_rng(seed).integers(0, vocabulary, tokens + 1).tolist()
    return rc.Trace(name, ids[: (tokens + 1) // 2], ids[(tokens + 1) // 2 :])


def floor(hf: Any, one: Any) -> None:
    """One plain activation-only forward and backward pass on the trace's tokens."""
    import torch
    from torch.nn import functional as F

    device = hf.get_input_embeddings().weight.device
    ids = torch.tensor([[*one.prompt, *one.answer]], device=device)
    embedded = hf.get_input_embeddings()(ids[:, :-1]).detach().requires_grad_()
    logits = hf(inputs_embeds=embedded, use_cache=False, logits_to_keep=len(one.answer)).logits.float()
    F.cross_entropy(logits[0], ids[0, -len(one.answer) :]).backward()


def run(case: str, hf: Any, one: Any) -> None:
    """One pass of a case: ``"floor"``, or a level with or without ``" lean"``."""
    import rlcircuits as rc

    if case == "floor":
        floor(hf, one)
    elif case.startswith("exact"):
        removed(hf, one, case.split()[1], case.endswith("whole"))
    else:
        level, _, lean = case.partition(" ")
        rc.attribute(hf, [one], level, batch_size=1, memory=lean or "fast", progress=False)


def seconds(work: Callable[[], Any], device: str) -> float:
    """CPU seconds of the process, or device seconds on CUDA."""
    import torch

    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin = time.process_time()
    work()
    return time.process_time() - begin


def interleaved(works: dict[str, Callable[[], Any]], where: Where, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of every work in every round, after `warm` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(where.rounds + warm):
        for name, work in works.items():
            taken = seconds(work, where.device)
            if number >= warm:
                times[name].append(taken)
    return times


def against(times: dict[str, list[float]], reference: str) -> dict[str, Row]:
    """Median seconds and the median, least and largest ratio to the reference's of the same round."""
    rows = {}
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times[reference])]
        rows[name] = {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return rows


# --- peak memory ----------------------------------------------------------------------------------


def peak(case: str, hf: Any, shape: Shape, tokens: int, where: Where) -> int:
    """Peak bytes above the loaded model of one pass, on a CPU in a process of its own; 0 where it cannot be measured."""
    if where.device == "cuda":
        return _peak_on_card(case, hf, trace(tokens, shape.vocabulary))
    if where.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return 0
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(case, shape, tokens, where, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        print(f"    {case}: out of memory")
        return 0
    finally:
        process.join()


def _peak(case: str, shape: Shape, tokens: int, where: Where, answer: Any) -> None:
    import torch

    torch.set_num_threads(1)
    hf, one = build(shape, where), trace(tokens, shape.vocabulary)
    run(case, hf, trace(4, shape.vocabulary))  # imports and the check of the architecture
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew
    before = _status("VmRSS")
    run(case, hf, one)
    answer.send(_status("VmHWM") - before)


def _peak_on_card(case: str, hf: Any, one: Any) -> int:
    import torch

    _forget()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        run(case, hf, one)
    except torch.cuda.OutOfMemoryError:
        print(f"    {case}: out of memory")
        return 0
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    """Bytes of a line of Linux' /proc/self/status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


# --- suites ---------------------------------------------------------------------------------------


def levels(where: Where, shape: Shape = SMALL, tokens: int = 256, limits: dict[str, float] = TIME) -> list[Row]:
    """Every level, fast and lean, against the floor: time and peak memory."""
    hf, one = build(shape, where), trace(tokens, shape.vocabulary)
    rows = against(interleaved(_passes(CASES, hf, one), where), "floor")
    bytes_of = {case: peak(case, hf, shape, tokens, where) for case in CASES}
    del hf
    _forget()
    for case, row in rows.items():
        row["target"] = limits.get(case, float("nan"))
        row["peak_mib"] = bytes_of[case] / 2**20
        row["peak_ratio"] = bytes_of[case] / bytes_of["floor"] if bytes_of["floor"] else float("nan")
        row["peak_target"] = PEAK.get(case, float("nan"))
    return _rows("levels", rows, shape, tokens)


def lengths(where: Where, shape: Shape = SMALL) -> list[Row]:
    """32 traces of 40 to 400 tokens in one call against as many of equal length with about as many tokens in all."""
    import numpy as np

    import rlcircuits as rc

    hf = build(shape, where)
    sizes = np.random.default_rng(0).integers(40, 401, 32).tolist()
    mean = round(sum(sizes) / 32)
    groups = {
        "equal": [trace(mean, shape.vocabulary, f"t{i}", i) for i in range(32)],
        "unequal": [trace(n, shape.vocabulary, f"t{i}", i) for i, n in enumerate(sizes)],
    }
    works = {n: (lambda g=g: rc.attribute(hf, g, progress=False)) for n, g in groups.items()}
    rows = against(interleaved(works, replace(where, rounds=5), warm=1), "equal")
    tokens = {"equal": 32 * mean, "unequal": sum(sizes)}
    for name, row in rows.items():
        row["tokens_per_second"] = tokens[name] / row["seconds"]
    rows["unequal"]["ratio"] = rows["unequal"]["tokens_per_second"] / rows["equal"]["tokens_per_second"]
    rows["unequal"]["target"] = 0.8
    for name in ("ratio_min", "ratio_max"):
        rows["unequal"].pop(name)
    return _rows("lengths", rows, shape, mean)


def growth(where: Where) -> list[Row]:
    """Cost against tokens (64 to 4,096) and layers (4 to 32), floor and block level side by side."""
    narrow = replace(SMALL, name="128 wide", width=128, heads=4, kv_heads=1, mlp=352)
    sizes = [(n, 4) for n in (64, 256, 1024, 4096)] + [(256, n) for n in (4, 8, 16, 32)]
    found = []
    for tokens, layers in sizes:
        shape = replace(narrow, layers=layers)
        hf, one = build(shape, where), trace(tokens, shape.vocabulary)
        works = _passes(("floor", "block", "qkv", "head", "block lean"), hf, one)
        found += _rows("growth", against(interleaved(works, replace(where, rounds=5)), "floor"), shape, tokens)
    return found


def exact(where: Where, shape: Shape = SMALL, tokens: int = 64) -> list[Row]:
    """Every edge of a trace removed, against as many plain forward passes; memory against re-runs of the whole model."""
    import torch

    import rlcircuits as rc

    hf, one = build(shape, where), trace(tokens, shape.vocabulary)
    ids = torch.tensor([[*one.prompt, *one.answer][:-1]] * RERUNS, device=hf.device)

    def forward(runs: int) -> None:
        with torch.no_grad():
            for left in range(runs, 0, -RERUNS):
                hf(input_ids=ids[:left], use_cache=False, logits_to_keep=len(one.answer))

    found = []
    for level, target in EXACT.items():
        case, edges = f"exact {level}", rc.Graph.of(hf, level).n_edges
        works = {f"{edges} forward": functools.partial(forward, edges), **_passes([case], hf, one)}
        rows = against(interleaved(works, replace(where, rounds=min(3, where.rounds)), warm=1), f"{edges} forward")
        used, before = (peak(name, hf, shape, tokens, where) for name in (case, f"{case} whole"))
        rows[case] |= {
            "target": target,
            "peak_mib": used / 2**20,
            "peak_ratio": used / before if before else float("nan"),
            "peak_target": PEAK["exact"],
        }
        found += _rows("exact", rows, shape, tokens)
    return found


def removed(hf: Any, one: Any, level: str, whole: bool = False) -> None:
    """Remove every edge of a trace, one at a time; `whole`: by re-running all of the model, as the tests' oracle does."""
    from rlcircuits.attribution import ablation

    kept = ablation.restarts
    try:
        ablation.restarts = (lambda _: False) if whole else kept
        ablation.ablate(hf, [one], level, batch_size=RERUNS, progress=False)
    finally:
        ablation.restarts = kept


def groups(where: Where, shape: Shape = SMALL, tokens: int = 256) -> list[Row]:
    """Scores by eight groups of tokens against scores without groups, one trace and four of unlike labels in one batch."""
    import numpy as np

    import rlcircuits as rc

    hf, found = build(shape, where), []
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(GROUPS), 4)
    some = [trace(tokens, shape.vocabulary, f"t{i}", i) for i in range(4)]
    labels = [generator.choice([f"g{g}" for g in range(GROUPS)], tokens + 1, p=share).tolist() for share in shares]
    for case in CASES[1:]:
        level, _, lean = case.partition(" ")
        for n in (1, 4):
            call = functools.partial(
                rc.attribute, hf, some[:n], level, batch_size=n, memory=lean or "fast", progress=False
            )
            works = {"ungrouped": call, f"{case}, {n} traces": functools.partial(call, groups=labels[:n])}
            rows = against(interleaved(works, replace(where, rounds=max(3, where.rounds // n)), warm=1), "ungrouped")
            rows.pop("ungrouped")
            found += _rows("groups", {name: {**row, "target": 1.1} for name, row in rows.items()}, shape, tokens)
    return found


def transformer_lens(where: Where) -> list[Row]:
    """TransformerLens' own edge attribution against `attribute` at head level with the same, corrupted, intervention.

    It scores every position apart, one Python object each, and needs as many key/value as query heads.
    """
    import tempfile

    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    import rlcircuits as rc

    shape = Shape("4 x 128", "Llama", 4, 128, 4, 4, 352, 1024)
    hf, clean, other = build(shape, where), trace(32, 1024), trace(32, 1024, seed=1)
    other = rc.Trace("other", other.prompt, clean.answer)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, device=where.device).eval()
    ids, others = (torch.tensor([[*t.prompt, *t.answer]], device=where.device) for t in (clean, other))

    def mean_nll(logits: Any) -> Any:
        begin, n = len(clean.prompt), len(clean.answer)
        return torch.nn.functional.cross_entropy(logits[0, begin - 1 :], ids[0, begin : begin + n])

    edges = EdgeAttributionConfig("edge")
    works = {
        "rlcircuits": lambda: rc.attribute(
            hf, [clean], "head", intervention="corrupted", corrupted=[other], progress=False
        ),
        "TransformerLens": lambda: attribution_patch(bridge, others[:, :-1], ids[:, :-1], mean_nll, edges),
    }
    rows = against(interleaved(works, replace(where, rounds=5), warm=1), "rlcircuits")
    return _rows("transformer_lens", rows, shape, 32)


def shapes(where: Where) -> Iterator[list[Row]]:
    """The shapes of published 7-billion-parameter models at 1,024 tokens, a model at a time."""
    return (levels(where, shape, 1024, TIME_GPU) for shape in PUBLISHED)


def hundred(where: Where) -> list[Row]:
    """A hundred traces of 512 to 908 tokens in one call, in the same shapes."""
    found = []
    for shape in PUBLISHED:
        found += _hundred(shape, where)
        _forget()
    return found


def long(where: Where) -> list[Row]:
    """Peak memory of one trace of 32,768 tokens, in the same shapes."""
    found = []
    for shape in PUBLISHED:
        hf = build(shape, where)
        for case in ("block lean", "qkv lean"):
            used = peak(case, hf, shape, 32768, where)
            found += _rows("long", {case: {"peak_mib": used / 2**20, "peak_target": 80 * 1024.0}}, shape, 32768)
        del hf
        _forget()
    return found


def _hundred(shape: Shape, where: Where) -> list[Row]:
    import rlcircuits as rc

    hf = build(shape, where)
    sizes = [512 + 4 * i for i in range(100)]
    traces = [trace(n, shape.vocabulary, f"t{i}", i) for i, n in enumerate(sizes)]

    def work(level: str) -> Callable[[], Any]:
        return lambda: rc.attribute(hf, traces, level, progress=False)

    rows = {level: {"seconds": seconds(work(level), where.device)} for level in ("block", "qkv", "head")}
    return _rows("hundred", rows, shape, round(sum(sizes) / len(sizes)))


def _passes(cases: Sequence[str], hf: Any, one: Any) -> dict[str, Callable[[], Any]]:
    return {case: functools.partial(run, case, hf, one) for case in cases}


def _rows(suite: str, rows: dict[str, Row], shape: Shape, tokens: int) -> list[Row]:
    return [
        {"suite": suite, "case": name, "shape": shape.name, "layers": shape.layers, "tokens": tokens, **row}
        for name, row in rows.items()
    ]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(1024)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", pad_token="w1", eos_token="w2")


def _forget() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- the table ------------------------------------------------------------------------------------

SUITES = {
    "levels": levels,
    "lengths": lengths,
    "growth": growth,
    "exact": exact,
    "groups": groups,
    "transformer_lens": transformer_lens,
    "shapes": shapes,
    "hundred": hundred,
    "long": long,
}
ON_CARD = ("shapes", "lengths", "hundred", "long")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, with --out, keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all that fit the device)"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on CUDA bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="folder for <device>.parquet and <device>.json")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.suites) - set(SUITES))
    if unknown:
        parser.error(f"unknown suite {unknown[0]!r}: expected {', '.join(SUITES)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import pandas
    import torch
    import transformers

    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmark skipped: PyTorch sees no CUDA device here")
        return 0
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    where = Where(
        options.device, options.dtype or ("bfloat16" if options.device == "cuda" else "float32"), options.rounds
    )
    chosen = options.suites or (
        ON_CARD if where.device == "cuda" else [s for s in SUITES if s == "lengths" or s not in ON_CARD]
    )
    device = torch.cuda.get_device_name() if where.device == "cuda" else processor()
    print(
        f"{device}; torch {torch.__version__}, transformers {transformers.__version__}; {where.dtype}; medians of {where.rounds} rounds"
    )
    rows: list[Row] = []
    for suite in chosen:
        print(f"==> {suite}: {SUITES[suite].__doc__.splitlines()[0]}", flush=True)
        found = SUITES[suite](where)
        for new in [found] if isinstance(found, list) else found:
            print(pandas.DataFrame(new).drop(columns="suite").round(3).to_string(index=False), flush=True)
            rows += new
            if options.out:  # after each: a run that is cut short has kept what it measured
                keep(pandas.DataFrame(rows), options.out / where.device, device, where)
    return 0


def keep(table: Any, path: Path, device: str, where: Where) -> None:
    """Write the table as parquet and, beside it, what it was measured on."""
    import torch
    import transformers

    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path.with_suffix(".parquet"), index=False)
    note = {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "dtype": where.dtype,
        "rounds": where.rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n")
    print(f"==> written: {path.with_suffix('.parquet')}, {path.with_suffix('.json')}")


def processor() -> str:
    """What the machine calls its processor."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, one thread"
    return f"{platform.processor() or platform.machine()}, one thread"


if __name__ == "__main__":
    sys.exit(main())
