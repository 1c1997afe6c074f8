"""The VAE's losses that are ours: right values, silence where nothing moves, gradients for few
frames, and padding that does not matter."""
import math
from types import SimpleNamespace

import pytest
import torch

from config import Config, VAEConfig, set_value
from presets import TOY
from losses import (
    HOP, TYPICAL, WINDOW, acceleration_loss, amplitudes, bones_loss, energy_loss, head_loss,
    power_loss, sharpness_losses, spectrum_loss)
from motion import KIT, SMPL_PARENTS, T2M
from stages import VAEStage
from vae import MotionVAE

TERMS = (acceleration_loss, energy_loss, spectrum_loss, power_loss, bones_loss, head_loss)


def walk(frames, batch=2, joints=22, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, joints, 3, generator=g).cumsum(1) * 0.02


def whole(x):
    return torch.full((len(x),), x.shape[1])


@pytest.mark.parametrize("loss", TERMS)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, WINDOW, WINDOW + 1, 40])
def test_gradients_are_finite_for_few_frames_and_still_bodies(loss, frames):
    for a in (walk(frames), torch.zeros(2, frames, 22, 3)):
        a.requires_grad_()
        value = loss(a, torch.zeros_like(a), torch.tensor([frames, 1]))
        (value + 0 * a.sum()).backward()  # a clip without a window has no gradient at all
        assert value.isfinite() and a.grad.isfinite().all()


@pytest.mark.parametrize("loss", TERMS)
def test_the_same_motion_costs_nothing(loss):
    a = walk(50)
    assert loss(a, a.clone(), whole(a)) == 0
    assert loss(a, walk(50, seed=1), whole(a)) > 1e-3


@pytest.mark.parametrize("loss", TERMS)
def test_padding_does_not_matter(loss):
    a, b, lengths = walk(60), walk(60, seed=1), torch.tensor([60, 31])
    want = loss(a, b, lengths)
    a, b = a.clone(), b.clone()
    a[1, 31:], b[1, 31:] = 9.0, torch.randn(29, 22, 3)
    assert torch.allclose(loss(a, b, lengths), want, rtol=1e-5)
    more = torch.cat((a, a[:, :20] + 3), 1), torch.cat((b, b[:, :20]), 1)
    assert torch.allclose(loss(*more, lengths), want, rtol=1e-5)


def test_acceleration_is_in_metres_a_frame_squared():
    t = torch.arange(10.0)
    a = torch.zeros(1, 10, 2, 3)
    a[0, :, 1, 2] = 0.5 * 0.03 * t**2
    assert acceleration_loss(a, torch.zeros_like(a), whole(a)).item() == pytest.approx(0.015)


def test_energy_is_the_squared_log_ratio():
    b = walk(200) * 100  # so that 0.1 mm is nothing
    for scale in (0.5, 2.0):
        value = energy_loss(scale * b, b, whole(b)).item()
        assert value == pytest.approx(math.log(2) ** 2, rel=1e-3)


def test_power_is_the_squared_log_ratio():
    b = walk(200) * 100
    assert power_loss(2 * b, b, whole(b)).item() == pytest.approx(math.log(4) ** 2, rel=1e-3)


@pytest.mark.parametrize("parents", [T2M.parents, KIT.parents, SMPL_PARENTS])
def test_bones_count_by_their_angle_and_not_by_their_length(parents):
    real = torch.randn(1, 7, len(parents), 3).double().cumsum(1)
    for j in (len(parents) - 1, 1):  # a joint without children, and one that carries others along
        made, bone = real.clone(), real[:, 2:5, j] - real[:, 2:5, parents[j]]
        across = torch.linalg.cross(bone, torch.randn(1, 3, 3).double())
        across = across / across.norm(dim=-1, keepdim=True) * bone.norm(dim=-1, keepdim=True)
        angle, longer = 0.4, 1.7  # in three of seven frames
        turned = bone * math.cos(angle) + across * math.sin(angle)
        moved = real[:, 2:5, parents[j]] + longer * turned
        below = [k for k in range(len(parents)) if j in line(k, parents)]
        made[:, 2:5, below] += (moved - real[:, 2:5, j])[:, :, None]
        wanted = 3 / 7 * 2 * math.sin(angle / 2) / (len(parents) - 1)
        assert float(bones_loss(made, real, whole(real))) == pytest.approx(wanted)


@pytest.mark.parametrize("parents, neck, head", [
    (T2M.parents, 12, 15), (KIT.parents, 3, 4), (SMPL_PARENTS, 12, 15)])
def test_neck_and_head_count_once_more(parents, neck, head):
    """Each of them turned by itself counts half; the arms and legs do not."""
    real = torch.randn(1, 7, len(parents), 3).double().cumsum(1)
    for joint in range(1, len(parents)):
        made, bone = real.clone(), real[:, :, joint] - real[:, :, parents[joint]]
        below = [k for k in range(len(parents)) if joint in line(k, parents)]
        made[:, :, below] -= 2 * bone[:, :, None]  # the bone points the other way
        wanted = 1.0 if joint in (neck, head) else 0.0
        assert float(head_loss(made, real, whole(real))) == pytest.approx(wanted, abs=1e-9)


