"""What bench.py measures nanoMLD against: the same networks written as the published code is, plain and honest.

Torch's own nn.MultiheadAttention and nn.LayerNorm, sequence first (L, B, D), boolean masks; prompts padded to 77
tokens, the empty prompt encoded anew for every sample; a Python loop over the steps with the schedule's numbers as
tensors; guidance by concatenation. Parameters have our names, so that both sides take the same weights and give the
same numbers. At the end, the speed-ups that lead from there to ours, one by one.
"""
import random
from itertools import islice, product
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from clip import CLIPTextEncoder, TextTower
from config import Config
from diffusion import guide, sample
from kernels import backend
from mld import MLD
from transformer import Positions, TimestepEmbedding, zero_padding

# ----------------------------------------------------------------------------------------------------------------------
# The networks


class PlainLayer(nn.Module):
    """Post-norm self-attention, cross-attention if there is a memory, feed-forward."""

    def __init__(self, dim, heads, ff, dropout=0.0, cross=False):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2, self.dropout = nn.Linear(dim, ff), nn.Linear(ff, dim), nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if cross:
            self.multihead_attn, self.norm3 = nn.MultiheadAttention(dim, heads, dropout), nn.LayerNorm(dim)

    def forward(self, x, padding=None, memory=None):
        last, x = self.norm2, self.norm1(x + self.dropout(self.self_attn(x, x, x, key_padding_mask=padding)[0]))
        if memory is not None:
            last, x = self.norm3, self.norm2(x + self.dropout(self.multihead_attn(x, memory, memory)[0]))
        return last(x + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x))))))


