"""What a trained model is asked beyond a sentence: poses, paths, stories, loops, variations.

    motions, reports = edit(model, ["a man walks"], lengths=[80], constraints=[
        {"joint": "left_wrist", "time": 2, "position": [0.3, 1.4, 1.5]}])
    story(model, ["a man walks", "he turns left", "he sits down"], lengths=[60, 40, 60])

formats/constraints.py says what can be asked. A latent has no time axis, so nothing can be filled
in frame by frame. Four stages lead to the answer, the first three in guidance.py:

| stage   | what it changes               | how                                                   |
| ------- | ----------------------------- | ----------------------------------------------------- |
| tries   | the seed, with a VAE          | of 16 motions without constraints, the one nearest    |
| noise   | x_T, with effort "high" alone | gradient through a sampler of 5 steps and the decoder |
| guiding | each step's predicted x0      | gradient of the joints' error through the decoder     |
| exact   | joints                        | smoothest displacement, constant bones, limbs bent    |

Works with any condition, with and without a VAE. Inside, motions start at the origin and face +Z.
"""
import math
import os
import sys

import numpy as np
import torch

import motion
from conditions import pick
from diffusion import make_generators
from formats import pins, targets as targets_
from formats.constraints import last_time, read_clip, read_constraints
from formats.feet import eased, lock_feet, stands_of
from formats.rotations import fit_body
from guidance import best_seeds, body_of, bones_of, from_within, heading, sampled
from story import SHARED, align, interpolate, parts_of, story, stretched, vary

MET = 0.01  # metres; a constraint that is off by more is told

# --------------------------------------------------------------------------------------------------
# Constraints


def loss_on(all_targets, pose, fps, device):
    """B Targets -> a function of joints (B, T, J, 3) for `pulled`: squared metres, roughly."""
    def tensor(array):
        return torch.as_tensor(array, device=device, dtype=torch.float32)

    prepared = []
    for t in all_targets:
        way, facing = ~np.isnan(t.way[:, 0]), ~np.isnan(t.facing)
        kept = [(part, from_within(tensor(clip), pose)[:, part]) for _, part, clip in t.kept]
        frames, at, axes = (torch.as_tensor(a, device=device) for a in np.nonzero(t.pinned))
        prepared.append(((frames, at, axes), tensor(t.places[t.pinned]),
                         tensor(np.nan_to_num(t.way)), tensor(way), tensor(np.nan_to_num(t.facing)),
                         tensor(facing), kept, t))

    def loss_of(joints):
        losses = []
        for j, (where, places, way, on_way, facing, faces, kept, t) in zip(joints, prepared):
            n, loss = len(way), j.sum() * 0
            j = j[:n]
            if len(places):
                loss = loss + 3 * (j[where] - places).square().mean()
            if on_way.any():
                gap = (j[:, 0, ::2] - way).square().sum(-1)
                loss = loss + 0.1 * (gap * on_way).sum() / on_way.sum()
            if faces.any():
                away = 1 - (heading(j, pose) - facing).cos()
                loss = loss + 0.05 * (away * faces).sum() / faces.sum()
            for part, clip in kept:
                m = min(n, len(clip))
                gap = from_within(j[:m], pose)[:, part] - clip[:m]
                loss = loss + gap.square().sum(-1).mean()
            for joint, frame, speed in t.speeds:
                v = (j[frame + 1, joint] - j[frame - 1, joint]).norm() * fps / 2
                loss = loss + 0.01 * (v - speed).square() / len(t.speeds)
            if t.floor:
                loss = loss + j[..., 1].clamp(max=0).square().sum(-1).mean()
            losses.append(loss)
        own = torch.stack(losses)
        return own.sum(), own
    return loss_of


