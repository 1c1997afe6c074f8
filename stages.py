"""The two stages of training: what each trains, on which batches, and with which loss. train.py
runs the loop, optimizers.py has what it optimises by.

A stage is an nn.Module whose trainable parameters are those that it trains, with
    name, settings (StageConfig), batches    its name, how it is optimised, what it draws from
    prepare(batch, step)                     adds a step's random numbers: noise, levels, dropping;
                                             on the CPU, if need be in another process
    forward(batch) -> {"loss", ...}          means over the batch's clips
    summary(means) -> {name: number}         what is logged of them
    validate() -> {"loss", ...}              over val
    show(step)                               writes example motions
"""
import math

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from data import to_device
from formats.pack import Caption
from latents import diffused_shape, identity, principal_axes, to_diffused
from losses import sharpness_losses
from vae import clip_mean, vae_loss
from words import drop_words

RUNG = 28  # frames: a CUDA graph of the VAE's step serves batches up to a multiple of it
BANDS = 4  # of noise levels; the error of each is logged on its own


def caption_of(pack, item):
    """An item's first caption, or its action where it has none."""
    return (pack.captions(item) or [Caption(pack.action(item))])[0].text


# --------------------------------------------------------------------------------------------------
# Stage 1: the VAE (section 3.1)


class VAEStage(nn.Module):
    name = "vae"
    summary = staticmethod(dict)

    def __init__(self, run, model):
        super().__init__()
        self.run, self.vae, self.settings = run, model.vae, run.config.train_vae
        self.model = [model]  # in a list, so that only the VAE counts as this stage's
        self.batches = run.batches("train", self.settings.batch_size)
        if run.config.train.compile:
            for name in ("encode", "decode"):
                setattr(self.vae, name, torch.compile(getattr(self.vae, name), dynamic=True))

    def prepare(self, batch, step):
        shape = (batch["global_size"], self.vae.latent_size, self.vae.latent_dim)
        eps = torch.randn(shape, generator=self.run.draws(self.name, step))
        late = step >= self.run.config.vae.sharpen_from * self.settings.steps
        return {**batch, "eps": eps[self.run.share], "late": torch.tensor(float(late))}

    def tensors(self, batch):
        """What forward reads, as tensors of few shapes, for a CUDA graph each (graphs.py)."""
        features = batch["features"]
        padding = -features.shape[1] % RUNG
        return {"features": nn.functional.pad(features, (0, 0, 0, padding)),
                "lengths": batch["lengths"], "eps": batch["eps"], "late": batch["late"]}

    def forward(self, batch):
        features, lengths = batch["features"], batch["lengths"]
        mu, logvar = self.vae.encode(features, lengths)
        z = mu + (0.5 * logvar).exp() * batch["eps"]
        recon = self.vae.decode(z, lengths, features.shape[1])
        return self.loss(features, recon, mu, logvar, lengths, batch["late"])

    def loss(self, features, recon, mu, logvar, lengths, late=1.0):
        """The paper's loss and ours. The latter, and more KL, slow the first steps, when whole
        movements are learnt, so they count (late 1, not 0) from vae.sharpen_from on, and always on
        val."""
        settings, to_joints = self.run.config.vae, self.model[0].to_joints
        losses = vae_loss(features, recon, mu, logvar, lengths, settings, to_joints)
        ours = sharpness_losses(recon, features, lengths, settings, to_joints)
        more = ours.get("loss", 0.0) + settings.lambda_kl_late * losses["kl"]
        return {**ours, **losses, "loss": losses["loss"] + late * more}

    @torch.no_grad()
    def validate(self):
        """Over val: the loss with z = mu, and the mean distance of joints (MPJPE) in mm."""
        totals, to_joints = {"loss": 0.0, "mpjpe_mm": 0.0}, self.model[0].to_joints
        batches = self.run.batches("val", self.settings.batch_size)
        for batch in batches.epoch(0):
            batch = to_device(batch, self.run.device)
            features, lengths = batch["features"], batch["lengths"]
            mu, logvar = self.vae.encode(features, lengths)
            recon = self.vae.decode(mu, lengths, features.shape[1])
            error = (to_joints(recon) - to_joints(features)).norm(dim=-1)  # (B, T, J) metres
            share = len(batch["ids"]) / len(batches.items)
            totals["loss"] += share * self.loss(features, recon, mu, logvar, lengths)["loss"]
            totals["mpjpe_mm"] += share * 1000 * clip_mean(error, lengths)
        return self.run.mean(totals)

    def show(self, step):
        """Four motions of val, each beside the VAE's reconstruction of it."""
        pack, model, motions = self.run.pack, self.model[0], []
        for item in pack.indices("val")[:4]:
            features = pack.features(item)[:self.run.config.data.max_frames]
            features = torch.tensor(np.asarray(features))  # a copy: a pack's arrays are read-only
            frames = len(features)
            _, joints = model.decode_latent(model.encode_motion(features[None]), [frames])
            motions += [(pack.joints(item)[:frames], caption_of(pack, item)),
                        (joints[0].cpu().numpy(), "reconstruction")]
        self.run.show(f"vae-{step:07d}", motions)


