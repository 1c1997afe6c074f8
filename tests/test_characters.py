"""Characters: GLB, VRM animation and USD hold our joints, by our parsers and by those of others."""
import functools
import http.server
import json
import os
import pathlib
import struct
import subprocess
import sys
import threading

import browser
import numpy as np
import pytest
import warm
from test_bvh import dancing
from test_rotations import ROOT, bandai, toy

from formats.bvh import read_bvh
from formats.bvh_writer import names_of
from formats.export import write_file, write_npy
from formats.feet import lock_feet
from formats.glb import fit_bodies, write_glb
from formats.mannequin import mannequin
from formats.rotations import T_POSES, fit_body, rest_pose
from formats.usda import write_usda
from formats.vrma import human_bones, write_vrma
from motion import (
    T2M, T2M_OFFSETS, axis_angle_to_matrix, forward_kinematics, keep_bones, quaternion_to_matrix,
    unit_rows)

TYPES = {5121: "u1", 5123: "<u2", 5126: "<f4"}
WIDTHS = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}
NODE = pathlib.Path(os.environ.get("NANOMLD_NODE", "node"))  # the folder of node_modules
BLENDER_PYTHON = os.environ.get("NANOMLD_BLENDER_PYTHON", sys.executable)
USD_PYTHON = os.environ.get("NANOMLD_USD_PYTHON", sys.executable)


class Glb:
    """A GLB file, parsed and evaluated here: no code of formats/glb.py."""

    def __init__(self, path):
        data = pathlib.Path(path).read_bytes()
        magic, version, size, length, kind = struct.unpack("<4sII I4s", data[:20])
        assert (magic, version, size, kind) == (b"glTF", 2, len(data), b"JSON")
        self.json, self.size = json.loads(data[20:20 + length]), len(data)
        length, kind = struct.unpack("<I4s", data[20 + length:28 + length])
        assert kind == b"BIN\0" and length % 4 == 0
        self.data, self.nodes = data[-length:], self.json["nodes"]
        self.names = [node["name"] for node in self.nodes]
        self.parents = {c: p for p, n in enumerate(self.nodes) for c in n.get("children", ())}

    def array(self, number):
        entry = self.json["accessors"][number]
        view, shape = self.json["bufferViews"][entry["bufferView"]], WIDTHS[entry["type"]]
        start = view["byteOffset"]
        values = np.frombuffer(self.data[start:start + view["byteLength"]],
                               TYPES[entry["componentType"]]).reshape(entry["count"], *shape)
        if "min" in entry:
            rows = values.reshape(len(values), -1)
            np.testing.assert_array_equal(np.float32(entry["min"]), rows.min(0))
            np.testing.assert_array_equal(np.float32(entry["max"]), rows.max(0))
        return values

    def globals(self, number=None, frame=0):
        """4 x 4 matrices of the joints, at rest or in a frame of an animation."""
        local = [np.eye(4) for _ in self.nodes]
        for node, matrix in zip(self.nodes, local):
            matrix[:3, 3] = node.get("translation", (0, 0, 0))
        for channel in self.json["animations"][number]["channels"] if number is not None else ():
            sampler = self.json["animations"][number]["samplers"][channel["sampler"]]
            value, target = self.array(sampler["output"])[frame], channel["target"]
            if target["path"] == "translation":
                local[target["node"]][:3, 3] = value
            else:
                turn = quaternion_to_matrix(np.roll(value.astype(float), 1))
                local[target["node"]][:3, :3] = turn
        placed = []
        for j, matrix in enumerate(local):
            placed.append(placed[self.parents[j]] @ matrix if j in self.parents else matrix)
        return np.array(placed)

    def corners(self, number=None, frame=0):
        """Where the skin puts the corners of the mesh (V, 3)."""
        skin = self.json["skins"][0]
        bind = self.array(skin["inverseBindMatrices"]).swapaxes(1, 2)
        matrices = self.globals(number, frame)[skin["joints"]] @ bind
        attributes = self.json["meshes"][0]["primitives"][0]["attributes"]
        points, joints, weights = (self.array(attributes[name]) for name in
                                   ("POSITION", "JOINTS_0", "WEIGHTS_0"))
        points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        moved = np.einsum("vkij,vj->vki", matrices[joints], points)
        return (moved * (weights / 255)[..., None]).sum(1)[:, :3]


