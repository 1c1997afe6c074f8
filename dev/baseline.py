"""What the benchmark measures nanoMLD against: the same networks, written as the published code is.

Torch's own nn.MultiheadAttention and nn.LayerNorm, sequence first (L, B, D), with boolean masks.
Prompts are padded to 77 tokens, and the empty prompt is encoded anew for every sample. The sampler
is a Python loop over steps that looks the schedule up in tensors; guidance is a concatenation.
Parameters have our names, so both sides share their weights and give the same numbers. At the end
of the file are the speed-ups that lead from there to ours, one by one.
"""
import copy
import random
from itertools import islice, product
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import fast
from clip import CLIPTextEncoder, TextTower
from config import Config
from kernels import graphs
from mld import MLD
from transformer import zero_padding
from vae import reparameterize, vae_loss

# --------------------------------------------------------------------------------------------------
# The networks


class PlainLayer(nn.Module):
    """Post-norm self-attention, cross-attention if there is a memory, feed-forward."""

    def __init__(self, dim, heads, ff, dropout=0.0, cross=False):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, ff), nn.Linear(ff, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout)
            self.norm3 = nn.LayerNorm(dim)

    def forward(self, x, padding=None, memory=None):
        x = self.norm1(x + self.dropout(self.self_attn(x, x, x, key_padding_mask=padding)[0]))
        last = self.norm2
        if memory is not None:
            x = self.norm2(x + self.dropout(self.multihead_attn(x, memory, memory)[0]))
            last = self.norm3
        return last(x + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x))))))


class PlainStack(nn.Module):
    """The skip-connected stack of config c, with the weights of ours."""

    def __init__(self, c, ours, cross=False):
        super().__init__()
        dim, half = c.latent_dim, c.num_layers // 2

        def layers(count):
            sizes = dim, c.num_heads, c.ff_size, c.dropout, cross
            return nn.ModuleList(PlainLayer(*sizes) for _ in range(count))

        self.input_blocks, self.output_blocks = layers(half), layers(half)
        self.middle_block = layers(1)[0]
        self.linear_blocks = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(half))
        self.norm = nn.LayerNorm(dim)
        self.load_state_dict(ours.state_dict())

    def forward(self, x, padding=None, memory=None):
        kept = []
        for block in self.input_blocks:
            x = block(x, padding, memory)
            kept.append(x)
        x = self.middle_block(x, padding, memory)
        for block, linear in zip(self.output_blocks, self.linear_blocks):
            x = block(linear(torch.cat([x, kept.pop()], dim=-1)), padding, memory)
        return self.norm(x)


