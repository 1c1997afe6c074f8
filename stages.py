"""The two stages of training: what each trains, on which batches, with which loss. train.py runs the loop.

A stage is an nn.Module whose trainable parameters are the stage's, with
    name, settings (StageConfig), batches        what it is called, how it is optimised, what it draws from
    prepare(batch, step)                         adds what is random in a step: noise, levels, dropped conditions
    forward(batch) -> {"loss", ...}              means over the batch's clips
    validate() -> {"loss", ...}, show(step)      over val; example motions
"""
import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from formats import pack as packs
from clip import drop_words
from data import to_device
from vae import clip_mean, vae_loss

BANDS = 4  # bands of noise levels whose error is logged apart


# ----------------------------------------------------------------------------------------------------------------------
# Stage 1: the VAE


class VAEStage(nn.Module):
    name = "vae"

    def __init__(self, run, model):
        super().__init__()
        self.vae, self.run, self.model = model.vae, run, [model]  # in a list, so that only the VAE counts as this stage's
        self.settings = run.config.train_vae
        self.batches = run.batches("train", self.settings.batch_size)
        if run.config.train.compile:
            self.vae.encoder.compile(dynamic=True)
            self.vae.decoder.compile(dynamic=True)

    summary = staticmethod(dict)

    def prepare(self, batch, step):
        eps = torch.randn(batch["global_size"], self.vae.latent_size, self.vae.latent_dim, generator=self.run.draws(self.name, step))
        return {**batch, "eps": eps[self.run.share]}

    def forward(self, batch):
        features, lengths = batch["features"], batch["lengths"]
        mu, logvar = self.vae.encode(features, lengths)
        recon = self.vae.decode(mu + (0.5 * logvar).exp() * batch["eps"], lengths, features.shape[1])
        return vae_loss(features, recon, mu, logvar, lengths, self.run.config.vae, self.model[0].to_joints)

    @torch.no_grad()
    def validate(self):
        """Over val: the loss with z = mu, and the mean distance of joints (MPJPE) in mm."""
        totals = {"loss": 0.0, "mpjpe_mm": 0.0}
        batches, to_joints = self.run.batches("val", self.settings.batch_size), self.model[0].to_joints
        for batch in batches.epoch(0):
            batch = to_device(batch, self.run.device)
            features, lengths, share = batch["features"], batch["lengths"], len(batch["ids"]) / len(batches.items)
            mu, logvar = self.vae.encode(features, lengths)
            recon = self.vae.decode(mu, lengths, features.shape[1])
            totals["loss"] += share * vae_loss(features, recon, mu, logvar, lengths, self.run.config.vae, to_joints)["loss"]
            totals["mpjpe_mm"] += share * 1000 * clip_mean((to_joints(recon) - to_joints(features)).norm(dim=-1), lengths)
        return self.run.mean(totals)

    def show(self, step):
        """Four motions of val and, beside each, what the VAE makes of it."""
        items, motions = self.run.pack.indices("val")[:4], []
        for i in items:
            caption = (self.run.pack.captions(i) or [packs.Caption(self.run.pack.action(i))])[0].text
            features = torch.from_numpy(self.run.pack.features(i)[:self.run.config.data.max_frames])[None]
            _, joints = self.model[0].decode_latent(self.model[0].encode_motion(features), [features.shape[1]])
            motions += [(self.run.pack.joints(i)[:features.shape[1]], caption), (joints[0].cpu().numpy(), "reconstruction")]
        self.run.show(f"vae-{step:07d}", motions)


# ----------------------------------------------------------------------------------------------------------------------
# Stage 2: diffusion in the VAE's latent space (or on frames, where there is no VAE)


