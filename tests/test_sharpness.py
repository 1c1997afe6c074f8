"""The kinematic FID, and power and coherence by band: right values on motions made for it."""
import math

import numpy as np
import pytest

import checkpoint
from config import Config, set_value
from conftest import GOLDEN
from dev import sharp
from formats.pack import Caption, Clip, Pack, write_pack
from judge import sharpness
from judge.sharpness import BANDS, coherence, kinematic_fid, kinematics, power_ratio, spectra
from mld import MLD

FPS, TOES = 20, (3, 4)


def noise(frames, seed=0, joints=5, size=0.01):
    return np.random.default_rng(seed).normal(0, size, (frames, joints, 3))


def swing(hz, frames=161, size=0.1):
    """Joint 2 swings sideways at hz; the others stand still."""
    x = np.zeros((frames, 5, 3))
    x[:, 2, 0] = size * np.sin(2 * math.pi * hz / FPS * np.arange(frames))
    return x


def test_kinematics_of_a_parabola():
    """Joint 1 is thrown: speed g t, acceleration g, no jerk. Toe 3 slides, toe 4 is in the air."""
    x, t = np.zeros((21, 5, 3)), np.arange(21) / FPS
    x[:, 1, 1], x[:, 3, 0], x[:, 4, 1] = 4 * t**2, 0.5 * t, 1.0
    found = kinematics(x, TOES, FPS)
    assert found.shape == (3 * 5 + 2,)
    # steps lie in the middle of frames, from t = .025 to .975: their mean is at .5
    assert found[1] == pytest.approx(math.log(8 * 0.5))
    assert found[5 + 1] == pytest.approx(math.log(8))
    assert found[10 + 1] == pytest.approx(math.log(sharpness.STILL))
    assert found[3] == found[15] == pytest.approx(math.log(0.5))
    assert np.isnan(found[16])


def test_twice_as_fast_is_the_log_of_two_in_every_number():
    x = noise(60)
    assert np.allclose(kinematics(2 * x, (), FPS) - kinematics(x, (), FPS), math.log(2))
    fast = kinematics(x, (), 2 * FPS) - kinematics(x, (), FPS)
    assert np.allclose(fast.reshape(3, 5), math.log(2) * np.array([[1], [2], [3]]))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_too_few_frames_have_no_numbers(frames):
    assert np.isnan(kinematics(noise(frames), TOES, FPS)).all()
    assert frames == 3 or np.isnan(spectra(noise(frames), FPS)).all()


def test_fid_is_in_percent_of_the_real_variance():
    rng = np.random.default_rng(0)
    real = rng.normal(0, [1.0, 2.0], (4000, 2))
    real = (real - real.mean(0)) / real.std(0, ddof=1) * [1.0, 2.0]
    assert kinematic_fid(real, real) == pytest.approx(0, abs=1e-6)
    moved = real + [math.sqrt(5), 0]  # by as much as the whole variance, 1 + 4
    assert kinematic_fid(moved, real) == pytest.approx(100)
    # all the same, at the mean: as far as the real ones are from it
    assert kinematic_fid(np.zeros((50, 2)), real) == pytest.approx(100)


def test_fid_with_missing_numbers():
    real = np.random.default_rng(0).normal(size=(100, 3))
    made = real.copy()
    made[:, 1] = np.nan  # taken as the mean
    assert 10 < kinematic_fid(made, real) < 60
    real[:, 2] = np.nan  # nothing to compare with: left out
    assert np.isfinite(kinematic_fid(made, real))
    assert math.isnan(kinematic_fid(made, np.full((5, 3), np.nan)))
    assert math.isnan(kinematic_fid(made, np.ones((5, 3))))
    with pytest.raises(ValueError, match="at least 2 motions"):
        kinematic_fid(made[:1], real)


@pytest.mark.parametrize("band, hz", [*enumerate([1.5, 2.5, 3.5, 5.0, 8.0])])
def test_a_sine_is_in_its_band_and_no_other(band, hz):
    power = spectra(swing(hz), FPS)
    assert power[band] > 0.9 * power.sum()
    # half the swing: a quarter of the power
    assert power_ratio(spectra(swing(hz, size=0.05), FPS)[None],
                       power[None])[band] == pytest.approx(0.25)


