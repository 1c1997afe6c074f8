"""A training step's forward and backward pass on a CPU, with attention and GELU in C
(kernels/training.c) beside torch's own: processor time, which other work disturbs little.

    OMP_NUM_THREADS=1 python -m dev.step vae
    OMP_NUM_THREADS=1 python -m dev.step diffusion --precision bf16   ... any settings of train.py

Both take each batch, one after the other. The diffusion begins from the weights that ship.
"""
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import loop
import train
from kernels import training

STEPS, WARM = 24, 4


def never(*_):
    return False


def main(argv):
    stage, *settings = argv or ["diffusion"]
    ways = {"C": (training.takes_attention, training.takes_gelu), "torch": (never, never)}
    spent = {name: [] for name in ways}

    class Timed(loop.Loop):
        def backward(self, batch):
            for name in sorted(ways, reverse=self.step % 2):
                training.takes_attention, training.takes_gelu = ways[name]
                start = time.process_time()
                losses = super().backward(batch)
                spent[name].append(time.process_time() - start)
            return losses

    loop.Loop = Timed
    with tempfile.TemporaryDirectory() as out:
        if stage == "diffusion" and not any(s.startswith("--init_from") for s in settings):
            settings += ["--init_from", "checkpoints/toy.pt"]
        train.main(["--dataset", "toy", "--stage", stage, "--cache_latents", "1", *settings,
                    f"--train_{stage}.steps={STEPS}", "--train.out", out, "--train.sample_every=0"])
    ratios = [b / a for a, b in list(zip(*spent.values()))[WARM:]]
    for name, times in spent.items():
        print(f"{name}: {1e3 * statistics.mean(times[WARM:]):.0f} ms a step")
    low, middle, high = statistics.quantiles(ratios)
    print(f"torch takes {middle:.2f} times as long as C [{low:.2f}..{high:.2f}]")


if __name__ == "__main__":
    from flags import program

    program(main)
