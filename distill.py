"""Distillation: a student that answers in 1, 2 or 4 steps, with the guidance built in.

    python train.py --dataset toy --stage distill                    a student of out/toy/model.pt
    python train.py --dataset toy --stage distill --init_from checkpoints/toy.pt --name few
    python sample.py "a man jumps" --ckpt out/toy/student.pt         4 steps; --steps 1 or 2

Without new noise, sampling follows a path from each x_t to one x0, and needs many steps as the
path is curved. The student f(x_t, t) is to say at once where it ends (consistency models, Song et
al. 2023; in latent space, with guidance, Luo et al. 2023). So it must say the same at any two
points of a path, which is its loss:

    x_t = a x0 + s eps                   as in any training, t one of `levels`
    x_u = one step of DDIM               along the guided teacher's path, to the level u below t
    |f(x_t, t) - f'(x_u, u)|             f': the moving average of f; at the end f'(x_u, u) = x_u

f is the teacher's denoiser, whose output gives x0 as it always did (noise, x0 or v), trained on
from the teacher's weights. Everything else of the model stays: VAE, text tower, lengths.
"""
import itertools

import torch

from config import FEW
from conditions import drop, pick
from data import to_device
from diffusion import add_noise, guide, levels_of, timesteps
from latents import to_diffused
from mld import Denoiser
from stages import DiffusionStage
from transformer import zero_padding
from vae import clip_mean

NEAR = 0.03  # errors below this count by their square, larger ones as they are (pseudo-Huber)
WATCHED = 2  # batches of val whose paths' ends are computed once


def settings(config):
    """Make a teacher's Config, in place, that of its student."""
    d = config.diffusion
    d.built_in_guidance = 1.0 if config.denoiser.condition == "none" else d.guidance_scale
    d.sampler, d.num_inference_steps, d.guidance_scale, d.eta = "lcm", FEW, 1.0, 0.0


def to_x0(schedule, x_t, output, t, clip_sample=False):
    """x_t and a network's output (B, ...) at the levels t (B,) -> the x0 that it predicts."""
    a, s = levels_of(schedule, t, x_t)
    x0 = output
    if schedule.prediction_type == "epsilon":
        x0 = (x_t - s * output) / a
    elif schedule.prediction_type == "v_prediction":
        x0 = a * x_t - s * output
    return x0.clamp(-1, 1) if clip_sample else x0


def down(schedule, x_t, x0, t, u):
    """diffusion.ddim_step for a level per sample: x_t and x0 (B, ...) at the levels t (B,) -> x_u
    at the levels u (B,) below; where u is -1, x0 itself."""
    a, s = levels_of(schedule, t, x_t)
    a_u, s_u = levels_of(schedule, u.clamp(min=0), x_t)
    x_u = a_u * x0 + s_u / s * (x_t - a * x0)
    return torch.where(u.view(-1, *[1] * (x0.dim() - 1)) < 0, x0, x_u)


