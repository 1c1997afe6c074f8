"""The mannequin in still pictures: its skin as flat faces, far ones first, for Pillow to draw.

    flesh = flesh_of(joints, parents, fps)       # None: these joints are drawn as a stick figure
    corners = flesh.corners(t)                   # (V, 3) metres, of frame t
    for outline, colour in flesh.faces(t, camera, colours): ...

The mesh, the colours and the light are those of mannequin.js and webgl.js.
"""
from dataclasses import dataclass

import numpy as np

from formats.mannequin import Mesh
from formats.rotations import rest_pose
from motion import unit_rows
from view import skin

COARSE = 0.75  # times as far apart as in the player, the corners of the mesh: faces are flat
LIGHT = np.array([0.36, 0.84, 0.41])  # towards the lamp, a unit vector
ACCENT = 0.68  # how bright hands, shoes and eyes are, where the body is 1


@dataclass(frozen=True, eq=False)
class Flesh:
    """The mannequin of one motion."""
    mesh: Mesh
    rest: np.ndarray  # (22, 3) metres, the joints of the T-pose that the mesh was made for
    turns: np.ndarray  # (T, 22, 3, 3) rotations relative to the room
    joints: np.ndarray  # (T, 22, 3) metres, where they are seen

    def corners(self, t):
        """Where linear blend skinning puts the corners of the mesh in frame t, (V, 3)."""
        mesh, shift = self.mesh, self.joints[t] - (self.turns[t] @ self.rest[..., None])[..., 0]
        weights = mesh.weights / 255
        turns = np.einsum("vk,vkij->vij", weights, self.turns[t][mesh.joints])
        shift = np.einsum("vk,vki->vi", weights, shift[mesh.joints])
        return np.einsum("vij,vj->vi", turns, mesh.points) + shift

    def faces(self, t, camera, colours):
        """[(x and y of four corners, (r, g, b))] of the faces that are seen in frame t, far ones
        first. camera: a _Camera of render.py; colours (22, 3): r, g, b from 0 to 255 of the part
        that each joint moves."""
        mesh, corners = self.mesh, self.corners(t)
        seen, quads = camera(corners), mesh.quads
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = seen[quads][..., :2].transpose(1, 2, 0)
        front = (cx - ax) * (dy - by) - (cy - ay) * (dx - bx) < 0  # Y points down here
        quads, accent = quads[front], mesh.accent[front]
        a, b, c, d = (corners[quads[:, k]] for k in range(4))
        normal, eye = unit_rows(np.cross(c - a, d - b)), camera.axes[2]
        sky, edge = 0.5 + 0.5 * normal[:, 1], 1 - np.maximum(normal @ eye, 0)
        lit = 0.54 + 0.18 * sky + 0.4 * np.maximum(0.25 + 0.75 * normal @ LIGHT, 0)
        shine = 255 * 0.12 * edge**3 * sky
        paint = np.einsum("vk,vki->vi", mesh.weights / 255, colours[mesh.joints])[quads].mean(1)
        paint = paint * (lit * np.where(accent, ACCENT, 1))[:, None] + shine[:, None]
        paint = np.minimum(np.rint(paint), 255).astype(int)
        far = np.argsort(-seen[quads][..., 2].mean(1), kind="stable")
        outline = seen[quads][far][..., :2].reshape(-1, 8).tolist()
        return list(zip(outline, map(tuple, paint[far].tolist())))


def flesh_of(joints, parents, fps):
    """Joints (T, J, 3) in metres -> Flesh, or None for bodies that no mannequin can show."""
    body = skin.body_of(joints, parents, fps)
    if body is None:
        return None
    offsets = skin.rounded(body.offsets)
    return Flesh(skin.flesh(offsets, COARSE), rest_pose(offsets, body.pose), skin.world_turns(body),
                 joints)


def colours_of(bones, standing, theme):
    """The colour of what each joint moves, (22, 3): of the trunk, of the side that it is on, or of
    a foot that stands. bones: as _body of render.py makes them; standing: numbers of joints."""
    colours = np.tile(np.array(theme["middle"], float), (22, 1))
    for a, b, _, _, side in bones:
        name = "contact" if b in standing else ("middle", "left", "right")[side]
        for j in (a, b):
            if j < len(colours):
                colours[j] = theme[name]
    return colours
