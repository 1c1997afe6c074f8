"""Distillation: a student that answers in 1, 2 or 4 steps, with the guidance built in.

    python train.py --dataset toy --stage distill                    a student of out/toy/model.pt
    python train.py --dataset toy --stage distill --init_from checkpoints/toy.pt --name few
    python sample.py "a man jumps" --ckpt out/toy/student.pt         4 steps; --steps 1 or 2

Without new noise, sampling follows a path from each x_t to one x0. The path is curved, so it takes
many steps. The student learns to say at once where the path ends:

    f(x_t, t) = x0    for each x_t of a path that the guided teacher takes from noise to x0

This f is the consistency function (Song et al. 2023; for guided latents, Luo et al. 2023). Those
papers learn it from neighbours on a path, each of which must say what the next one says, since a
whole path of an image model is too dear. A motion's latent is so small that the teacher goes all
the way, and the student learns the end itself, from every level of the path; docs/training.md has
both ways measured. Nothing but captions and lengths is taken from the data.

f is the teacher's denoiser, whose output gives x0 as it always did (from noise, x0 or v), trained
on from the teacher's weights. Everything else of the model stays: VAE, text tower, lengths.
"""
import copy
import functools
import itertools

import torch
import torch.nn as nn

from conditions import drop, pick
from config import FEW
from data import to_device
from diffusion import dpmpp_step, guide, plan, take_step
from latents import diffused_shape
from stages import DiffusionStage
from transformer import zero_padding
from vae import clip_mean

WATCHED = 2  # batches of val whose paths are computed once
PATHS = 128  # of a batch of val


def settings(config):
    """Make a teacher's Config, in place, that of its student."""
    d = config.diffusion
    d.built_in_guidance = 1.0 if config.denoiser.condition == "none" else d.guidance_scale
    d.sampler, d.num_inference_steps, d.guidance_scale, d.eta = "lcm", FEW, 1.0, 0.0


