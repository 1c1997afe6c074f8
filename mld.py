"""The denoiser, and MLD itself: condition -> latent diffusion -> VAE decoder -> motion.

    model = MLD(config, text_encoder)
    features, joints = model.generate(texts=["a man jumps"], lengths=[80], seed=1)

    python mld.py "a man jumps"       one sentence through the model that ships, step by step

The denoiser's tokens, in this order: N latent tokens, one time token, L condition tokens (N = L = 1
as published). denoiser.length_token, which is ours, adds one that tells the motion's length.

| form      | diffusion on | self-attention over              | cross-attention to       | output  |
| --------- | ------------ | -------------------------------- | ------------------------ | ------- |
| trans_enc | latents      | [latents, time, condition] + pos |                          | latents |
| trans_enc | frames       | [time, condition, frames] + pos  |                          | frames  |
| trans_dec | either       | [latents or frames] + pos        | [time, condition] + pos  | all     |
| modulated | latents      | none (modulated.py)              | none: scales of features | latents |

Parameters carry their published names, except the action embedding (emb_proj.action_embedding
there, emb_proj.weight here) and final_linear, which is ours.
"""
import dataclasses

import torch
import torch.nn as nn
import torch.nn.functional as F

import fast
import motion
from conditions import CONDITIONS, LengthEstimator, drop, pick
from diffusion import (add_noise, draw_noise, guide, make_generators, make_schedule, plan,
                       training_target)
from latents import diffused_shape, ends, from_diffused, identity, to_diffused
from modulated import ModulatedLayers
from transformer import Positions, Stack, TimestepEmbedding, zero_padding
from vae import MotionVAE, clip_mean

# --------------------------------------------------------------------------------------------------
# The denoiser


class Denoiser(nn.Module):
    """epsilon_theta(z_t, t, c) of sections 3.2 and 3.3: predicts the noise (or x0, or v) in noised
    latents (B, N, D or `width`, latents.py); with `nfeats`, in noised frames (B, T, nfeats)."""

    def __init__(self, cfg, nfeats=None, width=None, tokens=1, schedule=None):
        super().__init__()
        D, self.cfg, self.nfeats = cfg.latent_dim, cfg, nfeats
        self.condition = CONDITIONS[cfg.condition]()
        flip, shift = cfg.flip_sin_to_cos, cfg.freq_shift
        self.time_embedding = TimestepEmbedding(self.condition.time_width(cfg), D, flip, shift)
        self.emb_proj = self.condition.projection(cfg)
        if cfg.length_token:
            self.length_embedding = TimestepEmbedding(D, D, flip, shift)
        self.width, self.modulated = nfeats or width or D, None
        if cfg.arch == "modulated":
            self.modulated = ModulatedLayers(cfg, tokens * self.width, schedule)
            return
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

    def level(self, timesteps):
        """Noise levels (B,) -> what `predict` takes of them."""
        time = self.time_embedding(timesteps)
        return self.modulated.level(time, timesteps) if self.modulated else time

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

    def predict(self, x_t, time, condition, lengths=None):
        """forward, from the embedding of the noise level (B, D) and the condition's tokens."""
        if self.modulated:
            return self.modulated(x_t, time.expand(len(x_t), -1), condition)
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
# MLD


