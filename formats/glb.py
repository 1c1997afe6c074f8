"""Writes motions as a binary glTF file (GLB): a skinned mannequin and its animations.

    write_glb("out.glb", {"a man jumps": joints})     # (T, 22, 3) metres, Y up; KIT's 21, SMPL's 24
    write_glb("out.glb", {"a man jumps": joints, "a man waves": others}, fps=20)

Retargeting tools want what is in it: Mixamo's joint names, a T-pose at rest that stands on the
floor and faces +Z, bones of constant length that are the same on both sides, rotations at every
joint, and a translation at the hips alone. All motions of a file move the same body, which has the
median bones. Feet that stand are locked to the floor (see formats/feet.py).

A GLB is a header, the JSON of the scene, and the bytes of the arrays that it names.
"""
import json
import struct

import numpy as np

from files import atomic_write
from formats.bvh_writer import names_of
from formats.feet import lock_feet
from formats.mannequin import mannequin, scale_of
from formats.rotations import fit_body, measure_bones, rest_pose, t_pose_of
from motion import T2M

FLOAT, UINT16, UINT8 = 5126, 5123, 5121  # component types
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
SHAPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
MATERIALS = (("Body", (0.60, 0.64, 0.70)), ("Accent", (0.10, 0.22, 0.42)))  # linear RGB


def refuse_padding(joints, name, path):
    """ValueError for joints (T, J, 3) that are a body in some frames and one point in others: those
    which `MLD.generate` adds after the end of a motion that is shorter than others."""
    size = np.ptp(joints, axis=1).max(-1)
    empty = size < 1e-3 * size.max()
    if empty.any():
        raise ValueError(f"{path}: all joints of {name!r} are in one point in {empty.sum()} of "
                         f"{len(empty)} frames, the first of them frame {np.argmax(empty)}; cut "
                         "the motion off at its own length.")


def fit_bodies(motions, fps=T2M.fps, lock=True, path="this motion"):
    """Motions {name: joints (T, J, 3)} -> {name: Body}, all with the same bones.

    ValueError for frames that are not finite or without a body, for a body that is no person's
    height, other skeletons, or no motion at all."""
    if not motions or not 0 < fps <= 1000:
        raise ValueError(f"{path}: a character needs at least one motion and up to 1000 frames a "
                         f"second, found {len(motions)} and {fps:g}.")
    known = {name: t_pose_of(joints, path) for name, joints in motions.items()}
    for name, (_, joints) in known.items():
        refuse_padding(joints, name, path)
    poses = {id(pose): pose for pose, _ in known.values()}
    if len(poses) > 1:
        raise ValueError(f"{path}: all motions of a file need the same skeleton, found "
                         + " and ".join(f"{len(p.parents)} joints" for p in poses.values()) + ".")
    pose, = poses.values()
    offsets = measure_bones(np.concatenate([joints for _, joints in known.values()]), pose)
    scale_of(rest_pose(offsets, pose), path)  # VRMA has no mesh, and is checked all the same
    bodies = {name: fit_body(joints, fps, offsets) for name, (_, joints) in known.items()}
    return {name: lock_feet(body, fps) for name, body in bodies.items()} if lock else bodies


def keyframes(body):
    """Body -> quaternions (T, J, 4) as x, y, z, w, and the path of the hips (T, 3), metres."""
    return np.roll(body.quaternions(), -1, axis=-1), body.joints[:, 0]