def exact(t, joints, fps, pose, lengths):
    """Targets and a sampled motion (T, J, 3), own frame -> the nearest one that meets them."""
    joints = motion.keep_bones(joints, lengths, pose.parents)
    stands = stands_of(joints, pose, fps)
    turns = ~np.isnan(t.facing)
    if turns.any():  # the whole body turns slowly towards where it should face
        gap = np.where(turns, t.facing - targets_.heading(joints, pose), 0.0)
        gap = np.arctan2(np.sin(gap), np.cos(gap))[:, None]
        slowly = pins.smoothest(gap, turns[:, None], stretch=0.0, weight=1e-4)
        pelvis = joints[:, :1]
        joints = pelvis + motion.turn_about_y(slowly, joints - pelvis)
    places, pinned = t.places.copy(), t.pinned.copy()
    for joint, frame, speed in t.speeds:  # two pins, half a step to each side
        ends = [frame - 1, frame + 1]
        if not pinned[ends, joint].any():
            a, b = joints[ends, joint]
            half = motion.unit_rows(b - a) * speed / fps
            places[ends, joint] = (a + b) / 2 - half, (a + b) / 2 + half
            pinned[ends, joint] = True
    # what is moved slides: feet that stood are held, and then the rest is made exact again
    for last in (False, True):
        for fork, part, clip in t.kept:
            joints = pins.keep_part(joints, fork, part, clip, pose)
        if t.floor:
            under = np.maximum(-joints[..., 1].min(1), 0)
            joints[..., 1] += (eased(under, fps) if under.any() else under)[:, None]
        joints = pins.meet(joints, places, pinned, lengths, pose, rounds=2)
        if not last and t.rows:
            joints = lock_feet(fit_body(joints, fps), fps, stands).joints
    return joints


def edit(model, texts=None, actions=None, *, constraints, lengths, seed=0, effort="normal",
         folder="", exactly=True, guidance_scale=None, sampler=None, num_inference_steps=None,
         progress=False, **others):
    """Motions as `model.generate` makes them, that meet constraints.

    constraints  list of dicts (formats/constraints.py), for all B motions; or a list of B lists
    lengths      B numbers of frames
    seed         as in generate: motion i is the same alone and in any batch
    effort       low, normal, or high, which searches for the noise first
    folder       where the files lie that constraints name
    exactly      False leaves out the last stage

    Returns B joints (T, J, 3), float64, in metres in the world's frame, and B reports: a dict of
    what, asked, reached and error (metres) for each constraint. ValueError in one sentence for
    constraints that are misspelled, out of time or reach, or contradict each other."""
    lengths = model.check_lengths(lengths)
    given = pick(model.condition, texts=texts, actions=actions, **others)
    (pose, bones), fps = body_of(model), model.config.data.fps
    several = len(constraints) and isinstance(constraints[0], (list, tuple))
    each = constraints if several else [constraints] * len(lengths)
    if len(each) != len(lengths):
        raise ValueError(f"Expected {len(lengths)} lists of constraints, found {len(each)}.")
    all_targets = [targets_.targets_of(one, n, fps, pose, bones, folder)
                   for one, n in zip(each, lengths.tolist())]
    loss_of = loss_on(all_targets, pose, fps, model.mean.device)
    settings = {"guidance_scale": guidance_scale, "sampler": sampler,
                "num_inference_steps": num_inference_steps}
    if model.vae and seed is not None and any(t.rows for t in all_targets):
        seeds = [g.initial_seed() for g in make_generators(seed, len(lengths))]
        seed = best_seeds(model, given, lengths, seeds, loss_of, effort, settings, progress)
    made = sampled(model, given, lengths, seed, loss_of, effort, settings, progress)
    motions, reports = [], []
    for t, joints, n in zip(all_targets, made, lengths.tolist()):
        joints, own_bones = joints[:n], bones_of(model, joints[:n])
        if exactly:
            joints = exact(t, joints, fps, pose, own_bones)
        motions.append(targets_.to_world(joints, t.place))
        reports.append(targets_.report(t, motions[-1], fps, pose))
    return motions, reports


def continued(model, clip, texts=None, actions=None, *, lengths, **settings):
    """Joints (n, J, 3) of a clip, and what comes next, B motions of as many frames more; B reports.
    settings as in `edit`."""
    fps, n = model.config.data.fps, min(SHARED, len(clip))
    poses = [{"pose": clip, "frame": len(clip) - n + i, "time": i / fps} for i in range(n)]
    made, reports = edit(model, texts, actions, constraints=poses,
                         lengths=[length + n for length in lengths], **settings)
    return [np.concatenate([clip[:len(clip) - n], joints]) for joints in made], reports


def on_story(t, pose, fps, device):
    """Targets of a whole story -> `pull` for story.story. Each segment is asked for what falls into
    its time, as seen from where it will lie: that is where the one before it has come to."""
    def pull(before, lengths):
        def loss_of(joints):
            last, start, each = before, 0 if before is None else len(before) - SHARED, []
            for j, n in zip(joints.detach().double().cpu().numpy(), lengths):
                place = (0.0, 0.0, 0.0) if last is None else align(j[:SHARED], last[-SHARED:])
                each.append(targets_.cut(t, start, start + n, place))
                last, start = targets_.to_world(j[:n], place), start + n - SHARED
            return loss_on(each, pose, fps, device)(joints)
        return loss_of
    return pull


