"""Joint positions -> rotations of a rigid body, which is what characters and BVH files are made of.

    body = fit_body(joints)                 # (T, J, 3) metres: T2M's 22 joints, KIT's 21, SMPL's 24
    body.rotations                          # (T, J, 3, 3), each relative to the parent
    body.joints                             # (T, J, 3): where the rigid body has its joints

Positions say less than rotations do, and a recorded body is not quite rigid. What is decided here:
- Bones are constant and the same on both sides: each has its median length over the motion.
- At rest the body stands on the floor in a T-pose, facing +Z. Joint j turns the bones after it.
- Pelvis and chest, where three bones meet, turn by the best common rotation (formats/trunk.py).
  What they turn about the spine is spread evenly over the joints between them.
- A bent knee or elbow is a hinge, and shows how far thigh or upper arm is twisted. A straight one
  shows nothing: there the twist of the frames before and after is kept.
- Every other joint turns the shortest way, and wrists follow the forearm. For head, feet and toes
  see formats/ends.py.

Joints as a network puts them out have bones whose lengths vary from frame to frame. They are fitted
as well as can be; sample.py first makes them constant, with `keep_bones` of motion.py.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from formats.ends import lay_toes, roll_foot, spread, standing, steady_head
from formats.trunk import place_fork, reach, spine_turns
from motion import (
    KIT, SMPL_PARENTS, T2M, matrix_to_quaternion, rotation_between, unit_rows)

X, Y, Z = np.eye(3)
SLOPE = {"foot": -20, "midfoot": -20, "head": 70}  # degrees above +Z at rest, as in HumanML3D
SPREAD = 0.25  # seconds; how far away a bent frame says how a straight limb is twisted
EASE = 0.06  # seconds over which the twist of an arm that is nearly straight is averaged
BENT = np.sin(np.radians([10.0, 35.0]))  # a hinge bent less tells nothing, one bent more everything
EPS = 1e-9


# --------------------------------------------------------------------------------------------------
# The three skeletons at rest

@dataclass(frozen=True, eq=False)
class TPose:
    """What is known of a skeleton before a motion is seen."""
    joint_names: tuple
    parents: tuple

    @cached_property
    def children(self):
        return [[c for c, p in enumerate(self.parents) if p == j] for j in range(len(self.parents))]

    @cached_property
    def directions(self):
        """(J, 3) unit vectors from the parent to each joint in a T-pose; 0 for the root."""
        return np.stack([self._direction(*name.rpartition("_")[::2]) for name in self.joint_names])

    @staticmethod
    def _direction(side, part):
        if part == "pelvis":
            return 0 * X
        if part in ("knee", "ankle"):
            return -Y
        if part in ("hip", "collar", "shoulder", "elbow", "wrist", "hand"):
            return X if side == "left" else -X
        angle = np.radians(SLOPE.get(part, 0 if part == "toe" else 90))
        return np.sin(angle) * Y + np.cos(angle) * Z

    @cached_property
    def mirror(self):
        """The joint on the other side of the body, for each joint."""
        swap = str.maketrans({"<": "right", ">": "left"})
        names = [n.replace("left", "<").replace("right", ">") for n in self.joint_names]
        return [self.joint_names.index(name.translate(swap)) for name in names]

    @cached_property
    def hinges(self):
        """{joint above a knee or elbow: the axis (3,) about which that bends, seen from it}."""
        bends = {"hip": X, "shoulder": -Y}  # shins bend backward, forearms forward
        return {j: bends[part] * (-1 if (side, part) == ("right", "shoulder") else 1)
                for j, (side, _, part) in enumerate(n.rpartition("_") for n in self.joint_names)
                if part in bends}

    @cached_property
    def forks(self):
        """{joint at which three bones meet: (left, right, middle)}; the root first."""
        def sided(j):
            return [self.joint_names[j].startswith(side) for side in ("left", "right")]
        return {j: sorted(bones, key=sided, reverse=True)
                for j, bones in enumerate(self.children) if len(bones) == 3}

    @cached_property
    def spine(self):
        """The joints between the two forks, from the root upward."""
        root, joint = self.forks
        chain = []
        while self.parents[joint] != root:
            joint = self.parents[joint]
            chain.insert(0, joint)
        return chain

    @cached_property
    def levels(self):
        """Joints that have the same number of bones between them and the root, root first."""
        depth = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return [[j for j, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]


T_POSES = {len(pose.parents): pose for pose in (
    TPose(T2M.joint_names, T2M.parents), TPose(KIT.joint_names, KIT.parents),
    TPose((*T2M.joint_names, "left_hand", "right_hand"), SMPL_PARENTS))}


def t_pose_of(joints, path="this motion"):
    """joints (T, J, 3) -> the TPose with J joints, and the joints as float64. ValueError, in one
    sentence that begins with `path`, for other shapes and for numbers that are not finite."""
    joints = np.asarray(joints, dtype=np.float64)
    known = joints.ndim == 3 and joints.shape[1] in T_POSES and joints.shape[2] == 3 and len(joints)
    if not known or not np.isfinite(joints).all():
        bad = " with NaN or infinity" if not np.isfinite(joints).all() else ""
        raise ValueError(f"{path}: expected joints of shape (frames, 22, 3), or 21 joints as in "
                         f"KIT or 24 as in SMPL, all finite; found {joints.shape}{bad}")
    return T_POSES[joints.shape[1]], joints


# --------------------------------------------------------------------------------------------------
# Bones

def fork_frame(bones):
    """bones (T, 3, 3): rows to left, right, middle -> (T, 3, 3): columns to left, up, forward;
    and in which frames (T,) the bones do define a rotation."""
    across = unit_rows(bones[:, 0] - bones[:, 1])
    up = bones[:, 2] - (bones[:, 0] + bones[:, 1]) / 2
    forward = unit_rows(np.cross(across, up))
    frame = np.stack([across, np.cross(forward, across), forward], axis=-1)
    return frame, np.linalg.det(frame) > 0.5


def measure_bones(joints, pose):
    """Joints (T, J, 3) -> OFFSETs (J, 3) of each joint from its parent at rest: a T-pose whose
    left and right are alike, and whose row 0 puts the lowest joint on the floor."""
    parents = np.maximum(pose.parents, 0)
    lengths = np.median(np.linalg.norm(joints - joints[:, parents], axis=-1), axis=0)
    offsets = pose.directions * ((lengths + lengths[pose.mirror]) / 2)[:, None]
    for fork, bones in pose.forks.items():  # how these three stand to each other is measured
        vectors = joints[:, bones] - joints[:, fork, None]
        frame, valid = fork_frame(vectors)
        if valid.any():
            left, right, middle = np.median((vectors @ frame)[valid], axis=0)
            side = (left + right * (-1, 1, 1)) / 2
            offsets[bones] = side, side * (-1, 1, 1), middle * (0, 1, 1)
    offsets[0] = 0
    offsets[0] = -rest_pose(offsets, pose)[:, 1].min() * Y
    return offsets


def rest_pose(offsets, pose):
    """OFFSETs (J, 3) -> the joints (J, 3) of the body at rest."""
    places = offsets.copy()
    for j, parent in enumerate(pose.parents[1:], start=1):
        places[j] += places[parent]
    return places


# --------------------------------------------------------------------------------------------------
# Rotations

@dataclass(frozen=True)
class Body:
    """A motion as turns of a rigid body."""
    pose: TPose
    offsets: np.ndarray  # (J, 3) metres from the parent at rest
    rotations: np.ndarray  # (T, J, 3, 3) relative to the parent; joint j turns the bones after it
    joints: np.ndarray  # (T, J, 3) metres, of this body; joints[:, 0] is the root's path

    def quaternions(self):
        """(T, J, 4) of the rotations as (w, x, y, z), with signs that never jump."""
        return continuous(matrix_to_quaternion(self.rotations))


def continuous(quaternions):
    """(T, ..., 4) -> the same rotations with q or -q, whichever is nearer to the frame before."""
    flips = (quaternions[1:] * quaternions[:-1]).sum(-1, keepdims=True) < 0
    signs = np.where(np.cumsum(flips, axis=0) % 2, -1, 1)
    return np.concatenate([quaternions[:1], quaternions[1:] * signs])


def _share_misfits(joints, lengths, pose):
    """Where the joints should go so that a bone's wrong length is half its joint's error and half
    that of the joint before it, from the limbs' ends inward."""
    targets = joints.copy()
    for level in reversed(pose.levels[1:]):
        before = [j for j in level if len(pose.children[j]) == 1]
        after = [pose.children[j][0] for j in before]
        bones = targets[:, after] - targets[:, before]
        seen = np.linalg.norm(bones, axis=-1, keepdims=True)
        targets[:, before] += 0.5 * (1 - lengths[after] / np.maximum(seen, EPS)) * bones
    return targets


