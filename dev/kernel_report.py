"""Compile every kernel that the launchers can launch, ahead of time and without a GPU, and write
the tables of docs/kernels.md.

    python -m dev.kernel_report     needs triton, but no GPU and no CUDA toolkit; about 5 minutes

tests/compile_py finds and compiles the launches, and says what is wrong with them.
"""
import concurrent.futures
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compile_harness import (STEP, Built, attention_launches, compile_launch, denoiser_launches,
                             denoising_launches, problems, row_launches)
from dev.baseline import Sides
from dev.measure import settings
from dev.tables import fill, markdown
from kernels import backend


BETWEEN = 9  # operations of a guided step outside of the layers, in fast.Guided and diffusion.py


def operation_counts():
    """Operations (not views) that 50 guided steps and a decoding dispatch in plain torch: all, and
    those in the denoiser's layers."""
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += not (function.is_view or "empty" in function.name())
            return function(*args, **(kwargs or {}))

    def count(run):
        with torch.inference_mode(), Count() as counter:
            run()
        return counter.operations

    with settings("torch"):
        sides = Sides(True, "cpu", baseline=False, num_layers=9)
        z, tokens = sides.noise(1), torch.zeros(2, 3, 16)
        return (count(lambda: sides.denoise(sides.empty, z))
                + count(lambda: sides.model.decode_latent(z, [196])),
                50 * count(lambda: sides.model.denoiser.encoder(tokens)))


def built(job):
    return compile_launch(*job)


def write():
    jobs = []
    for dtype in (torch.bfloat16, torch.float32):
        for arch in (80, 90):
            for launches in (attention_launches, row_launches, denoiser_launches,
                             denoising_launches):
                jobs += [(launch, arch) for launch in launches(arch, dtype)]
        amd = attention_launches(0, dtype, (64,)) + row_launches(0, dtype, (256, 1024))
        amd += denoiser_launches(0, dtype, ((3, 256, 4, 1024),))
        jobs += [(launch, "gfx942") for launch in amd]
    merged, wrong = {}, []  # the variants of one tile, with and without lengths, dropout ...
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for i, ((launch, arch), figures) in enumerate(zip(jobs, pool.map(built, jobs)), 1):
            print(f"\r{i} of {len(jobs)} kernels compiled", end="", flush=True)
            found = problems(launch, figures, arch)
            wrong += [f"{launch.kernel} {dict(launch.constants)} on {arch}: {p}" for p in found]
            sizes = " ".join(f"{name}={value}" for name, value in launch.constants if type(value) is
                             int and name.isupper() and name not in ("BD", "BC", "STAGES"))
            chip = arch if arch == "gfx942" else f"sm_{arch}"
            key = launch.kernel, "fp32" if launch.exact else "bf16", chip, sizes, launch.warps
            merged.setdefault(key, []).append(figures)
    print()
    if wrong:
        raise SystemExit("\n".join(wrong))
    (operations, in_layers), steps = operation_counts(), len(STEP)
    fill(os.path.join(ROOT, "docs", "kernels.md"), {
        "The kernels: what they must move, and what they compile to": markdown(
            ["compiled by", "kernels", "that spill", "with atomics"],
            [f"triton {backend.triton.__version__}", len(jobs), 0, 0]),
        "Launches of a sampling run": markdown(
            ["", "launches"], ["plain torch", operations],
            [f"denoiser's layers in two launches each ({steps} a step)",
             operations - in_layers + 50 * steps],
            ["and one between two calls of them, instead of nine",
             operations - in_layers + 50 * (steps + 1 - BETWEEN)]),
        "Every configuration, compiled": markdown(
            ["kernel", "type", "for", "sizes", "warps", *Built._fields],
            *([*key, *map(max, zip(*merged[key]))] for key in sorted(merged)))})
    print(f"docs/kernels.md: {len(jobs)} kernels, none of which spills or uses atomics")


if __name__ == "__main__":
    if backend.WHY_NOT and backend.MODE != "triton":  # without a GPU, triton needs a new process
        environment = os.environ | {"MLD_KERNELS": "triton"}
        os.execve(sys.executable, [sys.executable, os.path.abspath(__file__)], environment)
    from flags import program

    program(lambda argv: backend.WHY_NOT or write())
