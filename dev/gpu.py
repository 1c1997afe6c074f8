"""What dev/gpu.sh runs: everything that only a GPU can prove, each phase in its own process.

    python -m dev.gpu correctness    the tests that need a GPU
    python -m dev.gpu kernels        each kernel beside torch's own form and beside its floor
    python -m dev.gpu sampling       sentences by every variant: time, memory, longest kernels
    python -m dev.gpu training       a step of each stage: eager, compiled, as a CUDA graph
    python -m dev.gpu weights        train.py --dataset toy for the time that is left, or train.py
                                     with the words in $TRAIN
    python -m dev.gpu table          the results so far, as a table

Each job of a phase appends rows to $OUT/results.jsonl. A job that hangs or breaks its CUDA context
ends the process; gpu.sh then starts the phase again, which goes on behind that job. --dry takes
tiny sizes on a CPU, with the kernels in Triton's interpreter. Times are medians after a warm-up. A
kernel is timed as a CUDA graph that runs it on several sets of inputs, together larger than the
cache; "eager" is without a graph and contains the cost of launching. The floor is what the bytes or
the operations take at this machine's measured speed, whichever is longer.
"""
import argparse
import copy
import faulthandler
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import product

import torch
import torch.nn.functional as F

import checkpoint
import kernels
from config import HERE
from dev import recorder
from dev.baseline import (Sides, draw_lengths, prompts, random_clips, trainer, training_lengths,
                          vae_step_loss)
from dev.measure import machine, peak_mb, seconds, settings, synchronize
from kernels import backend, denoiser_layer, graphs
from stages import RUNG, Remembered
from transformer import Stack
from vae import reparameterize
from view.report import read_log

CUDA = torch.cuda.is_available()
DEVICE = "cuda:0" if CUDA else "cpu"
TRITON = not backend.WHY_NOT and (CUDA or backend.INTERPRETED)
OUT = os.environ.get("OUT", os.path.join("out", "gpu"))
SCRATCH = os.environ.get("GPU_SCRATCH", OUT)
RESULTS = os.path.join(OUT, "results.jsonl")
TRAIN = os.environ.get("TRAIN", "--dataset toy")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
NOW = {}  # the phase and the job at hand

# (MLD_KERNELS, MLD_GRAPH, precision); "baseline" is dev/baseline.py. What matters most is first.
SAMPLERS = [
    ("auto", "1", "float32"), ("auto", "1", "bf16"), ("baseline", "0", "float32"),
    ("torch", "0", "float32"), ("torch", "1", "float32"), ("auto", "1", "tf32"),
    ("torch", "1", "bf16"), ("triton", "1", "float32"), ("triton", "0", "bf16"),
    ("baseline", "0", "tf32")]
# (MLD_KERNELS, precision, how)
TRAINERS = [
    ("auto", "bf16", "graphed"), ("torch", "bf16", "graphed"), ("auto", "bf16", "eager"),
    ("torch", "bf16", "eager"), ("auto", "float32", "graphed"), ("torch", "float32", "eager"),
    ("auto", "tf32", "graphed"), ("torch", "bf16", "compiled")]

# --------------------------------------------------------------------------------------------------
# Jobs and rows


def record(**row):
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(NOW | row) + "\n")
    print(NOW | row, flush=True)


def results(**wanted):
    """The rows so far that have these values."""
    with open(RESULTS, encoding="utf-8") as file:
        return [r for r in map(json.loads, file) if wanted.items() <= r.items()]


def accept(what, found, expected, bound, **more):
    """Record |found - expected| / |expected| -> whether it is within the bound; NaN never is."""
    error = error_of(found, expected)
    record(what=what, error=float(f"{error:.3g}"), bound=bound, ok=error <= bound, **more)
    return error <= bound


def error_of(found, expected):
    """|found - expected| / |expected|, on whatever devices they lie"""
    found, expected = (t.detach().double().cpu() for t in (found, expected))
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def left():
    """Seconds until the phase ends."""
    return ARGS.ends - time.monotonic()


