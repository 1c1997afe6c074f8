"""What view/mannequin.js reads: the mannequin's mesh, and how a motion turns its joints.

    body = body_of(joints, parents, fps)       # None: these joints are drawn as a stick figure
    mesh = mesh_of(body.offsets, coarse=1.3)   # once a page
    turns_of(body, mesh["rest"])               # for each motion
"""
import base64
from functools import lru_cache

import numpy as np

from formats.mannequin import mannequin
from formats.rotations import T_POSES, fit_body, rest_pose
from motion import T2M, matrix_to_quaternion

STEP = 0.005  # metres; bodies whose bones differ by less share a mesh
TALL = 0.2, 5.0  # metres from the floor to the head, of a body that a mannequin can show


def encode(array, dtype):
    """Numbers -> the base64 of their bytes in C order."""
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def body_of(joints, parents, fps):
    """Joints (T, J, 3) in metres -> a Body whose rotations the mannequin can follow, or None: only
    HumanML3D's 22 joints have one, and nobody who is a point or a tower."""
    if tuple(parents) != T2M.parents:
        return None
    body = fit_body(joints, fps)
    places = rest_pose(body.offsets, body.pose)
    return body if TALL[0] < places[:, 1].max() < TALL[1] else None


def _steps(offsets):
    return tuple(np.rint(offsets.ravel() / STEP).astype(int).tolist())


def rounded(offsets):
    """Bones at rest (22, 3) -> those of the mesh that shows them."""
    return np.reshape(_steps(offsets), (-1, 3)) * STEP


@lru_cache(maxsize=8)
def _flesh(steps, coarse):
    return mannequin(np.reshape(steps, (-1, 3)) * STEP, T_POSES[T2M.num_joints], coarse=coarse)


def flesh(offsets, coarse=1):
    """Bones at rest (22, 3) -> a Mesh of formats/mannequin.py, its points `coarse` times as far
    apart."""
    return _flesh(_steps(offsets), coarse)


def mesh_of(offsets, coarse=1):
    """Bones at rest (22, 3) -> the mesh as JSON; its points are `coarse` times as far apart."""
    return _mesh(_steps(offsets), coarse)


@lru_cache(maxsize=8)
def _mesh(steps, coarse):
    offsets, pose = np.reshape(steps, (-1, 3)) * STEP, T_POSES[T2M.num_joints]
    mesh = _flesh(steps, coarse)
    # Corners on the border of the two materials are there twice, so that the border is sharp.
    both = np.intersect1d(mesh.quads[mesh.accent], mesh.quads[~mesh.accent])
    twin = np.arange(len(mesh.points))
    twin[both] = len(twin) + np.arange(len(both))
    rows = np.concatenate([np.arange(len(mesh.points)), both])
    quads, accent = mesh.quads.copy(), np.zeros(len(rows), bool)
    quads[mesh.accent] = twin[quads[mesh.accent]]
    accent[quads[mesh.accent]] = True
    scale = float(np.abs(mesh.points).max()) / 32767
    order = np.argsort(-mesh.weights.astype(int), axis=1, kind="stable")
    joints, weights = (np.take_along_axis(a, order, 1) for a in (mesh.joints, mesh.weights))
    return {"points": encode(np.rint(mesh.points[rows] / scale), "<i2"), "scale": scale,
            "normals": encode(np.rint(127 * mesh.normals[rows]), "i1"),
            "joints": encode(joints[rows], "u1"), "weights": encode(weights[rows], "u1"),
            "quads": encode(quads, "<u2"), "accent": encode(accent, "u1"),
            "rest": np.round(rest_pose(offsets, pose), 4).tolist(), "parents": list(T2M.parents)}


def world_turns(body):
    """Body -> how its joints are turned relative to the room, (T, J, 3, 3)."""
    world = body.rotations.copy()
    for level in body.pose.levels[1:]:
        world[:, level] = world[:, [body.pose.parents[j] for j in level]] @ world[:, level]
    return world


def turns_of(body, rest):
    """Body, and the joints (22, 3) of the mesh at rest -> a motion's `turns` and `sizes`."""
    turned = matrix_to_quaternion(world_turns(body))
    turned *= np.where(turned[..., :1] < 0, -1, 1)
    rest, own = np.array(rest), rest_pose(body.offsets, body.pose)
    thick = own[:, 1].max() / rest[:, 1].max()
    sizes = [thick]
    for j, bones in enumerate(body.pose.children):
        long = [np.linalg.norm(places[bones[0]] - places[j]) for places in (own, rest)
                ] if len(bones) == 1 else (thick, 1)
        sizes.append(long[0] / max(long[1], 1e-6))
    return {"turns": encode(np.rint(32767 * turned[..., 1:]), "<i2"),
            "sizes": np.round(sizes, 4).tolist()}