class DistillStage(DiffusionStage):
    name = "distill"
    summary = staticmethod(dict)

    def __init__(self, run, model):
        super().__init__(run, model)
        model.eval()
        self.scratch, self.text_encoder, self.length_estimator = False, None, None
        self.teacher, self.target = [self.copy(model)], [self.copy(model)]  # not of the stage's
        falling = timesteps(model.schedule.alphas_cumprod.tolist(), "lcm", self.settings.levels)
        self.levels = torch.tensor([-1, *falling[::-1]], device=run.device)
        self.paths = None

    def copy(self, model):
        """A frozen copy of the model's denoiser."""
        copy = Denoiser(model.config.denoiser, model.denoiser.nfeats).to(self.run.device)
        copy.load_state_dict(model.denoiser.state_dict())
        return copy.requires_grad_(False).eval()

    def follow(self, average):
        """The target's weights are those of the loop's moving average, whatever they become."""
        for p, e in zip(self.target[0].parameters(), average, strict=True):
            p.data = e

    def train(self, mode=True):
        """No dropout: the teacher's answers, which the student learns, have none either."""
        return super().train(False)

    # --- a path ---

    def given(self, batch):
        """A batch's condition and the empty one, and lengths, as the denoiser takes them."""
        model, lengths = self.model[0], batch["lengths"]
        given = pick(model.condition, **self.condition(batch))
        cond, uncond = model.condition.encode(model, given, len(lengths))
        return drop(cond, uncond, batch["dropped"]), uncond, lengths

    def answer(self, network, x_t, t, cond, lengths):
        """x0 (B, ...) as a denoiser predicts it, without guidance."""
        model = self.model[0]
        output = network(x_t.to(model.dtype), t, cond, lengths).to(x_t.dtype)
        return to_x0(model.schedule, x_t, output, t, model.config.diffusion.clip_sample)

    def step(self, x_t, t, u, cond, uncond, lengths):
        """One step down the guided teacher's path: x_t (B, ...) at the levels t -> at u."""
        model, d, network = self.model[0], self.model[0].config.diffusion, self.teacher[0]
        output = network(x_t.to(model.dtype), t, cond, lengths)
        if d.built_in_guidance != 1:
            without = network(x_t.to(model.dtype), t, uncond, lengths)
            output = guide(without, output, d.built_in_guidance, d.guidance_rescale,
                           None if model.vae else lengths)
        x0 = to_x0(model.schedule, x_t, output.to(x_t.dtype), t, d.clip_sample)
        return down(model.schedule, x_t, x0, t, u)

    # --- the loss ---

    def forward(self, batch):
        model = self.model[0]
        padded = None if model.vae else batch["lengths"]
        with torch.no_grad():
            cond, uncond, lengths = self.given(batch)
            row = batch["t"] * (len(self.levels) - 1) // len(model.schedule)
            t, u = self.levels[row + 1], self.levels[row]
            x_t = add_noise(model.schedule, to_diffused(model, zero_padding(batch["x0"], padded)),
                            batch["eps"], t)
            x_u = self.step(x_t, t, u, cond, uncond, lengths)
            goal = self.answer(self.target[0], x_u, u.clamp(min=0), cond, lengths)
            goal = torch.where(u.view(-1, 1, 1) < 0, x_u, goal)
        made = self.answer(self.denoiser, x_t, t, cond, lengths)
        error = clip_mean((made - goal).square(), padded, per_clip=True)
        loss = (error + NEAR**2).sqrt() - NEAR
        return {"loss": loss.mean(), "step_error": error.detach().mean()}

    # --- on val ---

    @torch.no_grad()
    def path(self, batch, step):
        """Down the teacher's path from pure noise: where it ends (B, ...), (level, x_t) at the
        levels that 1, 2 and 4 steps ask, and what `given` gives."""
        ready = to_device(self.prepare(batch, step, "val"), self.run.device)
        model, given = self.model[0], self.given(ready)
        asked = timesteps(model.schedule.alphas_cumprod.tolist(), "lcm", FEW)
        x, seen, falling = ready["eps"], [], self.levels.flip(0)
        x = x if model.vae else zero_padding(x, ready["lengths"])
        for t, u in zip(falling, falling[1:]):
            t, u = t.expand(len(x)), u.expand(len(x))
            if t[0] in asked:
                seen.append((int(t[0]), x))
            x = self.step(x, t, u, *given)
        return x, seen, given

    @torch.no_grad()
    def validate(self):
        """How far the student's answers are from the ends of the teacher's paths, squared: asked
        at each level of its four steps, `error_T` for level T, and their mean."""
        if self.paths is None:
            batches = self.run.batches("val", self.settings.batch_size)
            some = list(itertools.islice(batches.epoch(0), WATCHED))
            total = sum(batch["global_size"] for batch in some)
            self.paths = [(len(batch["ids"]) / total, *self.path(batch, step))
                          for step, batch in enumerate(some)]
        sums = {}
        for share, end, seen, (cond, _, lengths) in self.paths:
            padded = None if self.model[0].vae else lengths
            for level, x in seen:
                t = torch.full((len(x),), level, device=x.device)
                error = self.answer(self.denoiser, x, t, cond, lengths) - end
                error = clip_mean(error.square(), padded, per_clip=True).mean()
                for key in ("loss", f"error_{level}"):
                    part = share * error / (len(seen) if key == "loss" else 1)
                    sums[key] = sums.get(key, 0.0) + part
        return self.run.mean(sums)
