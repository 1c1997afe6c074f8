"""Dropout in training on a CPU, dropout.c beside torch's own: processor time, which other work on
the machine disturbs little.

    OMP_NUM_THREADS=1 python -m dev.dropout              dropout and attention alone
    OMP_NUM_THREADS=1 python -m dev.dropout --batch 8    VAE steps at the published sizes as well

The ways take turns in one process. Steps are given as real frames a second, in every round.
"""
import argparse
import os
import sys
import time
from functools import partial

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import kernels
from dev.baseline import Sides, random_clips, trainer, training_lengths, vae_step_loss
from kernels import backend
from run import keep_freed_memory


def spent(run, repeats=5):
    """Least seconds of processor time."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times[1:])


def alone():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(8 * 198, 1024, dtype=dtype, requires_grad=True)
        y = kernels.dropout(x, 0.1)
        forward = spent(lambda: kernels.dropout(x, 0.1))
        backward = spent(lambda: torch.autograd.grad(y, x, x.detach(), retain_graph=True))
        print(f"  {str(dtype)[6:]}: {forward / x.numel() * 1e9:.2f} ns a number forward, "
              f"{backward / x.numel() * 1e9:.2f} backward")
    qkv = torch.randn(3, 16, 198, 4, 64, requires_grad=True)
    for lengths in (None, torch.linspace(40, 198, 16).int()):
        took = spent(lambda: kernels.attention(*qkv.transpose(2, 3), lengths, dropout_p=0.1)
                     .sum().backward())
        print(f"  attention, {'198' if lengths is None else '40 to 198'} of 198 frames: "
              f"{took * 1e3:.1f} ms forward and backward")


def steps(batch, rounds):
    sides = Sides(False, "cpu")
    ours, theirs = sides.model, sides.baseline
    order = training_lengths(batch, False, "cpu")
    step = trainer(ours.vae, partial(vae_step_loss, ours), False)
    ways = {"dropout.c": ("auto", 0.1, step, order[0]), "torch's": ("torch", 0.1, step, order[0]),
            "no dropout": ("auto", 0.0, step, order[0]),
            "baseline": ("auto", 0.0, trainer(theirs.vae, theirs.vae_loss, False, whole=False),
                         order[1])}
    found = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, (backend.MODE, share, step, lengths) in ways.items():
            keep_freed_memory(name != "baseline")
            sides.set_dropout(share)
            inputs = random_clips(lengths[i])
            start = time.process_time()
            step(*inputs)
            found[name].append(int(lengths[i].sum()) / (time.process_time() - start))
    for name, rates in found.items():
        print(f"  {name}: " + ", ".join(f"{rate:,.0f}" for rate in rates[1:]))


def main(argv):
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    keep_freed_memory()  # as train.py does
    for backend.MODE in ("auto", "torch"):
        print("dropout.c" if backend.MODE == "auto" else "torch's own")
        alone()
    if args.batch:
        print(f"VAE steps of {args.batch} clips, frames/s")
        steps(args.batch, args.rounds)


if __name__ == "__main__":
    from flags import program

    program(main)