class PlainStack(nn.Module):
    def __init__(self, layers, *sizes):
        super().__init__()
        self.input_blocks = nn.ModuleList(PlainLayer(*sizes) for _ in range(layers // 2))
        self.middle_block = PlainLayer(*sizes)
        self.output_blocks = nn.ModuleList(PlainLayer(*sizes) for _ in range(layers // 2))
        self.linear_blocks = nn.ModuleList(nn.Linear(2 * sizes[0], sizes[0]) for _ in range(layers // 2))
        self.norm = nn.LayerNorm(sizes[0])

    def forward(self, x, padding=None, memory=None):
        kept = []
        for block in self.input_blocks:
            x = block(x, padding, memory)
            kept.append(x)
        x = self.middle_block(x, padding, memory)
        for block, linear in zip(self.output_blocks, self.linear_blocks):
            x = block(linear(torch.cat([x, kept.pop()], dim=-1)), padding, memory)
        return self.norm(x)


class PlainTextLayer(PlainLayer):
    """CLIP's: pre-norm, causal, quick GELU."""

    def forward(self, x, mask):
        h = self.norm1(x)
        x = x + self.self_attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        h = self.linear1(self.norm2(x))
        return x + self.linear2(h * torch.sigmoid(1.702 * h))


class PlainText(nn.Module):
    def __init__(self, tower):
        super().__init__()
        width, layers = tower.positional_embedding.shape[1], tower.transformer.layers
        self.token_embedding = nn.Embedding(*tower.token_embedding.weight.shape)
        self.positional_embedding = nn.Parameter(torch.empty_like(tower.positional_embedding))
        layers = nn.ModuleList(PlainTextLayer(width, layers[0].self_attn.heads, 4 * width) for _ in layers)
        self.transformer = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(width)})
        self.text_projection = nn.Linear(width, tower.text_projection.out_features, bias=False)
        self.load_state_dict(tower.state_dict())

    def forward(self, ids):
        x = (self.token_embedding(ids) + self.positional_embedding).permute(1, 0, 2)
        mask = torch.full((len(x), len(x)), float("-inf"), device=x.device).triu(1)
        for layer in self.transformer["layers"]:
            x = layer(x, mask)
        x = self.transformer["norm"](x).permute(1, 0, 2)
        return self.text_projection(x[torch.arange(len(x)), ids.argmax(-1)])[:, None]


class PlainDenoiser(nn.Module):
    def __init__(self, denoiser):
        super().__init__()
        c = denoiser.cfg
        self.time_embedding = TimestepEmbedding(c.text_encoded_dim, c.latent_dim)
        self.emb_proj = nn.Sequential(nn.ReLU(), nn.Linear(c.text_encoded_dim, c.latent_dim))
        self.query_pos = Positions(c.max_positions, c.latent_dim)
        self.encoder = PlainStack(c.num_layers, c.latent_dim, c.num_heads, c.ff_size, c.dropout)
        self.load_state_dict(denoiser.state_dict())

    def forward(self, x, timesteps, text):
        x, text = x.permute(1, 0, 2), text.permute(1, 0, 2)
        n, time = len(x), self.time_embedding(timesteps.expand(x.shape[1]).clone())[None]
        x = torch.cat((x, torch.cat((time, self.emb_proj(text)), 0)), axis=0)
        return self.encoder(x + self.query_pos.pe[:len(x), None])[:n].permute(1, 0, 2)


class PlainVAE(nn.Module):
    def __init__(self, vae, c):
        super().__init__()
        sizes = (c.num_layers, c.latent_dim, c.num_heads, c.ff_size, c.dropout)
        self.global_motion_token = nn.Parameter(torch.empty_like(vae.global_motion_token))
        self.skel_embedding, self.final_layer = nn.Linear(vae.nfeats, c.latent_dim), nn.Linear(c.latent_dim, vae.nfeats)
        self.query_pos_encoder, self.query_pos_decoder = (Positions(c.max_positions, c.latent_dim) for _ in range(2))
        self.encoder, self.decoder = PlainStack(*sizes), PlainStack(*sizes, True)
        self.load_state_dict(vae.state_dict())

    def encode(self, features, lengths):
        x = self.skel_embedding(features).permute(1, 0, 2)
        tokens = self.global_motion_token[:, None].repeat(1, len(features), 1)
        there = torch.arange(len(x), device=x.device)[None] < lengths[:, None]
        mask = torch.cat((torch.ones(len(features), len(tokens), dtype=torch.bool, device=x.device), there), 1)
        x = torch.cat((tokens, x), 0)
        dist = self.encoder(x + self.query_pos_encoder.pe[:len(x), None], ~mask)[:len(tokens)]
        return dist.permute(1, 0, 2).chunk(2, 1)

    def decode(self, z, lengths):
        mask = torch.arange(int(lengths.max()), device=z.device)[None] < lengths[:, None]
        queries = torch.zeros(mask.shape[1], len(z), z.shape[-1], device=z.device)
        x = self.decoder(queries + self.query_pos_decoder.pe[:len(queries), None], ~mask, z.permute(1, 0, 2))
        x = self.final_layer(x)
        x[~mask.T] = 0
        return x.permute(1, 0, 2)


class Baseline(nn.Module):
    """`generate` of the MLD `model` and its training steps, as published."""

    def __init__(self, model):
        super().__init__()
        self.own, self.tokenizer = [model], model.text_encoder.tokenizer  # in a list: not a part of this module
        self.tower, self.denoiser = PlainText(model.text_encoder.tower), PlainDenoiser(model.denoiser)
        self.vae = PlainVAE(model.vae, model.config.vae)

    def text(self, texts):
        ids = torch.from_numpy(self.tokenizer(texts, 77, pad_to=77))
        return self.tower(ids.to(self.own[0].mean.device))

    def ddim(self, denoise, x, steps=50):
        """eta 0; the schedule's numbers are looked up as tensors, step by step."""
        abar = self.own[0].schedule.alphas_cumprod
        stride = len(abar) // steps
        for t in torch.arange(steps).flip(0) * stride + 1:
            before = t - stride
            a, b = abar[t], abar[before] if before >= 0 else abar[0]
            eps = denoise(x, t.to(x.device))
            x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
            x = b**0.5 * x0 + (1 - b) ** 0.5 * eps
        return x

    def denoise(self, text, x_T, scale=7.5):
        def guided(x, t):
            without, having = self.denoiser(torch.cat([x] * 2), t, text).chunk(2)
            return without + scale * (having - without)
        return self.ddim(guided, x_T)

    def decode(self, z, lengths):
        features, model = self.vae.decode(z, lengths), self.own[0]
        return features * model.std + model.mean, model.to_joints(features)

    @torch.no_grad()
    def sentence(self, texts, lengths, x_T):
        return self.decode(self.denoise(self.text([""] * len(texts) + texts), x_T), lengths)

    def vae_loss(self, features, lengths):
        mu, logvar = self.vae.encode(features, lengths)
        recon = self.vae.decode(mu + (0.5 * logvar).exp() * torch.randn_like(mu), lengths).float()
        to_joints, kl = self.own[0].to_joints, 0.5 * (mu.square() + logvar.exp() - logvar - 1).mean()
        return F.smooth_l1_loss(recon, features) + F.smooth_l1_loss(to_joints(recon), to_joints(features)) + 1e-4 * kl

    def diffusion_loss(self, features, lengths, texts):
        """The clips and the prompts are encoded anew in every step."""
        with torch.no_grad():
            mu, logvar = self.vae.encode(features, lengths)
            z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
            text = self.text(["" if random.random() < 0.1 else text for text in texts])
        eps, t = torch.randn_like(z), torch.randint(1000, (len(z),), device=z.device)
        a = self.own[0].schedule.alphas_cumprod.to(z.device)[t][:, None, None]
        return F.mse_loss(self.denoiser(a**0.5 * z + (1 - a) ** 0.5 * eps, t, text), eps)


# ----------------------------------------------------------------------------------------------------------------------
# Both sides, and what they work on


def prompts(count):
    """Different prompts of 10 tokens each, start and end included."""
    words = product(("man", "woman", "person", "boy"), ("walks", "runs", "jumps", "turns"),
                    ("left", "right", "back", "up"), ("stops", "waits", "sits", "bows"),
                    ("down", "again", "twice", "there"))
    return [f"a {a} {b} {c} then {d} {e} slowly" for a, b, c, d, e in islice(words, count)]


def draw_lengths(count, longest=196, seed=0):
    """HumanML3D's lengths, nearly: 30% are cut at 196 frames, the rest are spread evenly from 40 on, in fours; the mean
    is that of its paper, 7.1 s at 20 frames a second."""
    rng = np.random.default_rng(seed)
    short = rng.integers(min(10, longest // 8), longest // 4, count) * 4
    return torch.from_numpy(np.where(rng.random(count) < 0.3, longest // 4 * 4, short))


class Sides:
    """Ours, the baseline, their device and their sizes. changes: settings of the VAE and the denoiser."""

    def __init__(self, quick, device, baseline=True, **changes):
        torch.manual_seed(0)
        c, (width, layers), self.frames = Config(), (32, 2) if quick else (768, 12), 24 if quick else 196
        if quick:
            for part in (c.vae, c.denoiser):
                part.latent_dim, part.ff_size, part.num_layers, part.num_heads = 16, 32, 3, 2
            c.denoiser.text_encoded_dim = width
        for part in (c.vae, c.denoiser):
            for key, value in changes.items():
                setattr(part, key, value)
        tower = TextTower(49408, width, layers, width // 16 if quick else 12, width)
        self.model = MLD(c, CLIPTextEncoder(tower), std=torch.full((263,), 0.1)).eval().to(device)
        self.baseline = Baseline(self.model).eval().to(device) if baseline else None
        self.device, self.quick = torch.device(device), quick
        with torch.no_grad():
            self.empty = self.model.text_encoder([""])

    def compiled(self):
        """The same with a denoiser to be compiled at its first call."""
        other = Sides(self.quick, self.device, baseline=False)
        other.model.compile_denoiser()
        return other

    def noise(self, count):
        c = self.model.config.vae
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, c.latent_size, c.latent_dim, generator=generator).to(self.device)

    def lengths(self, count):
        return torch.full((count,), self.frames, device=self.device)

    @torch.inference_mode()
    def denoise(self, text, x_T, **settings):
        """generate, with the texts' embeddings given and without the decoder."""
        given = text, self.empty.expand(len(text), -1, -1)
        with mock.patch.object(self.model, "conditions", lambda *_, **__: given):
            lengths = self.lengths(len(x_T))
            return self.model.generate([""] * len(x_T), lengths=lengths, x_T=x_T, latents=True, **settings)

    def sentence(self, texts, x_T, **settings):
        return self.model.generate(texts, lengths=self.lengths(len(texts)), x_T=x_T, **settings)


# ----------------------------------------------------------------------------------------------------------------------
# The ladder


RUNGS = ("the baseline", "batch first, one product for q, k and v, fused attention", "inference mode",
         "text: as many positions as the longest prompt has", "text: the empty prompt once, not per sample",
         "text: the empty prompt kept",
         "the scheduler's coefficients as plain numbers", "time and condition embedded before the loop",
         "last denoiser layer: the latent token only",
         "one latent token: the decoder's cross-attention as a Linear", "no mask where all lengths agree",
         "the decoder's first self-attention once for all samples", "decoding 8 samples at a time",
         "text and denoiser: all layers in one call of C: generate() as it is")


def climb(sides, rung, texts, x_T):
    """A sentence -> (features, joints) with the speed-ups 1 to `rung` of RUNGS."""
    m, b, B, lengths = sides.model, sides.baseline, len(texts), sides.lengths(len(texts))
    if rung in (0, len(RUNGS) - 1):
        return sides.sentence(texts, x_T) if rung else b.sentence(texts, lengths, x_T)
    for layer in (x for x in m.vae.decoder.modules() if hasattr(x, "multihead_attn")):
        layer.multihead_attn.one_key_shortcut = rung >= 9
    encoder = m.text_encoder

    def encode(prompts):
        ids = torch.from_numpy(encoder.tokenizer(prompts, 77, pad_to=77 if rung < 3 else None)).to(sides.device)
        return encoder.tower.pooled(ids, encoder.tokenizer.end)[:, None]

    # with WHY_NOT the denoiser leaves out what its last layer need not compute
    backends = mock.patch.multiple(backend, WHY_NOT=backend.WHY_NOT if rung >= 8 else "", MODE="torch")
    with torch.inference_mode() if rung >= 2 else torch.no_grad(), backends:
        if rung < 4:
            text = encode([""] * B + texts)
        else:
            empty, text = (sides.empty, encode(texts)) if rung >= 5 else encode(["", *texts]).split((1, B))
            text = torch.cat((empty.expand(B, -1, -1), text))
        text, before = (m.denoiser.condition_tokens(text), True) if rung >= 7 else (text, False)

        def denoise(x, t):
            t = t if before else t.expand(B).repeat(2)
            return guide(*m.denoiser(x.repeat(2, 1, 1), t, text, embedded=before).chunk(2), 7.5)
        embed = m.denoiser.time_embedding if before else None
        z = sample(denoise, x_T, m.schedule, embed=embed) if rung >= 6 else b.ddim(denoise, x_T)
        if rung >= 12:
            features = m.decode(z, lengths)
        elif rung == 11:
            features = m.vae.decode(z, None, sides.frames)
        else:
            known = lengths if rung < 10 else None
            queries = m.vae.query_pos_decoder(z.new_zeros(B, sides.frames, z.shape[-1]))
            features = zero_padding(m.vae.final_layer(m.vae.decoder(queries, known, memory=z)), known)
        return m.finish(features, lengths if rung < 10 else None)
