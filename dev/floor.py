"""FID of real motion against real motion: what a perfect generator would score, as it can only make other clips.

    python -m dev.floor --ckpt out/two/model.pt            prints mean+-95% interval over 20 draws

Every test clip is stood in for by a train clip of the same action label, each at most once; the judge is eval.py's. FID as in
eval.py's "generated" row, to the test clips of the first replication. Needs a test split, and a label for every test clip.
"""
import argparse
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import checkpoint  # noqa: E402
import data  # noqa: E402
from judge import evaluators  # noqa: E402
from judge import metrics  # noqa: E402
from config import AssetsConfig  # noqa: E402
from eval import REAL, Evaluation  # noqa: E402


def stand_ins(rng, wanted, labels):
    """Indices of clips with the `wanted` labels, none twice. ValueError if a label has too few clips."""
    chosen = np.empty(len(wanted), int)
    for label in np.unique(wanted):
        places, found = np.flatnonzero(wanted == label), np.flatnonzero(labels == label)
        if len(found) < len(places):
            raise ValueError(f"{len(places)} clips have label {label}, only {len(found)} could stand in for them.")
        chosen[places] = rng.choice(found, len(places), replace=False)
    return chosen


@torch.inference_mode()
def floor(run, draws=20):
    """-> (mean, half interval) of FID between test clips and as many train clips of the same labels. ValueError without such."""
    if "test" not in run.pack.splits:
        raise ValueError(f"{run.pack.path} has no test split: there is nothing to stand in for.")
    seen = {}
    for split in ("train", "test"):
        batches = run.batches(split)
        clips = [run.clips(batches, 0, step) for step in range(len(batches))]
        seen[split] = (np.concatenate([run.judged(REAL, *clip[1:])[REAL] for clip in clips]),
                       np.concatenate([clip[0]["actions"].numpy() for clip in clips]))
    (x, labels), (reference, wanted) = seen["train"], seen["test"]
    if (wanted < 0).any():
        raise ValueError(f"{run.pack.path}: {(wanted < 0).sum()} test clips have no action label, so no clip can stand in for them.")
    return metrics.interval([metrics.fid(x[stand_ins(np.random.default_rng(draw), wanted, labels)], reference) for draw in range(draws)])


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a model trained on the dataset: names it and its settings")
    parser.add_argument("--evaluator", help="as eval.py's")
    parser.add_argument("--data_root", default=AssetsConfig.data_root, help="where the packs are")
    args = parser.parse_args(argv)
    try:
        model = checkpoint.load_model(args.ckpt, AssetsConfig(data_root=args.data_root))
        pack = data.open_pack(model.config)
        judge = evaluators.find(model.config, pack, args.evaluator, torch.device("cpu"))
        mean, half = floor(Evaluation(model, judge, pack, torch.device("cpu")))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"FID of other real clips of the same labels: {mean:.4f}+-{half:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
