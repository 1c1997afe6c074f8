"""How fast nanoMLD is, beside the same networks written as the published code is (baseline.py), with the same random
weights, at the published sizes: CLIP ViT-L/14's text tower, 9 layers, 196 frames, 50 steps, prompts of 10 tokens.

    python -m dev.bench                        every part: medians [lowest..highest] of both sides, which take turns
    python -m dev.bench text sentence --batches 1,16     parts: text denoise decode sentence steps train data start
    python -m dev.bench --compile              beside them ours with a compiled denoiser, and how long compiling takes
    python -m dev.bench ladder --batches 1     from the baseline to ours, one speed-up after another
    python -m dev.bench kernels                on a GPU: Triton, torch's own, the baseline; bytes/s, flop/s; CUDA graphs
    python -m dev.bench scaling                how cost grows with the work; writes docs/scaling.md
    python -m dev.bench --json                 the same numbers for machines;   --quick: tiny networks, to see that it runs

Floor: what the work takes at the machine's own measured speed, the larger of bytes of weights / bandwidth and flops /
rate of matrix products. Peak: memory above what was held before, of ours / of the baseline. The prompts differ, but all
have 10 tokens. Run it on an idle machine: otherwise its numbers mean nothing.
"""
import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from itertools import count
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

import checkpoint
import data
import kernels
from config import parse_args
from dev.baseline import RUNGS, Sides, climb, draw_lengths, prompts
from clip import WordEncoder
from config import HERE
from kernels import backend
from dev.measure import fast_bf16, floor, line, machine, peak_mb, row, seconds, spent, spent_line, take_turns
from mld import MLD
from dev.scaling import scale
from formats import pack as packs
from stages import Remembered
from train import keep_freed_memory
from transformer import zero_padding
from vae import reparameterize, vae_loss

PARTS = ("text", "denoise", "decode", "sentence", "steps", "train", "data", "start")

# ----------------------------------------------------------------------------------------------------------------------
# The parts


def sampling_rows(sides, speed, parts, batches, repeats, compile_too):
    """text, denoise, decode, sentence, steps."""
    m, b = sides.model, sides.baseline
    for B in batches:
        texts, x_T, lengths = prompts(B), sides.noise(B), sides.lengths(B)
        with torch.no_grad():
            text = m.text_encoder(texts)
            both = torch.cat((sides.empty.expand(B, -1, -1), text))
        no_grad, floors = torch.no_grad(), {}
        runs = {
            "text": (lambda: m.conditions(texts, None, B), no_grad(lambda: b.text([""] * B + texts)),
                     [m.text_encoder.tower.transformer], 1),
            "denoise": (lambda: sides.denoise(text, x_T), no_grad(lambda: b.denoise(both, x_T)),
                        [m.denoiser.encoder], 50),
            "decode": (lambda: m.decode_latent(x_T, lengths), no_grad(lambda: b.decode(x_T, lengths)),
                       [m.vae.decoder], 1),
            "sentence": (lambda: sides.sentence(texts, x_T), lambda: b.sentence(texts, lengths, x_T), [], 0)}
        for part, (ours, theirs, weights, times) in runs.items():
            floors[part] = floor(speed, ours, weights, times) if weights else sum(floors.values())
            if part not in parts:
                continue
            extra = {} if sides.device.type == "cuda" else {"spent": spent(ours)}
            yield row(part, B, take_turns({"ours": ours, "baseline": theirs}, repeats), floor=floors[part],
                      peak_mb={"ours": peak_mb(ours), "baseline": peak_mb(theirs)}, **extra)
        if compile_too and {"denoise", "sentence"} & set(parts):
            other = sides.compiled()
            first = seconds(lambda: other.denoise(text, x_T))
            for part, ours in (("denoise", lambda: other.denoise(text, x_T)),
                               ("sentence", lambda: other.sentence(texts, x_T))):
                yield row(part + ", compiled", B, take_turns({"ours": ours, "baseline": runs[part][1]}, repeats),
                          floor=floors[part], compile_s=first)
        if "sentence" in parts:
            for precision in ("int8", "bf16")[:1 + (sides.quick or fast_bf16(speed))]:
                low = Sides(sides.quick, sides.device, baseline=False)
                low.model.to_precision(precision)
                ours = lambda: low.sentence(texts, x_T)  # noqa: E731
                times = take_turns({"ours": ours, "baseline": runs["sentence"][1]}, repeats)
                yield row(f"sentence, {precision} weights", B, times)
        for n in (20, 10) if "steps" in parts else ():
            ours = lambda: sides.sentence(texts, x_T, sampler="dpm++", num_inference_steps=n)  # noqa: E731
            times = take_turns({"ours": ours, "baseline": runs["sentence"][1]}, repeats)
            yield row(f"sentence, dpm++ {n} steps", B, times)


