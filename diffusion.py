"""Diffusion: the noise schedule, forward noising, and the samplers that run it backwards. Pure
maths on tensors; no network.

    python diffusion.py             how near each sampler comes to the 1000-step answer in 5, 10, 20 and 50 steps, on a
    python diffusion.py cosine      problem whose perfect denoiser is known; the same on another schedule

Notation (DDPM, Ho et al. 2020; MLD, section 3.2, has z for x): q(x_t | x_{t-1}) = N(sqrt(alpha_t)
x_{t-1}, (1 - alpha_t) I), alpha_t = 1 - beta_t. Chained, with abar_t = alpha_0 alpha_1 ...
alpha_t, the `alphas_cumprod` (DDPM, eq. 4):

    x_t = a x0 + s eps,   eps ~ N(0, I),   a = sqrt(abar_t),   s = sqrt(1 - abar_t)

A network sees x_t and t and says what eps, x0, or v = a eps - s x0 (Salimans & Ho 2022) was; each
gives x0. Every sampler here is then one linear map from level t down to the next level of its
plan, whose a and s are written a' and s':

    x' = c_x x_t + c_0 x0 + c_last (x0 of the step before) + c_noise N(0, I)

The c's depend on the level alone: `plan` works them out beforehand, as Python floats in double
precision. A step of the loop is then a handful of tensor operations, without a look-up and
without waiting for the device. """
import argparse
import bisect
import dataclasses
import difflib
import functools
import math
from collections import namedtuple

import torch
from tqdm import tqdm

BETA_SCHEDULES, SAMPLERS = ("linear", "scaled_linear", "cosine"), ("ddim", "ddpm", "dpm++")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def check_name(setting, value, known):
    if value not in known:
        near = difflib.get_close_matches(str(value).lower(), known, 1, 0.0)[0]
        raise ValueError(
            f"{setting} must be one of {', '.join(known)}, got {value!r}. Did you mean {near}?"
        )


