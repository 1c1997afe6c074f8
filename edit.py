"""What a trained model is asked beyond a sentence: poses, paths, stories, loops, variations.

    motions, reports = edit(model, ["a man walks"], lengths=[80], constraints=[
        {"joint": "left_wrist", "time": 2, "position": [0.3, 1.4, 1.5]}])
    story(model, ["a man walks", "he turns left", "he sits down"], lengths=[60, 40, 60])

formats/constraints.py says what can be asked. A latent has no time axis, so nothing can be filled
in frame by frame. Three stages, each cheaper than what it saves the next:

| stage   | what it changes                 | how                                                   |
| ------- | ------------------------------- | ----------------------------------------------------- |
| noise   | x_T, with effort "high" alone   | gradient through a sampler of 5 steps and the decoder |
| guiding | each step's predicted x0        | gradient of the joints' error through the decoder     |
| exact   | joints                          | smoothest displacement, constant bones, limbs bent    |

Works with any condition, with and without a VAE. Inside, motions start at the origin and face +Z.
"""
import dataclasses
import math

import numpy as np
import torch
from tqdm import tqdm

import diffusion
import fast
import motion
from conditions import pick
from diffusion import draw_noise, make_generators, plan, take_step
from formats import constraints as files, pins, targets as targets_
from formats.feet import eased, lock_feet
from formats.rotations import T_POSES, fit_body
from transformer import length_mask

EFFORTS = {"low": (10, 1), "normal": (25, 2), "high": (25, 3)}  # steps, gradients in each
TRIES, TRIED_STEPS, RATE = 80, 5, 0.1  # of the noise, with effort "high"
LARGEST = 0.5  # how far one gradient may move a latent's numbers, which have deviation 1
SHARED = 10  # frames that neighbours of a story have in common
AT_ONCE = 8  # segments of a story that are made together; memory does not grow with more


def body_of(model):
    """What is known of the model's body: its TPose and the lengths of its bones (J,) in metres."""
    if model.config.data.skeleton == "t2m":
        return T_POSES[22], np.linalg.norm(motion.T2M_OFFSETS, axis=1)
    with torch.no_grad():
        still = model.to_joints(torch.zeros_like(model.mean)[None])[0].double().cpu().numpy()
    pose = T_POSES[len(still)]  # the mean pose, whose limbs are a little short
    parents = np.maximum(pose.parents, 0)
    return pose, 1.15 * np.linalg.norm(still - still[parents], axis=-1)


def bones_of(model, joints):
    """The lengths (J,) that the bones of a motion (T, J, 3) are to keep."""
    pose, lengths = body_of(model)
    if model.config.data.skeleton == "t2m":
        return lengths
    parents = np.maximum(pose.parents, 0)
    return np.median(np.linalg.norm(joints - joints[:, parents], axis=-1), axis=0)


# --------------------------------------------------------------------------------------------------
# Sampling with a loss on the joints


def decoded(model, x0, lengths):
    """x0 as the sampler has it -> joints (B, T, J, 3) in metres, with gradients."""
    if model.vae is None:
        return model.to_joints(x0)
    z = x0 * model.latent_std + model.latent_mean if model.normalize_latents else x0
    features = model.vae.decode(z.to(model.dtype), fast.needed_lengths(lengths), int(lengths.max()))
    return model.to_joints(features.float())


def pulled(model, x0, lengths, loss_of, share):
    """x0 (B, ...) moved down the loss's gradient, by `share` of the way to where a line would be 0.

    loss_of(joints) -> (scalar to differentiate, (B,) what each motion's part of it is). For one
    squared distance r^2, whose gradient is g, that way is 2 r^2 / |g|^2 g (Gauss and Newton)."""
    with torch.enable_grad():
        x = x0.detach().requires_grad_()
        total, own = loss_of(decoded(model, x, lengths))
        grad, = torch.autograd.grad(total, x)
    shape = -1, *[1] * (x0.dim() - 1)
    size = grad.square().flatten(1).sum(1).clamp_min(1e-20)
    move = (2 * own.detach() / size).view(shape) * grad
    rms = move.square().flatten(1).mean(1).sqrt()
    return x0 - share * move * (LARGEST / rms.clamp_min(LARGEST)).view(shape).to(x0.dtype)


def guided_walk(model, steps, x, ask, lengths, generators, loss_of, rounds, progress=False):
    """diffusion.walk from x (B, ...), with each predicted x0 pulled towards a small loss. The pull
    is quadratic in t: nothing at both ends, all of it in the middle."""
    x0, frames = None, None if model.vae else lengths.cpu()
    for i, step in enumerate(tqdm(steps, desc="sampling", disable=not progress, leave=False)):
        with torch.no_grad():
            t = torch.full((len(x),), step.t, device=x.device)
            new = step.p_x * x + step.p_out * ask(x, t)
        u = (i + 1) / len(steps)
        for _ in range(rounds if loss_of else 0):
            new = pulled(model, new, lengths, loss_of, min(1.0, 4.5 * u * (1 - u) + 0.3 * u))
        noise = draw_noise(x.shape, generators, x.device, x.dtype, frames) if step.c_noise else None
        clip = model.config.diffusion.clip_sample
        x, x0 = take_step(step._replace(p_x=0.0), x, new, x0, noise, clip)
    return x


