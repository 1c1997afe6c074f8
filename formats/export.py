"""Motions as files that other programs open, by the ending of the file's name.

    write_file("out.glb", {"a man jumps": joints, "a man waves": others})
    write_file("out.bvh", {"a man jumps": joints}, fps=20, lock=True)
    write_npy("out.npy", joints)
"""
import os

import numpy as np

from files import atomic_write
from formats.bvh_writer import write_bvh
from formats.feet import lock_feet
from formats.glb import write_glb
from formats.rotations import fit_body
from formats.usda import write_usda
from formats.vrma import write_vrma
from motion import T2M

CHARACTERS = ("glb", "vrma", "usda")  # their feet are locked unless that is switched off
KINDS = ("bvh", "npy", *CHARACTERS)


def locked(joints, fps=T2M.fps):
    """Joints (T, J, 3) of a rigid body whose feet stand still where they stand."""
    return lock_feet(fit_body(joints, fps), fps).joints


def write_npy(path, joints):
    """joints (T, 22, 3), metres -> a float32 .npy file of that shape."""
    joints = np.asarray(joints, dtype=np.float32)
    if joints.ndim != 3 or joints.shape[2] != 3 or not np.isfinite(joints).all():
        raise ValueError(f"{path}: expected finite joints of shape (frames, joints, 3), "
                         f"found {joints.shape}")
    with atomic_write(path) as file:
        np.save(file, joints, allow_pickle=False)


def write_file(path, motions, fps=T2M.fps, lock=None, exact=False, unit="m"):
    """Motions {name: joints (T, J, 3) in metres, Y up} -> a file of one of the KINDS. A GLB holds
    them all, every other file one. `lock` holds feet that stand; None: in CHARACTERS alone.
    `exact` and `unit` are write_bvh's. ValueError for what cannot be written."""
    kind = os.path.splitext(path)[1][1:]
    lock = kind in CHARACTERS if lock is None else lock
    if kind == "glb":
        return write_glb(path, motions, fps, lock)
    (name, joints), = motions.items()
    if kind in CHARACTERS:
        return (write_vrma if kind == "vrma" else write_usda)(path, joints, fps, lock, name)
    joints = locked(joints, fps) if lock else joints
    if kind == "npy":
        return write_npy(path, joints)
    return write_bvh(path, joints, fps, exact, unit)