class Remembered(nn.Module):
    """A frozen text encoder that encodes every text once."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.table = encoder, {}

    def forward(self, texts):
        new = [text for text in dict.fromkeys(texts) if text not in self.table]
        if new:
            self.table.update(zip(new, self.encoder(new)))
        return torch.stack([self.table[text] for text in texts])


class DiffusionStage(nn.Module):
    name = "diffusion"

    def __init__(self, run, model):
        super().__init__()
        c = run.config
        self.denoiser, self.length_estimator, self.run, self.model = model.denoiser, model.length_estimator, run, [model]
        self.scratch = c.denoiser.condition == "text" and c.text.kind == "scratch"
        self.text_encoder = model.text_encoder if self.scratch else None
        self.settings, self.vae, self.posteriors = c.train_diffusion, [model.vae], None
        if model.vae:  # frozen: no gradient, no dropout, not one bit changed
            model.vae.requires_grad_(False).eval()
            mu, logvar, lengths = self.encode(max(1, c.train.cache_latents))
            if c.denoiser.normalize_latents:
                model.latent_mean.copy_(mu.flatten(0, 1).mean(0))
                model.latent_std.copy_((mu.flatten(0, 1).var(0) + logvar.exp().flatten(0, 1).mean(0)).sqrt())
            self.posteriors = (mu, logvar, lengths) if c.train.cache_latents else None
        balanced = c.denoiser.condition == "action" and c.data.balance_actions
        self.batches = run.batches("train", self.settings.batch_size, motion=self.posteriors is None, balanced=balanced)
        if c.train.compile:
            self.denoiser.compile(dynamic=True)

    @torch.no_grad()
    def encode(self, crops):
        """Some random crops of every train clip: their posteriors, mu and logvar (crops, train items, N, D), and lengths (crops, train items)."""
        batches, vae = self.run.batches("train", 64, rank=0, world=1), self.vae[0]
        mu = torch.zeros(crops, len(self.run.pack), vae.latent_size, vae.latent_dim)
        logvar, cropped = torch.zeros_like(mu), torch.zeros(crops, len(self.run.pack), dtype=torch.int64)
        for k in tqdm(range(crops), desc="encoding the train clips", disable=not self.run.main, leave=False):
            for batch in batches.epoch(k):
                features, lengths = batch["features"].to(self.run.device), batch["lengths"].to(self.run.device)
                m, v = vae.encode(features, lengths)
                mu[k, batch["items"]], logvar[k, batch["items"]], cropped[k, batch["items"]] = m.float().cpu(), v.float().cpu(), batch["lengths"]
        items = batches.items
        self.rows = torch.full((len(self.run.pack),), -1)
        self.rows[torch.from_numpy(items)] = torch.arange(len(items))
        return mu[:, items], logvar[:, items], cropped[:, items]

    def latents(self, batch, noise, crop=None):
        """z ~ q(z | clip) anew, from a cached posterior or by encoding the batch, and the lengths (B,) of the crops that it tells of."""
        lengths = batch["lengths"]
        if self.posteriors is not None and crop is not None:
            mu, logvar, lengths = (p[crop % len(p), self.rows[batch["items"]]] for p in self.posteriors)
        else:
            with torch.no_grad():
                mu, logvar = self.vae[0].encode(batch["features"].to(self.run.device), lengths.to(self.run.device))
        return mu + (0.5 * logvar).exp() * noise.to(mu.device), lengths

    def prepare(self, batch, step, name="diffusion"):
        c, g, n = self.run.config, self.run.draws(name, step), batch["global_size"]
        share, model = self.run.share, self.model[0]
        t = torch.randint(len(model.schedule), (n,), generator=g)[share]
        dropped = (torch.rand(n, generator=g) < c.denoiser.condition_dropout)[share]
        if model.vae:
            shape = (n, model.vae.latent_size, model.vae.latent_dim)
            noise, eps = torch.randn(shape, generator=g)[share], torch.randn(shape, generator=g)[share]
            crop = step // len(self.batches) if name == self.name else None
            x0, lengths = self.latents(batch, noise, crop)
        else:
            x0, lengths = batch["features"], batch["lengths"]
            eps = torch.randn(n, c.data.max_frames, x0.shape[-1], generator=g)[share, :x0.shape[1]]
        whole = torch.from_numpy(self.run.pack.lengths[batch["items"]]).long().clamp(max=c.data.max_frames)
        batch = {**batch, "x0": x0, "lengths": lengths, "t": t, "eps": eps, "dropped": dropped, "whole": whole}
        if self.scratch and name == self.name:
            rngs = (np.random.default_rng([c.train.seed, step, i]) for i in batch["items"].tolist())
            batch["texts"] = [drop_words(text, c.text.word_dropout, rng) for text, rng in zip(batch["texts"], rngs)]
        return batch

    def forward(self, batch):
        model, kind = self.model[0], self.run.config.denoiser.condition
        texts, actions = batch["texts"] if kind == "text" else None, batch["actions"] if kind == "action" else None
        out = model.diffusion_loss(batch["x0"], batch["lengths"], texts, actions, batch["t"], batch["eps"], batch["dropped"])
        losses = {"loss": out["loss"]}
        bands = batch["t"] * BANDS // len(model.schedule)
        for band in range(BANDS):  # the sum of errors, and how many there were: summary() divides
            inside = bands == band
            losses[f"sum{band}"], losses[f"count{band}"] = (out["error"] * inside).mean(), inside.float().mean()
        losses["length_loss"] = model.length_loss(batch["whole"], texts, actions)
        losses["loss"] = losses["loss"] + 0.01 * losses["length_loss"]  # its input is detached: it changes nothing else
        return losses

    @staticmethod
    def summary(entry):
        """error_t0 ... error_t3: the error by band of the noise level, from nearly clean to nearly pure noise."""
        bands = {f"error_t{band}": entry.pop(f"sum{band}") / max(entry.pop(f"count{band}"), 1e-9) for band in range(BANDS)}
        return {**entry, **bands}

    @torch.no_grad()
    def validate(self):
        """Over val: the loss, and the std of sampled latents over that of true ones, which tells whether the sampler works."""
        totals, batches = {}, self.run.batches("val", self.settings.batch_size)
        for step, batch in enumerate(batches.epoch(0)):
            share = len(batch["ids"]) / len(batches.items)
            for key, value in self(to_device(self.prepare(batch, step, "val"), self.run.device)).items():
                totals[key] = totals.get(key, 0.0) + share * value
        first = to_device(self.prepare(batches.batch(0, 0), 0, "val"), self.run.device)
        model, kind = self.model[0], self.run.config.denoiser.condition
        texts, actions = first["texts"] if kind == "text" else None, first["actions"].clamp(min=0) if kind == "action" else None
        made = model.generate(texts, actions, lengths=first["lengths"], seed=first["items"].tolist(), latents=True)
        for name, x in (("made", made[0] if model.vae is None else made), ("true", first["x0"])):
            for power in range(3):  # count, sum, sum of squares: the std over all processes
                totals[f"{name}{power}"] = x.float().pow(power).sum()
        values = self.summary(self.run.mean(totals))
        made, true = ((values.pop(name + "2") / (n := values.pop(name + "0")) - (values.pop(name + "1") / n) ** 2) ** 0.5 for name in ("made", "true"))
        return {**values, "sampled_std_ratio": made / true}

    def show(self, step):
        """Motions for eight captions (or actions) of val."""
        pack, kind, model = self.run.pack, self.run.config.denoiser.condition, self.model[0]
        items = pack.indices("val")
        items = items[np.linspace(0, len(items) - 1, 8).astype(int)]
        lengths = np.minimum(pack.lengths[items], self.run.config.data.max_frames).tolist()
        captions = [(pack.captions(i) or [packs.Caption(pack.action(i))])[0].text if kind == "text" else pack.action(i) for i in items]
        _, joints = model.generate(captions if kind == "text" else None, pack.labels[items].tolist() if kind == "action" else None, lengths=lengths, seed=0)
        self.run.show(f"diffusion-{step:07d}", [(j[:n].cpu().numpy(), caption) for j, n, caption in zip(joints, lengths, captions)])


# ----------------------------------------------------------------------------------------------------------------------
# Muon


class Muon(torch.optim.Optimizer):
    """For matrices that multiply activations. An update has the size of AdamW's (Liu et al. 2025), so that lr has too."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum, alike = group["lr"], group["momentum"], {}
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                average = self.state[p]["momentum"]
                average.lerp_(p.grad, 1 - momentum)
                alike.setdefault(p.shape, []).append((p, p.grad.lerp(average, momentum)))  # Nesterov's look ahead
            for shape, pairs in alike.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                for (p, _), update in zip(pairs, updates):
                    p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-0.2 * lr * max(shape) ** 0.5)


def orthogonalize(x):
    """x (B, M, N) = U S V^T -> about U V^T: five Newton-Schulz steps take the singular values to between 0.7 and 1.2."""
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x
