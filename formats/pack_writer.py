"""Clips -> a pack. The file is described in pack.py, which reads it."""
import json
import lzma
import os
import zlib
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

import motion
from files import atomic_write
from formats.pack_index import LONGEST_TEXT, MAGIC, NFEATS, PREFIX, SPLITS, VERSION
from formats.pack_joints import GRID, REACH, encode_joints, on_grid


@dataclass
class Caption:
    text: str
    tokens: str = ""  # "a/DET man/NOUN jump/VERB" for the published evaluator; may be empty
    start: float = 0.0  # seconds; a caption from 0 to 0 describes the whole clip
    end: float = 0.0


@dataclass
class Clip:
    id: str
    captions: list = field(default_factory=list)
    split: str = "train"
    action: str = ""
    features: np.ndarray | None = None  # (T, F)
    joints: np.ndarray | None = None  # (T+1, 22, 3) metres, for encoding "joints"
    items: list | None = None  # as items_of returns, where they are known and not to be made


def items_of(clip, frames, fps):
    """The items of a clip as (id, first frame, frames, captions)."""
    if clip.items is not None:
        return clip.items
    whole = [c for c in clip.captions if not c.start and not c.end]
    parts = [c for c in clip.captions if c.start or c.end]
    items = [(clip.id, 0, frames, whole)] if whole or not clip.captions else []
    for number, caption in enumerate(parts):
        first, last = (int(min(max(seconds * fps, 0), frames))
                       for seconds in (caption.start, caption.end))
        id = f"{chr(65 + number % 26)}{number // 26 or ''}_{clip.id}"  # A_000012, B_000012, ...
        items.append((id, first, last - first, [caption]))
    return items


def write_pack(path, clips, *, name, skeleton, fps, mean=None, std=None, encoding="features",
               actions=(), rest=None, command="", sources=(), min_length=1, max_length=10**9):
    """Write `clips` (any iterable of Clip, read once) as one pack, or leave no file at all.

    skeleton   "t2m", "kit" or "smpl", with 263, 251 or 150 features
    mean, std  (F,); None computes them from the train clips, averaging std over the numbers of a
               kind as HumanML3D does
    encoding   "features" stores Clip.features; "joints" stores Clip.joints on a 0.5 mm grid, in a
               twentieth of the space, and features are computed on first use. A clip that is
               the mirror image of an earlier one, on that grid, takes no space
    actions    names of the action labels, of which Clip.action is one or empty
    rest       (24, 3) rest joints of the "smpl" skeleton, for joint positions
    command    makes this pack again; sources: files that make the pack stale when they change
    min_length, max_length   items with fewer frames, or max_length and more, are left out

    Returns {split: number of items}. ValueError names a clip with a wrong shape, numbers that are
    not finite, an unknown split or action, or an id that came before."""
    actions, counts = list(actions), dict.fromkeys(SPLITS, 0)
    sizes, clip_frames, sums_of_clips, texts, table, ids = [0], [], [], [], [], {}
    known, mirrors = {}, []  # {sha256 of a stored clip's joints: its number}; -1 or such a number
    sums, total, dtype, digest = np.zeros((2, NFEATS[skeleton])), 0, None, sha256()
    with atomic_write(path) as file:
        def put(data):
            file.write(data)
            digest.update(data)
        file.write(bytes(PREFIX.size))
        for clip in clips:
            joints, features = _motion_of(clip, skeleton, encoding)
            own = "<f2" if features.dtype == np.float16 else "<f4"
            dtype = dtype or own
            if dtype != own:
                raise ValueError(f"clip {clip.id}: features are {features.dtype}, those of other "
                                 "clips are not; a pack has features of one type.")
            items = [item for item in items_of(clip, len(features), fps)
                     if max(min_length, 1) <= item[2] < max_length]
            if not items:
                continue
            if clip.split not in SPLITS:
                raise ValueError(f"clip {clip.id}: split must be one of {', '.join(SPLITS)}, "
                                 f"found {clip.split!r}.")
            if clip.action and clip.action not in actions:
                raise ValueError(f"clip {clip.id}: action {clip.action!r} is not one of the "
                                 f"{len(actions)} named actions.")
            split = SPLITS.index(clip.split)
            label = actions.index(clip.action) if clip.action else -1
            for id, first, frames, captions in items:
                if id in ids:
                    raise ValueError(f"clip {id} is there twice; each clip needs an id of its own.")
                ids[id] = None
                table.append((len(clip_frames), first, frames, split, label, len(texts)))
                for words in ((c.text.split(), c.tokens.split()) for c in captions):
                    texts.append("\t".join(map(" ".join, words)).encode())
            counts[clip.split] += len(items)
            image = -1
            if joints is None:
                data = np.ascontiguousarray(features, dtype).tobytes()
            else:
                body = motion.SKELETONS[skeleton]
                image = known.get(_digest(motion.mirror_joints(joints, body)), -1)
                if image < 0:
                    known.setdefault(_digest(joints), len(clip_frames))
                data = encode_joints(joints, body.parents) if image < 0 else b""
            put(data)
            mirrors.append(image)
            sums_of_clips.append(zlib.crc32(data))
            sizes.append(len(features) if joints is None else len(data))
            clip_frames.append(len(features))
            if clip.split == "train":
                rows = np.asarray(features, np.float64)
                sums += rows.sum(0), np.square(rows).sum(0)
                total += len(rows)
        if not ids:
            raise ValueError(f"{path}: no clip to pack; all are missing, broken, short or long.")
        text_offset = file.tell()
        text = b"".join(texts)
        squeeze = encoding == "joints" and len(text) <= LONGEST_TEXT
        put(lzma.compress(text) if squeeze else text)
        if mean is None:
            mean, std = _mean_std(sums, total, skeleton, path)
        clip_of, first, frames, split, label, caption = np.array(table).T
        arrays = {
            "clip_start": np.cumsum(sizes).astype("<i8"),
            "clip_frames": np.array(clip_frames, "<i4"),
            "text_start": np.cumsum([0, *map(len, texts)]).astype("<i8"),
            "ids": np.array([id.encode() for id in ids]),
            "clip": clip_of.astype("<i4"), "first": first.astype("<i4"),
            "frames": frames.astype("<i4"), "split": split.astype("u1"),
            "label": label.astype("<i2"), "caption": np.append(caption, len(texts)).astype("<i4"),
            "mean": np.asarray(mean, "<f4"), "std": np.asarray(std, "<f4")}
        arrays |= {} if rest is None else {"rest": np.asarray(rest, "<f4")}
        if encoding == "features":  # of joints, the number of steps is looked at
            arrays["clip_crc"] = np.array(sums_of_clips, "<u4")
        if max(mirrors) >= 0:
            arrays["mirror"] = np.array(mirrors, "<i4")
        stats = [(os.path.abspath(source), os.stat(source)) for source in sources]
        header = {
            "name": name, "skeleton": skeleton, "fps": fps, "encoding": encoding, "dtype": dtype,
            "actions": actions, "text": "lzma" if squeeze else "plain",
            "text_offset": text_offset, "payload_sha256": digest.hexdigest(),
            "command": command, "sources": [[s, st.st_size, st.st_mtime_ns] for s, st in stats],
            "arrays": [[key, a.dtype.str, list(a.shape)] for key, a in arrays.items()]}
        index = json.dumps(header).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
        offset = file.tell()
        file.write(index)
        file.seek(0)
        size, digest = offset + len(index), sha256(index).digest()
        file.write(PREFIX.pack(MAGIC, VERSION, len(index), offset, size, digest))
    return counts


