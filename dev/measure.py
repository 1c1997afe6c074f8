"""Time, memory and the machine's own speed: what bench.py measures with, and the table it prints."""
import contextlib
import ctypes
import gc
import os
import statistics
import time
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels import backend, few_rows

# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run):
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def take_turns(runs, repeats):
    """{name: function} -> {name: list of seconds}: in each round every one once; a first round is not counted."""
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [r[name] for r in rounds[1:]] for name in runs}


def peak_mb(run):
    """Memory (MB) that run() needs above what is held before: of the GPU, or of this process; or None."""
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)

    def status(key):
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(key))

    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")  # forget the highest mark
        before = status("VmRSS")
        run()
        return round(status("VmHWM") - before, 1)
    except (OSError, AttributeError, TypeError, StopIteration):
        return None


def fast_bf16(speed):
    """Whether bfloat16 is worth a row: products on a processor without instructions for it take hundreds of times as long."""
    return speed["bfloat16_flop_s"] > speed["float32_flop_s"] / 8


def processor():
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.partition(":")[2].strip() for line in file if line.startswith("model name")) + ", "
    return ""


def machine(device, quick):
    """Measured: bytes/s of reading a large tensor, flop/s of large matrix products, float32 and bfloat16."""
    x = torch.ones(1 << (20 if quick else 28), device=device)
    speed = {"bytes_s": x.numel() * 4 / min(take_turns({"": x.sum}, 5)[""])}
    large = 256 if quick else 8192 if x.is_cuda else 2048
    for dtype in (torch.float32, torch.bfloat16):
        for n in (256, large):  # a processor without bfloat16 instructions would take a minute for a large product
            a = torch.randn(n, n, device=device).to(dtype)
            speed[f"{dtype}"[6:] + "_flop_s"] = 2 * n**3 / min(take_turns({"": lambda a=a: a @ a}, 5)[""])
            if dtype is torch.bfloat16 and not (x.is_cuda or fast_bf16(speed)):
                break
    name = torch.cuda.get_device_name() if x.is_cuda else f"{processor()}{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {"machine": name, "torch": torch.__version__, "load": os.getloadavg()[0], **speed}


def floor(speed, run, weights, times, dtype="float32"):
    """Seconds that run() takes at least: its flops, and reading the parameters of `weights` (modules) `times` times."""
    counter = FlopCounterMode(display=False)
    with counter, mock.patch.object(backend, "MODE", "torch"), sdpa_kernel(SDPBackend.MATH):  # C and fused attention are not counted
        run()
    size = sum(p.numel() * p.element_size() for module in weights for p in module.parameters())
    return max(counter.get_total_flops() / speed[dtype + "_flop_s"], times * size / speed["bytes_s"])


KINDS = {"products": ("mm", "linear"), "attention": ("scaled_dot",), "norms": ("layer_norm",),
         "gelu": ("gelu", "sigmoid"), "layers in C": ("few_rows",)}


def spent(run):
    """{kind: share of the time of run()} by torch's profiler, which slows small operations down; the CPU only."""
    in_c = torch.profiler.record_function("few_rows")(few_rows.run)
    with (mock.patch.object(few_rows, "run", in_c),
          torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile):
        wall = seconds(run)
    shares = dict.fromkeys((*KINDS, "other operations"), 0.0)
    for event in profile.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), "other operations")
        shares[kind] += event.self_cpu_time_total / 1e6 / wall
    return {k: round(v, 3) for k, v in [*shares.items(), ("Python", max(0.0, 1 - sum(shares.values())))]}


def summary(times, scale=None):
    """[fastest, median, slowest] seconds, or, with scale (frames), [slowest, median, fastest] frames/s."""
    values = sorted(times if scale is None else [scale / t for t in times])
    return [values[0], statistics.median(values), values[-1]]


def row(part, batch, times, frames=None, **more):
    """One line of the table from {"ours": seconds, "baseline": seconds}; `frames` of each side's runs, for frames/s."""
    sides = {name: summary(t, frames and frames[name]) for name, t in times.items()}
    ratio = None
    if "baseline" in sides:
        ratio = (sides["baseline"][1] / sides["ours"][1]) ** (-1 if frames else 1)
    return {"part": part, "batch": batch, "unit": "frames/s" if frames else "s", **sides, "ratio": ratio, **more}


# ----------------------------------------------------------------------------------------------------------------------
# The table


def number(x, unit):
    return f"{x:.0f}" if unit == "frames/s" else f"{x:.2f} s" if x >= 1 else f"{1e3 * x:.3g} ms"


def line(r):
    """A row as text: both sides' medians and ranges, their ratio, and what else was measured."""
    texts = []
    for name in ("ours", "baseline"):
        low, middle, high = (number(x, r["unit"]) for x in r.get(name, (0, 0, 0)))
        texts.append(f"{middle:>9} [{low}..{high}]" if name in r else "")
    more = [f"{r['ratio']:.2f}x" if r["ratio"] else ""]
    if "floor" in r:
        over = (r["ours"][1] / r["floor"]) ** (-1 if r["unit"] == "frames/s" else 1)
        more.append(f"floor {number(r['floor'], r['unit'])}, {over:.1f} times it")
    if "torch" in r:
        more.append(f"torch's own {number(r['torch'][1], r['unit'])}")
    if "of_bytes_s" in r:
        more.append(f"{r['of_bytes_s']:.0%} of the bandwidth, {r['of_flop_s']:.0%} of the flop rate")
    if "compile_s" in r:
        more.append(f"first call {r['compile_s']:.0f} s")
    if "peak_mb" in r:
        more.append(f"peak {' / '.join('?' if v is None else f'{v:.0f}' for v in r['peak_mb'].values())} MB")
    return f"{r['part']:52} {r['batch']:5} {texts[0]:32} {texts[1]:32} " + "; ".join(more)


def spent_line(r):
    return "    spent on " + ", ".join(f"{kind} {share:.0%}" for kind, share in r["spent"].items())
