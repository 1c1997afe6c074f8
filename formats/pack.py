"""A dataset as ONE memory-mapped file, so that opening it takes milliseconds whatever its size. Written by prepare.py:

    64 bytes   magic, format version, where the index lies, the file's size, sha256 of the index
    motion     encoding "features": rows of float16 or float32, one per frame; clip after clip
               encoding "joints": per clip, joint positions on a 0.5 mm grid, differences in time, compressed
    text       one line per caption: the sentence, a tab, its part-of-speech tokens (`a/DET man/NOUN ...`)
    index      a JSON header (name, skeleton, fps, actions, how it was made, sha256 of motion and text), then plain arrays:
               the items (clip, first frame, frames, split, action, captions), mean and std

An item is what training draws: a whole clip, or the part of one that a caption was written for.
"""
import functools
import hashlib
import json
import lzma
import mmap
import os
import struct
from dataclasses import dataclass, field

import numpy as np

import motion
from config import atomic_write

MAGIC, VERSION = b"nanoMLD\n", 1
PREFIX = struct.Struct("<8sIIQQ32s")  # magic, version, size of the index, its offset, size of the file, sha256 of the index
GRID = 0.0005  # metres; positions of encoding "joints" are whole multiples of this
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1, "dict_size": 1 << 16}]  # for 16-bit numbers
HASHED = 1 << 22  # bytes of an index that opening compares with their checksum, in 3 ms; a larger one is left to check_index()
SPLITS = ("train", "val", "test")
NFEATS = {"t2m": 263, "kit": 251, "smpl": 150}


@dataclass
class Caption:
    text: str
    tokens: str = ""    # "a/DET man/NOUN jump/VERB", what the published evaluator reads; may be empty
    start: float = 0.0  # seconds; 0, 0 = the caption is about the whole clip
    end: float = 0.0


@dataclass
class Clip:
    id: str
    captions: list = field(default_factory=list)
    split: str = "train"
    action: str = ""
    features: np.ndarray | None = None  # (T, F)
    joints: np.ndarray | None = None    # (T+1, 22, 3) metres, for encoding "joints"


# ----------------------------------------------------------------------------------------------------------------------
# Writing a pack


def encode_joints(joints):
    """(T, J, 3) metres -> bytes: steps from frame to frame on the grid, one joint's x after another, which compresses best."""
    grid = np.rint(np.asarray(joints) / GRID).astype(np.int64)
    steps = np.diff(grid, axis=0, prepend=np.zeros_like(grid[:1]))
    return lzma.compress(steps.astype("<i2").transpose(1, 2, 0).tobytes(), lzma.FORMAT_RAW, filters=LZMA)


def decode_joints(blob, num_joints):
    """Inverse of encode_joints -> (T, J, 3) float64 metres, on the grid."""
    steps = np.frombuffer(lzma.decompress(blob, lzma.FORMAT_RAW, filters=LZMA), "<i2").reshape(num_joints, 3, -1)
    return steps.transpose(2, 0, 1).cumsum(0, dtype=np.int64) * GRID


def items_of(clip, frames, fps):
    """The items of a clip as (id, first frame, frames, captions): the whole, and each part that a caption was written for."""
    whole = [c for c in clip.captions if not c.start and not c.end]
    items = [(clip.id, 0, frames, whole)] if whole or not clip.captions else []
    for number, caption in enumerate(c for c in clip.captions if c.start or c.end):
        first, last = (int(min(max(seconds * fps, 0), frames)) for seconds in (caption.start, caption.end))
        items.append((f"{chr(65 + number % 26)}{number // 26 or ''}_{clip.id}", first, last - first, [caption]))
    return items