def run_jobs(jobs):
    """jobs: {name: function}. Whatever a job raises is recorded, and the next one runs."""
    begun = {r["job"] for r in results(phase=NOW["phase"], state="begun")}
    for name in (name for name in jobs if name not in begun):
        NOW["job"], start = name, time.monotonic()
        if left() < (45 if name.startswith("two processes") else 3):
            record(state="skipped: no time left")
            continue
        record(state="begun")
        patience = left() if name.startswith(("tests", "train.py")) else min(ARGS.hang, left())
        faulthandler.dump_traceback_later(max(5, patience + 1), exit=True)
        try:
            jobs[name]()
            wrong = [r["what"] for r in results(**NOW, ok=False)]
            state = f"FAILED: {'; '.join(wrong)}" if wrong else "done"
        except Exception as error:  # whatever it is, the other jobs are to run
            traceback.print_exc()
            state = f"FAILED: {type(error).__name__}: {str(error).strip()[:300]}"
        faulthandler.cancel_dump_traceback_later()
        record(state=state, seconds=round(time.monotonic() - start, 1))
        if CUDA:
            try:
                torch.rand(2, device=DEVICE).sum().item()  # fails after a broken recording, too
                torch.cuda.empty_cache()
            except RuntimeError:
                sys.exit("the CUDA context is dead")


def python(limit, *words, stop=(), **environment):
    """Run Python with these words for at most `limit` seconds -> (exit code, output), which also
    goes to the log. Code 124: its time was up."""
    command = ["timeout", *stop, "-k", "8", f"{max(5, limit):.0f}", sys.executable, *words]
    local = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    environment = os.environ | local | environment
    with tempfile.TemporaryFile("w+") as out:  # a lost child would hold a pipe open
        code = subprocess.run(command, cwd=HERE, env=environment, stdout=out, stderr=out).returncode
        out.seek(0)
        text = out.read()
    print(f"-- {' '.join(words)}\n{text[-50_000:]}", flush=True)
    return code, text


def clock(run, times=1):
    """Median seconds of run(), in rounds of `times` calls that fill half a second."""
    def several():
        for _ in range(times):
            run()

    rounds = max(1, min(20, int(0.5 / times / seconds(run)))) if CUDA else 1
    return statistics.median(seconds(several) for _ in range(rounds)) / times


def timed(calls):
    """Functions that do the same on other inputs -> seconds of one in a CUDA graph, and eager."""
    def all_of_them():
        return [call() for call in calls]  # kept to the end: no output's memory is used twice

    all_of_them()
    eager = clock(all_of_them) / len(calls)
    if not CUDA:
        return eager, eager
    graph, _ = graphs.capture(all_of_them, torch.device(DEVICE))
    return clock(graph.replay, times=5) / len(calls), eager


@cache
def make_sides(dropout=0.0):
    """Random weights at the published sizes; on a CPU the least that the kernels take."""
    sizes = {} if CUDA else dict(latent_dim=64, ff_size=64, num_heads=4)
    sides = Sides(not CUDA, DEVICE, **sizes)
    sides.set_dropout(dropout)
    return sides


def generate(model, **given):
    return model.generate(**given, **({} if CUDA else {"num_inference_steps": 1}))


# --------------------------------------------------------------------------------------------------
# 1. Correctness


def correctness():
    """The tests that need a GPU, what has never run on one first."""
    files = ["tests/test_kernels.py", "tests/test_kernels_models.py"]
    if ARGS.dry:
        return {"tests": partial(tests, "-n1", "-k", "no_gradients", files[0])}
    new = partial(tests, "-n12", "tests/test_on_device.py", limit=100)
    return {"tests of what is new": new,
            # in a process of its own, since one of them fails to record on purpose
            "tests of CUDA graphs": partial(tests, "-n1", "tests/test_fast.py", limit=70),
            "tests against float64": partial(tests, "-n6", "tests/test_gpu.py", "-k", "on_device",
                                             limit=90),
            "two processes": partial(two_processes, "gloo"),
            "two processes, torchrun": partial(two_processes, "torchrun"),
            "tests of kernels": partial(tests, "-n12", *files)}


