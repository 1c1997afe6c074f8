"""Does a user get what was typed? 725 everyday prompts, sampled and judged by plain kinematics.

    python tests/everyday.py                            the weights that ship, open part, 6 seeds
    python tests/everyday.py --ckpt out/x/model.pt --seeds 20 --held --out everyday.json
    python tests/everyday.py --validate                 the detectors on real clips: see recall.py
    python tests/everyday.py --validate PACK [LABELS.csv]
    python tests/everyday.py --judge FILE --pack PACK [--labels LABELS.csv]
                                                        captions of a pack's actions, named by a
                                                        judge of train.py --stage evaluator

The prompts are in everyday.txt. Its held part is for the end only: whoever trains, or chooses
between weights, looks at the open one. A prompt is read as sample.py reads it; one that is refused,
in reach or out of it, counts as told, and one in reach that is refused fails with all its samples.
"""
import argparse
import contextlib
import io
import json
import os
import sys
from typing import NamedTuple

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import checkpoint  # noqa: E402
import motion  # noqa: E402
import recall  # noqa: E402
import sample  # noqa: E402
import story  # noqa: E402
from detectors import shift  # noqa: E402

LENGTHS = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
PROMPTS = os.path.join(ROOT, "tests", "everyday.txt")
SHIPPED = os.path.join(ROOT, "checkpoints", "toy.pt")
TOY = os.path.join(ROOT, "data", "toy", "toy.pack")
GROUPS = "single", "count", "side", "manner", "sequence"
TOGETHER = 128  # motions in a batch


class Ask(NamedTuple):
    part: str  # open or held
    group: str  # of GROUPS, or out: out of reach
    call: str  # the detector, as recall.detector reads it
    prompt: str


def read(held=False, path=PROMPTS):
    """The open prompts, or all of them."""
    asked = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("#") or not line.strip():
                continue
            part, group, call, prompt = line.rstrip("\n").split("\t")
            quoted = len(prompt) > 1 and prompt[0] == prompt[-1] == "'"
            asked.append(Ask(part, group, call, prompt[1:-1] if quoted else prompt))
    return [ask for ask in asked if held or ask.part == "open"]


# --------------------------------------------------------------------------------------------------
# Sampling, as sample.py does


def understood(model, prompt):
    """(the texts that the model reads, a tuple: several are made one after the other, or None for a
    prompt that sample.py refuses; what sample.py says of words that it does not know)"""
    args, said = sample.arguments(["--", prompt]), io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parts, = sample.as_read(model, sample.read_prompts(args))
        except ValueError as error:
            return None, str(error)
    notes = [line for line in said.getvalue().splitlines() if not line.startswith("Made one")]
    return tuple(parts), "\n".join(notes)


def generate(model, texts, seeds, progress=False):
    """Joints (T, 22, 3) in float64 of each text (or tuple of them) with each seed, text by text, as
    sample.py writes them: [[joints of seed 0, ...] of text 0, ...]. Their lengths are those that
    the model draws."""
    asked = [((text,) if isinstance(text, str) else text, 1234 + seed)
             for text in texts for seed in range(seeds)]
    frames = [[model.draw_lengths(parts, seed=[seed])[0]] if len(parts) == 1
              else story.lengths_of(model, parts, seed) for parts, seed in asked]
    order, made = np.argsort([sum(one) for one in frames], kind="stable"), [None] * len(asked)
    for start in range(0, len(order), TOGETHER):
        rows = order[start:start + TOGETHER].tolist()
        joints = story.scenes(model, *zip(*((asked[i][0], frames[i], asked[i][1]) for i in rows)))
        for i, j in zip(rows, joints):
            made[i] = motion.keep_bones(j.astype(np.float64), LENGTHS, motion.T2M.parents)
        if progress and sys.stderr.isatty():
            print(f"\r{start + len(rows)} of {len(order)} motions", end="", file=sys.stderr)
    return [made[i:i + seeds] for i in range(0, len(made), seeds)]


# --------------------------------------------------------------------------------------------------
# Judging


def judge(model, asked, seeds=6, progress=False):
    """[{"part", "group", "call", "prompt", "read", "said", "share", "samples"}] for the prompts:
    what sample.py reads and says, and, in reach, which samples do what was asked, and their
    share."""
    detectors = [None if ask.group == "out" else recall.detector(ask.call) for ask in asked]
    plain = sorted({d.plain for d in detectors if isinstance(d, shift)})
    found = [understood(model, ask.prompt) for ask in asked]
    texts = sorted({text for (text, _), d in zip(found, detectors) if text and d} | {
        understood(model, text)[0] or (text,) for text in plain})
    made = dict(zip(texts, generate(model, texts, seeds, progress)))
    rows = []
    for ask, detector, (text, said) in zip(asked, detectors, found):
        row = ask._asdict() | {"read": text and ", then ".join(text), "said": said}
        if detector is not None:
            if isinstance(detector, shift):
                base = made[understood(model, detector.plain)[0] or (detector.plain,)]
                detector.middle = float(np.median([detector.quantity(j) for j in base]))
            done = [bool(detector(j)) for j in made[text]] if text else [False] * seeds
            row |= {"samples": done, "share": float(np.mean(done))}
        rows.append(row)
    return rows


