"""A pack gives back what went in and refuses all else; batches have the right items and crops."""
import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import data
import motion
from config import Config
from conftest import ROOT
from data import Batches
from formats.pack import Caption, Clip, Pack, write_pack
from formats.pack_index import PREFIX, TYPES, fault_of
from formats.pack_joints import decode_joints, encode_joints

PARENTS = motion.T2M.parents


def clips_of(lengths, nfeats=263, dtype=np.float32, splits=("train",)):
    rng = np.random.default_rng(0)
    for n, length in enumerate(lengths):
        captions = [Caption(f"sentence {n} {k}", f"sentence/NOUN {n}/NUM") for k in range(3)]
        yield Clip(
            f"{n:06d}",
            captions,
            splits[n % len(splits)],
            features=rng.normal(size=(length, nfeats)).astype(dtype),
        )


def walking(frames, seed=0):
    """(T, 22, 3) metres: a stiff figure that glides forward and sways."""
    rest = np.zeros((22, 3))
    for j, parent in enumerate(motion.T2M.parents[1:], start=1):
        rest[j] = rest[parent] + motion.T2M_OFFSETS[j]
    t = np.arange(frames)[:, None, None]
    wave = np.random.default_rng(seed).uniform(0.5, 1, (22, 3))
    return rest + t * [0, 0, 0.05] + 0.02 * np.sin(0.3 * t * wave + wave * 6)


@pytest.fixture(scope="module")
def lengths():
    return np.random.default_rng(1).integers(24, 230, 333)


@pytest.fixture(scope="module")
def pack(tmp_path_factory, lengths):
    path = str(tmp_path_factory.mktemp("pack") / "some.pack")
    write_pack(path, clips_of(lengths), name="some", skeleton="t2m", fps=20.0)
    return Pack.open(path)


def save(path, clips, **settings):
    write_pack(str(path), clips, **{"name": "some", "skeleton": "t2m", "fps": 20.0} | settings)
    return Pack.open(str(path))


# --------------------------------------------------------------------------------------------------
# Writing and reading


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_features_come_out_as_they_went_in(tmp_path, dtype):
    clips = list(clips_of([30, 1, 77], dtype=dtype, splits=("train", "val", "test")))
    clips[1].captions = [Caption("naïve 😀\ttabbed\nlines")]
    clips[2].action, clips[2].captions = "jump", []
    pack = save(
        tmp_path / "a.pack", clips, actions=["walk", "jump"], mean=np.arange(263), std=np.ones(263)
    )
    assert (
        pack.ids == ["000000", "000001", "000002"]
        and pack.splits == ["train", "val", "test"]
        and len(pack) == 3
    )
    assert (
        pack.lengths.tolist() == [30, 1, 77]
        and pack.labels.tolist() == [-1, -1, 1]
        and pack.action(2) == "jump"
        and pack.action(0) == ""
    )
    for i, clip in enumerate(clips):
        assert pack.features(i).dtype == np.float32
        np.testing.assert_array_equal(pack.features(i), clip.features.astype(np.float32))
    assert (
        pack.captions(0) == clips[0].captions
        and pack.captions(1)[0].text == "naïve 😀 tabbed lines"
        and pack.captions(2) == []
    )
    assert (pack.fps, pack.skeleton, pack.nfeats, pack.name, pack.mean[5]) == (
        20.0,
        "t2m",
        263,
        "some",
        5,
    )
    pack.check()


def test_sub_clips_are_items_sliced_at_the_frame_rate(tmp_path):
    clip = next(clips_of([100]))
    clip.captions += [
        Caption("part", "", 1.02, 3.0),
        Caption("past the end", "", 2.0, 99.0),
        Caption("too short", "", 0.5, 0.6),
        Caption("backwards", "", 3.0, 2.0),
        Caption("before", "", -3.0, 1.0),
        Caption("never", "", 1e308, np.inf),
    ]
    pack = save(tmp_path / "a.pack", [clip], min_length=5)
    assert pack.ids == ["000000", "A_000000", "B_000000", "E_000000"] and pack.lengths.tolist() == [
        100,
        40,
        60,
        20,
    ]
    # int(1.02 x 20) .. 3 x 20
    np.testing.assert_array_equal(pack.features(1), clip.features[20:60])
    np.testing.assert_array_equal(pack.features(2), clip.features[40:])
    assert [c.text for c in pack.captions(1)] == ["part"] and len(pack.captions(0)) == 3
    clip.captions = clip.captions[3:4]
    # no caption about the whole: it is no item
    assert save(tmp_path / "b.pack", [clip]).ids == ["A_000000"]
    kit = Clip("k", [Caption("part", "", 1.0, 3.0)], features=np.ones((60, 251), np.float32))
    assert save(
        tmp_path / "c.pack", [kit], skeleton="kit", fps=12.5, mean=np.zeros(251), std=np.ones(251)
    ).lengths.tolist() == [25]