# --------------------------------------------------------------------------------------------------
# Stage 2: diffusion in the VAE's latent space (section 3.2), or on frames where there is no VAE


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

    ready = forward  # see clip.WordEncoder

    def of_ready(self, embeddings):
        return embeddings


class DiffusionStage(nn.Module):
    name = "diffusion"

    def __init__(self, run, model):
        super().__init__()
        c = run.config
        self.run, self.model, self.vae = run, [model], [model.vae]
        self.settings, self.kind, self.posteriors = c.train_diffusion, c.denoiser.condition, None
        self.denoiser, self.length_estimator = model.denoiser, model.length_estimator
        self.scratch = self.kind == "text" and c.text.kind == "scratch"
        self.text_encoder = model.text_encoder if self.scratch else None
        if self.settings.freeze_text:
            self.text_encoder.requires_grad_(False)
        if model.vae:  # frozen: no gradient and no dropout
            model.vae.requires_grad_(False).eval()
            mu, logvar, lengths = self.encode(max(1, c.train.cache_latents))
            resumed = run.states.get(self.name, {}).get("model", {})
            known = run.init and not run.new_latents  # fine-tuning keeps the old ones
            if (c.denoiser.normalize_latents and not known
                    and "latent_mean" not in resumed):  # and so does --resume
                self.normalize(model, mu.flatten(0, 1), logvar.flatten(0, 1), lengths.flatten())
            self.posteriors = (mu, logvar, lengths) if c.train.cache_latents else None
            for name in identity(c) if model.normalize_latents else ():
                self.register_buffer(name, getattr(model, name))  # the denoiser's: resumed with it
        frames = self.posteriors is None  # else nothing is padded, and any clips make a batch
        self.batches = run.batches(
            "train", self.settings.batch_size, motion=frames,
            by_length=frames and c.data.batch_by_length,
            balanced=self.kind == "action" and c.data.balance_actions)
        if c.train.compile:
            self.denoiser.compile(dynamic=True)

    def normalize(self, model, mu, logvar, lengths):
        """Set what the diffusion sees of the latents, from those of all train clips."""
        model.latent_mean.copy_(mu.mean(0))
        if model.config.denoiser.principal:
            into, back = principal_axes(
                lambda z, lengths: model.vae.decode(z, lengths, int(lengths.max())), mu, logvar,
                lengths, model.latent_in.shape[1], self.run.device, self.run.main)
            model.latent_in.copy_(into)
            model.latent_out.copy_(back)
            if model.denoiser.modulated:  # otherwise its numbers have unit spread
                noise = logvar.exp().mean(0).flatten().to(into) @ into.square()
                spread = to_diffused(model, mu.to(model.mean)).flatten(1).var(0)
                model.denoiser.modulated.spread.copy_(spread + noise.to(spread))
        else:
            model.latent_std.copy_((mu.var(0) + logvar.exp().mean(0)).sqrt())

    @torch.no_grad()
    def encode(self, crops):
        """Random crops of every train clip: their posteriors, mu and logvar (crops, train items, N,
        D), and lengths (crops, train items)."""
        batches, vae = self.run.batches("train", 64, rank=0, world=1), self.vae[0]
        count, items = len(self.run.pack), torch.from_numpy(batches.items)
        mu = torch.zeros(crops, count, vae.latent_size, vae.latent_dim)
        logvar, cropped = torch.zeros_like(mu), torch.zeros(crops, count, dtype=torch.int64)
        bar = tqdm(range(crops), "encoding the train clips", leave=False, disable=not self.run.main)
        for k in bar:
            for batch in batches.epoch(k, self.run.workers):
                rows, batch = batch["items"], to_device(batch, self.run.device)
                m, v = vae.encode(batch["features"], batch["lengths"])
                mu[k, rows], logvar[k, rows] = m.float().cpu(), v.float().cpu()
                cropped[k, rows] = batch["lengths"].cpu()
        self.rows = torch.full((count,), -1)  # item -> its row in what is returned
        self.rows[items] = torch.arange(len(items))
        return mu[:, items], logvar[:, items], cropped[:, items]

    @torch.no_grad()
    def with_latents(self, batch):
        """The batch with x0, z ~ q(z | clip), if that was not drawn from the cached posteriors."""
        if "x0" not in batch:
            mu, logvar = self.vae[0].encode(batch["features"], batch["lengths"])
            batch = {**batch, "x0": mu + (0.5 * logvar).exp() * batch["noise"]}
        return batch

    def prepare(self, batch, step, name="diffusion"):
        """What with_latents and forward take. A step of validation has another `name`: its own
        random numbers, the batch's own crops, and no dropped words."""
        c, g, n = self.run.config, self.run.draws(name, step), batch["global_size"]
        share, model, training = self.run.share, self.model[0], name == self.name
        K = self.settings.draws if training else 1
        t = self.noise_levels(n, K, g)[share]
        dropped = (torch.rand(n, K, generator=g) < c.denoiser.condition_dropout)[share]
        if model.vae:
            shape = model.vae.latent_size, model.vae.latent_dim
            noise = torch.randn(n, *shape, generator=g)[share]
            eps = torch.randn(n, K, *diffused_shape(c), generator=g)[share]
            batch = {**batch, "noise": noise}
            if self.posteriors is not None and training:
                crop, rows = step // len(self.batches), self.rows[batch["items"]]
                mu, logvar, lengths = (p[crop % len(p), rows] for p in self.posteriors)
                batch |= {"x0": mu + (0.5 * logvar).exp() * noise, "lengths": lengths}
        else:
            x0 = batch["features"]
            eps = torch.randn(n, K, c.data.max_frames, x0.shape[-1], generator=g)
            eps, batch = eps[share, :, :x0.shape[1]], {**batch, "x0": x0}
        whole = torch.from_numpy(self.run.pack.lengths[batch["items"]]).long()
        batch |= {"t": t, "eps": eps, "dropped": dropped,
                  "whole": whole.clamp(max=c.data.max_frames)}
        if training and model.vae and c.denoiser.length_dropout:
            kept = torch.rand(n, generator=g)[share] >= c.denoiser.length_dropout
            batch["told"] = batch["lengths"] * kept
        if self.scratch and training:
            seeds = ([c.train.seed, step, i] for i in batch["items"].tolist())
            shares = c.text.word_dropout, c.text.row_dropout * c.text.vectors
            batch["texts"] = [drop_words(text, np.random.default_rng(seed), *shares)
                              for text, seed in zip(batch["texts"], seeds)]
        if self.scratch and self.run.device.type == "cuda":  # for tensors()
            batch["ready"] = model.text_encoder.ready([*batch["texts"], ""])
        return batch

    def noise_levels(self, n, K, generator):
        """(n, K) int64: K noise levels for each of n clips, one from each of K equal ranges."""
        T = len(self.model[0].schedule)
        if K == 1:
            return torch.randint(T, (n, 1), generator=generator)
        share = (torch.arange(K) + torch.rand(n, K, generator=generator)) / K
        return (share * T).long().clamp(max=T - 1)

    def condition(self, batch, times=1):
        """What guides the batch, each clip `times` times, by the name that generate and
        diffusion_loss know it by. A table of texts that an encoder's `ready` made is left as it is:
        conditions.py repeats what the encoder makes of it."""
        condition = self.model[0].condition
        given = {condition.keyword: condition.of_batch(batch)} if condition.keyword else {}
        return {key: value if key == "texts" and torch.is_tensor(value) else
                repeated(value, times) for key, value in given.items()}

    def tensors(self, batch):
        """What forward reads, as tensors of few shapes, for a CUDA graph each (graphs.py)."""
        batch = self.with_latents(batch)
        names = ["x0", "lengths", "t", "eps", "dropped", "whole"]
        names += ["actions"] * (self.kind == "action") + ["told"] * ("told" in batch)
        tensors = {name: batch[name] for name in names}
        if self.kind == "text":
            tensors["texts"] = self.ready(batch)
        return tensors

    def ready(self, batch):
        """What the text encoder makes beforehand of a batch's texts and of the empty one."""
        found = batch.get("ready")
        if found is None:
            found = self.model[0].text_encoder.ready([*batch["texts"], ""])
        return found.to(self.run.device)

    def forward(self, batch):
        model, batch, K = self.model[0], self.with_latents(batch), batch["t"].shape[1]
        t, eps, dropped = (batch[name].flatten(0, 1) for name in ("t", "eps", "dropped"))
        told = "told" if "told" in batch else "lengths"  # without a length for some clips
        x0, lengths, whole = (repeated(batch[name], K) for name in ("x0", told, "whole"))
        out = model.diffusion_loss(x0, lengths, t=t, eps=eps, dropped=dropped, whole=whole,
                                   **self.condition(batch, K))
        length_loss = out["length_loss"]
        loss = out["loss"] + self.settings.length_weight * length_loss
        losses = {"loss": loss, "length_loss": length_loss}
        bands = t * BANDS // len(model.schedule)
        for band in range(BANDS):  # the sum of errors and how many there were: summary() divides
            inside = bands == band
            losses[f"sum{band}"] = (out["error"] * inside).mean()
            losses[f"count{band}"] = inside.float().mean()
        return losses

    @staticmethod
    def summary(means):
        """error_t0 ... error_t3: the error by noise level, from nearly clean to nearly noise."""
        for band in range(BANDS):
            total, count = means.pop(f"sum{band}"), means.pop(f"count{band}")
            means[f"error_t{band}"] = total / max(count, 1e-9)
        return means

    @torch.no_grad()
    def validate(self):
        """Over val: the losses, and the std of sampled latents divided by that of true ones, which
        tells whether the sampler works."""
        totals, batches = {}, self.run.batches("val", self.settings.batch_size)
        for step, batch in enumerate(batches.epoch(0)):
            share = len(batch["ids"]) / len(batches.items)
            ready = to_device(self.prepare(batch, step, "val"), self.run.device)
            for key, value in self(ready).items():
                totals[key] = totals.get(key, 0.0) + share * value
        first = self.prepare(batches.batch(0, 0), 0, "val")
        first = to_device({**first, "actions": first["actions"].clamp(min=0)}, self.run.device)
        first = self.with_latents(first)
        model, seeds = self.model[0], first["items"].tolist()
        made = model.generate(**self.condition(first), lengths=first["lengths"], seed=seeds,
                              latents=True)
        made = made[0] if model.vae is None else made
        for name, x in (("made", made), ("true", first["x0"])):
            for power in range(3):  # count, sum, sum of squares: the std over all processes
                totals[f"{name}{power}"] = x.float().pow(power).sum()
        values = self.summary(self.run.mean(totals))
        std = {}
        for name in ("made", "true"):
            count, total, squares = (values.pop(f"{name}{power}") for power in range(3))
            std[name] = math.sqrt(abs(squares / count - (total / count) ** 2))
        return {**values, "sampled_std_ratio": std["made"] / std["true"]}

    def show(self, step):
        """Motions for eight captions (or actions) of val."""
        pack, model = self.run.pack, self.model[0]
        items = pack.indices("val")
        items = items[np.linspace(0, len(items) - 1, 8).astype(int)]
        lengths = np.minimum(pack.lengths[items], self.run.config.data.max_frames).tolist()
        captions = [caption_of(pack, i) if self.kind == "text" else pack.action(i) for i in items]
        actions = pack.labels[items].clip(min=0).tolist()
        condition = self.condition({"texts": captions, "actions": actions})
        _, joints = model.generate(**condition, lengths=lengths, seed=0)
        self.run.show(f"{self.name}-{step:07d}", [(j[:n].cpu().numpy(), caption) for j, n, caption
                                                in zip(joints, lengths, captions)])


def repeated(value, times):
    """Each item of a list or tensor `times` times in a row; None stays None."""
    if value is None or times == 1:
        return value
    if isinstance(value, list):
        return [one for one in value for _ in range(times)]
    return value.repeat_interleave(times, 0)