def clips(count):
    """Two motions of one skeleton: 22 joints dance, others swing."""
    if count == 22:
        return {"a dance": dancing(), "a walk": toy()[0]}
    pose, rng = T_POSES[count], np.random.default_rng(count)
    bones = pose.directions * 0.2
    for left, right, _ in pose.forks.values():
        bones[[left, right]] += (0, -0.05, 0) if pose.joint_names[left] == "left_hip" else 0.05
    time = np.arange(30)[:, None, None] / 20
    swings = [axis_angle_to_matrix(0.4 * np.sin(time + rng.uniform(0, 6, (count, 3))))
              for _ in range(2)]
    return {f"swing {i}": forward_kinematics(turns, np.zeros((30, 3)), bones, pose.parents)
            for i, turns in enumerate(swings)}


def standing_mesh():
    body = fit_body(toy()[0])
    return body, mannequin(body.offsets, body.pose), rest_pose(body.offsets, body.pose)


# --------------------------------------------------------------------------------------------------
# The mesh

def test_the_mesh_is_closed_faces_outward_and_stands_on_the_floor():
    body, mesh, places = standing_mesh()
    corners = mesh.quads
    edges = np.stack([corners, np.roll(corners, -1, axis=1)], axis=-1).reshape(-1, 2)
    there, back = (sorted(map(tuple, way)) for way in (edges, edges[:, ::-1]))
    assert there == back, "the skin has a hole"
    a, b, c, d = (mesh.points[corners[:, k]] for k in range(4))
    volume = ((np.cross(a, b) * c).sum() + (np.cross(a, c) * d).sum()) / 6
    assert 0.05 < volume < 0.11  # cubic metres
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1)
    outward = unit_rows(np.cross(c - a, d - b))
    assert ((outward * mesh.normals[corners].mean(1)).sum(1) > 0).mean() > 0.99
    assert abs(mesh.points[:, 1].min()) < 1e-3 and 1.6 < mesh.points[:, 1].max() < 1.95


def test_the_mesh_has_a_face_thumbs_toes_and_two_materials():
    body, mesh, places = standing_mesh()
    names = body.pose.joint_names
    x, y, z = mesh.points.T
    head, wrist, ankle, ball = (places[names.index(name)] for name in
                                ("head", "left_wrist", "left_ankle", "left_foot"))
    skull = y > head[1]
    assert z[skull].max() - head[2] > 0.115 and head[2] - z[skull].min() < 0.115, "a nose"
    hand = x > wrist[0] + 0.04
    assert z[hand].max() - wrist[2] > 0.075 and wrist[2] - z[hand].min() < 0.055, "a thumb"
    foot = (y < 0.05) & (x > 0)
    assert z[foot].max() > ball[2] + 0.08 and z[foot].min() < ankle[2] - 0.04, "toes and a heel"
    moved = mesh.joints[np.arange(len(x)), mesh.weights.argmax(1)]
    assert {names[j] for j in np.unique(moved)} >= {"left_foot", "right_wrist", "head", "pelvis"}
    assert 0.05 < mesh.accent.mean() < 0.6
    assert (mesh.weights.astype(int).sum(1) == 255).all()
    blended = (mesh.weights > 0).sum(1)
    assert 0.2 < (blended > 1).mean() < 0.9, "weights are smooth at the joints, and only there"


def test_no_leg_moves_the_other_one():
    body, mesh, places = standing_mesh()
    names = body.pose.joint_names
    side = np.array([1 if n.startswith("left") else -1 if n.startswith("right") else 0
                     for n in names])[mesh.joints]
    low = mesh.points[:, 1] < places[names.index("left_knee"), 1]
    across = side * mesh.points[:, :1] < 0
    assert not (across & (mesh.weights > 0))[low].any()
    quads_low = low[mesh.quads].all(1)
    sides = np.sign(mesh.points[mesh.quads[quads_low], 0])
    assert (sides == sides[:, :1]).all(), "the feet are apart"


