"""Layers that a condition modulates: a denoiser without attention (denoiser.arch=modulated).

A latent is one row of N * D numbers. The level, the condition and the length, added up, are no
tokens beside it: they set which of its features each layer amplifies.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import fast
from diffusion import levels_of, target_parts


class ModulatedLayer(nn.Module):
    """x + Linear(act(scale * Linear(norm(x)) + shift)), the scale and shift a Linear of the
    condition. So each condition, and each level, has its own choice of the layer's features (FiLM,
    Perez et al. 2018). At the start they are all alike, and the layer adds nothing (adaLN-Zero,
    Peebles and Xie 2023)."""

    def __init__(self, dim, ff, condition_dim, dropout, activation):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, ff), nn.Linear(ff, dim)
        self.modulation = nn.Linear(condition_dim, 2 * ff)
        self.p, self.activation = dropout, getattr(F, activation)
        for weight in (*self.linear2.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(weight)

    def forward(self, x, condition):
        """x (B, W), condition (B, D) -> (B, W)"""
        scale, shift = self.modulation(condition).chunk(2, -1)
        h = self.activation(self.linear1(self.norm(x)) * (1 + scale) + shift)
        return x + self.linear2(F.dropout(h, self.p, self.training))


class ModulatedLayers(nn.Module):
    """Noised latents (B, N, D), their levels and a condition -> the prediction (B, N, D).

    The layers learn only what a linear estimate lacks. Where the numbers of x0 have the variance
    `spread`, those of x_t = a x0 + s eps have q = a^2 spread + s^2, and the best linear estimate of
    what is asked for, p eps + r x0, is

        (p s + r a spread) / q x_t,     its error's variance     spread (p a - r s)^2 / q

    Their input is divided by sqrt(q), and their output multiplied by the root of that error (Karras
    et al. 2022, section 5, with a level of noise for each direction of the latents).

    numbers    N * D of a latent
    schedule   the noise of each level, and what is asked for"""

    def __init__(self, cfg, numbers, schedule):
        super().__init__()
        D, W, self.schedule = cfg.latent_dim, cfg.modulated_dim, schedule
        self.register_buffer("spread", torch.ones(numbers))  # set by train.py, as the latents' mean
        self.mix, self.token_in = nn.Linear(D, D), nn.Linear(numbers, W)
        self.layers = nn.ModuleList(ModulatedLayer(W, cfg.ff_size, D, cfg.dropout, cfg.activation)
                                    for _ in range(cfg.num_layers))
        self.norm, self.modulation = nn.LayerNorm(W), nn.Linear(D, 2 * W)
        self.final_linear = nn.Linear(W, numbers)
        for weight in (*self.final_linear.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(weight)

    def _apply(self, fn, recurse=True):
        return fast.keep_buffers(self, lambda: super(ModulatedLayers, self)._apply(fn, recurse))

    def level(self, embedding, timesteps):
        """Embeddings (B, D) of the levels (B,) -> (B, D + 2) float32, with their a and s."""
        numbers = torch.empty(len(timesteps), 1, dtype=torch.float32, device=timesteps.device)
        return torch.cat((embedding, *levels_of(self.schedule, timesteps, numbers)), -1)

    def choice(self, embedding, condition):
        """The embedding of levels (..., 1 or B, D) and a condition (B, L, D) or None -> what says
        which features count, (..., 1 or B, D)."""
        embedding = embedding.to(self.mix.weight.dtype)
        c = embedding if condition is None else embedding + condition.sum(1)
        return F.silu(self.mix(F.silu(c)))

    def factors(self, a, s):
        """a, s (B, 1) of levels -> what x_t is multiplied with on its way in and in the linear
        estimate, and what the layers' answer is, (B, numbers) each."""
        spread, (p, r) = self.spread.to(a.dtype), target_parts(self.schedule, a, s)
        q = a.square() * spread + s.square()
        return 1 / q.sqrt(), (p * s + r * a * spread) / q, (spread / q).sqrt() * (p * a - r * s)

    def forward(self, x_t, time, condition):
        """x_t (B, N, D), time (B, D + 2) as `level` gives it, condition (B, L, D) or None"""
        c = self.choice(time[:, :-2], condition)
        inwards, linear, outwards = self.factors(time[:, -2:-1], time[:, -1:])
        x = x_t.flatten(1)
        h = self.token_in((x * inwards).to(c.dtype))
        for layer in self.layers:
            h = layer(h, c)
        scale, shift = self.modulation(c).chunk(2, -1)
        out = self.final_linear(self.norm(h) * (1 + scale) + shift)
        return (linear * x + outwards * out).view_as(x_t)
