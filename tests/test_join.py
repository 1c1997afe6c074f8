"""Several packs become one that holds what each of them held."""
import os

import numpy as np
import pytest

import motion
import prepare
from formats.pack import Caption, Clip, Pack, write_pack
from test_data import walking
from test_prepare import refused, run


def some(name, ids, seed=0, encoding="joints", **more):
    for n, id in enumerate(ids):
        joints = walking(61 + n, seed + n)
        features = motion.joints_to_features(joints, motion.T2M).astype(np.float32)
        captions = [Caption(f"{name} {id}", "go/VERB"), Caption("part", "", 1.0, 2.5)]
        split = ("train", "val", "test")[n % 3]
        yield Clip(id, captions, split, more["actions"][n % 2], features, joints)


def write(folder, name, ids, seed=0, encoding="joints", **more):
    more = {"skeleton": "t2m", "fps": 20.0, "actions": ["walk", "run"]} | more
    path = str(folder / name / f"{name}.pack")
    write_pack(path, some(name, ids, seed, **more), name=name, encoding=encoding, **more)
    return Pack.open(path)


def join(capsys, folder, *packs, name="both"):
    out = folder / "both.pack"
    code, printed, error = run(capsys, "join", name, *(pack.path for pack in packs), "--out", out)
    assert code == 0, error
    return Pack.open(str(out)), printed


def test_a_joined_pack_holds_all_items(tmp_path, capsys):
    a = write(tmp_path, "a", ["000001", "000002", "000003"])
    b = write(tmp_path, "b", ["x", "y"], 7, actions=["jump", "walk"])
    both, _ = join(capsys, tmp_path, a, b)
    assert both.ids == a.ids + b.ids and both.splits == a.splits + b.splits
    assert both.ids[1] == "A_000001"  # parts are items as before
    assert both.actions == ["walk", "run", "jump"] and both.name == "both"
    assert both.encoding == "joints" and (both.fps, both.skeleton) == (20.0, "t2m")
    for pack, first in ((a, 0), (b, len(a))):
        for i in range(len(pack)):
            np.testing.assert_array_equal(both.features(first + i), pack.features(i))
            assert both.captions(first + i) == pack.captions(i)
            assert both.action(first + i) == pack.action(i)
    train = np.concatenate([both.features(i) for i in range(len(both))
                            if both.splits[i] == "train" and both.ids[i][:2] != "A_"])
    np.testing.assert_allclose(both.mean, train.mean(0), atol=1e-5)
    both.check()
    assert len(both._arrays["clip_frames"]) == 5  # a part takes no space of its own


def test_a_small_set_may_be_there_several_times(tmp_path, capsys):
    a = write(tmp_path, "a", ["000001", "000002", "000003"])
    b = write(tmp_path, "b", ["x", "y"], 7)
    once, _ = join(capsys, tmp_path, a, b)
    out = tmp_path / "both.pack"
    code, _, error = run(capsys, "join", "both", a.path, b.path + ":3", "--out", out)
    assert code == 0, error
    both = Pack.open(str(out))
    assert both.ids == [*once.ids[:8], "x.1", "A_x.1", "x.2", "A_x.2", *once.ids[8:]]
    new = [i for i, id in enumerate(both.ids) if id not in once.ids]
    for i in new:
        first = both.ids.index(both.ids[i].split(".")[0])
        assert both.splits[i] == "train" and both.captions(i) == both.captions(first)
        np.testing.assert_array_equal(both.features(i), both.features(first))
    assert len(both._arrays["clip_frames"]) == 5  # the motion is stored once
    both.check()
    c = write(tmp_path, "c", ["x.1"], 9)
    assert "x.1; give the sets names" in refused(
        capsys, tmp_path, "join", "both", b.path + ":2", c.path)
    for count in (0, 1001, 10**9):
        assert "1 to 1000 times" in refused(
            capsys, tmp_path, "join", "both", a.path, b.path + f":{count}")


