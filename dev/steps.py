"""Few steps beside many: the table of docs/training.md.

    python -m dev.steps --student out/toy/student.pt --teacher out/toy/model.pt
    python -m dev.steps --student out/toy/student.pt --teacher out/toy/model.pt --seeds 5

Both models are asked the sentences of tests/test_weights.py, with the same seeds and lengths.
Success is that of tests/kinematics.py, with the 95% interval of a share of so many samples
(Wilson's). Seconds are of one motion at a time, text and decoder included.
"""
import argparse
import dataclasses
import os
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(1, os.path.join(sys.path[0], "tests"))
import checkpoint
from tests import test_weights

WAYS = [("teacher", "ddim", 50), ("teacher", "dpm++", 10), ("teacher", "dpm++", 4),
        ("teacher", "ddim", 2), ("teacher", "ddim", 1), ("student", "lcm", 4),
        ("student", "lcm", 2), ("student", "lcm", 1)]


def interval(share, count, z=1.96):
    """Wilson's 95% interval of a share of `count` samples."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return middle - half, middle + half


def seconds(model, count=20):
    """Median time of one motion of 100 frames."""
    took = []
    for seed in range(count + 3):
        start = time.perf_counter()
        model.generate(["a man walks forward"], lengths=[100], seed=seed)
        took.append(time.perf_counter() - start)
    return float(np.median(took[3:]))


def main(argv):
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", default=test_weights.everyday.SHIPPED)
    parser.add_argument("--seeds", type=int, default=test_weights.SEEDS)
    args = parser.parse_args(argv)
    test_weights.SEEDS = args.seeds
    models = {name: checkpoint.load_model(getattr(args, name)) for name in ("teacher", "student")}
    print("| | steps | did what was asked | skating, cm/s | jerk, m/s³ | spread, cm | s each |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for name, sampler, steps in WAYS:
        model = models[name]
        model.config.diffusion = dataclasses.replace(model.config.diffusion, sampler=sampler,
                                                     num_inference_steps=steps, eta=0.0)
        torch.manual_seed(0)
        made = test_weights.generate(model)
        share, count = np.mean(list(test_weights.passed(made).values())), args.seeds * len(made)
        low, high = interval(share, count)
        skating, jerk = test_weights.overall(made)
        spread = np.mean([test_weights.spread(group) for group in made.values()])
        print(f"| {name}, {sampler} | {steps} | {share:.1%} ({low:.1%} to {high:.1%}) "
              f"| {skating:.1f} | {jerk:.0f} | {spread:.1f} | {seconds(model):.3f} |", flush=True)


if __name__ == "__main__":
    from flags import program

    program(main)
