"""The directions of the VAE's latents that matter, so that the diffusion need not learn the others.

A latent of N tokens has N * D numbers. The VAE fills them all: a few carry the whole movement, and
half of them next to nothing, but scaled to equal spread they would all count the same in the
diffusion's loss. Here is a change of coordinates, made once between the two stages:

    x = S Q^T C^-1/2 (z - mean),     C^1/2 M C^1/2 = Q diag(importance) Q^T

C is the covariance of the training set's latents, and M = E[J^T J], J the derivative of the
decoder's normalised features by z: how much the motion changes with z, squared, per frame and
feature. So each coordinate has unit spread before S, none correlates with another, and they are
ordered by how much the motion changes with them. The most important are kept. S =
importance^(1/3), scaled to a mean square of 1, leaves those larger: noise hides details first, and
the movement last, as it does with pictures. Nothing like this is in the paper, which diffuses one
token as it is.
"""
import math

import torch
import torch.nn as nn
from tqdm import tqdm

BATCHES, BATCH = 100, 64  # decoder's derivatives to average
POWER = 1 / 3  # of the importance: 0 would weigh all directions alike
SMALLEST = 1e-9  # importance as a share of the largest: less counts as this much


def principal_axes(decode, mu, logvar, lengths, keep, device="cpu", progress=False):
    """-> into (N * D, keep) and back (keep, N * D): x = (z - mean) @ into, and z = x @ back + mean
    loses only what the other directions hold; float32.

    decode       latents (B, N, D) and lengths (B,) -> normalised features (B, T, F)
    mu, logvar   (clips, N, D): the posteriors of the training set
    lengths      (clips,) of frames
    keep         how many directions, at most N * D
    device       where `decode` computes"""
    draw = torch.Generator().manual_seed(0)
    centred = (mu - mu.mean(0)).flatten(1)
    noise = logvar.exp().flatten(1).double().mean(0)
    spread = (centred.T @ centred).double() / len(mu) + noise.diag()
    values, vectors = torch.linalg.eigh(spread)
    root, inverse = ((vectors * values.clamp_min(1e-12)**p) @ vectors.T for p in (0.5, -0.5))
    change = torch.zeros_like(root)
    for _ in tqdm(range(BATCHES), "what the latents change", leave=False, disable=not progress):
        rows = torch.randint(len(mu), (BATCH,), generator=draw)
        rows = rows[lengths[rows].argsort()]
        noise = torch.randn(BATCH, *mu.shape[1:], generator=draw)
        z = (mu[rows] + (0.5 * logvar[rows]).exp() * noise).to(device).requires_grad_()
        with torch.enable_grad():
            features = decode(z, lengths[rows].to(device))
            # E[g g^T] = J^T J for the gradient g of a random sum of J's rows
            size = (lengths[rows] * features.shape[-1])[:, None, None]
            weights = torch.randn(features.shape, generator=draw) / size.sqrt()
            gradient, = torch.autograd.grad((features * weights.to(features)).sum(), z)
        gradient = gradient.flatten(1).double().cpu()
        change += gradient.T @ gradient / (BATCH * BATCHES)
    importance, axes = torch.linalg.eigh(root @ change @ root)
    importance, axes = importance.flip(0)[:keep], axes.flip(1)[:, :keep]
    scale = importance.clamp_min(importance[0] * SMALLEST)**POWER
    scale = scale / scale.square().mean().sqrt()
    return (inverse @ axes * scale).float(), (root @ axes / scale).T.float()


class EachToken(nn.ModuleList):
    """Tokens (B, N, width), each through a Linear of its own -> (B, N, out)."""

    def __init__(self, tokens, width, out):
        super().__init__(nn.Linear(width, out) for _ in range(tokens))

    def forward(self, x):
        return torch.stack([linear(token) for linear, token in zip(self, x.unbind(1))], 1)


def ends(cfg, width):
    """What stands before and after the denoiser's layers for tokens of this width: Linears, if they
    are narrower than the layers, and otherwise nothing and the final Linear of the settings. A
    layer that is no wider than a noised token has little room for anything but the noise."""
    D = cfg.latent_dim
    if width < D and cfg.principal:
        return EachToken(cfg.principal, width, D), EachToken(cfg.principal, D, width)
    return None, nn.Linear(D, D) if cfg.final_linear else None


# --------------------------------------------------------------------------------------------------
# What MLD does with them. With denoiser.normalize_latents alone, x = (z - mean) / std


def diffused_shape(config):
    """(tokens, width) of what is diffused of a latent: main directions in tokens as wide as the
    denoiser's layers, or less wide, if a latent does not hold so many."""
    c, v = config.denoiser, config.vae
    width = min(c.latent_dim, v.latent_size * v.latent_dim // max(c.principal, 1))
    return (c.principal, width) if c.principal else (v.latent_size, v.latent_dim)


def identity(config):
    """MLD's buffers before train.py sets them: {name: tensor}."""
    shape = config.vae.latent_size, config.vae.latent_dim
    if not config.denoiser.principal:
        return {"latent_mean": torch.zeros(shape), "latent_std": torch.ones(shape)}
    into = torch.eye(math.prod(shape), math.prod(diffused_shape(config)))
    return {"latent_mean": torch.zeros(shape), "latent_in": into, "latent_out": into.T.clone()}


def to_diffused(model, z):
    """Latents (B, N, D) as the VAE makes them -> what is diffused."""
    if not model.normalize_latents:
        return z
    z = z - model.latent_mean
    if not model.config.denoiser.principal:
        return z / model.latent_std
    with torch.autocast(z.device.type, enabled=False):  # it would round what the loss compares with
        return (z.flatten(1) @ model.latent_in).unflatten(1, diffused_shape(model.config))


def from_diffused(model, x):
    """The way back; directions that are left out are at their mean."""
    if not model.normalize_latents:
        return x
    if model.config.denoiser.principal:
        x = (x.flatten(1) @ model.latent_out).unflatten(1, model.latent_mean.shape)
        return x + model.latent_mean
    return x * model.latent_std + model.latent_mean