def test_joints_are_kept_to_a_quarter_millimetre_and_make_features(tmp_path):
    joints = [walking(50, seed) for seed in range(3)]
    clips = [
        Clip(f"c{n}", [Caption("glides")], joints=j, action="walk") for n, j in enumerate(joints)
    ]
    pack = save(tmp_path / "a.pack", clips, encoding="joints", actions=["walk"])
    for i, j in enumerate(joints):
        coarse = decode_joints(encode_joints(j, PARENTS), PARENTS, 50)
        assert np.abs(coarse - j).max() <= 0.00025 + 1e-9
        np.testing.assert_array_equal(
            pack.features(i), motion.joints_to_features(coarse, motion.T2M).astype(np.float32)
        )
        assert pack.features(i) is not None and pack.joints(i).shape == (49, 22, 3)
        bones = [np.linalg.norm(x[:49, 5] - x[:49, 2], axis=-1) for x in (pack.joints(i), j)]
        np.testing.assert_allclose(*bones, atol=2e-3)
    again = tmp_path / "b.pack"
    save(again, clips, encoding="joints", actions=["walk"])
    assert again.read_bytes() == (tmp_path / "a.pack").read_bytes()
    assert np.allclose(
        pack.mean, np.concatenate([pack.features(i) for i in range(3)]).mean(0), atol=2e-6
    )


def test_std_is_averaged_within_each_kind_of_number(pack):
    rows = np.concatenate([pack.features(i) for i in range(len(pack))]).astype(np.float64)
    for name, part in motion.FEATURE_SLICES(motion.T2M).items():
        np.testing.assert_allclose(
            pack.std[part], rows.std(0)[part].mean(), rtol=1e-4, err_msg=name
        )
    np.testing.assert_allclose(pack.mean, rows.mean(0), atol=1e-5)


def test_joints_of_smpl_rotations(tmp_path):
    rest = np.random.default_rng(0).normal(size=(24, 3))
    rest[0] = 0
    turn = motion.axis_angle_to_matrix(np.array([0.0, np.pi / 2, 0.0]))
    rows = np.zeros((60, 25, 6), np.float32)
    rows[:, :24] = np.eye(3)[:2].reshape(6)
    rows[:, 0] = turn[:2].reshape(6)  # rows of the matrix, as in ACTOR's files
    rows[:, 24, 2] = np.arange(60)
    pack = save(
        tmp_path / "a.pack",
        [Clip("a", action="x", features=rows.reshape(60, 150))],
        skeleton="smpl",
        actions=["x"],
        rest=rest,
    )
    np.testing.assert_allclose(
        pack.joints(0), rest @ turn.T + np.arange(60)[:, None, None] * [0, 0, 1], atol=1e-5
    )
    assert not pack.mean.any() and (pack.std == 1).all() and np.allclose(pack.rest, rest)


def test_opening_reads_the_index_only(pack):
    """One page of motion is damaged: opening does not notice (it does not read it), check does."""
    with open(pack.path, "rb") as file:
        content = bytearray(file.read())
    content[5000] ^= 1
    path = pack.path + ".damaged.pack"
    with open(path, "wb") as file:
        file.write(content)
    damaged = Pack.open(path)
    with pytest.raises(ValueError, match="does not match its checksum"):
        damaged.check()


def test_a_large_index_is_compared_with_its_checksum_when_training_starts(tmp_path, monkeypatch):
    config = Config()
    config.assets.data_root, config.data.dataset, path = (
        str(tmp_path),
        "some",
        tmp_path / "some" / "some.pack",
    )
    save(path, clips_of([50]))
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1  # in mean, behind all that says where things lie
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its index does not match"):
        Pack.open(str(path))
    monkeypatch.setattr("formats.pack.HASHED", 1000)
    for check in (Pack.open(str(path)).check, lambda: data.open_pack(config)):
        with pytest.raises(ValueError, match="its index does not match"):
            check()


def test_a_large_index_that_cannot_be_read_is_said_to_be_damaged(pack, tmp_path, monkeypatch):
    monkeypatch.setattr("formats.pack.HASHED", 10)
    with open(pack.path, "rb") as file:
        content = file.read()
    at = content.index(b'{"name"')
    for old, new in (
        (b'{"name"', b'}"name"'),
        (b'"arrays"', b'"arroys"'),
        (b'"<i8"', b'"<q!"'),
        (b'"<f4", [263]', b'"<f4", [999]'),
    ):
        (tmp_path / "a.pack").write_bytes(content[:at] + content[at:].replace(old, new, 1))
        with pytest.raises(ValueError, match="a.pack is damaged.*make it again with"):
            Pack.open(str(tmp_path / "a.pack"))


