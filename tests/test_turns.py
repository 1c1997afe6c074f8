"""view/turns.js and view/files.js: the page turns joints as formats/rotations.py does, and its
files hold what Python's hold."""
import base64

import numpy as np
import pytest
from test_characters import NODE, Glb, validated
from test_page import (  # fixtures, too
    READY, in_python, made_by, needs_browser, needs_node, node, opened, site, toy)

from formats.bvh import read_bvh
from formats.bvh_writer import write_bvh
from formats.rotations import T_POSES, fit_body, measure_bones, rest_pose
from motion import T2M
from view import page, render, skin

__all__ = ["opened", "site", "toy"]
POSE = T_POSES[T2M.num_joints]
FIT = """answer(INPUT.motions.map(flat => {
  const {offsets, placed, world} = fitBody(Float32Array.from(flat), INPUT.pose, 20);
  return {offsets, placed, world};
}));"""


def fitted(folder, motions):
    """What turns.js makes of motions (T, 22, 3)."""
    given = [joints.ravel().tolist() for joints in motions]
    found = node(folder, FIT, pose=page.pose_of(POSE), motions=given)
    return [{key: np.array(value) for key, value in one.items()} for one in found]


def assert_same(found, joints, degrees=0.1):
    body = fit_body(joints, 20)
    assert np.abs(found["offsets"] - body.offsets).max() < 1e-4
    assert np.abs(found["placed"] - body.joints).max() < 1e-3
    apart = np.einsum("tjab,tjab->tj", found["world"], skin.world_turns(body))  # trace of A^T B
    assert np.degrees(np.arccos(np.clip((apart - 1) / 2, -1, 1))).max() < degrees


@pytest.fixture(scope="module")
def motions(toy):
    return [in_python(toy, [text], toy.draw_lengths([text], seed=i), i, 2.5)[0][1]
            for i, text in enumerate(page.EXAMPLES)]


@needs_node
def test_motions_of_the_model_are_turned_as_in_python(motions, tmp_path):
    for found, joints in zip(fitted(tmp_path, motions), motions, strict=True):
        assert_same(found, joints)


@needs_node
def test_joints_out_of_shape_and_motions_of_a_frame_or_two(motions, tmp_path):
    """Where the trunk is stretched by centimetres, bones are not constant, limbs are straight."""
    draw = np.random.default_rng(3)
    torn = [joints + draw.normal(0, size, joints.shape) for joints in motions[:3]
            for size in (0.003, 0.03)]
    straight = rest_pose(measure_bones(motions[0], POSE), POSE)[None] + np.zeros((30, 1, 1))
    cases = [*torn, motions[2][:1], motions[2][:2], straight]
    for found, joints in zip(fitted(tmp_path, cases), cases, strict=True):
        assert_same(found, joints.astype(np.float32))


@needs_node
def test_a_collapsed_body_has_turns_that_are_numbers(tmp_path):
    found, = fitted(tmp_path, [np.zeros((5, 22, 3))])
    assert np.isfinite(found["world"]).all() and np.isfinite(found["placed"]).all()


@needs_node
def test_the_player_gets_pythons_turns(motions, toy, tmp_path):
    joints, mesh = motions[2], page.mesh_of(toy, "a person walks forward")
    header = page.header_of(toy, []) | {"mesh": mesh}
    found, = node(tmp_path, """answer([packed({joints: Float32Array.from(INPUT.joints),
      frames: INPUT.frames}, INPUT.header, "", "")]);""", header=header, frames=len(joints),
                  joints=joints.ravel().tolist())
    wanted = skin.turns_of(skin.body_of(joints, T2M.parents, 20), mesh["rest"])
    turns = [np.frombuffer(base64.b64decode(one["turns"]), "<i2").reshape(-1, 22, 3).astype(int)
             for one in (found, wanted)]
    # a turn by half a circle has two quaternions, whose w is 0 but for rounding
    apart = np.minimum(np.abs(turns[0] - turns[1]), np.abs(turns[0] + turns[1])).max(-1)
    assert apart.max() <= 40  # of 32767, which is an angle of 0.14 degrees
    assert found["sizes"] == pytest.approx(wanted["sizes"], abs=1e-3)
    packed = render.player_data([{"joints": joints, "fps": 20.0}], mesh=mesh)["motions"][0]
    assert found.keys() == packed.keys() and found["contacts"] == packed["contacts"]


@needs_browser
def test_the_page_shows_the_mannequin_and_keeps_files(site, toy, tmp_path):
    tab, address = site
    tab.open(address, ready=READY)
    made_by(tab, lambda: tab.js("studio.make('a man does a cartwheel')"))
    player = "stage.contentWindow.player"
    assert tab.js(f"{player}.isMannequin({player}.motions[0])")
    joints = np.reshape(tab.js("Array.from(studio.made[0].joints)"), (-1, 22, 3))
    for kind in ("npy", "bvh", "glb"):
        tab.js(f"kind.value = '{kind}'; studio.file = null")
        tab.click("#download")
        tab.wait("!!studio.file")
        data = tab.js("studio.file.arrayBuffer().then(b => Array.from(new Uint8Array(b)))")
        tmp_path.joinpath(f"page.{kind}").write_bytes(bytes(data))
        assert f"a-man-does-a-cartwheel.{kind}, " in tab.js("said.textContent")
    kept = np.load(tmp_path / "page.npy")
    assert kept.dtype == np.float32 and np.abs(kept - joints).max() < 1e-6
    write_bvh(str(tmp_path / "python.bvh"), joints)
    found, wanted = (read_bvh(str(tmp_path / f"{name}.bvh")) for name in ("page", "python"))
    assert found.names == wanted.names and found.fps == pytest.approx(wanted.fps)
    assert np.abs(found.offsets - wanted.offsets).max() < 1e-4
    assert np.abs(found.joints - wanted.joints).max() < 1e-3
    turns = [np.loadtxt(tmp_path / f"{name}.bvh", skiprows=1 + next(
        i for i, line in enumerate(open(tmp_path / f"{name}.bvh")) if line.startswith("Frame Time")
        )) for name in ("page", "python")]
    assert np.abs(np.diff(turns[0][:, 3:], axis=0)).max() < 180  # no angle jumps by a full turn
    assert np.abs(turns[0] - turns[1]).max() < 0.2
    file, body = Glb(tmp_path / "page.glb"), fit_body(joints, 20)
    assert file.json["animations"][0]["name"] == "a man does a cartwheel"
    for frame in range(0, len(joints), 9):
        placed = file.globals(0, frame)[:22, :3, 3]
        assert np.abs(placed - body.joints[frame]).max() < 1e-3
        assert np.abs(file.corners(0, frame) - body.joints[frame, 0]).max() < 1.5
    at_rest = file.array(file.json["meshes"][0]["primitives"][0]["attributes"]["POSITION"])
    assert np.abs(file.corners() - at_rest).max() < 1e-5 and abs(at_rest[:, 1].min()) < 0.01
    assert sum(file.json["accessors"][one["indices"]]["count"]
               for one in file.json["meshes"][0]["primitives"]) > 3000
    if (NODE / "node_modules" / "gltf-validator").is_dir():
        assert not validated(tmp_path / "page.glb")["issues"]["messages"]
    tab.js("count.value = '2'")
    made_by(tab, lambda: tab.js("studio.make('a man jumps')"))
    tab.click("#download")
    assert "holds one motion" in tab.js("said.textContent")
    assert not tab.errors