# --------------------------------------------------------------------------------------------------
# GLB

@pytest.mark.parametrize("count", [22, 21, 24])
def test_a_glb_holds_the_joints_of_every_motion(tmp_path, count):
    motions = clips(count)
    write_glb(tmp_path / "a.glb", motions, 30)
    file, bodies = Glb(tmp_path / "a.glb"), fit_bodies(motions, 30)
    assert [one["name"] for one in file.json["animations"]] == list(motions)
    assert tuple(file.names[:count]) == names_of(T_POSES[count])
    for number, body in enumerate(bodies.values()):
        for frame in range(0, len(body.joints), 7):
            placed = file.globals(number, frame)[:count, :3, 3]
            assert np.linalg.norm(placed - body.joints[frame], axis=-1).max() < 1e-5
    for animation, body in zip(file.json["animations"], bodies.values()):
        times = file.array(animation["samplers"][0]["input"])
        np.testing.assert_allclose(times, np.arange(len(body.joints)) / 30, atol=1e-6)
        moved = [c["target"] for c in animation["channels"] if c["target"]["path"] != "rotation"]
        assert moved == [{"node": 0, "path": "translation"}]
        for channel in animation["samplers"][1:]:
            turns = file.array(channel["output"])
            np.testing.assert_allclose(np.linalg.norm(turns, axis=1), 1, atol=1e-6)
            assert ((turns[1:] * turns[:-1]).sum(1) > 0).all(), "quaternions do not flip"


def test_at_rest_a_glb_stands_in_a_t_pose_and_the_mesh_fits(tmp_path):
    write_glb(tmp_path / "a.glb", clips(22))
    file = Glb(tmp_path / "a.glb")
    rest = dict(zip(file.names, file.globals()[:, :3, 3]))
    assert abs(min(place[1] for place in rest.values())) < 1e-6
    assert np.ptp([rest[f"Left{n}"][1] for n in ("Arm", "ForeArm", "Hand")]) < 1e-5
    for name, place in rest.items():
        twin = name.replace("Left", "?").replace("Right", "Left").replace("?", "Right")
        np.testing.assert_allclose(rest[twin], place * (-1, 1, 1), atol=1e-6)
    attributes = file.json["meshes"][0]["primitives"][0]["attributes"]
    np.testing.assert_allclose(file.corners(), file.array(attributes["POSITION"]), atol=1e-6)
    assert file.array(attributes["JOINTS_0"]).max() < 22
    for primitive in file.json["meshes"][0]["primitives"]:
        assert file.array(primitive["indices"]).max() < len(file.corners())
    assert len(file.json["materials"]) == 2


def test_the_skin_follows_the_joints(tmp_path):
    motions = {"walk": toy()[0]}
    write_glb(tmp_path / "a.glb", motions)
    file, body = Glb(tmp_path / "a.glb"), fit_bodies(motions)["walk"]
    attributes = file.json["meshes"][0]["primitives"][0]["attributes"]
    joints, weights = (file.array(attributes[n]) for n in ("JOINTS_0", "WEIGHTS_0"))
    rest, at = file.corners(), file.globals()[:22, :3, 3]
    alone = weights.max(1) == 255
    owner = joints[alone, weights[alone].argmax(1)]
    for frame in (0, 20, 40):
        moved = file.corners(0, frame)
        now = np.linalg.norm(moved[alone] - body.joints[frame][owner], axis=1)
        np.testing.assert_allclose(now, np.linalg.norm(rest[alone] - at[owner], axis=1), atol=1e-4)
        assert -0.06 < moved[:, 1].min() < 0.06, "the soles are on the floor"


def test_a_glb_is_small(tmp_path):
    motion = {"one frame": toy()[0][:1]}
    write_glb(tmp_path / "a.glb", motion)
    assert (tmp_path / "a.glb").stat().st_size < 150_000
    write_glb(tmp_path / "b.glb", {"a": toy()[0]})
    write_glb(tmp_path / "c.glb", {"a": toy()[0]})
    assert (tmp_path / "b.glb").read_bytes() == (tmp_path / "c.glb").read_bytes()