@pytest.mark.parametrize(
    "harm, sentence",
    [
        (lambda b: b[:-1], "cut off or has grown"),
        (lambda b: b[: len(b) // 2], "cut off or has grown"),
        (lambda b: b + b"x", "cut off or has grown"),
        (lambda b: b[:40], "cut off"),
        (lambda b: b"", "not a packed dataset"),
        (lambda b: b"PK\x03\x04" + b[4:], "not a packed dataset"),
        (lambda b: b[:-9] + b"!" + b[-8:], "damaged"),
        (lambda b: b[:8] + b"\x07" + b[9:], "format version 7, this program reads 1"),
        (lambda b: b[:20] + b"\xff\xff" + b[22:], "damaged"),
        (lambda b: b[:15] + b"\x07" + b[16:], "damaged"),
    ],
)
def test_a_harmed_pack_is_refused_with_what_to_run(pack, tmp_path, harm, sentence):
    with open(pack.path, "rb") as file:
        content = file.read()
    path = tmp_path / "toy.pack"
    path.write_bytes(harm(content))
    with pytest.raises(ValueError, match=sentence) as error:
        Pack.open(str(path))
    assert "python prepare.py toy" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("small") / "some.pack")
    write_pack(path, clips_of([40 + n for n in range(12)]), name="some", skeleton="t2m", fps=20.0)
    return Pack.open(path)


def rewritten(path, out, header=None, **arrays):
    """A copy of a pack whose index is changed, with the checksum that goes with it."""
    with open(path, "rb") as file:
        content = file.read()
    magic, version, _, offset, _, _ = PREFIX.unpack(content[:PREFIX.size])
    pack = Pack.open(path)
    head, all = pack._header | (header or {}), dict(pack._arrays)
    for key, change in arrays.items():
        all[key] = change(all[key].copy())
        if all[key] is None:
            del all[key]
    head["arrays"] = [[key, a.dtype.str, list(a.shape)] for key, a in all.items()]
    index = json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in all.values())
    whole, digest = offset + len(index), hashlib.sha256(index).digest()
    prefix = PREFIX.pack(magic, version, len(index), offset, whole, digest)
    out.write_bytes(prefix + content[PREFIX.size:offset] + index)
    return str(out)


def put(place, value):
    def change(array):
        array[place] = value
        return array
    return change


def test_a_rewritten_index_is_read(small, tmp_path):
    pack = small
    again = Pack.open(rewritten(pack.path, tmp_path / "a.pack", std=put(3, 2.0)))
    assert again.std[3] == 2 and again.ids == pack.ids
    again.check()


