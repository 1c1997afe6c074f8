"""Losses of the VAE that are ours and not the paper's: they keep its motions sharp.

vae.vae_loss compares frame by frame. Of the quick part of a movement a latent knows little, and
what is right on average, over all that the movement could have been, is to move less: distances
reward motion that is slow where it should be quick. Here are six terms on the joints J (true) and
J' (reconstructed), in metres, that do not:

    lambda_acceleration  mean |d2 J' - d2 J|, in metres a frame^2
        A distance still, but of second differences, in which quick movements weigh more.

    lambda_energy        mean over joints and k = 1, 2, 3 of log(E_k(J') / E_k(J))^2,
                         E_k(J) = the mean of |dk J| over the clip's frames
        Each joint is to be as fast, as sudden and as jerky as the real one, on average over the
        clip. That leaves open in which frames.

    lambda_spectrum      mean over joints, windows and k = 1..8 of |A_k(J') - A_k(J)| k^2 / 5 cm
        A_k is the amplitude of a joint's velocity, in metres a frame, at k waves in a window of 16
        frames: 1.25 to 10 Hz at 20 frames a second. So energy has to be where it is in time and in
        pitch, but the phase is left to the other losses: where the latent does not know it, the
        network can still move as much as it should. Real amplitudes are near 5 cm / k^2 on average
        (measured on motion capture and on the toy clips alike); without that scale, only the
        slowest would count. Magnitudes of short spectra are how networks learn to make crisp
        sound, too (Yamamoto et al. 2020, Parallel WaveGAN).

    lambda_bones         mean |u' - u| of the unit vectors along the bones
        A nod moves the head by a few centimetres, and counts for little in distances; as a bone's
        direction it counts as much as the swing of an arm.

    lambda_head          the same for the bones to neck and head alone
        They turn far less than arms and legs, so among all bones they were the last to be learnt:
        nods and shakes of the head came back with a quarter of their angle.

    lambda_power         mean over k of log(P_k(J') / P_k(J))^2, P_k = the sum of A_k^2 over the
                         clip's windows and joints
        The clip as a whole moves as strongly at each frequency as the real one.

All are means over a clip's own frames, and then over clips, as in vae_loss.
"""
import functools
import math

import torch
import torch.nn.functional as F

from motion import SKELETONS, SMPL_PARENTS
from transformer import length_mask
from vae import clip_mean

WINDOW, HOP = 16, 8  # frames
HEADS = {len(s.parents): [s.joint_names.index(name) for name in ("neck", "head")]
         for s in SKELETONS.values()}
HEADS[len(SMPL_PARENTS)] = HEADS[22]  # SMPL's joints begin with those of HumanML3D
STILL = 1e-4  # metres a frame^k: less counts as this much, so that logarithms are finite
PARENTS = {len(p): list(p) for p in (*(s.parents for s in SKELETONS.values()), SMPL_PARENTS)}
TYPICAL = 0.05  # metres a frame: A_1, and k^2 times A_k


def sharpness_losses(recon, features, lengths, cfg, to_joints):
    """{"loss", and each term by name}: the weighted sum of the terms with a weight above 0.

    recon, features  (B, T, F), normalised
    lengths          (B,) or None
    cfg              VAEConfig
    to_joints        normalised features (B, T, F) -> joints (B, T, J, 3) in metres

    Too few frames for a term, such as two for an acceleration, give 0. {} if all weights are 0."""
    terms = {"acceleration": acceleration_loss, "energy": energy_loss, "spectrum": spectrum_loss,
             "power": power_loss, "bones": bones_loss, "head": head_loss}
    weights = {name: getattr(cfg, f"lambda_{name}") for name in terms}
    if not any(weights.values()):
        return {}
    B, T, _ = features.shape
    lengths = torch.full((B,), T, device=features.device) if lengths is None else lengths
    a, b = to_joints(recon.to(features.dtype)), to_joints(features)
    losses = {name: terms[name](a, b, lengths) for name, weight in weights.items() if weight}
    return {"loss": sum(weights[name] * value for name, value in losses.items()), **losses}


def acceleration_loss(a, b, lengths):
    """a, b (B, T, J, 3) -> mean |d2 a - d2 b|, in metres a frame^2."""
    error = (a - b).diff(2, dim=1).norm(dim=-1)  # (B, T - 2, J)
    return clip_mean(error, (lengths - 2).clamp(min=0))