def test_nothing_that_is_read_and_no_other_file_is_written_over(tmp_path, capsys):
    a, b = write(tmp_path, "a", ["1", "2"]), write(tmp_path, "b", ["3"], 5)
    note, ships = tmp_path / "note.txt", prepare.place_of("toy")
    note.write_text("a: a man walks\n")
    kept = {path: open(path, "rb").read() for path in (a.path, note, ships)}
    away = os.path.join(tmp_path, "b", "..", "a", "a.pack")
    for words, said in (
            (("join", "a", a.path, b.path, "--out", a.path), "one of the files to read"),
            (("join", "a", a.path + ":3", b.path, "--out", away), "one of the files to read"),
            (("join", "a", "toy", b.path, "--out", ships), "one of the files to read"),
            (("join", "toy", a.path, b.path), "the set that ships"),
            (("bvh", tmp_path, "--captions", note, "--name", "toy"), "the set that ships"),
            (("bvh", tmp_path, "--captions", note, "--out", note), "no file that this program"),
            (("show", a.path, "--out", note), "no file that this program wrote")):
        code, _, error = run(capsys, *words)
        assert code == 1 and said in error and error.count("\n") == 1, (words, error)
    assert all(open(path, "rb").read() == held for path, held in kept.items())
    for _ in range(2):  # one of ours may be made anew
        assert run(capsys, "join", "c", a.path, b.path, "--out", tmp_path / "c.pack")[0] == 0
        assert run(capsys, "show", a.path, "--out", tmp_path / "c.html")[0] == 0


def test_clips_whose_names_make_one_file_name_get_two(tmp_path, capsys):
    a = write(tmp_path, "a", ["sub/1", "sub-1"])
    out = tmp_path / "out"
    assert run(capsys, "export", a.path, "sub/1", "sub-1", "--format", "npy", "--out", out)[0] == 0
    assert sorted(os.listdir(out)) == ["a-sub-1-2.npy", "a-sub-1.npy"]


def test_joints_and_features_become_features(tmp_path, capsys):
    a = write(tmp_path, "a", ["1", "2"])
    b = write(tmp_path, "b", ["3", "4"], encoding="features")
    both, _ = join(capsys, tmp_path, a, b)
    assert both.encoding == "features"
    for pack, first in ((a, 0), (b, len(a))):
        for i in range(len(pack)):
            np.testing.assert_array_equal(both.features(first + i), pack.features(i))


def test_ids_that_clash_get_the_name_of_their_set(tmp_path, capsys):
    a, b = write(tmp_path, "a", ["1", "2"]), write(tmp_path, "b", ["2", "3"], 5)
    c = write(tmp_path, "c", ["9"], 8)
    both, printed = join(capsys, tmp_path, a, b, c)
    assert both.ids == ["a_1", "a_A_1", "a_2", "a_A_2", "b_2", "b_A_2", "b_3", "b_A_3",
                        "9", "A_9"]
    assert "ids get a_ in front" in printed and "ids get c_" not in printed


def test_a_mirror_image_stays_a_reference(tmp_path, capsys):
    images = motion.mirror_joints(walking(60, 3), motion.T2M)
    clips = [Clip("1", joints=walking(60, 3)), Clip("M1", joints=images)]
    path = str(tmp_path / "m" / "m.pack")
    write_pack(path, clips, name="m", skeleton="t2m", fps=20.0, encoding="joints")
    both, _ = join(capsys, tmp_path, write(tmp_path, "a", ["7"]), Pack.open(path))
    assert both._arrays["mirror"].tolist() == [-1, -1, 1]
    np.testing.assert_array_equal(both.features(3), Pack.open(path).features(1))


def test_a_joined_pack_is_stale_when_one_of_its_sets_changes(tmp_path, capsys):
    a, b = write(tmp_path, "a", ["1"]), write(tmp_path, "b", ["2"])
    both, _ = join(capsys, tmp_path, a, b)
    os.utime(b.path, ns=(1, 1))
    with pytest.raises(ValueError, match="both.pack is stale: .*b.pack has changed .*join both"):
        Pack.open(both.path)


def test_what_does_not_fit_together_is_refused(tmp_path, capsys):
    a = write(tmp_path, "a", ["1"])
    slow = write(tmp_path, "slow", ["2"], fps=12.5)
    twin = write(tmp_path / "else", "a", ["1"])
    for other, sentence in ((slow, "the fps of the one is 20.0, that of the other 12.5"),
                            (a, "is named 2 times; name each pack once"),
                            (twin, "2 ids are there twice even with the name of their set")):
        error = refused(capsys, tmp_path, "join", "both", a.path, other.path)
        assert sentence in error, error
    assert "does not exist" in refused(capsys, tmp_path, "join", "both", a.path,
                                       str(tmp_path / "none.pack"))
    assert "plain word" in refused(capsys, tmp_path, "join", "../both", a.path, slow.path)