class Gltf:
    """The JSON of a scene, and the bytes of its arrays."""

    def __init__(self):
        self.json = {"asset": {"version": "2.0", "generator": "nanoMLD"}, "scene": 0}
        self.data = bytearray()

    def add(self, kind, **entry):
        """Append to the list of this kind; the number of the entry."""
        self.json.setdefault(kind, []).append(entry)
        return len(self.json[kind]) - 1

    def array(self, array, dtype, kind, target=None, limits=False, **more):
        """Store an array (N, ...); the number of its accessor."""
        array = np.ascontiguousarray(array, dtype)
        self.data += bytes(-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes}
        self.data += array.tobytes()
        if target:
            view["target"] = target
        if limits:
            rows = array.reshape(len(array), -1)
            more |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        return self.add("accessors", bufferView=self.add("bufferViews", **view), count=len(array),
                        componentType=kind, type=SHAPES[array.shape[1:]], **more)

    def floats(self, array, **more):
        return self.array(array, "<f4", FLOAT, **more)

    def write(self, path):
        self.json["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.json, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        data = bytes(self.data) + bytes(-len(self.data) % 4)
        header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
        with atomic_write(path) as file:
            file.write(header + struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", len(data), b"BIN\0") + data)


def add_skeleton(gltf, body):
    """Add a node for each joint, with the body's T-pose at rest; joint j is node j."""
    children = body.pose.children
    for j, name in enumerate(names_of(body.pose)):
        below = {"children": children[j]} if children[j] else {}
        gltf.add("nodes", name=name, translation=body.offsets[j].tolist(), **below)


def add_animation(gltf, name, body, fps):
    """Add the turns of every joint, and the path of the hips, as an animation."""
    turned, path = keyframes(body)
    time = gltf.floats(np.arange(len(turned)) / fps, limits=True)
    samplers, channels = [], []
    tracks = [(0, "translation", path)]
    tracks += [(j, "rotation", turned[:, j]) for j in range(turned.shape[1])]
    for j, what, values in tracks:
        channels.append({"sampler": len(samplers), "target": {"node": j, "path": what}})
        samplers.append({"input": time, "output": gltf.floats(values), "interpolation": "LINEAR"})
    gltf.add("animations", name=name, samplers=samplers, channels=channels)


def add_mannequin(gltf, body, path):
    """Add the mesh, its materials, and the skin that ties it to the joints; its node's number."""
    mesh = mannequin(body.offsets, body.pose, path)
    bind = np.tile(np.eye(4), (len(body.offsets), 1, 1))
    bind[:, 3, :3] = -rest_pose(body.offsets, body.pose)  # matrices are stored by columns
    attributes = {
        "POSITION": gltf.floats(mesh.points, target=ARRAY_BUFFER, limits=True),
        "NORMAL": gltf.floats(mesh.normals, target=ARRAY_BUFFER),
        "JOINTS_0": gltf.array(mesh.joints, "u1", UINT8, ARRAY_BUFFER),
        "WEIGHTS_0": gltf.array(mesh.weights, "u1", UINT8, ARRAY_BUFFER, normalized=True)}
    primitives = []
    for quads, (name, colour) in zip((mesh.quads[~mesh.accent], mesh.quads[mesh.accent]),
                                     MATERIALS):
        look = {"baseColorFactor": [*colour, 1], "metallicFactor": 0, "roughnessFactor": 0.6}
        material = gltf.add("materials", name=name, pbrMetallicRoughness=look)
        corners = quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1)
        indices = gltf.array(corners, "<u2", UINT16, ELEMENT_ARRAY_BUFFER)
        primitives.append({"attributes": attributes, "indices": indices, "material": material})
    skin = gltf.add("skins", skeleton=0, joints=list(range(len(bind))),
                    inverseBindMatrices=gltf.floats(bind))
    mesh = gltf.add("meshes", name="Mannequin", primitives=primitives)
    return gltf.add("nodes", name="Mannequin", mesh=mesh, skin=skin)


def write_glb(path, motions, fps=T2M.fps, lock=True):
    """Motions {name: joints (T, J, 3) in metres, Y up} -> a GLB file with one animation for each.

    lock: feet that stand stay where they are. ValueError for what cannot be a character."""
    bodies = fit_bodies(motions, fps, lock, path)
    gltf, body = Gltf(), next(iter(bodies.values()))
    add_skeleton(gltf, body)
    gltf.add("scenes", nodes=[0, add_mannequin(gltf, body, path)])
    for name, body in bodies.items():
        add_animation(gltf, name, body, fps)
    gltf.write(path)