def shares(rows):
    """{group: share of samples that do what was asked}, "all" over the prompts in reach, "told" the
    share of prompts out of reach where something was said, "warned" the same in reach."""
    found = {group: np.mean([row["share"] for row in rows if row["group"] == group])
             for group in GROUPS if any(row["group"] == group for row in rows)}
    inside = [row for row in rows if row["group"] != "out"]
    outside = [row for row in rows if row["group"] == "out"]
    found["all"] = np.mean([row["share"] for row in inside])
    found["told"] = np.mean([bool(row["said"]) for row in outside])
    found["warned"] = np.mean([bool(row["said"]) for row in inside])
    return {name: float(share) for name, share in found.items()}


def table(rows):
    """Lines of text: shares by group, then the open prompts that fail, the worst first. Which of
    the held ones fail is not said, as who reads it would learn from them."""
    share = shares(rows)
    yield f"{'group':10s}{'prompts':>8s}{'samples':>9s}{'all seeds':>11s}"
    for group in (*GROUPS, "all"):
        part = [row for row in rows if row["group"] != "out" and group in (row["group"], "all")]
        if part:
            whole = sum(row["share"] == 1 for row in part)
            yield f"{group:10s}{len(part):8d}{share[group]:9.1%}{whole:6d} of {len(part)}"
    yield (f"out of reach, and told: {share['told']:.1%}; "
           f"in reach, and warned: {share['warned']:.1%}")
    parts = {row["part"] for row in rows}
    for part in sorted(parts) * (len(parts) > 1):
        found = shares([row for row in rows if row["part"] == part]).items()
        yield f"{part}: " + ", ".join(f"{group} {x:.1%}" for group, x in found)
    rows = [row for row in rows if row["part"] == "open"]
    for row in sorted(rows, key=lambda row: row.get("share", 2)):
        if row.get("share", 1) < 1:
            yield f"  {row['share']:4.0%}  {row['group']:9s}{row['prompt']}    [{row['call']}]"
    for row in rows:
        if row["group"] == "out" and not row["said"]:
            yield f"  nothing said: {row['prompt']!r}"


def named_by_judge(model, judge_path, pack_path, seeds=6, labels=None):
    """Which action a judge of motion sees in samples of an action's captions.

    judge_path: an evaluator of train.py, trained on a pack with these actions; labels: {id: action}
    where the pack has none. Each action is sampled with `seeds` captions of its clips, test clips
    first. Returns {action: (share of the samples named right, the same of the real clips of these
    captions)} for the actions that the judge knows; "all" is the mean over the samples."""
    from formats.pack import Pack
    from judge.evaluators import load_own

    pack = Pack.open(pack_path)
    network = load_own(model.config, pack, judge_path).eval()
    order = [i for split in ("test", "val", "train") for i in pack.indices(split)]
    clips = {}
    for i in order:
        name = labels.get(pack.ids[i], "") if labels else pack.action(i)
        if name in network.actions and pack.captions(i):
            clips.setdefault(name, []).append(i)
    if not clips:
        raise ValueError(f"{judge_path} knows none of the actions of {pack_path}; train it on that "
                         "set, with its action labels.")
    rows = [(name, group[k % len(group)], k // len(group))
            for name, group in sorted(clips.items()) for k in range(seeds)]
    texts = [pack.captions(i)[k % len(pack.captions(i))].text for _, i, k in rows]
    lengths = model.draw_lengths(texts, seed=0)
    features, _ = model.generate(texts, lengths=lengths, seed=0)

    @torch.inference_mode()
    def name_of(features):
        _, logits = network.embed(features[None].float(), torch.tensor([len(features)]))
        return network.actions[int(logits.argmax())]

    right = [(name, name_of(f[:n]) == name,
              name_of(torch.from_numpy(np.array(pack.features(i)))) == name)
             for (name, i, _), f, n in zip(rows, features, lengths)]
    found = {name: tuple(float(np.mean([r[k] for r in right if r[0] == name])) for k in (1, 2))
             for name in clips}
    return found | {"all": tuple(float(np.mean([r[k] for r in right])) for k in (1, 2))}


# --------------------------------------------------------------------------------------------------


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", default=SHIPPED)
    add("--seeds", type=int, default=6)
    add("--held", action="store_true", help="the held part, too: for the end")
    add("--out", help="JSON file for all answers")
    add("--validate", nargs="*", metavar="FILE", help="a pack, and id,label lines for it")
    add("--judge", metavar="FILE")
    add("--pack", default=TOY)
    add("--labels", metavar="CSV")
    return parser.parse_args(argv)


def main(argv):
    args = arguments(argv)
    if args.validate is not None:
        path, labels, *_ = [*args.validate, None, None]
        recall.report(recall.clips_of(path or TOY, recall.read_labels(labels) if labels else None))
        return
    model = checkpoint.load_model(args.ckpt)
    if args.judge:
        labels = recall.read_labels(args.labels) if args.labels else None
        print("action: samples named right, real clips named right")
        found = named_by_judge(model, args.judge, args.pack, args.seeds, labels)
        for name, (made, real) in found.items():
            print(f"  {name:24s}{made:7.1%}{real:7.1%}")
        return
    rows = judge(model, read(args.held), args.seeds, progress=True)
    print("\n".join(table(rows)))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"checkpoint": args.ckpt, "seeds": args.seeds, "shares": shares(rows),
                       "prompts": rows}, file, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    from flags import program

    program(main)
