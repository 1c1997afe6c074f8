"""Metrics equal published numbers and closed forms, and get worse when motion does."""
import numpy as np
import pytest

from judge import metrics
from conftest import GOLDEN
from motion import T2M

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "metrics.npz")


def test_golden_matching(golden):
    precision, distance = metrics.matching(golden["text"], golden["gen"])
    np.testing.assert_allclose(precision, golden["r_precision"], rtol=1e-6)
    np.testing.assert_allclose(distance, golden["matching_score"], rtol=1e-5)


def test_golden_fid(golden):
    assert metrics.fid(golden["gen"], golden["real"]) == pytest.approx(
        float(golden["fid"]), rel=1e-6
    )
    assert metrics.fid(golden["real"], golden["gen"]) == pytest.approx(
        float(golden["fid"]), rel=1e-6
    )


def test_golden_diversity_and_multimodality(golden):
    value = metrics.diversity(golden["gen"], golden["diversity_first"], golden["diversity_second"])
    assert value == pytest.approx(float(golden["diversity"]), rel=1e-6)
    value = metrics.multimodality(golden["mm"], golden["mm_first"], golden["mm_second"])
    assert value == pytest.approx(float(golden["multimodality"]), rel=1e-6)


def test_fid_of_known_gaussians():
    """Diagonal covariances: FID = |mean difference|^2 + sum (s_a - s_b)^2; the rows have just
    these means and stds."""
    def cloud(mean, std):
        d = len(mean)
        rows = np.concatenate([np.diag(std), -np.diag(std)]) * np.sqrt((2 * d - 1) / 2)
        return rows + mean

    a, b = np.array([1.0, 2.0, 0.5]), np.array([0.3, 2.0, 4.0])
    assert metrics.fid(cloud(np.zeros(3), a), cloud(np.ones(3), b)) == pytest.approx(
        3 + np.square(a - b).sum()
    )


def test_fid_of_rank_deficient_and_equal_sets():
    few, other = rng.normal(size=(20, 512)), rng.normal(size=(30, 512))
    assert 0 < metrics.fid(few, other) < np.inf and isinstance(metrics.fid(few, other), float)
    assert metrics.fid(few, few[::-1]) == pytest.approx(0, abs=1e-5)
    assert metrics.fid(np.ones((5, 8)), np.ones((5, 8))) == pytest.approx(0, abs=1e-9)
    assert metrics.fid(np.ones((5, 8)), few[:, :8]) > 0


def test_fid_grows_with_a_shift_and_with_a_narrower_cloud():
    x = rng.normal(size=(400, 8))
    values = [metrics.fid(x, x + shift) for shift in (0, 0.1, 0.5)] + [
        metrics.fid(x, x * s) for s in (0.9, 0.5)
    ]
    assert values[0] < values[1] < values[2] and values[0] < values[3] < values[4]
    assert values[2] == pytest.approx(8 * 0.25, rel=1e-6)


def test_matching_in_small():
    text = np.eye(4)
    precision, distance = metrics.matching(text, text, group=4)
    assert precision.tolist() == [1, 1, 1] and distance == 0
    assert metrics.matching(text, np.roll(text, 1, 0), group=4)[0].tolist() == [0, 0, 0]
    assert metrics.matching(text, text * 0, group=4)[0].tolist() == [
        0,
        0,
        0,
    ], "a constant answer must not score"
    assert (
        metrics.matching(np.r_[text, text], np.r_[text, text[:2] * 0, text[:2] * 0], group=4)[0][0]
        == 0.5
    )
    assert (
        metrics.matching(np.r_[text, text[:3]], np.r_[text, text[:3] * 9], group=4)[1] == 0
    ), "the rest is left out"
    with pytest.raises(ValueError, match="groups of 32 pairs, found 4"):
        metrics.matching(text, text)


