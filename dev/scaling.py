"""How cost grows with the work: `python -m dev.bench scaling` measures, and writes the tables of
docs/scaling.md.

Each point of a curve is ours alone. --quick takes tiny sizes and writes nothing.
"""
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from itertools import chain

import numpy as np
import torch

import data
from config import HERE
from dev.baseline import Sides, prompts
from dev.measure import row, spread, status, take_turns
from dev.tables import fill, markdown
from formats import pack as packs
from view.report import read_log

CLIP_FRAMES = 4  # of a synthetic clip, so that a million fit


def sampling(quick, device, repeats):
    """(curve, row) by motions, frames, layers and latent tokens."""
    sides = Sides(quick, device)

    def point(curve, name, batch, run):
        return curve, row(name, batch, take_turns({"ours": run}, repeats))

    for n in (1, 2) if quick else (1, 4, 16, 64, 256, 1024):
        texts, x_T = prompts(n), sides.noise(n)
        yield point("Motions at once", "sentence", n, lambda: sides.sentence(texts, x_T))
    z = sides.noise(16)
    for frames in (8, 24) if quick else (40, 80, 120, 160, 196):
        n = torch.full((16,), frames, device=device)
        yield point("Frames", f"decode, {frames} frames", 16,
                    lambda: sides.model.decode_latent(z, n))
    for curve, key, values in (("Layers", "num_layers", (3, 5) if quick else (5, 9, 13, 17)),
                               ("Latent tokens", "latent_size", (1, 2) if quick else
                                (1, 2, 4, 7, 10))):
        for value in values:
            some, what = Sides(quick, device, baseline=False, **{key: value}), curve.lower()
            text, x_T, n = some.model.text_encoder(prompts(16)), some.noise(16), some.lengths(16)
            yield point(curve, f"denoise, {what} {value}", 16, lambda: some.denoise(text, x_T))
            yield point(curve, f"decode, {what} {value}", 16,
                        lambda: some.model.decode_latent(x_T, n))


def training(quick):
    """(curve, row): real frames/s of train.py on the toy set's VAE. By processes of one thread
    each at its own size; by clips in a batch at the published width and depth."""
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    size = ["--vae.latent_dim=256", "--vae.ff_size=1024", "--vae.num_layers=9"]
    runs = [("Processes that train", f"train vae, {n} process(es), 64 clips in all", launcher, 64,
             10 if quick else 60, ["--train.threads=1"]) for n, launcher in ((1, []), (2, two))]
    runs += [("Clips in a training batch", f"train vae, width 256, 9 layers, batch {n}", [], n,
              10 if quick else max(10, 2048 // n), [] if quick else size)
             for n in ((4,) if quick else (16, 32, 64, 128, 256))]
    for curve, name, launcher, batch, steps, flags in runs:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, *launcher, "train.py", "--dataset", "toy", "--stage", "vae",
                       "--out", out, f"--train_vae.steps={steps}", "--train.sample_every=0",
                       f"--train.log_every={steps // 10}", f"--train_vae.batch_size={batch}",
                       "--train_vae.optimizer=adamw", *flags]
            subprocess.run(command, cwd=HERE, check=True, capture_output=True)
            log = read_log(os.path.join(out, "toy", "log.jsonl"))
        speeds = [entry["frames_per_s"] for entry in log if "frames_per_s" in entry][1:]
        yield curve, row(name, batch, {"ours": [1 / s for s in speeds]}, {"ours": 1})


def opening(path):
    """Seconds to open a pack, to its first batch and for each later one; MB that this takes."""
    before, start = status("RssAnon"), time.perf_counter()
    batches = data.Batches(packs.Pack.open(path), "train", 64, unit_length=4)
    opened = time.perf_counter() - start
    batches.batch(0, 0)
    first, steps = time.perf_counter() - start, min(100, len(batches))
    for step in range(1, steps):
        batches.batch(0, step)
    each = (time.perf_counter() - start - first) / max(1, steps - 1)
    return opened, first, each, status("RssAnon") - before


def datasets(quick):
    """(curve, row) by clips in a synthetic pack, each opened by a new process."""
    features = np.random.default_rng(0).standard_normal((CLIP_FRAMES, 263)).astype(np.float16)
    for count in (100, 1000) if quick else (1000, 10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            path, text = os.path.join(folder, "big.pack"), packs.Caption(prompts(1)[0])
            clips = (packs.Clip(f"{i:07}", [text], features=features) for i in range(count))
            packs.write_pack(path, clips, name="big", skeleton="t2m", fps=20.0)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                opened, first, each, mb = pool.apply(opening, (path,))
            yield "Clips in a dataset", row(
                f"pack of {count} clips", count, {"ours": [opened]}, gb=os.path.getsize(path) / 1e9,
                first_batch_s=first, batch_s=each, own_mb=mb)


def scale(args, speed, device):
    """Yields the rows, then writes docs/scaling.md."""
    curves = {}
    for curve, r in chain(sampling(args.quick, device, args.repeats), training(args.quick),
                          datasets(args.quick)):
        curves.setdefault(curve, []).append(r)
        yield r | {"curve": curve}
    if args.quick:
        return

    def cells(r):
        if "gb" in r:
            times = r["ours"][1], r["first_batch_s"], r["batch_s"]
            return [f"{r['batch']:,}", f"{r['gb']:.3f} GB", *(f"{1e3 * t:.2f} ms" for t in times),
                    f"{r['own_mb']:.0f} MB"]
        rate = r["unit"] == "frames/s"
        return [r["part"], r["batch"], spread(r, "ours") + " frames/s" * rate,
                "" if rate else f"{1e3 * r['ours'][1] / r['batch']:.1f} ms"]

    head = ["what", "motions or clips at once", "time or rate", "per motion"]
    packs = ["clips", "file", "open", "to the first batch of 64", "a further batch", "memory"]
    measured = [speed["machine"], speed["torch"], f"{speed['bytes_s'] / 1e9:.1f} GB/s",
                f"{speed['float32_flop_s'] / 1e9:.0f} GFLOP/s"]
    fill(os.path.join(HERE, "docs", "scaling.md"), {
        "How cost grows": markdown(["machine", "torch", "memory", "matrix products"], measured),
        **{curve: markdown(packs if "gb" in rows[0] else head, *map(cells, rows))
           for curve, rows in curves.items()}})