def tests(*words, limit=1e9):
    """pytest with these words, for at most `limit` seconds. Whatever becomes of it, what failed or
    did not end is recorded."""
    kept = os.path.join(OUT, "tests.jsonl")
    start = os.path.getsize(kept) if os.path.exists(kept) else 0
    options = ["-q", "-rf", "--tb=short", "-p", "no:cacheprovider", "-p", "dev.recorder"]
    given = dict(OMP_NUM_THREADS="1", TEST_RECORD=kept, TEST_PATIENCE=f"{ARGS.hang:.0f}")
    code, text = python(min(limit, left() - 5), "-m", "pytest", *options, *words, **given)
    passed, failed, lost = recorder.read(kept, start)
    last = (text.strip().splitlines() or ["nothing was said"])[-1]
    for name, said in failed:
        record(what=name, ok=False, failed=[said])
    for name in lost:
        record(what=f"{name} did not end", ok=False)
    counts = f"{passed} passed, {len(failed)} failed, {len(lost)} did not end"
    record(what=f"{counts}; {last.strip('= ')}", ok=code == 0)


FEW = ("train_vae.steps=3 train_vae.batch_size=8 train_diffusion.steps=3 train.cache_latents=1 "
       "train_diffusion.batch_size=16 train.log_every=1 train.eval_every=3 train.save_every=3 "
       "train.sample_every=0 diffusion.num_inference_steps=2 data.max_length=60 precision=float32 "
       "denoiser.principal=0 denoiser.latent_dim=128 data.workers=1")


def two_processes(how):
    """Two processes of train.py on one device log the losses of one. Each says where it is when its
    time is up."""
    limit = min(ARGS.hang, left()) - 12
    out = os.path.join(SCRATCH, how)
    program = ["-m", "dev.stacks", f"{limit:.0f}", "train.py", "--dataset", "toy", "--device",
               DEVICE, "--out", out, *[f"--{word}" for word in FEW.split()], "--name"]
    port = 29500 + os.getpid() % 400
    runs = {"one": [(program, {})]}
    if how == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc_per_node=2",
                    "--local-addr=127.0.0.1", "--master_addr=127.0.0.1", f"--master_port={port}"]
        runs["two"] = [(launcher + program, {})]
    else:
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(port), "TORCH_DISTRIBUTED_DEBUG": "INFO"}
        runs["two"] = [(program, shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]

    def run(name, words, environment):
        return python(limit + 5, *words, name, **environment)

    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(run, name, *one) for name, some in runs.items() for one in some]
        codes = [job.result()[0] for job in jobs]
    assert not any(codes), f"ended with {codes}; the log says where"
    one, two = (torch.tensor([r[key] for r in read_log(os.path.join(out, name, "log.jsonl"))
                              for key in ("loss", "val_loss") if key in r]) for name in runs)
    accept(f"{len(one)} losses", two, one, 1e-3)


# --------------------------------------------------------------------------------------------------
# 2. Kernels


def kernel_jobs():
    """Everything at the published sizes, then at the toy set's."""
    jobs = {"machine": lambda: record(what=speed()["machine"], **speed())}
    sizes = [((9, 256, 1024, 3), (64, 4, 198, 64)), ((5, 128, 512, 5), (16, 4, 122, 32))]
    if ARGS.dry:
        sizes = [((1, 64, 64, 3), (1, 2, 20, 16))]
    precisions = ("float32",) if ARGS.dry else DTYPES
    for (stack, size), precision in product(sizes if TRITON else (), precisions):
        stack_size, size_words = ("x".join(map(str, some)) for some in (stack, size))
        jobs[f"denoiser {stack_size}, {precision}"] = partial(stack_job, *stack, precision)
        for name in ("attention", "attention, lengths", "add + layer norm", "bias + gelu"):
            jobs[f"{name} {size_words}, {precision}"] = partial(
                operation_job, name, *size, precision)
    return jobs


@cache
def speed():
    return machine("cuda" if CUDA else "cpu", ARGS.dry)


def floor_us(numbers, flops, dtype):
    """The least time for an operation that moves so many numbers and takes so many flops."""
    memory = numbers * dtype.itemsize / speed()["bytes_s"]
    return 1e6 * max(memory, flops / speed()[str(dtype)[6:] + "_flop_s"])


