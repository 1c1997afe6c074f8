"""The VAE equals the published one; padding, batches and processes do not change its numbers."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import motion
from config import VAEConfig
from conftest import GOLDEN
from vae import MotionVAE, clip_mean, reparameterize, vae_loss

TINY = dict(latent_dim=8, ff_size=12, num_layers=3, num_heads=2, max_positions=64)
FORMS = [
    dict(arch="encoder_decoder"),
    dict(arch="encoder_decoder", latent_size=10),
    dict(arch="encoder_decoder", mlp_dist=True, latent_size=2),
    dict(arch="all_encoder", latent_size=2),
    dict(arch="all_encoder", mlp_dist=True),
    dict(arch="actor", num_layers=2),
    dict(arch="encoder_decoder", normalize_before=True),
    dict(arch="encoder_decoder", position_embedding="sine"),
    dict(arch="encoder_decoder", latent_size=2, cosines=6, cosine_span=30),
    dict(arch="all_encoder", mlp_dist=True, cosines=6)]
LENGTHS = torch.tensor([20, 13, 1])


def make(nfeats=10, **settings):
    torch.manual_seed(0)
    return MotionVAE(VAEConfig(**TINY | settings), nfeats).eval()


# --------------------------------------------------------------------------------------------------
# The published networks


def published_weights(arrays):
    """The `state/` arrays of a golden file under our names."""
    state = {k[6:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("state/")}
    for part in ("encoder.", "decoder."):  # ACTOR's
        state = {
            k.replace(part + "seqTrans" + part.capitalize(), part)
            .replace(part + "skel", "skel")
            .replace(part + "final", "final"): v
            for k, v in state.items()
            if "sequence_pos_encoding" not in k
        }
    if "encoder.mu_token" in state:
        state["global_motion_token"] = torch.stack(
            (state.pop("encoder.mu_token"), state.pop("encoder.logvar_token")))
    return {k: v[:, 0] if k.endswith(".pe") else v for k, v in state.items()}


@pytest.mark.parametrize("name", [
    "encoder_decoder_latent1", "encoder_decoder_latent2", "encoder_decoder_latent1_mlpdist",
    "all_encoder_latent1", "actor"])
def test_equals_the_published_vae(name):
    arrays = np.load(GOLDEN / f"vae_{name}.npz")
    meta = {"arch": "actor"} | json.loads(str(arrays["meta"]))
    known = {k: v for k, v in meta.items() if hasattr(VAEConfig, k) and k != "position_embedding"}
    vae = MotionVAE(VAEConfig(max_positions=64, **known), meta["nfeats"]).eval()
    vae.load_state_dict(published_weights(arrays))
    lengths = torch.from_numpy(arrays["lengths"])
    with torch.inference_mode():
        mu, logvar = vae.encode(torch.from_numpy(arrays["features"]), lengths)
        decoded = vae.decode(mu, lengths)
    for found, expected in ((mu, arrays["mu"]), ((0.5 * logvar).exp(), arrays["std"])):
        # published (N, B, D), or (B, D)
        expected = torch.from_numpy(expected).reshape(-1, *mu.shape[::2]).transpose(0, 1)
        assert relative(found, expected) < 1e-5
    assert relative(decoded, torch.from_numpy(arrays["decoded_from_mu"])) < 1e-5
    assert not decoded[1, lengths[1]:].any()


def relative(found, expected):
    assert found.shape == expected.shape and expected.abs().max() > 0.1
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_size_of_the_published_vae():
    assert sum(p.numel() for p in MotionVAE(VAEConfig(), 263).parameters()) == 18_032_135


# --------------------------------------------------------------------------------------------------
# Padding


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_padding_never_leaks(form):
    vae, x = make(**form), torch.randn(3, 20, 10)
    for i, n in enumerate(LENGTHS):
        x[i, n:] = torch.nan
    with torch.inference_mode():
        mu, logvar = vae.encode(x, LENGTHS)
        decoded = vae.decode(mu, LENGTHS)
        for i, n in enumerate(LENGTHS.tolist()):
            alone, alone_logvar = vae.encode(x[i:i + 1, :n])
            torch.testing.assert_close(mu[i], alone[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(logvar[i], alone_logvar[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(decoded[i, :n],
                                       vae.decode(alone, max_length=n)[0], rtol=1e-5, atol=1e-5)
            assert not decoded[i, n:].any()
        assert torch.equal(mu, vae.encode(x.nan_to_num(7.0), LENGTHS)[0])
        longer = vae.decode(mu, LENGTHS, max_length=30)
        assert longer.shape == (3, 30, 10)
        torch.testing.assert_close(longer[:, :20], decoded, rtol=1e-5, atol=1e-5)
    assert (mu[0] - mu[1]).abs().max() > 1e-3


def test_nan_in_the_padding_reaches_neither_loss_nor_gradients():
    vae, x = make(), torch.randn(3, 20, 10)
    results = []
    for rubbish in (0.0, torch.nan, 1e30):
        for i, n in enumerate(LENGTHS):
            x[i, n:] = rubbish
        mu, logvar = vae.encode(x, LENGTHS)
        loss = vae_loss(x, vae.decode(mu, LENGTHS, 20), mu, logvar, LENGTHS,
                        VAEConfig(lambda_joint=0.0))["loss"]
        results.append((loss, *torch.autograd.grad(loss, list(vae.parameters()))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


# --------------------------------------------------------------------------------------------------
# The loss


def to_joints(features):
    return motion.features_to_joints(features, motion.T2M)


def test_loss_is_what_its_docstring_says():
    x, y, mu, logvar = (torch.randn(2, 6, 263), torch.randn(2, 6, 263), torch.randn(2, 1, 8),
                        torch.randn(2, 1, 8))
    cfg = VAEConfig(lambda_rec=2.0, lambda_joint=3.0, lambda_kl=0.5)
    losses = vae_loss(x, y, mu, logvar, None, cfg, to_joints)
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(losses["kl"], kl)
    torch.testing.assert_close(losses["features"], F.smooth_l1_loss(y, x))
    torch.testing.assert_close(losses["joints"], F.smooth_l1_loss(to_joints(y), to_joints(x)))
    torch.testing.assert_close(losses["loss"],
                               2 * losses["features"] + 3 * losses["joints"] + 0.5 * losses["kl"])
    losses = vae_loss(x, y, mu, logvar, None, VAEConfig(recons_loss="mse", lambda_joint=0.0))
    torch.testing.assert_close(losses["features"], F.mse_loss(y, x))


def test_joints_may_be_held_by_their_distance():
    x, y, mu = torch.randn(2, 6, 263), torch.randn(2, 6, 263), torch.zeros(2, 1, 8)
    cfg = VAEConfig(joints_loss="distance", lambda_rec=0.0, lambda_joint=3.0, lambda_kl=0.0)
    losses = vae_loss(x, y, mu, mu, None, cfg, to_joints)
    torch.testing.assert_close(losses["joints"],
                               (to_joints(y) - to_joints(x)).square().sum(-1).sqrt().mean())
    torch.testing.assert_close(losses["loss"], 3 * losses["joints"])
    y = x.clone().requires_grad_()  # perfect: no distance, and no NaN in its gradient
    vae_loss(x, y, mu, mu, None, cfg, to_joints)["loss"].backward()
    assert y.grad.isfinite().all()


def test_steps_from_frame_to_frame():
    x, mu = torch.randn(2, 6, 263), torch.zeros(2, 1, 8)
    cfg = VAEConfig(lambda_rec=0.0, lambda_joint=0.0, lambda_velocity=3.0, lambda_kl=0.0)
    still = torch.tensor([0.5, 0.0, 0.0])
    path = torch.arange(6.0)[:, None, None] * torch.tensor([0.0, 0.0, 0.02])  # 2 cm a frame
    joints = iter([to_joints(x) + still + path, to_joints(x)])  # recon's are asked for first
    losses = vae_loss(x, x, mu, mu, None, cfg, lambda features: next(joints))
    torch.testing.assert_close(losses["velocity"], torch.tensor(0.02), rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["loss"], 3 * losses["velocity"])
    one = vae_loss(x[:, :1], torch.randn(2, 1, 263), mu, mu, None, cfg, to_joints)
    assert not one["velocity"] and not one["loss"]  # one frame has no steps
    padded = vae_loss(x, torch.randn(2, 6, 263), mu, mu, torch.tensor([6, 1]), cfg, to_joints)
    assert padded["velocity"].isfinite() and padded["velocity"] > 0


def test_loss_of_a_batch_is_the_mean_of_its_clips():
    x, y, mu = torch.randn(3, 20, 263), torch.randn(3, 20, 263), torch.zeros(3, 1, 8)
    cfg = VAEConfig(lambda_velocity=1.0)
    for i, n in enumerate(LENGTHS):
        y[i, n:] = 0  # as decode leaves it
    whole = vae_loss(x, y, mu, mu, LENGTHS, cfg, to_joints)
    alone = [
        vae_loss(x[i:i + 1, :n], y[i:i + 1, :n], mu[:1], mu[:1], None, cfg, to_joints)
        for i, n in enumerate(LENGTHS)]
    for key in whole:
        torch.testing.assert_close(whole[key], sum(a[key] for a in alone) / 3)
    per_clip = clip_mean((x - y).square(), LENGTHS, per_clip=True)
    torch.testing.assert_close(per_clip[1], (x - y)[1, :13].square().mean())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("recons_loss", ["smooth_l1", "mse"])
def test_gradients_match_finite_differences(form, recons_loss):
    vae = make(nfeats=263, **form).double()
    cfg = VAEConfig(recons_loss=recons_loss, lambda_kl=0.1, lambda_velocity=1.0)
    generator = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(*shape, dtype=torch.float64, generator=generator)
              for shape in ((2, 5, 263), (2, vae.latent_size, 8)))
    lengths = torch.tensor([5, 3])

    def loss():
        mu, logvar = vae.encode(x, lengths)
        return vae_loss(x, vae.decode(reparameterize(mu, logvar, eps), lengths, 5), mu, logvar,
                        lengths, cfg, to_joints)["loss"]

    check_gradients(loss, vae.named_parameters())


def check_gradients(loss, parameters, h=1e-6):
    """Directional derivatives by central differences, one random direction for every parameter."""
    names, parameters = zip(*parameters)
    for name, p, grad in zip(names, parameters, torch.autograd.grad(loss(), parameters)):
        direction = torch.randn(p.shape, dtype=p.dtype,
                                generator=torch.Generator().manual_seed(len(name)))
        with torch.no_grad():
            p += h * direction
            up = loss()
            p -= 2 * h * direction
            down = loss()
            p += h * direction
        expected = ((up - down) / (2 * h)).item()
        assert (grad * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name


# --------------------------------------------------------------------------------------------------
# The rest


def test_reparameterize():
    mu, logvar = torch.full((20000,), 2.0), torch.full((20000,), -1.0)
    z = reparameterize(mu, logvar)
    assert abs(z.mean() - 2) < 0.02 and abs(z.std() - np.exp(-0.5)) < 0.02
    torch.testing.assert_close(reparameterize(mu, logvar, torch.ones(20000)),
                               torch.full((20000,), 2 + np.exp(-0.5), dtype=torch.float32))


def test_logvar_bias_starts_the_posterior_narrow():
    mu, logvar = make(mlp_dist=True, logvar_bias=-4.0).encode(torch.randn(2, 20, 10))
    assert abs(logvar.mean() + 4) < 1 and abs(mu.mean()) < 1


def test_the_linear_path_is_linear_and_keeps_slow_motion():
    """Superposition holds, and a weighted sum of the slowest cosines survives latent and back
    with weights set by hand."""
    vae = make(latent_size=3, cosines=3, cosine_span=20)
    path, x, y = vae.linear_path, torch.randn(2, 20, 8), torch.randn(2, 20, 8)
    zero = path.encode(torch.zeros_like(x))
    torch.testing.assert_close(
        path.encode(x + y) - zero, path.encode(x) + path.encode(y) - 2 * zero, rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        path.narrow.weight.copy_(torch.eye(4, 8))
        path.widen.weight.copy_(torch.eye(8, 4))
        for linear, bias in ((path.to_latent, 24), (path.to_waves, 12)):
            linear.weight.copy_(torch.eye(*linear.weight.shape))
            linear.bias.zero_()
        slow, frames = torch.randn(2, 3, 4), torch.zeros(2, 20, 8)
        frames[..., :4] = torch.einsum("bkr,tk->btr", slow, path.waves[:20])
        z = path.encode(frames)
        # the cosines' squared lengths over the span
        slow *= torch.tensor([20.0, 10.0, 10.0])[:, None] * (2 / 20) ** 0.5
        torch.testing.assert_close(z.flatten(1)[:, :12].view(2, 3, 4), slow, rtol=1e-4, atol=1e-5)
        back = path.decode(z, 20)[..., :4]
        torch.testing.assert_close(back, torch.einsum("bkr,tk->btr", slow / 2, path.waves[:20]),
                                   rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    for form in FORMS:
        vae = make(**form)
        mu, logvar = vae.encode(torch.randn(2, 20, 10))
        (vae.decode(mu, max_length=20).square().sum() + logvar.sum()).backward()
        assert all(p.grad is not None for p in vae.parameters()), form


@pytest.mark.parametrize("backend, form", [("inductor", dict(num_layers=1)),
                                           ("aot_eager", dict(arch="all_encoder", latent_size=2))],
                         ids=str)
def test_compiles_without_graph_breaks(backend, form):
    """torch.compile of encode and decode as one graph, at two lengths, on the CPU. Slow, so C++
    is made for one layer only."""
    vae = make(**form)

    def there_and_back(x, lengths, T):
        mu, logvar = vae.encode(x, lengths)
        return vae.decode(mu, lengths, T), logvar

    torch.compiler.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend=backend)
    with torch.inference_mode():
        for T in (20, 32):
            x, lengths = torch.randn(3, T, 10), torch.tensor([T, 13, 1])
            torch.testing.assert_close(compiled(x, lengths, T), there_and_back(x, lengths, T),
                                       rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda v: v.encode(torch.zeros(2, 20, 11)), "takes 10 features per frame, found 11"),
    (lambda v: v.encode(torch.zeros(2, 63, 10)),
     "65 tokens does not fit the position table of 64 rows"),
    (lambda v: v.decode(torch.zeros(2, 1, 9), LENGTHS[:2]),
     r"latents of shape \(B, 1, 8\), found \(2, 1, 9\)"),
    (lambda v: v.decode(torch.zeros(2, 2, 8), LENGTHS[:2]),
     r"latents of shape \(B, 1, 8\), found \(2, 2, 8\)"),
    (lambda v: v.decode(torch.zeros(2, 8), LENGTHS[:2]),
     r"latents of shape \(B, 1, 8\), found \(2, 8\)"),
    (lambda v: v.decode(torch.zeros(1, 1, 8), torch.tensor([65])),
     "65 tokens does not fit the position table"),
    (lambda v: v.decode(torch.zeros(1, 1, 8)), "lengths or max_length")])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(make())


def test_actor_has_one_token():
    with pytest.raises(ValueError, match="one latent token"):
        make(arch="actor", latent_size=2)