class Baseline(nn.Module):
    """`generate` of the MLD `model` and its training steps, as published."""

    def __init__(self, model):
        super().__init__()
        self.own, c = [model], model.config  # in a list, so that it is no part of this module
        self.tokenizer = model.text_encoder.tokenizer
        self.tower = copy.deepcopy(model.text_encoder.tower)
        stack, width = self.tower.transformer, self.tower.positional_embedding.shape[1]
        layer = nn.TransformerEncoderLayer(
            width, stack.layers[0].self_attn.heads, 4 * width, 0.0, norm_first=True,
            activation=lambda x: x * torch.sigmoid(1.702 * x))
        self.tower.transformer = nn.TransformerEncoder(
            layer, len(stack.layers), nn.LayerNorm(width), enable_nested_tensor=False)
        self.tower.transformer.load_state_dict(stack.state_dict())
        self.denoiser, self.vae = copy.deepcopy(model.denoiser), copy.deepcopy(model.vae)
        self.denoiser.encoder = PlainStack(c.denoiser, self.denoiser.encoder)
        self.vae.encoder = PlainStack(c.vae, self.vae.encoder)
        self.vae.decoder = PlainStack(c.vae, self.vae.decoder, cross=True)

    def text(self, texts):
        """-> (B, 1, E), from all 77 positions."""
        tower, ids = self.tower, torch.from_numpy(self.tokenizer(texts, 77, pad_to=77))
        ids = ids.to(self.own[0].mean.device)
        x = (tower.token_embedding(ids) + tower.positional_embedding).permute(1, 0, 2)
        mask = torch.full((len(x), len(x)), float("-inf"), device=x.device).triu(1)
        x = tower.transformer(x, mask, is_causal=False).permute(1, 0, 2)
        return tower.text_projection(x[torch.arange(len(x)), ids.argmax(-1)])[:, None]

    def predict(self, x, t, text):
        """One pass of the denoiser."""
        net, x, text = self.denoiser, x.permute(1, 0, 2), text.permute(1, 0, 2)
        n, time = len(x), net.time_embedding(t.expand(x.shape[1]).clone())[None]
        x = torch.cat((x, torch.cat((time, net.emb_proj(text)), 0)), axis=0)
        return net.encoder(x + net.query_pos.pe[:len(x), None])[:n].permute(1, 0, 2)

    def ddim(self, denoise, x, steps=50):
        """DDIM with eta 0, looking the schedule's numbers up as tensors."""
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
            without, having = self.predict(torch.cat([x] * 2), t, text).chunk(2)
            return without + scale * (having - without)
        return self.ddim(guided, x_T)

    def encode(self, features, lengths):
        net, B = self.vae, len(features)
        x = net.skel_embedding(features).permute(1, 0, 2)
        tokens = net.global_motion_token[:, None].repeat(1, B, 1)
        there = torch.arange(len(x), device=x.device)[None] < lengths[:, None]
        mask = torch.cat((torch.ones(B, len(tokens), dtype=torch.bool, device=x.device), there), 1)
        x = torch.cat((tokens, x), 0) + net.query_pos_encoder.pe[:mask.shape[1], None]
        return net.encoder(x, ~mask)[:len(tokens)].permute(1, 0, 2).chunk(2, 1)

    def features(self, z, lengths):
        """The VAE's decoder -> normalised features."""
        net = self.vae
        mask = torch.arange(int(lengths.max()), device=z.device)[None] < lengths[:, None]
        queries = torch.zeros(mask.shape[1], len(z), z.shape[-1], device=z.device)
        queries = queries + net.query_pos_decoder.pe[:len(queries), None]
        x = net.final_layer(net.decoder(queries, ~mask, z.permute(1, 0, 2)))
        x[~mask.T] = 0
        return x.permute(1, 0, 2)

    def decode(self, z, lengths):
        features, model = self.features(z, lengths), self.own[0]
        return features * model.std + model.mean, model.to_joints(features)

    @torch.no_grad()
    def sentence(self, texts, lengths, x_T):
        return self.decode(self.denoise(self.text([""] * len(texts) + texts), x_T), lengths)

    def vae_loss(self, features, lengths):
        mu, logvar = self.encode(features, lengths)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        recon, to_joints = self.features(z, lengths).float(), self.own[0].to_joints
        kl = 0.5 * (mu.square() + logvar.exp() - logvar - 1).mean()
        joints = F.smooth_l1_loss(to_joints(recon), to_joints(features))
        return F.smooth_l1_loss(recon, features) + joints + 1e-4 * kl

    def diffusion_loss(self, features, lengths, texts):
        """The clips and the prompts are encoded anew in every step."""
        with torch.no_grad():
            mu, logvar = self.encode(features, lengths)
            z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
            text = self.text(["" if random.random() < 0.1 else text for text in texts])
        eps, t = torch.randn_like(z), torch.randint(1000, (len(z),), device=z.device)
        a = self.own[0].schedule.alphas_cumprod.to(z.device)[t][:, None, None]
        return F.mse_loss(self.predict(a**0.5 * z + (1 - a) ** 0.5 * eps, t, text), eps)


# --------------------------------------------------------------------------------------------------
# Both sides, and what they work on


def prompts(count):
    """Different prompts of 10 tokens each, start and end included."""
    words = ("man woman person boy", "walks runs jumps turns", "left right back up",
             "stops waits sits bows", "down again twice there")
    chosen = islice(product(*(some.split() for some in words)), count)
    return [f"a {a} {b} {c} then {d} {e} slowly" for a, b, c, d, e in chosen]