def operation(name, B, H, L, D):
    """-> shapes of the inputs; the kernel, torch's own form, the definition; and for each number of
    (B, L, H * D), numbers moved and flops, forward and backward."""
    R, C, lengths, seen = B * L, H * D, None, None
    if name == "attention, lengths":
        lengths = (draw_lengths(B, L - 2) + 2).to(DEVICE)
        seen = torch.arange(L, device=DEVICE) < lengths[:, None, None, None]

    def attention(q, k, v):
        scores = q @ k.mT / D**0.5
        return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(-1) @ v

    def norm(x, residual, weight, bias):
        return F.layer_norm(x + residual, (C,), weight, bias)

    def gelu(h, bias):  # without the matrix product, which is cuBLAS's on both sides
        return F.gelu(h + bias)

    if name == "add + layer norm":
        return ((R, C), (R, C), (C,), (C,)), kernels.add_layer_norm, norm, norm, (3, 0), (3, 0)
    if name == "bias + gelu":
        def kernel(h, bias):
            return kernels.operators.bias_gelu(h, bias, None, 0.0)
        return ((R, 4 * C), (4 * C,)), kernel, gelu, gelu, (8, 0), (12, 0)
    return (((B, L, H, D),) * 3, lambda q, k, v: kernels.attention(q, k, v, lengths),
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, seen), attention,
            (4, 4 * L), (8, 10 * L))


def operation_job(name, B, H, L, D, precision):
    """Errors against float64, and the time of an operation and of its backward pass."""
    dtype, bound = DTYPES[precision], {"float32": 1e-5, "bf16": 1e-2}[precision]
    shapes, kernel, own, definition, *work = operation(name, B, H, L, D)
    size = B * L * H * D
    floors = [floor_us(moved * size, flops * size, dtype) for moved, flops in work]

    def make():
        some = (torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes)
        some = (t.transpose(1, 2) if t.dim() == 4 else t for t in some)  # heads, as in the model
        return [t.detach().requires_grad_() for t in some]

    count = 1 if ARGS.dry else 2 + min(62, int(5e7 / size / dtype.itemsize))
    sets = [make() for _ in range(count)]
    wide = [t.detach().double().requires_grad_() for t in sets[0]]
    result = definition(*wide)
    do = torch.randn_like(result).to(dtype)
    expected = result, *torch.autograd.grad(result, wide, do.double())
    for what, form in (("triton", kernel), ("torch", own)):
        def both(given):
            return torch.autograd.grad(form(*given), given, do)

        with settings(what):
            # without its graph: while one lives, no backward pass to its leaves can be recorded
            found = [t.detach() for t in (form(*sets[0]), *both(sets[0]))]
            with torch.no_grad():
                ahead, eager = timed([partial(form, *given) for given in sets])
            whole, slow = timed([partial(both, given) for given in sets])
        times = dict(us=ahead, back_us=whole - ahead, eager_us=eager, back_eager_us=slow - eager)
        record(what=what, **{key: 1e6 * t for key, t in times.items()},
               floor_us=floors[0], back_floor_us=floors[1])
        for a, b in zip(found, expected) if what == "triton" else ():
            accept(f"error of {tuple(a.shape)}", a, b, bound)


def stack_job(layers, D, hidden, L, precision):
    """The denoiser's layers on a few tokens, two launches each, beside the stack in torch."""
    dtype, exact = DTYPES[precision], Stack(layers, D, 4, hidden, skip=True).to(DEVICE).eval()
    stack, weights = copy.deepcopy(exact).to(dtype), sum(p.numel() for p in exact.parameters())
    exact.double()
    for B in (2,) if ARGS.dry else (2, 32, 128, 512, 2048):
        sets = [torch.randn(B, L, D, device=DEVICE).to(dtype) for _ in range(4)]
        with settings("torch"), torch.no_grad():
            expected = exact(sets[0].double())
        kernel = partial(denoiser_layer.denoiser_layers, stack=stack)
        for name, form in ("triton", kernel), ("torch", stack):
            with settings(name), torch.no_grad():
                found = form(sets[0])
                taken, eager = timed([partial(form, x) for x in sets])
            accept(f"{name}, batch {B}", found, expected, 2e-5 if precision == "float32" else 3e-2,
                   us=1e6 * taken, eager_us=1e6 * eager,
                   floor_us=floor_us(weights, 2 * weights * B * L, dtype))


# --------------------------------------------------------------------------------------------------
# 3. Sampling


def sampling():
    order = [SAMPLERS[0], SAMPLERS[2]] if ARGS.dry else SAMPLERS
    jobs = {"{}, graph {}, {}".format(*v): partial(sentences, *v) for v in order}
    precisions = ("bf16",) if ARGS.dry else ("float32", "bf16")
    ship = {f"the weights that ship, {p}": partial(shipped, p) for p in precisions}
    return dict(list(jobs.items())[:2]) | ship | jobs