INDEX = [
    ({"name": "../../page"}, {}, "its name is '../../page', which is not a plain word"),
    ({"name": "/tmp/page"}, {}, "not a plain word"), ({"name": 5}, {}, "not a plain word"),
    ({"name": "a" * 300}, {}, "not a plain word"), ({"name": "..\\page"}, {}, "not a plain word"),
    ({"skeleton": "kit"}, {}, "mean has .* entries"),
    ({"skeleton": "cat"}, {}, "skeleton is 'cat'"), ({"skeleton": ["t2m"]}, {}, "skeleton is"),
    ({"fps": 1e-30}, {}, "1e-30 frames a second"), ({"fps": float("nan")}, {}, "nan frames"),
    ({"fps": float("inf")}, {}, "inf frames a second"), ({"fps": "20"}, {}, "20 frames a second"),
    ({"fps": True}, {}, "True frames a second"), ({"encoding": "words"}, {}, "encoding is 'words'"),
    ({"dtype": "<i4"}, {}, "its numbers are <i4, not floating-point"),
    ({"dtype": "<f8"}, {}, "not floating-point"), ({"actions": 3}, {}, "actions are not names"),
    ({"sources": 3}, {}, "its index cannot be read"), ({"sources": [3]}, {}, "sources are not"),
    ({"text_offset": -5}, {}, "its text lies outside"), ({"text_offset": 10**12}, {}, "its text"),
    ({}, {"std": put(7, 0)}, "its mean and std cannot normalise motion"),
    ({}, {"std": put(7, -1)}, "its mean and std"),
    ({}, {"std": put(7, np.nan)}, "its mean and std"),
    ({}, {"mean": put(7, np.inf)}, "its mean and std"),
    ({}, {"std": lambda a: a.astype("<i4")}, "std is missing or of another type"),
    ({}, {"frames": lambda a: a.astype("<f4")}, "frames is missing or of another type"),
    ({}, {"split": lambda a: None}, "split is missing"),
    ({}, {"ids": lambda a: None}, "ids is missing"),
    ({}, {"label": lambda a: a[:-1]}, "label has .* entries"),
    ({}, {"frames": put(5, 1000)}, "an item reaches into the next clip"),
    ({}, {"first": put(5, 3)}, "an item reaches into the next clip"),
    ({}, {"first": put(5, -3)}, "an item lies outside of every clip"),
    ({}, {"clip": put(5, -1)}, "an item lies outside of every clip"),
    ({}, {"clip": put(5, 12)}, "an item lies outside of every clip"),
    ({}, {"frames": put(5, 0)}, "an item reaches"), ({}, {"frames": put(5, -7)}, "an item reaches"),
    ({}, {"clip_start": put(5, -1)}, "its clips lie outside of one another"),
    ({}, {"clip_start": put(-1, 10**9)}, "its clips lie outside"),
    ({}, {"clip_start": put(5, 100)}, "its clips"),
    ({}, {"clip_frames": put(5, 1000)}, "its clips do not have as many frames as it says"),
    ({}, {"clip_frames": put(5, -1)}, "its clips lie outside"),
    ({}, {"text_start": put(5, -1)}, "captions lie outside"),
    ({}, {"text_start": put(-1, 10**9)}, "captions lie outside"),
    ({}, {"caption": put(5, 10**6)}, "captions lie outside"),
    ({}, {"split": put(5, 3)}, "unknown split"), ({}, {"label": put(5, 0)}, "unknown action"),
    ({}, {"label": put(5, -2)}, "unknown action"),
    ({}, {"clip_crc": lambda a: a[:-1]}, "not one checksum for every clip"),
    ({"rest": 0}, {"mean": lambda a: a[:5]}, "mean has"),
]


@pytest.mark.parametrize("header, arrays, sentence", INDEX)
def test_an_index_that_leads_astray_is_refused_when_a_pack_opens(small, tmp_path, header, arrays,
                                                                 sentence):
    path = rewritten(small.path, tmp_path / "a.pack", header, **arrays)
    with pytest.raises(ValueError, match=f"a.pack is damaged .*{sentence}.*make it again") as error:
        Pack.open(path)
    assert "\n" not in str(error.value)


def test_the_look_at_an_index_is_linear_and_fast(small):
    pack = small
    def seconds(n):
        items = {"clip": np.arange(n), "first": np.zeros(n), "frames": np.full(n, 4),
                 "split": np.zeros(n), "label": np.full(n, -1), "caption": np.arange(n + 1),
                 "clip_start": np.arange(n + 1) * 4, "clip_frames": np.full(n, 4),
                 "text_start": np.arange(n + 1) * 3}
        a = {key: array.astype(TYPES[key]) for key, array in items.items()}
        a |= {"ids": np.full(n, b"000000"), "mean": pack.mean, "std": pack.std}
        text = PREFIX.size + 4 * n * 263 * 4
        head, times = pack._header | {"text_offset": text}, []
        for _ in range(5):
            start = time.perf_counter()
            assert fault_of(head, a, text + 3 * n) is None
            times.append(time.perf_counter() - start)
        return min(times)
    assert seconds(100_000) < 25 * seconds(10_000)


def test_damaged_motion_is_found_when_a_clip_is_first_read(small, tmp_path):
    """A flipped bit by the clip's checksum; numbers that no motion has even without one."""
    pack = small
    with open(pack.path, "rb") as file:
        content = bytearray(file.read())
    at = PREFIX.size + 4 * 263 * int(pack._arrays["clip_start"][7]) + 1000
    content[at] ^= 1
    (tmp_path / "a.pack").write_bytes(content)
    damaged = Pack.open(str(tmp_path / "a.pack"))
    np.testing.assert_array_equal(damaged.features(6), pack.features(6))
    with pytest.raises(ValueError, match="clip 000007 does not match its checksum"):
        damaged.features(7)
    for number in (np.nan, np.inf, -1e30):
        content[at - at % 4:at - at % 4 + 4] = np.float32(number).tobytes()
        (tmp_path / "b.pack").write_bytes(content)
        path = rewritten(str(tmp_path / "b.pack"), tmp_path / "c.pack", clip_crc=lambda a: None)
        with pytest.raises(ValueError, match="clip 000007 holds a number that is not finite or"):
            Batches(Pack.open(path), "train", 12).batch(0, 0)


