"""What attribution costs beside the least that any gradient method must do: one plain forward and backward pass.

1. The floor is an activation-only forward and backward pass (frozen weights, only the input embedding requires a gradient)
   of the same model with its fastest attention on the same tokens and the same loss.
2. Floor and levels are interleaved round by round in one run; each ratio is the median over rounds, with the range beside it,
   because the machine's speed drifts.
3. CPU: one thread, CPU seconds of the process. CUDA: events around each pass. Peak memory is measured on its own, one
   process per case, above what the loaded model takes.

Run with ``make bench``; `--out` writes the table as parquet with a JSON note of device, date and versions.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import multiprocessing
import platform
import statistics
import time
from pathlib import Path

CASES = ("floor", "block", "qkv", "head")
TARGETS = {"block": 1.15, "qkv": 1.25, "head": 1.90}


def build(arguments: argparse.Namespace):
    """A random grouped-query Qwen2 of the size asked for, and one trace of `tokens` tokens (half prompt, half answer)."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    import rlcircuits as rc

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=arguments.width,
        intermediate_size=int(arguments.width * 2.75) // 64 * 64,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=max(1, arguments.heads // 4),
        vocab_size=1024,
        max_position_embeddings=8192,
    )
    hf = Qwen2ForCausalLM(config).eval().requires_grad_(False).to(arguments.device, getattr(torch, arguments.dtype))
    ids = torch.randint(0, 1024, (arguments.tokens + 1,)).tolist()
    half = arguments.tokens // 2
    return hf, rc.Trace("bench", ids[:half], ids[half:])


def floor(hf, trace) -> None:
    """One plain activation-only forward and backward pass on the trace's tokens."""
    import torch
    from torch.nn import functional as F

    device = hf.get_input_embeddings().weight.device
    ids = torch.tensor([[*trace.prompt, *trace.answer]], device=device)
    embedded = hf.get_input_embeddings()(ids[:, :-1]).detach().requires_grad_()
    logits = hf(inputs_embeds=embedded, use_cache=False, logits_to_keep=len(trace.answer)).logits.float()
    F.cross_entropy(logits[0], ids[0, -len(trace.answer) :]).backward()


def run(case: str, hf, trace) -> None:
    """One pass of a case."""
    import rlcircuits as rc

    if case == "floor":
        floor(hf, trace)
    else:
        rc.attribute(hf, [trace], case, progress=False)


def seconds(case: str, hf, trace) -> float:
    """CPU seconds, or device seconds on CUDA, of one pass."""
    import torch

    if hf.device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(case, hf, trace)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin = time.process_time()
    run(case, hf, trace)
    return time.process_time() - begin


def peak(case: str, arguments: argparse.Namespace, answer) -> None:
    """Peak bytes above the loaded model of one pass; sent through the pipe `answer`."""
    import torch

    torch.set_num_threads(1)
    hf, trace = build(arguments)
    import rlcircuits as rc

    rc.attribute(hf, [rc.Trace("warm", trace.prompt[:2], trace.answer[:2])])  # imports and the check of the architecture
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(case, hf, trace)
        answer.send(torch.cuda.max_memory_allocated() - before)
    else:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew
        before = _status("VmRSS")
        run(case, hf, trace)
        answer.send(_status("VmHWM") - before)


def _status(field: str) -> int:
    """Bytes of a line of Linux' /proc/self/status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure, print and, with --out, keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, default=None, help="folder for attribution.parquet and attribution.json")
    arguments = parser.parse_args()
    import pandas
    import torch
    import transformers

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmark skipped: PyTorch sees no CUDA device here")
    torch.set_num_threads(1)
    hf, trace = build(arguments)
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else _processor()
    print(f"{device}; torch {torch.__version__}, transformers {transformers.__version__}; {arguments.layers} layers of width "
          f"{arguments.width}, {arguments.heads} heads, {arguments.tokens} tokens, {arguments.dtype}; {arguments.rounds} rounds")
    times: dict[str, list[float]] = {case: [] for case in CASES}
    for number in range(arguments.rounds + 2):
        for case in CASES:
            taken = seconds(case, hf, trace)
            if number >= 2:  # two rounds to warm up
                times[case].append(taken)
    memory = {}
    for case in CASES:
        receive, send = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(case, arguments, send))
        process.start()
        send.close()
        memory[case] = receive.recv()
        process.join()
    rows = []
    for case in CASES:
        ratios = [a / b for a, b in zip(times[case], times["floor"])]
        rows.append(
            {
                "case": case,
                "seconds": statistics.median(times[case]),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "target": TARGETS.get(case, 1.0),
                "peak_mib": memory[case] / 2**20,
                "peak_ratio": memory[case] / memory["floor"],
            }
        )
    table = pandas.DataFrame(rows).set_index("case")
    print(table.round(3).to_string())
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        table.reset_index().to_parquet(arguments.out / "attribution.parquet")
        note = {
            "date": datetime.date.today().isoformat(),
            "device": device,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "arguments": {k: v for k, v in vars(arguments).items() if k != "out"},
        }
        (arguments.out / "attribution.json").write_text(json.dumps(note, indent=2) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, one thread"
    return f"{platform.processor() or platform.machine()}, one thread"


if __name__ == "__main__":
    main()
