"""The denoiser, and MLD itself: condition -> latent diffusion -> VAE decoder -> motion.

The denoiser's tokens, in this order (N latent tokens, one time token, L condition tokens; N = L = 1 as published; with
denoiser.length_token, which is ours, one more condition token tells the motion's length):

| form      | diffusion on | self-attention over                       | cross-attention to | read off          |
| --------- | ------------ | ----------------------------------------- | ------------------ | ----------------- |
| trans_enc | latents      | [latent tokens, time, condition] + pos    |                    | the latent tokens |
| trans_enc | frames       | [time, condition, frames] + pos           |                    | the frames        |
| trans_dec | either       | [latent tokens, or frames] + pos          | [time, cond.] + pos | all of them      |

    model = MLD(config, text_encoder)
    features, joints = model.generate(texts=["a man jumps"], lengths=[80], seed=1)

Parameters carry their published names, except the action embedding (emb_proj.action_embedding there, emb_proj.weight
here) and final_linear, which is ours.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import motion
from diffusion import add_noise, draw_noise, guide, make_generators, make_schedule, sample, training_target
from kernels import few_tokens, graphed
from kernels.few_rows import round_to_int8
from transformer import Positions, Stack, TimestepEmbedding, zero_padding
from vae import MotionVAE, clip_mean

# ----------------------------------------------------------------------------------------------------------------------
# The denoiser


class Denoiser(nn.Module):
    """epsilon_theta(x_t, t, condition) of the paper's section 3.2: predicts the noise (or x0, or v) in noised latents
    (B, N, D); with `nfeats`, in noised frames (B, T, nfeats)."""

    def __init__(self, cfg, nfeats=None):
        super().__init__()
        D, self.cfg, self.nfeats = cfg.latent_dim, cfg, nfeats
        # the published width of the time sinusoid is the text's, or the latent's where there is no text
        width = cfg.text_encoded_dim if cfg.condition == "text" else D
        self.time_embedding = TimestepEmbedding(width, D, cfg.flip_sin_to_cos, cfg.freq_shift)
        if cfg.condition == "text":
            self.emb_proj = nn.Sequential(nn.ReLU(), nn.Linear(cfg.text_encoded_dim, D))
        elif cfg.condition == "action":
            if cfg.num_actions < 1:
                raise ValueError("denoiser.condition is action, but denoiser.num_actions is 0; set it to the number of "
                                 "the dataset's actions.")
            self.emb_proj = nn.Embedding(cfg.num_actions, D)
            nn.init.xavier_uniform_(self.emb_proj.weight)
        if cfg.length_token:
            self.length_embedding = TimestepEmbedding(D, D, cfg.flip_sin_to_cos, cfg.freq_shift)
        self.query_pos = Positions(cfg.max_positions, D, cfg.position_embedding == "learned")
        sizes = (cfg.num_layers, D, cfg.num_heads, cfg.ff_size, cfg.dropout, cfg.attention_dropout, cfg.activation,
                 cfg.normalize_before)
        if cfg.arch == "trans_dec":
            self.mem_pos = Positions(cfg.max_positions, D, cfg.position_embedding == "learned")
            self.decoder = Stack(*sizes, cross=True, skip=cfg.skip_connect)
        else:  # a plain stack of post-norm layers already ends in a norm, and the published one adds none
            self.encoder = Stack(*sizes, skip=cfg.skip_connect, final_norm=cfg.skip_connect or cfg.normalize_before)
        if nfeats:
            self.pose_embd, self.pose_proj = nn.Linear(nfeats, D), nn.Linear(D, nfeats)
        self.final_linear = nn.Linear(D, D) if cfg.final_linear and not nfeats else None

    def condition_tokens(self, condition, lengths=None):
        """condition and lengths, as forward takes them -> their tokens (B, L, D), or None where there are none."""
        tokens = []
        if self.cfg.condition != "none":
            tokens.append(self.emb_proj(condition) if self.cfg.condition == "text" else self.action_tokens(condition)[:, None])
        if self.cfg.length_token:
            if lengths is None:
                raise ValueError("With denoiser.length_token the denoiser takes the motions' lengths, found none.")
            tokens.append(self.length_embedding(lengths)[:, None])
        return torch.cat(tokens, 1) if tokens else None

    def action_tokens(self, actions):
        """actions (B,) -> their embeddings (B, D); that of -1, "no action", is zero."""
        return torch.where(actions[:, None] < 0, 0.0, self.emb_proj(actions.clamp(min=0)))

    def forward(self, x_t, timesteps, condition=None, lengths=None, embedded=False):
        """x_t (B, N, D) latents or (B, T, F) frames; timesteps (B,) or one for all; condition (B, L, E) embeddings of
        texts, or (B,) action numbers, -1 for none; lengths (B,) of frames. Returns x_t's shape, padded frames zero.
        embedded: timesteps are already rows of time_embedding, (B, D) or (D,) for all, and the condition the tokens of
        condition_tokens: a sampler computes them once, before its loop.
        ValueError for latents or frames of another width."""
        width = self.nfeats or self.cfg.latent_dim
        if x_t.dim() != 3 or x_t.shape[-1] != width:
            shape = f"(B, {'T' if self.nfeats else 'N'}, {width})"
            raise ValueError(f"The denoiser takes {shape}, found {tuple(x_t.shape)}.")
        if not embedded:
            timesteps, condition = self.time_embedding(timesteps.reshape(-1)), self.condition_tokens(condition, lengths)
        tokens = timesteps.expand(len(x_t), -1)[:, None]
        tokens = tokens if condition is None else torch.cat((tokens, condition), 1)  # (B, 1 + L, D)
        keys = lengths if self.nfeats and self.cfg.mask_padding else None
        x = self.pose_embd(zero_padding(x_t, keys)) if self.nfeats else x_t
        n, c = x.shape[1], tokens.shape[1]
        if self.cfg.arch == "trans_dec":
            x = self.decoder(self.query_pos(x), keys, memory=self.mem_pos(tokens))
        elif self.nfeats:
            x = self.encoder(self.query_pos(torch.cat((tokens, x), 1)), None if keys is None else keys + c)[:, c:]
        else:
            x = few_tokens(self.encoder, self.query_pos(torch.cat((x, tokens), 1)), first=n)
        if self.nfeats:
            return zero_padding(self.pose_proj(x), lengths)
        return x if self.final_linear is None else self.final_linear(x)


class LengthEstimator(nn.Module):
    """Condition (B, C) -> logits of the motion's length, 1, 2, ... units. Ours: the published system asks the user."""

    def __init__(self, dim, data, width=128):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(),
                                 nn.Linear(width, data.max_frames // data.unit_length))

    def forward(self, condition):
        return self.net(condition)


# ----------------------------------------------------------------------------------------------------------------------
# MLD

PART = 8  # latents that the CPU decodes at once
PRECISIONS = ("float32", "bf16", "int8")  # for MLD.to_precision


class MLD(nn.Module):
    """Everything between a prompt and a motion. Latents z (B, N, D) are the VAE's; where there is no VAE they are the
    normalised frames themselves, (B, T, F), and encode_motion and decode_latent refuse.

    config        Config
    text_encoder  module: list of B strings -> (B, L, E); for denoiser.condition "text"
    mean, std     (F,) of the training set's features; rest (24, 3): the rest pose of the "smpl" skeleton, in metres
    """

    def __init__(self, config, text_encoder=None, mean=None, std=None, rest=None):
        super().__init__()
        self.config, nfeats = config, config.data.nfeats
        self.vae = None if config.vae.arch == "none" else MotionVAE(config.vae, nfeats)
        self.denoiser = Denoiser(config.denoiser, None if self.vae else nfeats)
        self.text_encoder, self.dtype = text_encoder, torch.float32
        dims = {"text": config.denoiser.text_encoded_dim, "action": config.denoiser.latent_dim, "none": 1}
        self.length_estimator = LengthEstimator(dims[config.denoiser.condition], config.data)
        d = config.diffusion
        self.schedule = make_schedule(d.beta_schedule, d.num_train_timesteps, d.beta_start, d.beta_end,
                                      d.prediction_type)

        def buffer(name, value, default):
            value = default if value is None else torch.as_tensor(value, dtype=torch.float32).clone()
            self.register_buffer(name, value)

        buffer("mean", mean, torch.zeros(nfeats))
        buffer("std", std, torch.ones(nfeats))
        buffer("rest", rest, torch.zeros(24, 3) if config.data.skeleton == "smpl" else None)
        self.normalize_latents = config.denoiser.normalize_latents and self.vae is not None  # frames are already
        if self.normalize_latents:  # set by train.py, from the training set's latents
            buffer("latent_mean", None, torch.zeros(config.vae.latent_size, config.vae.latent_dim))
            buffer("latent_std", None, torch.ones(config.vae.latent_size, config.vae.latent_dim))

    # --- motion <-> latents ---

    @property
    def max_frames(self):
        """The longest motion that the position tables have rows for."""
        if self.vae is None:
            return self.config.denoiser.max_positions - 2 - self.config.denoiser.length_token
        return self.config.vae.max_positions - 2 * self.config.vae.latent_size

    def check_lengths(self, lengths, count=None, limit=None):
        """Lengths, a list or tensor of ints -> (B,) int64 on the model's device; ValueError for any that cannot be."""
        lengths, limit = torch.as_tensor(lengths), min(self.max_frames, limit or self.max_frames)
        if lengths.dim() != 1 or not len(lengths) or lengths.is_floating_point() or count not in (None, len(lengths)):
            raise ValueError(f"lengths must be {count or ''} whole numbers of frames, one per motion, "
                             f"found {lengths.tolist()}.")
        for n in lengths.tolist():
            if not 1 <= n <= limit:
                raise ValueError(f"A motion must have 1 to {limit} frames here, found {n} "
                                 f"(the position tables hold {self.max_frames}).")
        return lengths.to(self.mean.device, torch.int64)

    def to_joints(self, features):
        """Normalised features (..., T, F) -> joints (..., T, J, 3) in metres. Differentiable, for the VAE's loss."""
        if self.rest is not None and not (torch.compiler.is_compiling() or self.rest.any()):
            raise ValueError("The smpl skeleton's features are rotations: joints need a rest pose (24, 3); give MLD "
                             "`rest`, from the pack or the SMPL model.")
        return motion.to_metres(features * self.std + self.mean, self.config.data.skeleton, self.rest)

    def finish(self, features, lengths):
        """Normalised features (B, T, F) -> features as they were before, and joints; zero on padding."""
        return zero_padding(features * self.std + self.mean, lengths), zero_padding(self.to_joints(features), lengths)

    @torch.inference_mode()
    def encode_motion(self, features, lengths=None):
        """Features (B, T, F), not normalised -> the posterior's mean, z (B, N, D)."""
        self.need_vae()
        if features.shape[-1] != len(self.mean):
            raise ValueError(f"This model takes {len(self.mean)} features per frame, found {features.shape[-1]}.")
        if lengths is not None:
            lengths = self.check_lengths(lengths, len(features), features.shape[1])
        return self.vae.encode(((features.to(self.mean) - self.mean) / self.std).to(self.dtype), lengths)[0]

    @torch.inference_mode()
    def decode_latent(self, z, lengths):
        """z (B, N, D) and B lengths -> features (B, T, F), not normalised, and joints (B, T, J, 3) in metres; T is the
        longest length, and both are zero behind each motion's own."""
        self.need_vae()
        lengths = self.check_lengths(lengths, len(z))
        return self.finish(self.decode(z, lengths), lengths)

    def decode(self, z, lengths):
        """vae.decode -> (B, T, F); on a CPU a few latents of similar length at a time: little padding, small buffers."""
        part = PART if z.device.type == "cpu" else len(z)
        order, T = lengths.argsort(stable=True), int(lengths.max())
        frames = None
        for some in order.split(part):
            low, high = lengths[some[[0, -1]]].tolist()
            made = self.vae.decode(z[some].to(self.dtype), None if low == high else lengths[some], high)
            if frames is None:
                frames = made.new_empty(len(z), T, made.shape[2])       # made's own type: autocast may have chosen it
            frames[some] = F.pad(made, (0, 0, 0, T - high))
        return frames

    @staticmethod
    def interpolate(z_a, z_b, n):
        """n latents on the line from z_a (N, D) to z_b, both ends included -> (n, N, D). A line, not a great circle:
        the KL weight is far too small to put the latents on a sphere."""
        weights = torch.linspace(0, 1, n, device=z_a.device, dtype=z_a.dtype)
        return torch.lerp(z_a, z_b, weights.view(-1, 1, 1))

    def need_vae(self):
        if self.vae is None:
            raise ValueError("This model diffuses frames and has no VAE (vae.arch is none): it has no latents.")

    # --- conditions ---

    def conditions(self, texts, actions, count, known_only=False):
        """What the denoiser takes, with and without the condition: (B, L, E) embeddings of the texts and of the empty
        text, or (B,) action numbers and -1, or None twice. Neither texts nor actions: both are "without". ValueError
        for what this model does not take; with known_only for any action number out of range, such as -1, too."""
        kind, device = self.config.denoiser.condition, self.mean.device
        if texts is not None and kind != "text" or actions is not None and kind != "action":
            takes = {"text": "texts", "action": "actions", "none": "no condition"}[kind]
            raise ValueError(f"This model takes {takes}, but was given {'actions' if texts is None else 'texts'}.")
        given = texts if kind == "text" else actions
        if given is not None and (isinstance(given, str) or len(given) != count or kind == "text" and
                                  not all(isinstance(text, str) for text in given)):
            raise ValueError(f"Expected a list of {count} {kind}s, one per motion, found {given!r}.")
        if kind == "none":
            return None, None
        if kind == "action":
            uncond = torch.full((count,), -1, device=device)
            cond = uncond if actions is None else torch.as_tensor(actions, device=device)
            n, known_only = self.config.denoiser.num_actions, known_only and actions is not None
            if known_only and (cond.is_floating_point() or not 0 <= cond.min() <= cond.max() < n):
                raise ValueError(f"Unknown action: this model knows the actions 0 to {n - 1}, found {cond.tolist()}.")
            return cond, uncond
        if self.text_encoder is None:
            raise ValueError("This model takes texts, but has no text encoder; give MLD a text_encoder.")
        texts = [""] * count if texts is None else list(texts)
        unique = {text: i for i, text in enumerate(dict.fromkeys([*texts, ""]))}
        table = self.text_encoder(list(unique)).to(self.dtype)
        if table.shape[-1] != self.config.denoiser.text_encoded_dim:
            raise ValueError(f"The text encoder's output has width {table.shape[-1]}, but the denoiser takes "
                             f"{self.config.denoiser.text_encoded_dim}; use the text encoder that it was trained with.")
        return table[[unique[text] for text in texts]], table[unique[""]].expand(count, -1, -1)

    # --- lengths ---

    def length_logits(self, texts, actions, count, known_only=False):
        """(B, max_frames / unit_length); no gradient leaves the length estimator."""
        with torch.no_grad():
            cond, _ = self.conditions(texts, actions, count, known_only)
            if cond is None:
                cond = self.mean.new_zeros(count, 1)
            else:
                cond = cond.mean(1) if self.config.denoiser.condition == "text" else self.denoiser.action_tokens(cond)
        return self.length_estimator(cond.to(self.dtype)).float()

    def length_loss(self, lengths, texts=None, actions=None):
        """Cross-entropy of the motions' lengths (B,) in frames; those above max_frames count as max_frames."""
        logits = self.length_logits(texts, actions, len(lengths))
        return F.cross_entropy(logits, (lengths // self.config.data.unit_length).clamp(1, logits.shape[1]) - 1)

    @torch.inference_mode()
    def draw_lengths(self, texts=None, actions=None, count=1, seed=None):
        """A list of lengths in frames, as training saw them, one for each text or action, or `count` where there are
        neither; seed as in generate. ValueError for weights that know nothing of lengths, as the published ones."""
        if self.length_estimator is None:
            raise ValueError("These weights came without a length estimator; say how long the motions are to be.")
        given = actions if texts is None else texts
        count = count if given is None else len(given)
        shares = self.length_logits(texts, actions, count, known_only=True).softmax(-1).cpu()
        shares[shares < shares.amax(-1, keepdim=True) / 10] = 0  # rare lengths are mostly the estimator's doubt
        generators = make_generators(seed, count) or [None] * count
        units = [1 + torch.multinomial(row, 1, generator=g).item() for row, g in zip(shares, generators)]
        return [n * self.config.data.unit_length for n in units]

    # --- generation ---

    def to_precision(self, precision):
        """For sampling, not exact; returns the model. The sampler's arithmetic, and what generate returns, stay float32.

        bf16: all networks' weights and operations in half the bytes, three digits of each
        int8: the weights of the denoiser's and the text tower's layers rounded to 8 bits, with a scale for each output;
              operations stay float32 (a few rows of tokens on a CPU read a quarter of the bytes, all else no fewer)"""
        parts = [m for m in (self.text_encoder, self.denoiser, self.vae, self.length_estimator) if m is not None]
        if precision == "bf16":
            self.dtype = torch.bfloat16
            for part in parts:
                part.bfloat16()
        elif precision == "int8":
            for stack in (m for part in parts if part is not self.vae for m in part.modules() if isinstance(m, Stack)):
                round_to_int8(stack)
        elif precision != "float32":
            raise ValueError(f"The precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
        return self

    def compile_denoiser(self):
        """For many prompts in one process: torch.compile makes a faster denoising step of today's weights, packed, at the first
        call of generate for each number of motions. That takes half a minute or more, less when torch's cache on disk knows it."""
        self.denoiser.compile(dynamic=False, options={"freezing": True})

    @torch.inference_mode()
    def generate(self, texts=None, actions=None, *, lengths, guidance_scale=None, guidance_rescale=None, sampler=None,
                 num_inference_steps=None, eta=None, seed=None, x_T=None, callback=None, progress=False, latents=False):
        """Motions for B texts or B action numbers (or neither: unconditional), of B lengths in frames.

        guidance_scale ... eta  as in DiffusionConfig, which has their defaults; 1 = no guidance, 0 = no condition
        seed      whole number s: motion i draws all its noise from its own generator, seeded s + i, so that it is the
                  same alone and in any batch; or a list of B; None = torch's global generator
        x_T       noise to start from, (B, N, D) or, without a VAE, (B, T, F); callback, progress: see diffusion.sample
        latents   stop before the VAE's decoder and return z (B, N, D)
        Returns features (B, T, F), not normalised, and joints (B, T, J, 3) in metres, zero behind each motion's length.
        ValueError for lengths, texts, actions or settings that cannot be.
        """
        if self.denoiser.training or self.vae and self.vae.training:
            raise ValueError("generate would run with dropout; call model.eval() first.")
        d, c = self.config.diffusion, self.config.denoiser
        lengths = self.check_lengths(lengths)
        B, T, device = len(lengths), int(lengths.max()), self.mean.device
        cond, uncond = self.conditions(texts, actions, B, known_only=True)

        def setting(name, value):
            return getattr(d, name) if value is None else value

        scale, rescale = setting("guidance_scale", guidance_scale), setting("guidance_rescale", guidance_rescale)
        if cond is None or (texts is None and actions is None):
            scale = 1.0
        generator = make_generators(seed, B)
        ragged = None if len(lengths.unique()) == 1 else lengths
        frames = None if self.vae else lengths.cpu()  # how many rows of noise each sample draws
        shape = (B, self.config.vae.latent_size, c.latent_dim) if self.vae else (B, T, len(self.mean))
        if x_T is None:
            x_T = draw_noise(shape, generator, device, self.mean.dtype, frames)
        elif x_T.shape != shape:
            raise ValueError(f"x_T must have shape {shape}, found {tuple(x_T.shape)}.")

        if scale in (0, 1):
            tokens = self.denoiser.condition_tokens(cond if scale else uncond, lengths)

            def denoise(x, time):
                return self.denoiser(x.to(self.dtype), time, tokens, ragged, embedded=True).to(x.dtype)
        else:  # with and without the condition in one pass
            tokens = self.denoiser.condition_tokens(torch.cat((uncond, cond)), lengths.repeat(2))
            twice = None if ragged is None else ragged.repeat(2)

            def denoise(x, time):
                both = self.denoiser(x.repeat(2, 1, 1).to(self.dtype), time, tokens, twice, embedded=True)
                return guide(*both.to(x.dtype).chunk(2), scale, rescale, frames)
        x = sample(graphed(denoise), x_T.to(device), self.schedule, setting("sampler", sampler),
                   setting("num_inference_steps", num_inference_steps), setting("eta", eta), d.clip_sample, generator,
                   frames, callback, progress, self.denoiser.time_embedding)
        if self.vae:
            x = x * self.latent_std + self.latent_mean if self.normalize_latents else x
            if latents:
                return x
            x = self.decode(x, lengths)
        return self.finish(x, ragged)

    # --- training ---

    def diffusion_loss(self, x0, lengths=None, texts=None, actions=None, t=None, eps=None, dropped=None):
        """The denoiser's loss (section 3.2): |output - target|^2, target eps, x0 or v, at a level t per sample; the
        condition is dropped for some samples, so that one network learns both sides of guidance.

        x0 (B, N, D) latents as the VAE makes them, or normalised frames (B, T, F); lengths (B,) of frames, None = all T; actions of -1 are
        unknown; t (B,) int64, eps like x0, dropped (B,) bool: drawn here where None, from torch's global generator.
        Returns {"loss": scalar, "error": (B,) each sample's loss, without gradient}; padded frames are left out.
        """
        c, B, device = self.config.denoiser, len(x0), x0.device
        padded = None if self.vae else lengths
        x0 = zero_padding(x0, padded)
        if self.normalize_latents:
            x0 = (x0 - self.latent_mean) / self.latent_std
        t = torch.randint(len(self.schedule), (B,), device=device) if t is None else t
        eps = torch.randn_like(x0) if eps is None else eps
        cond, uncond = self.conditions(texts, actions, B)
        if cond is not None:
            dropped = torch.rand(B, device=device) < c.condition_dropout if dropped is None else dropped
            cond = torch.where(dropped.view(-1, *[1] * (cond.dim() - 1)), uncond, cond)
        output = self.denoiser(add_noise(self.schedule, x0, eps, t), t, cond, lengths)
        error = output.to(x0.dtype) - training_target(self.schedule, x0, eps, t)
        error = clip_mean(error.square(), padded, per_clip=True)
        return {"loss": error.mean(), "error": error.detach()}
