"""The body that a character file shows: a mannequin, made from a T-pose by the code below.

    mesh = mannequin(offsets, pose)     # the bones of a Body of formats/rotations.py
    mesh.points, mesh.normals           # (V, 3) metres and unit vectors, of the T-pose
    mesh.joints, mesh.weights           # (V, 4) joint numbers, and how much each moves the point
    mesh.quads, mesh.accent             # (Q, 4) corners seen counterclockwise; (Q,) second material

The flesh is a set of round cones. Where two meet they melt into each other: their distances are
joined by a smooth minimum, and the skin is where that is zero. It is found on a grid by surface
nets: one point in each cell that the skin passes through, one quad for each edge it cuts.
"""
from dataclasses import dataclass
from functools import partial

import numpy as np

from formats.rotations import X, Y, Z, rest_pose
from motion import unit_rows

RADIUS = {  # metres, how thick the body is at a joint, by the last word of the joint's name
    "pelvis": 0.098, "spine1": 0.1, "spine2": 0.105, "spine3": 0.105, "belly": 0.1, "thorax": 0.11,
    "neck": 0.055, "head": 0.05, "collar": 0.075, "shoulder": 0.06, "elbow": 0.044, "wrist": 0.033,
    "hand": 0.034, "hip": 0.088, "knee": 0.058, "ankle": 0.04, "midfoot": 0.04, "foot": 0.034,
    "toe": 0.03}
HEIGHT = 1.5  # metres from floor to head joint of the body that has these radii
CELL, FINE = 0.032, 0.015  # metres; the grid is fine at hands, feet and face
SLOT = 0.004  # metres from the middle to the inner side of a leg that would reach the other
MELT = 0.02  # metres within which two parts melt into each other
BLEND = 0.035  # metres within which the skin near a joint is moved by both sides


@dataclass(frozen=True, eq=False)
class Mesh:
    """A skin in a T-pose; the top of this file says what the arrays are."""
    points: np.ndarray
    normals: np.ndarray
    joints: np.ndarray  # uint8
    weights: np.ndarray  # uint8; the four of a point add up to 255
    quads: np.ndarray
    accent: np.ndarray


def parts_of(offsets, pose, scale):
    """The round cones (joint that moves it, from (3,), to (3,), radius at each), in metres."""
    places, names, parts = rest_pose(offsets, pose), pose.joint_names, []

    def add(j, start, end, *radii):
        parts.append((j, start, end, *(scale * r for r in radii)))

    def at(j, x, y, z):
        side = -1 if names[j].startswith("right") else 1
        return places[j] + scale * np.array([side * x, y, z])

    for j, name in enumerate(names):
        part, parent = name.split("_")[-1], pose.parents[j]
        before = names[parent].split("_")[-1] if parent >= 0 else ""
        thick = RADIUS[part]
        if part in ("spine1", "spine2", "spine3", "belly", "thorax"):  # broader than deep
            for side in (-1, 1):
                wide = side * scale * (0.05 if part in ("spine3", "thorax") else 0.035) * X
                add(parent, places[parent] + wide, places[j] + wide, RADIUS[before], thick * 0.95)
        elif part in ("hip", "collar", "neck") or before == "neck":
            add(parent, places[parent], places[j], 0.8 * RADIUS[before], 0.9 * thick)
        elif part in ("knee", "shoulder", "elbow", "wrist", "ankle"):
            add(parent, places[parent], places[j], RADIUS[before], thick)
        if part == "knee":
            add(j, at(j, 0, -0.06, -0.018), at(j, 0, -0.2, -0.012), 0.05, 0.046)  # the calf
        elif part == "pelvis":
            for side in (-0.05, 0.05):
                add(j, at(j, side, 0, -0.01), at(j, side, -0.06, -0.025), 0.095, 0.095)
        elif part in ("spine3", "thorax"):
            for side in (-0.065, 0.065):
                add(j, at(j, side, 0, 0), at(j, side * 1.3, 0.1, 0), 0.1, 0.085)
        elif part == "head":
            add(j, at(j, 0, -0.01, -0.015), at(j, 0, 0.1, -0.01), 0.065, 0.092)  # the skull
            add(j, at(j, 0, -0.035, 0.045), at(j, 0, 0.07, 0.03), 0.034, 0.066)  # jaw and brow
            add(j, at(j, 0, 0.05, 0.088), at(j, 0, 0.014, 0.1), 0.012, 0.018)  # the nose
        elif part == "wrist":
            for z, length in ((-0.024, 0.15), (0, 0.17), (0.024, 0.16)):
                add(j, at(j, 0, 0, z / 2), at(j, 0.08, 0, z), 0.024, 0.019)
                add(j, at(j, 0.08, 0, z), at(j, length, -0.004, z), 0.018, 0.012)  # fingers
            add(j, at(j, 0.02, 0, 0.018), at(j, 0.055, -0.006, 0.058), 0.018, 0.015)  # the thumb
            add(j, at(j, 0.055, -0.006, 0.058), at(j, 0.095, -0.008, 0.078), 0.015, 0.012)
        elif part in ("foot", "midfoot"):
            ankle, ball = places[parent], places[j]
            heel = (ankle - 0.035 * scale * Z) * (1, 0, 1) + 0.034 * scale * Y
            side = -1 if names[j].startswith("right") else 1
            add(parent, ankle, heel, 0.04, 0.036)
            for x, length, r in ((-0.021, 0.075, 0.023), (0.008, 0.068, 0.019),
                                 (0.033, 0.052, 0.018)):
                start = ball * (1, 0, 1) + side * x * scale * X + 0.026 * scale * Y
                add(parent, ankle + 0.3 * side * x * scale * X, start, 0.034, 0.027)
                add(parent, heel, start, 0.033, 0.027)
                add(j, start, start + scale * (length * Z - 0.006 * Y), 0.027, r)  # toes
    return parts


