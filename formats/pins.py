"""A motion made to meet pins exactly: places that joints must be at in some frames.

    joints = meet(joints, places, pinned, lengths, pose)

A pin moves its joint, and all that hangs on it, by the smoothest displacement that meets it: one
solve of a banded system. Then all bones get their lengths back. A joint that is pinned does not
give way, and less so the nearer a frame is to the pin; the others do. Knees and elbows follow at
last, by two-bone inverse kinematics. What is out of reach is met as well as the bones allow.
"""
import numpy as np

from formats.rotations import fork_frame
from motion import keep_bones, unit_rows

FADE = 1e-4  # a limb's displacement falls to half in 15 frames from a pin; the pelvis' stays
GIVE = {"ankle": 0.3, "foot": 0.3, "toe": 0.3}  # feet give way less than other joints
STRAIGHT = 0.9995  # of a limb's length: how far apart its ends may be


def two_bone(a, c, upper, lower, pole):
    """The middle joint of limbs from a to c, all (T, 3), bent towards `pole`; c is in reach."""
    line = c - a
    d = np.maximum(np.linalg.norm(line, axis=-1, keepdims=True), 1e-6)
    line = line / d
    along = (upper**2 - lower**2 + d**2) / (2 * d)
    out = np.sqrt(np.maximum(upper**2 - along**2, 0))
    return a + along * line + out * unit_rows(pole - (pole * line).sum(-1, keepdims=True) * line)


def smoothest(wanted, pinned, stretch=0.01, rest=0.0, weight=1e6):
    """The smoothest displacement d (T, C) that is `wanted (T, C)` where pinned (T, C) bool. Each
    column by itself minimises, with D1 and D2 the first and second differences over frames,

        |D2 d|^2 + stretch |D1 d|^2 + rest |d|^2 + weight |pinned (d - wanted)|^2

    stretch keeps d from running away beyond the last pin, and rest brings it back to 0. The
    normal equations have five diagonals: they are solved by L D L^T, in time linear in T."""
    T, C = wanted.shape
    bands = np.zeros((3, T, C))  # the diagonal, and the two beside it
    for taps, share in (((1, -2, 1), 1.0), ((-1, 1), stretch)):
        rows = T - len(taps) + 1
        for i, left in enumerate(taps):
            for k, right in enumerate(taps[i:]):
                bands[k, i:i + max(rows, 0)] += share * left * right
    bands[0] += rest + 1e-9 + weight * pinned
    x, diagonal = weight * np.where(pinned, wanted, 0.0), bands[0]
    one, two = np.zeros((T, C)), np.zeros((T, C))  # L's entries one and two left of the diagonal
    for i in range(1, T):
        if i > 1:
            two[i] = bands[2, i - 2] / diagonal[i - 2]
        below = bands[1, i - 1] - (two[i] * diagonal[i - 2] * one[i - 1] if i > 1 else 0)
        one[i] = below / diagonal[i - 1]
        diagonal[i] -= one[i] ** 2 * diagonal[i - 1]
        x[i] -= one[i] * x[i - 1]
        if i > 1:
            diagonal[i] -= two[i] ** 2 * diagonal[i - 2]
            x[i] -= two[i] * x[i - 2]
    x /= diagonal
    for i in range(T - 2, -1, -1):
        x[i] -= one[i + 1] * x[i + 1]
        if i < T - 2:
            x[i] -= two[i + 2] * x[i + 2]
    return x


def displaced(joints, places, pinned, parents):
    """Joints (T, J, 3) -> moved so that the pins are met, each joint with what it hangs on; and how
    firmly (T, J), 0 to 1, each is held. Bones are stretched."""
    T, J, _ = joints.shape
    moved, held = np.zeros_like(joints), np.zeros((T, J))
    for j, p in enumerate(parents):
        carried = 0.0 if p < 0 else moved[:, p]
        moved[:, j] = carried
        if not pinned[:, j].any():
            continue
        wanted, where = places[:, j] - joints[:, j] - carried, pinned[:, j].copy()
        if p < 0:  # the motion begins where it begins
            wanted = np.where(where, wanted, 0.0)
            where[0] = True
        moved[:, j] += smoothest(wanted, where, rest=0 if p < 0 else FADE)
        near = pinned[:, j].any(-1, keepdims=True)
        held[:, j] = smoothest(near.astype(float), near, rest=FADE)[:, 0].clip(0, 1)
    return joints + moved, held


def with_lengths(joints, held, pairs, lengths, give, rounds=60):
    """Joints (T, J, 3) -> moved until each of the pairs (a, b) of joints has its length, or nearly.
    A joint gives way by 1 - held (T, J) times give (J,)."""
    places = np.ascontiguousarray(joints.swapaxes(0, 1))  # (J, T, 3)
    free = ((1 - held) * give).T[..., None] + 1e-9
    shares = [(free[a] / (free[a] + free[b]), free[b] / (free[a] + free[b])) for a, b in pairs]
    firm = [(held[:, a] * held[:, b] > 0.999)[:, None] for a, b in pairs]
    for _ in range(rounds):
        for (a, b), length, (share, other), both in zip(pairs, lengths, shares, firm):
            bone = places[b] - places[a]
            size = np.sqrt(np.einsum("tc,tc->t", bone, bone))[:, None].clip(1e-9)
            bone *= np.where(both, 0, 1 - length / size)
            places[a] += share * bone
            places[b] -= other * bone
    return places.swapaxes(0, 1)