def writers(path, joints, **more):
    write_glb(path.with_suffix(".glb"), {"a": joints}, **more)
    write_vrma(path.with_suffix(".vrma"), joints, **more)
    write_usda(path.with_suffix(".usda"), joints, **more)


def test_bad_input_is_written_or_refused_in_a_sentence(tmp_path):
    joints = dancing()
    writers(tmp_path / "one", joints[:1])
    short = joints.copy()
    short[:, 18] = short[:, 16]  # no upper arm
    short[:, 10] = short[:, 7]  # no foot
    writers(tmp_path / "short", short)
    assert np.isfinite(Glb(tmp_path / "short.glb").corners(0, 5)).all()
    assert len(list(tmp_path.iterdir())) == 6
    broken = joints.copy()
    broken[3, 4] = np.nan
    for write in (lambda path, j, **more: write_glb(path, {"a": j}, **more), write_vrma,
                  write_usda):
        for wrong, reason in ((broken, "NaN or infinity"), (joints[:, :20], "found .40, 20, 3"),
                              (joints[:0], "expected joints of shape")):
            with pytest.raises(ValueError, match=f"bad.x: .*{reason}"):
                write("bad.x", wrong)
        with pytest.raises(ValueError, match="up to 1000 frames a second"):
            write("bad.x", joints, fps=0)
    for write in (lambda j: write_glb("bad.x", {"a": j}), lambda j: write_usda("bad.x", j),
                  lambda j: write_vrma("bad.x", j)):
        with pytest.raises(ValueError, match="a body of about 1.7 metres, found one that is 0 "):
            write(joints[:, :1].repeat(22, axis=1))
        with pytest.raises(ValueError, match="metres tall; give its joints in metres"):
            write(100 * joints)  # centimetres
    with pytest.raises(ValueError, match="the same skeleton, found 22 joints and 21 joints"):
        write_glb("bad.x", {"a": joints, "b": joints[:, :21]})
    with pytest.raises(ValueError, match="at least one motion"):
        write_glb("bad.x", {})
    assert not os.path.exists("bad.x")


def test_motions_straight_from_the_model(tmp_path):
    """Bones vary from frame to frame, lengths from motion to motion; padding is refused."""
    import checkpoint
    model = checkpoint.load_model(str(ROOT / "checkpoints" / "toy.pt"))
    lengths = [28, 60, 100]
    _, joints = model.generate(["a man jumps", "a man walks", "a man dances"], lengths=lengths,
                               seed=0)
    joints = joints.numpy()
    motions = {f"motion {i}": j[:n] for i, (j, n) in enumerate(zip(joints, lengths))}
    write_glb(tmp_path / "all.glb", motions, lock=False)
    file, bodies = Glb(tmp_path / "all.glb"), fit_bodies(motions, lock=False)
    for number, ((name, given), frames) in enumerate(zip(motions.items(), lengths)):
        assert len(bodies[name].joints) == frames
        assert np.linalg.norm(bodies[name].joints - given, axis=-1).mean() < 0.03
        for frame in (0, frames - 1):
            placed = file.globals(number, frame)[:22, :3, 3]
            np.testing.assert_allclose(placed, bodies[name].joints[frame], atol=1e-5)
        writers(tmp_path / "one", given)
        write_file(tmp_path / "one.bvh", {name: given})
    with pytest.raises(ValueError, match="no.x: all joints of 'b' are in one point in 72 of 100 "
                       "frames, the first of them frame 28; cut the motion off at its own length"):
        write_glb("no.x", {"a": joints[2], "b": joints[0]})
    assert not os.path.exists("no.x")


# --------------------------------------------------------------------------------------------------
# Feet