def edit_story(model, texts=None, actions=None, *, constraints, lengths, effort="normal", folder="",
               exactly=True, **settings):
    """A story, as story.story makes it of S texts or actions and S lengths, that meets constraints.
    Their times count from the story's beginning. Settings as in `edit`.

    Returns joints (T, J, 3), float64, in metres in the world's frame, and a report as `edit`'s.
    ValueError as edit and story, and for a loop."""
    if settings.pop("loop", False):
        raise ValueError("A loop takes no constraints.")
    (pose, bones), fps = body_of(model), model.config.data.fps
    frames = sum(parts_of(model, model.check_lengths(lengths).tolist()))
    t = targets_.targets_of(constraints, frames, fps, pose, bones, folder)
    joints, _ = story(model, texts, actions, lengths=lengths, effort=effort,
                      pull=on_story(t, pose, fps, model.mean.device), **settings)
    if exactly:
        joints = exact(t, joints, fps, pose, bones_of(model, joints))
    joints = targets_.to_world(joints, t.place)
    return joints, targets_.report(t, joints, fps, pose)


# --------------------------------------------------------------------------------------------------
# For sample.py


def wanted(args):
    """Whether sample.py's flags ask for something that is made here."""
    return args.loop or any(value is not None for value in (
        args.constraints, args.start, args.end, args.path, args.goes_on, args.story,
        args.interpolate, args.vary))


def asks(args):
    """Whether sample.py's flags hold constraints."""
    return any(value is not None for value in (args.constraints, args.start, args.end, args.path))


def read_motion(flag, path, model):
    """The clip of a file, (T, J, 3); ValueError for a body that is not about as large as ours."""
    pose, bones = body_of(model)
    clip = read_clip(path, len(bones), f"{flag}: ")
    own = np.linalg.norm(clip - clip[:, np.maximum(pose.parents, 0)], axis=-1).sum(-1).mean()
    if not 0.5 < own / bones.sum() < 2:
        raise ValueError(f"{flag}: {path} holds a body {own / bones.sum():.3g} times as large as "
                         "this model's; expected joints in metres.")
    return clip


def constraints_of(args, model, frames):
    """The constraints of sample.py's flags for motions of so many frames, and their folder."""
    found, folder = read_constraints(args.constraints) if args.constraints else ([], "")
    end = (frames - 1) / model.config.data.fps
    for flag, frame, time in (("start", -1, 0), ("end", 0, end)):
        if getattr(args, flag):
            clip = read_motion(f"--{flag}", getattr(args, flag), model)
            found.append({"pose": clip, "frame": frame, "time": time})
    if args.path:
        found.append({"path": os.path.abspath(args.path)})
    return found, folder


def long_enough(args, model, lengths):
    """Lengths that were drawn, made longer where constraints name a later time, and shorter where
    they follow the end of a clip. ValueError for times that do not fit."""
    c = model.config.data
    most = c.max_frames - SHARED
    if args.goes_on is not None and max(lengths) > most and not args.force:
        if args.seconds:
            raise ValueError(f"--continue samples {SHARED / c.fps:g} s of the clip's end as well, "
                             f"so there are {most / c.fps:g} s for what comes next: take --seconds "
                             f"{most / c.fps:g} or less, or --force to see it.")
        return [min(n, most) for n in lengths]
    if args.seconds or not (args.constraints or args.path):
        return lengths
    last = last_time(*constraints_of(args, model, 1))
    least, one = math.ceil(last * c.fps) + 1, model.max_frames if args.force else c.max_frames
    count = len(lengths) // args.num if args.story is not None else 1
    if least > (longest := sum(parts_of(model, [one] * count))):
        of = f"a story of {count} prompts" if args.story is not None else "a motion"
        raise ValueError(f"The last time that the constraints name is {last:g} s, and {of} has at "
                         f"most {longest / c.fps:g} s here: name earlier times, or give --story "
                         "more prompts.")
    if args.story is not None:
        each = stretched(model, lengths[::args.num], least)
        return [n for n in each for _ in range(args.num)]
    return [max(n, least) for n in lengths]


def missed(reports):
    """Sentences about what was not met: asked, reached, error."""
    return [f"{row['what']}: asked for {row['asked']}, reached {row['reached']}, "
            f"{row['error']:.3f} {'m/s' if row['kind'] == 'speed' else 'm'} off"
            for report in reports for row in report if row["error"] > MET]