def write_pack(path, clips, *, name, skeleton, fps, mean=None, std=None, encoding="features", actions=(), rest=None,
               command="", sources=(), min_length=1, max_length=10**9):
    """Write `clips` (any iterable of Clip, read once) as one pack, atomically; returns {split: number of items}.

    skeleton    "t2m", "kit" or "smpl"; fixes the number of features (263, 251, 150)
    mean, std   (F,); None = computed over the train clips, std averaged within each kind of number as HumanML3D does
    encoding    "features" keeps Clip.features; "joints" keeps Clip.joints on a 0.5 mm grid, a tenth of the size, from which
                features are made on first use
    actions     names of the action labels, in the order of their ids; Clip.action is one of them or empty
    rest        (24, 3) rest joints of the "smpl" skeleton, for joint positions
    command     what to type to make this pack again; sources: files that, when they change, make the pack stale
    min_length, max_length   items with fewer frames, or max_length and more, are left out
    ValueError names the clip that has wrong shapes, non-finite numbers, no motion, or a repeated id.
    """
    actions, nfeats = list(actions), NFEATS[skeleton]
    clip_start, clip_frames, text_start, ids = [0], [], [0], []
    table, texts, counts = [], [], dict.fromkeys(SPLITS, 0)
    sums, dtype, digest = np.zeros((2, nfeats)), None, hashlib.sha256()
    total = 0
    with atomic_write(path) as file:
        def put(data):
            file.write(data)
            digest.update(data)
        file.write(bytes(PREFIX.size))
        for clip in clips:
            blob, features = _motion_of(clip, skeleton, encoding, nfeats)
            own = "<f2" if features.dtype == np.float16 else "<f4"
            dtype = dtype or own
            if dtype != own:
                raise ValueError(f"clip {clip.id}: features are {features.dtype}, those before were not; one pack has one type.")
            kept = [item for item in items_of(clip, len(features), fps) if max(min_length, 1) <= item[2] < max_length]
            if not kept:
                continue
            if clip.split not in SPLITS:
                raise ValueError(f"clip {clip.id}: split must be one of {', '.join(SPLITS)}, found {clip.split!r}.")
            if clip.action and clip.action not in actions:
                raise ValueError(f"clip {clip.id}: action {clip.action!r} is not one of the {len(actions)} named actions.")
            for id, first, frames, captions in kept:
                label = actions.index(clip.action) if clip.action else -1
                table.append((len(clip_frames), first, frames, SPLITS.index(clip.split), label, len(text_start) - 1))
                ids.append(id.encode())
                counts[clip.split] += 1
                for caption in captions:
                    line = f"{' '.join(caption.text.split())}\t{' '.join(caption.tokens.split())}".encode()
                    texts.append(line)
                    text_start.append(text_start[-1] + len(line))
            put(blob or np.ascontiguousarray(features, dtype).tobytes())
            clip_start.append(clip_start[-1] + (len(blob) if blob else len(features)))
            clip_frames.append(len(features))
            if clip.split == "train":
                rows = np.asarray(features, np.float64)
                sums, total = sums + (rows.sum(0), np.square(rows).sum(0)), total + len(rows)
        if not ids:
            raise ValueError(f"{path}: no clip to pack; every one was missing, broken, too short or too long.")
        if len(set(ids)) < len(ids):
            seen = set()
            raise ValueError(f"clip {next(i for i in ids if i in seen or seen.add(i)).decode()} is there twice; ids must differ.")
        text_offset = file.tell()
        put(b"".join(texts))
        if mean is None:
            mean, std = _mean_std(sums, total, skeleton, path)
        clip_of, first, frames, split, label, caption = np.array(table).T
        arrays = {"clip_start": np.array(clip_start, "<i8"), "clip_frames": np.array(clip_frames, "<i4"),
                  "text_start": np.array(text_start, "<i8"), "ids": np.array(ids), "clip": clip_of.astype("<i4"),
                  "first": first.astype("<i4"), "frames": frames.astype("<i4"), "split": split.astype("u1"),
                  "label": label.astype("<i2"), "caption": np.append(caption, len(texts)).astype("<i4"),
                  "mean": np.asarray(mean, "<f4"), "std": np.asarray(std, "<f4")}
        if rest is not None:
            arrays["rest"] = np.asarray(rest, "<f4")
        header = {"name": name, "skeleton": skeleton, "fps": fps, "encoding": encoding, "dtype": dtype, "actions": actions,
                  "text_offset": text_offset, "payload_sha256": digest.hexdigest(), "command": command,
                  "sources": [[os.path.abspath(s), os.stat(s).st_size, os.stat(s).st_mtime_ns] for s in sources],
                  "arrays": [[key, a.dtype.str, list(a.shape)] for key, a in arrays.items()]}
        index = json.dumps(header).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
        offset = file.tell()
        file.write(index)
        file.seek(0)
        file.write(PREFIX.pack(MAGIC, VERSION, len(index), offset, offset + len(index), hashlib.sha256(index).digest()))
    return counts