# --------------------------------------------------------------------------------------------------
# The forward process


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How much noise there is at each level, and which of eps, x0 and v the network is to predict
    from it."""
    betas: torch.Tensor  # (T,) float32
    alphas_cumprod: torch.Tensor  # (T,) float32
    prediction_type: str

    def __len__(self):
        return len(self.betas)


def make_schedule(
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="epsilon",
):
    """Schedule of T = `num_train_timesteps` levels; `cosine` (Nichol & Dhariwal 2021, eq. 17) has
    no start and end.

    In float32, as published: weights trained on rounded levels are sampled on the same.
    ValueError for what cannot be. """
    check_name("beta_schedule", beta_schedule, BETA_SCHEDULES)
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    if num_train_timesteps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            "The schedule needs num_train_timesteps >= 1 and 0 < beta_start <= beta_end < 1, got "
            f"{num_train_timesteps}, {beta_start} and {beta_end}."
        )
    if beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    elif beta_schedule == "scaled_linear":  # linear in the standard deviation
        betas = (
            torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32)
            ** 2
        )
    else:
        part = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        abar = torch.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=0.999).float()
    return Schedule(betas, torch.cumprod(1 - betas, 0), prediction_type)


@functools.lru_cache(maxsize=16)
def on_device(table, device):
    """A small table, copied to each device once."""
    return table.to(device)


def levels_of(schedule, t, like):
    """a, s of levels t (B,), shaped to multiply `like` (B, ...)."""
    abar = on_device(schedule.alphas_cumprod, like.device)[t].view(-1, *[1] * (like.dim() - 1))
    return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)


def add_noise(schedule, x0, eps, t):
    """x_t = a x0 + s eps (DDPM, eq. 4): x0, eps (B, ...), t (B,) int64 in 0..T-1 -> (B, ...)."""
    a, s = levels_of(schedule, t, x0)
    return a * x0 + s * eps


def training_target(schedule, x0, eps, t):
    """What the network should answer to add_noise(schedule, x0, eps, t); the loss is the mean
    square of the difference."""
    if schedule.prediction_type != "v_prediction":
        return eps if schedule.prediction_type == "epsilon" else x0
    a, s = levels_of(schedule, t, x0)
    return a * eps - s * x0


# --------------------------------------------------------------------------------------------------
# One step back, for each sampler: from abar_t = abar to the next level's abar' = prev


def ddim_step(abar, prev, eta=0.0):
    """DDIM (Song et al. 2021, eq. 12 and 16): x' = a' x0 + sqrt(s'^2 - sigma^2) eps + sigma N(0,
    I), eps = (x_t - a x0) / s, sigma = eta (s'/s) sqrt(1 - abar/abar'). eta 0 is deterministic,
    eta 1 is DDPM. Returns c_x, c_0, c_noise. """
    sigma = eta * math.sqrt((1 - prev) / (1 - abar) * (1 - abar / prev))
    c_x = math.sqrt((1 - prev - sigma**2) / (1 - abar))
    return c_x, math.sqrt(prev) - c_x * math.sqrt(abar), sigma


def ddpm_step(abar, prev):
    """DDPM (Ho et al. 2020, eq. 7): draw from q(x' | x_t, x0) = N(a' (1 - alpha)/s^2 x0 +
    sqrt(alpha) s'^2/s^2 x_t, (1 - alpha) s'^2/s^2 I) with alpha = abar/abar', the "fixed small"
    variance. Returns c_x, c_0, c_noise. """
    # rounded as published: 1 - alpha has few digits near t = 0
    alpha = torch.tensor(abar / prev, dtype=torch.float32).item()
    ratio = (1 - prev) / (1 - abar)
    return (
        math.sqrt(alpha) * ratio,
        math.sqrt(prev) * (1 - alpha) / (1 - abar),
        math.sqrt((1 - alpha) * ratio),
    )


def half_log_snr(abar):
    """lambda = log(a/s)"""
    return 0.5 * math.log(abar / (1 - abar))


def dpmpp_step(abar, prev, last=None):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), `last` the abar of the step before. Returns
    c_x, c_0, c_last.

    In lambda = log(a/s) the noise-free path obeys  x' = (s'/s) x_t + s' * integral from lambda to
    lambda' of e^l x0(l) dl: only x0 changes with the network, and slowly. Held constant, it gives
    x' = (s'/s) x_t + a' (1 - e^-h) x0 with h = lambda' - lambda, which is DDIM. 2M extrapolates
    it linearly to the middle of the step, from the step before, of size h_last: x0 + k (x0 -
    x0_last), k = h / (2 h_last). Second order, and still one evaluation per step. """
    h = half_log_snr(prev) - half_log_snr(abar)
    k = 0.0 if last is None else h / (2 * (half_log_snr(abar) - half_log_snr(last)))
    gain = -math.sqrt(prev) * math.expm1(-h)
    return math.sqrt((1 - prev) / (1 - abar)), gain * (1 + k), -gain * k


# --------------------------------------------------------------------------------------------------
# A whole run: planned, then sampled


# x0 = p_x x_t + p_out output, that is (x_t - s eps)/a, or x0 itself, or a x_t - s v; then the map
# to the next level
Step = namedtuple("Step", "t p_x p_out c_x c_0 c_last c_noise")


