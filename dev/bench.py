"""How fast nanoMLD is beside the same networks written as the published code is (baseline.py): the
same random weights at the published sizes, CLIP ViT-L/14's text tower, 9 layers, 196 frames, 50
steps, prompts of 10 tokens.

    python -m dev.bench                             every part, medians [lowest..highest]
    python -m dev.bench text sentence --batches 1,16
    python -m dev.bench --compile                   also with a compiled denoiser
    python -m dev.bench ladder --batches 1          from the baseline to ours, step by step
    python -m dev.bench kernels                     on a GPU: Triton beside torch's own (gpu.py)
    python -m dev.bench scaling                     how cost grows; writes docs/scaling.md
    python -m dev.bench --json                      the same numbers for machines
    python -m dev.bench --quick                     tiny networks, only to see that it runs

Both sides take turns. The floor is what the work takes at the machine's own measured speed: the
larger of bytes of weights / bandwidth and flops / rate of matrix products. Peak is the memory above
what was held before, ours / the baseline's. The numbers mean nothing on a machine that is busy.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from config import HERE
from dev.baseline import (RUNGS, Sides, climb, prompts, random_clips, trainer, training_lengths,
                          vae_step_loss)
from dev.measure import fast_bf16, floor, line, machine, peak_mb, row, seconds, spent, take_turns
from dev.scaling import scale
from run import keep_freed_memory
from stages import Remembered
from vae import reparameterize

PARTS = ("text", "denoise", "decode", "sentence", "steps", "train", "start")


def versus(part, batch, ours, baseline, repeats, **more):
    return row(part, batch, take_turns({"ours": ours, "baseline": baseline}, repeats), **more)


def sampling_rows(sides, speed, args):
    """text, denoise, decode, sentence, steps."""
    m, b, no_grad, parts = sides.model, sides.baseline, torch.no_grad(), set(args.parts)
    for B in args.batches:
        texts, x_T, lengths, floors = prompts(B), sides.noise(B), sides.lengths(B), {}
        with no_grad:
            text = m.text_encoder(texts)
            both = torch.cat((sides.empty.expand(B, -1, -1), text))

        def sentence(side=sides, **settings):
            return lambda: side.sentence(texts, x_T, **settings)

        runs = {  # ours, the baseline, the network whose weights are read, and how often
            "text": (lambda: m.condition.encode(m, texts, B), lambda: b.text([""] * B + texts),
                     m.text_encoder.tower.transformer, 1),
            "denoise": (lambda: sides.denoise(text, x_T), lambda: b.denoise(both, x_T),
                        m.denoiser.encoder, 50),
            "decode": (lambda: m.decode_latent(x_T, lengths), lambda: b.decode(x_T, lengths),
                       m.vae.decoder, 1),
            "sentence": (sentence(), lambda: b.sentence(texts, lengths, x_T), None, 0)}
        baseline = {part: no_grad(run[1]) for part, run in runs.items()}
        for part, (ours, _, net, times) in runs.items():
            floors[part] = floor(speed, ours, net, times) if net else sum(floors.values())
            if part in parts:
                more = {} if sides.device.type == "cuda" else {"spent": spent(ours)}
                more["peak_mb"] = {"ours": peak_mb(ours), "baseline": peak_mb(baseline[part])}
                yield versus(part, B, ours, baseline[part], args.repeats, floor=floors[part],
                             **more)
        variants = {}  # of a sentence
        if args.compile and {"denoise", "sentence"} & parts:
            other = sides.compiled()
            first = seconds(lambda: other.denoise(text, x_T))
            yield versus("denoise, compiled", B, lambda: other.denoise(text, x_T),
                         baseline["denoise"], args.repeats, floor=floors["denoise"],
                         compile_s=first)
            variants["compiled"] = sentence(other)
        if "sentence" in parts:
            for precision in ("int8", "bf16")[:1 + (args.quick or fast_bf16(speed))]:
                low = Sides(args.quick, sides.device, baseline=False)
                low.model.to_precision(precision)
                variants[f"{precision} weights"] = sentence(low)
        for n in (20, 10) if "steps" in parts else ():
            variants[f"dpm++ {n} steps"] = sentence(sampler="dpm++", num_inference_steps=n)
        for name, ours in variants.items():
            yield versus(f"sentence, {name}", B, ours, baseline["sentence"], args.repeats)


def training_rows(device, speed, args):
    """A step of each stage. Ours draws batches sorted by length, the baseline as they come."""
    batch, repeats = 4 if args.quick else 64, min(3, args.repeats)
    order = dict(zip(("ours", "baseline"), training_lengths(batch, args.quick, device)))
    order = {name: lengths[:repeats + 1] for name, lengths in order.items()}
    texts = prompts(batch)

    def measure(part, dtype, ours, theirs, per_clip=False):
        """A VAE step's time goes with its frames, a diffusion step's with its clips."""
        bf16 = dtype == "bfloat16"
        steps = {"ours": trainer(*ours, bf16), "baseline": trainer(*theirs, bf16, whole=False)}
        times, frames, peaks = {"ours": [], "baseline": []}, {}, {}
        for i in range(repeats + 1):
            for name, step in steps.items():
                inputs = random_clips(order[name][i])
                keep_freed_memory(name == "ours")
                step(*inputs)  # so that its memory is there, as in a run of this side alone
                size = len(inputs[1]) if per_clip else int(inputs[1].sum())
                times[name].append(seconds(lambda: step(*inputs)) / size)
        least = sum(floor(speed, lambda: steps["ours"](*random_clips(n)), None, 0, dtype)
                    for n in order["ours"][1:])
        inputs = random_clips(order["baseline"][0])
        for name, step in steps.items():
            peaks[name] = peak_mb(lambda: step(*inputs))
            del times[name][0]
            frames[name] = torch.cat(order[name][1:]).double().mean().item() if per_clip else 1
        rate = sum(int(n.sum()) for n in order["ours"][1:]) / least
        return row(part, batch, times, frames, floor=rate, peak_mb=peaks)

    for dtype in ("float32", "bfloat16")[:1 + (args.quick or fast_bf16(speed))]:
        for dropout in (0.1, 0.0):
            sides = Sides(args.quick, device)
            m, b = sides.model, sides.baseline
            sides.set_dropout(dropout)
            kind = "the same dropout" if dropout else "ours without dropout"
            yield measure(f"train vae, {dtype}, {kind}", dtype,
                          (m.vae, partial(vae_step_loss, m)), (b.vae, b.vae_loss))
        sides = Sides(args.quick, device)
        m, b, c = sides.model, sides.baseline, sides.model.config.vae
        posteriors = torch.randn(2, batch, c.latent_size, c.latent_dim, device=device)
        m.text_encoder = Remembered(m.text_encoder)

        def diffusion(features, n):  # as in train.py, clips and prompts were encoded once
            z = reparameterize(*posteriors)[:len(n)]
            return m.diffusion_loss(z, texts=texts[:len(n)])["loss"]

        def published(features, n):
            return b.diffusion_loss(features, n, texts[:len(n)])

        yield measure(f"train diffusion, {dtype}, cached latents", dtype, (m.denoiser, diffusion),
                      (b.denoiser, published), per_clip=True)


def start_rows(args):
    """From the start of a process to its end: importing torch, and all of sample.py."""
    with tempfile.TemporaryDirectory() as folder:
        for name, words in (("import torch", ["-c", "import torch"]), (
                "sample.py", ["sample.py", *prompts(1), "--seconds", "4", "--out", folder])):
            def run():
                subprocess.run([sys.executable, *words], cwd=HERE, check=True, capture_output=True)
            yield row("start, " + name, 1, take_turns({"ours": run}, args.repeats))


def ladder_rows(sides, args):
    for B in args.batches:
        texts, x_T = prompts(B), sides.noise(B)
        runs = {name: lambda rung=rung: climb(sides, rung, texts, x_T)
                for rung, name in enumerate(RUNGS)}
        if args.compile:
            other = sides.compiled()
            runs["torch.compile of the denoiser"] = lambda: other.sentence(texts, x_T)
        times = take_turns(runs, args.repeats)
        for name in runs:
            yield row(name, B, {"ours": times[name], "baseline": times[RUNGS[0]]})


def rows_of(args, speed, device):
    if args.parts == ["scaling"]:
        yield from scale(args, speed, device)
        return
    sides = Sides(args.quick, device)
    if args.parts == ["ladder"]:
        yield from ladder_rows(sides, args)
    else:
        yield from sampling_rows(sides, speed, args)
    yield from training_rows(device, speed, args) if "train" in args.parts else ()
    yield from start_rows(args) if "start" in args.parts else ()


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("parts", nargs="*", help=f"of {', '.join(PARTS)} (all); or one of ladder, kernels, scaling")
    add("--batches", help="numbers of motions, comma-separated (1,16,64)")
    add("--repeats", type=int, help="counted rounds (5)")
    add("--compile", action="store_true", help="also with a compiled denoiser")
    add("--quick", action="store_true", help="tiny networks, one round")
    add("--json", action="store_true", help="one JSON object instead of the table")
    args, device = parser.parse_args(argv), "cuda" if torch.cuda.is_available() else "cpu"
    args.parts = args.parts or list(PARTS)
    if set(args.parts) - set(PARTS) and args.parts not in (["ladder"], ["kernels"], ["scaling"]):
        parser.error(f"parts are {', '.join(PARTS)}; ladder, kernels and scaling stand alone; "
                     f"got {' '.join(args.parts)}.")
    if args.parts == ["kernels"]:
        if device == "cpu":
            sys.exit("bench.py kernels needs a GPU, and torch sees none here: Triton kernels do "
                     "not run on a CPU.")
        from dev import gpu
        with tempfile.TemporaryDirectory() as folder:
            gpu.RESULTS = os.path.join(folder, "results.jsonl")
            return gpu.main(["kernels"]) or gpu.main(["table"])
    args.batches = args.batches or ("1,2" if args.quick else "1,16,64")
    args.batches = [int(n) for n in args.batches.split(",")]
    args.repeats = args.repeats or (1 if args.quick else 5)
    speed, rows = machine(device, args.quick), []
    if not args.json:
        slow = "" if args.quick or fast_bf16(speed) else ", so its rows are left out"
        print(f"{speed['machine']}, torch {speed['torch']}, load {speed['load']:.1f}; "
              f"memory {speed['bytes_s'] / 1e9:.1f} GB/s, matrix products "
              f"{speed['float32_flop_s'] / 1e9:.0f} GFLOP/s in float32, "
              f"{speed['bfloat16_flop_s'] / 1e9:.3g} in bfloat16{slow}")
        print(f"{'part':44} {'batch':>7} {'ours: median [range]':30} "
              f"{'baseline: median [range]':30} baseline / ours")
    for r in rows_of(args, speed, device):
        rows.append(r)
        if not args.json:
            print(line(r), flush=True)
    if args.json:
        print(json.dumps({"machine": speed, "rows": rows}))


if __name__ == "__main__":
    from flags import program

    program(main)