def distance(points, part):
    """Points (..., 3) -> signed distances (...) in metres to a round cone."""
    _, a, b, first, last = part
    along = b - a
    share = np.clip((points - a) @ along / max(along @ along, 1e-12), 0, 1)
    away = np.linalg.norm(points - a - share[..., None] * along, axis=-1)
    return away - first - share * (last - first)


def skin_distance(points, parts, crotch, scale):
    """Points (N, 3) -> (N,) metres outside the skin, negative within. Soles are flat, at Y 0, and
    below the height `crotch` a slot keeps the legs apart."""
    sharp, total = 4 / (MELT * scale), np.full(len(points), 1e-12)
    x, y, z = np.ascontiguousarray(points.T)
    for part in parts:
        _, a, b, *radii = part
        reach = np.abs(a - b) / 2 + max(radii) + 2 * MELT * scale
        low, high = (a + b) / 2 - reach, (a + b) / 2 + reach
        near = np.flatnonzero((x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
                              & (z > low[2]) & (z < high[2]))
        total[near] += np.exp(-sharp * distance(points[near], part))
    slot = np.where(points[:, 1] < crotch, SLOT * scale - np.abs(points[:, 0]), -scale)
    return np.maximum(np.maximum(-np.log(total) / sharp, slot), -points[:, 1])


def skin_and_normals(points, skin, scale):
    """(V,) the skin's distance, a function of points, at points (V, 3), and (V, 3) its unit
    normals, by central differences. All of it is one call of that function."""
    step = 0.002 * scale * np.array([0 * X, X, Y, Z, -X, -Y, -Z])
    here, *around = skin((points + step[:, None]).reshape(-1, 3)).reshape(len(step), -1)
    return here, unit_rows(np.stack(around[:3], axis=-1) - np.stack(around[3:], axis=-1))


def grid_line(low, high, fine, scale, coarse):
    """Places from low to high, FINE apart where `fine`, a list of (from, to), says, else CELL;
    `coarse` times as far."""
    line, step = [low], 0
    while line[-1] < high:
        near = any(a <= line[-1] < b for a, b in fine)
        step = scale * coarse * (FINE if near else CELL)
        line.append(line[-1] + step)
    return np.array(line)


def surface_net(values, axes):
    """Distances on a grid (A, B, C) with lines `axes` -> points (V, 3) near where they are zero,
    quads (Q, 4) that are counterclockwise from outside. Nothing may be inside at the border."""
    inside = values < 0
    corners = [(slice(i, i - 1 or None), slice(j, j - 1 or None), slice(k, k - 1 or None))
               for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    count = sum(inside[c].astype(int) for c in corners)
    active = (count > 0) & (count < 8)
    index = np.full(active.shape, -1)
    index[active] = np.arange(active.sum())
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    weights = [1 / (np.abs(values[c][active]) + 1e-3) for c in corners]
    points = sum(w[:, None] * grid[c][active] for w, c in zip(weights, corners))
    points /= sum(weights)[:, None]
    quads = []
    for axis in range(3):
        order = [(axis + i) % 3 for i in range(3)]
        turned, cells = inside.transpose(order), index.transpose(order)
        i, j, k = np.nonzero(turned[:-1] != turned[1:])
        around = [cells[i, j - 1, k - 1], cells[i, j, k - 1], cells[i, j, k], cells[i, j - 1, k]]
        quad = np.stack(around, axis=-1)
        quads.append(np.where(turned[i, j, k][:, None], quad, quad[:, ::-1]))
    return points, np.concatenate(quads)


def skin_weights(points, parts, crotch, pose, scale):
    """Points (V, 3) -> the four joints that move each, and weights of which the sum is 255."""
    moved_by = np.array([part[0] for part in parts])
    far = np.stack([distance(points, part) for part in parts], axis=-1)
    joints = np.unique(moved_by)
    near = np.stack([far[:, moved_by == j].min(1) for j in joints], axis=-1)
    for k, name in enumerate(pose.joint_names[j] for j in joints):  # no leg moves the other one
        if name.startswith(("left", "right")):
            across = points[:, 0] * (-1 if name.startswith("right") else 1) < 0
            near[across & (points[:, 1] < crotch), k] = np.inf
    weights = np.clip(1 - (near - near.min(1, keepdims=True)) / (BLEND * scale), 0, 1) ** 2
    best = np.argsort(-weights, axis=1, kind="stable")[:, :4]
    weights = np.take_along_axis(weights, best, axis=1)
    weights = np.floor(255 * weights / weights.sum(1, keepdims=True)).astype(int)
    weights[:, 0] += 255 - weights.sum(1)
    return np.where(weights > 0, joints[best], 0).astype(np.uint8), weights.astype(np.uint8)


def scale_of(places, path="this motion"):
    """Joints at rest (J, 3) -> how many times as tall they are as the body that has the radii.
    ValueError for a body that is no person's, such as one in centimetres."""
    scale = places[:, 1].max() / HEIGHT
    if not 0.1 < scale < 10:
        raise ValueError(f"{path}: a character needs a body of about 1.7 metres, found one that is "
                         f"{places[:, 1].max():g} metres tall; give its joints in metres.")
    return scale


def mannequin(offsets, pose, path="this motion", coarse=1):
    """Bones at rest (J, 3) of a TPose -> Mesh, with points `coarse` times as far apart.
    ValueError for a body without height."""
    places = rest_pose(offsets, pose)
    scale = scale_of(places, path)
    parts = parts_of(offsets, pose, scale)
    edge = scale * coarse * 2 * CELL
    low = np.min([np.minimum(a, b) - max(radii) for _, a, b, *radii in parts], axis=0) - edge
    high = np.max([np.maximum(a, b) + max(radii) for _, a, b, *radii in parts], axis=0) + edge
    at = {name.split("_")[-1]: np.abs(places[j]) for j, name in enumerate(pose.joint_names)}
    wrist, head, ankle = at["wrist"][0], at["head"][1], at["ankle"][1]
    hands = [(-9e9, -wrist + 0.02 * scale), (wrist - 0.02 * scale, 9e9)]
    arm = at["wrist"][1]
    x = grid_line(0, high[0], hands, scale, coarse)
    y = grid_line(-scale * coarse * 2.5 * FINE, high[1], [
        (-9e9, ankle + 0.02 * scale), (arm - 0.03 * scale, arm + 0.03 * scale),
        (head - 0.06 * scale, head + 0.08 * scale)], scale, coarse)
    z = grid_line(low[2], high[2], [(scale * 0.05, scale * 0.14)], scale, coarse)
    x = np.concatenate([-x[:0:-1], x]) + 1e-4 * scale
    hip = places[pose.joint_names.index("left_hip"), 1]
    skin = partial(skin_distance, parts=parts, crotch=hip - 0.13 * scale, scale=scale)
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1)
    points, quads = surface_net(skin(grid.reshape(-1, 3)).reshape(grid.shape[:3]), (x, y, z))
    for _ in range(4):  # Newton's method, along the normal
        here, normals = skin_and_normals(points, skin, scale)
        points = points - here[:, None] * normals
    joints, weights = skin_weights(points, parts, hip - 0.13 * scale, pose, scale)
    right, high, front = points[quads].mean(1).T
    face = places[pose.joint_names.index("head")] + scale * np.array([0, 0.04, 0.03])
    eyes = (high > face[1]) & (high < face[1] + 0.05 * scale) & (front > face[2])
    accent = (np.abs(right) > wrist) | (high < ankle + 0.03 * scale) | eyes
    normals = skin_and_normals(points, skin, scale)[1]
    return Mesh(points, normals, joints, weights, quads, accent)
