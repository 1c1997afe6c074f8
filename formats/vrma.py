"""Writes a motion as a VRM animation 1.0 (VRMA), which any VRM avatar plays.

    write_vrma("out.vrma", joints)      # (T, 22, 3) metres, Y up; KIT's 21, SMPL's 24

It is a GLB of the skeleton alone, with the extension VRMC_vrm_animation, which says which node is
which bone of a human. As that asks for: a T-pose at rest that faces +Z, rotations, and a
translation at the hips alone. A file holds one motion.
"""
from formats.glb import Gltf, add_animation, add_skeleton, fit_bodies
from motion import T2M

BONES = {
    "pelvis": "hips", "spine1": "spine", "spine2": "chest", "spine3": "upperChest",
    "belly": "spine", "thorax": "chest", "neck": "neck", "head": "head", "hip": "UpperLeg",
    "knee": "LowerLeg", "ankle": "Foot", "foot": "Toes", "midfoot": "Toes", "collar": "Shoulder",
    "shoulder": "UpperArm", "elbow": "LowerArm", "wrist": "Hand"}  # VRM has no other joint of ours


def human_bones(pose):
    """{VRM's name of a bone: number of the joint} for a TPose."""
    parts = [name.rpartition("_") for name in pose.joint_names]
    return {side + BONES[part]: j for j, (side, _, part) in enumerate(parts) if part in BONES}


def write_vrma(path, joints, fps=T2M.fps, lock=True, name="motion"):
    """joints (T, J, 3) in metres, Y up -> a VRMA file; the rest is as in `write_glb`."""
    body = fit_bodies({name: joints}, fps, lock, path)[name]
    gltf = Gltf()
    add_skeleton(gltf, body)
    gltf.add("scenes", nodes=[0])
    add_animation(gltf, name, body, fps)
    bones = {bone: {"node": j} for bone, j in human_bones(body.pose).items()}
    gltf.json["extensionsUsed"] = ["VRMC_vrm_animation"]
    gltf.json["extensions"] = {
        "VRMC_vrm_animation": {"specVersion": "1.0", "humanoid": {"humanBones": bones}}}
    gltf.write(path)
