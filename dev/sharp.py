"""How sharp a VAE's reconstructions are, without a judge and without a trained diffusion.

    python -m dev.sharp out/one/vae_best.pt [out/two/vae_best.pt ...]     a row of Markdown each
    python -m dev.sharp --split val FILE ...                              to choose by

The clips are those of the test split (or another) whose name has no M (for mirrored) in front,
whole or up to data.max_frames; z is the posterior's mean. judge/sharpness.py and judge/metrics.py
say what the numbers are. The last column is what the latent can hold at most: the sum over its
numbers of log2 of the spread of all latents over the spread of one clip's posterior, in bits.
"""
import argparse
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import checkpoint
import data
import motion
from config import AssetsConfig
from judge import metrics, sharpness
from mld import MLD

HEAD = ("steps", "error / global, mm", "kinematic FID", "jerk / real", "skating / real",
        "power / real", "coherence", "acceleration error, mm", "bits")


def clips_of(pack, config, split="test"):
    """The features of a split's unmirrored clips, shortest first."""
    items = [i for i in pack.indices(split) if not pack.ids[i].startswith("M")]
    items.sort(key=lambda i: pack.lengths[i])
    return [torch.tensor(np.asarray(pack.features(i)[:config.data.max_frames])) for i in items]


@torch.inference_mode()
def measure(model, pack, batch=16, split="test"):
    """-> {name: array with a row for each clip}"""
    found, clips, fps = {}, clips_of(pack, model.config, split), pack.fps
    skeleton = motion.SKELETONS[pack.skeleton]
    toes = [foot[1] for foot in skeleton.feet]
    for start in range(0, len(clips), batch):
        part = clips[start:start + batch]
        lengths = torch.tensor([len(clip) for clip in part])
        features = torch.nn.utils.rnn.pad_sequence(part, batch_first=True).float()
        mu, logvar = model.vae.encode((features - model.mean) / model.std, lengths)
        _, made = model.decode_latent(mu, lengths)
        true = motion.to_metres(features, pack.skeleton, model.rest)
        for a, b, n, m, v in zip(true.numpy(), made.numpy(), lengths, mu, logvar):
            a, b = a[:n], b[:n]
            errors = metrics.reconstruction_errors(a, b)
            row = {"error": errors["mpjpe"], "global": errors["global"], "accel": errors["accel"],
                   "mu": m.flatten().numpy(), "variance": v.flatten().exp().numpy(),
                   "cross": sharpness.spectra(a, fps, b)}
            for who, joints in (("real", a), ("made", b)):
                row |= {f"{who} kinematics": sharpness.kinematics(joints, toes, fps),
                        f"{who} power": sharpness.spectra(joints, fps),
                        f"{who} jerk": metrics.jerk(joints, fps),
                        f"{who} skating": metrics.foot_skating(joints, toes, fps)}
            for key, value in row.items():
                found.setdefault(key, []).append(value)
    return {key: np.stack(values) for key, values in found.items()}


def row_of(path, data_root, split="test"):
    """A checkpoint's row of the table, without its name."""
    state = checkpoint.load(path)
    config = state["config"]
    config.assets = AssetsConfig(data_root=data_root)
    pack = data.open_pack(config)
    model = MLD(config, None, pack.mean, pack.std, pack.rest)
    weights = {key: value for key, value in state["model"].items() if key.startswith("vae.")}
    model.vae.load_state_dict({key[4:]: value for key, value in weights.items()})
    x = measure(model.eval(), pack, split=split)

    def bands(values):
        return " ".join(f"{value:.2f}" for value in values)

    def ratio(name):
        made, real = (x[f"{who} {name}"] for who in ("made", "real"))
        made, real = (values[np.isfinite(values)] for values in (made, real))
        return f"{made.mean() / real.mean():.2f}" if len(made) and len(real) else "-"

    spread = np.sqrt(x["mu"].var(0) + x["variance"].mean(0))
    bits = np.log2(spread / np.sqrt(x["variance"]).mean(0)).clip(0).sum()
    return (state.get("step", ""), f"{x['error'].mean():.1f} / {x['global'].mean():.1f}",
            f"{sharpness.kinematic_fid(x['made kinematics'], x['real kinematics']):.2f}",
            ratio("jerk"), ratio("skating"),
            bands(sharpness.power_ratio(x["made power"], x["real power"])),
            bands(sharpness.coherence(x["cross"], x["made power"], x["real power"])),
            f"{x['accel'].mean():.2f}", f"{bits:.0f}")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="vae_best.pt, or model.pt, of train.py")
    parser.add_argument("--data_root", default=AssetsConfig.data_root, help="folder of the packs")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    args = parser.parse_args(argv)
    try:
        rows = [(path, *row_of(path, args.data_root, args.split)) for path in args.checkpoints]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for row in (("", *HEAD), ["---"] * (1 + len(HEAD)), *rows):
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    from flags import program

    program(main)
