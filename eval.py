"""Measure a model: the field's table with 95% intervals, on screen, in eval.json and in eval.html.

    python eval.py --ckpt out/toy/model.pt                       T2M's protocol: 20 replications
    python eval.py --ckpt out/toy/model.pt --eval.replications=3 --eval.mm_texts=20      quicker
    python eval.py --ckpt out/toy/model.pt --diffusion.guidance_scale=4 --diffusion.sampler=ddpm
    python eval.py --ckpt humanml3d                              published weights, fetched once
    python eval.py --ckpt deps/mld --assets.clip_path=deps/clip-vit-large-patch14      and by hand
    torchrun --standalone --nproc_per_node=2 eval.py --ckpt out/toy/model.pt
                                                                 the same numbers, sooner

The judge is the dataset's published evaluator where its files are (judge/published.py says where),
and otherwise our own, which `python train.py --dataset NAME --stage evaluator` trains; --evaluator
FILE names one. With the published judge of HumanML3D or KIT, real motion must score as published
before a model is measured; --no-gate goes on nevertheless. judge/protocol.py says what is measured.
"""
import argparse
import html
import json
import os
import platform
import re
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
import data
from config import SAMPLING, Config, set_value, to_dict, validate
from files import atomic_write, check_place
from flags import read_assets
from judge import evaluators
from judge.own import OwnJudge
from judge.protocol import MODEL, REAL, RECONSTRUCTION, Evaluation, evaluate
from view import report

SHARP = " Hz", "kinematic FID"  # what sharpness.py compares with real motion
PHYSICAL = " mm", " cm/s", " m/s3"  # the units of what is measured on joints, without the judge
MEASURES = {  # what each number is, and what good looks like
    "R@1": "Share of texts whose own motion is the nearest among {group}, by the judge's "
           "embeddings. Higher is better; real motion sets the mark.",
    "R@2": "The same, among the two nearest.",
    "R@3": "The same, among the three nearest.",
    "MM-Dist": "Mean distance of a motion from its text. Lower is better; real motion sets the "
               "mark.",
    "FID": "Distance between the distributions of these motions and of real ones. Lower is better; "
           "two crops of the same real clips are as near as it gets.",
    "Diversity": "Mean distance between motions of different clips. Best is the value of real "
                 "motion: lower means that motions are too much alike.",
    "MultiModality": "Mean distance between motions for the same {condition}. Higher means more "
                     "variety, and is good only as long as the other numbers are.",
    "accuracy": "Share of motions whose action the judge recognises. Higher is better, up to the "
                "value of real motion.",
    "jerk m/s3": "How abruptly joints change their acceleration. Best is the value of real motion: "
                 "more is shaking, less is over-smoothed.",
    "skating cm/s": "How fast feet slide while they are on the floor. Lower is better, down to the "
                    "value of real motion.",
    "penetration mm": "How far the lowest joint is below the floor. Lower is better, down to the "
                      "value of real motion.",
    "bone drift mm": "How much bones change their length. Lower is better; real bones do not "
                     "change, and a millimetre or two cannot be seen.",
    "mpjpe mm": "Distance of reconstructed joints from the true ones, seen from the pelvis. Lower "
                "is better; a few centimetres are hard to see.",
    "pampjpe mm": "The same after the best rotation, scale and shift of each frame.",
    "global mm": "The same where the joints are, errors of the path included.",
    "accel mm": "Error of the joints' acceleration, per frame squared. Lower is better.",
    "kinematic FID": "Distance between the distributions of how fast, suddenly and jerkily each "
                     "joint moves, in percent of real motion's variance. Lower is better; what "
                     "looks as if under water has 30 or more.",
}
BANDS = {  # the same for what is measured in each band of frequencies
    "power": "How strongly joints move at these frequencies, as a share of real motion. Best is 1: "
             "more is trembling, less is over-smoothed.",
    "coherence": "How much of the movement at these frequencies is the clip's own, and not made "
                 "up: 1 is all of it. Higher is better.",
}
CURVES = {  # what follows the row's name: the picture's title, and what good looks like
    "": ("Distance from what was asked", "One value for each clip, sorted. Good motions lie on the "
                                         "line of real ones, or below."),
    "/jerk m/s3": ("Jerk, m/s3", "Good motions lie on the line of real ones: higher is shaking, "
                                 "lower is over-smoothed."),
    "/skating cm/s": ("Foot skating, cm/s", "Good motions lie on the line of real ones, or below."),
    "/mpjpe mm": ("Reconstruction error (MPJPE), mm", "Good is low for nearly all clips; a steep "
                                                      "end means that the VAE fails on a few."),
}