def test_white_noise_through_a_filter_has_the_filter_s_power():
    """A mean over two frames has the gain cos^2(pi f / fps)."""
    x = np.stack([noise(400, seed) for seed in range(20)])
    smooth = (x[:, 1:] + x[:, :-1]) / 2
    made, real = (np.stack([spectra(m, FPS) for m in motions]) for motions in (smooth, x[:, 1:]))
    found = power_ratio(made, real)
    for value, (low, high) in zip(found, BANDS):
        hz = np.linspace(low, high, 101)
        weight = np.sin(math.pi * hz / FPS) ** 2  # of velocities of white noise
        want = (np.cos(math.pi * hz / FPS) ** 2 * weight).sum() / weight.sum()
        assert value == pytest.approx(want, rel=0.1)


def test_coherence_of_the_same_of_half_noise_and_of_the_opposite():
    x, other = (np.stack([noise(300, seed) for seed in seeds])
                for seeds in (range(20), range(20, 40)))
    real = np.stack([spectra(m, FPS) for m in x])
    for made, want in ((3 * x, 1), (-x, -1), (other, 0), (x + other, 2**-0.5)):
        cross = np.stack([spectra(m, FPS, n) for m, n in zip(x, made)])
        power = np.stack([spectra(m, FPS) for m in made])
        assert np.allclose(coherence(cross, power, real), want, atol=0.06)


def test_every_second_weighs_alike_and_the_root_s_path_does_not_count():
    x = noise(330)
    power = spectra(x, FPS)
    assert np.allclose(spectra(x + np.linspace(0, 9, 330)[:, None, None], FPS), power)
    assert np.allclose(spectra(noise(1000), FPS) / spectra(noise(500), FPS), 2, rtol=0.2)
    assert np.allclose(spectra(noise(20), FPS) / power, 19 / 329, rtol=0.9)


def test_bands_without_power_or_beyond_the_frame_rate_are_nan():
    still = spectra(np.zeros((50, 5, 3)), FPS)
    assert (still == 0).all()
    assert np.isnan(power_ratio(still[None], still[None])).all()
    assert np.isnan(coherence(still[None], still[None], still[None])).all()
    slow = spectra(noise(50), 12.5)
    assert np.isnan(slow[-1]) and np.isfinite(slow[:-1]).all()
    short = spectra(noise(1), FPS)
    both = np.stack([short, spectra(swing(5.0), FPS)])
    assert power_ratio(both, both)[3] == pytest.approx(1)


def test_the_table_of_a_vae(tmp_path, capsys):
    """dev.sharp reads the file that --stage vae leaves, and measures whole unmirrored clips."""
    base = np.load(GOLDEN / "motion_features.npz")["t2m/features"].astype(np.float32)
    clips = [Clip(f"{name}{i}", [Caption("a man walks")], split, "walk", base[:50 + i])
             for i in range(3) for split, name in (("train", "a"), ("test", "b"), ("test", "M"))]
    (tmp_path / "made").mkdir()
    write_pack(tmp_path / "made" / "made.pack", clips, name="made", skeleton="t2m", fps=20.0,
               actions=["walk"])
    config = Config()
    for key, value in {"data.dataset": "made", "data.min_length": 24, "data.max_frames": 60,
                       "vae.latent_dim": 16, "denoiser.latent_dim": 16, "vae.ff_size": 32,
                       "vae.num_layers": 3}.items():
        set_value(config, key, value)
    pack = Pack.open(str(tmp_path / "made" / "made.pack"))
    model = MLD(config, None, pack.mean, pack.std)
    checkpoint.save(tmp_path / "vae_best.pt", config, model.state_dict(), step=7)
    sharp.main([str(tmp_path / "vae_best.pt"), "--data_root", str(tmp_path)])
    *_, row = capsys.readouterr().out.splitlines()
    cells = row.strip("| ").split(" | ")
    assert len(cells) == 1 + len(sharp.HEAD) and cells[1] == "7"
    assert len(sharp.clips_of(pack, config)) == 3
    x = sharp.measure(model.eval(), pack)
    assert x["made power"].shape == (3, len(BANDS))
    assert float(cells[2].split(" / ")[0]) == pytest.approx(x["error"].mean(), abs=0.06)
