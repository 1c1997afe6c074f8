"""Is a motion as sharp as real ones? Two measures that need no trained judge.

A network's motion can do the right thing at the right place and still look as if it were under
water: the quick part of every movement is missing, or has been replaced by trembling. Metrics on
positions hardly see it. These do:

- the kinematic FID: a Frechet distance of how fast, how suddenly and how jerkily each joint moves
- the power of joint velocities by frequency, as a share of real motion's; and their coherence,
  which tells whether the quick part of a reconstruction is the clip's own or made up

Joints are (T, J, 3) in metres, Y up, the floor at 0, joint 0 the root. All is computed in float64.
"""
import numpy as np

from judge.metrics import CONTACT, fid

BANDS = (1, 2), (2, 3), (3, 4), (4, 6), (6, 10)  # Hz
SEGMENT = 3.2  # seconds of the windows that spectra are of: bands are cut sharply
STILL = 1e-4  # m/s^k: slower than this counts as this slow, so that logarithms are finite

# --------------------------------------------------------------------------------------------------
# Kinematic FID


def kinematics(joints, toes, fps):
    """One motion -> (3 J + toes,) numbers: the logarithms of each joint's mean speed (m/s), mean
    acceleration (m/s^2) and mean jerk (m/s^3), then of the mean speed over the ground of each toe
    while it is within 5 cm of the floor.

    joints (T, J, 3); toes: their joint numbers. NaN where there is nothing to average: fewer than
    four frames, or a toe that never stands."""
    joints, toes = np.asarray(joints, np.float64), list(toes)
    if len(joints) < 4:
        return np.full(3 * joints.shape[1] + len(toes), np.nan)
    means = [np.linalg.norm(np.diff(joints, k, axis=0), axis=-1).mean(0) * fps**k
             for k in (1, 2, 3)]
    feet = joints[:, toes]
    low = (feet[1:, :, 1] < CONTACT) & (feet[:-1, :, 1] < CONTACT)
    speed = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1) * fps
    count = low.sum(0)
    standing = (speed * low).sum(0) / np.maximum(count, 1)
    means.append(np.where(count > 0, standing, np.nan))
    return np.log(np.maximum(np.concatenate(means), STILL))


def kinematic_fid(made, real):
    """Frechet distance of two sets of motions' `kinematics`, (N, D) and (M, D), in percent of the
    real ones' variance: 100 is as far as all real motions are, in the mean square, from their mean.

    Numbers that a motion does not have are taken as the real motions' mean, and what no real motion
    has is left out. NaN where that leaves nothing, or the real motions are all alike. ValueError
    for fewer than two motions on a side."""
    made, real = np.asarray(made, np.float64), np.asarray(real, np.float64)
    known = np.isfinite(real).any(0)
    made, real = made[:, known], real[:, known]
    if not known.any() or not np.nanstd(real, axis=0).any():
        return np.nan
    mean = np.nanmean(real, axis=0)
    made, real = (np.where(np.isnan(x), mean, x) for x in (made, real))
    return 100 * max(0.0, fid(made, real)) / real.var(0, ddof=1).sum()


# --------------------------------------------------------------------------------------------------
# Power and coherence by band


def spectra(joints, fps, other=None):
    """One motion -> (bands,): the power of its velocities in each band; with the `other` motion,
    the cross power of both.

    Velocities are those of the joints as seen from the root (the directions are the world's). The
    spectrum is Welch's: windows of 3.2 s that overlap by half, each weighted by a Hann window, and
    summed; a shorter motion is one window. So sums over motions weigh every second alike. NaN for
    fewer than three frames, and in bands that the frame rate does not reach."""
    pair = [joints] if other is None else [joints, other]
    pair = [np.asarray(x, np.float64) for x in pair]
    n, size = len(joints) - 1, max(2, round(SEGMENT * fps))
    if n < 2:
        return np.full(len(BANDS), np.nan)
    pair = [np.diff(x[:, 1:] - x[:, :1], axis=0).reshape(n, -1) * fps for x in pair]
    length = min(n, size)
    starts = np.unique(np.linspace(0, n - length, max(1, 2 * n // length - 1)).astype(int))
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length)[:, None] ** 2
    a, b = ([np.fft.rfft(x[s:s + length] * window, size, axis=0) for s in starts]
            for x in (pair * 2)[:2])
    power = sum((x * y.conj()).real.sum(1) for x, y in zip(a, b))  # (size // 2 + 1,)
    power = power * n / (len(starts) * length)  # as much as all seconds hold
    hz = np.fft.rfftfreq(size, 1 / fps)
    inside = [(hz >= low) & (hz < high if high < fps / 2 else hz <= high) for low, high in BANDS]
    return np.array([power[i].sum() if i.any() and high <= fps / 2 else np.nan
                     for i, (_, high) in zip(inside, BANDS)])


def band_names(what):
    return [f"{what} {low}-{high} Hz" for low, high in BANDS]


def power_ratio(made, real):
    """Spectra (N, bands) of made and real motions -> (bands,) the power of the made ones as a share
    of the real ones', all motions together. NaN where real motion has none."""
    made, real = (np.nansum(np.where(np.isnan(made * real), np.nan, x), axis=0)
                  for x in (made, real))
    return np.divide(made, real, out=np.full(len(real), np.nan), where=real > 0)


def coherence(cross, made, real):
    """The cross power (N, bands) of reconstructions and their originals, and the power of each ->
    (bands,): sum cross / sqrt(sum made x sum real), which is 1 for the same movement, 0 for an
    unrelated one, -1 for the opposite. NaN where one of both has no power."""
    missing = np.isnan(cross * made * real)
    cross, made, real = (np.where(missing, 0.0, x).sum(0) for x in (cross, made, real))
    both = np.sqrt(made * real)
    return np.divide(cross, both, out=np.full(len(both), np.nan), where=both > 0)