def test_swapped_captions_worsen_matching():
    motion = rng.normal(size=(320, 16))
    text = motion + 0.3 * rng.normal(size=motion.shape)
    right, wrong = metrics.matching(text, motion), metrics.matching(np.roll(text, 7, 0), motion)
    assert right[0][0] > 0.9 > wrong[0][2] and right[1] < wrong[1]


@pytest.mark.parametrize("call, words", [
    (lambda: metrics.fid(np.ones((1, 4)), np.ones((5, 4))), "at least 2 motions.*1 and 5"),
    (lambda: metrics.fid(np.ones((5, 4)), np.ones((0, 4))), "at least 2 motions.*5 and 0"),
    (lambda: metrics.fid(np.full((5, 4), np.nan), np.ones((5, 4))), "NaN"),
    (lambda: metrics.fid(np.ones((5, 4)), np.full((5, 4), np.inf)), "NaN or infinity"),
    (lambda: metrics.diversity(np.ones((1, 4)), [0], [0]), "Diversity.*2 motions.*found 1 and 1"),
    (lambda: metrics.diversity(np.ones((9, 4)), [], []), "Diversity.*1 pair, found 9 and 0"),
    (lambda: metrics.multimodality(np.ones((3, 1, 4)), [0], [0]), "MultiModality.*found 1 and 1"),
    (lambda: metrics.multimodality(np.ones((3, 5, 4)), [], []), "MultiModality.*found 5 and 0"),
    (lambda: metrics.draw_action_pairs(rng, np.array([2, 5, 3]), 20), "2 motions of an action"),
    (lambda: metrics.matching(np.eye(6), np.eye(6), group=3), "R@3 among 3 motions is always 1"),
    (lambda: metrics.matching(np.eye(6), np.eye(6), group=1), "eval.group must be at least 4")])