def timesteps(abar, sampler, n):
    """The n levels, falling, at which the network is asked. abar: list of T floats, falling."""
    total = len(abar)
    # as published: 981, 961 ... 1 for 50 of 1000 (all 1000 leave no room for the 1)
    if sampler == "ddim" and n >= 5:
        return [i * total // n + (n < total) for i in reversed(range(n))]
    # 999, 979 ... 19: from the noisiest level, as x_T is pure noise; few steps need that
    if sampler in ("ddim", "ddpm"):
        return [round(total * (n - i) / n) - 1 for i in range(n)]
    # dpm++: equal steps in lambda, best from 10 steps on. The fewer there are the longer they
    # get, until strong guidance blows them up, so below 10 they are blended with equal steps in
    # t. Where abar is all but 0 (the cosine's end) there is nothing to see, and eps predictions
    # would be divided by it: the run starts at lambda = -5.1.
    negative = [-half_log_snr(q) for q in abar]
    top = max(bisect.bisect(negative, 5.1) - 1, n - 1)
    result, t, share = [], top + 1, 1.0 if n >= 10 else 0.25
    for i in range(n):
        in_lambda = bisect.bisect_left(
            negative, negative[top] + (negative[0] - negative[top]) * i / n, hi=top
        )
        in_t = (top + 1) * (n - i) / n - 1
        # each level once
        t = max(n - 1 - i, min(t - 1, round(share * in_lambda + (1 - share) * in_t)))
        result.append(t)
    return result


def plan(schedule, sampler="ddim", num_inference_steps=50, eta=0.0):
    """The list of `Step`s of a run. Raises ValueError for an unknown sampler and for steps or eta
    out of range.

    DDIM and DPM-Solver++ end at abar_0, the lowest level the network was trained on
    (`set_alpha_to_one=False`), DDPM at 1. """
    check_name("sampler", sampler, SAMPLERS)
    n = num_inference_steps
    if not isinstance(n, int) or not 1 <= n <= len(schedule):
        raise ValueError(
            f"num_inference_steps must be a whole number from 1 to the {len(schedule)} of training, got {n!r}."
        )
    if not 0 <= eta <= 1 or (eta and sampler != "ddim"):
        raise ValueError(
            f"eta must be from 0 to 1 for the sampler ddim and 0 for all others, got {eta} for {sampler}."
        )
    abar = schedule.alphas_cumprod.tolist()
    ts = timesteps(abar, sampler, n)
    levels = [abar[t] for t in ts] + [1.0 if sampler == "ddpm" else abar[0]]
    steps = []
    for i, (t, now, prev) in enumerate(zip(ts, levels, levels[1:])):
        a, s, c_last, c_noise = math.sqrt(now), math.sqrt(1 - now), 0.0, 0.0
        if sampler == "ddim":
            c_x, c_0, c_noise = ddim_step(now, prev, eta)
        elif sampler == "ddpm":
            c_x, c_0, c_noise = ddpm_step(now, prev)
        # the first step has nothing to extrapolate from, and in the last one it does more harm
        # than good
        else:
            c_x, c_0, c_last = dpmpp_step(now, prev, levels[i - 1] if 0 < i < n - 1 else None)
        p = {"epsilon": (1 / a, -s / a), "sample": (0.0, 1.0), "v_prediction": (a, -s)}[
            schedule.prediction_type
        ]
        steps.append(Step(t, *p, c_x, c_0, c_last, c_noise))
    return steps


def make_generators(seed, count):
    """One torch.Generator per sample, from a whole number s (seeds s, s + 1, ...) or a list of
    seeds; None for None."""
    if seed is None:
        return None
    seeds = seed if isinstance(seed, (list, tuple)) else range(seed, seed + count)
    return [torch.Generator().manual_seed(s) for s in seeds]


def draw_noise(shape, generator=None, device=None, dtype=torch.float32, lengths=None):
    """N(0, I) of `shape` (B, ...). `generator`: None, one torch.Generator, or a list of B of
    them, one per sample, so that a sample's noise does not depend on its batch; nor on its
    padding, if `lengths` (B,) says how many rows of each sample of shape (B, T, ...) to draw (the
    rest is 0). A CPU generator gives the same noise on every device. """
    if not isinstance(generator, (list, tuple)):
        source = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"A list of generators needs one per sample: got {len(generator)} for a batch of {shape[0]}."
        )
    noise = torch.zeros(shape, dtype=dtype)
    for row, g, count in zip(
        noise, generator, [shape[1]] * shape[0] if lengths is None else lengths.tolist()
    ):
        row[:count] = torch.randn((count, *shape[2:]), generator=g, device=g.device, dtype=dtype)
    return noise.to(device)


