"""What dev/gpu.sh runs. Each phase is a list of jobs, each job appends rows to $OUT/results.jsonl.

    python -m dev.gpu correctness    the tests, the sampler and training steps against float64
    python -m dev.gpu kernels        each kernel beside torch's own and beside its floor
    python -m dev.gpu sampling       seconds a sentence, frames/s and memory of every variant
    python -m dev.gpu training       a step of each stage; the longest kernels
    python -m dev.gpu weights        train.py --dataset toy for the time that is left
    python -m dev.gpu table          the rows written so far, as a table

--dry: tiny sizes on the CPU, in Triton's interpreter where gpu.sh can start it. Figures are medians
after a warm-up. A kernel is timed as a CUDA graph that runs it over several sets of random inputs,
larger than the cache together; "eager" is the same without a graph, so it contains what a launch
costs. The floor is the larger of bytes / measured copy rate and operations / measured matmul rate.
A job whose CUDA context died, or that hangs, ends the process: gpu.sh starts the phase again, and
jobs that were begun are not begun twice.
"""
import argparse
import contextlib
import copy
import faulthandler
import glob
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import checkpoint
import kernels
from config import HERE
from dev.baseline import Sides, draw_lengths, prompts
from kernels import backend, denoiser_layer, graphs
from stages import Remembered
from transformer import Stack, zero_padding
from vae import reparameterize, vae_loss

CUDA = torch.cuda.is_available()
DEVICE = "cuda:0" if CUDA else "cpu"
TRITON = not backend.WHY_NOT and (CUDA or backend.INTERPRETED)
OUT = os.environ.get("OUT", os.path.join("out", "gpu"))
SCRATCH = os.environ.get("GPU_SCRATCH", OUT)
RESULTS = os.path.join(OUT, "results.jsonl")
TYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

# (MLD_KERNELS, MLD_GRAPH, precision); "baseline" stands for dev/baseline.py. In this order.
SAMPLERS = [
    ("auto", "1", "float32"), ("auto", "1", "bf16"), ("baseline", "0", "float32"),
    ("torch", "0", "float32"), ("torch", "1", "float32"), ("auto", "1", "tf32"),
    ("torch", "1", "bf16"), ("triton", "1", "float32"), ("triton", "0", "bf16"),
    ("baseline", "0", "tf32"),
]
# (stage, MLD_KERNELS, precision, how): how is eager, compiled or graphed
TRAINERS = [(stage, *rest) for rest in [
    ("auto", "bf16", "graphed"), ("torch", "bf16", "graphed"), ("auto", "bf16", "eager"),
    ("torch", "bf16", "eager"), ("auto", "float32", "graphed"), ("torch", "float32", "eager"),
    ("auto", "tf32", "graphed"), ("torch", "bf16", "compiled")] for stage in ("vae", "diffusion")]

# --------------------------------------------------------------------------------------------------
# Jobs and rows