def test_a_worker_that_meets_a_damaged_clip_says_so_in_one_sentence(tmp_path):
    path = tmp_path / "a.pack"
    save(path, clips_of([50, 50]))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.pack is damaged .*clip 000000 does not") as error:
        list(Batches(Pack.open(str(path)), "train", 2).epoch(0, workers=1))
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_damaged_joints_and_captions_are_refused(tmp_path):
    clips = [Clip(f"{n}", [Caption("glides")], joints=walking(50, n)) for n in range(3)]
    pack = save(tmp_path / "a.pack", clips, encoding="joints")
    content = bytearray((tmp_path / "a.pack").read_bytes())
    start, end = (PREFIX.size + int(n) for n in pack._arrays["clip_start"][1:3])
    many = encode_joints(np.zeros((10**6, 22, 3)), PARENTS)  # 132 MB in a few hundred bytes
    assert len(many) < 70_000
    for blob in (bytes(end - start), many[:end - start], content[start:end - 40] + bytes(40)):
        harmed = content[:start] + bytes(blob).ljust(end - start, b"\0") + content[end:]
        (tmp_path / "b.pack").write_bytes(harmed)
        damaged = Pack.open(str(tmp_path / "b.pack"))
        damaged.features(0)
        with pytest.raises(ValueError, match="b.pack is damaged .*clip 1: .*make it again"):
            damaged.features(1)
    with pytest.raises(ValueError, match="not 50 frames"):
        decode_joints(many, PARENTS, 50)
    at = pack._header["text_offset"]
    for byte in (b"\xff", b"\t"):
        (tmp_path / "b.pack").write_bytes(content[:at] + byte * 4 + content[at + 4:])
        with pytest.raises(ValueError, match="a caption of 0 cannot be read"):
            Pack.open(str(tmp_path / "b.pack")).captions(0)


def test_a_missing_or_stale_pack_is_refused_with_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="python prepare.py kit DIR"):
        Pack.open(str(tmp_path / "kit.pack"))
    source = tmp_path / "Mean.npy"
    source.write_bytes(b"1")
    save(
        tmp_path / "a.pack",
        clips_of([50]),
        sources=[str(source)],
        command="python prepare.py humanml3d HERE",
    )
    source.write_bytes(b"12")
    with pytest.raises(
        ValueError, match="stale.*Mean.npy has changed.*python prepare.py humanml3d HERE"
    ):
        Pack.open(str(tmp_path / "a.pack"))
    source.unlink()  # the folder is gone: the pack is all there is, and good
    Pack.open(str(tmp_path / "a.pack"))


def changed(**values):
    clip = next(clips_of([50]))
    for key, value in values.items():
        setattr(clip, key, value)
    return clip


@pytest.mark.parametrize(
    "clip, sentence",
    [
        (
            changed(features=np.zeros((50, 251), np.float32)),
            r"clip 000000: expected features of shape \(frames, 263\)",
        ),
        (
            changed(features=np.full((50, 263), np.nan, np.float32)),
            "clip 000000: frame 0 holds a number that is not finite",
        ),
        (changed(features=np.zeros((0, 263), np.float32)), "clip 000000: expected features"),
        (changed(split="dev"), "split must be one of train, val, test"),
        (changed(action="fly"), "action 'fly' is not one of"),
        (changed(features=np.zeros((50, 263), np.float16)), "of one type"),
        (changed(id="first"), "clip first is there twice"),
    ],
)
def test_a_bad_clip_is_named_and_no_file_is_left(tmp_path, clip, sentence):
    with pytest.raises(ValueError, match=sentence):
        save(tmp_path / "a.pack", [changed(id="first"), clip])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "joints",
    [walking(30)[:, :21], np.full((30, 22, 3), np.nan), walking(30) * 1000, walking(30)[:0]],
)
def test_bad_joints_are_named_and_no_file_is_left(tmp_path, joints):
    with pytest.raises(
        ValueError, match=r"clip bad: expected finite joint positions \(frames, 22, 3\) in metres"
    ):
        save(
            tmp_path / "a.pack",
            [Clip("good", joints=walking(30)), Clip("bad", joints=joints)],
            encoding="joints",
        )
    assert os.listdir(tmp_path) == []


def test_no_clip_at_all_is_refused_and_an_old_pack_stays(tmp_path):
    save(tmp_path / "a.pack", clips_of([50]))
    with pytest.raises(ValueError, match="no clip to pack"):
        save(tmp_path / "a.pack", clips_of([50]), min_length=51)
    assert os.listdir(tmp_path) == ["a.pack"] and len(Pack.open(str(tmp_path / "a.pack"))) == 1


