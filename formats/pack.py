"""A dataset as ONE memory-mapped file, which opens in milliseconds whatever its size.

prepare.py writes it:

    64 bytes  magic, version, size and offset of the index, size of the file, sha256 of the index
    motion    encoding "features": rows of float16 or float32, one per frame, clip after clip
              encoding "joints": per clip, the compressed steps of its joints on a 0.5 mm grid
    text      per caption: the sentence, a tab, its part-of-speech tokens (`a/DET man/NOUN ...`)
    index     a JSON header (name, skeleton, fps, actions, how it was made, sha256 of motion and
              text), then plain arrays: the items (clip, first frame, frames, split, action,
              captions), checksums of the clips' features, mean and std

An item is what training draws: a whole clip, or the part of a clip that a caption describes.
"""
import functools
import json
import lzma
import mmap
import os
import zlib
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

import motion
from config import atomic_write
from formats.pack_index import NFEATS, PREFIX, SPLITS, fault_of

MAGIC, VERSION = b"nanoMLD\n", 1
GRID = 0.0005  # metres; encoding "joints" rounds positions to multiples of this
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1, "dict_size": 1 << 16}]
HASHED = 1 << 22  # bytes; a larger index is not checked when a pack opens, see check_index()
LARGEST = 1e5  # no number of a frame is as large, in metres or millimetres


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


# --------------------------------------------------------------------------------------------------
# Writing a pack

def encode_joints(joints):
    """(T, J, 3) metres -> bytes: steps between frames on the grid, coordinate by coordinate."""
    grid = np.rint(np.asarray(joints) / GRID).astype(np.int64)
    steps = np.diff(grid, axis=0, prepend=np.zeros_like(grid[:1])).astype("<i2")
    return lzma.compress(steps.transpose(1, 2, 0).tobytes(), lzma.FORMAT_RAW, filters=LZMA)


def decode_joints(blob, num_joints, frames):
    """The inverse of encode_joints: bytes -> (frames, J, 3) float64 metres, on the grid.
    ValueError if they hold another number of frames, of which no more is unpacked."""
    size = 2 * 3 * num_joints * frames
    unpacked = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA).decompress(blob, size + 1)
    if len(unpacked) != size:
        raise ValueError(f"its joints are not {frames} frames")
    steps = np.frombuffer(unpacked, "<i2").reshape(num_joints, 3, frames).transpose(2, 0, 1)
    return steps.cumsum(0, dtype=np.int64) * GRID


