"""The mannequin of the player: its skin follows the joints, on a graphics card and without one;
who has none stays a stick figure; every player of a report is drawn."""
import base64
import json

import numpy as np
import pytest
from test_render import data_of, motions, page, picture, walk  # noqa: F401
from test_rotations import toy, world_of

from config import Config
from formats.mannequin import mannequin
from formats.rotations import fit_body, rest_pose
from motion import KIT, SMPL_PARENTS, T2M_OFFSETS, quaternion_to_matrix
from view import skin
from view.render import write_player
from view.report import write_report

CORNERS = """(() => {
  const m = player.motions[0], c = player.colours;
  player.mannequin.bend(m, [c.middle, c.left, c.right, c.contact]);
  return Array.from(player.mannequin.corners);
})()"""


def pause(page, time):
    page.js(f"player.clock.playing = false; player.clock.time = {time}; player.redraw()")
    page.settle()


def orange(shot):
    return shot[..., 0] - shot[..., 2] > 50


def array_of(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def test_the_file_holds_one_small_mesh_and_every_turn(tmp_path):
    joints = toy()[0]
    write_player(tmp_path / "a.html", [{"joints": joints}, {"joints": toy()[3]}])
    data = data_of(tmp_path / "a.html")
    mesh, body = data["mesh"], fit_body(joints)
    size = len(json.dumps(mesh))
    assert size < 120_000
    vectors = array_of(data["motions"][0]["turns"], "<i2", len(joints), 22, 3) / 32767
    real = np.sqrt(1 - np.square(vectors).sum(-1).clip(0, 1))
    turned = np.concatenate([real[..., None], vectors], axis=-1)
    world = world_of(body)
    cosine = np.trace(world.swapaxes(-1, -2) @ quaternion_to_matrix(turned), axis1=-2, axis2=-1)
    assert cosine.min() > 1 + 2 * np.cos(np.radians(0.6))  # near half a turn, w is badly known
    points = array_of(mesh["points"], "<i2", -1, 3) * mesh["scale"]
    weights = array_of(mesh["weights"], "u1", -1, 4).astype(int)
    assert (weights.sum(1) == 255).all() and (np.diff(weights, axis=1) <= 0).all()
    ours = mannequin(np.round(body.offsets / skin.STEP) * skin.STEP, body.pose)
    np.testing.assert_allclose(points[:len(ours.points)], ours.points, atol=1e-4)
    accent = array_of(mesh["accent"], "u1", -1).astype(bool)
    quads = array_of(mesh["quads"], "<u2", -1, 4)
    np.testing.assert_array_equal(accent[quads].all(1), ours.accent)  # no quad has both
    np.testing.assert_array_equal(accent[quads].any(1), ours.accent)


def test_the_skin_is_where_linear_blend_skinning_puts_it(page, tmp_path):
    """In a browser, for our body and for one twice as large: as computed here with numpy."""
    joints = toy()[0]
    for size in (1, 2):
        write_player(tmp_path / "a.html", [{"joints": size * joints}])
        data, frame = data_of(tmp_path / "a.html"), 20
        mesh, body = data["mesh"], fit_body(size * joints)
        page.open((tmp_path / "a.html").as_uri() + "#2d")
        pause(page, frame / 20)
        found = np.reshape(page.js(CORNERS), (-1, 9))
        points = array_of(mesh["points"], "<i2", -1, 3) * mesh["scale"]
        joint = array_of(mesh["joints"], "u1", -1, 4)
        weights = array_of(mesh["weights"], "u1", -1, 4) / 255
        rest = np.array(mesh["rest"])
        thick = rest_pose(body.offsets, body.pose)[:, 1].max() / rest[:, 1].max()
        world, seen = world_of(body)[frame], size * (joints - joints[0, 0] * (1, 0, 1))[frame]
        moved = np.einsum("vkij,vkj->vki", world[joint],
                          thick * (points[:, None] - rest[joint])) + seen[joint]
        moved = (moved * weights[..., None]).sum(1)
        assert np.linalg.norm(found[:, :3] - moved, axis=1).max() < 0.01 * size  # bones stretch
        assert np.linalg.norm(found[:, :3] - moved, axis=1).mean() < 0.002 * size
        np.testing.assert_allclose(np.linalg.norm(found[:, 3:6], axis=1), 1, atol=1e-5)
        assert abs(found[:, 1].min()) < 0.06 * size, "it stands on the floor"


def test_a_longer_arm_has_a_longer_mannequin(page, tmp_path):
    joints = toy()[0].copy()
    joints[:, 20] = joints[:, 18] + 1.5 * (joints[:, 20] - joints[:, 18])
    write_player(tmp_path / "a.html", [{"joints": toy()[0]}, {"joints": joints}])
    plain, longer = (motion["sizes"] for motion in data_of(tmp_path / "a.html")["motions"])
    assert longer[1 + 18] == pytest.approx(1.25 * plain[1 + 18], rel=0.02)  # both sides share it
    assert np.delete(longer, [19, 20]) == pytest.approx(np.delete(plain, [19, 20]), rel=0.02)


@pytest.mark.parametrize("mode", ["#2d", "#gl"])
def test_m_switches_between_mannequin_and_stick_figure(page, tmp_path, mode):
    write_player(tmp_path / "a.html", motions(2))
    page.open((tmp_path / "a.html").as_uri() + mode, width=800, height=480)
    if page.js("player.fast") != (mode == "#gl"):
        pytest.skip("NOT TESTED with WebGL: this Chromium has none")
    pause(page, 0.4)
    mesh = picture(page)
    pressed = "document.querySelector('#figure').getAttribute('aria-pressed')"
    assert page.js(pressed) == "true"
    page.key("m")
    stick = picture(page)
    assert page.js(pressed) == "false" and page.js("player.view.mannequin") is False
    changed = (np.abs(stick - mesh).sum(-1) > 60)[80:400]
    assert changed.sum() > 500 and orange(stick)[80:400].sum() > 600
    # both have the same limbs in the same places
    assert (orange(mesh) & orange(stick))[80:400].sum() > 0.4 * orange(stick)[80:400].sum()
    page.click("#figure")
    assert (np.abs(picture(page) - mesh).sum(-1) > 60)[80:400].sum() < 50


def test_both_ways_of_drawing_show_the_same_mannequin(page, tmp_path):
    write_player(tmp_path / "a.html", motions(1))
    shots = []
    for mode in ("#2d", "#gl"):
        page.open((tmp_path / "a.html").as_uri() + mode, width=640, height=640)
        if page.js("player.fast") != (mode == "#gl"):
            pytest.skip("NOT TESTED with WebGL: this Chromium has none")
        pause(page, 0.4)
        shots.append(picture(page)[60:520])
    for limbs in (orange, lambda shot: shot[..., 2] - shot[..., 0] > 60):
        one, other = map(limbs, shots)
        assert one.sum() > 2000 and (one ^ other).sum() < 0.06 * (one | other).sum()
    limbs = orange(shots[0]) & orange(shots[1])
    assert np.abs(shots[0] - shots[1])[limbs].mean() < 6  # and the same light


def test_bodies_without_a_mannequin_are_stick_figures(page, tmp_path):
    smpl = np.concatenate([T2M_OFFSETS, T2M_OFFSETS[20:]])
    others = [walk(30, KIT.parents, KIT.offsets_dir * 0.2), walk(30, SMPL_PARENTS, smpl)]
    point = np.zeros((5, 22, 3))
    tree = {"joints": walk(30), "parents": [-1] + [0] * 21}
    write_player(tmp_path / "a.html", [{"joints": j} for j in (*others, point)] + [tree])
    data = data_of(tmp_path / "a.html")
    assert data["mesh"] is None and not any("turns" in motion for motion in data["motions"])
    page.open((tmp_path / "a.html").as_uri() + "#2d")
    assert page.js("getComputedStyle(document.querySelector('#figure')).display") == "none"
    page.key("m")
    write_player(tmp_path / "a.html", [{"joints": j} for j in (*others, walk(30))])
    found = ["turns" in motion for motion in data_of(tmp_path / "a.html")["motions"]]
    assert found == [False, False, True]
    for mode in ("#2d", "#gl"):
        page.open((tmp_path / "a.html").as_uri() + mode)
        pause(page, 0.5)
        assert page.js("player.motions.map(m => player.isMannequin(m))") == found


def test_a_player_can_be_given_other_people(page, tmp_path):
    """player.show, for pages that make motions: arrays work as well as base64."""
    write_player(tmp_path / "a.html", motions(2))
    write_player(tmp_path / "b.html", motions(3, frames=40))
    data = data_of(tmp_path / "b.html")["motions"]
    flat = np.frombuffer(base64.b64decode(data[2]["positions"]), "<i2") * data[2]["scale"]
    data[2] |= {"positions": flat.tolist(), "scale": 1}
    for mode in ("#2d", "#gl"):
        page.open((tmp_path / "a.html").as_uri() + mode)
        page.js(f"""(() => {{ const data = {json.dumps(data)};
            data[2].positions = Float32Array.from(data[2].positions);
            player.seek(1); player.show(data); }})()""")
        assert page.js("document.querySelectorAll('.cell').length") == 3
        assert page.js("document.querySelector('#scrub').max") == "1.95"
        pause(page, 0.5)
        assert page.js("document.querySelector('#frame').textContent") == "frame 11 of 40"
        shot = picture(page)
        for k in range(3):
            assert orange(shot[80:600, k * 426:(k + 1) * 426]).sum() > 300


def test_every_player_of_a_report_is_drawn_when_it_comes_into_view(page, tmp_path):
    """A browser draws no frame that lies outside the window, so that a picture of the whole page
    may show an empty one; scrolled to, it is drawn."""
    log = [{"stage": stage, "step": 10, "loss": 1.0} for stage in ("vae", "diffusion")]
    for entry in log:
        write_player(tmp_path / f"{entry['stage']}-10.html", motions(4))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    write_report(tmp_path / "report.html", tmp_path / "log.jsonl", Config())
    page.open((tmp_path / "report.html").as_uri(), ready="true")
    frames = "document.querySelectorAll('iframe')"
    assert page.js(frames + ".length") == 2
    for k in (1, 0, 1):
        page.js(f"{frames}[{k}].scrollIntoView({{block: 'center'}})")
        top, bottom = page.js(f"(r => [r.top, r.bottom])({frames}[{k}].getBoundingClientRect())")
        seen = (orange(picture(page)[max(int(top), 0):int(bottom)]).sum() for _ in range(40))
        assert any(limbs > 1500 for limbs in seen), f"player {k} stays empty"
