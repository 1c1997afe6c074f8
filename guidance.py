"""Sampling with a loss on the joints: what edit.py and story.py are made of.

A latent has no time axis, so nothing can be filled in frame by frame. But the decoder has a
gradient: a loss on the joints tells where the latent should go. It pulls at each step's prediction
of x0 (`guided_walk`), and with effort "high" at the noise as well, through a sampler of few steps
(`best_noise`). Without a VAE, the same is done to frames.
"""
import math

import numpy as np
import torch
from tqdm import tqdm

import fast
import motion
from diffusion import draw_noise, make_generators, plan, take_step
from formats.rotations import T_POSES
from latents import from_diffused

# Steps of the sampler, and gradients in each: five in each of 10 do more than one in each of 50.
EFFORTS = {"low": (10, 2), "normal": (10, 5), "high": (10, 10)}
TRIES, TRIED_STEPS, RATE = 80, 5, 0.1  # of the noise, with effort "high"
TRIED = 16  # motions of each are made at first, to go on with the best: a latent takes little time
OTHER = 997 * 1_000_003  # from the seed of one try to the next one's
LARGEST = 1.0  # how far one gradient may move a latent's numbers, which have deviation 1


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
    z = from_diffused(model, x0).to(model.dtype)
    features = model.vae.decode(z, fast.needed_lengths(lengths), int(lengths.max()))
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


def best_noise(model, x_T, ask, lengths, loss_of, progress=False, steps=None, generators=None):
    """x_T (B, ...) changed until few steps of DPM-Solver++ lead to a small loss ("Optimizing
    Diffusion Noise", CVPR 2024). It must stay as long as noise is; each motion keeps its best.

    steps   others than those: a student's own, with the noise that guided_walk will draw from the
            same generators"""
    steps = steps or plan(model.schedule, "dpm++", TRIED_STEPS)
    copies = generators and [g.clone_state() for g in generators]
    frames = None if model.vae else lengths.cpu()
    noises = [draw_noise(x_T.shape, copies, x_T.device, x_T.dtype, frames) if step.c_noise else None
              for step in steps]
    x, best, least = x_T.clone(), x_T.clone(), torch.full((len(x_T),), math.inf, device=x_T.device)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for i in tqdm(range(TRIES), desc="noise", disable=not progress, leave=False):
        with torch.enable_grad():
            x.requires_grad_()
            now, x0 = x, None
            for step, noise in zip(steps, noises):
                output = ask(now, torch.full((len(x),), step.t, device=x.device))
                now, x0 = take_step(step, now, output, x0, noise)
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
    """Joints (B, T, J, 3), float64, of motions sampled with a loss (None: without). seed as in
    MLD.generate; settings as in DiffusionConfig, None for the effort's steps of DPM-Solver++, or a
    student's own few, and the model's guidance. ValueError for settings that cannot be used."""
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}.")
    model.check_eval()
    count, rounds = EFFORTS[effort]
    if given is None:
        settings = settings | {"guidance_scale": 1.0}
    student = model.config.diffusion.built_in_guidance > 0
    defaults = {"num_inference_steps": count, "sampler": "dpm++", "eta": 0.0}
    defaults = {} if student else defaults
    d = model.sampling(**defaults | {key: x for key, x in settings.items() if x is not None})
    with torch.no_grad():
        cond, uncond = model.condition.encode(model, given, len(lengths), known_only=True)
    ask, generators = model.guided(cond, uncond, lengths, d), make_generators(seed, len(lengths))
    x = model.start(lengths, generators)
    steps = plan(model.schedule, d.sampler, d.num_inference_steps, d.eta)
    rounds = rounds * count // len(steps) if student else rounds  # as many gradients in all
    if effort == "high" and loss_of:
        own = (steps, generators) if student else ()
        x = best_noise(model, x, ask, lengths, loss_of, progress, *own)
    x = guided_walk(model, steps, x, ask, lengths, generators, loss_of, rounds, progress)
    with torch.no_grad():
        return decoded(model, x, lengths).double().cpu().numpy()


# --------------------------------------------------------------------------------------------------
# Turning joints, with gradients


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


def tried(model, given, lengths, seeds, effort, settings, progress=False):
    """TRIED motions of each, sampled without a loss: their seeds and joints, B lists of both. The
    first has the seed itself."""
    each = [[seed + OTHER * way for way in range(TRIED)] for seed in seeds]
    given = given and [one for one in given for _ in range(TRIED)]
    made = sampled(model, given, lengths.repeat_interleave(TRIED), sum(each, []), None, effort,
                   settings, progress)
    return each, made.reshape(len(seeds), TRIED, *made.shape[1:])


def best_seeds(model, given, lengths, seeds, loss_of, effort, settings, progress=False):
    """Of the seeds of `tried`, those of the B motions with the least loss."""
    each, made = tried(model, given, lengths, seeds, effort, settings, progress)
    made = torch.from_numpy(made).float().to(model.mean.device)
    with torch.no_grad():
        losses = torch.stack([loss_of(made[:, way])[1] for way in range(TRIED)])
    return [own[way] for own, way in zip(each, losses.argmin(0).tolist())]
