"""How cost grows with the work, and a plan for many GPUs: `python -m dev.bench scaling` measures, writes docs/scaling.md.

Curves: motions at once, frames, layers, latent tokens, processes that train, clips in their batch and in a dataset (a synthetic pack).
--quick takes tiny sizes and writes nothing; --json prints the rows.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

import data
from dev.baseline import Sides, prompts
from config import HERE
from dev.measure import row, take_turns
from formats.pack import Caption, Clip, write_pack

FRAMES, CLIP_FRAMES = 142, 4  # of HumanML3D's mean clip; of a synthetic one, so that a million of them fit on a disk
OPEN = """
import os, sys, time, numpy as np, data
from formats.pack import Pack
def resident(key):
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) / 1e3 for l in file if l.startswith(key))
before, start = resident("RssAnon"), time.perf_counter()
pack = Pack.open(sys.argv[1])
opened, batches = time.perf_counter() - start, data.Batches(pack, "train", 64, unit_length=4)
batches.batch(0, 0)
first = time.perf_counter() - start
for step in range(1, min(100, len(batches))):
    batches.batch(0, step)
rest = (time.perf_counter() - start - first) / max(1, min(100, len(batches)) - 1)
print(opened, first, rest, resident("RssAnon") - before)
"""


def sampling_rows(quick, device, repeats):
    """(title, rows) of each curve; every point is ours alone."""
    sides = Sides(quick, device)

    def point(name, batch, run):
        return row(name, batch, take_turns({"ours": run}, repeats))

    rows = []
    for n in (1, 2) if quick else (1, 4, 16, 64, 256, 1024):
        rows.append(point("sentence", n, lambda n=n: sides.sentence(prompts(n), sides.noise(n))))
    yield "Motions at once", rows
    z, rows = sides.noise(16), []
    for frames in (8, 24) if quick else (40, 80, 120, 160, 196):
        lengths = torch.full((16,), frames, device=device)
        rows.append(point(f"decode, {frames} frames", 16, lambda n=lengths: sides.model.decode_latent(z, n)))
    yield "Frames", rows
    for title, key, values in (("Layers", "num_layers", (3, 5) if quick else (5, 9, 13, 17)),
                               ("Latent tokens", "latent_size", (1, 2) if quick else (1, 2, 4, 7, 10))):
        rows = []
        for value in values:
            some = Sides(quick, device, **{key: value}, baseline=False)
            text, x_T, lengths = some.model.text_encoder(prompts(16)), some.noise(16), some.lengths(16)
            rows += [point(f"denoise, {title.lower()} {value}", 16, lambda: some.denoise(text, x_T)),
                     point(f"decode, {title.lower()} {value}", 16, lambda: some.model.decode_latent(x_T, lengths))]
        yield title, rows


def training_rows(quick):
    """(title, rows): real frames/s of train.py on the toy set's VAE, by processes of one thread each; with the published width and depth, by batch."""
    size = [] if quick else ["--vae.latent_dim=256", "--vae.ff_size=1024", "--vae.num_layers=9"]
    runs = {"Processes that train": [(f"train vae, {n} process(es), 64 clips in all", n, 64, 10 if quick else 60, ["--train.threads=1"]) for n in (1, 2)],
            "Clips in a training batch": [(f"train vae, width 256, 9 layers, batch {n}", 1, n, 10 if quick else max(10, 2048 // n), size)
                                          for n in ((4,) if quick else (16, 32, 64, 128, 256))]}
    for title, some in runs.items():
        rows = []
        for name, processes, batch, steps, flags in some:
            with tempfile.TemporaryDirectory() as out:
                launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
                command = [*launcher, "train.py", "--dataset", "toy", "--stage", "vae", "--out", out, "--name", "scaling",
                           f"--train.log_every={steps // 10}", f"--train_vae.steps={steps}", "--train.sample_every=0",
                           f"--train_vae.batch_size={batch}", "--train_vae.optimizer=adamw", *flags]
                subprocess.run([sys.executable, *command], cwd=HERE, check=True, capture_output=True)
                with open(os.path.join(out, "scaling", "log.jsonl"), encoding="utf-8") as file:
                    speeds = [entry["frames_per_s"] for entry in map(json.loads, file) if "frames_per_s" in entry][1:]
            rows.append(row(name, batch, {"ours": [1 / s for s in speeds]}, {"ours": 1}))
        yield title, rows


def dataset_rows(quick):
    """Packs of more and more clips: seconds to open, to the first batch, per batch; memory of its own that it takes."""
    rows, features = [], np.random.default_rng(0).standard_normal((CLIP_FRAMES, 263)).astype(np.float16)
    for count in (100, 1000) if quick else (1000, 10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            path, text = os.path.join(folder, "big.pack"), prompts(1)
            clips = (Clip(f"{i:07}", [Caption(text[0])], features=features) for i in range(count))
            write_pack(path, clips, name="big", skeleton="t2m", fps=20.0)
            size = os.path.getsize(path)
            command = [sys.executable, "-c", OPEN, path]
            out = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout
        opened, first, rest, own = map(float, out.split())
        rows.append({"part": f"pack of {count} clips", "batch": count, "gb": size / 1e9, "open_s": opened,
                     "first_batch_s": first, "batch_s": rest, "own_mb": own})
    return rows


def plan(sides, gpus, batch=64, rate=150e12, link=20e9):
    """Arithmetic, nothing measured: a step of each stage on `gpus` GPUs with `batch` clips each, at `rate` flop/s in
    bf16 and `link` bytes/s of all-reduce per GPU, which two thirds of the step (the backward pass) may hide."""
    found = {}
    for name, net, tokens in (("vae", sides.model.vae, FRAMES), ("diffusion", sides.model.denoiser, 3)):
        size = sum(p.numel() for p in net.parameters())
        compute = 6 * size * tokens * batch / rate
        volume = 2 * (gpus - 1) / gpus * 4 * size  # ring all-reduce of float32 gradients, bytes per GPU
        exposed = max(0.0, volume / link - 2 / 3 * compute)
        read = gpus * batch * FRAMES * 263 * 4 if name == "vae" else 0
        found[name] = {"batch": batch * gpus, "compute_ms": 1e3 * compute, "volume_mb": volume / 1e6,
                       "link_ms": 1e3 * volume / link, "efficiency": compute / (compute + exposed),
                       "data_mb_s": read / (compute + exposed) / 1e6}
    return found


def document(curves, packs, plans, speed):
    """docs/scaling.md"""
    text = ["# How cost grows", "",
            f"Written by `python -m dev.bench scaling` on {speed['machine']}, torch {speed['torch']}:",
            f"memory {speed['bytes_s'] / 1e9:.1f} GB/s, matrix products {speed['float32_flop_s'] / 1e9:.0f} GFLOP/s.",
            "Published sizes, random weights (training: the toy set's VAE, without dropout, at its own size or as said); medians [lowest..highest].",
            "Everything up to the plan is measured."]
    for title, rows in curves:
        text += ["", f"## {title}", "", "| what | motions or clips at once | time or rate | per motion |", "| --- | --- | --- | --- |"]
        for r in rows:
            low, middle, high = r["ours"]
            if r["unit"] == "frames/s":
                text += [f"| {r['part']} | {r['batch']} | {middle:.0f} frames/s [{low:.0f}..{high:.0f}] | |"]
            else:
                each = f"{1e3 * middle / r['batch']:.1f} ms"
                text += [f"| {r['part']} | {r['batch']} | {middle:.3f} s [{low:.3f}..{high:.3f}] | {each} |"]
    text += ["", "## Clips in a dataset", "",
             f"Synthetic packs, clips of {CLIP_FRAMES} frames; memory: what the process holds of its own, without the",
             "pages of the mapped file. (train.py and eval.py also compare the index with its checksum when they start.)", "",
             "| clips | file | open | to the first batch of 64 | a further batch | memory |",
             "| --- | --- | --- | --- | --- | --- |"]
    text += [f"| {p['batch']:,} | {p['gb']:.3f} GB | {1e3 * p['open_s']:.1f} ms | {1e3 * p['first_batch_s']:.1f} ms | "
             f"{1e3 * p['batch_s']:.2f} ms | {p['own_mb']:.0f} MB |" for p in packs]
    text += ["", "## A plan for many GPUs", "",
             "Arithmetic from the networks' sizes; nothing in this table was measured. 64 clips of 142 frames per GPU",
             "and step, 6 flops per parameter and token, 150 TFLOP/s reached in bf16, all-reduce at 20 GB/s per GPU",
             "(NVLink in a node is ten times that, Ethernet between nodes a tenth); the backward pass, two thirds of the compute, hides as",
             "much of it as it lasts. Efficiency: compute / (compute + what is not hidden). Features: of all GPUs together.",
             "",
             "| GPUs | stage | clips a step | compute | all-reduce, each GPU | its time | efficiency | features read |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for gpus, stages in plans.items():
        text += [f"| {gpus} | {name} | {s['batch']:,} | {s['compute_ms']:.2f} ms | {s['volume_mb']:.0f} MB | "
                 f"{s['link_ms']:.2f} ms | "
                 f"{s['efficiency']:.0%} | {s['data_mb_s']:,.0f} MB/s |" for name, s in stages.items()]
    text += ["", "- Learning rate: AdamW, with the square root of the batch, from 2e-4 at 64 clips: 5.7e-4 at 512,",
             "  1.6e-3 at 4,096, with a warm-up of as many clips as before. Fewer steps as the batch grows, by val.",
             "- Features are read from a memory-mapped pack by every process; HumanML3D (4 GB) fits in the page cache.",
             "- The diffusion stage reads latents that were encoded once, a few kB per clip: it never waits for data.",
             "  Its step is so short that launches set the pace: one GPU with a larger batch beats many.",
             "- Efficiency falls first where a step is short: raise the batch per GPU before the number of GPUs."]
    return "\n".join(text) + "\n"


def scale(args, speed, device):
    """Measure, print, and write docs/scaling.md; returns the rows."""
    curves = list(sampling_rows(args.quick, device, args.repeats))
    curves += training_rows(args.quick)
    packs = dataset_rows(args.quick)
    sides = Sides(args.quick, device, baseline=False)
    text = document(curves, packs, {gpus: plan(sides, gpus) for gpus in (8, 64)}, speed)
    if not args.quick:
        with open(os.path.join(HERE, "docs", "scaling.md"), "w", encoding="utf-8") as file:
            file.write(text)
    if not args.json:
        print(text)
    return [r for _, rows in curves for r in rows] + packs