# --------------------------------------------------------------------------------------------------
# Speed and size


def sizes(model, given):
    """{part: {"parameters", "GFLOPs"}} for one motion of the longest length.

    given: one text, action number or None, in a list. The denoiser's GFLOPs are those of all steps.
    """
    def gflops(call, *args, **named):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            call(*args, **named)
        return counter.get_total_flops() / 1e9

    condition, steps = model.condition, model.config.diffusion.num_inference_steps
    asked = {condition.keyword: given} if condition.keyword else {}
    asked |= {"lengths": [model.config.data.max_frames], "num_inference_steps": 1, "seed": 0}
    encode = gflops(condition.encode, model, given, 1)
    latent, whole = (gflops(model.generate, latents=stop, **asked) for stop in (True, False))
    found = {"text encoder": (model.text_encoder, encode),
             "denoiser": (model.denoiser, steps * (latent - encode)),
             "VAE (GFLOPs: decoder)": (model.vae, whole - latent)}
    return {part: {"parameters": sum(p.numel() for p in net.parameters()), "GFLOPs": count}
            for part, (net, count) in found.items() if net is not None}


def speed(run, rows):
    """AITS: mean seconds from one text (or action) to its motion at batch 1, encoding included."""
    seconds = []
    for k in [0] * 3 + list(range(min(20, len(rows["items"])))):  # three to warm up
        length, start = torch.from_numpy(rows["lengths"][k:k + 1]), time.perf_counter()
        run.generate([rows["texts"][k]], rows["labels"][k:k + 1], length, [k])
        if run.device.type != "cpu":
            torch.get_device_module(run.device).synchronize()
        seconds.append(time.perf_counter() - start)
    device = str(run.device)
    if run.device.type == "cpu":
        device = f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    elif run.device.type == "cuda":
        device = torch.cuda.get_device_name(run.device)
    return {"seconds": float(np.mean(seconds[3:])), "motions": len(seconds) - 3,
            "torch": torch.__version__, "device": device}


# --------------------------------------------------------------------------------------------------
# Output


def cell(value):
    """(mean, half interval or None), or None where there is no such number -> words."""
    if value is None:
        return "-"
    mean, half = value
    return f"{mean:.3f}" if half is None else f"{mean:.3f}+-{half:.3f}"


def grids(table):
    """The table as three lists of rows of words: what the judge says, what the joints say, and how
    sharp the motion is."""
    names = list(dict.fromkeys(key for row in table.values() for key in row))
    physical = [name for name in names if name.endswith(PHYSICAL)]
    sharp = [name for name in names if name.endswith(SHARP)]
    judged = [name for name in names if name not in physical + sharp]
    for columns in (judged, physical, sharp):
        yield [["", *columns]] + [[name, *(cell(row.get(column)) for column in columns)]
                                  for name, row in table.items()]


def part_grid(parts):
    rows = [[part, f"{n['parameters'] / 1e6:.2f} M", f"{n['GFLOPs']:.3g}"]
            for part, n in parts.items()]
    return [["", "parameters", "GFLOPs"]] + rows


def text_table(grid):
    wide = [max(map(len, column)) for column in zip(*grid)]
    return "\n".join("  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])])
                     for row in grid) + "\n"


def html_table(grid):
    head, *rows = [[html.escape(word).replace("+-", " ± ") for word in row] for row in grid]
    lines = ["".join(f"<th>{word}</th>" for word in head)]
    lines += ["".join(f"<td>{word}</td>" for word in row) for row in rows]
    return "<table><tr>" + "</tr><tr>".join(lines) + "</tr></table>"


def explained(run, grid):
    """The table with a measure in each row, and what it is and what good looks like beside it."""
    head, *rows = map(list, zip(*grid))
    for row in rows:
        part = row[0].removeprefix("accuracy ")
        words = MEASURES.get(row[0]) or BANDS.get(row[0].split()[0])
        words = words or f"The same for part {part} of the action's name."
        row.append(words.format(group=run.config.eval.group, condition=run.kind))
    style = "<style>td { white-space: nowrap } td:last-child { white-space: normal }</style>"
    return style + html_table([[*head, "what good looks like"], *rows])


