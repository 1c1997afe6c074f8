"""The latents' main directions: what they are for a decoder that is known, and in a model."""
import copy
from types import SimpleNamespace

import pytest
import torch

import checkpoint
from config import from_dict
from latents import from_diffused, principal_axes, to_diffused
from mld import MLD
from stages import DiffusionStage

N, D, F = 3, 4, 10  # tokens, width, features


def linear_world(clips=3000, seed=0):
    """Latents with a random covariance and a linear decoder of known weights, the same in every
    frame -> decode, mu, logvar, lengths, weights (N * D, F)."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(N * D, N * D, generator=draw)
    mu = (torch.randn(clips, N * D, generator=draw) @ mix + 3).view(clips, N, D)
    logvar = torch.randn(N * D, generator=draw).expand(clips, -1).reshape(clips, N, D) - 2
    lengths = torch.randint(1, 30, (clips,), generator=draw)
    weights = torch.randn(N * D, F, generator=draw) * torch.logspace(0, -3, N * D)[:, None]

    def decode(z, lengths):
        features = z.flatten(1) @ weights
        inside = torch.arange(int(lengths.max())) < lengths[:, None]
        return features[:, None] * inside[..., None]

    return decode, mu, logvar, lengths, weights


def test_a_linear_decoder_gives_back_its_own_directions():
    decode, mu, logvar, lengths, weights = linear_world()
    into, back = principal_axes(decode, mu, logvar, lengths, N * D)
    assert into.shape == back.shape == (N * D, N * D)
    torch.testing.assert_close(into @ back, torch.eye(N * D), atol=2e-3, rtol=0)
    spread = mu.flatten(1).T.cov() + logvar.exp().flatten(1).mean(0).diag()
    scale = (into.T @ spread @ into).diagonal().sqrt()
    # nothing correlates, the largest come first, and their mean square is 1
    unit = (into / scale).T @ spread @ (into / scale)
    torch.testing.assert_close(unit, torch.eye(N * D), atol=2e-2, rtol=0)
    assert (scale.diff() <= 1e-6).all() and abs(scale.square().mean() - 1) < 1e-3
    # how much the features change with a coordinate: cubes of its scale, by the known weights
    change = (back @ weights * scale[:, None]).square().mean(1)
    ratio = (change / change[0])[:8] / (scale / scale[0])[:8]**3
    torch.testing.assert_close(ratio, torch.ones(8), atol=0.15, rtol=0)
    # and the changes of two coordinates have nothing in common
    moves = back @ weights * scale[:, None]
    cosine = torch.nn.functional.normalize(moves, dim=1)
    assert ((cosine @ cosine.T)[:4, :4] - torch.eye(4)).abs().max() < 0.15


def test_what_is_left_out_hardly_matters():
    decode, mu, logvar, lengths, weights = linear_world(seed=1)
    errors = []
    for keep in (2, 5, 8):
        into, back = principal_axes(decode, mu, logvar, lengths, keep)
        assert into.shape == (N * D, keep) and back.shape == (keep, N * D)
        torch.testing.assert_close(back @ into, torch.eye(keep), atol=1e-3, rtol=0)
        centred = (mu - mu.mean(0)).flatten(1)
        lost = (centred - centred @ into @ back) @ weights
        errors.append(float(lost.square().sum() / (centred @ weights).square().sum()))
    assert errors[0] < 0.2 and errors[1] < 1e-2 and errors[2] < 1e-4
    # as good as the best linear summary of the features, by their own principal components
    values = torch.linalg.svdvals(((mu - mu.mean(0)).flatten(1) @ weights).double()).square()
    assert errors[0] < 1.3 * float(values[2:].sum() / values.sum()) + 1e-4


def test_a_direction_without_any_effect_stays_finite():
    decode, mu, logvar, lengths, _ = linear_world()

    def blind(z, lengths):
        return decode(torch.cat((z[:, :1], torch.zeros_like(z[:, 1:])), 1), lengths)

    into, back = principal_axes(blind, mu, logvar, lengths, N * D)
    assert into.isfinite().all() and back.isfinite().all()
    torch.testing.assert_close(into @ back, torch.eye(N * D), atol=2e-2, rtol=0)


def model_with(principal, width, inside=0, **values):
    sizes = {"num_layers": 1, "num_heads": 1, "ff_size": 8, "max_positions": 230}
    config = from_dict({"vae": {"latent_size": N, "latent_dim": D, **sizes},
                        "denoiser": {"latent_dim": inside or width, "condition": "none", **sizes,
                                     "normalize_latents": True, "principal": principal, **values}})
    torch.manual_seed(0)
    model = MLD(config).eval()
    basis = torch.linalg.qr(torch.randn(N * D, N * D))[0][:, :principal * width]
    model.latent_in.copy_(2 * basis)
    model.latent_out.copy_(basis.T / 2)
    model.latent_mean.normal_()
    return model


@pytest.mark.parametrize("principal, width, inside", [
    (2, 4, 0), (1, 6, 0), (3, 4, 0), (3, 4, 10), (2, 6, 8), (5, 2, 6)])
def test_a_model_diffuses_so_many_tokens(principal, width, inside):
    model = model_with(principal, width, inside)
    z = torch.randn(5, N, D)
    x = to_diffused(model, z)
    assert x.shape == (5, principal, width)
    torch.testing.assert_close(to_diffused(model, from_diffused(model, x)), x)
    if principal * width == N * D:
        torch.testing.assert_close(from_diffused(model, x), z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_diffused(model, z), x)
    made = model.generate(lengths=[9, 20], seed=3, latents=True)
    assert made.shape == (2, N, D)
    noise = torch.randn(2, principal, width)
    features, joints = model.generate(lengths=[9, 20], x_T=noise)
    assert features.shape == (2, 20, 263) and joints.shape == (2, 20, 22, 3)
    with pytest.raises(ValueError, match="x_T must have shape"):
        model.generate(lengths=[9, 20], x_T=torch.randn(2, principal, width + 2))
    loss = model.diffusion_loss(z)["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.denoiser.parameters()
               if p.requires_grad)


@pytest.mark.parametrize("principal", [2, 0])
def test_modulated_layers_know_how_far_the_numbers_spread(principal):
    """That is the variance, over clips and their posteriors, of what is diffused."""
    decode, mu, logvar, lengths, _ = linear_world(clips=20_000)
    model = model_with(principal or 1, D, arch="modulated", modulated_dim=8)
    if not principal:
        model = MLD(from_dict({"vae": {"latent_size": N, "latent_dim": D, "num_heads": 1},
                               "denoiser": {"arch": "modulated", "normalize_latents": True,
                                            "condition": "none"}})).eval()
    model.vae.decode = lambda z, lengths, frames: decode(z, lengths)
    stage = SimpleNamespace(run=SimpleNamespace(device="cpu", main=False))
    DiffusionStage.normalize(stage, model, mu, logvar, lengths)
    drawn = to_diffused(model, mu + (0.5 * logvar).exp() * torch.randn(mu.shape))
    spread = drawn.flatten(1).var(0)
    torch.testing.assert_close(model.denoiser.modulated.spread, spread, rtol=0.05, atol=0)
    assert not principal or spread.max() > 2 * spread.min()


def test_how_far_the_numbers_spread_is_kept_exactly(tmp_path):
    model, name = model_with(2, D, arch="modulated", modulated_dim=8), "denoiser.modulated.spread"
    spread = torch.rand(2 * D) + 0.01
    model.denoiser.modulated.spread.copy_(spread)
    for convert in (torch.nn.Module.bfloat16, torch.nn.Module.half,
                    lambda model: model.to_precision("bf16")):
        assert torch.equal(convert(copy.deepcopy(model)).state_dict()[name], spread)
    source, small, bad = (tmp_path / f"{which}.pt" for which in ("model", "small", "bad"))
    checkpoint.save(source, model.config, model.state_dict(), vocabulary=None, actions=[])
    checkpoint.halve(source, small)
    assert torch.equal(checkpoint.load_model(small).state_dict()[name], spread)
    spread[3] = 0.0
    checkpoint.save(bad, model.config, model.state_dict() | {name: spread}, actions=[])
    with pytest.raises(ValueError, match=f"{name} must be finite and positive"):
        checkpoint.load_model(bad)


@pytest.mark.parametrize("changes, message", [
    ({"principal": 13}, "denoiser.principal must be at most vae.latent_size x vae.latent_dim, 12"),
    ({"principal": 2, "normalize_latents": False}, "needs denoiser.normalize_latents"),
    ({"arch": "modulated", "normalize_latents": False}, "normalize_latents, to know how"),
    ({"principal": 0, "latent_dim": 6}, "denoiser.latent_dim and vae.latent_dim differ")])
def test_settings_that_cannot_be(changes, message):
    denoiser = {"latent_dim": D, "num_heads": 1, "normalize_latents": True, **changes}
    with pytest.raises(ValueError, match=message):
        from_dict({"vae": {"latent_size": N, "latent_dim": D, "num_heads": 1},
                   "denoiser": denoiser})
