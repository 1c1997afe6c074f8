"""How well edits do what they are asked: the tables of docs/editing.md.

    python -m dev.editing                         constraints taken from test clips, 34 of each kind
    python -m dev.editing --effort high --each 8
    python -m dev.editing --stories 12            joins of stories of three, and of loops
    python -m dev.editing --within 12             constraints within stories of three, 12 of each
                                                  kind, taken from the same story of another seed
    python -m dev.editing --ckpt FILE --pack FILE another model, and the clips of its dataset

A set of constraints comes from one test clip, whose caption is the prompt and whose length is the
length, so it can be met and agrees with the prompt. Pins are places of wrists, ankles, pelvis and
head at random times. Success is that of tests/kinematics.py, for the actions that it knows, and
where it knows none of the pack's, the action that the dataset's judge names.
"""
import argparse
import os
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import checkpoint
import edit
import guidance
import motion
import story
from formats import targets
from formats.pack import Pack
from judge import evaluators, metrics
from tests.kinematics import CHECKS, window

KINDS = ("1 pin", "2 pins", "5 pins", "20 pins", "first and last pose", "path")
PINNED = "pelvis head left_wrist right_wrist left_ankle right_ankle".split()


def constraints_from(clip, kind, rng, fps, pose):
    """Constraints of a kind that a clip (T, J, 3) meets."""
    if kind == "first and last pose":
        return [{"pose": clip, "frame": i, "time": i / fps} for i in (0, len(clip) - 1)]
    if kind == "path":
        turn = np.degrees(np.unwrap(targets.heading(clip, pose)))
        frames = np.unique([*range(0, len(clip), 10), len(clip) - 1])
        return [{"path": [[t / fps, *clip[t, 0, [0, 2]], turn[t]] for t in frames]}]
    count = int(kind.split()[0])
    places = rng.choice(len(clip) * len(PINNED), count, replace=False)
    return [{"joint": PINNED[k % len(PINNED)], "time": (k // len(PINNED)) / fps,
             "position": clip[k // len(PINNED), pose.joint_names.index(PINNED[k % len(PINNED)])]}
            for k in places.tolist()]


def checks_of(model, pack):
    """{action: whether joints (T, J, 3) do it}: by kinematics, or else by the dataset's judge."""
    if CHECKS.keys() & set(pack.actions):
        return CHECKS
    judge = evaluators.find(model.config, pack)

    @torch.no_grad()
    def named(joints):
        rows = torch.from_numpy(motion.joints_to_features(joints, motion.T2M))[None].float()
        logits = judge.embed(rows, torch.tensor([rows.shape[1]]))[1]
        return judge.actions[int(logits.argmax())]
    return {action: lambda joints, action=action: named(joints) == action
            for action in judge.actions}


def measure(model, pack, kind, each, effort, checks, seed=0, batch=8):
    """-> rows of {name: number}, one for each set of constraints"""
    rng, fps, (pose, bones) = np.random.default_rng(seed), pack.fps, guidance.body_of(model)
    items = pack.indices("test", 1, model.config.data.max_frames + 1)
    items = rng.permutation(items)[:each]
    toes, rows = [foot[1] for foot in motion.T2M.feet], []
    for start in range(0, len(items), batch):
        part = items[start:start + batch]
        # on the model's own body, whose bones are up to 4 mm longer or shorter than the toy set's
        clips = [motion.keep_bones(pack.joints(i).astype(float), bones, pose.parents) for i in part]
        texts = [pack.captions(i)[0].text for i in part]
        lengths = model.check_lengths([len(clip) for clip in clips])
        all_targets = [targets.targets_of(constraints_from(clip, kind, rng, fps, pose), len(clip),
                                          fps, pose, bones) for clip in clips]
        plain = guidance.sampled(model, texts, lengths, seed, None, effort, {})
        began = time.perf_counter()
        loss_of = edit.loss_on(all_targets, pose, fps, lengths.device)
        seeds = [seed + i for i in range(len(part))]
        if model.vae:
            seeds = guidance.best_seeds(model, texts, lengths, seeds, loss_of, effort, {})
        guided = guidance.sampled(model, texts, lengths, seeds, loss_of, effort, {})
        took = time.perf_counter() - began
        for i, t, clip, a, b in zip(part, all_targets, clips, plain, guided):
            began, n = time.perf_counter(), len(clip)
            c = edit.exact(t, b[:n], fps, pose, bones)
            row = {"seconds": took / len(part) + time.perf_counter() - began}
            ways = {"plain": motion.keep_bones(a[:n], bones, pose.parents), "guided": b[:n],
                    "exact": c, "real": targets.to_own(clip, t.place)}
            for name, joints in ways.items():
                world = targets.to_world(joints, t.place)
                row[f"{name} error"] = [x["error"] for x in targets.report(t, world, fps, pose)]
                row[f"{name} jerk"] = metrics.jerk(joints, fps)
                row[f"{name} skating"] = metrics.foot_skating(joints, toes, fps)
                if pack.action(i) in checks:
                    row[f"{name} success"] = bool(checks[pack.action(i)](joints))
            rows.append(row)
    return rows


def line(kind, rows):
    """A row of Markdown."""
    def mean(key):  # without clips of which no foot ever stands
        found = [row[key] for row in rows if key in row]
        return np.mean([x for x in found if "skating" not in key or not np.isnan(x)])

    def errors(name):
        found = 100 * np.concatenate([row[f"{name} error"] for row in rows])
        return f"{found.mean():.2f} ({np.quantile(found, 0.95):.2f})"
    cells = [kind, len(rows), errors("plain"), errors("guided"), errors("exact")]
    cells.append(" / ".join(f"{100 * mean(f'{name} success'):.0f}" for name in ("plain", "exact")))
    for what in ("skating", "jerk"):
        real = mean(f"real {what}")
        cells.append(" / ".join(f"{mean(f'{name} {what}') / real:.2f}"
                                for name in ("plain", "guided", "exact")))
    return " | ".join(["", *map(str, cells), f"{mean('seconds'):.2f}", ""]).strip()


HEAD = """\
| constraints | sets | error cm: none | guided | exact | success %: none / exact | \
skating / real: none / guided / exact | jerk / real: none / guided / exact | s each |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


# --------------------------------------------------------------------------------------------------
# Stories


PROMPTS = {"a man walks forward": "walk", "a person walks and turns left": "walk and turn left",
           "he turns right": "turn right", "a person jumps": "jump", "she bows": "bow",
           "someone waves with the left hand": "wave left hand", "a man runs": "run",
           "a person squats": "squat", "he kicks": "kick", "a man sits down": "sit"}
LOOPED = ("a man walks forward", "a man runs")


def prompts_of(pack, checks, most, frames=100):
    """{prompt: (its action, how long it lasts, or None: as long as you like)}: PROMPTS, or captions
    of test clips of checked actions, of `frames` to `most`, where the pack has other actions."""
    if set(PROMPTS.values()) <= set(pack.actions):
        return {prompt: (action, None) for prompt, action in PROMPTS.items()}
    clips = [i for i in pack.indices("test", frames, most + 1)
             if pack.action(i) in checks and pack.captions(i)]
    return {pack.captions(i)[0].text: (pack.action(i), int(pack.lengths[i])) for i in clips}


def jerks(joints, fps):
    """(T - 3,) metres a second cubed, averaged over joints."""
    return np.linalg.norm(np.diff(joints, 3, axis=0), axis=-1).mean(1) * fps**3


def joins(model, count, effort, prompts, checks, fps=20):
    """-> jerk in the 30 frames around joins, and elsewhere, of `count` stories of three; the same
    for loops, whose join is between two rounds; whether segments do what was asked, in a story and
    alone."""
    rng, near, inside, seam, rest = np.random.default_rng(0), [], [], [], []
    together, alone = [], []
    for k in range(count):
        texts = rng.choice(list(prompts), 3, replace=False).tolist()
        lengths = [prompts[text][1] or 60 for text in texts]
        whole, at = story.story(model, texts, lengths=lengths, seed=100 * k, effort=effort)
        free = guidance.sampled(model, texts, model.check_lengths(lengths), 100 * k, None, effort,
                                {})
        edges = [0, *at, len(whole)]
        for text, a, b, joints, n in zip(texts, edges, edges[1:], free, lengths):
            together.append(bool(checks[prompts[text][0]](window(whole, a, b))))
            alone.append(bool(checks[prompts[text][0]](joints[:n])))
        values = jerks(whole, fps)
        close = np.zeros(len(values), bool)
        for join in at:
            close[join - 16:join + 14] = True
        near.append(values[close].mean())
        inside.append(values[~close].mean())
    for k in range(count):
        prompt = LOOPED[k % 2]
        loop, _ = story.story(model, [prompt], lengths=[60], seed=k, loop=True, effort=effort)
        ahead = 2 * loop[-1:] - loop[-2:-1]
        again = targets.to_world(loop, story.align(loop[:1], ahead))
        values = jerks(np.concatenate([loop, again]), fps)
        seam.append(values[len(loop) - 16:len(loop) + 14].mean())
        rest.append(values[:len(loop) - 16].mean())
    return [np.array(x) for x in (near, inside, seam, rest, together, alone)]


def within(model, kind, count, effort, fps=20):
    """-> rows as `measure`'s, for constraints of a kind within stories of three; "real" is the
    story that they come from."""
    rng, (pose, bones), rows = np.random.default_rng(2), guidance.body_of(model), []
    toes = [foot[1] for foot in motion.T2M.feet]
    for k in range(count):
        texts = rng.choice(list(PROMPTS), 3, replace=False).tolist()
        how = {"texts": texts, "lengths": [60] * 3}
        source, at = story.story(model, **how, seed=100 * k + 50)
        asks = constraints_from(source, kind, rng, fps, pose)
        how |= {"seed": 100 * k}
        began = time.perf_counter()
        guided, _ = edit.edit_story(model, **how, constraints=asks, effort=effort, exactly=False)
        t = targets.targets_of(asks, len(guided), fps, pose, bones)
        made = edit.exact(t, targets.to_own(guided, t.place), fps, pose, bones)
        row = {"seconds": time.perf_counter() - began}
        plain = targets.to_world(story.story(model, **how, effort=effort)[0], t.place)
        ways = {"plain": plain, "guided": guided, "exact": targets.to_world(made, t.place),
                "real": source}
        edges = [0, *at, len(source)]
        for name, joints in ways.items():
            row[f"{name} error"] = [x["error"] for x in targets.report(t, joints, fps, pose)]
            row[f"{name} jerk"] = metrics.jerk(joints, fps)
            row[f"{name} skating"] = metrics.foot_skating(joints, toes, fps)
            row[f"{name} success"] = np.mean([
                bool(CHECKS[PROMPTS[text]](window(joints, a, b)))
                for text, a, b in zip(texts, edges, edges[1:])])
        rows.append(row)
    return rows


def windows_fid(model, pack, stories, prompts, span=60):
    """FID, by the judge of the pack's dataset, of windows of `span` frames against as many of test
    clips of the same actions: across the joins of stories of three prompts (5 s each, or their
    clips' time), and in the middle of their first two segments; how many windows; and the FID of
    as many other windows of test clips.
    """
    config, rng = model.config, np.random.default_rng(1)
    judge = evaluators.find(config, pack, device=model.mean.device)
    across, inside = [], []
    for k in range(stories):
        texts = rng.choice(list(prompts), 3, replace=False).tolist()
        lengths = [prompts[text][1] or 100 for text in texts]
        whole, at = story.story(model, texts, lengths=lengths, seed=100 * k)
        edges = [0, *at, len(whole)]
        across += [whole[join - span // 2:join + span // 2] for join in at]
        inside += [whole[(a + b - span) // 2:][:span] for a, b in zip(edges[:2], edges[1:])]
    known = [i for i in pack.indices("test", span + 1, 10_000)
             if pack.action(i) in {action for action, _ in prompts.values()}]
    real = []
    while len(real) < 2 * len(across):
        clip = pack.joints(int(rng.choice(known))).astype(float)
        start = rng.integers(len(clip) - span + 1)
        real.append(clip[start:start + span])

    def rows(windows):
        features = torch.from_numpy(np.stack([motion.joints_to_features(w, motion.T2M)
                                              for w in windows]))
        lengths = torch.full((len(windows),), features.shape[1])
        with torch.no_grad():
            device = model.mean.device
            return judge.embed(features.float().to(device), lengths.to(device))[0].cpu().numpy()

    ours, others = rows(real[::2]), rows(real[1::2])
    return [metrics.fid(rows(x), ours) for x in (across, inside)] + [
        len(across), metrics.fid(others, ours)]


def main(argv):
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--ckpt", default="checkpoints/toy.pt")
    parser.add_argument("--pack", default="data/toy/toy.pack")
    parser.add_argument("--effort", choices=guidance.EFFORTS,
                        help="otherwise normal, and low for stories, as sample.py has it")
    parser.add_argument("--each", type=int, default=34, help="sets of constraints of each kind")
    parser.add_argument("--stories", type=int, default=0, help="only stories and loops, so many")
    parser.add_argument("--within", type=int, default=0,
                        help="only constraints within stories, so many of each kind")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = checkpoint.load_model(args.ckpt)
    pack = Pack(args.pack)
    checks = checks_of(model, pack)
    prompts = prompts_of(pack, checks, model.config.data.max_frames)
    if args.stories:
        near, inside, seam, rest, together, alone = joins(
            model, args.stories, args.effort or "low", prompts, checks)
        print(f"stories: jerk {near.mean():.1f} m/s3 around joins, {inside.mean():.1f} elsewhere, "
              f"ratio {near.mean() / inside.mean():.2f}")
        print(f"loops: jerk {seam.mean():.1f} m/s3 around joins, {rest.mean():.1f} elsewhere, "
              f"ratio {seam.mean() / rest.mean():.2f}")
        across, middle, count, own = windows_fid(model, pack, args.stories, prompts)
        print(f"FID of {count} windows across joins {across:.2f}, within segments {middle:.2f}, of "
              f"test clips {own:.2f}")
        print(f"segments that do what was asked: {100 * together.mean():.0f}% in stories, "
              f"{100 * alone.mean():.0f}% alone, of {len(alone)}")
        return
    effort = args.effort or "normal"
    print(HEAD)
    for kind in KINDS:
        rows = within(model, kind, args.within, effort) if args.within else \
            measure(model, pack, kind, args.each, effort, checks)
        print(line(kind, rows), flush=True)


if __name__ == "__main__":
    from flags import program

    program(main)
