"""The denoiser: the noise in a latent, from its level, the condition and the motion's length.

Its tokens, in this order: N latent tokens, one time token, L condition tokens (N = L = 1 as
published). denoiser.length_token, which is ours, adds one that tells the motion's length.

| form      | diffusion on | self-attention over              | cross-attention to       | output  |
| --------- | ------------ | -------------------------------- | ------------------------ | ------- |
| trans_enc | latents      | [latents, time, condition] + pos |                          | latents |
| trans_enc | frames       | [time, condition, frames] + pos  |                          | frames  |
| trans_dec | either       | [latents or frames] + pos        | [time, condition] + pos  | all     |
| modulated | latents      | none: all tokens are one row     | scales and shifts        | latents |

The last is ours: time, condition and length, added up, set what each layer amplifies. Parameters
carry their published names, except the action embedding (emb_proj.action_embedding there,
emb_proj.weight here), final_linear, and those of the last form.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import fast
from conditions import CONDITIONS
from diffusion import levels_of, target_parts
from latents import diffused_shape, ends
from transformer import Positions, Stack, TimestepEmbedding, zero_padding


def make_denoiser(config, schedule):
    """The denoiser that the settings (a Config) ask for; `schedule`: the noise of each level."""
    c, shape = config.denoiser, diffused_shape(config)
    if c.arch == "modulated":
        return ModulatedDenoiser(c, shape, schedule)
    return Denoiser(c, config.data.nfeats if config.vae.arch == "none" else None, shape[1])


class Conditioned(nn.Module):
    """What all forms share: a level and a condition become vectors of the layers' width D."""

    def __init__(self, cfg, width):
        super().__init__()
        D, self.cfg, self.width = cfg.latent_dim, cfg, width
        self.condition = CONDITIONS[cfg.condition]()
        flip, shift = cfg.flip_sin_to_cos, cfg.freq_shift
        self.time_embedding = TimestepEmbedding(self.condition.time_width(cfg), D, flip, shift)
        self.emb_proj = self.condition.projection(cfg)
        if cfg.length_token:
            self.length_embedding = TimestepEmbedding(D, D, flip, shift)

    def forward(self, x_t, timesteps, condition=None, lengths=None):
        """The prediction, of x_t's shape; zero on padded frames.

        x_t         (B, N, D) latents or (B, T, F) frames
        timesteps   (B,), or one for all
        condition   what the condition's `encode` gives: B embeddings of texts, B action numbers,
                    or None
        lengths     (B,) of frames, or None

        ValueError for latents or frames of another width."""
        self.check_width(x_t)
        time = self.level(timesteps.reshape(-1))  # (B, D), or (1, D)
        return self.predict(x_t, time, self.condition_tokens(condition, lengths), lengths)

    def condition_tokens(self, condition, lengths=None):
        """The tokens (B, L, D) of a condition and of the motions' lengths, or None."""
        tokens = [self.condition.tokens(self.emb_proj, condition)]
        if self.cfg.length_token:
            if lengths is None:
                raise ValueError("With denoiser.length_token the denoiser takes the motions' "
                                 "lengths, found none.")
            tokens.append(self.length_embedding(lengths)[:, None])
        tokens = [t for t in tokens if t is not None]
        return torch.cat(tokens, 1) if tokens else None

    def level(self, timesteps):
        """(B,) -> (B, D): what `predict` takes of the noise levels"""
        return self.time_embedding(timesteps)


# --------------------------------------------------------------------------------------------------
# The paper's


class Denoiser(Conditioned):
    """epsilon_theta(z_t, t, c) of sections 3.2 and 3.3: predicts the noise (or x0, or v) in noised
    latents (B, N, D or `width`, latents.py); with `nfeats`, in noised frames (B, T, nfeats)."""

    def __init__(self, cfg, nfeats=None, width=None):
        super().__init__(cfg, nfeats or width or cfg.latent_dim)
        D, self.nfeats = cfg.latent_dim, nfeats
        learned = cfg.position_embedding == "learned"
        self.query_pos = Positions(cfg.max_positions, D, learned)
        sizes = (cfg.num_layers, D, cfg.num_heads, cfg.ff_size, cfg.dropout, cfg.attention_dropout,
                 cfg.activation, cfg.normalize_before)
        if cfg.arch == "trans_dec":
            self.mem_pos = Positions(cfg.max_positions, D, learned)
            self.decoder = Stack(*sizes, cross=True, skip=cfg.skip_connect)
        else:  # a plain stack of post-norm layers ends in a norm, and the published one adds none
            final_norm = cfg.skip_connect or cfg.normalize_before
            self.encoder = Stack(*sizes, skip=cfg.skip_connect, final_norm=final_norm)
        if nfeats:
            self.pose_embd, self.pose_proj = nn.Linear(nfeats, D), nn.Linear(D, nfeats)
        self.token_in, self.final_linear = (None, None) if nfeats else ends(cfg, self.width)

    def predict(self, x_t, time, condition, lengths=None):
        """forward, from the embedding of the noise level (B, D) and the condition's tokens."""
        tokens = time.expand(len(x_t), -1)[:, None]
        if condition is not None:
            tokens = torch.cat((tokens, condition), 1)  # (B, 1 + L, D)
        if self.nfeats:
            return self.predict_frames(x_t, tokens, lengths)
        x_t = self.token_in(x_t) if self.token_in else x_t
        if self.cfg.arch == "trans_dec":
            x = self.decoder(self.query_pos(x_t), memory=self.mem_pos(tokens))
        else:
            x = self.query_pos(torch.cat((x_t, tokens), 1))  # (B, N + 1 + L, D)
            x = fast.few_tokens(self.encoder, x, x_t.shape[1])
        return x if self.final_linear is None else self.final_linear(x)

    def predict_frames(self, x_t, tokens, lengths):
        """The same for noised frames x_t (B, T, nfeats): the model without a VAE."""
        keys = lengths if self.cfg.mask_padding else None
        x = self.pose_embd(zero_padding(x_t, keys))
        if self.cfg.arch == "trans_dec":
            x = self.decoder(self.query_pos(x), keys, memory=self.mem_pos(tokens))
        else:
            c = tokens.shape[1]
            x = self.query_pos(torch.cat((tokens, x), 1))
            x = self.encoder(x, None if keys is None else keys + c)[:, c:]
        return zero_padding(self.pose_proj(x), lengths)

    def check_width(self, x_t):
        if x_t.dim() != 3 or x_t.shape[-1] != self.width:
            shape = f"(B, {'T' if self.nfeats else 'N'}, {self.width})"
            raise ValueError(f"The denoiser takes {shape}, found {tuple(x_t.shape)}.")