def test_ids_are_found_and_missing_ones_get_a_hint(pack):
    assert pack.index("000017") == 17
    with pytest.raises(ValueError, match="has no item '17'; it has 000017"):
        pack.index("17")


def test_settings_of_another_skeleton_are_refused(tmp_path):
    config = Config()
    config.assets.data_root, config.data.dataset = str(tmp_path), "some"
    save(tmp_path / "some" / "some.pack", clips_of([50]))
    assert len(data.open_pack(config)) == 1
    config.data.fps = 12.5
    with pytest.raises(
        ValueError,
        match="t2m skeleton at 20 fps, the settings say t2m at 12.5; "
        "pass --data.skeleton=t2m --data.fps=20",
    ):
        data.open_pack(config)


def test_opening_and_drawing_copies_little_of_the_index(tmp_path):
    """Numbers per clip, yes; no list of a million ids, no copy of the index."""
    pack = save(tmp_path / "a.pack", clips_of([50] * 40))
    batch = Batches(pack, "train", 8).batch(0, 0)
    assert len(pack) == 40 and not {"ids", "splits"} & set(vars(pack))
    assert not any(
        array.flags.owndata for array in (*pack._arrays.values(), pack.lengths, pack.labels)
    )
    assert (
        batch["ids"] == [pack.ids[i] for i in batch["items"]] == pack.ids_of(batch["items"].numpy())
    )


def test_a_program_that_fails_ends_with_its_workers(tmp_path):
    """Workers ignore SIGTERM, which is what multiprocessing sends them at the end."""
    save(tmp_path / "a.pack", clips_of([50] * 8))
    lines = ("import sys; from data import Batches; from formats.pack import Pack",
             f"batches = Batches(Pack.open({str(tmp_path / 'a.pack')!r}), 'train', 2)",
             "sys.held = batches.epoch(0, workers=1); next(sys.held)",  # as a traceback holds it
             "raise RuntimeError('the end')")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().endswith("RuntimeError: the end")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems leave a worker to itself")
def test_a_program_that_is_killed_takes_its_workers_along(tmp_path):
    """A worker that is busy, or waits where nobody will write again, never asks for its parent."""
    lines = ("import multiprocessing, os, signal, time; from data import begin_work",
             "def work(): begin_work(0); print(os.getpid(), flush=True); time.sleep(60)",
             "multiprocessing.get_context('fork').Process(target=work).start(); time.sleep(60)")
    program = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    worker = int(program.stdout.readline())
    program.kill()
    began = time.monotonic()
    assert program.communicate()[0] == "", "which ends when the worker does, too"
    assert time.monotonic() - began < 30, f"the worker {worker} lived on"


# --------------------------------------------------------------------------------------------------
# Batches


def test_a_batch_is_the_normalised_crop_and_zero_behind_it(pack):
    batches = Batches(pack, "train", 32, seed=3)
    starts, lengths, _ = batches.crops(2, np.arange(len(pack)))
    for batch in batches.epoch(2):
        assert (
            batch["features"].dtype == torch.float32
            and batch["lengths"].dtype == torch.int64
            and batch["actions"].dtype == torch.int64
        )
        assert (
            batch["features"].shape == (len(batch["ids"]), batch["lengths"].max(), 263)
            and batch["actions"].eq(-1).all()
        )
        for row, (i, length) in enumerate(zip(batch["items"].tolist(), batch["lengths"].tolist())):
            assert length == lengths[i] and length % 4 == 0 and batch["ids"][row] == pack.ids[i]
            want = (pack.features(i)[starts[i]:starts[i] + length] - pack.mean) / pack.std
            np.testing.assert_array_equal(batch["features"][row, :length], want)
            assert not batch["features"][row, length:].any()
            assert (
                batch["texts"][row] in [c.text for c in pack.captions(i)]
                and batch["tokens"][row] == f"sentence/NOUN {i}/NUM"
            )


def test_crops_are_those_of_t2m(pack, lengths):
    """len // 4 * 4 frames with two chances in three, one unit less otherwise; anywhere; at most
    max_frames."""
    batches = Batches(pack, "train", 32)
    plans = [batches.crops(epoch, np.arange(len(pack))) for epoch in range(40)]
    starts, crops, draws = map(np.array, zip(*plans))  # (40, N)
    whole = np.minimum(lengths, 196) // 4 * 4
    assert set(np.unique(whole - crops)) == {0, 4}
    assert abs((crops < whole).mean() - 1 / 3) < 0.01
    assert starts.min() == 0 and (starts + crops <= lengths).all()
    room = lengths - crops
    assert (starts == room)[room > 0].any() and abs(
        (starts / np.maximum(room, 1))[room > 20].mean() - 0.5
    ) < 0.05
    # caption and crop are drawn apart
    assert abs(np.corrcoef(draws.ravel(), (starts / np.maximum(room, 1)).ravel())[0, 1]) < 0.03