def record(**row):
    if not ARGS.warm:
        os.makedirs(OUT, exist_ok=True)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def recorded():
    with contextlib.suppress(FileNotFoundError):
        with open(RESULTS, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    return []


def left():
    """Seconds until the phase ends."""
    return ARGS.ends - time.monotonic()


def run_jobs(phase, jobs, patient=()):
    """jobs: {name: function}. What a job raises is recorded, and the next one runs. Those in
    `patient` may take all the time there is, the others ARGS.hang seconds."""
    before = {r["job"] for r in recorded() if r["phase"] == phase and r.get("state") == "begun"}
    for name, job in jobs.items():
        if name in before and not ARGS.warm:
            continue
        if left() < 3:
            record(phase=phase, job=name, state="skipped: no time left")
            continue
        record(phase=phase, job=name, state="begun")
        most = left() + 1 if name in patient else min(ARGS.hang, left() + 1)
        faulthandler.dump_traceback_later(max(5, most), exit=True)
        start, state = time.monotonic(), "done"
        try:
            job()
        except Exception as error:  # whatever it is, the other jobs are to run
            traceback.print_exc()
            state = f"FAILED: {type(error).__name__}: {str(error).strip()[:300]}"
        faulthandler.cancel_dump_traceback_later()
        record(phase=phase, job=name, state=state, seconds=round(time.monotonic() - start, 1))
        if CUDA:
            try:
                torch.cuda.synchronize()
                torch.rand(2, device=DEVICE).sum().item()  # fails, too, after a broken recording
                torch.cuda.empty_cache()
            except RuntimeError:
                print("the CUDA context is dead")
                sys.exit(3)


# --------------------------------------------------------------------------------------------------
# Settings and clocks


@contextlib.contextmanager
def settings(mode, graph="0", precision="float32"):
    """MLD_KERNELS, MLD_GRAPH and tf32 as given; mode "baseline" changes nothing of ours."""
    with contextlib.ExitStack() as stack:
        if mode != "baseline":
            if mode in ("auto", "triton") and not TRITON:
                raise RuntimeError(backend.WHY_NOT or "Triton needs a GPU or its interpreter")
            stack.enter_context(mock.patch.object(backend, "MODE", mode))
        stack.enter_context(mock.patch.object(graphs, "MODE", graph))
        graphs.recorded.clear()  # a graph knows nothing of these settings
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        stack.callback(torch.set_float32_matmul_precision, before)
        yield


@contextlib.contextmanager
def poisoned():
    """Inside, torch.empty gives NaN: what no kernel writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def wall(run, budget=0.6, most=20):
    """Median seconds from the call to the end of its last kernel; run() has been called before."""
    times, begun = [], time.monotonic()
    for i in range(1 if ARGS.warm or not CUDA else most):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
        if i > 1 and time.monotonic() - begun > budget:
            break
    return statistics.median(times)


def events(run, repeats):
    """Median seconds of run() by CUDA events."""
    if not CUDA:
        return wall(run)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def timed(calls):
    """Functions that do the same on other inputs -> seconds of one: in a CUDA graph, and eager."""
    def all_of_them():
        return [call() for call in calls]  # kept to the end: no output's memory is used twice

    if not CUDA:
        return wall(all_of_them) / len(calls), None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            all_of_them()
    torch.cuda.current_stream().wait_stream(side)
    eager = events(all_of_them, 5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = all_of_them()  # noqa: F841
    for _ in range(3):
        graph.replay()
    return events(graph.replay, 20) / len(calls), eager / len(calls)


@contextlib.contextmanager
def replays():
    """Counts the replays of CUDA graphs in the block: shows whether a graph ran at all."""
    count, replay = itertools.count(), torch.cuda.CUDAGraph.replay

    def counting(graph):
        next(count)
        return replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counting):
        yield lambda: next(count)


def peak_gb(run):
    """Memory (GB) that run() needs above what is held before."""
    if not CUDA:
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)


def error_of(found, expected):
    """|found - expected| / |expected| in float64; NaN, wherever it stands, stays NaN."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def accept(error, bound, **row):
    """Record an error with its bound, and fail if it is above, or NaN."""
    record(**row, error=float(f"{error:.3g}"), bound=bound, ok=bool(error <= bound))
    return bool(error <= bound)


# --------------------------------------------------------------------------------------------------
# Networks


def make_sides(baseline=False, dropout=0.1):
    """The published sizes with random weights; with --dry the least that the kernels take."""
    sizes = dict(latent_dim=64, ff_size=64, num_heads=4) if ARGS.dry else {}
    sides = Sides(ARGS.dry, DEVICE, baseline, **sizes)
    for module in sides.model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = dropout
    return sides


def steps():
    return {"num_inference_steps": 2} if ARGS.dry else {}


def in_float64(model):
    return copy.deepcopy(model).double()


def autocast(precision):
    return torch.autocast(DEVICE.split(":")[0], torch.bfloat16, enabled=precision == "bf16")


# --------------------------------------------------------------------------------------------------
# 1. Correctness


def correctness():
    logs = [os.path.join(SCRATCH, name) for name in ("pytest.txt", "pytest-graphs.txt")]
    logs, begun = logs[:1] if ARGS.dry else logs, []

    def begin():
        """The tests, and the compilers for the later phases, run beside what follows."""
        pytest = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=short", "-p",
                  "no:cacheprovider", "tests/test_kernels.py"]
        commands = {logs[0]: [*pytest, "-n", "0", "-k", "no_gradients"]}
        if not ARGS.dry:  # a recording that fails on purpose spoils its process: apart
            commands = {logs[0]: [*pytest, "tests/test_kernels_models.py", "-n", "12"],
                        logs[1]: [*pytest[:-1], "tests/test_fast.py", "-n", "0"]}
        for phase in ("sampling", "training") if CUDA else ():
            commands[os.path.join(SCRATCH, f"warm-{phase}.txt")] = [
                sys.executable, "-m", "dev.gpu", phase, "--warm", "--seconds", f"{left() - 5:.0f}"]
        for path, words in commands.items():
            with open(path, "w", encoding="utf-8") as out:
                begun.append(subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT,
                                              env=os.environ | {"OMP_NUM_THREADS": "1"}))
        with open(os.path.join(SCRATCH, "pids"), "w", encoding="utf-8") as file:
            file.write(" ".join(str(process.pid) for process in begun))  # gpu.sh ends what is left

    def tests(log):
        text = ""
        while not (ended := re.search(r"^.*\d+ (passed|failed|error).* in [\d.]+s.*$", text, re.M)):
            if left() < 6:
                print(text)
                raise TimeoutError("pytest did not end; its output so far is in log.txt")
            time.sleep(0.5)
            with open(log, encoding="utf-8") as file:
                text = file.read()
        print(text[-200_000:])
        line = ended[0].strip("= ")
        record(phase="correctness", job=os.path.basename(log), what=line,
               failed=re.findall(r"^(?:FAILED|ERROR) (.{1,140})", text, re.M)[:12],
               ok="passed" in line and "failed" not in line and "error" not in line)

    def compilers():
        while left() > 4 and any(process.poll() is None for process in begun):
            time.sleep(0.5)

    run_jobs("correctness", {
        "begin": begin, "sampler": check_sampler, "vae step": lambda: check_step("vae"),
        "diffusion step": lambda: check_step("diffusion"), "shipped weights": check_weights,
        "one process, nccl": lambda: distributed(1), "two processes, gloo": lambda: distributed(2),
        "programs": programs,
        **{os.path.basename(log): lambda log=log: tests(log) for log in logs},
        "compilers": compilers}, patient=(*map(os.path.basename, logs), "compilers"))