def _motion_of(clip, skeleton, encoding, nfeats):
    """Check a clip; (compressed joints or None, features (T, F))."""
    blob, features = None, clip.features
    if encoding == "joints":
        shape, joints = (motion.SKELETONS[skeleton].num_joints, 3), np.asarray(clip.joints, np.float64)
        if not joints.size or joints.shape[1:] != shape or not np.isfinite(joints).all() or np.abs(np.diff(joints, axis=0, prepend=0)).max() > 16:
            raise ValueError(f"clip {clip.id}: expected finite joint positions (frames, {shape[0]}, 3) in metres, that start and move less "
                             f"than 16 m off, found shape {joints.shape}, values up to {np.abs(joints).max(initial=0):.4g}.")
        blob = encode_joints(joints)
        features = _features_of(blob, skeleton, clip.id)
    if features.ndim != 2 or features.shape[1] != nfeats or not len(features):
        raise ValueError(f"clip {clip.id}: expected features of shape (frames, {nfeats}) for the {skeleton} skeleton, found {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError(f"clip {clip.id}: frame {np.argwhere(~np.isfinite(features))[0][0]} holds a number that is not finite.")
    return blob, features


def _features_of(blob, skeleton, id):
    skeleton = motion.SKELETONS[skeleton]
    return motion.joints_to_features(decode_joints(blob, skeleton.num_joints), skeleton, clip=id).astype(np.float32)


def _mean_std(sums, total, skeleton, path):
    """Mean and std over all train frames; one std for all numbers of a kind, so that a joint that hardly moves isn't blown up."""
    if skeleton == "smpl":
        return np.zeros(150), np.ones(150)  # the published action model sees rotations as they are
    if not total:
        raise ValueError(f"{path}: no train clip, so mean and std cannot be computed.")
    mean = sums[0] / total
    std = np.sqrt(np.maximum(sums[1] / total - mean**2, 0))
    for part in motion.FEATURE_SLICES(motion.SKELETONS[skeleton]).values():
        std[part] = max(std[part].mean(), 1e-4)
    return mean.round(6), std.round(6)  # rounded, so that another machine's last bits do not change the file


# ----------------------------------------------------------------------------------------------------------------------
# Reading a pack


class Pack:
    """A packed dataset, memory-mapped. `Pack.open(path)`; items are numbered 0..len-1.

    ids list[str]; splits list[str]; lengths (N,) frames; labels (N,) action ids, -1 = none; actions: their names;
    mean, std (F,) float32; rest (24, 3) joints of the "smpl" skeleton, else None; name, skeleton, fps, nfeats.
    """

    def __init__(self, path):
        self.path = path
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist; make it with: {_remake(path)}")
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._bytes, prefix = np.frombuffer(mapped, np.uint8), mapped[:PREFIX.size]
        if prefix[:8] != MAGIC:
            raise ValueError(f"{path} is not a packed dataset of this program; make one with: {_remake(path)}")
        if size < PREFIX.size:
            raise ValueError(f"{path} is cut off ({size} bytes); make it again with: {_remake(path)}")
        _, version, index_size, offset, whole, digest = PREFIX.unpack(prefix)
        if version != VERSION:
            raise ValueError(f"{path} has format version {version}, this program reads {VERSION}; make it again with: {_remake(path)}")
        if size != whole:
            raise ValueError(f"{path} is cut off or grown: {size} bytes, expected {whole}; make it again with: {_remake(path)}")
        self._index, self._digest, self._checked = slice(offset, offset + index_size), digest, False
        if index_size <= HASHED or offset + index_size != whole:
            self.check_index()
        try:
            at = mapped.find(b"\n", offset) + 1
            self._header, a = json.loads(mapped[offset:at]), {}
            for key, dtype, shape in self._header["arrays"]:  # views of the mapped file: a pack of a million clips opens without a copy
                count = int(np.prod(shape))
                a[key] = np.frombuffer(mapped, dtype, count, at).reshape(shape)
                at += count * np.dtype(dtype).itemsize
        except (ValueError, KeyError, TypeError, SyntaxError):
            raise self._damaged("its index cannot be read") from None
        for source, bytes_then, time_then in self._header["sources"]:
            if os.path.exists(source) and (os.stat(source).st_size, os.stat(source).st_mtime_ns) != (bytes_then, time_then):
                raise ValueError(f"{path} is stale: {source} has changed since; make it again with: {self._header['command']}")
        self._arrays, self._made = a, {}
        self.name, self.skeleton, self.fps, self.actions = (self._header[key] for key in ("name", "skeleton", "fps", "actions"))
        self.nfeats = NFEATS[self.skeleton]
        self.mean, self.std = a["mean"].copy(), a["std"].copy()
        self.rest = a["rest"].copy() if "rest" in a else None  # (24, 3), of the "smpl" skeleton
        self.lengths, self.labels = a["frames"], a["label"]
        if self._header["encoding"] == "features":
            rows = int(a["clip_start"][-1])
            dtype = np.dtype(self._header["dtype"])
            end = PREFIX.size + rows * self.nfeats * dtype.itemsize
            self._rows = self._bytes[PREFIX.size:end].view(dtype).reshape(rows, self.nfeats)

    @classmethod
    def open(cls, path):
        """Map the pack at `path`. FileNotFoundError or ValueError, with the command to run, if it is missing, foreign, of another
        format version, cut off, damaged (as far as that can be seen at once, see check), or stale (made from files that have changed)."""
        return cls(path)

    def __reduce__(self):  # worker processes map the file themselves
        return Pack, (self.path,)

    def __len__(self):
        return len(self.lengths)

    @functools.cached_property
    def ids(self):
        return self.ids_of(slice(None))

    @functools.cached_property
    def splits(self):
        return [SPLITS[s] for s in self._arrays["split"].tolist()]

    def ids_of(self, items):
        """The ids of some items, without making the list of all of them."""
        return [i.decode() for i in self._arrays["ids"][items].tolist()]

    def features(self, i):
        """(T, F) float32, not normalised."""
        a = self._arrays
        clip, first, frames = int(a["clip"][i]), int(a["first"][i]), int(a["frames"][i])
        start = int(a["clip_start"][clip])
        if self._header["encoding"] == "features":
            return np.asarray(self._rows[start + first:start + first + frames], np.float32)
        if clip not in self._made:
            blob = self._bytes[PREFIX.size + start:PREFIX.size + int(a["clip_start"][clip + 1])].tobytes()
            self._made[clip] = _features_of(blob, self.skeleton, *self.ids_of([i]))
        return self._made[clip][first:first + frames]

    def joints(self, i):
        """(T, J, 3) joint positions in metres."""
        return motion.to_metres(self.features(i), self.skeleton, self.rest)

    def captions(self, i):
        """list[Caption]; empty for datasets that have action labels only."""
        first, last = self._arrays["caption"][i:i + 2].tolist()
        start = (self._arrays["text_start"][first:last + 1] + self._header["text_offset"]).tolist()
        return [Caption(*self._bytes[s:e].tobytes().decode().split("\t")) for s, e in zip(start, start[1:])]

    def action(self, i):
        """Name of the item's action label, or ''."""
        return self.actions[self.labels[i]] if self.labels[i] >= 0 else ""

    def indices(self, split, min_length=1, max_length=10**9):
        """Numbers of the items of a split with min_length <= frames < max_length. A dataset published without this split (HumanAct12
        has train only, UESTC no val) answers with train, as its published evaluation does."""
        numbers = self._arrays["split"]
        wanted = SPLITS.index(split) if split in SPLITS and (numbers == SPLITS.index(split)).any() else SPLITS.index("train")
        keep = (numbers == wanted) & (self.lengths >= min_length) & (self.lengths < max_length)
        if not keep.any():
            raise ValueError(f"{self.path}: no {split} item has {min_length} to {max_length - 1} frames; change data.min_length or data.max_length.")
        return np.flatnonzero(keep).astype(np.int32)

    def index(self, id):
        """Number of the item with this id; ValueError that names close ids if there is none."""
        if id not in self.ids:
            near = [i for i in self.ids if id.lower() in i.lower()][:5] or self.ids[:5]
            raise ValueError(f"{self.path} has no item {id!r}; it has {', '.join(near)} ...")
        return self.ids.index(id)

    def _damaged(self, how):
        return ValueError(f"{self.path} is damaged ({how}); make it again with: {_remake(self.path)}")

    def check_index(self):
        """Compare the index with its checksum, for packs whose index is too large for opening to do so; ValueError if they differ."""
        if self._checked:
            return
        if self._index.stop != len(self._bytes) or hashlib.sha256(self._bytes[self._index]).digest() != self._digest:
            raise self._damaged("its index does not match its checksum")
        self._checked = True

    def check(self):
        """Read the whole file and compare motion, text and index with their checksums; ValueError if they differ."""
        self.check_index()
        digest, end = hashlib.sha256(), self._index.start
        for start in range(PREFIX.size, end, 1 << 24):
            digest.update(self._bytes[start:min(start + (1 << 24), end)])
        if digest.hexdigest() != self._header["payload_sha256"]:
            raise ValueError(f"{self.path} is damaged (motion or text does not match its checksum); make it again with: {self._header['command']}")


def _remake(path):
    name = os.path.splitext(os.path.basename(path))[0]
    known = {"toy": "toy", "humanml3d": "humanml3d DIR", "kit": "kit DIR", "humanact12": "humanact12 DIR", "uestc": "uestc DIR"}
    return f"python prepare.py {known.get(name, f'humanml3d DIR --name {name} (or bvh DIR --captions FILE --name {name})')}"