def energy_loss(a, b, lengths):
    """a, b (B, T, J, 3) -> the squared log ratio of their mean speeds, accelerations and jerks."""
    total = a.new_zeros(())
    for k in (1, 2, 3):
        energies = [clip_joint_mean(x.diff(k, dim=1).norm(dim=-1), lengths - k) for x in (a, b)]
        made, real = ((energy + STILL).log() for energy in energies)  # (B, J)
        total = total + (made - real).square().mean() / 3
    return total


def spectrum_loss(a, b, lengths):
    """a, b (B, T, J, 3) -> the difference of their velocities' amplitudes, by frequency, in units
    of what is usual at that frequency."""
    made, real, share = (*map(amplitudes, (a, b)), window_share(a, lengths))
    usual = TYPICAL / torch.arange(1, WINDOW // 2 + 1, device=a.device).square()
    error = ((made - real).abs().mean(3) / usual).mean(2)  # (B, windows)
    return (error * share).sum(1).mean()


def power_loss(a, b, lengths):
    """a, b (B, T, J, 3) -> the squared log ratio of their power at each frequency."""
    share = window_share(a, lengths)[:, :, None]
    made, real = ((amplitudes(x).square().mean(3) * share).sum(1) for x in (a, b))  # (B, K)
    return ((made + STILL**2) / (real + STILL**2)).log().square().mean()


def turned(a, b):
    """a, b (B, T, J, 3) -> (B, T, J - 1): how far apart the unit vectors along each bone are."""
    parents = parents_of(a.shape[2], a.device)
    made, real = (F.normalize(x[:, :, 1:] - x[:, :, parents], dim=-1) for x in (a, b))
    return (made - real).norm(dim=-1)


def bones_loss(a, b, lengths):
    """a, b (B, T, J, 3) -> mean distance of the unit vectors along the bones, 0 to 2."""
    return clip_mean(turned(a, b), lengths)


def head_loss(a, b, lengths):
    """bones_loss of the bones to neck and head alone."""
    error = turned(a, b)
    return clip_mean(torch.stack([error[:, :, j - 1] for j in HEADS[a.shape[2]]], 2), lengths)


@functools.lru_cache
def parents_of(joints, device):
    """(J - 1,) int64: of each joint but the root its parent; copied to each device once, since a
    CUDA graph cannot record a copy from Python."""
    return torch.tensor(PARENTS[joints][1:], device=device)


def window_share(joints, lengths):
    """(B, windows): equal shares for the windows that lie inside of a clip, and 0 for the others;
    all 0 for a clip too short for one."""
    starts = torch.arange(windows_in(joints.shape[1]), device=joints.device) * HOP
    inside = (starts[None] + WINDOW < lengths[:, None]).to(joints.dtype)
    return inside / inside.sum(1, keepdim=True).clamp(min=1)


def windows_in(frames):
    return max(0, (frames - 1 - WINDOW) // HOP + 1)


def amplitudes(joints):
    """(B, T, J, 3) -> amplitude of each joint's velocity in metres a frame, (B, windows, WINDOW / 2
    frequencies, J), by windows of WINDOW frames, a Hann window over each, that overlap by half.

    Joints are seen from the root, joint 0; the root itself moves through the world."""
    own = torch.cat((joints[:, :, :1], joints[:, :, 1:] - joints[:, :, :1]), 2)
    if not windows_in(own.shape[1]):
        return own.new_zeros(len(own), 0, WINDOW // 2, own.shape[2])
    windows = own.diff(dim=1).unfold(1, WINDOW, HOP)  # (B, windows, J, 3, WINDOW)
    t = torch.arange(WINDOW, device=joints.device, dtype=joints.dtype) + 0.5
    k = torch.arange(1, WINDOW // 2 + 1, device=joints.device, dtype=joints.dtype)
    hann = torch.sin(math.pi * t / WINDOW) ** 2
    angles = 2 * math.pi / WINDOW * k[:, None] * t
    waves = torch.cat((angles.cos(), angles.sin())) * hann * (2 / hann.sum())
    parts = (windows @ waves.mT).unflatten(-1, (2, WINDOW // 2))  # (B, windows, J, 3, 2, K)
    return torch.linalg.vector_norm(parts, dim=(3, 4)).mT


def clip_joint_mean(x, lengths):
    """(B, T, J) -> (B, J): the mean over the clip's own frames; 0 for a clip without any."""
    own = torch.where(length_mask(lengths, x.shape[1])[..., None], x, 0.0)
    return own.sum(1) / lengths.clamp(min=1)[:, None]
