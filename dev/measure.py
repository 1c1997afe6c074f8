"""Time, memory and the machine's own speed: what the benchmark measures with and prints."""
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

from kernels import backend, few_rows, graphs


@contextlib.contextmanager
def settings(mode, graph="0", precision="float32"):
    """MLD_KERNELS, MLD_GRAPH and tf32 inside the block. The mode "baseline" leaves the kernels."""
    mode = backend.MODE if mode == "baseline" else mode
    before = torch.get_float32_matmul_precision()
    graphs.recorded.clear()  # the recordings of other settings, and their memory
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        with mock.patch.object(backend, "MODE", mode), mock.patch.object(graphs, "MODE", graph):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    """{name: function} -> {name: seconds}. Every round runs each once; the first is not counted."""
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [r[name] for r in rounds[1:]] for name in runs}


def status(key):
    """MB of this process, under a key of Linux's /proc/self/status."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(text.split()[1]) / 1e3 for text in file if text.startswith(key))


def peak_mb(run):
    """MB that run() needs above what is held before, of the GPU or of this process; None where the
    system does not tell."""
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")  # resets the peak, VmHWM
        before = status("VmRSS")
        run()
        return round(status("VmHWM") - before, 1)
    except (OSError, AttributeError, TypeError, StopIteration):
        return None


def fast_bf16(speed):
    """Without bfloat16 instructions a product takes hundreds of times as long as in float32."""
    return speed["bfloat16_flop_s"] > speed["float32_flop_s"] / 8


def machine(device, quick):
    """Measured speeds: bytes/s of reading a large tensor, flop/s of large matrix products in
    float32 and bfloat16."""
    x = torch.ones(1 << (20 if quick else 28), device=device)
    speed = {"bytes_s": x.numel() * 4 / min(take_turns({"": x.sum}, 5)[""])}
    large = 256 if quick else 8192 if x.is_cuda else 2048
    for dtype in (torch.float32, torch.bfloat16):
        for n in (256, large):
            a = torch.randn(n, n, device=device).to(dtype)
            times = take_turns({"": lambda: a @ a}, 5)[""]
            speed[str(dtype)[6:] + "_flop_s"] = 2 * n**3 / min(times)
            if dtype is torch.bfloat16 and not (x.is_cuda or fast_bf16(speed)):
                break  # a large product would take a minute
    name = "" if device == "cpu" else torch.cuda.get_device_name() + ", "
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        model = next(line for line in file if line.startswith("model name"))
        name += model.partition(":")[2].strip() + ", "
    name += f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {"machine": name, "torch": torch.__version__, "load": os.getloadavg()[0], **speed}


def floor(speed, run, net, times, dtype="float32"):
    """The least seconds that run() can take: for its flops, or for reading the parameters of `net`,
    where there is one, `times` times."""
    counter = FlopCounterMode(display=False)
    plain = mock.patch.object(backend, "MODE", "torch")
    with counter, plain, sdpa_kernel(SDPBackend.MATH):  # it sees nothing in C or fused attention
        run()
    size = sum(p.numel() * p.element_size() for p in net.parameters()) if net else 0
    flops = counter.get_total_flops()
    return max(flops / speed[dtype + "_flop_s"], times * size / speed["bytes_s"])


KINDS = {"products": ("mm", "linear"), "attention": ("scaled_dot",), "norms": ("layer_norm",),
         "gelu": ("gelu", "sigmoid"), "layers in C": ("few_rows",), "other operations": ("",)}


def spent(run):
    """{kind of operation: share of the time of run()} on a CPU, by torch's profiler, which slows
    small operations down."""
    in_c = {name: torch.profiler.record_function("few_rows")(getattr(few_rows, name))
            for name in ("run", "decode")}
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with mock.patch.multiple(few_rows, **in_c), profile:
        wall = seconds(run)
    shares = dict.fromkeys(KINDS, 0.0)
    for event in profile.key_averages():
        kind = next(k for k, words in KINDS.items() if any(w in event.key for w in words))
        shares[kind] += event.self_cpu_time_total / 1e6 / wall
    shares["Python"] = max(0.0, 1 - sum(shares.values()))
    return {kind: round(share, 3) for kind, share in shares.items()}


def row(part, batch, times, frames=None, **more):
    """A row from {"ours": [seconds], "baseline": [seconds]}, either [low, median, high] seconds,
    or, given {side: frames} of a run, frames/s. floor: the best that `ours` could be."""
    sides, sign = {}, -1 if frames else 1
    for name, t in times.items():
        values = sorted(frames[name] / x for x in t) if frames else sorted(t)
        sides[name] = [values[0], statistics.median(values), values[-1]]
    r = {"part": part, "batch": batch, "unit": "frames/s" if frames else "s", **sides, **more}
    ours, baseline = sides["ours"][1], sides.get("baseline")
    r["ratio"] = (baseline[1] / ours) ** sign if baseline else None
    if "floor" in r:
        r["over_floor"] = (ours / r["floor"]) ** sign
    return r


def number(x, unit):
    return f"{x:.0f}" if unit == "frames/s" else f"{x:.2f} s" if x >= 1 else f"{1e3 * x:.3g} ms"


def spread(r, name):
    """'median [low..high]' of one side of a row."""
    low, middle, high = (number(x, r["unit"]) for x in r[name])
    return f"{middle} [{low}..{high}]"


SAID = {"ratio": "{:.2f}x", "over_floor": "{:.1f} times its floor",
        "compile_s": "first call {:.0f} s", "of_bytes_s": "{:.0%} of the bandwidth",
        "of_flop_s": "{:.0%} of the flop rate"}


def line(r):
    """A row as text: both sides, their ratio, and whatever else was measured."""
    sides = [f"{spread(r, side) if side in r else '':30}" for side in ("ours", "baseline")]
    more = [text.format(r[key]) for key, text in SAID.items() if r.get(key) is not None]
    if "floor" in r:
        more.append(f"floor {number(r['floor'], r['unit'])}")
    if "torch" in r:
        more.append(f"torch's own {number(r['torch'][1], r['unit'])}")
    if "peak_mb" in r:
        peaks = ("?" if mb is None else f"{mb:.0f}" for mb in r["peak_mb"].values())
        more.append(f"peak {' / '.join(peaks)} MB")
    text = f"{r['part']:44} {r['batch']:7} {' '.join(sides)} {'; '.join(more)}"
    shares = (f"{kind} {share:.0%}" for kind, share in r.get("spent", {}).items())
    return text + ("\n    spent on " + ", ".join(shares) if "spent" in r else "")
