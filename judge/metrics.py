"""The field's numbers, as functions of numpy arrays; everything is computed in float64.

| metric                 | of                               | where it is defined            |
| ---------------------- | -------------------------------- | ------------------------------ |
| R-precision, MM-Dist   | text and motion embeddings       | T2M (CVPR 2022), section 5.1   |
| FID                    | two sets of motion embeddings    | T2M, section 5.1               |
| Diversity              | motion embeddings                | T2M, section 5.1; ACTOR        |
| MultiModality          | embeddings of the same condition | T2M, section 5.1; ACTOR        |
| MPJPE, PA-MPJPE, ACCEL | joints, true and reconstructed   | MLD, appendix                  |
| physical quality       | joints                           | here, in the docstrings        |

Joints are (T, J, 3) in metres, Y up, the floor at 0.
"""
import numpy as np

# --------------------------------------------------------------------------------------------------
# Text against motion


def matching(text, motion, group=32, top=3):
    """R-precision and MM-Dist: does each text find its own motion among `group` of them?

    text, motion  (N, D); row i of one belongs to row i of the other. Groups are consecutive rows,
                  so shuffle first; a smaller last one is left out.

    Returns (top,) shares of texts whose own motion is among the 1, 2, ... `top` nearest of their
    group by Euclidean distance, and the mean distance to the own motion. Another motion at the very
    same distance counts as nearer, so that embeddings that are all the same score nothing.
    ValueError for fewer rows than one group, or groups so small that every text succeeds.
    """
    if group <= top:
        raise ValueError(f"R@{top} among {group} motions is always 1; eval.group must be at least "
                         f"{top + 1}.")
    text, motion = np.asarray(text, np.float64), np.asarray(motion, np.float64)
    n = len(text) // group * group
    if not n:
        raise ValueError(f"R-precision is over groups of {group} pairs, found {len(text)}; "
                         "evaluate more clips or set a smaller eval.group.")
    text, motion = (x[:n].reshape(-1, group, x.shape[-1]) for x in (text, motion))
    distance = np.stack([np.linalg.norm(t[:, None] - m, axis=-1)
                         for t, m in zip(text, motion)])  # (groups, text, motion)
    own = np.diagonal(distance, axis1=1, axis2=2)  # (groups, text)
    rank = (~(distance > own[..., None])).sum(-1)  # 1 = the nearest; NaN is far from all
    return np.array([(rank <= k).mean() for k in range(1, top + 1)]), own.mean()


# --------------------------------------------------------------------------------------------------
# Sets of embeddings


def fid(a, b):
    """Frechet distance of two Gaussians fitted to embeddings a (N, D), b (M, D):

        |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is the sum of the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2).
    That matrix is symmetric, so they are real, and those within rounding of zero are taken as zero.
    Thus there is no imaginary part, and no NaN where there are fewer rows than dimensions; but then
    the value depends on the number of rows, and compares only with values for as many.
    ValueError for a set of fewer than two rows, which has no covariance, or with a NaN.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError("FID needs at least 2 motions on each side, found "
                         f"{len(a)} and {len(b)}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("FID is of finite embeddings; these hold NaN or infinity.")
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))

    def roots(values):
        rounding = len(values) * np.finfo(np.float64).eps * values.max()
        return np.sqrt(np.where(values > rounding, values, 0))

    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * roots(values)) @ vectors.T
    middle = root @ cov_b @ root
    cross = roots(np.linalg.eigvalsh((middle + middle.T) / 2)).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def mean_distance(a, b):
    """Mean Euclidean distance of the rows of a and b (..., D)."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.linalg.norm(difference, axis=-1).mean())


def diversity(x, first, second):
    """Mean distance of x[first] and x[second]: x (N, D), first and second the drawn rows.

    ValueError for fewer than two rows, or no pair."""
    need_pairs("Diversity", len(x), first)
    return mean_distance(x[first], x[second])


def multimodality(x, first, second):
    """Mean distance between motions of the same text.

    x (texts, samples, D); first, second: the drawn samples, the same for every text.
    ValueError for fewer than two samples, or no pair.
    """
    need_pairs("MultiModality", x.shape[1], first)
    return mean_distance(x[:, first], x[:, second])


def need_pairs(metric, n, pairs):
    if n < 2 or not len(pairs):
        raise ValueError(f"{metric} is the distance between motions: it needs at least 2 motions "
                         f"and 1 pair, found {n} and {len(pairs)}.")


