"""The motion VAE (paper, section 3.1): T frames -> N latent tokens of width D -> T frames.

    mu, logvar = vae.encode(features, lengths)          # q(z | x^{1:L}), each (B, N, D)
    z = reparameterize(mu, logvar)                      # mu + sigma * eps
    features = vae.decode(z, lengths)                   # (B, T, F), zero on padding

Features are normalised, (B, T, F), and zero on padding. lengths (B,) counts each motion's real
frames; None means that all T are real. Parameters carry their published names, with two exceptions:
the ACTOR-style VAE's mu_token and logvar_token are the two rows of global_motion_token, and its
seqTransEncoder and seqTransDecoder are `encoder` and `decoder`. The published code lays latents out
as (N, B, D).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from fast import first_tokens, shared_queries
from transformer import Positions, Stack, length_mask, zero_padding

# --------------------------------------------------------------------------------------------------
# The network


class MotionVAE(nn.Module):
    """MLD's VAE, or ACTOR's.

    arch encoder_decoder  queries, which are positions alone, attend to the latent tokens
         all_encoder      latent tokens and queries go through one encoder together
         actor            encoder_decoder with sinusoidal positions, no skip connections, and no
                          norm at the end of a stack
    """

    def __init__(self, cfg, nfeats):
        super().__init__()
        D, actor = cfg.latent_dim, cfg.arch == "actor"
        if actor and (cfg.latent_size != 1 or cfg.mlp_dist):
            raise ValueError("The ACTOR-style VAE has one latent token and no mlp_dist; set "
                             "vae.latent_size=1 and vae.mlp_dist=false.")
        self.latent_size, self.latent_dim, self.nfeats = cfg.latent_size, D, nfeats
        self.cross = cfg.arch != "all_encoder"
        tokens = cfg.latent_size * (1 if cfg.mlp_dist else 2)
        self.global_motion_token = nn.Parameter(torch.randn(tokens, D))
        self.skel_embedding = nn.Linear(nfeats, D)
        learned = cfg.position_embedding == "learned" and not actor
        self.query_pos_encoder = Positions(cfg.max_positions, D, learned)
        self.query_pos_decoder = Positions(cfg.max_positions, D, learned)
        sizes = (cfg.num_layers, D, cfg.num_heads, cfg.ff_size, cfg.dropout, cfg.attention_dropout,
                 cfg.activation, cfg.normalize_before)
        self.encoder = Stack(*sizes, skip=not actor, final_norm=not actor)
        self.decoder = Stack(*sizes, skip=not actor, final_norm=not actor, cross=self.cross)
        self.final_layer = nn.Linear(D, nfeats)
        self.linear_path = LinearPath(cfg) if cfg.cosines else None
        self.dist_layer = nn.Linear(D, 2 * D) if cfg.mlp_dist else None
        if cfg.mlp_dist:
            nn.init.constant_(self.dist_layer.bias[D:], cfg.logvar_bias)

    def encode(self, features, lengths=None):
        """features (B, T, F) -> mu, logvar (B, N, D) of q(z | x), section 3.1.

        ValueError for another number of features, or more frames than positions."""
        if features.shape[-1] != self.nfeats:
            raise ValueError(f"The VAE takes {self.nfeats} features per frame, "
                             f"found {features.shape[-1]}.")
        x = self.skel_embedding(zero_padding(features, lengths))  # (B, T, D)
        tokens = self.global_motion_token.to(x.dtype).expand(len(x), -1, -1)
        n = tokens.shape[1]
        h = self.query_pos_encoder(torch.cat((tokens, x), 1))  # (B, n + T, D)
        dist = first_tokens(self.encoder, h, n, None if lengths is None else lengths + n)
        mu, logvar = self.split(dist)
        if self.linear_path is not None:
            mu = mu + self.linear_path.encode(zero_padding(x, lengths))
        return mu, logvar

    def split(self, dist):
        """The encoder's tokens -> mu, logvar (B, N, D)."""
        if self.dist_layer is None:  # two sets of tokens
            return dist.chunk(2, 1)
        return self.dist_layer(dist).chunk(2, -1)  # one set, through a Linear

    def decode(self, z, lengths=None, max_length=None):
        """z (B, N, D) -> features (B, T, F), zero on padding, section 3.1.

        T is max_length, or the longest of the lengths. The queries are positions alone, plus the
        linear path where there is one. ValueError for latents of another shape, or more frames
        than positions."""
        T = self.check_latent(z, lengths, max_length)
        start = z.new_zeros(1, T, self.latent_dim)
        if self.linear_path is not None:
            start = self.linear_path.decode(z, T)  # (B, T, D)
        if self.cross:
            queries = self.query_pos_decoder(start)
            x = shared_queries(self.decoder, queries, lengths, memory=z)
        else:
            n = self.latent_size
            x = self.query_pos_decoder(torch.cat((z, start.expand(len(z), -1, -1)), 1))
            x = self.decoder(x, None if lengths is None else lengths + n)[:, n:]
        return zero_padding(self.final_layer(x + start), lengths)

    def check_latent(self, z, lengths, max_length):
        """The number of frames to decode; ValueError for latents that are not this VAE's."""
        if z.dim() != 3 or z.shape[1:] != (self.latent_size, self.latent_dim):
            raise ValueError(f"The VAE decodes latents of shape (B, {self.latent_size}, "
                             f"{self.latent_dim}), found {tuple(z.shape)}.")
        if max_length is None and lengths is None:
            raise ValueError("decode needs lengths or max_length: a latent does not say how long "
                             "its motion is.")
        return int(lengths.max()) if max_length is None else max_length