def skating(clips, fps=20):
    """Mean m/s of standing feet before and after, and how far head, arms and trunk moved."""
    before, after, elsewhere = [], [], []
    for joints in clips:
        body = fit_body(joints, fps)
        held = lock_feet(body, fps)
        for side in ((7, 10), (8, 11)):
            feet = body.joints[:, side]
            slow = np.linalg.norm(np.gradient(feet, axis=0), axis=-1) * fps < 0.25
            stand = slow & (feet[..., 1] < feet[..., 1].min(0) + 0.12)
            both = stand[1:] & stand[:-1]
            for speeds, moved in ((before, feet), (after, held.joints[:, side])):
                steps = np.linalg.norm(np.diff(moved[..., [0, 2]], axis=0), axis=-1)
                speeds.extend(fps * steps[both])
        away = np.linalg.norm(held.joints - joints, axis=-1)
        elsewhere.append(np.delete(away, (4, 5, 7, 8, 10, 11), axis=1).max())
        np.testing.assert_allclose(
            np.linalg.norm(np.diff(held.joints[:, (4, 7)], axis=1), axis=-1),
            np.linalg.norm(held.offsets[7]), atol=1e-9)
    return np.mean(before), np.mean(after), max(elsewhere)


@functools.lru_cache
def sampled():
    import checkpoint
    model = checkpoint.load_model(str(ROOT / "checkpoints" / "toy.pt"))
    texts = ["a man walks forward", "a person waves", "someone kicks", "a man jumps"] * 2
    lengths = [60] * 4 + [40, 50, 60, 70]
    _, joints = model.generate(texts, lengths=lengths, seed=1)
    bones = np.linalg.norm(T2M_OFFSETS, axis=1)  # as sample.py does
    return [keep_bones(j[:n].double().numpy(), bones, T2M.parents)
            for j, n in zip(joints, lengths)]


def check_feet(clips, most=0.03):
    before, after, elsewhere = skating(clips)
    assert after < before / 5 and elsewhere < most


def test_standing_feet_stay_in_toy_motions():
    check_feet(toy()[::3])


def test_standing_feet_stay_in_sampled_motions():
    check_feet(sampled(), most=0.04)


def test_standing_feet_stay_in_recordings(shared):
    check_feet(bandai(shared)[::4])


def test_locked_legs_turn_no_faster_than_before():
    turned = [[], []]
    for joints in [*toy()[::9], *sampled()]:
        body = fit_body(joints)
        for found, one in zip(turned, (body, lock_feet(body))):
            legs = one.quaternions()[:, [1, 2, 4, 5]]
            cosine = np.minimum((legs[1:] * legs[:-1]).sum(-1), 1)
            found.append(2 * np.degrees(np.arccos(cosine)))
    before, after = map(np.concatenate, turned)
    assert np.percentile(after, 99) < np.percentile(before, 99) + 1
    assert after.max() < before.max() + 10


@pytest.mark.parametrize("count", [21, 22, 24])
@pytest.mark.parametrize("frames", [1, 2, 3, 30])
def test_feet_of_every_skeleton(count, frames):
    for joints in clips(count).values():
        body = fit_body(joints[:frames])
        held = lock_feet(body)
        assert np.isfinite(held.joints).all() and held.joints.shape == body.joints.shape
        again = forward_kinematics(held.rotations, held.joints[:, 0], held.offsets,
                                   held.pose.parents)
        np.testing.assert_allclose(again, held.joints, atol=1e-9)


# --------------------------------------------------------------------------------------------------
# The doors: files by their endings, sample.py and prepare.py

