"""One sentence through the model that ships, step by step, with shapes, equations and meanings.

    python mld.py "a man jumps" [--seed 1234] [--ckpt FILE]

Each step calls the textbook functions, without the shortcuts of fast.py. The last line compares
the result with that of MLD.generate. docs/walkthrough.md tells this walk in prose.
"""
import argparse
import os

import torch

import checkpoint
import diffusion
import fast
from config import HERE
from latents import from_diffused


def step(name, value, equation, meaning):
    shape = tuple(value.shape) if torch.is_tensor(value) else value
    print(f"{name:19} {str(shape):15} {equation:15} {meaning}")


@torch.inference_mode()
def walk(model, text, seed, lengths=None):
    """Print the walk; returns joints (1, T, 22, 3) in metres."""
    d, encoder, denoiser = model.config.diffusion, model.text_encoder, model.denoiser
    print(f"{'what':19} {'shape':15} {'where':15} meaning")
    if hasattr(encoder, "vocabulary"):
        ids = encoder.ids([text])
        step("tokens", ids, "", f"{ids[0].tolist()}: a number per word, then the end token")
    given = lengths is not None
    lengths = torch.tensor([lengths] if given else model.draw_lengths([text], seed=seed))
    cond, uncond = model.condition.encode(model, [text], 1)
    step("text feature", cond, "3.3, tau(w)", f"of {text!r}; a second one is for no text")
    step("length", f"{lengths[0]} frames", "", "as asked" if given else
         "drawn from the length estimator's distribution")

    x = model.start(lengths, diffusion.make_generators(seed, 1))
    step("noise z_T", x, "DDPM eq. 4", f"N(0, I), std {x.std():.2f}: no trace of the sentence yet")
    steps = diffusion.plan(model.schedule, d.sampler, d.num_inference_steps, d.eta)
    now, t = steps[0], torch.tensor([steps[0].t])
    with_text = denoiser(x, t, cond, lengths)
    without = denoiser(x, t, uncond, lengths)
    predicts = {"epsilon": "the noise in z_t", "sample": "z_0 behind z_t", "v_prediction": "v"}
    step("denoiser, with text", with_text, "3.3, eps(z,t,c)",
         f"at level {now.t}: its guess at {predicts[d.prediction_type]}")
    step("denoiser, without", without, "3.3",
         f"differs by {(with_text - without).norm() / with_text.norm():.0%}: what the text says")
    guided = diffusion.guide(without, with_text, d.guidance_scale, d.guidance_rescale)
    step("guided output", guided, "3.3",
         f"{d.guidance_scale:g} x with text + ({1 - d.guidance_scale:g}) x without")
    after, _ = diffusion.take_step(now, x, guided)
    step("one step down", after, "DDIM eq. 12",
         f"{now.c_x:.3f} z_t + {now.c_0:.3f} z_0: level {now.t} to {steps[1].t}")
    z = diffusion.sample(model.guided(cond, uncond, lengths, d), x, model.schedule, d.sampler,
                         d.num_inference_steps, d.eta)
    z = from_diffused(model, z)
    step("latent z_0", z, "3.2", f"after {len(steps)} such steps; it holds the whole motion")
    frames = model.vae.decode(z, lengths)
    step("frames", frames, "3.1, D(z)", "normalised features, one row per frame")
    _, joints = model.finish(frames, lengths)
    height = joints[0, :, 0, 1]
    step("joints", joints, "",
         f"in metres; the pelvis is {height.min():.2f} to {height.max():.2f} above the floor")
    return joints


def main(argv):
    parser = argparse.ArgumentParser(prog="python mld.py", description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="a man jumps")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--ckpt", default=os.path.join(HERE, "checkpoints", "toy.pt"))
    args = parser.parse_args(argv)
    try:
        model = checkpoint.load_model(args.ckpt)
        if model.config.denoiser.condition != "text" or model.vae is None:
            raise ValueError(f"{args.ckpt} does not turn sentences into motions through a VAE, "
                             "which is what this walk shows; choose another --ckpt.")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with fast.without(*fast.NAMES):
        joints = walk(model, args.text, args.seed)
    lengths = model.draw_lengths([args.text], seed=args.seed)
    quick = model.generate([args.text], lengths=lengths, seed=args.seed)[1]
    distance = 1000 * (joints - quick).norm(dim=-1).max()
    print(f"generate() makes the same motion: its joints are at most {distance:.3f} mm away")