def shipped(precision):
    """A sentence by the weights that ship, with their own sampler and number of steps."""
    path = os.path.join(HERE, "checkpoints", "toy.pt")
    model = checkpoint.load_model(path, device=DEVICE).to_precision(precision)
    frames = 80 if CUDA else 8
    for B in (1,) if ARGS.dry else (1, 16, 64):
        def sentence():
            return generate(model, texts=["a man jumps"] * B, lengths=[frames] * B, seed=1)

        if left() < 4:
            raise TimeoutError(f"no time left for batch {B}")
        with settings("auto", "1", precision):
            seconds(sentence)
            assert sentence()[1].isfinite().all(), "the joints are not finite"
            record(what=f"batch {B}", ms=clock(sentence) * 1e3, peak_mb=peak_mb(sentence))


def sentences(mode, graph, precision):
    sides = make_sides()
    model = sides.model
    if precision == "bf16":
        model = copy.deepcopy(model).to_precision("bf16")
    for B in (1,) if ARGS.dry else (1, 16, 64, 256, 1024):
        texts, x_T, lengths = prompts(B), sides.noise(B), sides.lengths(B)

        def sentence():
            if mode == "baseline":
                return sides.baseline.sentence(texts, lengths, x_T)
            return generate(model, texts=texts, lengths=lengths, x_T=x_T)

        if left() < 4:
            raise TimeoutError(f"no time left for batch {B}")
        with settings(mode, graph, precision):
            first = seconds(sentence)
            assert sentence()[1].isfinite().all(), "the joints are not finite"
            peak, taken = peak_mb(sentence), clock(sentence)
            record(what=f"batch {B}", ms=taken * 1e3, frames_s=B * sides.frames / taken,
                   peak_mb=peak, graphs=len(graphs.recorded), first_s=round(first, 2))
            if B == 1 and graph == "0":
                profile(sentence)


def profile(run, count=12):
    """Record the longest kernels of run()."""
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA][:1 + CUDA]) as profiler:
        run()
        synchronize()
    time_of = f"self_{'device' if CUDA else 'cpu'}_time_total"
    found = [(getattr(e, time_of), e.count, e.key[:60]) for e in profiler.key_averages()
             if not CUDA or "CUDA" in str(e.device_type)]
    for us, calls, key in sorted(found, reverse=True)[:count]:
        record(what=key, us=us, calls=calls, share=us / max(1, sum(us for us, *_ in found)))


# --------------------------------------------------------------------------------------------------
# 4. Training


def training():
    order = [v for v in TRAINERS if not ARGS.dry or v == ("torch", "float32", "eager")]
    return {f"{stage}, {', '.join(v)}": partial(steps, stage, *v)
            for v, stage in product(order, ("vae", "denoiser"))}


def steps(stage, mode, precision, how):
    """Steps of random weights on six batches, as train.py draws them."""
    sides, batch = make_sides(dropout=0.1), 2 if ARGS.dry else 64
    model, c = copy.deepcopy(sides.model), sides.model.config.vae
    net = getattr(model, stage)
    if how == "compiled":
        for part in ("encode", "decode") if stage == "vae" else ("forward",):
            setattr(net, part, torch.compile(getattr(net, part), dynamic=True))
    model.text_encoder = Remembered(model.text_encoder)
    texts = model.text_encoder.ready([*prompts(batch), ""])
    posterior = tuple(torch.randn(2, batch, c.latent_size, c.latent_dim, device=DEVICE))
    lengths = training_lengths(batch, ARGS.dry, DEVICE)[0]
    batches = [posterior] * len(lengths)
    if stage == "vae":  # a graph serves batches up to a multiple of RUNG frames, as in train.py
        batches = [random_clips(n) for n in lengths]
        batches = [(F.pad(x, (0, 0, 0, -x.shape[1] % RUNG * (how == "graphed"))), n)
                   for x, n in batches]

    def loss_of(*tensors):
        if stage == "vae":
            return vae_step_loss(model, *tensors)
        return model.diffusion_loss(reparameterize(*tensors), texts=texts)["loss"]

    with settings(mode, precision=precision):
        step = trainer(net, loss_of, bf16=precision == "bf16", graphed=how == "graphed")
        first = seconds(lambda: [step(*tensors) for tensors in batches])
        assert all(step(*tensors).isfinite() for tensors in batches), "a loss is not finite"
        peak = peak_mb(lambda: step(*max(batches, key=lambda some: some[0].shape[1])))
        each = [clock(partial(step, *tensors), times=10 if CUDA else 1) for tensors in batches]
        frames = sum(int(n.sum()) for n in lengths)
        record(what="a step", ms=1e3 * statistics.mean(each), frames_s=frames / sum(each),
               peak_mb=peak, first_s=round(first, 1))
        if stage == "vae" and how == "eager" and (mode == "auto" or ARGS.dry):
            profile(partial(step, *batches[0]))