def best_noise(model, x_T, ask, lengths, loss_of, progress=False):
    """x_T (B, ...) changed until few steps of DPM-Solver++ lead to a small loss (DNO, Karunratanakul
    et al. 2024); each motion keeps the best that it had. It must stay as long as noise is."""
    steps = plan(model.schedule, "dpm++", TRIED_STEPS)
    x, best, least = x_T.clone(), x_T.clone(), torch.full((len(x_T),), math.inf, device=x_T.device)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for i in tqdm(range(TRIES), desc="noise", disable=not progress, leave=False):
        with torch.enable_grad():
            x.requires_grad_()
            now, x0 = x, None
            for step in steps:
                output = ask(now, torch.full((len(x),), step.t, device=x.device))
                now, x0 = take_step(step, now, output, x0)
            total, own = loss_of(decoded(model, now, lengths))
            long = (x.square().flatten(1).mean(1) - 1).square()
            grad, = torch.autograd.grad(total + 0.02 * long.sum(), x)
        x, better = x.detach(), own.detach() < least
        best[better], least = x[better], torch.minimum(least, own.detach())
        norm = grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
        first, second = first.lerp(grad / norm, 0.1), second.lerp((grad / norm).square(), 0.01)
        rate = RATE * min(1, (i + 1) / 10) * (1 + math.cos(math.pi * i / TRIES)) / 2
        adam = (first / (1 - 0.9 ** (i + 1))) / ((second / (1 - 0.99 ** (i + 1))).sqrt() + 1e-8)
        x = x - rate * adam
    return best


def sampled(model, given, lengths, seed, loss_of, effort, settings, progress=False):
    """Joints (B, T, J, 3) own frame, float64, of motions sampled with a loss; settings as in
    DiffusionConfig, None where the model's own."""
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}.")
    model.check_eval()
    count, rounds = EFFORTS[effort]
    if given is None:
        settings = settings | {"guidance_scale": 1.0}
    d = model.sampling(**{"num_inference_steps": count} | {
        key: value for key, value in settings.items() if value is not None})
    with torch.no_grad():
        cond, uncond = model.condition.encode(model, given, len(lengths), known_only=True)
    ask, generators = model.guided(cond, uncond, lengths, d), make_generators(seed, len(lengths))
    x = model.start(lengths, generators)
    if effort == "high" and loss_of:
        x = best_noise(model, x, ask, lengths, loss_of, progress)
    steps = plan(model.schedule, d.sampler, d.num_inference_steps, d.eta)
    x = guided_walk(model, steps, x, ask, lengths, generators, loss_of, rounds, progress)
    with torch.no_grad():
        return decoded(model, x, lengths).double().cpu().numpy()


# --------------------------------------------------------------------------------------------------
# Constraints


def heading(joints, pose):
    """targets.heading for torch: joints (..., J, 3) -> radians (...)."""
    left, right = ([pose.joint_names.index(f"{side}_{part}") for part in ("hip", "shoulder")]
                   for side in ("left", "right"))
    across = (joints[..., left, :] - joints[..., right, :]).sum(-2)
    return torch.atan2(-across[..., 2], across[..., 0])


def turned(joints, angle):
    """motion.turn_about_y for torch: joints (..., J, 3), angle (...)."""
    c, s, (x, y, z) = angle.cos()[..., None], angle.sin()[..., None], joints.unbind(-1)
    return torch.stack([c * x + s * z, y, c * z - s * x], -1)


def from_within(joints, pose):
    """Joints (..., J, 3) over the floor from the pelvis, and turned to face +Z."""
    middle = joints[..., :1, :] * joints.new_tensor([1, 0, 1])
    return turned(joints - middle, -heading(joints, pose))


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
                loss = loss + 0.05 * ((1 - (heading(j, pose) - facing).cos()) * faces).sum() / faces.sum()
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
    turns = ~np.isnan(t.facing)
    if turns.any():  # the whole body turns slowly towards where it should face
        gap = np.where(turns, t.facing - targets_.heading(joints, pose), 0.0)
        gap = np.arctan2(np.sin(gap), np.cos(gap))[:, None]
        slowly = pins.smoothest(gap, turns[:, None], stretch=0.0, weight=1e-4)
        pelvis = joints[:, :1]
        joints = pelvis + motion.turn_about_y(slowly, joints - pelvis)
    for fork, part, clip in t.kept:
        joints = pins.keep_part(joints, fork, part, clip, pose)
    if t.floor:
        joints = lock_feet(fit_body(joints, fps), fps).joints
        under = np.maximum(-joints[..., 1].min(1), 0)
        joints = joints + (eased(under, fps) if under.any() else under)[:, None, None] * motion.Y
    places, pinned = t.places.copy(), t.pinned.copy()
    for joint, frame, speed in t.speeds:  # two pins, half a step to each side
        ends = [frame - 1, frame + 1]
        if not pinned[ends, joint].any():
            a, b = joints[ends, joint]
            half = motion.unit_rows(b - a) * speed / fps
            places[ends, joint], pinned[ends, joint] = [(a + b) / 2 - half, (a + b) / 2 + half], True
    return pins.meet(joints, places, pinned, lengths, pose)


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
    made = sampled(model, given, lengths, seed, loss_of, effort, settings, progress)
    motions, reports = [], []
    for t, joints, n in zip(all_targets, made, lengths.tolist()):
        joints, own_bones = joints[:n], bones_of(model, joints[:n])
        if exactly:
            joints = exact(t, joints, fps, pose, own_bones)
        motions.append(targets_.to_world(joints, t.place))
        reports.append(targets_.report(t, motions[-1], fps, pose))
    return motions, reports