# --------------------------------------------------------------------------------------------------
# Ours


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
        for weight in (self.linear2.weight, *self.modulation.parameters()):
            nn.init.zeros_(weight)

    def forward(self, x, condition):
        """x (B, W), condition (B, D) -> (B, W)"""
        scale, shift = self.modulation(condition).chunk(2, -1)
        h = self.activation(self.linear1(self.norm(x)) * (1 + scale) + shift)
        return x + self.linear2(F.dropout(h, self.p, self.training))


class ModulatedDenoiser(Conditioned):
    """The denoiser without attention: a latent is one row of N * D numbers.

    The layers learn only what a linear estimate lacks. Where the numbers of x0 have the variance
    `spread`, those of x_t = a x0 + s eps have q = a^2 spread + s^2, and the best linear estimate of
    what is asked for, p eps + r x0, is

        (p s + r a spread) / q x_t,     its error's variance     spread (p a - r s)^2 / q

    Their input is divided by sqrt(q), and their output multiplied by the root of that error (Karras
    et al. 2022, section 5, with a level of noise for each direction of the latents)."""

    def __init__(self, cfg, shape, schedule):
        super().__init__(cfg, shape[1])
        D, W, numbers = cfg.latent_dim, cfg.modulated_dim, shape[0] * shape[1]
        self.tokens, self.schedule, self.nfeats = shape[0], schedule, None
        self.register_buffer("spread", torch.ones(numbers))  # set by train.py, as the latents' mean
        self.mix, self.token_in = nn.Linear(D, D), nn.Linear(numbers, W)
        self.layers = nn.ModuleList(ModulatedLayer(W, cfg.ff_size, D, cfg.dropout, cfg.activation)
                                    for _ in range(cfg.num_layers))
        self.norm, self.modulation = nn.LayerNorm(W), nn.Linear(D, 2 * W)
        self.final_linear = nn.Linear(W, numbers)
        for weight in (self.final_linear.weight, *self.modulation.parameters()):
            nn.init.zeros_(weight)

    def level(self, timesteps):
        """(B,) -> (B, D + 2) float32: their embeddings, and their a and s."""
        embedding = self.time_embedding(timesteps)
        numbers = torch.empty(len(timesteps), 1, dtype=torch.float32, device=timesteps.device)
        return torch.cat((embedding, *levels_of(self.schedule, timesteps, numbers)), -1)

    def predict(self, x_t, time, condition, lengths=None):
        """forward, from what `level` gives and the condition's tokens."""
        time = time.expand(len(x_t), -1)
        embedding, a, s = time[:, :-2], time[:, -2:-1], time[:, -1:]
        kind = self.mix.weight.dtype
        c = embedding.to(kind) if condition is None else embedding.to(kind) + condition.sum(1)
        c = F.silu(self.mix(F.silu(c)))
        spread, (p, r) = self.spread.to(a.dtype), target_parts(self.schedule, a, s)
        q = a.square() * spread + s.square()
        x = x_t.flatten(1)
        h = self.token_in((x / q.sqrt()).to(kind))
        for layer in self.layers:
            h = layer(h, c)
        scale, shift = self.modulation(c).chunk(2, -1)
        out = self.final_linear(self.norm(h) * (1 + scale) + shift)
        linear = (p * s + r * a * spread) / q * x
        return (linear + (spread / q).sqrt() * (p * a - r * s) * out).view_as(x_t)

    def check_width(self, x_t):
        if x_t.dim() != 3 or x_t.shape[1:] != (self.tokens, self.width):
            raise ValueError(f"The denoiser takes (B, {self.tokens}, {self.width}), found "
                             f"{tuple(x_t.shape)}.")