def test_every_item_once_an_epoch_in_another_order_each_time(pack):
    orders = []
    for by_length in (True, False):
        for epoch in (0, 1):
            batches = Batches(pack, "train", 32, by_length=by_length)
            sizes = [len(b["ids"]) for b in batches.epoch(epoch)]
            orders.append(order_of(batches, epoch))
            assert (
                sorted(orders[-1]) == list(range(333))
                and len(batches) == 11
                and set(sizes) == {30, 31}
            )
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] != order_of(Batches(pack, "train", 32, seed=1), 0)


def order_of(batches, epoch):
    return [i for step in range(len(batches)) for i in batches.items_of(epoch, step).tolist()]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 256, 257, 1000])
def test_permutations_found_one_number_at_a_time(size):
    for seed in range(5):
        whole = data.permuted(np.arange(size), size, (seed, 1))
        assert sorted(whole.tolist()) == list(range(size)) and whole.dtype == np.int64
        assert [
            data.permuted(np.array([i]), size, (seed, 1))[0] for i in range(0, size, 7)
        ] == whole[::7].tolist()


def test_permutations_are_as_random_as_drawn_ones():
    """Each number comes to each place about as often; neighbours do not stay together; millions
    are found at once."""
    counts = np.zeros((6, 6))
    for seed in range(6000):
        counts[np.arange(6), data.permuted(np.arange(6), 6, (seed,))] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi-squared of 25 degrees of freedom
    whole = data.permuted(np.arange(10_000), 10_000, (0,))
    assert (
        abs(np.corrcoef(np.arange(10_000), whole)[0, 1]) < 0.03
        and (np.abs(np.diff(whole)) == 1).sum() < 12
    )
    assert abs(np.corrcoef(whole, data.permuted(np.arange(10_000), 10_000, (1,)))[0, 1]) < 0.03
    assert len(set(data.permuted(np.arange(10**12, 10**12 + 100), 10**13, (0,)).tolist())) == 100


def test_draws_belong_to_the_item_and_are_spread_evenly():
    draws = data.uniform((1, 2), np.arange(20_000), 3)
    assert draws.shape == (3, 20_000) and 0 <= draws.min() and draws.max() < 1
    np.testing.assert_array_equal(data.uniform((1, 2), np.array([77, 5]), 3), draws[:, [77, 5]])
    assert (np.abs(np.histogram(draws, 20)[0] - 3000) < 300).all() and np.abs(
        np.corrcoef(draws) - np.eye(3)
    ).max() < 0.03
    assert abs(np.corrcoef(draws[0], data.uniform((1, 3), np.arange(20_000), 1)[0])[0, 1]) < 0.03


def test_balanced_batches_repeat_rare_actions_up_to_the_mean(tmp_path):
    names = ["walk"] * 20 + ["jump"] * 8 + ["bow"] * 2 + [""] * 3
    clips = [
        Clip(f"{n}", [], action=name, features=np.ones((40, 263))) for n, name in enumerate(names)
    ]
    pack = save(tmp_path / "a.pack", clips, actions=["walk", "jump", "bow", "nobody does this"])
    batches = Batches(pack, "train", 16, balanced=True, labelled=False)
    drawn = [i for step in range(len(batches)) for i in batches.batch(0, step)["items"].tolist()]
    assert len(drawn) == len(batches.items)
    counts = np.bincount(drawn)
    # 2 bows, 10 the mean: 5 times each
    assert (counts[:28] == 1).all() and (counts[28:30] == 5).all() and (counts[30:] == 1).all()


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_each_batch_without_overlap_or_loss(pack, world):
    alone = Batches(pack, "train", 32, seed=5)
    ranks = [Batches(pack, "train", 32, seed=5, rank=r, world=world) for r in range(world)]
    for step, whole in enumerate(alone.epoch(1)):
        parts = [rank.batch(1, step) for rank in ranks]
        assert sorted(id for part in parts for id in part["ids"]) == sorted(whole["ids"])
        assert {part["global_frames"] for part in parts} == {int(whole["lengths"].sum())}
        assert {part["global_size"] for part in parts} == {len(whole["ids"])} and min(
            len(part["ids"]) for part in parts
        ) >= 1
        rows = {id: row for row, id in enumerate(whole["ids"])}
        for part in parts:
            for row, id in enumerate(part["ids"]):
                length = int(part["lengths"][row])
                assert (
                    length == whole["lengths"][rows[id]]
                    and part["texts"][row] == whole["texts"][rows[id]]
                )
                assert torch.equal(
                    part["features"][row, :length], whole["features"][rows[id], :length]
                )