def check_sampler():
    """The whole sampler, guided, for two lengths, against float64 on the same device."""
    sides = make_sides()
    model, T, n = sides.model, sides.frames, 2 if ARGS.dry else 8
    texts, lengths = prompts(n), [T, T // 2] * (n // 2)  # padding, too
    x_T, exact = sides.noise(n), in_float64(model)
    with settings("torch"):
        expected = exact.generate(texts, lengths=lengths, x_T=x_T.double(), **steps())
    wrong = []
    for mode, graph, precision in SAMPLERS:
        if mode == "baseline" or ARGS.dry and (graph != "0" or precision != "float32"):
            continue
        name = f"{mode}, graph {graph}, {precision}"
        try:
            used = copy.deepcopy(model).to_precision("bf16") if precision == "bf16" else model
            before = copy.copy(kernels.calls)
            with settings(mode, graph, precision), poisoned(), replays() as played:
                for _ in range(1 if graph == "0" else 2):  # recorded, then replayed
                    found = used.generate(texts, lengths=lengths, x_T=x_T, **steps())
                count = played()
            ran = ", ".join(f"{k[0]} x{v}" for k, v in sorted((kernels.calls - before).items()))
            # rounding grows over 50 steps of guidance 7.5; joints add up the turns of frames
            for part, a, b, looser in zip(("features", "joints"), found, expected, (1, 10)):
                bound = looser * {"float32": 1e-4, "tf32": 2e-2, "bf16": 2e-1}[precision]
                if not accept(error_of(a, b), bound, phase="correctness", job="sampler",
                              what=f"{name}: {part}", ran=ran, replays=count):
                    wrong.append(f"{name}: {part}")
        except Exception as error:
            traceback.print_exc()
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            synchronize()  # raises if the context is dead
    if wrong:
        raise AssertionError("; ".join(wrong))


def loss_of(model, stage, inputs):
    """The stage's loss on inputs, the same for a model in any precision."""
    if stage == "vae":
        mu, logvar = model.vae.encode(inputs["features"], inputs["lengths"])
        z = reparameterize(mu, logvar, inputs["eps"])
        recon = model.vae.decode(z, inputs["lengths"], inputs["features"].shape[1])
        return vae_loss(inputs["features"], recon, mu, logvar, inputs["lengths"],
                        model.config.vae, model.to_joints)["loss"]
    return model.diffusion_loss(inputs["x0"], texts=inputs["texts"], t=inputs["t"],
                                eps=inputs["eps"], dropped=inputs["dropped"])["loss"]


def check_step(stage):
    """Loss and gradients of one training step against float64 in plain torch on the same device."""
    sides = make_sides(dropout=0.0)
    model, c, B = sides.model, sides.model.config.vae, 2 if ARGS.dry else 6
    lengths = draw_lengths(B, sides.frames)
    shape = B, c.latent_size, c.latent_dim
    inputs = {"features": zero_padding(torch.randn(B, int(lengths.max()), 263), lengths),
              "lengths": lengths, "eps": torch.randn(shape), "x0": torch.randn(shape),
              "t": torch.randint(1000, (B,)), "dropped": torch.arange(B) % 3 == 0}
    texts = prompts(B)

    def gradients(model, cast, precision="float32"):
        model.vae.train(), model.denoiser.train()
        net = model.vae if stage == "vae" else model.denoiser
        net.zero_grad(set_to_none=True)
        given = {"texts": texts} | {key: cast(value) for key, value in inputs.items()}
        with autocast(precision):
            loss = loss_of(model, stage, given)
        loss.backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        return loss, torch.cat([g.flatten().double().cpu() for g in grads])

    with settings("torch"):
        loss, expected = gradients(
            in_float64(model), lambda x: (x.double() if x.is_floating_point() else x).to(DEVICE))
    fine = True
    for mode, precision in itertools.product(("torch", "triton"), TYPES):
        if ARGS.dry and precision != "float32":
            continue
        with settings(mode, precision=precision), poisoned(), kernels.expect(mode):
            found = gradients(model, lambda x: x.to(DEVICE), precision)
        for part, a, b in zip(("loss", "gradients"), found, (loss, expected)):
            bound = {"float32": 1e-4, "tf32": 3e-2, "bf16": 1e-1}[precision]
            fine &= accept(error_of(a, b), bound, phase="correctness", job=f"{stage} step",
                           what=f"{mode}, {precision}: {part}")
    assert fine, "an error is above its bound"


def check_weights():
    """The model that ships: lengths and motions on the GPU as on the CPU."""
    path = os.path.join(HERE, "checkpoints", "toy.pt")
    texts = ["a man jumps", "a woman walks and then waves", ""]
    given = dict(texts=texts[:1] if ARGS.dry else texts, seed=3)
    with settings("torch"):
        there = checkpoint.load_model(path)
        expected_lengths = there.draw_lengths(**given)
        lengths = [8] if ARGS.dry else expected_lengths
        expected = there.generate(lengths=lengths, **given, **steps())
    model, fine = checkpoint.load_model(path, device=DEVICE), True
    for mode, graph, precision in SAMPLERS:
        if mode == "baseline" or precision != "float32" or ARGS.dry and graph != "0":
            continue
        with settings(mode, graph), poisoned():
            drawn = model.draw_lengths(**given)
            found = model.generate(lengths=lengths, **given, **steps())
        for part, a, b in zip(("features", "joints"), found, expected):
            fine &= accept(error_of(a, b), 2e-3, phase="correctness", job="shipped weights",
                           what=f"{mode}, graph {graph}: {part}", lengths=drawn == expected_lengths)
    assert fine, "an error is above its bound"


def command(name, *words, seconds=60, **environment):
    """Run a program to its end -> seconds; its output goes to the log."""
    local = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    environment = os.environ | local | environment
    start = time.monotonic()
    result = subprocess.run([sys.executable, *words], cwd=HERE, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            timeout=max(5, min(seconds, left() - 2)))
    print(f"-- {name}\n{result.stdout[-20_000:]}")
    if result.returncode:
        raise RuntimeError(f"{name} ended with {result.returncode}: {result.stdout[-300:]}")
    return time.monotonic() - start


PLAIN = {"MLD_KERNELS": "auto", "TRITON_INTERPRET": "0"}  # programs as a user starts them


def programs():
    """sample.py and eval.py, with the weights that ship."""
    few = ["--eval.replications=1", "--eval.mm_texts=2", "--eval.mm_samples=4", "--eval.mm_pairs=2"]
    jobs = {"sample.py": ["a man jumps", "--format", "html,npy"],
            "eval.py": ["--ckpt", "checkpoints/toy.pt", *few]}
    for name, words in jobs.items() if not ARGS.dry else ():
        taken = command(name, name, *words, "--out", SCRATCH, **PLAIN)
        record(phase="correctness", job="programs", what=name, seconds=round(taken, 1), ok=True)


FEW = ("train_vae.steps=3 train_vae.batch_size=8 train_diffusion.steps=3 train.cache_latents=1 "
       "train_diffusion.batch_size=16 train.log_every=1 train.eval_every=3 train.save_every=3 "
       "train.sample_every=0 diffusion.num_inference_steps=2 data.max_length=60").split()


def distributed(count):
    """One process: DistributedDataParallel by NCCL changes no gradient. Two on one card, by gloo:
    train.py's losses are those of one process."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 400)}
    if count == 1:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        words = ["-m", "dev.gpu", "process", *["--dry"] * ARGS.dry]
        command("one process", *words, **PLAIN, **address, **alone)
        record(phase="correctness", job="one process, nccl", ok=True)
        return
    flags = ["--dataset", "toy", "--device", DEVICE, "--overwrite", "--out", SCRATCH,
             *[f"--{word}" for word in FEW], "--name"]
    launch = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={count}",
              *[f"--{key.lower()}={value}" for key, value in address.items()]]
    command("two processes", *launch, "-m", "dev.gpu", "process", *flags, "two", **PLAIN)
    command("one process", "train.py", *flags, "one", **PLAIN)
    losses = []
    for name in ("two", "one"):
        with open(os.path.join(SCRATCH, name, "log.jsonl"), encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        losses.append(torch.tensor([r[k] for r in rows for k in ("loss", "val_loss") if k in r]))
    if not accept(error_of(*losses), 1e-3, phase="correctness", job="two processes, gloo",
                  what=f"{len(losses[0])} losses"):
        raise AssertionError("two processes do not train as one does")


def process(words):
    """What torchrun starts: without words the check of NCCL, otherwise train.py by gloo."""
    if words:
        import train
        start = dist.init_process_group
        with mock.patch.object(dist, "init_process_group", lambda _: start("gloo")):
            train.main(words)
        return
    dist.init_process_group("nccl" if CUDA else "gloo")
    if CUDA:
        torch.cuda.set_device(0)
    try:
        vae = make_sides(dropout=0.0).model.vae.train()
        features = torch.randn(3, 20, 263, device=DEVICE)
        lengths = torch.tensor([20, 11, 4], device=DEVICE)

        class Whole(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.vae = vae

            def forward(self, x, n):
                mu, logvar = self.vae.encode(x, n)
                return {"loss": self.vae.decode(mu, n).square().mean() + logvar.square().mean()}

        whole, grads = Whole(), []
        for net in (whole, torch.nn.parallel.DistributedDataParallel(whole)):
            vae.zero_grad(set_to_none=True)
            net(features, lengths)["loss"].backward()
            grads.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
        assert error_of(*grads) < 1e-5, f"gradients differ by {error_of(*grads)}"
        total = torch.ones(3, device=DEVICE)
        dist.all_reduce(total)
        shares = [None]
        dist.all_gather_object(shares, {"x": np.ones(2)})
        dist.barrier()
        assert total.tolist() == [1, 1, 1] and shares[0]["x"].sum() == 2
    finally:
        dist.destroy_process_group()


# --------------------------------------------------------------------------------------------------
# 2. Kernels


def machine():
    """Rates of this card: a copy of 1 GiB (bytes read and written), matrix products."""
    n, m = (1 << 12, 64) if ARGS.dry else (1 << 28, 8192)
    x, y = torch.randn(n, device=DEVICE), torch.empty(n, device=DEVICE)
    y.copy_(x)
    row = {"copy_bytes_s": 8 * n / events(lambda: y.copy_(x), 10)}
    del x, y
    for precision, dtype in TYPES.items():
        with settings("baseline", precision=precision):
            a, b = (torch.randn(m, m, device=DEVICE).to(dtype) for _ in range(2))
            a @ b
            row[precision + "_flop_s"] = 2 * m**3 / events(lambda: a @ b, 5)
    name, more = "CPU", {}
    if CUDA:
        p = torch.cuda.get_device_properties(0)
        name, more = p.name, {"processors": p.multi_processor_count, "L2_MB": p.L2_cache_size >> 20}
    row |= {"card": name, **more, "torch": torch.__version__, "cuda": torch.version.cuda}
    with contextlib.suppress(ImportError):
        import triton
        row["triton"] = triton.__version__
    record(phase="kernels", job="machine", **row)


def rates():
    found = [r for r in recorded() if r["job"] == "machine" and "copy_bytes_s" in r]
    guess = {"copy_bytes_s": 3e12, "float32_flop_s": 5e13, "bf16_flop_s": 8e14}
    return found[-1] if found else guess


def compare(what, precision, make, forms, exact, moved, flops, backward=(0, 0), bound=None):
    """Time forms {name: function(inputs)} forward, and backward as the difference.

    make() -> inputs, floats with gradients; exact(inputs in float64) -> the definition's result;
    moved, flops: bytes and operations of the forward pass; backward: of the backward pass."""
    bound = bound or {"float32": 1e-5, "bf16": 1e-2}[precision]
    inputs = make()
    wide = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in inputs]
    expected = exact(*wide)
    do = torch.randn_like(expected).to(TYPES[precision])
    wanted = torch.autograd.grad(expected, [t for t in wide if t.requires_grad], do.double())
    each = sum(t.numel() * t.element_size() for t in inputs)
    count = 1 if ARGS.dry else max(2, min(64, math.ceil(1.5e8 / each)))
    sets, fine, rate = [inputs, *[make() for _ in range(count - 1)]], True, rates()
    for name, form in forms.items():
        mode = "triton" if name == "triton" else "torch"
        with settings(mode):
            def forward(given):
                with torch.no_grad():
                    return form(*given)

            def both(given):
                learned = [t for t in given if t.requires_grad]
                return torch.autograd.grad(form(*given), learned, do)

            with poisoned():
                errors = [error_of(forward(inputs), expected)]
                errors += [error_of(a, b) for a, b in zip(both(inputs), wanted)]
            ahead, eager = timed([lambda g=g: forward(g) for g in sets])
            whole, slow = timed([lambda g=g: both(g) for g in sets])
        back = whole - ahead
        floors = [max(b / rate["copy_bytes_s"], f / rate[precision + "_flop_s"])
                  for b, f in ((moved, flops), backward)]
        limit = bound if name == "triton" else 1.0  # of the others it is only worth knowing
        fine &= accept(max(errors), limit, phase="kernels", job=what, what=f"{name}, {precision}",
                       us=ahead * 1e6, floor_us=floors[0] * 1e6, bytes_s=moved / ahead,
                       flop_s=flops / ahead, back_us=back * 1e6, back_floor_us=floors[1] * 1e6,
                       eager_us=eager and eager * 1e6, back_eager_us=slow and (slow - eager) * 1e6)
    assert fine, "an error is above its bound"


def attention_job(B, H, L, D, precision, masked):
    dtype, size = TYPES[precision], B * H * L * D
    lengths = draw_lengths(B, L - 2) + 2 if masked else torch.full((B,), L)
    lengths = lengths.clamp(max=L).to(DEVICE)
    seen = torch.arange(L, device=DEVICE) < lengths[:, None, None, None]
    mask = seen if masked else None

    def make():  # slices of one projection, as the model has them
        whole = torch.randn(B, L, 3, H, D, device=DEVICE).to(dtype)
        return [t.detach().requires_grad_() for t in whole.permute(2, 0, 3, 1, 4)]

    def exact(q, k, v):
        return ((q @ k.mT / D**0.5).masked_fill(~seen, -math.inf)).softmax(-1) @ v

    b = TYPES[precision].itemsize
    compare(f"attention {B}x{H}x{L}x{D}{', lengths' * masked}", precision, make, {
        "triton": lambda q, k, v: kernels.attention(q, k, v, lengths if masked else None),
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)},
        exact, 4 * size * b, 4 * size * L, (8 * size * b, 10 * size * L))


def norm_job(R, C, precision):
    def make():
        return [(torch.randn(s, device=DEVICE) * 2).to(TYPES[precision]).requires_grad_()
                for s in ((R, C), (R, C), (C,), (C,))]

    b = TYPES[precision].itemsize
    compare(f"add + layer norm {R}x{C}", precision, make, {
        "triton": kernels.add_layer_norm,
        "torch": lambda x, r, w, s: F.layer_norm(x + r, (C,), w, s)},
        lambda x, r, w, s: F.layer_norm(x + r, (C,), w, s),
        3 * R * C * b, 0, (3 * R * C * b, 0))


def gelu_job(R, C, precision):
    """Without the product, which is cuBLAS's on both sides."""
    def make():
        return [torch.randn(s, device=DEVICE).to(TYPES[precision]).requires_grad_()
                for s in ((R, C), (C,))]

    def ours(h, bias):
        return kernels.operators.bias_gelu(h, bias, None, 0.0)

    b = TYPES[precision].itemsize
    compare(f"bias + gelu {R}x{C}", precision, make, {
        "triton": ours, "torch": lambda h, bias: F.gelu(h + bias)},
        lambda h, bias: F.gelu(h + bias), 2 * R * C * b, 0, (3 * R * C * b, 0))


def denoiser_job(layers, D, hidden, L, precision):
    """A stack of few tokens, two launches a layer, beside its torch form; its weights may lie in
    the cache, as they do in the sampler."""
    stack = Stack(layers, D, 4, hidden, skip=True).to(DEVICE).eval().requires_grad_(False)
    weights, rate, fine = sum(p.numel() for p in stack.parameters()), rates(), True
    exact, stack = copy.deepcopy(stack).double(), stack.to(TYPES[precision])
    for B in (2,) if ARGS.dry else (2, 32, 128, 512, 2048):
        sets = [torch.randn(B, L, D, device=DEVICE).to(TYPES[precision]) for _ in range(4)]
        forms = {"triton": lambda x: denoiser_layer.denoiser_layers(x, stack), "torch": stack}
        for name, form in forms.items():
            with settings(name), torch.no_grad():
                with poisoned():
                    found = form(sets[0])
                with settings("torch"):
                    expected = exact(sets[0].double())
                taken, eager = timed([lambda x=x: form(x) for x in sets])
            least = max(weights * TYPES[precision].itemsize / rate["copy_bytes_s"],
                        2 * weights * B * L / rate[precision + "_flop_s"])
            fine &= accept(error_of(found, expected), {"float32": 2e-5, "bf16": 3e-2}[precision],
                           phase="kernels", job=f"denoiser {layers}x{D}, {L} tokens, batch {B}",
                           what=f"{name}, {precision}", us=taken * 1e6, floor_us=least * 1e6,
                           eager_us=eager and eager * 1e6)
    assert fine, "an error is above its bound"


def kernel_phase():
    published, toy = (64, 4, 198, 64), (16, 4, 122, 32)
    jobs = {"machine": machine}
    if not TRITON:
        record(phase="kernels", job="all", state=f"skipped: {backend.WHY_NOT or 'no GPU'}")
        return run_jobs("kernels", jobs)

    def add(job, *arguments):
        jobs[f"{job.__name__} {arguments}"] = lambda: job(*arguments)

    if ARGS.dry:
        add(attention_job, 1, 2, 20, 16, "float32", True)
        add(norm_job, 5, 64, "float32")
        add(gelu_job, 5, 64, "float32")
        add(denoiser_job, 3, 64, 64, 3, "float32")
        return run_jobs("kernels", jobs)
    for precision in ("bf16", "float32"):
        add(denoiser_job, 9, 256, 1024, 3, precision)
        add(attention_job, *published, precision, False)
        add(attention_job, *published, precision, True)
        add(norm_job, 64 * 198, 256, precision)
        add(gelu_job, 64 * 198, 1024, precision)
    for precision in ("float32", "bf16"):
        add(denoiser_job, 5, 128, 512, 5, precision)
        add(attention_job, *toy, precision, True)
        add(norm_job, 16 * 122, 128, precision)
        add(gelu_job, 16 * 122, 512, precision)
    run_jobs("kernels", jobs)


# --------------------------------------------------------------------------------------------------
# 3. Sampling


def sampling():
    sides = make_sides(baseline=True)
    lowered = []

    def job(mode, graph, precision):
        model = sides.model
        if precision == "bf16":
            lowered[:] = lowered or [copy.deepcopy(model).to_precision("bf16")]
            model = lowered[0]
        for B in (1,) if ARGS.dry else (1, 16, 64, 256, 1024):
            if left() < 4:
                raise TimeoutError(f"no time left for batch {B}")
            texts, x_T, lengths = prompts(B), sides.noise(B), sides.lengths(B)

            def sentence():
                if mode == "baseline":
                    return sides.baseline.sentence(texts, lengths, x_T)
                return model.generate(texts, lengths=lengths, x_T=x_T, **steps())

            with settings(mode, graph, precision):
                with replays() as played:
                    start = time.perf_counter()
                    made = sentence()[1]
                    synchronize()
                    first = time.perf_counter() - start
                    sentence()
                    count = played()
                assert made.isfinite().all(), "the joints are not finite"
                peak, taken = peak_gb(sentence), wall(sentence)
            record(phase="sampling", job=f"{mode}, graph {graph}, {precision}", batch=B,
                   ms=taken * 1e3, frames_s=B * sides.frames / taken, peak_gb=peak, replays=count,
                   first_s=round(first, 2))

    order = [v for v in SAMPLERS if not ARGS.warm or v[0] in ("auto", "triton")]
    if ARGS.dry:  # the interpreter has had its turn in the first phase
        order = order[:2]
    jobs = {", ".join(v): lambda v=v: job(*v) for v in order}
    if not ARGS.warm:
        texts, x_T, lengths = prompts(1), sides.noise(1), sides.lengths(1)

        def once():
            with settings("triton" if CUDA else "torch"):
                sides.model.generate(texts, lengths=lengths, x_T=x_T, **steps())
        jobs["longest kernels of a sentence"] = lambda: profile("sampling", "a sentence", once)
    run_jobs("sampling", jobs)


def profile(phase, what, run, times=3, count=15):
    """Record the longest kernels of run()."""
    kinds = torch.profiler.ProfilerActivity
    run()
    synchronize()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA][:2 if CUDA else 1]) as profiler:
        for _ in range(times):
            run()
        synchronize()
    attribute = "self_device_time_total" if CUDA else "self_cpu_time_total"
    rows = [e for e in profiler.key_averages()
            if not CUDA or "CUDA" in str(getattr(e, "device_type", "CUDA"))]
    total = sum(getattr(e, attribute) for e in rows)
    for e in sorted(rows, key=lambda e: -getattr(e, attribute))[:count]:
        us = getattr(e, attribute)
        record(phase=phase, job=f"longest kernels of {what}", what=e.key[:70], us=us / times,
               calls=e.count / times, share=round(us / max(total, 1e-9), 3))