def training_rows(sides, speed, repeats, batch=64):
    """A step of each stage. Ours draws batches sorted by length; the baseline's come as they are."""
    lengths, width, texts = draw_lengths(16 * batch, sides.frames), 263, prompts(batch)
    order = {"ours": lengths.sort()[0].split(batch), "baseline": lengths.split(batch)}
    order["ours"] = [order["ours"][i] for i in (13, 2, 8, 14, 5, 11)]  # the first is not counted
    order = {name: [part.to(sides.device) for part in parts] for name, parts in order.items()}

    def batch_of(n):
        return zero_padding(torch.randn(len(n), int(n.max()), width, device=sides.device), n), n

    def trainer(net, loss_of, autocast, ours):
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        average = [p.detach().clone() for p in net.parameters()] if ours else None

        def step(features, n):
            with torch.autocast(sides.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
                loss = loss_of(features, n)
            loss.backward()
            if ours:  # as train.py does
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if ours:
                torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 0.001)
        return step

    def measure(part, dtype, steps, each="frame"):
        """A step's time goes with its frames, or with its clips."""
        queues = {name: iter(2 * order[name]) for name in steps}
        times, lengths = {name: [] for name in steps}, {name: [] for name in steps}
        for i in range(repeats + 1):
            for name, step in steps.items():
                features, n = batch_of(next(queues[name]))
                keep_freed_memory(name == "ours")
                step(features, n)  # so that its memory is there as in a run of this side alone
                t = seconds(lambda: step(features, n))
                if i:
                    times[name].append(t / (int(n.sum()) if each == "frame" else len(n)))
                    lengths[name].append(n)
        least = sum(floor(speed, lambda: steps["ours"](*batch_of(n)), [], 0, dtype) for n in lengths["ours"])
        frames = {name: torch.cat(some).double() for name, some in lengths.items()}
        features, n = batch_of(order["baseline"][0])
        peaks = {name: peak_mb(lambda: step(features, n)) for name, step in steps.items()}
        scale = {name: 1 if each == "frame" else frames[name].mean().item() for name in steps}  # frames in what a time is of
        return row(part, batch, times, scale, floor=frames["ours"].sum().item() / least, peak_mb=peaks)

    for dtype in ("float32", "bfloat16")[:1 + (sides.quick or fast_bf16(speed))]:
        for dropout in (0.1, 0.0):
            both = Sides(sides.quick, sides.device)
            m, c = both.model, both.model.config
            for layer in (x for x in m.vae.modules() if hasattr(x, "dropout")):
                layer.dropout = dropout

            def ours(features, n):
                mu, logvar = m.vae.encode(features, n)
                recon = m.vae.decode(reparameterize(mu, logvar), n, features.shape[1])
                return vae_loss(features, recon, mu, logvar, n, c.vae, m.to_joints)["loss"]
            steps = {"ours": trainer(m.vae, ours, dtype != "float32", True),
                     "baseline": trainer(both.baseline.vae, both.baseline.vae_loss, dtype != "float32", False)}
            kind = "the same dropout" if dropout else "ours without dropout"
            yield measure(f"train vae, {dtype}, {kind}", dtype, steps)
        both = Sides(sides.quick, sides.device)
        m, shape = both.model, (batch, both.model.config.vae.latent_size, both.model.config.vae.latent_dim)
        posteriors = [torch.randn(shape, device=sides.device) for _ in range(2)]
        m.text_encoder = Remembered(m.text_encoder)

        def ours(features, n):  # as train.py does: clips and prompts were encoded once
            return m.diffusion_loss(reparameterize(*posteriors)[:len(n)], texts=texts[:len(n)])["loss"]

        def theirs(features, n):
            return both.baseline.diffusion_loss(features, n, texts[:len(n)])
        steps = {"ours": trainer(m.denoiser, ours, dtype != "float32", True),
                 "baseline": trainer(both.baseline.denoiser, theirs, dtype != "float32", False)}
        yield measure(f"train diffusion, {dtype}, cached latents", dtype, steps, each="clip")


