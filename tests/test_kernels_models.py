"""Whole networks on the kernels equal the torch path, and the counters prove which one ran: a
VAE's training step, CLIP's tower, guided sampling, the denoiser's layers in two launches each. In
Triton's interpreter (test_kernels_interpreter.py starts it), or on a GPU."""
import copy

import pytest
import torch

import fast
import kernels
from clip import TextTower
from config import Config, VAEConfig
from kernels import backend
from kernels import graphs
from kernels.denoiser_layer import denoiser_layers, unsupported
from mld import MLD
from test_kernels import DEVICE, close, on_kernels, setup  # noqa: F401 (setup is a fixture)
from transformer import Stack
from vae import MotionVAE, reparameterize, vae_loss

pytestmark = on_kernels


def on(path, monkeypatch):
    monkeypatch.setattr(backend, "MODE", path)
    return kernels.expect(path)


def vae_step(vae, features, lengths, seed):
    """One optimiser step on a copy -> loss, the copy's parameters."""
    vae = copy.deepcopy(vae)
    # Adam's first step is the gradient's sign: noise at 0
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)
    torch.manual_seed(seed)
    mu, logvar = vae.encode(features, lengths)
    recon = vae.decode(reparameterize(mu, logvar), lengths, features.shape[1])
    loss = vae_loss(features, recon, mu, logvar, lengths, VAEConfig(lambda_joint=0.0))["loss"]
    loss.backward()
    optimizer.step()
    return loss.item(), {name: (p.detach(), p.grad) for name, p in vae.named_parameters()}


@pytest.mark.parametrize("settings", [dict(), dict(latent_size=2, normalize_before=True)])
def test_a_training_step_of_the_vae(settings, monkeypatch):
    cfg = VAEConfig(latent_dim=32, ff_size=64, num_layers=3, num_heads=2, max_positions=64,
                    dropout=0.0, attention_dropout=0.0, **settings)
    vae = MotionVAE(cfg, nfeats=10).to(DEVICE).train()
    features, lengths = torch.randn(2, 15, 10, device=DEVICE), torch.tensor([15, 4], device=DEVICE)
    with on("torch", monkeypatch):
        expected_loss, expected = vae_step(vae, features, lengths, seed=1)
    with on("triton", monkeypatch):
        loss, found = vae_step(vae, features, lengths, seed=1)
    assert abs(loss - expected_loss) < 1e-5 * expected_loss
    for name, (parameter, gradient) in expected.items():
        close(found[name][0], parameter, torch.float32, looser=5)
        # some are zero but for rounding, such as a key's bias: it moves all scores alike
        if gradient.norm() > 1e-5:
            close(found[name][1], gradient, torch.float32, looser=10)


def test_training_with_dropout_is_repeated_by_its_seed(monkeypatch):
    cfg = VAEConfig(latent_dim=32, ff_size=64, num_layers=1, num_heads=2, latent_size=2,
                    dropout=0.1, attention_dropout=0.1)
    vae = MotionVAE(cfg, nfeats=10).to(DEVICE).train()
    features, lengths = torch.randn(2, 9, 10, device=DEVICE), torch.tensor([9, 4], device=DEVICE)
    with on("triton", monkeypatch):
        steps = [vae_step(vae, features, lengths, seed) for seed in (1, 1, 2)]
    (a, first), (b, again), (c, _) = steps
    assert a == b != c and all(torch.equal(first[name][0], again[name][0]) for name in first)


def test_the_text_tower(monkeypatch):
    tower = TextTower(50, 32, 2, 2, 8, context_length=20).to(DEVICE)
    ids = torch.randint(50, (2, 17), device=DEVICE)
    with torch.no_grad(), on("torch", monkeypatch):
        expected = tower(ids)
    with torch.no_grad(), on("triton", monkeypatch):
        close(tower(ids), expected, torch.float32, looser=2)


class Texts(torch.nn.Module):
    def forward(self, texts):
        sizes = torch.tensor([len(text) for text in texts], device=DEVICE)
        return torch.linspace(-1, 1, 12, device=DEVICE) * sizes[:, None, None]


@pytest.mark.parametrize("frames", [False, True])
def test_guided_sampling(frames, monkeypatch):
    """frames: without a VAE, straight on frames, with cross-attention to the text."""
    config = Config()
    for part in (config.vae, config.denoiser):
        part.latent_dim = part.ff_size = part.max_positions = 64
        part.num_layers, part.num_heads = 3, 2
    config.denoiser.text_encoded_dim = 12
    if frames:
        config.vae.arch, config.denoiser.arch = "none", "trans_dec"
        config.denoiser.skip_connect = False
    model = MLD(config, Texts()).to(DEVICE).eval()
    monkeypatch.setattr(graphs, "MODE", "0")  # a replayed graph counts no launches
    arguments = dict(texts=["jump", "walk on"], lengths=[12, 7], guidance_scale=2.5,
                     num_inference_steps=3, seed=3)
    with on("torch", monkeypatch):
        expected = model.generate(**arguments)
    before = kernels.calls["denoiser_layers", "triton"]
    with on("triton", monkeypatch):
        found = model.generate(**arguments)
    # once a step
    assert kernels.calls["denoiser_layers", "triton"] - before == (0 if frames else 3)
    # features; joints, which add up the turns of earlier frames
    for a, b, looser in zip(found, expected, (10, 100)):
        close(a, b, torch.float32, looser)