def _digest(joints):
    return sha256(on_grid(joints).tobytes()).digest()


def _motion_of(clip, skeleton, encoding):
    """A clip -> (joints (T+1, J, 3) rounded to the grid, or None; features (T, F)); ValueError if
    they cannot be used."""
    joints, features, nfeats = None, clip.features, NFEATS[skeleton]
    if encoding == "joints":
        joints = np.asarray(clip.joints, np.float64)
        body, finite = motion.SKELETONS[skeleton], np.isfinite(joints).all()
        if (joints.shape[1:] != (body.num_joints, 3) or not joints.size or not finite
                or np.abs(np.diff(joints, axis=0, prepend=0)).max() > REACH):
            raise ValueError(f"clip {clip.id}: expected finite joint positions (frames, "
                             f"{body.num_joints}, 3) in metres that start and move less than "
                             f"{REACH} m off, found {joints.shape} with "
                             f"{np.abs(joints).max(initial=0):.4g}.")
        joints = on_grid(joints) * GRID
        features = motion.joints_to_features(joints, body, clip=clip.id).astype(np.float32)
    if features.ndim != 2 or features.shape[1] != nfeats or not len(features):
        raise ValueError(f"clip {clip.id}: expected features of shape (frames, {nfeats}) for the "
                         f"{skeleton} skeleton, found {features.shape}.")
    if not np.isfinite(features).all():
        frame = np.argwhere(~np.isfinite(features))[0][0]
        raise ValueError(f"clip {clip.id}: frame {frame} holds a number that is not finite.")
    return joints, features


def _mean_std(sums, total, skeleton, path):
    """Mean and std of all train frames. All numbers of a kind share one std, so that a joint that
    hardly moves is not blown up."""
    if skeleton == "smpl":
        return np.zeros(150), np.ones(150)  # the published action model does not normalise
    if not total:
        raise ValueError(f"{path}: there is no train clip to compute mean and std from.")
    mean = sums[0] / total
    std = np.sqrt(np.maximum(sums[1] / total - mean**2, 0))
    for part in motion.FEATURE_SLICES(motion.SKELETONS[skeleton]).values():
        std[part] = max(std[part].mean(), 1e-4)
    return mean.round(6), std.round(6)  # the file must not depend on a machine's last bits