def test_npy(tmp_path):
    write_npy(tmp_path / "a.npy", dancing())
    joints = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert joints.dtype == np.float32 and joints.shape == (40, 22, 3)
    np.testing.assert_allclose(joints, dancing(), atol=1e-6)
    with pytest.raises(ValueError, match="b.npy: expected finite joints"):
        write_npy(tmp_path / "b.npy", dancing() * np.nan)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_feet_are_locked_in_characters_and_where_it_is_asked_for(tmp_path):
    joints = sampled()[0]
    held = fit_bodies({"a": joints}, lock=True)["a"].joints
    free = fit_bodies({"a": joints}, lock=False)["a"].joints
    assert np.abs(held - free).max() > 0.005

    def read(path):
        if path.suffix == ".npy":
            return np.load(path)
        if path.suffix == ".bvh":
            clip = read_bvh(path)
            return clip.joints[:, [clip.names.index(name) for name in names_of(T_POSES[22])]]
        file = Glb(path)
        return np.array([file.globals(0, frame)[:22, :3, 3] for frame in range(len(joints))])
    for kind, default in (("glb", held), ("vrma", held), ("bvh", free), ("npy", joints)):
        for lock, wanted in ((None, default), (True, held), (False, free)):
            path = tmp_path / f"a.{kind}"
            write_file(path, {"a": joints}, lock=lock)
            wanted = joints if kind == "npy" and lock is False else wanted
            np.testing.assert_allclose(read(path), wanted, atol=1e-4)


def run(program, *words, cwd):
    return warm.run(ROOT / program, *words, cwd=cwd)


