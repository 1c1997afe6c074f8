"""The field's numbers, as functions of numpy arrays; everything is computed in float64.

| metric                 | of                               | section of the T2M paper (CVPR 2022), or what else |
| ---------------------- | -------------------------------- | -------------------------------------------------- |
| R-precision, MM-Dist   | text and motion embeddings       | 5.1: 1 true text among 32; distance to the true one |
| FID                    | two sets of motion embeddings    | 5.1                                                |
| Diversity              | motion embeddings                | 5.1: 300 pairs; ACTOR: 200, drawn with repetition  |
| MultiModality          | embeddings of the same condition | 5.1: 10 pairs a text; ACTOR: 20 pairs an action    |
| MPJPE, PA-MPJPE, ACCEL | joints, true and reconstructed   | MLD, appendix; millimetres                         |
| physical quality       | joints                           | ours: the docstrings say what is measured          |

Joints are (T, J, 3) in metres, Y up, the floor at 0.
"""
import numpy as np

# ----------------------------------------------------------------------------------------------------------------------
# Text against motion


def matching(text, motion, group=32, top=3):
    """R-precision and MM-Dist over consecutive groups of `group` rows (shuffle before); a smaller last one is left out.

    text, motion (N, D), row i of one belongs to row i of the other. Returns ((top,) shares of texts whose own motion is
    among the k nearest of their group by Euclidean distance, mean distance to the own motion). Another motion at the
    very same distance counts as nearer, so that embeddings that are all the same score nothing. ValueError for fewer
    rows than one group.
    """
    text, motion = np.asarray(text, np.float64), np.asarray(motion, np.float64)
    n = len(text) // group * group
    if not n:
        raise ValueError(f"R-precision is over groups of {group} pairs, found {len(text)}; evaluate more clips or set "
                         "a smaller eval.group.")
    text, motion = (x[:n].reshape(-1, group, x.shape[-1]) for x in (text, motion))
    distance = np.stack([np.linalg.norm(t[:, None] - m, axis=-1) for t, m in zip(text, motion)])  # (groups, text, mot.)
    own = np.diagonal(distance, axis1=1, axis2=2)  # (groups, text)
    rank = (~(distance > own[..., None])).sum(-1)  # 1 = the own motion is the nearest; NaN is far from all
    return np.array([(rank <= k).mean() for k in range(1, top + 1)]), own.mean()


# ----------------------------------------------------------------------------------------------------------------------
# Sets of embeddings


def fid(a, b):
    """Frechet distance of two Gaussians fitted to embeddings a (N, D), b (M, D):

        |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is the sum of the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric:
    they are real, and those within rounding of zero are zero. So there is no imaginary part, and rank-deficient
    covariances (fewer rows than numbers) give no NaN; such values depend on the sample size, and are not comparable.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))

    def roots(values):
        return np.sqrt(np.where(values > len(values) * np.finfo(np.float64).eps * values.max(), values, 0))

    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * roots(values)) @ vectors.T
    middle = root @ cov_b @ root
    cross = roots(np.linalg.eigvalsh((middle + middle.T) / 2)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def mean_distance(a, b):
    """Mean Euclidean distance of the rows of a and b (..., D)."""
    return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64), axis=-1).mean())


def diversity(x, first, second):
    """Mean distance of x[first] and x[second]: x (N, D), first and second the drawn rows."""
    return mean_distance(x[first], x[second])


def multimodality(x, first, second):
    """Mean distance within a text: x (texts, samples, D), first and second the drawn samples, the same for any text."""
    return mean_distance(x[:, first], x[:, second])


def draw_pairs(rng, n, pairs):
    """T2M's pairs of Diversity and MultiModality: two lists of `pairs` of n rows, neither with repetitions; n of them
    if there are no more."""
    return tuple(rng.choice(n, min(n, pairs), replace=False) for _ in range(2))


def draw_action_pairs(rng, labels, pairs):
    """ACTOR's pairs of MultiModality: for every label that occurs, `pairs` pairs of its rows, with repetition."""
    drawn = [rng.choice(np.flatnonzero(labels == label), (2, pairs)) for label in np.unique(labels)]
    return np.concatenate(drawn, axis=1)


