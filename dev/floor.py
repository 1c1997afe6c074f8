"""FID of real motion against real motion: what a perfect generator would score, since it can only
make other clips than those of the test split.

    python -m dev.floor --ckpt out/two/model.pt     the mean and 95% interval of 20 draws

In each draw every test clip is replaced by a train clip of the same action label, none of them
twice. FID is that of eval.py's "generated" row, with its judge, against the test clips of its first
replication. The dataset needs a test split, and a label for every clip of it.
"""
import argparse
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import checkpoint
import data
from config import AssetsConfig
from eval import REAL, Evaluation
from judge import evaluators, metrics


def stand_ins(rng, wanted, labels):
    """Indices of clips with the `wanted` labels, none twice; ValueError if there are too few."""
    chosen = np.empty(len(wanted), int)
    for label in np.unique(wanted):
        places, found = np.flatnonzero(wanted == label), np.flatnonzero(labels == label)
        if len(found) < len(places):
            raise ValueError(f"{len(places)} test clips have label {label}, but only {len(found)} "
                             "train clips do, which are to stand in for them.")
        chosen[places] = rng.choice(found, len(places), replace=False)
    return chosen


@torch.inference_mode()
def floor(run, draws=20):
    """run: an Evaluation -> (mean, half the 95% interval) of the FID over the draws. ValueError for
    a dataset without a test split or without labels."""
    if "test" not in run.pack.splits:
        raise ValueError(f"{run.pack.path} has no test split to compare with.")
    seen = {}
    for split in ("train", "test"):
        batches = run.batches(split)
        clips = [run.clips(batches, 0, step) for step in range(len(batches))]
        seen[split] = (np.concatenate([run.judged(REAL, *clip[1:])[REAL] for clip in clips]),
                       np.concatenate([clip[0]["actions"].numpy() for clip in clips]))
    (x, labels), (reference, wanted) = seen["train"], seen["test"]
    labelled = wanted >= 0  # a clip without a label has no other clip that could stand in for it
    if not labelled.any():
        raise ValueError(f"{run.pack.path}: no test clip has an action label, so no train clip can "
                         "stand in for one.")
    reference, wanted = reference[labelled], wanted[labelled]
    draws = (stand_ins(np.random.default_rng(draw), wanted, labels) for draw in range(draws))
    return metrics.interval([metrics.fid(x[chosen], reference) for chosen in draws])


def main(argv):
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--ckpt", required=True, help="a model that was trained on the dataset")
    parser.add_argument("--evaluator", help="as eval.py's")
    parser.add_argument("--data_root", default=AssetsConfig.data_root, help="folder of the packs")
    args, cpu = parser.parse_args(argv), torch.device("cpu")
    try:
        model = checkpoint.load_model(args.ckpt, AssetsConfig(data_root=args.data_root))
        pack = data.open_pack(model.config)
        judge = evaluators.find(model.config, pack, args.evaluator, cpu)
        mean, half = floor(Evaluation(model, judge, pack, cpu))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"FID of other real clips of the same labels: {mean:.4f}+-{half:.4f}")


if __name__ == "__main__":
    from flags import program

    program(main)