# --------------------------------------------------------------------------------------------------
# 4. Training


def make_step(sides, stage, precision, how):
    """-> function(features, lengths): a training step of random weights as train.py does it."""
    model = copy.deepcopy(sides.model)
    net = model.vae if stage == "vae" else model.denoiser
    net.train()
    model.text_encoder = Remembered(model.text_encoder)
    if how == "compiled":
        for part in ("encode", "decode") if stage == "vae" else ("forward",):
            setattr(net, part, torch.compile(getattr(net, part), dynamic=True))
    params = list(net.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=CUDA)
    average, c = [p.detach().clone() for p in params], model.config.vae
    B = 2 if ARGS.dry else 64
    texts, shape = prompts(B), (B, c.latent_size, c.latent_dim)
    posterior = [torch.randn(shape, device=DEVICE) for _ in range(2)]

    graph = None
    if how == "graphed":
        fixed = model.condition.encode(model, texts, B)  # looking texts up is not recorded

        def recorded_loss(_, *tensors):
            names = ("features", "lengths", "eps") if stage == "vae" else ("x0",)
            inputs = dict.fromkeys(("texts", "dropped", "eps", "t")) | dict(zip(names, tensors))
            inputs["texts"] = texts
            with autocast(precision), mock.patch.object(
                    model.condition, "encode", lambda *_, **__: fixed):
                return {"loss": loss_of(model, stage, inputs)}
        graph = graphs.TrainingGraph(recorded_loss, params)

    def step(features, lengths):
        if how == "graphed":  # a graph for every multiple of 28 frames
            features = F.pad(features, (0, 0, 0, -features.shape[1] % 28))
        inputs = {"features": features, "lengths": lengths, "texts": texts, "dropped": None,
                  "eps": torch.randn(shape, device=DEVICE) if stage == "vae" else None, "t": None}
        if stage != "vae":
            inputs["x0"] = reparameterize(*posterior)
            if how == "graphed":
                inputs = {"x0": inputs["x0"]}
        if graph is not None:
            loss = graph((), *(v for v in inputs.values() if torch.is_tensor(v)))["loss"]
        else:
            optimizer.zero_grad(set_to_none=True)
            with autocast(precision):
                loss = loss_of(model, stage, inputs)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)
        return loss

    return step


