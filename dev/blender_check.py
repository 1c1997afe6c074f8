"""Import a GLB and a BVH of the same motion into Blender and compare the joints with ours.

    blender -b --python dev/blender_check.py -- out/a.glb out/a.bvh out/a.npy [out/a.fbx]
    python dev/blender_check.py out/a.glb out/a.bvh out/a.npy       where `pip install bpy` is done

The .npy holds the joints (T, 22, 3) of the rigid body, as --lock-feet writes them. With a fourth
file the character is exported as FBX, and that is imported and compared, too. Ends with 1 if a
joint is off by more than 1 mm. On its own it needs Blender's Python and numpy alone.
"""
import sys

import bpy
import numpy as np

NAMES = """Hips LeftUpLeg RightUpLeg Spine LeftLeg RightLeg Spine1 LeftFoot RightFoot Spine2
LeftToeBase RightToeBase Neck LeftShoulder RightShoulder Head LeftArm RightArm LeftForeArm
RightForeArm LeftHand RightHand""".split()
LIMIT = 0.001  # metres


def joints_of(frames, fps):
    """The joints (T, 22, 3), in metres with Y up, of the armature in the scene."""
    rig = next(o for o in bpy.data.objects if o.type == "ARMATURE")
    start = rig.animation_data.action.frame_range[0]
    places = np.zeros((frames, len(NAMES), 3))
    for t in range(frames):
        moment = start + t * bpy.context.scene.render.fps / fps
        bpy.context.scene.frame_set(int(moment), subframe=moment % 1)
        for j, name in enumerate(NAMES):
            x, y, z = rig.matrix_world @ rig.pose.bones[name].head
            places[t, j] = x, z, -y  # Blender's Z points up
    return places


def load(path, fps):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = round(fps)
    if path.endswith(".bvh"):
        bpy.ops.import_anim.bvh(filepath=path, axis_forward="-Z", axis_up="Y")
    elif path.endswith(".fbx"):
        bpy.ops.import_scene.fbx(filepath=path)
    else:
        bpy.ops.import_scene.gltf(filepath=path, disable_bone_shape=True)


def main(glb, bvh, npy, fbx=None, fps=20):
    ours, worst = np.load(npy), 0
    for path in filter(None, (bvh, glb, fbx)):
        load(path, fps)
        error = np.linalg.norm(joints_of(len(ours), fps) - ours, axis=-1).max()
        print(f"{path}: the farthest joint is {1000 * error:.3f} mm off", flush=True)
        worst = max(worst, error)
        if path == glb and fbx:
            bpy.ops.export_scene.fbx(filepath=fbx, add_leaf_bones=False,
                                     bake_anim_simplify_factor=0)
    return int(not worst < LIMIT)


if __name__ == "__main__":
    words = sys.argv[sys.argv.index("--") + 1:] if "--" in sys.argv else sys.argv[1:]
    sys.exit(main(*words))
