"""Head and feet: what the positions of joints leave open there, and what the floor tells.

Where a foot stands, its sole lies on the floor: it rolls about the line from ankle to ball until it
is level, and the toes lie flat. In the air, foot and toes follow the shin. The head follows the
neck, smoothed as seen from the chest, because the short bone from neck to head trembles.
"""
import numpy as np

from motion import (
    X, Y, axis_angle_to_matrix, matrix_to_quaternion, quaternion_to_matrix, rotation_between,
    unit_rows)

SLOW, LOW = 0.25, 0.05  # m/s, and metres above its lowest point: a foot surely stands below both,
# and surely does not above twice as much
SMOOTH = 0.1  # seconds
ROLL = np.radians(40)  # an ankle rolls a foot by no more


def spread(values, seconds, fps):
    """Values (T, ...) -> sums weighted by a bell curve of time; frames beyond the ends count 0."""
    radius = min(int(np.ceil(3 * seconds * fps)), len(values))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / (seconds * fps)) ** 2)
    padded = np.pad(values, ((radius, radius), *((0, 0),) * (values.ndim - 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=0) @ taps


def standing(place, fps):
    """Places (T, 3) of an ankle or ball -> (T,) from 0, in the air, to 1, standing; it changes
    smoothly."""
    speed = np.zeros(len(place))
    if len(place) > 1:
        speed = np.linalg.norm(np.gradient(place, axis=0), axis=-1) * fps
    high = place[:, 1] - place[:, 1].min()
    stands = np.clip(2 - speed / SLOW, 0, 1) * np.clip(2 - high / LOW, 0, 1)
    return spread(stands, SMOOTH, fps) / spread(np.ones(len(stands)), SMOOTH, fps)


def roll_foot(turned, direction, stands):
    """Rotations (T, 3, 3) of an ankle, of which the foot's bone has a `direction` (3,) at rest ->
    the same, rolled about that bone until the sole is level, by the share `stands` (T,)."""
    bone, side = turned @ direction, turned @ X
    level = np.cross(Y, bone)  # where the side would be; short if the foot points up or down
    angle = np.arctan2((np.cross(side, level) * bone).sum(-1), (side * level).sum(-1))
    share = stands * np.clip(3 * np.linalg.norm(level, axis=-1) - 1, 0, 1)
    angle = np.where(np.abs(angle) < 2 * ROLL, np.clip(angle, -ROLL, ROLL), 0) * share
    return axis_angle_to_matrix(angle[:, None] * bone) @ turned


def lay_toes(foot, stands):
    """Rotations (T, 3, 3) of a foot -> of its toes: as the foot's in the air, flat on the floor
    where they stand."""
    up = foot @ Y
    share = stands * np.clip(2 * up[:, 1], 0, 1)  # not of a foot on its tip or its back
    return rotation_between(up, unit_rows(up + share[:, None] * (Y - up))) @ foot


def steady_head(neck, chest, fps):
    """Rotations (T, 3, 3) of neck and chest -> of the head: the neck's, with smoothed turns
    relative to the chest."""
    turned = matrix_to_quaternion(chest.swapaxes(-1, -2) @ neck)
    flips = (turned[1:] * turned[:-1]).sum(-1, keepdims=True) < 0
    turned[1:] *= np.where(np.cumsum(flips, axis=0) % 2, -1, 1)
    return chest @ quaternion_to_matrix(unit_rows(spread(turned, SMOOTH, fps)))