def told(reports):
    """Print what was not met, and how much was."""
    lines, count = missed(reports), sum(map(len, reports))
    print(*lines, f"{count - len(lines)} of {count} constraints met to {100 * MET:g} cm", sep="\n",
          file=sys.stderr)


def stories(args, model, texts, labels, lengths, **settings):
    """What sample.py's flags ask of a story or a loop -> args.num motions, and reports of what they
    meet. Of each prompt there are args.num texts or labels, and lengths, of which the first
    count."""
    num = args.num
    each = {"texts": texts and texts[::num], "actions": labels and labels[::num],
            "lengths": lengths[::num]}
    seeds = [args.seed + i * len(each["lengths"]) for i in range(num)]
    if asks(args):
        asked, folder = constraints_of(args, model, sum(parts_of(model, each["lengths"])))
        return zip(*(edit_story(model, **each, constraints=asked, folder=folder, seed=seed,
                                effort=args.effort, **settings) for seed in seeds))
    return [story(model, **each, loop=args.loop, seed=seed, **settings)[0] for seed in seeds], []


def kind_of(args):
    """The one flag among sample.py's that says what is made here; ValueError for two of them, for
    one that names no file, and for a length that the flag does not take."""
    for flag in ("constraints", "start", "end", "path", "continue", "vary"):
        if getattr(args, "goes_on" if flag == "continue" else flag) == "":
            raise ValueError(f"--{flag} is empty: expected the name of a file.")
    kinds = [flag for flag, given in (
        ("--loop", args.loop), ("--story", args.story is not None and not args.loop),
        ("--vary", args.vary), ("--interpolate", args.interpolate is not None),
        ("--continue", args.goes_on),
        ("--constraints, --start, --end or --path",
         asks(args) and (args.story is None or args.loop))) if given]
    if len(kinds) > 1:
        raise ValueError(f"{kinds[0]} cannot be combined with {kinds[1]}.")
    if kinds[0] == "--vary" and args.seconds:
        raise ValueError("--vary makes motions as long as its clip: leave out --seconds.")
    return kinds[0]


def made(args, model, texts, labels, lengths, captions):
    """What sample.py's flags ask -> motions, a list of (T, J, 3), and their captions. Of each
    prompt there are args.num texts or labels, lengths and captions, one after the other."""
    kind = kind_of(args)
    settings = {"guidance_scale": args.guidance, "sampler": args.sampler,
                "num_inference_steps": args.steps}
    more = settings | {"progress": sys.stderr.isatty()}
    num = args.num
    each = {"texts": texts and texts[::num], "actions": labels and labels[::num],
            "lengths": lengths[::num]}
    if kind in ("--story", "--loop"):
        motions, reports = stories(args, model, texts, labels, lengths, **more)
        motions, fps, asked = list(motions), model.config.data.fps, sum(each["lengths"])
        if asks(args):
            told(reports)
        if args.seconds and len(motions[0]) < asked:
            print(f"{len(motions[0]) / fps:g} s of the {asked / fps:g} s asked for: segments as "
                  "long as the training's longest motions lose the time that they share.",
                  file=sys.stderr)
        return motions, [", then ".join(captions[::num])] * num
    if kind == "--interpolate":
        if len(each["lengths"]) != 2:
            raise ValueError(f"--interpolate takes two prompts, found {len(each['lengths'])}.")
        names = [f"{captions[0]} to {captions[-1]}"] * num
        return interpolate(model, **each, num=num, seed=args.seed, **settings), names
    if kind == "--vary":
        clip, all_made, c = read_motion(kind, args.vary, model), [], model.config.data
        if len(clip) > c.max_frames + 1 and not args.force:
            raise ValueError(f"--vary: {args.vary} lasts {len(clip) / c.fps:g} s, and the motions "
                             f"that this model was trained on at most {c.max_frames / c.fps:g} s: "
                             "give a part of it, or --force to see it.")
        for i in range(len(each["lengths"])):
            one = {key: each[key] and each[key][i:i + 1] for key in ("texts", "actions")}
            all_made += vary(model, clip, **one, num=num, seed=args.seed + i * num,
                             strength=args.strength, **settings)
        return all_made, captions
    whole = {"texts": texts, "actions": labels, "lengths": lengths, "seed": args.seed,
             "effort": args.effort, **more}
    if kind == "--continue":
        clip = read_motion(kind, args.goes_on, model)
        motions, reports = continued(model, clip, **whole)
    else:
        each = [constraints_of(args, model, n) for n in lengths]
        motions, reports = edit(model, constraints=[one for one, _ in each], folder=each[0][1],
                                **whole)
    told(reports)
    return motions, captions
