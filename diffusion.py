"""Diffusion: the noise schedule, forward noising, and the samplers that run it backwards.

Pure maths on tensors; no network.

    python diffusion.py           how near each sampler gets in 5, 10, 20 and 50 steps to the answer
                                  of 1000, on a problem whose perfect denoiser is known
    python diffusion.py cosine    the same on another schedule

Notation (DDPM, Ho et al. 2020; MLD, section 3.2, writes z for x), with alpha_t = 1 - beta_t:

    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I)

Chained, with abar_t = alpha_0 alpha_1 ... alpha_t, the `alphas_cumprod` (DDPM, eq. 4):

    x_t = a x0 + s eps,   eps ~ N(0, I),   a = sqrt(abar_t),   s = sqrt(1 - abar_t)

A network sees x_t and t and predicts eps, x0, or v = a eps - s x0 (Salimans & Ho 2022); each of
them gives x0. Every sampler here is then one linear map from level t to the next lower level of
its plan, whose a and s are written a' and s':

    x' = c_x x_t + c_0 x0 + c_last (x0 of the step before) + c_noise N(0, I)

The c's depend on the levels alone: `plan` computes them beforehand, as Python floats in double
precision. A step of the loop is then a handful of tensor operations that look nothing up and never
wait for the device.
"""
import bisect
import contextlib
import dataclasses
import difflib
import functools
import math
import operator
from collections import namedtuple

import torch
from tqdm import tqdm

BETA_SCHEDULES = ("linear", "scaled_linear", "cosine")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SAMPLERS = ("ddim", "ddpm", "dpm++", "lcm")


def check_name(setting, value, known):
    if value not in known:
        near = difflib.get_close_matches(str(value).lower(), known, 1, 0.0)[0]
        raise ValueError(f"{setting} must be one of {', '.join(known)}, got {value!r}. "
                         f"Did you mean {near}?")


def whole(setting, value):
    """A whole number, numpy's and torch's among them, as an int; ValueError for anything else."""
    if "bool" not in str(getattr(value, "dtype", type(value))):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise ValueError(f"{setting} must be a whole number, got {value!r}.")