# --------------------------------------------------------------------------------------------------
# 5. Weights


def train():
    """train.py --dataset toy as it ships, or $TRAIN, until the time is up; keeps what there is
    then."""
    few = ["--stage=vae", "--train_vae.steps=3", "--train_vae.batch_size=8", "--data.max_length=60",
           "--train.log_every=1", "--train.eval_every=3"] if ARGS.dry else []
    few += [*TRAIN.split(), "--device", DEVICE, "--out", SCRATCH, "--name=weights"]
    plain = {"MLD_KERNELS": "auto", "TRITON_INTERPRET": "0"}  # as a user starts it
    stop = "--foreground", "-s", "INT"  # after this step it saves its state
    code, _ = python(left() - 20, "train.py", *few, stop=stop, **plain)
    log = [r for r in read_log(os.path.join(SCRATCH, "weights", "log.jsonl")) if "loss" in r]
    for stage, last in {r["stage"]: r for r in log}.items():
        rates = [r["frames_per_s"] for r in log if r["stage"] == stage]
        record(what=stage, steps=last["step"], loss=last["loss"], frames_s=statistics.median(rates))
    for name in ("vae_best.pt", "diffusion_best.pt", "model.pt", "log.jsonl"):
        path = os.path.join(SCRATCH, "weights", name)
        if os.path.exists(path) and os.path.getsize(path) < 16e6:
            shutil.copy(path, os.path.join(OUT, name))
    assert code in (0, 124), f"train.py ended with {code}"


# --------------------------------------------------------------------------------------------------
# The table


def table():
    """A table for each phase, and then the jobs that did not end well."""
    def cell(value):
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "" if value is None else str(value)

    for phase in dict.fromkeys(r["phase"] for r in results()):
        measured = [r for r in results(phase=phase) if "state" not in r and "machine" not in r]
        hidden = {"phase", "job", "what", "bound", "ran", "failed"}
        columns = [key for key in dict.fromkeys(key for r in measured for key in r)
                   if key not in hidden]
        lines = [[phase, *columns]] + [
            [f"{r['job']}: {r['what']}"[:90], *(cell(r.get(c)) for c in columns)] for r in measured]
        wide = [max(map(len, column)) for column in zip(*lines)]
        print()
        for first, *others in lines:
            print(first.ljust(wide[0]), *(c.rjust(w) for c, w in zip(others, wide[1:])))
        ended = {r["job"]: r["state"] for r in results(phase=phase) if "state" in r}
        for job, state in ended.items():
            if state != "done":
                print(f"{job}: {'died or hung' if state == 'begun' else state}")
    for r in results():
        if "machine" in r or r.get("failed"):
            print(json.dumps(r))


PHASES = {"correctness": correctness, "kernels": kernel_jobs, "sampling": sampling,
          "training": training, "weights": lambda: {f"train.py {TRAIN}": train}}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("phase", choices=[*PHASES, "table"])
    parser.add_argument("--seconds", type=float, default=600, help="when to stop (600)")
    parser.add_argument("--hang", type=float, default=60, help="a job's longest time (60)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU")
    global ARGS
    ARGS = parser.parse_args(argv)
    ARGS.ends = time.monotonic() + ARGS.seconds - 2
    os.makedirs(OUT, exist_ok=True)
    open(RESULTS, "a").close()
    if ARGS.phase == "table":
        return table()
    torch.manual_seed(0)
    NOW["phase"] = ARGS.phase
    run_jobs(PHASES[ARGS.phase]())


if __name__ == "__main__":
    from flags import program

    program(main)