def test_too_few_have_no_number(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_two_are_enough():
    two = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert metrics.fid(two, two + 1) == pytest.approx(2)
    assert metrics.diversity(two, [0, 1], [1, 0]) == 5
    assert metrics.multimodality(two[None], [0], [1]) == 5


def test_drawn_pairs():
    first, second = metrics.draw_pairs(np.random.default_rng(1), 400, 300)
    assert (
        len(first) == len(set(first)) == len(second) == 300
        and max(first) < 400
        and (first != second).any()
    )
    assert len(metrics.draw_pairs(np.random.default_rng(1), 50, 300)[0]) == 50
    labels = np.array([3, 1, 3, 1, 1, 7])
    first, second = metrics.draw_action_pairs(np.random.default_rng(1), labels, 20)
    assert (labels[first] == labels[second]).all()
    assert np.unique(labels[first], return_counts=True)[1].tolist() == [20, 20]
    assert not (labels[first] == 7).any(), "between a single clip and itself there is no distance"
    again = metrics.draw_action_pairs(np.random.default_rng(1), labels, 20)
    assert (again[0] == first).all() and (again[1] == second).all(), "the same seed draws the same"


# --------------------------------------------------------------------------------------------------
# Reconstruction and physics


@pytest.fixture(scope="module")
def joints():
    """The published example's joints: (T, 22, 3) metres."""
    return np.load(GOLDEN / "motion_features.npz")["t2m/canonical_joints"].astype(np.float64)


def rotation(angle, axis):
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def test_reconstruction_errors_of_known_changes(joints):
    shifted = joints + [0.1, 0, 0]
    errors = metrics.reconstruction_errors(joints, shifted)
    assert (
        errors["global"] == pytest.approx(100)
        and max(errors["mpjpe"], errors["pampjpe"], errors["accel"]) < 1e-6
    )
    turned = 1.1 * joints @ rotation(0.3, np.array([1, 2, 3.0])).T
    errors = metrics.reconstruction_errors(joints, turned)
    assert errors["pampjpe"] < 1e-6 < errors["mpjpe"]
    mirrored = joints * [-1, 1, 1]
    assert (
        metrics.reconstruction_errors(joints, mirrored)["pampjpe"] > 10
    ), "mirroring is no rotation"
    one = joints.copy()
    one[:, 5] += [0, 0.044, 0]  # one joint of 22, 44 mm
    errors = metrics.reconstruction_errors(joints, one)
    assert errors["mpjpe"] == pytest.approx(2) and 0 < errors["pampjpe"] < 5
    assert np.isnan(metrics.reconstruction_errors(joints[:2], joints[:2])["accel"])


def test_procrustes_is_no_worse_than_any_other_rotation(joints):
    noisy = joints[:5] + 0.05 * rng.normal(size=joints[:5].shape)
    best = np.square(metrics.procrustes(noisy, joints[:5]) - joints[:5]).sum()
    centred = noisy - noisy.mean(1, keepdims=True)
    for _ in range(20):
        other = (
            centred @ rotation(0.1 * rng.normal(), rng.normal(size=3)).T * (1 + 0.02 * rng.normal())
        )
        assert np.square(other + joints[:5].mean(1, keepdims=True) - joints[:5]).sum() >= best


def test_acceleration_error_of_a_parabola():
    t = np.arange(10.0)[:, None, None]
    still = np.zeros((10, 3, 3))
    falling = still + 0.5 * 0.004 * t**2 * np.array([0, 1, 0])
    assert metrics.reconstruction_errors(still, falling)["accel"] == pytest.approx(4)


def test_physical_quality_of_known_motions():
    fps, t = 20, np.arange(30.0)[:, None, None]
    body = np.zeros((30, 4, 3)) + np.array([[0, 1, 0], [0, 0.02, 0], [0, 0.5, 0], [0, 0.3, 0.0]])
    parents = (-1, 0, 0, 2)
    assert (
        metrics.foot_skating(body, [1], fps)
        == metrics.floor_penetration(body)
        == metrics.jerk(body, fps)
        == 0
    )
    assert metrics.bone_drift(body, parents) < 1e-9
    sliding = body + t * np.array([0.003, 0, 0.004])  # 5 mm a frame
    assert metrics.foot_skating(sliding, [1], fps) == pytest.approx(10)
    assert np.isnan(
        metrics.foot_skating(sliding + [0, 0.2, 0], [1], fps)
    ), "a foot in the air does not slide"
    assert metrics.floor_penetration(body - [0, 0.05, 0]) == pytest.approx(30)
    cubic = body + (t / fps) ** 3 * np.array([0, 2, 0])
    assert metrics.jerk(cubic, fps) == pytest.approx(12)
    assert np.isnan(metrics.bone_drift(body[:1], parents)), "one frame says nothing about drift"
    assert np.isnan(metrics.jerk(body[:3], fps))
    assert np.isnan(metrics.foot_skating(body[:1], [1], fps))
    stretched = body.copy()
    stretched[::2, 3, 1] += 0.03  # one bone of three, 15 mm to either side
    assert metrics.bone_drift(stretched, parents) == pytest.approx(5)


def test_damage_shows_in_physical_quality(joints):
    toes = [foot[1] for foot in T2M.feet]
    noisy, frozen = joints + 0.01 * rng.normal(size=joints.shape), np.repeat(
        joints[:1], len(joints), 0
    )
    assert metrics.jerk(noisy, 20) > 5 * metrics.jerk(joints, 20) and metrics.jerk(frozen, 20) == 0
    assert metrics.bone_drift(noisy, T2M.parents) > 5 * metrics.bone_drift(joints, T2M.parents)
    assert metrics.foot_skating(noisy, toes, 20) > metrics.foot_skating(joints, toes, 20)
    assert metrics.floor_penetration(joints - [0, 0.1, 0]) > metrics.floor_penetration(joints) + 1


def test_interval():
    assert metrics.interval([3.0] * 20) == (3.0, 0.0)
    mean, half = metrics.interval([1.0, 3.0] * 10)
    assert mean == 2 and half == pytest.approx(1.96 / np.sqrt(20))
