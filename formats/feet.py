"""Foot locking: a foot that stands stays where it stands.

    body = lock_feet(fit_body(joints), fps=20)

Ankle and ball of each foot stand where they are slow and low. There they are held at the middle of
where they were, and what that moves them by fades in and out in the air. The knees follow by
two-bone inverse kinematics. Where a leg would be too short, the whole body sinks by up to 2.5 cm,
as softly as the time around it allows, so that no knee snaps.
"""
import numpy as np

from formats.pins import two_bone
from formats.rotations import EPS, Z, fit_body
from motion import T2M, unit_rows

SLOW, LOW = 0.25, 0.12  # m/s, and metres above its lowest point: below both, a joint stands
SHORTEST = 0.1  # seconds; a foot that is slow for less does not stand
FADE = 0.2  # seconds in which a held foot is handed back to the motion
SINK = 0.025  # metres; the body sinks by no more
STRETCH = 0.9995  # of a straight leg's length: how far apart hip and ankle may be
REACH = 0.12  # metres; a foot that slides farther than this is let slide


def stretches(standing):
    """bool (T,) -> [(first, one past the last)] of its runs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], standing.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2]))


def standing_runs(places, fps):
    """Places (T, 3) of an ankle or a ball -> the runs of frames in which it stands."""
    if len(places) < 2:
        return []
    speed = np.linalg.norm(np.gradient(places, axis=0), axis=-1) * fps
    slow = (speed < SLOW) & (places[:, 1] < places[:, 1].min() + LOW)
    for start, end in stretches(~slow):  # a gap of a frame or two is noise
        if 0 < start and end < len(slow) and end - start <= SHORTEST * fps:
            slow[start:end] = True
    held = []
    for start, end in stretches(slow):
        around = np.linalg.norm(places[start:end] - middle_of(places[start:end]), axis=-1)
        if end - start > SHORTEST * fps and around.max() < REACH:
            held.append((start, end))
    return held


def middle_of(places):
    return (places.min(0) + places.max(0)) / 2


def faded(moves, runs, fps):
    """Moves (T, 3), which are known in the runs alone, filled in between by smooth fading."""
    filled = np.zeros_like(moves)
    edges = [(None, 0), *runs, (len(moves), None)]
    for start, end in runs:
        filled[start:end] = moves[start:end]
    for (_, start), (end, _) in zip(edges, edges[1:]):
        ramp = min(max(FADE * fps, 1), end - start + 1)
        frame = np.arange(start, end)

        def weight(distance):
            share = np.clip(1 - distance / ramp, 0, 1)[:, None]
            return share * share * (3 - 2 * share)
        if start:
            filled[frame] += weight(frame - start + 1) * moves[start - 1]
        if end < len(moves):
            filled[frame] += weight(end - frame) * moves[end]
    return filled


def feet_of(pose):
    """[(hip, knee, ankle, ball)] of a TPose, left and right."""
    legs = [[pose.joint_names.index(f"{side}_{part}") for part in ("hip", "knee", "ankle")]
            for side in ("left", "right")]
    return [(*leg, pose.children[leg[-1]][0]) for leg in legs]


def stands_of(joints, pose, fps):
    """When feet stand, for `lock_feet`: for each foot the runs of its ankle and of its ball."""
    return [[standing_runs(joints[:, j], fps) for j in (ankle, ball)]
            for _, _, ankle, ball in feet_of(pose)]


def held_foot(ankle, ball, fps, runs):
    """Ankle and ball (T, 3) of a foot -> the same, held where they stand, in the runs of each."""
    length = np.linalg.norm(ball[0] - ankle[0])
    ball_at = [middle_of(ball[start:end]) for start, end in runs[1]]
    moves = np.zeros((2, *ball.shape))
    for (start, end), at in zip(runs[1], ball_at):
        moves[1, start:end] = at - ball[start:end]
    for start, end in runs[0]:
        at = middle_of(ankle[start:end])
        for (first, last), near in zip(runs[1], ball_at):
            if first < end and start < last:  # both stand: they must be a foot's length apart
                at = near + length * unit_rows(at - near)
                break
        moves[0, start:end] = at - ankle[start:end]
    ankle, ball = ankle + faded(moves[0], runs[0], fps), ball + faded(moves[1], runs[1], fps)
    ankle_stands = np.zeros(len(ball), bool)
    for start, end in runs[0]:
        ankle_stands[start:end] = True
    for start, end in runs[1]:
        ankle_stands[start:end] = False  # where both stand, the ball counts
    along = length * unit_rows(ball - ankle)
    alone = ankle_stands[:, None]
    return np.where(alone, ankle, ball - along), np.where(alone, ankle + along, ball)


def eased(drops, fps):
    """Drops (T,) -> at least as much, changing slowly: a running maximum, then a running mean."""
    reach = max(int(round(FADE * fps)), 1)
    window = np.lib.stride_tricks.sliding_window_view
    most = window(np.pad(drops, 2 * reach, mode="edge"), 2 * reach + 1).max(-1)
    taps = np.hanning(2 * reach + 3)[1:-1]
    return window(most, 2 * reach + 1) @ (taps / taps.sum())


def lock_feet(body, fps=T2M.fps, stands=None):
    """A Body -> one whose feet stand still where they stand; all bones keep their lengths.

    stands: when they stand, if that is not to be told from this motion (see `stands_of`)"""
    pose, joints = body.pose, body.joints.copy()
    lengths = np.linalg.norm(body.offsets, axis=-1)
    legs, drop = [], np.zeros(len(joints))
    stands = stands_of(joints, pose, fps) if stands is None else stands
    for (hip, knee, ankle, ball), runs in zip(feet_of(pose), stands):
        held, ball_held = held_foot(joints[:, ankle], joints[:, ball], fps, runs)
        x, y, z = (held - joints[:, hip]).T
        reach = STRETCH * (lengths[knee] + lengths[ankle])
        drop = np.maximum(drop, -y - np.sqrt(np.maximum(reach**2 - x**2 - z**2, 0)))
        legs.append((hip, knee, ankle, ball, held, ball_held, reach))
    joints[..., 1] -= eased(np.minimum(drop, SINK), fps)[:, None]
    for hip, knee, ankle, ball, held, ball_held, reach in legs:
        before = body.joints[:, [hip, knee, ankle]]
        front = body.rotations[:, 0] @ body.rotations[:, hip] @ Z
        upper, lower, start = lengths[knee], lengths[ankle], joints[:, hip]
        along = unit_rows(held - start)
        apart = np.linalg.norm(held - start, axis=-1).clip(abs(upper - lower) + EPS, reach)[:, None]
        # The knee stays on the side on which it was; of a straight leg, the thigh's front tells.
        aim = before[:, 1] - before[:, 0] + 0.02 * front
        moved = start + apart * along - held  # by which a leg is too short all the same
        rest = joints[:, pose.children[ball]] - joints[:, ball, None]
        joints[:, knee] = two_bone(start, start + apart * along, upper, lower, aim)
        joints[:, ankle], joints[:, ball] = held + moved, ball_held + moved
        joints[:, pose.children[ball]] = joints[:, ball, None] + rest
    return fit_body(joints, fps, body.offsets)