def draw_pairs(rng, n, pairs):
    """T2M's pairs for Diversity and MultiModality: two lists of `pairs` of n rows.

    Neither list repeats a row, so there are n pairs at most.
    """
    return tuple(rng.choice(n, min(n, pairs), replace=False) for _ in range(2))


def draw_action_pairs(rng, labels, pairs):
    """ACTOR's pairs for MultiModality: `pairs` pairs of rows of each label, with repetition.

    A label with a single row has no pairs. ValueError where no label has two rows."""
    names, counts = np.unique(labels, return_counts=True)
    drawn = [rng.choice(np.flatnonzero(labels == name), (2, pairs)) for name in names[counts > 1]]
    if not drawn:
        raise ValueError("MultiModality needs at least 2 motions of an action, found 1 of each.")
    return np.concatenate(drawn, axis=1)


# --------------------------------------------------------------------------------------------------
# Reconstruction: true joints against those that the VAE decodes


def reconstruction_errors(true, made):
    """true, made (T, J, 3) metres -> {name: mm}, the mean over frames and joints:

    mpjpe    distance of the joints when both roots are at the origin in every frame
    pampjpe  the same after the best rotation, scale and shift of every frame
    global   distance of the joints where they are, paths included
    accel    difference of the accelerations x_{t-1} - 2 x_t + x_{t+1}, mm per frame^2;
             NaN for fewer than three frames
    """
    true, made = np.asarray(true, np.float64), np.asarray(made, np.float64)

    def mm(difference):
        if not difference.size:
            return np.nan
        return 1000 * float(np.linalg.norm(difference, axis=-1).mean())

    return {"mpjpe": mm((true - true[:, :1]) - (made - made[:, :1])),
            "pampjpe": mm(true - procrustes(made, true)),
            "global": mm(true - made),
            "accel": mm(np.diff(true, 2, axis=0) - np.diff(made, 2, axis=0))}


def procrustes(x, target):
    """Rotate, scale and shift each frame of x (T, J, 3) to be as near as it can to the target's.

    Frames are not mirrored.
    """
    mean_x, mean_target = x.mean(1, keepdims=True), target.mean(1, keepdims=True)
    a, b = x - mean_x, target - mean_target
    u, s, vt = np.linalg.svd(a.swapaxes(1, 2) @ b)  # (T, 3, 3)
    sign = np.ones_like(s)
    sign[:, -1] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[:, None]) @ vt
    scale = (s * sign).sum(1) / np.square(a).sum((1, 2)).clip(1e-12)
    return scale[:, None, None] * (a @ rotation) + mean_target


# --------------------------------------------------------------------------------------------------
# Physical quality of one motion

CONTACT = 0.05  # metres over the floor below which a toe counts as standing


def foot_skating(joints, toes, fps):
    """Mean speed over the ground, cm/s, of toes that stay within 5 cm of the floor.

    toes: their joint numbers. NaN if none stays there from one frame to the next.
    """
    feet = np.asarray(joints, np.float64)[:, list(toes)]  # (T, toes, 3)
    low = feet[..., 1] < CONTACT
    step = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1)
    speed = 100 * fps * step[low[1:] & low[:-1]]
    return float(speed.mean()) if speed.size else np.nan


def floor_penetration(joints):
    """How far the lowest joint is below the floor, mm, the mean over frames."""
    return 1000 * float((-np.asarray(joints, np.float64)[..., 1].min(1)).clip(0).mean())


def jerk(joints, fps):
    """Mean size of the joints' third derivative, m/s^3; NaN for fewer than four frames."""
    third = np.diff(np.asarray(joints, np.float64), 3, axis=0) * fps**3
    return float(np.linalg.norm(third, axis=-1).mean()) if len(third) else np.nan


def bone_drift(joints, parents):
    """How far bones are from their mean length, mm, the mean over frames and bones. parents (J,)

    NaN for a single frame, whose bones are their own mean."""
    if len(joints) < 2:
        return np.nan
    bones = [(j, p) for j, p in enumerate(parents) if p >= 0]
    child, parent = zip(*bones)
    joints = np.asarray(joints, np.float64)
    length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)  # (T, bones)
    return 1000 * float(np.abs(length - length.mean(0)).mean())


def interval(values):
    """Replications of a number -> their mean, and half of its 95% confidence interval.

    The half is 1.96 sigma / sqrt(n), and None for a single replication.
    """
    values = np.asarray(values, np.float64)
    half = float(1.96 * values.std() / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), half