def data_rows(quick, repeats):
    """Opening a dataset, and an epoch of batches: our pack beside a file per clip, all read when training starts."""
    with tempfile.TemporaryDirectory() as folder:
        rng, lengths = np.random.default_rng(0), draw_lengths(48 if quick else 1024, 24 if quick else 196).tolist()
        clips = [packs.Clip(f"{i:06}", [packs.Caption(text, text)], features=rng.standard_normal((n, 263), np.float32))
                 for i, (n, text) in enumerate(zip(lengths, prompts(len(lengths))))]
        path = os.path.join(folder, "bench.pack")
        packs.write_pack(path, clips, name="bench", skeleton="t2m", fps=20.0)
        for clip in clips:
            np.save(os.path.join(folder, clip.id), clip.features)
            with open(os.path.join(folder, clip.id + ".txt"), "w", encoding="utf-8") as file:
                file.write(f"{clip.captions[0].text}#{clip.captions[0].tokens}#0.0#0.0")

        def read():
            files = {}
            for clip in clips:
                with open(os.path.join(folder, clip.id + ".txt"), encoding="utf-8") as file:
                    files[clip.id] = np.load(os.path.join(folder, clip.id + ".npy")), file.read().split("#")
            return files
        files, pack = read(), packs.Pack.open(path)
        batches = data.Batches(pack, "train", min(64, len(clips)), unit_length=4)

        def epoch():
            order = list(files)
            random.shuffle(order)
            for start in range(0, len(order), 64):
                items = [torch.from_numpy((files[i][0] - pack.mean) / pack.std) for i in order[start:start + 64]]
                batch = torch.zeros(len(items), max(map(len, items)), 263)
                for out, item in zip(batch, items):
                    out[:len(item)] = item
        times = take_turns({"ours": lambda: packs.Pack.open(path), "baseline": read}, repeats)
        yield row("data, opening", len(clips), times)
        epochs = count(1)
        times = take_turns({"ours": lambda: list(batches.epoch(next(epochs))), "baseline": epoch}, repeats)
        own = sum(b["global_frames"] for b in batches.epoch(0))  # crops are drawn anew, their sum differs by a percent at most
        yield row("data, batches", len(clips), times, {"ours": own, "baseline": sum(lengths)})


