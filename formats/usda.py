"""Writes a motion as USD text (UsdSkel): the mannequin, its skeleton and an animation.

    write_usda("out.usda", joints)      # (T, 22, 3) metres, Y up; KIT's 21, SMPL's 24

Omniverse, Houdini, Maya, Unreal and usdview read it. Time codes are frames. A file holds one
motion.
"""
import json

import numpy as np

from files import atomic_write
from formats.bvh_writer import names_of
from formats.glb import MATERIALS, fit_bodies, keyframes
from formats.mannequin import mannequin
from formats.rotations import rest_pose
from motion import T2M

HEAD = """#usda 1.0
(
    customLayerData = {{ string motion = {name} }}
    defaultPrim = "Character"
    endTimeCode = {last}
    framesPerSecond = {fps:g}
    metersPerUnit = 1
    startTimeCode = 0
    timeCodesPerSecond = {fps:g}
    upAxis = "Y"
)

def SkelRoot "Character" (prepend apiSchemas = ["SkelBindingAPI"])
{{
    float3[] extent = {extent}
    rel skel:skeleton = </Character/Skeleton>

    def Skeleton "Skeleton" (prepend apiSchemas = ["SkelBindingAPI"])
    {{
        uniform token[] joints = {joints}
        uniform token[] jointNames = {names}
        uniform matrix4d[] bindTransforms = {bind}
        uniform matrix4d[] restTransforms = {rest}
        rel skel:animationSource = </Character/Skeleton/Animation>

        def SkelAnimation "Animation"
        {{
            uniform token[] joints = {joints}
            half3[] scales = {scales}
            quatf[] rotations.timeSamples = {{
{rotations}
            }}
            float3[] translations.timeSamples = {{
{translations}
            }}
        }}
    }}

    def Mesh "Mannequin" (prepend apiSchemas = ["SkelBindingAPI", "MaterialBindingAPI"])
    {{
        uniform token subdivisionScheme = "none"
        uniform token subsetFamily:materialBind:familyType = "partition"
        float3[] extent = {mesh_extent}
        point3f[] points = {points}
        normal3f[] normals = {normals} (interpolation = "vertex")
        int[] faceVertexCounts = {counts}
        int[] faceVertexIndices = {quads}
        matrix4d primvars:skel:geomBindTransform = {identity}
        int[] primvars:skel:jointIndices = {indices} (elementSize = 4; interpolation = "vertex")
        float[] primvars:skel:jointWeights = {weights} (elementSize = 4; interpolation = "vertex")
{subsets}    }}

    def Scope "Looks"
    {{
{looks}    }}
}}
"""
SUBSET = """
        def GeomSubset "{name}" (prepend apiSchemas = ["MaterialBindingAPI"])
        {{
            uniform token elementType = "face"
            uniform token familyName = "materialBind"
            int[] indices = {faces}
            rel material:binding = </Character/Looks/{name}>
        }}
"""
LOOK = """        def Material "{name}"
        {{
            token outputs:surface.connect = </Character/Looks/{name}/Surface.outputs:surface>
            def Shader "Surface"
            {{
                uniform token info:id = "UsdPreviewSurface"
                color3f inputs:diffuseColor = {colour}
                float inputs:roughness = 0.6
                token outputs:surface
            }}
        }}
"""


def text_of(values):
    """An array or a tuple as USD writes it: [(1, 2, 3), (4, 5, 6)]; floats to 1e-6."""
    if isinstance(values, np.ndarray) and values.ndim:
        return "[" + ", ".join(text_of(tuple(row) if isinstance(row, np.ndarray) else row)
                               for row in values) + "]"
    if isinstance(values, tuple):
        return "(" + ", ".join(text_of(tuple(v) if isinstance(v, np.ndarray) else v)
                               for v in values) + ")"
    return f"{values:.7g}" if isinstance(values, (float, np.floating)) else str(int(values))


def placed_at(places):
    """Places (J, 3) -> (J, 4, 4) matrices of row vectors, as USD's are."""
    matrices = np.tile(np.eye(4), (len(places), 1, 1))
    matrices[:, 3, :3] = places
    return matrices


def write_usda(path, joints, fps=T2M.fps, lock=True, name="motion"):
    """joints (T, J, 3) in metres, Y up -> a USD text file; the rest is as in `write_glb`."""
    body = fit_bodies({name: joints}, fps, lock, path)[name]
    pose, places = body.pose, rest_pose(body.offsets, body.pose)
    mesh, names, paths = mannequin(body.offsets, pose, path), names_of(pose), []
    for joint, parent in zip(names, pose.parents):
        paths.append(f"{paths[parent]}/{joint}" if parent >= 0 else joint)
    turned, hips = keyframes(body)
    moved = np.tile(body.offsets, (len(turned), 1, 1))
    moved[:, 0] = hips

    def samples(frames):
        return "\n".join(f"                {t}: {text_of(frame)}," for t, frame in
                         enumerate(frames))
    subsets, looks = "", ""
    for (look, colour), chosen in zip(MATERIALS, (~mesh.accent, mesh.accent)):
        subsets += SUBSET.format(name=look, faces=text_of(np.flatnonzero(chosen)))
        looks += LOOK.format(name=look, colour=text_of(colour))

    def extent(points, more=0.0):
        return text_of(np.array([points.min(0) - more, points.max(0) + more]))
    text = HEAD.format(
        name=json.dumps(name, ensure_ascii=False), last=len(turned) - 1, fps=fps,
        extent=extent(body.joints.reshape(-1, 3), 0.3), mesh_extent=extent(mesh.points),
        joints=json.dumps(paths), names=json.dumps(names),
        bind=text_of(placed_at(places)), rest=text_of(placed_at(body.offsets)),
        scales=text_of(np.ones((len(names), 3), int)),
        rotations=samples(np.roll(turned, 1, axis=-1)), translations=samples(moved),
        points=text_of(mesh.points), normals=text_of(mesh.normals),
        counts=text_of(np.full(len(mesh.quads), 4)), quads=text_of(mesh.quads.reshape(-1)),
        identity=text_of(tuple(np.eye(4))), indices=text_of(mesh.joints.reshape(-1)),
        weights=text_of(mesh.weights.reshape(-1) / 255), subsets=subsets, looks=looks)
    with atomic_write(path, "w") as file:
        file.write(text)