def distances(run, name, rows):
    """How far each motion is from what was asked, (N,).

    That is the distance from its text; -log p of its action; or the distance from the nearest clip.
    """
    if run.kind == "text" and "text" in rows:
        return np.linalg.norm(rows["text"] - rows[name], axis=1)
    if run.kind == "action" and f"{name}/logp" in rows:
        return -rows[f"{name}/logp"][np.arange(len(rows["labels"])), rows["labels"]]
    return np.array([np.linalg.norm(rows["again"] - x, axis=1).min() for x in rows[name]])


def pictures(far, rows):
    """Curves over the clips of the first replication, each sorted, with a sentence under each."""
    for key, (title, words) in CURVES.items():
        found = {name: rows.get(name + key) if key else x for name, x in far.items()}
        found = {name: np.sort(x[np.isfinite(x)]).round(2)  # what is nearly zero is zero
                 for name, x in found.items() if x is not None}
        series = {name: list(enumerate(x.tolist(), 1)) for name, x in found.items() if len(x)}
        if series:
            picture = report.curve(title, series, unit="clips, sorted")
            yield f"<figure>{picture}<figcaption>{words}</figcaption></figure>"


def examples(run, rows, order):
    """[(joints, caption)]: the best, median and worst motion, each followed by its real clip."""
    for word, k in zip(("best", "median", "worst"), order[[0, len(order) // 2, -1]]):
        item, length = int(rows["items"][k]), torch.from_numpy(rows["lengths"][k:k + 1])
        text = [rows["texts"][k]]
        joints = run.generate(text, rows["labels"][k:k + 1], length, run.seeds(0, [item]))[3][0]
        asked = {"text": text[0], "action": run.pack.action(item), "none": "no condition"}
        yield joints.cpu().numpy(), f"{word}: {asked[run.kind]}"
        yield run.pack.joints(item)[:length], f"real: {run.pack.ids[item]}"


def write(run, folder, result, lines, rows):
    """eval.json, eval.html, and its examples in eval-examples.html."""
    names = [name for name in (REAL, RECONSTRUCTION, MODEL) if name in rows]
    far = {name: distances(run, name, rows) for name in names}
    shown = list(examples(run, rows, np.argsort(far[MODEL])))
    report.show_motions(os.path.join(folder, "eval-examples.html"), shown, run.config)
    judged, physical, sharp = (explained(run, grid) for grid in grids(result["rows"]))
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in lines).replace("+-", " ± ")
    body = (f"<ul>{notes}</ul><h2>What the judge says</h2>{judged}<h2>What the joints say</h2>"
            f"{physical}<h2>How sharp it is</h2>{sharp}<h2>Clip by clip</h2>"
            f'<div class="pictures">{"".join(pictures(far, rows))}</div>'
            "<h2>Best, median and worst, each beside its real clip</h2>"
            '<iframe src="eval-examples.html" loading="lazy"></iframe>'
            f"<h2>Size</h2>{html_table(part_grid(result['parts']))}")
    title = f"{result['checkpoint']} on {result['dataset']}"
    page = report.page(title, body, result["settings"])
    for name, text in (("eval.json", json.dumps(result, indent=1)), ("eval.html", page)):
        with atomic_write(os.path.join(folder, name), "w") as file:
            file.write(text)


# --------------------------------------------------------------------------------------------------
# The program


CHANGEABLE = "data.min_length", "data.max_length", "evaluator.kind", "train.out"


def settings(args, words):
    """The command line -> {"section.key": value}, and its AssetsConfig.

    ValueError for a setting that cannot be changed after training.
    """
    given, words = {"eval.device": args.device} if args.device else {}, list(words)
    given |= {"assets.offline": True} if args.offline else {}
    given |= read_assets(args.cfg_assets) if args.cfg_assets else {}
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"--\w+\.\w+", word.partition("=")[0]) or not (equals or words):
            raise ValueError(f"Unknown flag {word!r}; settings are given like "
                             "--eval.replications=3.")
        given[key] = value if equals else words.pop(0)
    trial = Config()
    for key, value in given.items():
        set_value(trial, key, value)
        section, name = key.split(".")
        samples = section == "diffusion" and name in SAMPLING
        if not (section in ("eval", "assets") or samples or key in CHANGEABLE):
            raise ValueError(f"--{key} was settled by training. What can be changed is in eval, in "
                             f"assets, and diffusion's {', '.join(SAMPLING)}.")
    return given, trial.assets


def check_actions(who, known, pack):
    if known and list(known) != list(pack.actions) and not known[0].isdigit():
        raise ValueError(f"The {who} knows other actions ({', '.join(known[:4])} ...) than "
                         f"{pack.path} has ({', '.join(pack.actions[:4])} ...); measure on the "
                         "dataset that it was trained on.")


def measure(args, words):
    start, (given, assets) = time.perf_counter(), settings(args, words)
    there = args.ckpt if os.path.exists(args.ckpt) else os.path.join("out", args.ckpt, "")  # a word
    folder = args.out or (there if os.path.isdir(there) else os.path.dirname(there))
    check_place(os.path.join(folder, "eval.json"))
    model = checkpoint.load_model(args.ckpt, assets)
    c = model.config
    for key, value in given.items():
        set_value(c, key, value)
    c.data.dataset = args.dataset or c.data.dataset
    validate(c)
    rank, world, local = checkpoint.processes()
    device = checkpoint.find_device(c.eval.device, local)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    pack = data.open_pack(c)
    judge = evaluators.find(c, pack, args.evaluator, device)
    if c.denoiser.condition == "action":
        check_actions("model", model.actions, pack)
    check_actions("evaluator", getattr(judge, "actions", []), pack)
    first, _ = model.condition.of_clip(pack, pack.indices(c.eval.split)[0])
    parts = sizes(model, first)  # on the CPU, where every operation can be counted
    model = model.to_precision(args.precision).to(device)
    run = Evaluation(model, judge, pack, device, rank, world)
    table, notes, rows = evaluate(run, not args.no_gate)
    if rank:
        return
    aits = speed(run, rows)
    own = " Its numbers compare with no published table." if isinstance(judge, OwnJudge) else ""
    lines = [f"Judge: {judge.title}.{own}", *notes,
             f"{c.eval.replications} replication(s) of {len(rows['items'])} clips of {pack.name}; "
             "mean+-95% interval.",
             f"AITS (seconds for one motion) {aits['seconds']:.4f} at batch 1, "
             f"{c.diffusion.num_inference_steps} steps, {args.precision}, on {aits['device']}."]
    print("\n".join([*map(text_table, grids(table)), *lines]))
    if args.verbose:
        print(text_table(part_grid(parts)))
    result = {"checkpoint": os.path.basename(os.path.normpath(args.ckpt)), "dataset": pack.name,
              "split": c.eval.split if c.eval.split in pack.splits else "train",
              "precision": args.precision, "judge": judge.title, "rows": table, "notes": notes,
              "aits": aits, "parts": parts,
              "settings": {key: value for key, value in to_dict(c).items() if key != "assets"}}
    write(run, folder, result, lines, rows)
    print(f"wrote {os.path.join(folder, 'eval.html')} and eval.json in "
          f"{time.perf_counter() - start:.0f} s")


def main(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", required=True,
        help="model.pt of train.py, published weights, or a word that sample.py --list knows")
    add("--offline", action="store_true", help="fetch nothing")
    add("--dataset", help="packed dataset to measure on; otherwise the model's own")
    add("--evaluator", help="evaluator_model.pt of train.py --stage evaluator")
    add("--out", help="folder for eval.json and eval.html; otherwise the checkpoint's")
    add("--precision", choices=("float32", "bf16", "int8"), default="float32",
        help="of the model's weights, as in sample.py")
    add("--device", help="cpu, cuda, mps; otherwise a GPU where there is one")
    add("--cfg_assets", help="file of `name = literal` lines: paths, or any eval.key")
    add("--no-gate", action="store_true",
        help="go on although real motion does not score as published")
    add("--verbose", action="store_true", help="print parameters and GFLOPs of each part as well")
    try:
        measure(*parser.parse_known_args(argv))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    from flags import program

    program(main)