def test_a_resumed_epoch_equals_one_that_was_never_interrupted(pack):
    whole = list(Batches(pack, "train", 64, seed=9).epoch(3))
    fresh = Batches(pickle.loads(pickle.dumps(pack)), "train", 64, seed=9)
    fresh.batch(7, 0)  # whatever was asked before does not matter
    for a, b in zip(whole[4:], fresh.stream(3 * len(fresh) + 4, 4 * len(fresh)), strict=True):
        assert (
            torch.equal(a["features"], b["features"])
            and a["texts"] == b["texts"]
            and a["ids"] == b["ids"]
        )


def test_workers_give_the_same_batches_and_leave_the_random_state_alone(pack):
    batches = Batches(pack, "train", 64)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for a, b in zip(batches.epoch(0), batches.epoch(0, workers=2), strict=True):
        assert (
            torch.equal(a["features"], b["features"])
            and a["ids"] == b["ids"]
            and a["tokens"] == b["tokens"]
        )
    assert torch.equal(torch.get_rng_state(), state)


def test_grouping_by_length_saves_most_of_the_padding(pack):
    shares = [
        np.mean(
            [
                Batches(pack, "train", 16, by_length=by_length).padded_share(epoch)
                for epoch in range(5)
            ]
        )
        for by_length in (True, False)
    ]
    assert shares[0] < 0.1 < 0.3 < shares[1]
    batches = list(Batches(pack, "train", 16).epoch(0))
    computed, real = sum(b["features"].shape[0] * b["features"].shape[1] for b in batches), sum(
        int(b["lengths"].sum()) for b in batches
    )
    assert abs(1 - real / computed - Batches(pack, "train", 16).padded_share(0)) < 1e-9


def test_lengths_outside_the_settings_are_left_out(pack, lengths):
    batches = Batches(pack, "train", 16, min_length=40, max_length=200)
    seen = sorted(i for b in batches.epoch(0) for i in b["items"].tolist())
    assert seen == np.flatnonzero((lengths >= 40) & (lengths < 200)).tolist()
    with pytest.raises(
        ValueError,
        match="no train item has 300 to 399 frames; change data.min_length or data.max_length",
    ):
        Batches(pack, "train", 16, min_length=300, max_length=400)
    with pytest.raises(ValueError, match="cannot be shared by 64 processes"):
        Batches(pack, "train", 32, world=64)


def test_action_windows_are_60_frames_that_start_at_the_origin(tmp_path):
    features = np.cumsum(np.ones((100, 150), np.float32), axis=0)
    pack = save(
        tmp_path / "a.pack",
        [Clip("a", action="x", features=features), Clip("b", action="y", features=features[:60])],
        skeleton="smpl",
        actions=["x", "y"],
        rest=np.zeros((24, 3)),
    )
    # no val clips: train stands in
    batches = Batches(pack, "val", 2, max_frames=60, unit_length=60)
    starts = set()
    for epoch in range(30):
        batch = batches.batch(epoch, 0)
        assert batch["features"].shape == (2, 60, 150) and batch["texts"] == ["", ""]
        order = batch["items"].argsort()
        assert batch["actions"][order].tolist() == [0, 1]
        assert not batch["features"][:, 0, 144:].any() and batch["features"][
            :, 59, 146
        ].tolist() == [59, 59]
        starts.add(float(batch["features"][order[0], 0, 0]))
    assert len(starts) > 10 and batches.batch(0, 0)["features"][:, 0, 0].min() == 1


def test_workers_end_with_their_stream_and_collect_nothing_that_was_there_before(pack):
    """What a worker inherits may be CUDA graphs, which must not be freed there. A stream that is
    not read to its end would keep its workers until it is collected, and wait for them then."""
    batches = Batches(pack, "train", 2)

    def prepare(batch, step):
        return {"frozen": torch.tensor(gc.get_freeze_count()), "steps": np.array([step])}

    def broken(batch, step):
        raise ValueError("no such clip")

    others = set(multiprocessing.active_children())
    stream = batches.stream(3, 9, 2, prepare)
    first = next(stream)
    assert first["frozen"].item() > 1000 and first["steps"].tolist() == [3]
    ours = set(multiprocessing.active_children()) - others
    assert len(ours) == 2
    stream.close()
    assert not any(worker.is_alive() for worker in ours) and gc.get_freeze_count() == 0
    others = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="^no such clip$") as error:
        list(batches.stream(3, 9, 2, broken))
    assert error.value.__context__ is None  # nothing that holds the stream
    assert not set(multiprocessing.active_children()) - others