def _swing(before, direction, bone):
    """Turn `before` (T, K, 3, 3) the shortest way so that its `direction` (K, 3) points along
    bone (T, K, 3); a bone of length 0 turns nothing."""
    now = (before @ direction[..., None])[..., 0]
    return rotation_between(now, unit_rows(bone + 1e-8 * now)) @ before


def _twist(direction, angle):
    """Rotations (T, K, 3, 3) by angle (T, K) about unit vectors direction (K, 3)."""
    x, y, z = direction.T
    cross = np.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], axis=-1).reshape(-1, 3, 3)
    angle = angle[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def _twist_of_hinges(upper, lower, axis, is_leg, fps):
    """How far limbs are twisted about their upper bone, (T, K) radians.

    upper, lower (T, K, 3): unit vectors along the bones; axis (T, K, 3): about which the limb
    would bend if it were not twisted, a unit vector perpendicular to `upper`."""
    bend = np.cross(upper, lower)
    size = np.linalg.norm(bend, axis=-1)
    x, y = (bend * axis).sum(-1), (bend * np.cross(upper, axis)).sum(-1)  # size * (cos, sin)
    low, high = BENT
    folding = (upper * lower).sum(-1) < 0  # a hinge bent by more than 90 degrees tells everything
    weight = np.where(folding, 1, np.clip((size - low) / (high - low), 0, 1))
    # A knee that is a little bent the wrong way is overstretched, not twisted by half a turn.
    folded = (upper * lower).sum(-1) < 0.5
    weight = np.where(is_leg & (x < -0.3 * size) & ~folded, 0, weight)
    told = (weight / np.maximum(size, EPS))[..., None] * np.stack([x, y], axis=-1)  # (T, K, 2)
    near = _average(told, weight, fps)
    # So is an elbow that is a little bent against what the frames near by show, as in waving.
    against = (told * near).sum(-1) < -0.3 * weight * np.linalg.norm(near, axis=-1)
    weight = np.where(against & ((upper * lower).sum(-1) > 0.7), 0, weight)
    told = told * (weight > 0)[..., None]
    near = _average(told, weight, fps)
    x, y = np.moveaxis(told + (1 - weight[..., None]) * near, -1, 0)
    # An arm that bends one way, is straight for an instant and bends the other way would twist by
    # half a turn in a frame. Where it is nearly straight, the twist takes its time.
    angle = np.unwrap(np.arctan2(y, x), axis=0)
    sums = spread(np.stack([angle, np.ones_like(angle)], axis=-1), EASE, fps)
    return np.where(is_leg, angle, angle + (1 - weight) * (sums[..., 0] / sums[..., 1] - angle))


def _average(told, weight, fps):
    """Mean of vectors told (T, K, 2), which contain their weight (T, K), over the time around."""
    sums = spread(np.concatenate([told, weight[..., None]], axis=-1), SPREAD, fps)
    return (sums[..., :2] + (0.02, 0)) / (sums[..., 2:] + 0.02)  # far from any bend: no twist


def fit_body(joints, fps=T2M.fps, offsets=None):
    """Joints (T, J, 3) in metres, Y up, of one of the T_POSES -> Body.

    offsets (J, 3): bones at rest, if they are known (see `measure_bones`)."""
    pose, joints = t_pose_of(joints)
    offsets = measure_bones(joints, pose) if offsets is None else np.asarray(offsets, np.float64)
    parents = np.array(pose.parents)
    lengths = np.linalg.norm(offsets, axis=-1, keepdims=True)
    directions = np.where(lengths > EPS, offsets / np.maximum(lengths, EPS), pose.directions)
    world, placed = np.empty((*joints.shape, 3)), np.empty_like(joints)
    pelvis, chest = pose.forks
    targets = _share_misfits(joints, lengths, pose)
    for fork, bones in pose.forks.items():
        world[:, fork], targets[:, fork] = place_fork(offsets[bones], targets[:, [fork, *bones]])
    placed[:, pelvis] = targets[:, pelvis]
    first, *spine = *pose.spine, chest
    start = targets[:, pelvis] + world[:, pelvis] @ offsets[first]
    targets[:, spine] = reach(start, targets[:, spine], lengths[spine, 0])
    turns = dict(zip(pose.spine, spine_turns(world[:, pelvis], world[:, chest], len(pose.spine))))
    for level in pose.levels[1:]:
        before = world[:, parents[level]]  # (T, K, 3, 3)
        placed[:, level] = (placed[:, parents[level]]
                            + (before @ offsets[level][..., None])[..., 0])
        ends = [j for j in level if not pose.children[j]]
        for j in ends:
            before, part = world[:, parents[j]], pose.joint_names[j].rpartition("_")[2]
            world[:, j] = before
            if part == "foot":
                world[:, j] = lay_toes(before, standing(targets[:, j], fps))
            elif part == "head":
                world[:, j] = steady_head(before, world[:, chest], fps)
        turning = [j for j in level if len(pose.children[j]) == 1]
        if not turning:
            continue
        next_joint = [pose.children[j][0] for j in turning]
        before = np.stack([turns.get(j, world[:, parents[j]]) for j in turning], axis=1)
        bone = targets[:, next_joint] - placed[:, turning]
        turned = _swing(before, directions[next_joint], bone)
        hinged = [k for k, j in enumerate(turning) if j in pose.hinges]
        if hinged:
            above = [turning[k] for k in hinged]
            middle = [next_joint[k] for k in hinged]
            end = [pose.children[j][0] for j in middle]
            swung = turned[:, hinged]
            upper = (swung @ directions[middle][..., None])[..., 0]
            at = placed[:, above] + upper * lengths[middle]
            axis = (swung @ np.stack([pose.hinges[j] for j in above])[..., None])[..., 0]
            is_leg = np.array([pose.joint_names[j].endswith("hip") for j in above])
            angle = _twist_of_hinges(upper, unit_rows(targets[:, end] - at), axis, is_leg, fps)
            turned[:, hinged] = swung @ _twist(directions[middle], angle)
        for k, j in enumerate(turning):
            if pose.joint_names[j].endswith("ankle"):
                stands = standing(targets[:, next_joint[k]], fps)
                turned[:, k] = roll_foot(turned[:, k], directions[next_joint[k]], stands)
        world[:, turning] = turned
    local = world.copy()
    local[:, 1:] = world[:, parents[1:]].swapaxes(-1, -2) @ world[:, 1:]
    return Body(pose, offsets, local, placed)
