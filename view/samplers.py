"""How near each sampler comes to the answer of 1000 steps in few; run by `python diffusion.py`."""
import argparse

import torch

from diffusion import BETA_SCHEDULES, guide, levels_of, make_schedule, sample

LEGEND = """\
The data are points of 32 numbers in ten Gaussian blobs (deviation 0.3, centres of deviation 1);
five of the blobs are asked for. The denoiser is exact.
ddim, dpm++: the median distance per number to the answer of DDIM's 1000 steps from the same noise,
and the share of samples that end in another blob than that answer.
ddpm, which is random: the distance of all its samples, as a cloud, to those of another run of 1000
steps (sliced Wasserstein; the last row shows what chance alone gives)."""


def mixture_denoiser(schedule, centres, deviation):
    """The perfect denoiser E[x0 | x_t] for data in equal Gaussian blobs around `centres` (K, D)."""
    def denoise(x, t):
        a, s = levels_of(schedule, t, x)  # (B, 1)
        variance = (a * deviation) ** 2 + s**2
        away = x[:, None] - a[..., None] * centres  # (B, K, D)
        share = torch.softmax(-away.pow(2).sum(-1) / (2 * variance), 1)  # (B, K): from which blob
        x0 = centres + (a * deviation**2 / variance)[..., None] * away  # (B, K, D)
        return (share[..., None] * x0).sum(1)
    return denoise


def sampler_table(beta_schedule, guidance_scale, counts, batch=512):
    """{sampler: [(distance, share in another blob) per count of steps]}; LEGEND explains them."""
    schedule = make_schedule(beta_schedule, prediction_type="sample")
    g, sizes = torch.Generator().manual_seed(0), (10, batch, 100)
    points = torch.randn(sum(sizes), 32, generator=g, dtype=torch.float64)
    centres, x_T, directions = points.split(sizes)
    every = mixture_denoiser(schedule, centres, 0.3)
    asked = mixture_denoiser(schedule, centres[:5], 0.3)

    def guided(x, t):
        return guide(every(x, t), asked(x, t), guidance_scale)

    def run(sampler, n):
        return sample(guided, x_T, schedule, sampler, n, generator=g)

    def as_clouds(x, answer):
        unit = directions / directions.norm(dim=1, keepdim=True)
        x, answer = ((y @ unit.T).sort(0)[0] for y in (x, answer))
        return (x - answer).abs().mean().item(), 0.0

    def one_by_one(x, answer):
        blob, expected = (torch.cdist(y, centres).argmin(1) for y in (x, answer))
        distance = (x - answer).pow(2).mean(1).sqrt().median().item()
        return distance, (blob != expected).double().mean().item()

    ddim, ddpm = run("ddim", 1000), run("ddpm", 1000)
    return {s: [as_clouds(run(s, n), ddpm) if s == "ddpm" else one_by_one(run(s, n), ddim)
                for n in counts] for s in ("ddim", "ddpm", "dpm++")}


def main(argv):
    parser = argparse.ArgumentParser(prog="python diffusion.py", description=LEGEND)
    parser.add_argument("schedule", nargs="?", default="scaled_linear", choices=BETA_SCHEDULES)
    kind, counts = parser.parse_args(argv).schedule, (5, 10, 20, 50, 1000)
    print(LEGEND)
    for scale in (1.0, 7.5):
        print(f"\n{kind} schedule, guidance {scale}")
        print("steps   ddim             dpm++            ddpm")
        for n, *row in zip(counts, *sampler_table(kind, scale, counts).values()):
            (ddim, moved), (ddpm, _), (dpmpp, strayed) = row
            print(f"{n:5}   {ddim:.4f} ({moved:5.1%})  {dpmpp:.4f} ({strayed:5.1%})  {ddpm:.4f}")