def start_rows(repeats):
    """From the start of a process to its end: importing torch; sample.py with the weights that ship, or random ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(HERE, "checkpoints", "toy.pt")
        if not os.path.exists(path):
            config, path = parse_args(["--dataset", "toy"])[0], os.path.join(folder, "random.pt")
            encoder = WordEncoder(config.text, sorted(set(" ".join(prompts(1024)).split())))
            checkpoint.save(path, config, MLD(config, encoder).state_dict(), vocabulary=encoder.vocabulary, actions=[])
        command = ["sample.py", *prompts(1), "--ckpt", path, "--seconds", "4", "--out", folder]
        for name, words in (("import torch", ["-c", "import torch"]), ("sample.py", command)):
            def ours(words=words):
                subprocess.run([sys.executable, *words], cwd=HERE, check=True, stdout=subprocess.DEVNULL)
            yield row("start, " + name, 1, take_turns({"ours": ours}, repeats))


def ladder_rows(sides, batches, repeats, compile_too):
    for B in batches:
        texts, x_T = prompts(B), sides.noise(B)
        runs = {name: lambda rung=rung: climb(sides, rung, texts, x_T) for rung, name in enumerate(RUNGS)}
        if compile_too:
            other = sides.compiled()
            runs["torch.compile of the denoiser"] = lambda: other.sentence(texts, x_T)
        times = take_turns(runs, repeats)
        for name in runs:
            yield row(name, B, {"ours": times[name], "baseline": times[RUNGS[0]]})


# ----------------------------------------------------------------------------------------------------------------------
# The kernels, on a GPU


def kernel_rows(speed, sides, batches, repeats):
    """Each operation at HumanML3D's training size: Triton ("ours"), torch's own ("torch"), unfused ("baseline", where
    that differs); then denoising a sentence in plain torch, with the kernels, and with its step as a CUDA graph."""
    B, H, L, D, R, C = 64, 4, 198, 64, 64 * 198, 256
    for dtype in (torch.bfloat16, torch.float32):
        def rand(*shape):
            return torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
        (q, k, v), x, y, w = (rand(B, H, L, D) for _ in range(3)), rand(R, C), rand(R, C), rand(4 * C, C)
        weight, bias = rand(C), rand(4 * C)
        size, b = x.numel(), x.element_size()
        operations = {  # name: flops and bytes of the forward pass, then its three forms
            "attention": (4 * B * H * L * L * D, 4 * size * b, lambda: kernels.attention(q, k, v),
                          lambda: F.scaled_dot_product_attention(q, k, v), lambda: (q @ k.mT / D**0.5).softmax(-1) @ v),
            "add_layer_norm": (8 * size, 3 * size * b, lambda: kernels.add_layer_norm(x, y, weight, weight),
                               lambda: F.layer_norm(x + y, (C,), weight, weight), None),
            "linear_gelu": (8 * size * C, (5 * size + w.numel()) * b, lambda: kernels.linear_gelu(x, w, bias),
                            lambda: F.gelu(F.linear(x, w, bias)), None)}
        for name, (flops, moved, *forms) in operations.items():
            for direction in ("forward", "forward and backward"):
                def timed(form):
                    if direction == "forward":
                        with torch.no_grad():
                            return form()
                    form().sum().backward()
                modes = {side: form for side, form in zip(("ours", "torch", "baseline"), forms) if form}
                runs = {side: lambda form=form: [timed(form) for _ in range(20)] for side, form in modes.items()}
                with mock.patch.object(backend, "MODE", "triton"):
                    times = {side: [t / 20 for t in all_] for side, all_ in take_turns(runs, repeats).items()}
                best = min(times["ours"])
                used = {}
                if direction == "forward":
                    used = {"of_flop_s": flops / best / speed[f"{dtype}"[6:] + "_flop_s"],
                            "of_bytes_s": moved / best / speed["bytes_s"]}
                yield row(f"{name}, {dtype}, {direction}", B, {"baseline": times["torch"], **times}, **used)
    for batch in batches:
        x_T, text = sides.noise(batch), sides.model.text_encoder(prompts(batch))
        both = torch.cat((sides.empty.expand(batch, -1, -1), text))

        def denoise(mode, graph):
            with mock.patch.object(backend, "MODE", mode), mock.patch.dict(os.environ, {"MLD_GRAPH": graph}):
                sides.denoise(text, x_T)
        runs = {f"{mode}, graph {graph}": lambda m=mode, g=graph: denoise(m, g)
                for mode in ("torch", "triton") for graph in "01"}
        theirs = torch.no_grad()(lambda: sides.baseline.denoise(both, x_T))
        times = take_turns({"baseline": theirs, **runs}, repeats)
        for name in runs:
            yield row("denoise, " + name, batch, {"ours": times[name], "baseline": times["baseline"]})


# ----------------------------------------------------------------------------------------------------------------------
# The program


def rows_of(args, speed, device):
    sides = Sides(args.quick, device)
    if args.parts == ["ladder"]:
        yield from ladder_rows(sides, args.batches, args.repeats, args.compile)
    elif args.parts == ["kernels"]:
        yield from kernel_rows(speed, sides, args.batches, args.repeats)
    else:
        yield from sampling_rows(sides, speed, args.parts, args.batches, args.repeats, args.compile)
        if "train" in args.parts:
            yield from training_rows(sides, speed, min(3, args.repeats), 4 if args.quick else 64)
        yield from data_rows(args.quick, args.repeats) if "data" in args.parts else ()
        yield from start_rows(args.repeats) if "start" in args.parts else ()
        if torch.cuda.is_available() and args.parts == list(PARTS):
            yield from kernel_rows(speed, sides, args.batches, args.repeats)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all); or one of ladder, kernels, scaling")
    parser.add_argument("--batches", help="numbers of motions, comma-separated (1,16,64)")
    parser.add_argument("--repeats", type=int, help="counted rounds (5)")
    parser.add_argument("--compile", action="store_true", help="also with a compiled denoiser")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args(argv)
    args.parts = args.parts or list(PARTS)
    if set(args.parts) - set(PARTS) and args.parts not in (["ladder"], ["kernels"], ["scaling"]):
        parser.error(f"parts are {', '.join(PARTS)}; ladder, kernels, scaling stand alone; got {' '.join(args.parts)}.")
    if args.parts == ["kernels"] and not torch.cuda.is_available():
        sys.exit("bench.py kernels needs a GPU, and torch sees none here: the Triton kernels do not run on a CPU.")
    args.batches = [int(n) for n in (args.batches or ("1,2" if args.quick else "1,16,64")).split(",")]
    args.repeats = args.repeats or (1 if args.quick else 5)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    speed, rows = machine(device, args.quick), []
    if not args.json and args.parts != ["scaling"]:
        print(f"{speed['machine']}, torch {speed['torch']}, load {speed['load']:.1f}; "
              f"memory {speed['bytes_s'] / 1e9:.1f} GB/s, "
              f"matrix products {speed['float32_flop_s'] / 1e9:.0f} GFLOP/s in float32, "
              f"{speed['bfloat16_flop_s'] / 1e9:.3g} in bfloat16{'' if args.quick or fast_bf16(speed) else ', whose rows are left out'}")
        print(f"{'part':52} {'batch':>5} {'ours: median [range]':32} {'baseline: median [range]':32} baseline / ours")
    for r in scale(args, speed, device) if args.parts == ["scaling"] else rows_of(args, speed, device):
        rows.append(r)
        if not args.json and args.parts != ["scaling"]:
            print(line(r), *([spent_line(r)] if "spent" in r else []), sep="\n", flush=True)
    if args.json:
        print(json.dumps({"machine": speed, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