def training():
    sides, B = make_sides(), 2 if ARGS.dry else 64

    def clips():
        """Six batches out of sixteen that were sorted by length, as train.py draws them."""
        parts = draw_lengths(16 * B, sides.frames).sort()[0].split(B)
        for i in (13, 2, 8, 14, 5, 11)[:1 if ARGS.dry else 6]:
            n = parts[i].to(DEVICE)
            yield zero_padding(torch.randn(B, int(n.max()), 263, device=DEVICE), n), n

    def job(stage, mode, precision, how):
        batches = list(clips())
        with settings(mode, precision=precision):
            step = make_step(sides, stage, precision, how)
            start = time.perf_counter()
            losses = [step(*batch) for batch in batches]
            synchronize()
            first = time.perf_counter() - start
            peak = peak_gb(lambda: step(*max(batches, key=lambda b: b[0].shape[1])))
            each = [events(lambda b=b: step(*b), 1 if ARGS.warm else 10) for b in batches]
        assert all(loss.isfinite() for loss in losses), "a loss is not finite"
        total = sum(int(n.sum()) for _, n in batches)
        record(phase="training", job=f"{stage}, {mode}, {precision}, {how}",
               batch=B, ms=1e3 * statistics.mean(each), frames_s=total / sum(each), peak_gb=peak,
               first_s=round(first, 1))

    order = TRAINERS
    if ARGS.dry:
        order = [v for v in TRAINERS if v[1:] == ("torch", "float32", "eager")]
    if ARGS.warm:  # what takes longest to compile goes first
        order = order[::-1]
    jobs = {" ".join(map(str, v)): lambda v=v: job(*v) for v in order}
    if not ARGS.warm:
        def longest():
            step = make_step(sides, "vae", "float32" if ARGS.dry else "bf16", "eager")
            batch = next(clips())
            with settings("auto" if CUDA else "torch"):
                profile("training", "a VAE step, bf16", lambda: step(*batch))
        jobs = dict(list(jobs.items())[:4]) | {"longest kernels": longest} | jobs
    run_jobs("training", jobs)