class LinearPath(nn.Module):
    """A linear way from frames to latent and back, added to the stacks' output. Not in the paper.

    The decoder's queries know only the time, and attention over N latent tokens can only mix N
    values, so the stacks have to learn products of "which motion" and "which moment". Small
    models then answer with each clip's mean pose for a thousand steps, and their feet slide in
    the end. On this path a latent holds the amplitudes of the cosines
    cos(pi k (t + 1/2) / span), k < K, as in a discrete cosine transform (Ahmed et al. 1974), and
    the stacks learn what remains."""

    def __init__(self, cfg):
        super().__init__()
        N, D, K, R = cfg.latent_size, cfg.latent_dim, cfg.cosines, cfg.latent_dim // 2
        t = torch.arange(cfg.max_positions)[:, None] + 0.5
        waves = torch.cos(math.pi / cfg.cosine_span * t * torch.arange(K))  # (T, K)
        self.register_buffer("waves", waves, persistent=False)
        self.scale, self.size = cfg.cosine_span, (N, D, K, R)
        self.narrow = nn.Linear(D, R, bias=False)
        self.to_latent = nn.Linear(K * R, N * D)
        self.to_waves = nn.Linear(N * D, K * R)
        self.widen = nn.Linear(R, D, bias=False)

    def encode(self, x):
        """Embedded frames (B, T, D), zero on padding -> (B, N, D), to be added to mu."""
        N, D, K, R = self.size
        waves = self.waves[:x.shape[1]].to(x.dtype)
        amplitudes = waves.mT @ self.narrow(x) * (2 / self.scale) ** 0.5  # (B, K, R)
        return self.to_latent(amplitudes.flatten(1)).unflatten(1, (N, D))

    def decode(self, z, T):
        """z (B, N, D) -> (B, T, D): added to the decoder's queries, and to its output."""
        N, D, K, R = self.size
        amplitudes = self.to_waves(z.flatten(1)).unflatten(1, (K, R)) / 2
        return self.widen(self.waves[:T].to(amplitudes.dtype) @ amplitudes)


def reparameterize(mu, logvar, eps=None):
    """z = mu + sigma * eps with eps ~ N(0, I), drawn here if None: gradients reach mu and sigma."""
    return mu + (0.5 * logvar).exp() * (torch.randn_like(mu) if eps is None else eps)


# --------------------------------------------------------------------------------------------------
# The loss


def vae_loss(features, recon, mu, logvar, lengths, cfg, to_joints=None):
    """The VAE's objective (section 3.1): reconstruction, and a small pull towards N(0, I).

        L = lambda_rec d(x, x') + lambda_joint d(J(x), J(x')) + lambda_velocity |dJ(x) - dJ(x')|
            + lambda_kl KL(N(mu, sigma^2) || N(0, I))
        KL = 1/2 (mu^2 + sigma^2 - log sigma^2 - 1), averaged over the latent's numbers

    d is smooth-L1 as in the published code, or the squared error of the paper's text. J recovers
    the joints. Their d may be the mean distance in metres instead, whose gradient does not fade
    as the error gets small. dJ, the joints' steps in metres a frame, is ours: without it, errors
    of position that are too small to see make standing feet slide.

    The published code averages over padding too, so that a clip's loss depends on its batch. Ours
    is the mean over a clip's own frames, then over clips: every clip weighs the same in any
    batch, and the mean over two half batches is the whole batch's, on any number of processes.

    features, recon   (B, T, F), normalised
    mu, logvar        (B, N, D)
    lengths           (B,) or None
    cfg               VAEConfig
    to_joints         normalised features (B, T, F) -> joints (B, T, J, 3) in metres; None if no
                      loss needs it

    Returns {"loss", "features", "joints", "velocity", "kl"}, scalars; terms of weight 0 are
    absent, except "features" and "kl"."""
    distance = F.smooth_l1_loss if cfg.recons_loss == "smooth_l1" else F.mse_loss
    features = zero_padding(features, lengths)
    # the sums are in float32, whatever autocast did
    recon, mu, logvar = (t.to(features.dtype) for t in (recon, mu, logvar))
    losses = {"features": clip_mean(distance(recon, features, reduction="none"), lengths),
              "kl": 0.5 * (mu.square() + logvar.exp() - logvar - 1).mean()}
    total = cfg.lambda_rec * losses["features"] + cfg.lambda_kl * losses["kl"]
    if cfg.lambda_joint or cfg.lambda_velocity:
        a, b = to_joints(recon), to_joints(features)
    if cfg.lambda_joint:
        same = cfg.joints_loss == "same"
        joints = distance(a, b, reduction="none") if same else (a - b).norm(dim=-1)
        losses["joints"] = clip_mean(joints, lengths)
        total = total + cfg.lambda_joint * losses["joints"]
    if cfg.lambda_velocity:
        B, T, _ = features.shape
        steps = features.new_full((B,), T) if lengths is None else lengths
        error = (a.diff(dim=1) - b.diff(dim=1)).norm(dim=-1)  # (B, T - 1, J)
        losses["velocity"] = clip_mean(error, steps - 1)  # 0 for a single frame
        total = total + cfg.lambda_velocity * losses["velocity"]
    return {"loss": total, **losses}


def clip_mean(error, lengths, per_clip=False):
    """Mean of error (B, T, *) over each clip's own frames, then over the clips, unless per_clip."""
    error = error.flatten(2).mean(2)  # (B, T)
    if lengths is None:
        error = error.mean(1)
    else:
        own = torch.where(length_mask(lengths, error.shape[1]), error, 0.0)
        error = own.sum(1) / lengths.clamp(min=1)
    return error if per_clip else error.mean()