def draw_lengths(count, longest=196, seed=0):
    """Lengths spread nearly as HumanML3D's: 30% are cut at 196 frames, the rest are uniform from
    40 on in steps of 4. The mean is the paper's, 7.1 s at 20 frames a second."""
    rng = np.random.default_rng(seed)
    short = rng.integers(min(10, longest // 8), longest // 4, count) * 4
    return torch.from_numpy(np.where(rng.random(count) < 0.3, longest // 4 * 4, short))


def training_lengths(batch, quick, device):
    """-> batches of lengths: 6 of 16 that were sorted, as train.py draws them, and 16 at random."""
    lengths = draw_lengths(16 * batch, 24 if quick else 196).to(device)
    grouped = lengths.sort()[0].split(batch)
    return [grouped[i] for i in (13, 2, 8, 14, 5, 11)], lengths.split(batch)


def random_clips(lengths):
    """-> normalised features (B, T, 263), zero where a clip has ended, and the lengths (B,)."""
    shape = len(lengths), int(lengths.max()), 263
    return zero_padding(torch.randn(shape, device=lengths.device), lengths), lengths


def vae_step_loss(model, features, lengths, eps=None):
    """The loss of a training step of our VAE."""
    mu, logvar = model.vae.encode(features, lengths)
    recon = model.vae.decode(reparameterize(mu, logvar, eps), lengths, features.shape[1])
    settings = model.config.vae
    return vae_loss(features, recon, mu, logvar, lengths, settings, model.to_joints)["loss"]


def trainer(net, loss_of, bf16=False, whole=True, graphed=False):
    """-> function(*tensors) that takes a training step of `net` with the loss loss_of(*tensors).

    whole: clip the gradients and average the weights as well, as train.py does. graphed: forward
    and backward are a CUDA graph."""
    net.train()
    params = list(net.parameters())
    kind = params[0].device.type
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=kind == "cuda")
    average = [p.detach().clone() for p in params] if whole else None

    def loss_in_its_type(_, *tensors):
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            return {"loss": loss_of(*tensors)}

    graph = graphs.TrainingGraph(loss_in_its_type, params) if graphed else None

    def step(*tensors):
        if graphed:
            loss = graph((), *tensors)["loss"]
        else:
            optimizer.zero_grad()
            loss = loss_in_its_type((), *tensors)["loss"]
            loss.backward()
        if whole:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if whole:
            torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)
        return loss.detach()
    return step


class Sides:
    """Our model and the baseline with the same random weights, at the published sizes (tiny with
    `quick`). changes: settings of both the VAE and the denoiser."""

    def __init__(self, quick, device, baseline=True, **changes):
        torch.manual_seed(0)
        c, (width, layers) = Config(), (32, 2) if quick else (768, 12)
        self.frames, self.device, self.quick = 24 if quick else 196, torch.device(device), quick
        tiny = dict(latent_dim=16, ff_size=32, num_layers=3, num_heads=2) if quick else {}
        for key, value in (tiny | changes).items():
            setattr(c.vae, key, value)
            setattr(c.denoiser, key, value)
        c.denoiser.text_encoded_dim = width
        tower = TextTower(49408, width, layers, width // 16 if quick else 12, width)
        std = torch.full((263,), 0.1)
        self.model = MLD(c, CLIPTextEncoder(tower), std=std).eval().to(device)
        self.baseline = Baseline(self.model).eval().to(device) if baseline else None
        with torch.no_grad():
            self.empty = self.model.text_encoder([""])

    def set_dropout(self, share):
        """Of our side, in the layers and on attention probabilities alike."""
        for module in self.model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = share

    def compiled(self):
        """Our side again, with a denoiser that is compiled at its first call."""
        other = Sides(self.quick, self.device, baseline=False)
        other.model.compile_denoiser()
        return other

    def noise(self, count):
        c = self.model.config.vae
        shape, generator = (count, c.latent_size, c.latent_dim), torch.Generator().manual_seed(1)
        return torch.randn(shape, generator=generator).to(self.device)

    def lengths(self, count):
        return torch.full((count,), self.frames, device=self.device)

    @torch.inference_mode()
    def denoise(self, text, x_T, **settings):
        """generate() for text embeddings already at hand, without the decoder -> latents."""
        given = text, self.empty.expand(len(text), -1, -1)
        with mock.patch.object(self.model.condition, "encode", lambda *_, **__: given):
            return self.sentence([""] * len(x_T), x_T, latents=True, **settings)

    def sentence(self, texts, x_T, **settings):
        lengths = self.lengths(len(texts))
        return self.model.generate(texts, lengths=lengths, x_T=x_T, **settings)


# --------------------------------------------------------------------------------------------------
# The ladder

RUNGS = ("the baseline",
         "batch first, fused attention, short prompts, the empty one kept, plain coefficients",
         "time and condition embedded before the loop, both halves of guidance in one batch",
         "last denoiser layer: the latent token only",
         "one latent token: the decoder's cross-attention as a Linear",
         "no mask where all lengths agree",
         "the decoder's first self-attention once for all samples",
         "decoding 8 samples at a time",
         "text and denoiser: all layers in one call of C: generate() as it is")
ADDED = ("Guided", "first_tokens", "attend_to_memory", "needed_lengths", "shared_queries",
         "in_parts", "few_tokens")  # by rung 2 and those above it


def climb(sides, rung, texts, x_T):
    """One sentence per sample -> (features, joints), with the speed-ups 1 to `rung` of RUNGS."""
    if rung == 0:
        return sides.baseline.sentence(texts, sides.lengths(len(texts)), x_T)
    with fast.without(*ADDED[rung - 1:]):
        return sides.sentence(texts, x_T)