def take_step(step, x_t, output, x0_last=None, noise=None, clip_sample=False):
    """x_t and the network's output (B, ...) -> x at the next level, the predicted x0. `noise`
    where step.c_noise is not 0."""
    # even an output that is x0 is copied: dpm++ looks back at it when a denoiser with fixed
    # buffers has overwritten it
    x0 = torch.add(x_t * step.p_x, output, alpha=step.p_out) if step.p_x else output.clone()
    x0 = x0.clamp(-1, 1) if clip_sample else x0
    x = torch.add(x_t * step.c_x, x0, alpha=step.c_0)
    if step.c_last:
        x = x.add_(x0_last, alpha=step.c_last)
    return (x.add_(noise, alpha=step.c_noise) if step.c_noise else x), x0


@torch.no_grad()
def sample(denoise_fn, x_T, schedule, sampler="ddim", num_inference_steps=50, eta=0.0,
           clip_sample=False, generator=None, lengths=None, callback=None, progress=False):
    """Run the diffusion backwards from pure noise x_T (B, ...) ~ N(0, I) to x0 (B, ...).

    denoise_fn(x_t (B, ...), t (B,) int64) -> output (B, ...), which schedule.prediction_type
    names; guidance is its business (see `guide`). sampler: ddim (any eta), ddpm, dpm++. The other
    arguments are those of `walk`. Raises ValueError for settings out of range. """
    steps = plan(schedule, sampler, num_inference_steps, eta)
    times = levels(steps, x_T.device)[:, None].repeat(1, x_T.shape[0])  # (n, B)
    return walk(steps, times, denoise_fn, x_T, clip_sample, generator, lengths, callback, progress)


def levels(steps, device=None):
    """(n,) int64: the noise levels at which these steps ask the network."""
    return torch.tensor([step.t for step in steps], device=device)


@torch.no_grad()
def walk(steps, times, denoise_fn, x_T, clip_sample=False, generator=None, lengths=None,
         callback=None, progress=False):
    """The sampling loop: x_T (B, ...) through `steps` -> x0, in x_T's dtype and on its device.

    times: step i hands times[i] to denoise_fn as t, the level itself or an embedding of it.
    clip_sample: the predicted x0 is clipped to -1..1 in each step. generator, lengths: see
    draw_noise. callback(i, t, x, x0) sees each step's result; progress shows a bar.
    Raises ValueError for an output of another shape than x_t.
    """
    if not x_T.is_floating_point() or x_T.dim() < 2:
        raise ValueError("x_T must be floating-point noise of shape (B, ...), got "
                         f"{x_T.dtype} of shape {tuple(x_T.shape)}.")
    x, x0 = x_T, None
    for i, step in enumerate(tqdm(steps, desc="sampling", disable=not progress, leave=False)):
        output = denoise_fn(x, times[i])
        if output.shape != x.shape:
            raise ValueError("The denoiser must return the shape it is given, "
                             f"{tuple(x.shape)}, not {tuple(output.shape)}.")
        noise = None
        if step.c_noise:
            noise = draw_noise(x.shape, generator, x.device, x.dtype, lengths)
        x, x0 = take_step(step, x, output.to(x.dtype), x0, noise, clip_sample)
        if callback is not None:
            callback(i, step.t, x, x0)
    return x


def guide(uncond, cond, scale, rescale=0.0, lengths=None):
    """Classifier-free guidance (Ho & Salimans 2022; MLD, section 3.3): scale cond + (1 - scale)
    uncond, of outputs (B, ...).

    scale 1 returns cond, 0 uncond. `rescale` in 0..1 moves the result's deviation, which guidance
    inflates, back towards cond's (Lin et al. 2023, section 3.4); `lengths` (B,) then keeps the
    zeros of padded rows (B, T, ...) out of it. """
    if not 0 <= scale < math.inf:
        raise ValueError(
            f"guidance_scale must be a finite number of at least 0 (1 = no guidance), got {scale}."
        )
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale must be from 0 to 1, got {rescale}.")
    guided = torch.lerp(uncond, cond, scale)
    if not rescale:
        return guided
    dims = tuple(range(1, cond.dim()))
    count = (
        cond[0].numel()
        if lengths is None
        else (lengths.to(cond.device) * cond[0, 0].numel()).view(-1, *[1] * len(dims))
    )

    def deviation(x):
        x = x.float()
        return (
            (x.pow(2).sum(dims, True) / count - (x.sum(dims, True) / count) ** 2)
            .clamp_min(1e-12)
            .sqrt()
        )

    return guided * (1 + rescale * (deviation(cond) / deviation(guided) - 1)).to(guided.dtype)