# --------------------------------------------------------------------------------------------------
# The forward process


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The noise at each level, and what the network is to predict: eps, x0 or v."""
    betas: torch.Tensor  # (T,) float32
    alphas_cumprod: torch.Tensor  # (T,) float32
    prediction_type: str

    def __len__(self):
        return len(self.betas)


def make_schedule(beta_schedule="scaled_linear", num_train_timesteps=1000, beta_start=0.00085,
                  beta_end=0.012, prediction_type="epsilon"):
    """Schedule of T = num_train_timesteps levels.

    linear         beta grows evenly from beta_start to beta_end
    scaled_linear  sqrt(beta) does
    cosine         Nichol & Dhariwal 2021, eq. 17; beta_start and beta_end have no effect

    The numbers are rounded to float32, as published: weights that were trained on rounded levels
    are sampled on the same ones. ValueError for an unknown name or settings out of range."""
    check_name("beta_schedule", beta_schedule, BETA_SCHEDULES)
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    T = num_train_timesteps
    if T < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError("The schedule needs num_train_timesteps >= 1 and 0 < beta_start <= "
                         f"beta_end < 1, got {T}, {beta_start} and {beta_end}.")
    if beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, T, dtype=torch.float32)
    elif beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float32) ** 2
    else:
        part = torch.arange(T + 1, dtype=torch.float64) / T
        abar = torch.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=0.999).float()
    return Schedule(betas, torch.cumprod(1 - betas, 0), prediction_type)


@functools.lru_cache(maxsize=16)
def on_device(table, device):
    """A small table, copied to each device once."""
    return table.to(device)


def levels_of(schedule, t, like):
    """a and s of the levels t (B,), shaped to multiply `like` (B, ...)."""
    abar = on_device(schedule.alphas_cumprod, like.device)[t].view(-1, *[1] * (like.dim() - 1))
    return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)


def add_noise(schedule, x0, eps, t):
    """x_t = a x0 + s eps (DDPM, eq. 4): x0, eps (B, ...), t (B,) int64 in 0..T-1 -> (B, ...)."""
    a, s = levels_of(schedule, t, x0)
    return a * x0 + s * eps


def training_target(schedule, x0, eps, t):
    """What the network should answer to add_noise(schedule, x0, eps, t)."""
    p, r = target_parts(schedule, *levels_of(schedule, t, x0))
    return p * eps + r * x0


def target_parts(schedule, a, s):
    """p and r of what the network should answer, p eps + r x0: eps, x0, or v of the level a, s."""
    return {"epsilon": (1.0, 0.0), "sample": (0.0, 1.0)}.get(schedule.prediction_type, (a, -s))


# --------------------------------------------------------------------------------------------------
# One step back, for each sampler: from abar_t = abar to the next level's abar' = prev


def ddim_step(abar, prev, eta=0.0):
    """DDIM (Song et al. 2021, eq. 12 and 16) -> c_x, c_0, c_noise.

        x' = a' x0 + sqrt(s'^2 - sigma^2) eps + sigma N(0, I),   eps = (x_t - a x0) / s,
        sigma = eta (s'/s) sqrt(1 - abar/abar')

    eta 0 is deterministic, eta 1 is DDPM."""
    sigma = eta * math.sqrt((1 - prev) / (1 - abar) * (1 - abar / prev))
    c_x = math.sqrt((1 - prev - sigma**2) / (1 - abar))
    return c_x, math.sqrt(prev) - c_x * math.sqrt(abar), sigma


def ddpm_step(abar, prev):
    """DDPM (Ho et al. 2020, eq. 7), with the "fixed small" variance -> c_x, c_0, c_noise.

        q(x' | x_t, x0) = N(a' (1 - alpha)/s^2 x0 + sqrt(alpha) s'^2/s^2 x_t,
                            (1 - alpha) s'^2/s^2 I),   alpha = abar/abar'
    """
    # rounded to float32, as published: near t = 0 few digits of 1 - alpha are left
    alpha = torch.tensor(abar / prev, dtype=torch.float32).item()
    ratio = (1 - prev) / (1 - abar)
    c_0 = math.sqrt(prev) * (1 - alpha) / (1 - abar)
    return math.sqrt(alpha) * ratio, c_0, math.sqrt((1 - alpha) * ratio)


def half_log_snr(abar):
    """lambda = log(a/s)"""
    return 0.5 * math.log(abar / (1 - abar))


def dpmpp_step(abar, prev, last=None):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) -> c_x, c_0, c_last.

    last: abar of the step before. In lambda = log(a/s) the noise-free path obeys

        x' = (s'/s) x_t + s' * integral from lambda to lambda' of e^l x0(l) dl

    in which only x0 depends on the network, and it changes slowly. Held constant, it gives
    x' = (s'/s) x_t + a' (1 - e^-h) x0 with h = lambda' - lambda, which is DDIM. 2M extrapolates
    it linearly to the middle of the step, from the step before, of size h_last:
    x0 + k (x0 - x0_last) with k = h / (2 h_last). That is second order, and still needs only one
    evaluation per step."""
    h = half_log_snr(prev) - half_log_snr(abar)
    k = 0.0 if last is None else h / (2 * (half_log_snr(abar) - half_log_snr(last)))
    gain = -math.sqrt(prev) * math.expm1(-h)
    return math.sqrt((1 - prev) / (1 - abar)), gain * (1 + k), -gain * k


# --------------------------------------------------------------------------------------------------
# A whole run: planned, then sampled


# A step first recovers x0 = p_x x_t + p_out output, that is (x_t - s eps)/a, or x0 itself, or
# a x_t - s v; the c's then lead to the next level.
Step = namedtuple("Step", "t p_x p_out c_x c_0 c_last c_noise")


def timesteps(abar, sampler, n):
    """The n levels, falling, at which the network is asked. abar: list of T floats, falling.

    They are those of diffusers for DDIM with n >= 5 that divides T, and for DDPM with n = T.
    Elsewhere diffusers leaves out the noisiest levels, although x_T is pure noise."""
    T = len(abar)
    if sampler == "ddim" and n >= 5:
        # as published: 981, 961 ... 1 for 50 of 1000 (all 1000 leave no room for the 1)
        return [i * T // n + (n < T) for i in reversed(range(n))]
    if sampler in ("ddim", "ddpm", "lcm"):
        # 999, 979 ... 19: few steps have to start at the noisiest level, as x_T is pure noise
        return [round(T * (n - i) / n) - 1 for i in range(n)]
    # dpm++: equal steps in lambda are best from 10 steps on. Fewer are longer, until strong
    # guidance makes them diverge, so they are blended with equal steps in t. Where abar is almost
    # 0 (the cosine's end) x_t shows nothing, and eps predictions would be divided by it: the run
    # starts at lambda = -5.1.
    negative = [-half_log_snr(q) for q in abar]
    top = max(bisect.bisect(negative, 5.1) - 1, n - 1)
    start, end = negative[top], negative[0]
    result, t, share = [], top + 1, 1.0 if n >= 10 else 0.25
    for i in range(n):
        in_lambda = bisect.bisect_left(negative, start + (end - start) * i / n, hi=top)
        in_t = (top + 1) * (n - i) / n - 1
        blend = round(share * in_lambda + (1 - share) * in_t)
        t = max(n - 1 - i, min(t - 1, blend))  # no level twice
        result.append(t)
    return result


def plan(schedule, sampler="ddim", num_inference_steps=50, eta=0.0):
    """The list of `Step`s of a run; ValueError for an unknown sampler or settings out of range.

    DDIM and DPM-Solver++ end at abar_0, the lowest level that the network was trained on
    (`set_alpha_to_one=False` as published), DDPM and lcm at 1. lcm is for students (distill.py):
    each x0 is an answer of its own, and is noised anew for the next step."""
    check_name("sampler", sampler, SAMPLERS)
    n = whole("num_inference_steps", num_inference_steps)
    if not 1 <= n <= len(schedule):
        raise ValueError("num_inference_steps must be a whole number from 1 to the "
                         f"{len(schedule)} of training, got {n}.")
    if not 0 <= eta <= 1 or (eta and sampler != "ddim"):
        raise ValueError("eta must be from 0 to 1 for the sampler ddim and 0 for all others, got "
                         f"{eta} for {sampler}.")
    abar = schedule.alphas_cumprod.tolist()
    ts = timesteps(abar, sampler, n)
    path = [abar[t] for t in ts] + [1.0 if sampler in ("ddpm", "lcm") else abar[0]]
    steps = []
    for i, (t, now, prev) in enumerate(zip(ts, path, path[1:])):
        a, s, c_last, c_noise = math.sqrt(now), math.sqrt(1 - now), 0.0, 0.0
        if sampler == "ddim":
            c_x, c_0, c_noise = ddim_step(now, prev, eta)
        elif sampler == "ddpm":
            c_x, c_0, c_noise = ddpm_step(now, prev)
        elif sampler == "lcm":
            c_x, c_0, c_noise = 0.0, math.sqrt(prev), math.sqrt(1 - prev)
        else:  # the first step has nothing to extrapolate from, and the last is better without
            last = path[i - 1] if 0 < i < n - 1 else None
            c_x, c_0, c_last = dpmpp_step(now, prev, last)
        p_x, p_out = {"epsilon": (1 / a, -s / a), "sample": (0.0, 1.0),
                      "v_prediction": (a, -s)}[schedule.prediction_type]
        steps.append(Step(t, p_x, p_out, c_x, c_0, c_last, c_noise))
    return steps


def levels(steps, device=None):
    """(n,) int64: the noise levels at which these steps ask the network."""
    return torch.tensor([step.t for step in steps], device=device)


def make_generators(seed, count):
    """One torch.Generator per sample: seeds s, s + 1, ... for a whole number s, or a list of seeds.

    None for None. ValueError for what is no whole number of 64 bits, or another count of them."""
    if seed is None:
        return None
    try:
        seeds = [whole("seed", s) for s in seed]
    except TypeError:  # one, not several
        first = whole("seed", seed)
        seeds = range(first, first + count)
    if len(seeds) != count or not all(-2**63 <= s < 2**64 for s in seeds):
        raise ValueError(f"seed must be a whole number from -2^63 to 2^64 - 1, or {count} of them, "
                         f"one per motion, got {seed!r}.")
    return [torch.Generator().manual_seed(s) for s in seeds]


def draw_noise(shape, generator=None, device=None, dtype=torch.float32, lengths=None):
    """N(0, I) of `shape` (B, ...).

    generator: None, one torch.Generator, or a list of B of them. With one per sample, a sample's
    noise does not depend on its batch; nor on its padding, if lengths (B,) says how many rows of
    each sample of shape (B, T, ...) to draw (the rest is 0). A CPU generator gives the same noise
    on every device."""
    if not isinstance(generator, (list, tuple)):
        source = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
    B = shape[0]
    if len(generator) != B:
        raise ValueError("A list of generators needs one per sample: got "
                         f"{len(generator)} for a batch of {B}.")
    noise = torch.zeros(shape, dtype=dtype)
    counts = [shape[1]] * B if lengths is None else lengths.tolist()
    for row, g, n in zip(noise, generator, counts):
        row[:n] = torch.randn((n, *shape[2:]), generator=g, device=g.device, dtype=dtype)
    return noise.to(device)


def take_step(step, x_t, output, x0_last=None, noise=None, clip_sample=False):
    """x_t and the network's output (B, ...) -> x at the next level, and the predicted x0.

    noise: needed where step.c_noise is not 0."""
    if step.p_x:
        x0 = torch.add(x_t * step.p_x, output, alpha=step.p_out)
    else:  # a copy: dpm++ needs it in the next step, when a denoiser may have reused its buffer
        x0 = output.clone()
    x0 = x0.clamp(-1, 1) if clip_sample else x0
    x = torch.add(x_t * step.c_x, x0, alpha=step.c_0)
    if step.c_last:
        x = x.add_(x0_last, alpha=step.c_last)
    if step.c_noise:
        x = x.add_(noise, alpha=step.c_noise)
    return x, x0


@torch.no_grad()
def sample(denoise_fn, x_T, schedule, sampler="ddim", num_inference_steps=50, eta=0.0,
           clip_sample=False, generator=None, lengths=None, callback=None, progress=False):
    """Run the diffusion backwards from pure noise x_T (B, ...) ~ N(0, I) to x0 (B, ...).

    denoise_fn(x_t (B, ...), t (B,) int64) -> output (B, ...), which is what
    schedule.prediction_type says; it applies guidance itself (see `guide`). The other arguments
    are those of `walk`. ValueError for settings out of range."""
    steps = plan(schedule, sampler, num_inference_steps, eta)
    times = levels(steps, x_T.device)[:, None].repeat(1, len(x_T))  # (n, B)
    return walk(steps, times, denoise_fn, x_T, clip_sample, generator, lengths, callback, progress)


@torch.no_grad()
def walk(steps, times, denoise_fn, x_T, clip_sample=False, generator=None, lengths=None,
         callback=None, progress=False):
    """The sampling loop: x_T (B, ...) through `steps` -> x0, in x_T's dtype and on its device.

    times                what denoise_fn gets as t: times[i] in step i, the level or its embedding
    clip_sample          clip the predicted x0 to -1..1 in each step
    generator, lengths   see draw_noise
    callback             called as callback(i, t, x, x0) with each step's result
    progress             show a bar

    ValueError for an output of another shape than x_t."""
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
    """Classifier-free guidance (Ho & Salimans 2022; MLD, section 3.3) of outputs (B, ...):

        scale cond + (1 - scale) uncond

    scale 1 returns cond, 0 uncond. Guidance inflates the output's standard deviation; `rescale`
    in 0..1 moves it back towards that of cond (Lin et al. 2023, section 3.4). lengths (B,) leaves
    the zeros of padded rows (B, T, ...) out of it. ValueError for scales out of range."""
    if not 0 <= scale < math.inf:
        raise ValueError("guidance_scale must be a finite number of at least 0 (1 = no guidance), "
                         f"got {scale}.")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale must be from 0 to 1, got {rescale}.")
    guided = torch.lerp(uncond, cond, scale)
    if not rescale:
        return guided
    dims = tuple(range(1, cond.dim()))
    count = cond[0].numel()
    if lengths is not None:
        count = (lengths.to(cond.device) * cond[0, 0].numel()).view(-1, *[1] * len(dims))

    def deviation(x):
        mean = x.float().sum(dims, True) / count
        square = x.float().pow(2).sum(dims, True) / count
        return (square - mean**2).clamp_min(1e-12).sqrt()

    return guided * (1 + rescale * (deviation(cond) / deviation(guided) - 1)).to(guided.dtype)


if __name__ == "__main__":
    from flags import program
    from view import samplers

    program(samplers.main)