# --------------------------------------------------------------------------------------------------
# 5. Weights


def weights():
    """train.py --dataset toy as it ships, until the time is up; what there is then is kept."""
    def train():
        few = [*[f"--{word}" for word in FEW], "--stage", "vae"] if ARGS.dry else []
        words = ["train.py", "--dataset", "toy", "--device", DEVICE, "--out", SCRATCH, "--name",
                 "weights", "--overwrite", *few]
        start = time.monotonic()
        running = subprocess.Popen([sys.executable, *words], cwd=HERE, env=os.environ | PLAIN)
        try:
            running.wait(max(5, left() - 15))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # train.py saves its state at the end of the step
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(10)
            running.kill()
        folder = os.path.join(SCRATCH, "weights")
        with open(os.path.join(folder, "log.jsonl"), encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for stage in dict.fromkeys(r["stage"] for r in rows):
            logged = [r for r in rows if r["stage"] == stage and "loss" in r]
            record(phase="weights", job="train.py --dataset toy", what=stage,
                   steps=logged[-1]["step"], loss=round(logged[-1]["loss"], 5), batch=None,
                   frames_s=statistics.median(r["frames_per_s"] for r in logged),
                   seconds=round(time.monotonic() - start, 1))
        for file in ("vae_best.pt", "diffusion_best.pt", "model.pt", "log.jsonl"):
            for path in glob.glob(os.path.join(folder, file)):
                if os.path.getsize(path) < 16e6:
                    shutil.copy(path, os.path.join(OUT, file))
        if running.wait() not in (0, -signal.SIGKILL):
            raise RuntimeError(f"train.py ended with {running.returncode}")

    run_jobs("weights", {"train.py --dataset toy": train}, patient=("train.py --dataset toy",))


# --------------------------------------------------------------------------------------------------
# The table


def cell(value):
    if isinstance(value, bool) or value is None:
        return {True: "ok", False: "NO", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


COLUMNS = {"ms": "ms", "frames_s": "frames/s", "peak_gb": "GB", "replays": "replays",
           "first_s": "first s", "us": "us", "floor_us": "floor", "eager_us": "eager",
           "back_us": "back", "back_floor_us": "floor", "back_eager_us": "eager", "calls": "calls",
           "share": "share", "steps": "steps", "loss": "loss", "error": "error", "ok": "ok"}


def table():
    rows = recorded()
    for phase in dict.fromkeys(r["phase"] for r in rows):
        mine = [r for r in rows if r["phase"] == phase]
        print(f"\n{phase}")
        for r in mine:
            if r["job"] == "machine" and "card" in r:
                rate = ", ".join(f"{k[:-7]} {r[k] / 1e12:.4g} TFLOP/s" for k in r if "flop_s" in k)
                print(f"{r['card']}, torch {r['torch']}, triton {r.get('triton')}; copy "
                      f"{r['copy_bytes_s'] / 1e12:.3g} TB/s, {rate}")
        measured = [r for r in mine if "state" not in r and r["job"] != "machine"]
        columns = [c for c in COLUMNS if any(r.get(c) is not None for r in measured)]
        lines = [["", *(COLUMNS[c] for c in columns)]]
        for r in measured:
            batch = f" x{r['batch']}" if r.get("batch") else ""
            name = f"{r['job']}{batch}{': ' + r['what'] if r.get('what') else ''}"
            lines.append([name[:78], *(cell(r.get(c)) for c in columns)])
        wide = [max(map(len, column)) for column in zip(*lines)]
        for line in lines if measured else ():
            print(line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:], wide[1:])))
        for r in measured:
            for failed in r.get("failed", ()):
                print("  ", failed)
        ended = {r["job"]: r["state"] for r in mine if "state" in r}
        for job, state in ended.items():
            if state != "done":
                print(f"{job}: {'died or hung' if state == 'begun' else state}")


PHASES = {"correctness": correctness, "kernels": kernel_phase, "sampling": sampling,
          "training": training, "weights": weights, "table": table}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("phase", choices=[*PHASES, "process"])
    parser.add_argument("--seconds", type=float, default=600, help="when to stop (600)")
    parser.add_argument("--hang", type=float, default=60, help="a job's longest time (60)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--warm", action="store_true", help="fill the compilers' caches only")
    global ARGS
    ARGS, words = parser.parse_known_args(argv)
    ARGS.ends = time.monotonic() + ARGS.seconds - 2
    torch.manual_seed(0)
    if ARGS.phase == "process":
        return process(words)
    if words:
        parser.error(f"unknown words: {' '.join(words)}")
    PHASES[ARGS.phase]()


if __name__ == "__main__":
    from config import program

    program(main)