def line(joint, parents):
    """The joint, its parent, and so on."""
    return [joint, *line(parents[joint], parents)] if joint >= 0 else []


@pytest.mark.parametrize("loss", TERMS)
def test_clips_do_not_meet(loss):
    """The mean over two halves of a batch is the whole's, on any number of processes."""
    a, b, lengths = walk(60, batch=4), walk(60, batch=4, seed=1), torch.tensor([60, 50, 40, 20])
    halves = [loss(a[i:i + 2], b[i:i + 2], lengths[i:i + 2]) for i in (0, 2)]
    assert torch.allclose(loss(a, b, lengths), sum(halves) / 2, rtol=1e-5)


def test_amplitudes_of_a_sine_are_at_its_frequency():
    frames, joints = 1 + 3 * WINDOW, torch.zeros(1, 1 + 3 * WINDOW, 2, 3)
    velocity = 0.1 * torch.cos(2 * math.pi * 4 / WINDOW * torch.arange(frames - 1.0))
    joints[0, 1:, 1, 0] = velocity.cumsum(0)
    found = amplitudes(joints)
    assert found.shape == (1, (frames - 1 - WINDOW) // HOP + 1, WINDOW // 2, 2)
    want = torch.zeros(WINDOW // 2)
    want[2:5] = torch.tensor([0.05, 0.1, 0.05])  # a Hann window spreads a line over three
    assert torch.allclose(found[0, :, :, 1], want.expand(found.shape[1], -1), atol=1e-5)
    assert found[..., 0].abs().max() == 0


def test_the_spectrum_forgives_a_wrong_phase_and_not_a_missing_sine():
    t = torch.arange(81.0)

    def swing(phase, size=0.05):
        x = torch.zeros(1, 81, 2, 3)
        x[0, :, 1, 1] = size * torch.sin(2 * math.pi * 3 / WINDOW * t + phase)
        return x

    real = swing(0.0)
    moved, still, half = (spectrum_loss(x, real, whole(real)).item()
                          for x in (swing(1.0), swing(0.0, 0.0), swing(0.0, 0.025)))
    assert moved < 0.1 * still
    # a step is 2 pi 3 / 16 of the swing, less as steps are chords; a line is three frequencies
    peak = 0.05 * 2 * math.sin(math.pi * 3 / WINDOW) / TYPICAL
    want = peak * (0.5 * 2**2 + 3**2 + 0.5 * 4**2) / (WINDOW // 2) / 2  # one of two joints
    assert still == pytest.approx(want, rel=1e-3) and half == pytest.approx(still / 2, rel=1e-3)



def test_the_sum_is_weighted_and_terms_without_weight_are_absent():
    cfg = VAEConfig(lambda_energy=0.5, lambda_spectrum=2.0)
    a, b = walk(40).flatten(2), walk(40, seed=1).flatten(2)
    lengths = torch.tensor([40, 30])

    def to_joints(x):
        return x.unflatten(-1, (22, 3))

    losses = sharpness_losses(a, b, lengths, cfg, to_joints)
    assert set(losses) == {"loss", "energy", "spectrum"}
    want = 0.5 * losses["energy"] + 2 * losses["spectrum"]
    assert losses["loss"].item() == pytest.approx(want.item())
    assert sharpness_losses(a, b, None, VAEConfig(), to_joints) == {}
    both = sharpness_losses(a, b, None, cfg, to_joints)["loss"]
    full = sharpness_losses(a, b, torch.tensor([40, 40]), cfg, to_joints)["loss"]
    assert torch.allclose(both, full)


def test_the_stage_lets_them_in_late():
    """From the share sharpen_from of the steps on, and always on val."""
    config = Config()
    for key, value in {**TOY, "vae.sharpen_from": 0.5, "train_vae.steps": 10, "vae.latent_dim": 16,
                       "vae.ff_size": 32, "vae.num_layers": 3}.items():
        set_value(config, key, value)
    model = SimpleNamespace(vae=MotionVAE(config.vae, 263),
                            to_joints=lambda x: x[..., 1:67].unflatten(-1, (22, 3)))
    run = SimpleNamespace(config=config, share=slice(None), batches=lambda *_: [],
                          draws=lambda *_: torch.Generator().manual_seed(0))
    stage = VAEStage(run, model)
    batch = {"features": torch.randn(2, 40, 263), "lengths": torch.tensor([40, 30]),
             "global_size": 2}
    losses = []
    for step in (4, 5):
        torch.manual_seed(0)
        losses.append(stage(stage.prepare(batch, step)))
    early, late = losses
    ours = sum(getattr(config.vae, f"lambda_{name}") * late[name]
               for name in ("acceleration", "energy", "spectrum", "bones", "head"))
    assert config.vae.lambda_kl_late > 0 and late["kl"] == early["kl"] > 0.1
    ours = ours + config.vae.lambda_kl_late * late["kl"]
    assert torch.allclose(late["loss"] - early["loss"], ours, rtol=1e-4)
    z = torch.zeros(2, 4, 16)
    val = stage.loss(batch["features"], batch["features"] * 0.5, z, z, batch["lengths"])
    assert val["loss"] > val["features"] + config.vae.lambda_spectrum * val["spectrum"]