def test_sample_writes_characters(tmp_path):
    done = run("sample.py", "a man jumps", "a man waves", "--seconds", "2", "--steps", "3",
               "--device", "cpu", "--format", "glb,vrma,usda", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [os.path.basename(path) for path in done.stdout.splitlines()[:-1]]
    assert names == ["a-man-jumps-and-1-more.glb", "a-man-jumps-000.vrma", "a-man-waves-001.vrma",
                     "a-man-jumps-000.usda", "a-man-waves-001.usda"]
    file = Glb(tmp_path / "out" / names[0])
    assert [one["name"] for one in file.json["animations"]] == ["a man jumps", "a man waves"]


def test_prepare_exports_clips(tmp_path):
    done = run("prepare.py", "export", "toy", "000000", "M000000", "--format", "glb,npy,bvh",
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == [
        "toy-000000-and-1-more.glb", "toy-000000.bvh", "toy-000000.npy", "toy-M000000.bvh",
        "toy-M000000.npy"]
    joints = np.load(tmp_path / "out" / "toy-000000.npy")
    assert joints.shape == (45, 22, 3) and abs(joints[..., 1].min()) < 1e-6
    for words, reason in ((["nobody"], "has no item 'nobody'"),
                          (["000000", "--format", "glb,fbx"], "--format must be of bvh, npy, glb, "
                           "vrma, usda, found 'fbx'")):
        done = run("prepare.py", "export", "toy", *words, "--out", "no", cwd=tmp_path)
        assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "no").exists()


# --------------------------------------------------------------------------------------------------
# Other people's programs

def node_packages(*names):
    missing = [name for name in names if not (NODE / "node_modules" / name).is_dir()]
    if missing:
        pytest.skip("NOT TESTED by other programs: run `npm install " + " ".join(names) + "` in a "
                    "folder, and point NANOMLD_NODE at it")


def validated(path):
    """What the Khronos validator says of a file."""
    script = ("const r = require('gltf-validator'); const fs = require('fs');"
              "r.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))"
              ".then(report => console.log(JSON.stringify(report)))")
    done = subprocess.run(["node", "-e", script, os.path.abspath(path)], cwd=NODE,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", [22, 21, 24])
def test_the_khronos_validator_finds_nothing(tmp_path, count):
    node_packages("gltf-validator")
    write_glb(tmp_path / "a.glb", clips(count))
    write_glb(tmp_path / "b.glb", {"one frame": clips(count)[list(clips(count))[0]][:1]})
    if count == 22:
        write_glb(tmp_path / "c.glb", {f"motion {i}": j for i, j in enumerate(sampled())})
    for name in ("a.glb", "b.glb", "c.glb")[:3 if count == 22 else 2]:
        issues = validated(tmp_path / name)["issues"]
        assert not issues["messages"], issues
    write_vrma(tmp_path / "a.vrma", list(clips(count).values())[0])
    issues = validated(tmp_path / "a.vrma")["issues"]
    # it knows no VRM, and a skeleton without a mesh is nothing that it expects
    assert {m["code"] for m in issues["messages"]} <= {"UNSUPPORTED_EXTENSION", "NODE_EMPTY"}
    assert issues["numErrors"] == issues["numWarnings"] == 0


class Page:
    """three.js plays a file in Chromium: with Page(folder, file) as page."""

    def __init__(self, folder, path, mark=""):
        if not browser.find():
            pytest.skip("NOT TESTED in three.js: Chromium is absent")
        files = {"/page": ROOT / "tests" / "character.html", "/character": path}

        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path):
                path = path.split("?")[0]
                return str(files.get(path, NODE / path.lstrip("/")))

            def guess_type(self, path):
                return "text/html" if path.endswith(".html") else super().guess_type(path)

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.browser = browser.Browser(folder)
        self.url = f"http://127.0.0.1:{self.server.server_port}/page{mark}"

    def __enter__(self):
        page = self.browser.__enter__()
        page.open(self.url, 500, 620, ready="window.ready")
        return page

    def __exit__(self, *_):
        self.browser.__exit__()
        self.server.shutdown()
        self.server.server_close()


def test_three_js_has_joints_and_skin_where_we_have_them(tmp_path):
    node_packages("three")
    motions = clips(22)
    write_glb(tmp_path / "a.glb", motions)
    file, bodies = Glb(tmp_path / "a.glb"), list(fit_bodies(motions).values())
    names, pictures = json.dumps(file.names[:22]), []
    some = list(range(0, len(file.corners()), 37))
    with Page(tmp_path, tmp_path / "a.glb") as page:
        assert page.js("gltf.animations.map(a => a.name)") == list(motions)
        for number, frame in ((0, 0), (0, 23), (1, 10), (1, 44)):
            page.js(f"pose({number}, {frame / 20})")
            joints = np.array(page.js(f"joints({names})"))
            assert np.linalg.norm(joints - bodies[number].joints[frame], axis=1).max() < 0.001
            corners = np.array(page.js(f"corners({some})"))
            ours = file.corners(number, frame)[some]
            assert np.linalg.norm(corners - ours, axis=1).max() < 0.001
            page.js("draw(0.5)")
            pictures.append(page.screenshot())
    assert len(set(pictures)) == 4 and min(map(len, pictures)) > 10_000


def test_three_vrm_animation_turns_bones_as_we_do(tmp_path):
    node_packages("three", "@pixiv/three-vrm-animation", "@pixiv/three-vrm")
    joints = clips(22)["a walk"]
    write_vrma(tmp_path / "a.vrma", joints)
    body = fit_bodies({"a": joints})["a"]
    bones = human_bones(body.pose)
    with Page(tmp_path, tmp_path / "a.vrma", "#vrma") as page:
        found = page.js("""(() => { const a = gltf.userData.vrmAnimations[0];
            const list = map => [...map].map(([k, t]) => [k, [...t.values]]);
            return {rotation: list(a.humanoidTracks.rotation), seconds: a.duration,
                    translation: list(a.humanoidTracks.translation),
                    rest: a.restHipsPosition.toArray()}; })()""")
    assert found["seconds"] == pytest.approx((len(joints) - 1) / 20)
    np.testing.assert_allclose(found["rest"], body.offsets[0], atol=1e-6)
    (name, path), = found["translation"]
    assert name == "hips"
    np.testing.assert_allclose(np.reshape(path, (-1, 3)), body.joints[:, 0], atol=1e-5)
    assert {name for name, _ in found["rotation"]} == set(bones) and len(bones) == 22
    turns = np.tile(np.eye(3), (len(joints), 22, 1, 1))
    for name, values in found["rotation"]:
        turns[:, bones[name]] = quaternion_to_matrix(
            np.roll(np.reshape(values, (-1, 4)), 1, axis=1))
    placed = forward_kinematics(turns, body.joints[:, 0], body.offsets, body.pose.parents)
    assert np.linalg.norm(placed - body.joints, axis=-1).max() < 0.001


@pytest.mark.parametrize("count", [22, 21, 24])
def test_a_vrma_names_the_bones_that_vrm_requires(tmp_path, count):
    write_vrma(tmp_path / "a.vrma", list(clips(count).values())[0])
    file = Glb(tmp_path / "a.vrma")
    bones = file.json["extensions"]["VRMC_vrm_animation"]["humanoid"]["humanBones"]
    limbs = ("UpperLeg", "LowerLeg", "Foot", "UpperArm", "LowerArm", "Hand")
    required = {"hips", "spine", "head"} | {side + b for side in ("left", "right") for b in limbs}
    assert set(bones) >= required
    assert len({bone["node"] for bone in bones.values()}) == len(bones)
    assert "meshes" not in file.json


USD = """
import json, sys
from pxr import Usd, UsdGeom, UsdSkel, UsdValidation
stage = Usd.Stage.Open(sys.argv[1])
validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
errors = [e.GetMessage() for e in UsdValidation.ValidationContext(validators).Validate(stage)]
root = UsdSkel.Root(stage.GetDefaultPrim())
cache = UsdSkel.Cache()
cache.Populate(root, Usd.PrimDefaultPredicate)
query = cache.GetSkelQuery(UsdSkel.Skeleton(stage.GetPrimAtPath("/Character/Skeleton")))
mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Character/Mannequin"))
skinning = cache.GetSkinningQuery(mesh.GetPrim())
frames, corners = [], []
for t in range(int(stage.GetEndTimeCode()) + 1):
    frames.append([list(m.ExtractTranslation())
                   for m in query.ComputeJointSkelTransforms(Usd.TimeCode(t))])
    points = mesh.GetPointsAttr().Get()
    skinning.ComputeSkinnedPoints(query.ComputeSkinningTransforms(Usd.TimeCode(t)), points)
    corners.append([list(p) for p in points][::37])
print(json.dumps({"errors": errors, "names": list(query.GetJointOrder()), "frames": frames,
                  "fps": stage.GetTimeCodesPerSecond(), "corners": corners,
                  "up": UsdGeom.GetStageUpAxis(stage),
                  "metres": UsdGeom.GetStageMetersPerUnit(stage)}))
"""


@pytest.mark.parametrize("count", [22, 21, 24])
def test_pixars_usd_has_joints_and_skin_where_we_have_them(tmp_path, count):
    there = subprocess.run([USD_PYTHON, "-c", "import pxr"], capture_output=True)
    if there.returncode:
        pytest.skip("NOT TESTED by Pixar's USD: pip install usd-core, here or in an environment "
                    "whose Python NANOMLD_USD_PYTHON names")
    joints = list(clips(count).values())[0]
    write_usda(tmp_path / "a.usda", joints, 25, name='a man says "hi"\nand goes')
    done = subprocess.run([USD_PYTHON, "-c", USD, str(tmp_path / "a.usda")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, body = json.loads(done.stdout), fit_bodies({"a": joints}, 25)["a"]
    assert not found["errors"]
    assert (found["fps"], found["up"], found["metres"]) == (25, "Y", 1)
    assert tuple(name.split("/")[-1] for name in found["names"]) == names_of(body.pose)
    assert np.linalg.norm(np.array(found["frames"]) - body.joints, axis=-1).max() < 0.001
    write_glb(tmp_path / "a.glb", {"a": joints}, 25)
    ours = Glb(tmp_path / "a.glb")
    for frame in (0, 20):
        np.testing.assert_allclose(found["corners"][frame], ours.corners(0, frame)[::37], atol=1e-4)


def test_blender_has_joints_where_we_have_them_also_as_fbx(tmp_path):
    if subprocess.run([BLENDER_PYTHON, "-c", "import bpy"], capture_output=True).returncode:
        pytest.skip("NOT TESTED in Blender: pip install bpy, here or in an environment whose "
                    "Python NANOMLD_BLENDER_PYTHON names")
    for kind in ("glb", "bvh", "npy"):
        write_file(tmp_path / f"a.{kind}", {"a walk": toy()[0]}, lock=True)
    paths = [str(tmp_path / f"a.{kind}") for kind in ("glb", "bvh", "npy", "fbx")]
    done = subprocess.run([BLENDER_PYTHON, ROOT / "dev" / "blender_check.py", *paths],
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("mm off") == 3, done.stdout + done.stderr