class MLD(nn.Module):
    """Everything between a prompt and a motion. Latents z (B, N, D) are the VAE's; where there is
    no VAE, the diffusion works on the normalised frames themselves, (B, T, F).

    config        Config
    text_encoder  module: list of B strings -> (B, L, E); for denoiser.condition "text"
    mean, std     (F,) of the training set's features
    rest          (24, 3): the rest pose of the "smpl" skeleton, in metres"""

    def __init__(self, config, text_encoder=None, mean=None, std=None, rest=None):
        super().__init__()
        self.config, nfeats, c = config, config.data.nfeats, config.denoiser
        self.vae = None if config.vae.arch == "none" else MotionVAE(config.vae, nfeats)
        d, (tokens, width) = config.diffusion, diffused_shape(config)
        self.schedule = make_schedule(d.beta_schedule, d.num_train_timesteps, d.beta_start,
                                      d.beta_end, d.prediction_type)
        self.denoiser = Denoiser(c, None if self.vae else nfeats, width, tokens, self.schedule)
        self.condition = self.denoiser.condition
        self.text_encoder = text_encoder
        self.length_estimator = LengthEstimator(self.condition.summary_width(c), config.data)

        def buffer(name, value, default):
            value = default if value is None else torch.as_tensor(value, dtype=torch.float32)
            self.register_buffer(name, None if value is None else value.clone())

        buffer("mean", mean, torch.zeros(nfeats))
        buffer("std", std, torch.ones(nfeats))
        buffer("rest", rest, torch.zeros(24, 3) if config.data.skeleton == "smpl" else None)
        self.normalize_latents = c.normalize_latents and self.vae is not None
        if self.normalize_latents:  # set by train.py, from the training set's latents
            for name, default in identity(config).items():
                buffer(name, None, default)

    @property
    def dtype(self):
        """The type of the networks' weights."""
        return self.denoiser.time_embedding.linear_1.weight.dtype

    def _apply(self, fn, recurse=True):
        """What half(), to(device) and the like call."""
        return fast.keep_buffers(self, lambda: super(MLD, self)._apply(fn, recurse))

    # --- generation ---

    @torch.inference_mode()
    def generate(self, texts=None, actions=None, *, lengths, guidance_scale=None,
                 guidance_rescale=None, sampler=None, num_inference_steps=None, eta=None, seed=None,
                 x_T=None, callback=None, progress=False, latents=False, **others):
        """Motions for B texts or B action numbers (or neither: unconditional), of B lengths in
        frames.

        guidance_scale ... eta   as in DiffusionConfig, which has the defaults; guidance_scale 1 is
                  without guidance, 0 without the condition
        seed      a whole number s: motion i draws its noise from a generator of its own, seeded
                  s + i, so it is the same alone and in any batch, to rounding (except where
                  denoiser.mask_padding is off, as with the published weights without a VAE: there
                  frames attend to the padding up to the longest motion of the batch); or a list
                  of B seeds; or None for torch's global generator
        x_T       noise to start from: (B, N, D), (B, principal, D) or, without a VAE, (B, T, F)
        callback, progress   see diffusion.walk
        latents   stop before the VAE's decoder and return z (B, N, D)
        others    B values of another kind of condition, under its keyword (conditions.py)

        Returns features (B, T, F), not normalised, and joints (B, T, J, 3) in metres, both zero
        after each motion's own length, in float32 (float64 after model.double()). ValueError for
        input or settings that cannot be used."""
        self.check_eval()
        lengths = self.check_lengths(lengths)
        given = pick(self.condition, texts=texts, actions=actions, **others)
        d = self.sampling(
            sampler=sampler, num_inference_steps=num_inference_steps, eta=eta,
            guidance_scale=1.0 if given is None else guidance_scale,
            guidance_rescale=guidance_rescale)
        generator = make_generators(seed, len(lengths))
        x_T = self.start(lengths, generator, x_T)  # z_T ~ N(0, I)
        cond, uncond = self.condition.encode(self, given, len(lengths), known_only=True)
        steps = plan(self.schedule, d.sampler, d.num_inference_steps, d.eta)
        z = fast.walk(self, steps, x_T, cond, uncond, lengths, d, generator, callback, progress)
        if self.vae is None:
            return self.finish(z, fast.needed_lengths(lengths))
        z = from_diffused(self, z)
        return z if latents else fast.decode(self, z.to(self.dtype), lengths)

    def sampling(self, **changes):
        """The model's DiffusionConfig with those changes that are not None."""
        changes = {key: value for key, value in changes.items() if value is not None}
        return dataclasses.replace(self.config.diffusion, **changes)

    def guided(self, cond, uncond, lengths, d):
        """The guided denoiser of section 3.3, a function of x_t and t, as the equation says it:

            eps_hat = s eps(z_t, t, c) + (1 - s) eps(z_t, t, no c),   s = d.guidance_scale
        """
        def ask(condition, x_t, t):
            return self.denoiser(x_t.to(self.dtype), t, condition, lengths).to(x_t.dtype)

        if d.guidance_scale in (0, 1):
            return lambda x_t, t: ask(cond if d.guidance_scale else uncond, x_t, t)
        frames = None if self.vae else lengths
        return lambda x_t, t: guide(ask(uncond, x_t, t), ask(cond, x_t, t), d.guidance_scale,
                                    d.guidance_rescale, frames)

    def start(self, lengths, generator, x_T=None):
        """The given x_T, its shape checked, or one from N(0, I): (B, N, D), or (B, T, F)."""
        B, T = len(lengths), int(lengths.max())
        shape = (B, *diffused_shape(self.config)) if self.vae else (B, T, len(self.mean))
        if x_T is None:
            frames = None if self.vae else lengths.cpu()  # how many rows each sample draws
            return draw_noise(shape, generator, self.mean.device, self.mean.dtype, frames)
        if x_T.shape != shape:
            raise ValueError(f"x_T must have shape {shape}, found {tuple(x_T.shape)}.")
        return x_T.to(self.mean.device)

    def check_eval(self):
        if self.denoiser.training or self.vae and self.vae.training:
            raise ValueError("generate would run with dropout; call model.eval() first.")
        kind = self.dtype if self.vae is None else next(self.vae.parameters()).dtype
        if kind != self.dtype:
            raise ValueError(f"The denoiser is {self.dtype} and the VAE {kind}; convert both.")

    # --- training ---

    def diffusion_loss(self, x0, lengths=None, texts=None, actions=None, t=None, eps=None,
                       dropped=None, whole=None, **others):
        """The denoiser's loss (section 3.2): |output - target|^2 at a noise level t per sample,
        where the target is eps, x0 or v. The condition is dropped for some samples, so that one
        network learns both sides of guidance (section 3.3).

        x0        (B, N, D) latents as the VAE makes them, or normalised frames (B, T, F)
        lengths   (B,) of frames, None = all T; padded frames do not count. 0 = not told, of latents
        texts, actions, others   the condition, as in `generate`; an action of -1 is unknown
        t, eps, dropped   (B,) int64, like x_T of `generate`, (B,) bool; None: drawn from torch's
                  global generator
        whole     (B,) lengths of the clips, x0 being parts of them: adds their "length_loss"

        Returns {"loss": scalar, "error": (B,), each sample's loss, without gradient}."""
        B, device = len(x0), x0.device
        padded = None if self.vae else lengths
        x0 = zero_padding(x0, padded)
        x0 = to_diffused(self, x0)
        t = torch.randint(len(self.schedule), (B,), device=device) if t is None else t
        eps = torch.randn_like(x0) if eps is None else eps
        given = pick(self.condition, texts=texts, actions=actions, **others)
        cond, uncond = self.condition.encode(self, given, B)
        if dropped is None and cond is not None:
            dropped = torch.rand(B, device=device) < self.config.denoiser.condition_dropout
        x_t = add_noise(self.schedule, x0, eps, t)
        output = self.denoiser(x_t.to(self.dtype), t, drop(cond, uncond, dropped), lengths)
        error = output.to(x0.dtype) - training_target(self.schedule, x0, eps, t)
        error = clip_mean(error.square(), padded, per_clip=True)
        more = {} if whole is None else {"length_loss": self.length_loss(cond, whole)}
        return {"loss": error.mean(), "error": error.detach(), **more}

    # --- lengths ---

    def length_logits(self, cond, count):
        """A condition as it is encoded, for B motions -> (B, max_frames / unit_length)"""
        summary = self.condition.summary(self.denoiser.emb_proj, cond)
        if summary is None:
            summary = self.mean.new_zeros(count, 1)
        return self.length_estimator(summary.to(self.dtype)).float()

    def length_loss(self, cond, lengths):
        """Cross-entropy of the motions' lengths (B,) in frames; longer ones count as max_frames."""
        logits = self.length_logits(cond, len(lengths))
        units = (lengths // self.config.data.unit_length).clamp(1, logits.shape[1])
        return F.cross_entropy(logits, units - 1)

    @torch.inference_mode()
    def draw_lengths(self, texts=None, actions=None, count=1, seed=None, **others):
        """A list of lengths in frames, like those of the training set: one for each text or action,
        or `count` where neither is given; seed as in `generate`. ValueError for weights without a
        length estimator, such as the published ones."""
        if self.length_estimator is None:
            raise ValueError("These weights came without a length estimator; give the lengths of "
                             "the motions.")
        given = pick(self.condition, texts=texts, actions=actions, **others)
        count = count if given is None else len(given)
        cond = self.condition.encode(self, given, count, known_only=True)[0]
        shares = self.length_logits(cond, count).softmax(-1).cpu()
        # a small share is more often the estimator's doubt than a real length
        shares[shares < shares.amax(-1, keepdim=True) / 10] = 0
        generators = make_generators(seed, count) or [None] * count
        units = [1 + torch.multinomial(row, 1, generator=g).item()
                 for row, g in zip(shares, generators)]
        return [n * self.config.data.unit_length for n in units]

    @property
    def max_frames(self):
        """The longest motion that the position tables have rows for."""
        if self.vae is None:
            c = self.config.denoiser
            return c.max_positions - 2 - c.length_token
        return self.config.vae.max_positions - 2 * self.config.vae.latent_size

    def check_lengths(self, lengths, count=None, limit=None):
        """A list or tensor of ints -> (B,) int64 on the model's device; ValueError for lengths that
        this model cannot make, or another number of them than `count`."""
        lengths = torch.as_tensor(lengths)
        limit = min(self.max_frames, limit or self.max_frames)
        wrong = lengths.is_floating_point() or lengths.dtype == torch.bool
        wrong = wrong or lengths.dim() != 1 or not len(lengths)
        if wrong or count not in (None, len(lengths)):
            raise ValueError(f"lengths must be {count or ''} whole numbers of frames, one per "
                             f"motion, found {lengths.tolist()}.")
        for n in lengths.tolist():
            if not 1 <= n <= limit:
                raise ValueError(f"A motion must have 1 to {limit} frames here, found {n} "
                                 f"(the position tables hold {self.max_frames}).")
        return lengths.to(self.mean.device, torch.int64)

    # --- motion <-> latents ---

    @torch.inference_mode()
    def encode_motion(self, features, lengths=None):
        """Features (B, T, F), not normalised -> the posterior's mean, z (B, N, D)."""
        self.need_vae()
        if features.shape[-1] != len(self.mean):
            raise ValueError(f"This model takes {len(self.mean)} features per frame, found "
                             f"{features.shape[-1]}.")
        if lengths is not None:
            lengths = self.check_lengths(lengths, len(features), features.shape[1])
        x = (features.to(self.mean) - self.mean) / self.std
        return self.vae.encode(x.to(self.dtype), lengths)[0]

    @torch.inference_mode()
    def decode_latent(self, z, lengths):
        """z (B, N, D) and B lengths -> features (B, T, F), not normalised, and joints (B, T, J, 3)
        in metres; T is the longest length, and both are zero after each motion's own."""
        self.need_vae()
        return fast.decode(self, z.to(self.dtype), self.check_lengths(lengths, len(z)))

    def finish(self, features, lengths):
        """Normalised features (B, T, F) -> the dataset's features, and joints; zero on padding."""
        joints = zero_padding(self.to_joints(features), lengths)
        return zero_padding(features * self.std + self.mean, lengths), joints

    def to_joints(self, features):
        """Normalised features (..., T, F) -> joints (..., T, J, 3) in metres; differentiable."""
        if self.rest is not None and not (torch.compiler.is_compiling() or self.rest.any()):
            raise ValueError("The smpl skeleton's features are rotations: joints need a rest pose "
                             "(24, 3); give MLD `rest`, from the pack or the SMPL model.")
        features = features * self.std + self.mean
        return motion.to_metres(features, self.config.data.skeleton, self.rest)

    @staticmethod
    def interpolate(z_a, z_b, n):
        """n latents on the line from z_a (N, D) to z_b, both ends included -> (n, N, D). A line,
        not a great circle: the KL weight as published is far too small for a sphere."""
        weights = torch.linspace(0, 1, n, device=z_a.device, dtype=z_a.dtype)
        return torch.lerp(z_a, z_b, weights.view(-1, 1, 1))

    def need_vae(self):
        if self.vae is None:
            raise ValueError("This model has no VAE, and so no latents: it diffuses frames "
                             "(vae.arch is none).")

    # --- faster, not exact: see fast.py ---

    def to_precision(self, precision):
        """float32, bf16 or int8 weights for sampling; returns the model."""
        return fast.to_precision(self, precision)

    def compile_denoiser(self):
        """torch.compile the denoising step, which pays for many prompts in one process."""
        fast.compile_denoiser(self)


if __name__ == "__main__":
    from flags import program
    from view import walkthrough

    program(walkthrough.main)