# ----------------------------------------------------------------------------------------------------------------------
# Reconstruction: true joints against those that came out of the VAE, in millimetres


def reconstruction_errors(true, made):
    """true, made (T, J, 3) metres -> {name: mm}, the mean over frames and joints:

    mpjpe     distance of the joints, both roots at the origin in every frame
    pampjpe   the same after the best rotation, scale and shift of every frame
    global    the same as the joints lie, paths included
    accel     difference of the accelerations x_{t-1} - 2 x_t + x_{t+1}, mm per frame^2; NaN for fewer than three frames
    """
    true, made = np.asarray(true, np.float64), np.asarray(made, np.float64)

    def mm(difference):
        return 1000 * float(np.linalg.norm(difference, axis=-1).mean()) if difference.size else np.nan

    return {"mpjpe": mm((true - true[:, :1]) - (made - made[:, :1])), "pampjpe": mm(true - procrustes(made, true)),
            "global": mm(true - made), "accel": mm(np.diff(true, 2, axis=0) - np.diff(made, 2, axis=0))}


def procrustes(x, target):
    """x (T, J, 3) rotated, scaled and shifted, frame by frame, to lie as near to target as it can (no mirroring)."""
    mean_x, mean_target = x.mean(1, keepdims=True), target.mean(1, keepdims=True)
    a, b = x - mean_x, target - mean_target
    u, s, vt = np.linalg.svd(a.swapaxes(1, 2) @ b)  # (T, 3, 3)
    sign = np.ones_like(s)
    sign[:, -1] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[:, None]) @ vt
    scale = (s * sign).sum(1) / np.square(a).sum((1, 2)).clip(1e-12)
    return scale[:, None, None] * (a @ rotation) + mean_target


# ----------------------------------------------------------------------------------------------------------------------
# Physical quality of one motion

CONTACT = 0.05  # metres over the floor below which a toe counts as standing


def foot_skating(joints, toes, fps):
    """Mean speed over the ground, cm/s, of toes that stay within 5 cm of the floor from one frame to the next; NaN if
    none ever does. toes: their joint numbers."""
    feet = np.asarray(joints, np.float64)[:, list(toes)]  # (T, toes, 3)
    low = feet[..., 1] < CONTACT
    speed = 100 * fps * np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1)[low[1:] & low[:-1]]
    return float(speed.mean()) if speed.size else np.nan


def floor_penetration(joints):
    """How far the lowest joint is below the floor, mm, the mean over frames."""
    return 1000 * float((-np.asarray(joints, np.float64)[..., 1].min(1)).clip(0).mean())


def jerk(joints, fps):
    """Mean size of the joints' third derivative, m/s^3; NaN for fewer than four frames."""
    third = np.diff(np.asarray(joints, np.float64), 3, axis=0) * fps**3
    return float(np.linalg.norm(third, axis=-1).mean()) if len(third) else np.nan


def bone_drift(joints, parents):
    """How far bones are from their mean length over the motion, mm, the mean over frames and bones. parents (J,)."""
    bones = [(j, p) for j, p in enumerate(parents) if p >= 0]
    child, parent = zip(*bones)
    joints = np.asarray(joints, np.float64)
    length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)  # (T, bones)
    return 1000 * float(np.abs(length - length.mean(0)).mean())


# ----------------------------------------------------------------------------------------------------------------------


def interval(values):
    """Replications of a number -> (mean, half of its 95% confidence interval, 1.96 sigma / sqrt(n), None for n = 1)."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(1.96 * values.std() / np.sqrt(len(values))) if len(values) > 1 else None
