"""Packed joints come back exactly, mirror images take no space, and packs of version 1 are read."""
import json
import lzma
import mmap
import multiprocessing
import os
from hashlib import sha256

import numpy as np
import pytest

import motion
from formats.pack import Caption, Clip, Pack, write_pack
from formats.pack_index import MAGIC, PREFIX
from formats.pack_joints import GRID, decode_joints, encode_joints, on_grid
from test_data import put, rewritten, walking

BODY = motion.T2M
TOY = os.path.join(os.path.dirname(__file__), "..", "data", "toy", "toy.pack")


def save(path, clips, **settings):
    settings = {"name": "some", "skeleton": "t2m", "fps": 20.0, "encoding": "joints"} | settings
    write_pack(str(path), clips, **settings)
    return Pack.open(str(path))


def mirrored(joints):
    return joints[:, list(BODY.mirror)] * (-1, 1, 1)


def some_clips():
    """Clips and, after each, its mirror image."""
    for n in range(3):
        joints = walking(50 + n, n)
        yield Clip(f"{n}", [Caption(f"glides {n}", "glide/VERB")], joints=joints)
        yield Clip(f"M{n}", [Caption(f"is carried {n}")], joints=mirrored(joints))


@pytest.mark.parametrize("skeleton", [motion.T2M, motion.KIT])
@pytest.mark.parametrize("frames", [1, 2, 3, 90])
def test_joints_come_back_exactly(skeleton, frames):
    # The largest steps that are allowed, in all directions, so that differences wrap round.
    rng = np.random.default_rng(frames)
    joints = rng.uniform(-8, 8, (frames, skeleton.num_joints, 3))
    back = decode_joints(encode_joints(joints, skeleton.parents), skeleton.parents, frames)
    np.testing.assert_array_equal(back, on_grid(joints) * GRID)
    assert np.abs(back - joints).max() <= GRID / 2 + 1e-9


def test_a_mirror_image_takes_no_space_and_has_the_features_of_mirrored_joints(tmp_path):
    pack = save(tmp_path / "a.pack", some_clips())
    starts = pack._arrays["clip_start"]
    sizes = np.diff(starts)
    assert (sizes[0::2] > 500).all() and (sizes[1::2] == 0).all()
    assert pack._arrays["mirror"].tolist() == [-1, 0, -1, 2, -1, 4]
    for n in range(3):
        joints = on_grid(walking(50 + n, n)) * GRID
        for i, places in ((2 * n, joints), (2 * n + 1, mirrored(joints))):
            wanted = motion.joints_to_features(places, BODY).astype(np.float32)
            np.testing.assert_array_equal(pack.features(i), wanted)
    assert pack.captions(1) == [Caption("is carried 0")] and pack.ids[1] == "M0"
    assert pack.captions(4) == [Caption("glides 2", "glide/VERB")]
    pack.check()
    again = np.concatenate([pack.features(i) for i in range(6)])
    np.testing.assert_allclose(pack.mean, again.mean(0), atol=2e-6)


def test_what_is_no_mirror_image_is_stored(tmp_path):
    joints = walking(50)
    almost = mirrored(joints)
    almost[20, 5, 1] += 0.0006
    clips = [Clip("a", joints=joints), Clip("b", joints=almost), Clip("c", joints=joints)]
    pack = save(tmp_path / "a.pack", clips)
    assert (np.diff(pack._arrays["clip_start"]) > 500).all() and "mirror" not in pack._arrays


def test_the_image_of_a_clip_that_is_left_out_is_stored(tmp_path):
    whole, part = [Caption("glides")], [Caption("glides", "", 0.5, 1.5)]
    clips = [Clip("a", whole, joints=walking(50)),
             Clip("Ma", part, joints=mirrored(walking(50)))]
    pack = save(tmp_path / "a.pack", clips, max_length=40)
    assert pack.ids == ["A_Ma"] and pack.features(0).shape == (20, 263)


@pytest.mark.parametrize("mirror, sentence", [
    (put(1, 1), "mirror image is of no clip"), (put(0, 1), "mirror image is of no clip"),
    (put(1, -2), "mirror image is of no clip"), (put(1, 6), "mirror image is of no clip"),
    (put(1, 2), "mirror image is longer or shorter"),
    (lambda a: a[:-1], "mirror images are of another type"),
    (lambda a: a.astype("<i8"), "mirror images are of another type")])
def test_mirror_images_that_lead_astray_are_refused(tmp_path, mirror, sentence):
    pack = save(tmp_path / "a.pack", some_clips())
    with pytest.raises(ValueError, match=f"b.pack is damaged .*{sentence}"):
        Pack.open(rewritten(pack.path, tmp_path / "b.pack", mirror=mirror))