STACKS = [(3, True, 2, 3, 64, 4, 128), (1, False, 7, 3, 128, 4, 64), (3, True, 1, 15, 64, 1, 64),
          (2, False, 2, 7, 256, 8, 64)]
STACKS_AND_TYPES = [(*stack, dtype)
                    for stack in STACKS for dtype in (torch.bfloat16, torch.float16)]
STACKS_AND_TYPES += [(*stack, torch.float32) for stack in STACKS[:2]]


@pytest.mark.parametrize("layers, skip, B, L, D, heads, hidden, dtype", STACKS_AND_TYPES)
def test_denoiser_layers(layers, skip, B, L, D, heads, hidden, dtype):
    stack = Stack(layers, D, heads, hidden, skip=skip).to(DEVICE).eval()
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        stack, x = stack.to(dtype), torch.randn(B, L, D, device=DEVICE).to(dtype)
        found = denoiser_layers(x, stack)
        assert torch.equal(found, denoiser_layers(x, stack))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "MODE", "torch")
            expected = stack.double()(x.double())
    close(found, expected, dtype)


def test_denoiser_layers_says_what_it_cannot_do():
    with torch.no_grad():
        good, x = Stack(1, 64, 4, 64).eval(), torch.randn(1, 3, 64)
        assert unsupported(x, good) == ""
        assert "post-norm" in unsupported(x, Stack(1, 64, 4, 64, pre_norm=True).eval())
        assert "GELU" in unsupported(x, Stack(1, 64, 4, 64, activation="relu").eval())
        for L in (1, 16):
            assert f"not {L}" in unsupported(torch.randn(1, L, 64), good)
        assert "not 48, 16 and 64" in unsupported(torch.randn(1, 3, 48), Stack(1, 48, 3, 64).eval())
        assert "float64" in unsupported(x, copy.deepcopy(good).double())
        assert "eval" in unsupported(x, Stack(1, 64, 4, 64).train())
    assert "no_grad" in unsupported(x, good)


def sampler(D, n, layers=1, narrow=0, **changes):
    """An MLD of random weights whose denoiser is D wide and sees n latent tokens, of `narrow`
    numbers if that is given; no condition."""
    c = Config()
    sizes = dict(latent_dim=D, latent_size=n, ff_size=64, num_layers=layers, num_heads=4)
    for key, value in sizes.items():
        setattr(c.vae, key, value)
        if hasattr(c.denoiser, key):
            setattr(c.denoiser, key, value)
    c.denoiser.condition, c.denoiser.length_token = "action", True
    c.denoiser.num_actions, c.denoiser.final_linear = 4, n > 1
    if narrow:
        c.vae.latent_dim, c.denoiser.principal, c.denoiser.normalize_latents = narrow, n, True
    for key, value in changes.items():
        setattr(c.diffusion, key, value)
    torch.manual_seed(0)
    return MLD(c).eval().to(DEVICE)


@pytest.mark.parametrize("D, n, changes", [
    (64, 1, dict(sampler="ddim")), (64, 2, dict(sampler="dpm++", prediction_type="sample")),
    (80, 1, dict(sampler="ddim", guidance_scale=1.0, clip_sample=True)),
    (80, 2, dict(sampler="dpm++", guidance_scale=0.4, prediction_type="v_prediction")),
    (64, 1, dict(sampler="ddim", guidance_scale=0.0)),
    (80, 3, dict(narrow=24, sampler="ddim", guidance_scale=7.5)),
    (80, 2, dict(narrow=40, sampler="dpm++", guidance_scale=0.4, prediction_type="sample")),
    (64, 2, dict(narrow=32, sampler="ddim", guidance_scale=1.0, clip_sample=True))])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_lies_between_two_calls_of_the_denoiser(D, n, changes, precision, monkeypatch):
    """One launch a step gives the numbers of the plain loop; and it is what ran."""
    monkeypatch.setattr(graphs, "MODE", "1" if DEVICE == "cuda" else "0")
    model = sampler(D, n, **changes).to_precision(precision)
    given = dict(actions=[0, 3], lengths=[12, 8], seed=3, num_inference_steps=3,
                 latents=True)
    before = kernels.calls["denoising_step", "triton"]
    with fast.without("fused"):
        expected = model.generate(**given)
    assert kernels.calls["denoising_step", "triton"] == before
    found = model.generate(**given)
    # on a GPU: two warm-ups and the recording
    assert kernels.calls["denoising_step", "triton"] - before == (9 if DEVICE == "cuda" else 3)
    close(found, expected, torch.bfloat16 if precision == "bf16" else torch.float32, looser=4)


def test_where_the_plain_loop_runs_instead(monkeypatch):
    """Guidance with a rescaled deviation, noise in each step, somebody who watches, float64."""
    monkeypatch.setattr(graphs, "MODE", "1" if DEVICE == "cuda" else "0")
    model, before = sampler(64, 1), kernels.calls["denoising_step", "triton"]
    given = dict(actions=[0, 3], lengths=[12, 8], seed=3, num_inference_steps=2, latents=True)
    model.generate(**given, guidance_rescale=0.5)
    model.generate(**given, eta=1.0)
    model.generate(**given, callback=lambda *_: None)
    monkeypatch.setattr(backend, "MODE", "torch")
    model.generate(**given)
    copy.deepcopy(model).double().generate(**given)
    monkeypatch.undo()
    monkeypatch.setattr(kernels.denoising_step, "MANY", 1)
    sampler(64, 2, narrow=32).generate(**given)
    assert kernels.calls["denoising_step", "triton"] == before
