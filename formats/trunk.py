"""Pelvis and chest, where three bones meet, and the spine between them.

A rigid body has them turned and placed so that the squared errors of the four joints are least. The
joints that a network makes can be out of shape, in a roll or a spin: both hips nearly in one place,
or collarbones twice as far apart as they should be. No body has all its joints there. Then the
largest of the four errors is made least, by Lawson's algorithm, and the spine bends until it meets
the chest: four joints share an error that one collarbone would have alone.
"""
import numpy as np

from motion import axis_angle_to_matrix, matrix_to_axis_angle, unit_rows

LOOSE = 0.01  # metres; from an error of this size on, the largest counts, from twice as much alone
ROUNDS = 5  # of Lawson's algorithm
LEAST = 0.05  # share of the largest weight that every joint keeps, so that a rotation is defined
SHORT = 0.003  # metres by which the spine may miss the chest
BENDS = 3  # rounds of bending the spine


def best_rotation(rest, seen):
    """The rotation R (T, 3, 3) with the least squared error of R rest, (N, 3) or (T, N, 3), against
    seen (T, N, 3), by Kabsch's algorithm; frames that define none take that of the last which
    did."""
    u, size, vt = np.linalg.svd(seen.swapaxes(-1, -2) @ rest)
    u[..., 2] *= np.linalg.det(u @ vt)[:, None]
    rotation = u @ vt
    valid = size[:, 1] > 1e-6 * np.square(rest).sum((-1, -2)) + 1e-12
    last = np.maximum.accumulate(np.where(valid, np.arange(len(seen)), -1))
    return np.where((last < 0)[:, None, None], np.eye(3), rotation[np.maximum(last, 0)])


def _fit(rest, seen, weight):
    """Rotations (T, 3, 3) and places (T, 3) that take rest (N, 3) to seen (T, N, 3) best, with
    weights (T, N), and how far each is off (T, N)."""
    share = (weight / weight.sum(1, keepdims=True))[..., None]
    rest_centre, centre = (share * rest).sum(1), (share * seen).sum(1)
    around = share * (rest - rest_centre[:, None])
    rotation = best_rotation(around, seen - centre[:, None])
    place = centre - (rotation @ rest_centre[..., None])[..., 0]
    fitted = place[:, None] + rest @ rotation.swapaxes(-1, -2)
    return rotation, place, np.linalg.norm(fitted - seen, axis=-1)


def place_fork(offsets, seen):
    """The best place for a joint and three bones that meet in it: offsets (3, 3) at rest, and the
    four joints seen (T, 4, 3), the fork first -> its rotations (T, 3, 3) and positions (T, 3)."""
    rest = np.concatenate([np.zeros((1, 3)), offsets])
    rotation, place, away = _fit(rest, seen, np.ones(seen.shape[:2]))
    bad = np.flatnonzero(away.max(1) > LOOSE)
    if len(bad):
        away, weight = away[bad], np.ones((len(bad), 4))
        power = np.clip(away.max(1, keepdims=True) / LOOSE - 1, 0, 1)
        for _ in range(ROUNDS):  # who is far off counts more
            weight = weight * away**power
            weight = np.maximum(weight / weight.max(1, keepdims=True), LEAST)
            rotation[bad], place[bad], away = _fit(rest, seen[bad], weight)
    return rotation, place


def reach(start, targets, lengths):
    """Targets (T, N, 3) of a chain's joints, of which the last counts, and bones of `lengths (N,)`
    that begin at start (T, 3) -> targets that the chain can meet, by FABRIK."""
    before = np.concatenate([start[:, None], targets[:, :-1]], axis=1)
    missed = np.abs(np.linalg.norm(targets - before, axis=-1) - lengths).max(1)
    bad = np.flatnonzero(missed > SHORT)
    if not len(bad):
        return targets
    chain = np.concatenate([start[bad, None], targets[bad]], axis=1)
    first, last = chain[:, 0].copy(), chain[:, -1].copy()

    def pull(joint, towards, length):
        chain[:, joint] = chain[:, towards] + length * unit_rows(chain[:, joint]
                                                                 - chain[:, towards])
    for _ in range(BENDS):
        chain[:, -1] = last
        for i in reversed(range(len(lengths))):
            pull(i, i + 1, lengths[i])
        chain[:, 0] = first
        for i, length in enumerate(lengths):
            pull(i + 1, i, length)
    targets = targets.copy()
    targets[bad] = chain[:, 1:]
    return targets


def spine_turns(pelvis, chest, joints):
    """World rotations (T, 3, 3) on the way from the pelvis's to the chest's, `joints` of them."""
    turn = matrix_to_axis_angle(pelvis.swapaxes(-1, -2) @ chest)
    return [pelvis @ axis_angle_to_matrix(turn * (i + 1) / (joints + 1)) for i in range(joints)]