def items_of(clip, frames, fps):
    """The items of a clip as (id, first frame, frames, captions)."""
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
               tenth of the space, and features are computed on first use
    actions    names of the action labels, of which Clip.action is one or empty
    rest       (24, 3) rest joints of the "smpl" skeleton, for joint positions
    command    makes this pack again; sources: files that make the pack stale when they change
    min_length, max_length   items with fewer frames, or max_length and more, are left out

    Returns {split: number of items}. ValueError names a clip with a wrong shape, numbers that are
    not finite, an unknown split or action, or an id that came before."""
    actions, counts = list(actions), dict.fromkeys(SPLITS, 0)
    sizes, clip_frames, sums_of_clips, texts, table, ids = [0], [], [], [], [], {}
    sums, total, dtype, digest = np.zeros((2, NFEATS[skeleton])), 0, None, sha256()
    with atomic_write(path) as file:
        def put(data):
            file.write(data)
            digest.update(data)
        file.write(bytes(PREFIX.size))
        for clip in clips:
            blob, features = _motion_of(clip, skeleton, encoding)
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
            data = blob or np.ascontiguousarray(features, dtype).tobytes()
            put(data)
            sums_of_clips.append(zlib.crc32(data))
            sizes.append(len(blob or features))
            clip_frames.append(len(features))
            if clip.split == "train":
                rows = np.asarray(features, np.float64)
                sums += rows.sum(0), np.square(rows).sum(0)
                total += len(rows)
        if not ids:
            raise ValueError(f"{path}: no clip to pack; all are missing, broken, short or long.")
        text_offset = file.tell()
        put(b"".join(texts))
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
        stats = [(os.path.abspath(source), os.stat(source)) for source in sources]
        header = {
            "name": name, "skeleton": skeleton, "fps": fps, "encoding": encoding, "dtype": dtype,
            "actions": actions, "text_offset": text_offset, "payload_sha256": digest.hexdigest(),
            "command": command, "sources": [[s, st.st_size, st.st_mtime_ns] for s, st in stats],
            "arrays": [[key, a.dtype.str, list(a.shape)] for key, a in arrays.items()]}
        index = json.dumps(header).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
        offset = file.tell()
        file.write(index)
        file.seek(0)
        size, digest = offset + len(index), sha256(index).digest()
        file.write(PREFIX.pack(MAGIC, VERSION, len(index), offset, size, digest))
    return counts


def _motion_of(clip, skeleton, encoding):
    """A clip -> (compressed joints or None, features (T, F)); ValueError if they cannot be used."""
    blob, features, nfeats = None, clip.features, NFEATS[skeleton]
    if encoding == "joints":
        joints = np.asarray(clip.joints, np.float64)
        body, finite = motion.SKELETONS[skeleton], np.isfinite(joints).all()
        # Steps are 16-bit numbers on the grid, the first one from the origin.
        if (joints.shape[1:] != (body.num_joints, 3) or not joints.size or not finite
                or np.abs(np.diff(joints, axis=0, prepend=0)).max() > 16):
            raise ValueError(f"clip {clip.id}: expected finite joint positions (frames, "
                             f"{body.num_joints}, 3) in metres that start and move less than 16 m "
                             f"off, found {joints.shape} with {np.abs(joints).max(initial=0):.4g}.")
        blob = encode_joints(joints)
        features = _features_of(blob, body, len(joints) - 1, clip.id)
    if features.ndim != 2 or features.shape[1] != nfeats or not len(features):
        raise ValueError(f"clip {clip.id}: expected features of shape (frames, {nfeats}) for the "
                         f"{skeleton} skeleton, found {features.shape}.")
    if not np.isfinite(features).all():
        frame = np.argwhere(~np.isfinite(features))[0][0]
        raise ValueError(f"clip {clip.id}: frame {frame} holds a number that is not finite.")
    return blob, features


def _features_of(blob, skeleton, frames, id):
    joints = decode_joints(blob, skeleton.num_joints, frames + 1)
    return motion.joints_to_features(joints, skeleton, clip=id).astype(np.float32)


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


# --------------------------------------------------------------------------------------------------
# Reading a pack

class Pack:
    """A packed dataset, memory-mapped: `Pack.open(path)`. Items are numbered from 0 to len - 1.

    ids, splits (N strings each); lengths (N,) frames; labels (N,) action ids, -1 for none; actions:
    their names; mean, std (F,) float32; rest (24, 3) joints of the "smpl" skeleton, else None;
    name, skeleton, fps, nfeats. FileNotFoundError or ValueError, with the command to run, if the
    file is missing, of another kind or version, cut off, damaged as far as a quick look tells (see
    check), or stale because a file that it was made from has changed.
    """
    _header = {}

    def __init__(self, path):
        self.path = path
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist; make it with: {_remake(path)}")
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._bytes, prefix = np.frombuffer(mapped, np.uint8), mapped[:PREFIX.size]
        if prefix[:8] != MAGIC:
            raise self._refused("is not a packed dataset of this program")
        if size < PREFIX.size:
            raise self._refused(f"is cut off ({size} bytes)")
        _, version, index_size, offset, whole, self._digest = PREFIX.unpack(prefix)
        if version != VERSION:
            raise self._refused(f"has format version {version}, this program reads {VERSION}")
        if size != whole:
            raise self._refused(f"is cut off or has grown: {size} bytes, expected {whole}")
        self._index, self._checked = slice(offset, offset + index_size), False
        if index_size <= HASHED or offset + index_size != whole:
            self.check_index()
        try:
            at, a = mapped.find(b"\n", offset) + 1, {}
            header = json.loads(mapped[offset:at])
            for key, dtype, shape in header["arrays"]:  # views: a million clips open without a copy
                a[key] = np.frombuffer(mapped, dtype, int(np.prod(shape)), at).reshape(shape)
                at += a[key].nbytes
            fault = fault_of(header, a, offset)
        except (ValueError, LookupError, TypeError, AttributeError, SyntaxError, ArithmeticError,
                RecursionError):
            raise self._refused("is damaged (its index cannot be read)") from None
        if fault:
            raise self._refused(f"is damaged ({fault})")
        self._header, self._arrays, self._made, self._seen = header, a, {}, set()
        for source, *then in header["sources"]:
            now = os.stat(source) if os.path.exists(source) else None
            if now and [now.st_size, now.st_mtime_ns] != then:
                raise self._refused(f"is stale: {source} has changed since it was made")
        self.name, self.skeleton, self.fps = header["name"], header["skeleton"], header["fps"]
        self.actions, self.nfeats = header["actions"], NFEATS[self.skeleton]
        self.lengths, self.labels = a["frames"], a["label"]
        self.mean, self.std = a["mean"].copy(), a["std"].copy()
        self.rest = a["rest"].copy() if "rest" in a else None
        if header["encoding"] == "features":
            rows, dtype = int(a["clip_start"][-1]), np.dtype(header["dtype"])
            end = PREFIX.size + rows * self.nfeats * dtype.itemsize
            self._rows = self._bytes[PREFIX.size:end].view(dtype).reshape(rows, self.nfeats)

    @classmethod
    def open(cls, path):
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
        start, end = a["clip_start"][clip:clip + 2].tolist()
        if self._header["encoding"] == "features":
            whole = self._rows[start:end]
            if clip not in self._seen and "clip_crc" in a:
                if zlib.crc32(whole) != a["clip_crc"][clip]:
                    raise self._refused(f"is damaged (clip {self.ids_of([i])[0]} does not match "
                                        "its checksum)")
        else:
            if clip not in self._made:
                blob = self._bytes[PREFIX.size + start:PREFIX.size + end].tobytes()
                body, id = motion.SKELETONS[self.skeleton], self.ids_of([i])[0]
                try:
                    self._made[clip] = _features_of(blob, body, int(a["clip_frames"][clip]), id)
                except (ValueError, lzma.LZMAError) as error:
                    raise self._refused(f"is damaged (clip {id}: {error})") from None
            whole = self._made[clip]
        if clip not in self._seen:  # once a clip, when it is first read
            # One comparison finds NaN, infinity and numbers that no motion has.
            if not (np.abs(whole) < LARGEST).all():
                raise self._refused(f"is damaged (clip {self.ids_of([i])[0]} holds a number that "
                                    "is not finite or far too large)")
            self._seen.add(clip)
        return np.asarray(whole[first:first + frames], np.float32)

    def joints(self, i):
        """(T, J, 3) joint positions in metres."""
        return motion.to_metres(self.features(i), self.skeleton, self.rest)

    def captions(self, i):
        """list[Caption]; empty if the dataset has action labels only."""
        first, last = self._arrays["caption"][i:i + 2].tolist()
        cuts = self._arrays["text_start"][first:last + 1] + self._header["text_offset"]
        try:
            lines = [self._bytes[s:e].tobytes().decode() for s, e in zip(cuts, cuts[1:])]
            return [Caption(*line.split("\t")) for line in lines]
        except (ValueError, TypeError):
            raise self._refused(f"is damaged (a caption of {self.ids_of([i])[0]} cannot be "
                                "read)") from None

    def action(self, i):
        """The name of the item's action, or ''."""
        return self.actions[self.labels[i]] if self.labels[i] >= 0 else ""

    def indices(self, split, min_length=1, max_length=10**9):
        """Numbers (n,) int32 of the items of a split with min_length <= frames < max_length. If
        the dataset has no such split (HumanAct12 has only train, UESTC has no val), train stands in
        as in its published evaluation. ValueError if there are none."""
        numbers, wanted = self._arrays["split"], SPLITS.index(split) if split in SPLITS else 0
        keep = numbers == (wanted if (numbers == wanted).any() else 0)
        keep &= (self.lengths >= min_length) & (self.lengths < max_length)
        if not keep.any():
            raise ValueError(f"{self.path}: no {split} item has {min_length} to {max_length - 1} "
                             "frames; change data.min_length or data.max_length.")
        return np.flatnonzero(keep).astype(np.int32)

    def index(self, id):
        """The number of the item with this id; ValueError that names similar ids if none has it."""
        if id in self.ids:
            return self.ids.index(id)
        near = [i for i in self.ids if id.lower() in i.lower()][:5] or self.ids[:5]
        raise ValueError(f"{self.path} has no item {id!r}; it has {', '.join(near)} ...")

    def check_index(self):
        """Compare the index with its checksum, which opening does if the index is small."""
        index, whole = self._bytes[self._index], self._index.stop == len(self._bytes)
        if not self._checked and not (whole and sha256(index).digest() == self._digest):
            raise self._refused("is damaged (its index does not match its checksum)")
        self._checked = True

    def check(self):
        """Compare motion, text and index with their checksums, and look at every number;
        ValueError if something is wrong."""
        self.check_index()
        digest, end = sha256(), self._index.start
        for start in range(PREFIX.size, end, 1 << 24):
            digest.update(self._bytes[start:min(start + (1 << 24), end)])
        if digest.hexdigest() != self._header["payload_sha256"]:
            raise self._refused("is damaged (motion or text does not match its checksum)")
        for i in np.unique(self._arrays["clip"], return_index=True)[1].tolist():
            self.features(i)

    def _refused(self, reason):
        command = self._header.get("command") or _remake(self.path)
        return ValueError(f"{self.path} {reason}; make it again with: {command}")


def _remake(path):
    """The command that makes the pack of this name."""
    name = os.path.splitext(os.path.basename(path))[0]
    known = {n: f"{n} DIR" for n in ("humanml3d", "kit", "humanact12", "uestc")} | {"toy": "toy"}
    own = f"humanml3d DIR --name {name} (or bvh DIR --captions FILE --name {name})"
    return f"python prepare.py {known.get(name, own)}"