def path_steps(schedule, count):
    """The `Step`s of a teacher's path from noise to x0, by DPM-Solver++ of second order: `count`
    levels of the sampler lcm, among which are those of its 1, 2 and 4 steps, and then half of the
    level before each time, as an x0 from too far away would lack what noise still hides."""
    every = {step.t: step for step in plan(schedule, "lcm", len(schedule))}
    levels = [step.t for step in plan(schedule, "lcm", count)]
    while levels[-1] > len(schedule) // 100:
        levels.append(levels[-1] // 2)
    abar = [schedule.alphas_cumprod[t].item() for t in levels]
    steps = [every[t]._replace(c_x=0.0, c_0=1.0, c_noise=0.0) for t in levels]
    for i in range(len(levels) - 1):  # the last goes to x0
        c_x, c_0, c_last = dpmpp_step(abar[i], abar[i + 1], abar[i - 1] if i else None)
        steps[i] = steps[i]._replace(c_x=c_x, c_0=c_0, c_last=c_last)
    return steps


@functools.lru_cache(maxsize=64)
def numbers_on(steps, device):
    """t, p_x and p_out of each step (n, 3), copied to a device once: a CUDA graph cannot record a
    copy from Python."""
    return torch.tensor([step[:3] for step in steps], device=device)


class DistillStage(DiffusionStage):
    name = "distill"
    summary = staticmethod(dict)

    def __init__(self, run, model):
        nn.Module.__init__(self)
        c = run.config
        self.run, self.model, self.denoiser = run, [model.eval()], model.denoiser
        self.settings, self.kind = c.train_distill, c.denoiser.condition
        teacher = copy.deepcopy(model.denoiser)
        self.teacher = [teacher.requires_grad_(False).eval()]  # in a list: no part of the stage
        self.steps, self.paths = path_steps(model.schedule, self.settings.levels), None
        self.batches = run.batches(
            "train", self.settings.batch_size, motion=False,
            balanced=self.kind == "action" and c.data.balance_actions)
        if c.train.compile:
            self.denoiser.compile(dynamic=True)

    def train(self, mode=True):
        """No dropout: the teacher's answers, which the student learns, have none either."""
        return super().train(False)

    def prepare(self, batch, step, name=""):
        c, n = self.run.config, batch["global_size"]
        g, share = self.run.draws(name or self.name, step), self.run.share
        dropped = (torch.rand(n, generator=g) < c.denoiser.condition_dropout)[share]
        if name:  # on val: paths without a condition are few, and far from each other
            dropped = torch.zeros_like(dropped)
        if self.model[0].vae:
            eps = torch.randn(n, *diffused_shape(c), generator=g)[share]
        else:
            eps = torch.randn(n, c.data.max_frames, c.data.nfeats, generator=g)[share]
            eps = zero_padding(eps[:, :int(batch["lengths"].max())], batch["lengths"])
        return {**batch, "eps": eps, "dropped": dropped}

    def tensors(self, batch):
        names = ["eps", "lengths", "dropped"] + ["actions"] * (self.kind == "action")
        tensors = {name: batch[name] for name in names}
        if self.kind == "text":
            tensors["texts"] = self.ready(batch)
        return tensors

    @torch.no_grad()
    def path(self, batch):
        """The guided teacher's path from the noise of a batch: the points (B, ...) that the student
        learns from, the noisiest first, their end (B, ...), and the batch's condition."""
        model, d, lengths = self.model[0], self.model[0].config.diffusion, batch["lengths"]
        given = pick(model.condition, **self.condition(batch))
        cond, uncond = model.condition.encode(model, given, len(lengths))
        cond = drop(cond, uncond, batch["dropped"])
        x, x0, points, frames = batch["eps"], None, [], None if model.vae else lengths
        for step in self.steps:
            points.append(x)
            t = torch.full((len(x),), step.t, device=x.device)
            output = self.teacher[0](x.to(model.dtype), t, cond, lengths)
            if d.built_in_guidance != 1:
                without = self.teacher[0](x.to(model.dtype), t, uncond, lengths)
                output = guide(without, output, d.built_in_guidance, d.guidance_rescale, frames)
            x, x0 = take_step(step, x, output.to(x.dtype), x0, None, d.clip_sample)
        return points[:self.settings.levels], x, cond

    def errors(self, points, steps, end, cond, lengths):
        """Squared errors (B * n,) of the student's answers at n points of B paths."""
        model, n = self.model[0], len(points)

        def repeated(x):
            return x if x is None else x.repeat(n, *[1] * (x.dim() - 1))

        x, lengths, like = torch.cat(points), repeated(lengths), (-1, *[1] * (end.dim() - 1))
        numbers = numbers_on(tuple(steps), x.device)
        t, p_x, p_out = numbers.repeat_interleave(len(end), 0).unbind(1)
        output = self.denoiser(x.to(model.dtype), t.long(), repeated(cond), lengths).to(x.dtype)
        x0 = p_x.view(like) * x + p_out.view(like) * output
        if model.config.diffusion.clip_sample:
            x0 = x0.clamp(-1, 1)
        padded = None if model.vae else lengths
        return clip_mean((x0 - repeated(end)).square(), padded, per_clip=True)

    def forward(self, batch):
        points, end, cond = self.path(batch)
        errors = self.errors(points, self.steps[:len(points)], end, cond, batch["lengths"])
        return {"loss": errors.mean()}

    @torch.no_grad()
    def validate(self):
        """The squared errors on val at the levels that 1, 2 and 4 steps ask, `error_T` for level T,
        and their mean."""
        if self.paths is None:
            batches = self.run.batches("val", PATHS, motion=False)
            some = list(itertools.islice(batches.epoch(0), WATCHED))
            total, self.paths = sum(batch["global_size"] for batch in some), []
            for step, batch in enumerate(some):
                ready = to_device(self.prepare(batch, step, "val"), self.run.device)
                self.paths.append((len(batch["ids"]) / total, self.path(ready), ready["lengths"]))
        every, sums = self.settings.levels // FEW, {}
        for share, (points, end, cond), lengths in self.paths:
            for point, step in zip(points[::every], self.steps[::every]):
                error = share * self.errors([point], [step], end, cond, lengths).mean()
                for key, part in (("loss", error / FEW), (f"error_{step.t}", error)):
                    sums[key] = sums.get(key, 0.0) + part
        return self.run.mean(sums)