def test_text_is_unpacked_no_further_than_it_says(tmp_path):
    pack = save(tmp_path / "a.pack", [Clip("a", [Caption("a " * 10**6)], joints=walking(50))])
    assert pack.captions(0)[0].text == "a " * (10**6 - 1) + "a"
    assert (tmp_path / "a.pack").stat().st_size < 20_000
    path = rewritten(pack.path, tmp_path / "b.pack", text_start=put(1, 1000))
    with pytest.raises(ValueError, match="a caption of a cannot be read"):
        Pack.open(path).captions(0)
    for text, sentence in (({"text": "zip"}, "its text is 'zip'"), ({"text": 5}, "its text is")):
        with pytest.raises(ValueError, match=sentence):
            Pack.open(rewritten(pack.path, tmp_path / "c.pack", text))
    with pytest.raises(ValueError, match="captions lie outside"):
        Pack.open(rewritten(pack.path, tmp_path / "c.pack", text_start=put(1, 1 << 29)))


def as_version_1(pack, path):
    """The same clips as a pack of version 1: plain steps, every clip stored, plain text."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1,
                "dict_size": 1 << 16}]
    blobs = []
    for n in range(3):
        for joints in (walking(50 + n, n), mirrored(walking(50 + n, n))):
            grid = np.rint(joints / GRID).astype(np.int64)
            steps = np.diff(grid, axis=0, prepend=np.zeros_like(grid[:1])).astype("<i2")
            blobs.append(lzma.compress(steps.transpose(1, 2, 0).tobytes(), lzma.FORMAT_RAW,
                                       filters=filters))
    text = lzma.decompress(pack._bytes[pack._header["text_offset"]:pack._index.start].tobytes())
    arrays = {key: a for key, a in pack._arrays.items() if key != "mirror"}
    arrays["clip_start"] = np.cumsum([0, *map(len, blobs)]).astype("<i8")
    payload = b"".join(blobs) + text
    header = pack._header | {
        "text_offset": PREFIX.size + len(payload) - len(text),
        "payload_sha256": sha256(payload).hexdigest(),
        "arrays": [[key, a.dtype.str, list(a.shape)] for key, a in arrays.items()]}
    del header["text"]
    index = json.dumps(header).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
    offset = PREFIX.size + len(payload)
    path.write_bytes(PREFIX.pack(MAGIC, 1, len(index), offset, offset + len(index),
                                 sha256(index).digest()) + payload + index)
    return Pack.open(str(path))


def test_a_pack_of_version_1_has_the_same_numbers(tmp_path):
    new = save(tmp_path / "a.pack", some_clips())
    old = as_version_1(new, tmp_path / "b.pack")
    old.check()
    assert old._version == 1 and new._version == 2 and old.ids == new.ids
    for i in range(6):
        np.testing.assert_array_equal(old.features(i), new.features(i))
        assert old.captions(i) == new.captions(i)


def test_a_pack_of_a_newer_version_says_so(tmp_path):
    content = bytearray(save(tmp_path / "a.pack", some_clips())._bytes.tobytes())
    content[8] = 3
    (tmp_path / "toy.pack").write_bytes(content)
    with pytest.raises(ValueError, match=r"format version 3, this program reads 1 to 2 \(a newer "
                                         r"copy of it may read more\); make it again with: python"):
        Pack.open(str(tmp_path / "toy.pack"))


def test_processes_that_share_make_a_clip_once(monkeypatch):
    """What one process has made the next one reads, if its checksum is right, and else makes."""
    alone, pack, real, made = Pack.open(TOY), Pack.open(TOY), motion.joints_to_features, []

    def counted(*args, clip):
        made.append(clip)
        return real(*args, clip=clip)

    def full(*args):
        raise OSError("no memory")

    before = pack.features(7)
    pack.share()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: [pack.features(i) for i in range(5)])
    child.start()
    child.join()
    assert child.exitcode == 0
    monkeypatch.setattr(motion, "joints_to_features", counted)
    for i in range(5):
        assert np.array_equal(pack.features(i), alone.features(i))
    assert made == alone.ids[:5]  # by the one that shares nothing
    assert np.array_equal(pack.features(7), before) and len(made) == 5
    pack._seen.clear()
    pack._shared[2][pack._shared[0][0]:][:9] += 1  # as if a sum arrived before all of its rows
    assert np.array_equal(pack.features(0), alone.features(0)) and made[5:] == alone.ids[:1]
    monkeypatch.setattr(mmap, "mmap", full)
    alone.share()  # goes on for itself
    assert np.array_equal(alone.features(9), pack.features(9))