def limbs_of(pose):
    """[(hip, knee, ankle) and (shoulder, elbow, wrist) of both sides] of a TPose."""
    return [(j, pose.children[j][0], pose.children[pose.children[j][0]][0]) for j in pose.hinges]


def bend_limbs(joints, ends, lengths, pose):
    """Joints (T, J, 3) -> the same with wrists and ankles where they are in `ends (T, J, 3)`, as
    far as the limbs reach; hands and feet go along."""
    joints, fronts = joints.copy(), {}
    for fork, bones in pose.forks.items():
        fronts[fork] = fork_frame(joints[:, bones] - joints[:, fork, None])[0][..., 2]
    pelvis, chest = fronts
    for top, middle, end in limbs_of(pose):
        a, upper, lower = joints[:, top], lengths[middle], lengths[end]
        line = ends[:, end] - a
        size = np.linalg.norm(line, axis=-1, keepdims=True).clip(1e-9)
        c = a + line / size * size.clip(abs(upper - lower) + 1e-6, STRAIGHT * (upper + lower))
        front = -fronts[chest] if chest in ancestors(pose.parents, top) else fronts[pelvis]
        pole = joints[:, middle] - (a + joints[:, end]) / 2 + 0.002 * front  # if it is straight
        further = [j for j in range(end + 1, len(lengths)) if end in ancestors(pose.parents, j)]
        shift = (c - joints[:, end])[:, None]
        joints[:, middle] = two_bone(a, c, upper, lower, pole)
        joints[:, end] = c
        for j in further:  # the foot keeps its direction, unless it is pinned itself
            joints[:, j] += shift[:, 0]
    return joints


def ancestors(parents, joint):
    """The joints between `joint` and the root, which is the last."""
    found = []
    while parents[joint] >= 0:
        joint = parents[joint]
        found.append(joint)
    return found


def meet(joints, places, pinned, lengths, pose, rounds=3):
    """Joints (T, J, 3) -> the nearest smooth motion with bones of `lengths (J,)` that has joints at
    `places (T, J, 3)` where pinned (T, J, 3) bool; metres. pose: a TPose of formats.rotations."""
    joints = keep_bones(np.asarray(joints, np.float64), lengths, pose.parents)
    if not pinned.any():
        return joints
    pairs = [(p, j) for j, p in enumerate(pose.parents) if p >= 0]
    sizes = [lengths[j] for _, j in pairs]
    for a, b, c in pose.forks.values():  # pelvis and chest are stiff
        for one, two in ((a, b), (a, c), (b, c)):
            pairs.append((one, two))
            sizes.append(np.median(np.linalg.norm(joints[:, one] - joints[:, two], axis=-1)))
    give = np.array([GIVE.get(name.rpartition("_")[2], 1.0) for name in pose.joint_names])
    for _ in range(rounds):
        moved, held = displaced(joints, places, pinned, pose.parents)
        moved = with_lengths(moved, held, pairs, sizes, give)
        joints = bend_limbs(keep_bones(moved, lengths, pose.parents), moved, lengths, pose)
    return joints


# --------------------------------------------------------------------------------------------------
# Parts of the body that do what they do in another motion


def fork_axes(joints, fork, pose):
    """Where pelvis or chest point in joints (T, J, 3): (T, 3, 3), columns to left, up, forward."""
    return fork_frame(joints[:, pose.forks[fork]] - joints[:, fork, None])[0]


def seen_from(joints, fork, part, pose):
    """The joints `part` as pelvis or chest see them, (T, len(part), 3)."""
    return (joints[:, part] - joints[:, fork, None]) @ fork_axes(joints, fork, pose)


def keep_part(joints, fork, part, clip, pose):
    """Joints (T, J, 3) -> the same where `part` does what it does in the clip (n, J, 3), seen from
    the fork, in the first n frames; after that it is handed back within 10 frames."""
    joints, n = joints.copy(), min(len(clip), len(joints))
    there = seen_from(clip[:n], fork, part, pose)
    later = np.arange(max(len(joints) - n, 0))[:, None, None]
    own = seen_from(joints[n:], fork, part, pose)
    share = np.clip((later + 1) / 10, 0, 1)
    there = np.concatenate([there, there[-1:] * (1 - share) + own * share])
    axes = fork_axes(joints, fork, pose)
    joints[:, part] = joints[:, fork, None] + there @ axes.swapaxes(-1, -2)
    return joints


def kept_apart(joints, part, fork, clip, pose):
    """How far, (n, len(part)) metres, a part is from what it does in the clip (n, J, 3)."""
    n = min(len(clip), len(joints))
    if fork is None:
        return np.linalg.norm(joints[:n, part] - clip[:n][:, part], axis=-1)
    gap = seen_from(joints[:n], fork, part, pose) - seen_from(clip[:n], fork, part, pose)
    return np.linalg.norm(gap, axis=-1)