# --------------------------------------------------------------------------------------------------
# The demonstration


LEGEND = """Data: ten Gaussian blobs (deviation 0.3, centres of deviation 1, 32 numbers), five asked for; exact denoiser.
ddim, dpm++: median distance per number to DDIM's 1000-step answer from the same noise, and the share of samples that end
in another blob than it does. ddpm, which is random: distance of all its samples, as a cloud, to those of another run of
1000 steps (sliced Wasserstein; the last row is what chance alone gives)."""


def mixture_denoiser(schedule, centres, deviation):
    """The perfect denoiser E[x0 | x_t] for data that lies in equal Gaussian blobs around
    `centres` (K, D)."""
    def denoise(x, t):
        a, s = levels_of(schedule, t, x)  # (B, 1)
        variance = (a * deviation) ** 2 + s**2
        away = x[:, None] - a[..., None] * centres  # (B, K, D)
        # (B, K): which blob x_t may have come from
        share = torch.softmax(-away.pow(2).sum(-1) / (2 * variance), 1)
        return (
            share[..., None] * (centres + (a * deviation**2 / variance)[..., None] * away)
        ).sum(1)
    return denoise


def sampler_table(beta_schedule, guidance_scale, counts, batch=512):
    """{sampler: [(distance, share in another blob) per count of steps]}; LEGEND says what they
    are."""
    schedule, g = make_schedule(
        beta_schedule, prediction_type="sample"
    ), torch.Generator().manual_seed(0)
    centres, x_T, directions = torch.randn(
        10 + batch + 100, 32, generator=g, dtype=torch.float64
    ).split((10, batch, 100))
    every, asked = mixture_denoiser(schedule, centres, 0.3), mixture_denoiser(
        schedule, centres[:5], 0.3
    )

    def run(sampler, n):
        return sample(
            lambda x, t: guide(every(x, t), asked(x, t), guidance_scale),
            x_T,
            schedule,
            sampler,
            n,
            generator=g,
        )

    def compare(x, answer, random):
        if random:
            x, answer = (
                (y @ directions.T / directions.norm(dim=1)).sort(0)[0] for y in (x, answer)
            )
            return (x - answer).abs().mean().item(), 0.0
        moved = torch.cdist(x, centres).argmin(1) != torch.cdist(answer, centres).argmin(1)
        return (x - answer).pow(2).mean(1).sqrt().median().item(), moved.double().mean().item()

    answer = {"ddim": run("ddim", 1000), "ddpm": run("ddpm", 1000)}
    return {
        s: [compare(run(s, n), answer.get(s, answer["ddim"]), s == "ddpm") for n in counts]
        for s in SAMPLERS
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=LEGEND)
    parser.add_argument("schedule", nargs="?", default="scaled_linear", choices=BETA_SCHEDULES)
    kind, counts = parser.parse_args().schedule, (5, 10, 20, 50, 1000)
    print(LEGEND)
    for scale in (1.0, 7.5):
        print(
            f"\n{kind} schedule, guidance {scale}\nsteps   ddim             dpm++            ddpm"
        )
        for n, ddim, ddpm, dpmpp in zip(counts, *sampler_table(kind, scale, counts).values()):
            print(
                f"{n:5}   {ddim[0]:.4f} ({ddim[1]:5.1%})  {dpmpp[0]:.4f} ({dpmpp[1]:5.1%})  {ddpm[0]:.4f}"
            )
