"""A dataset as ONE memory-mapped file, which opens in milliseconds whatever its size.

prepare.py writes it:

    64 bytes  magic, version, size and offset of the index, size of the file, sha256 of the index
    motion    encoding "features": rows of float16 or float32, one per frame, clip after clip
              encoding "joints": per clip, its joints as pack_joints.py stores them; a clip that
              is the mirror image of another stores nothing but which one
    text      per caption: the sentence, a tab, its part-of-speech tokens (`a/DET man/NOUN ...`);
              compressed as a whole if the encoding is "joints"
    index     a JSON header (name, skeleton, fps, actions, how it was made, sha256 of motion and
              text), then plain arrays: the items (clip, first frame, frames, split, action,
              captions), checksums of the clips' features, mean and std

Version 2 brought mirror images, smaller joints and compressed text; version 1 is still read.

An item is what training draws: a whole clip, or the part of a clip that a caption describes.
"""
import functools
import json
import lzma
import mmap
import os
import zlib
from hashlib import sha256

import numpy as np

import motion
from formats.pack_index import MAGIC, NFEATS, PREFIX, SPLITS, VERSION, fault_of
from formats.pack_joints import decode_joints
from formats.pack_writer import Caption, Clip, write_pack  # noqa: F401, so that one import suffices

HASHED = 1 << 22  # bytes; a larger index is not checked when a pack opens, see check_index()
LARGEST = 1e5  # no number of a frame is as large, in metres or millimetres


class Pack:
    """A packed dataset, memory-mapped: `Pack.open(path)`. Items are numbered from 0 to len - 1.

    ids, splits (N strings each); lengths (N,) frames; labels (N,) action ids, -1 for none; actions:
    their names; mean, std (F,) float32; rest (24, 3) joints of the "smpl" skeleton, else None;
    name, skeleton, fps, nfeats, encoding. FileNotFoundError or ValueError, with the command to run,
    if the file is missing, of another kind or version, cut off, damaged as far as a quick look
    tells (see check), or stale because a file that it was made from has changed.
    """
    _header, _shared = {}, None

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
        _, self._version, index_size, offset, whole, self._digest = PREFIX.unpack(prefix)
        if not 1 <= self._version <= VERSION:
            raise self._refused(f"has format version {self._version}, this program reads 1 to "
                                f"{VERSION} (a newer copy of it may read more)")
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
        self.lengths, self.labels, self.encoding = a["frames"], a["label"], header["encoding"]
        self.mean, self.std = a["mean"].copy(), a["std"].copy()
        self.rest = a["rest"].copy() if "rest" in a else None
        if self.encoding == "features":
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
        first, frames = int(self._arrays["first"][i]), int(self._arrays["frames"][i])
        whole = self._whole(int(self._arrays["clip"][i]), i)
        return np.asarray(whole[first:first + frames], np.float32)

    def _whole(self, clip, i):
        """The features of a whole clip, of which i is an item; ValueError if it is damaged."""
        a = self._arrays
        if self.encoding == "features":
            whole = self._rows[slice(*a["clip_start"][clip:clip + 2].tolist())]
            if clip not in self._seen and "clip_crc" in a:
                if zlib.crc32(whole) != a["clip_crc"][clip]:
                    raise self._refused(f"is damaged (clip {self.ids_of([i])[0]} does not match "
                                        "its checksum)")
        else:
            whole = self._found(clip)
            if whole is None:
                id, body = self.ids_of([i])[0], motion.SKELETONS[self.skeleton]
                try:
                    features = motion.joints_to_features(self._joints_of(clip), body, clip=id)
                except (ValueError, lzma.LZMAError) as error:
                    raise self._refused(f"is damaged (clip {id}: {error})") from None
                whole = self._keep(clip, features.astype(np.float32))
        if clip not in self._seen:  # once a clip, when it is first read
            # One comparison finds NaN, infinity and numbers that no motion has.
            if not (np.abs(whole, dtype=np.float32) < LARGEST).all():
                raise self._refused(f"is damaged (clip {self.ids_of([i])[0]} holds a number that "
                                    "is not finite or far too large)")
            self._seen.add(clip)
        return whole

    def share(self):
        """From now on, processes that are forked from this one make the features of a clip that is
        stored as joints once for all of them, in memory that they share. (Without room for all
        clips, each goes on for itself.)"""
        if self.encoding == "joints" and self._shared is None:
            cuts = np.concatenate([[0], np.cumsum(self._arrays["clip_frames"], dtype=np.int64)])
            count, size = len(cuts) - 1, int(cuts[-1]) * self.nfeats * 4
            try:
                memory = mmap.mmap(-1, count * 4 + size)
            except (OSError, ValueError, OverflowError):
                return
            sums = np.frombuffer(memory, np.uint32, count)  # 0: not made yet
            rows = np.frombuffer(memory, np.float32, -1, count * 4).reshape(-1, self.nfeats)
            self._shared = cuts, sums, rows

    def _found(self, clip):
        """The features of a clip, if they have been made; those that another process wrote count
        once their checksum is right, as its writes may arrive in any order."""
        if self._shared is None or clip in self._made:
            return self._made.get(clip)
        cuts, sums, rows = self._shared
        whole = rows[cuts[clip]:cuts[clip + 1]]
        if sums[clip] and (clip in self._seen or sums[clip] == _sum(whole)):
            return whole
        return None

    def _keep(self, clip, features):
        if self._shared is None:
            self._made[clip] = features
            return features
        cuts, sums, rows = self._shared
        rows[cuts[clip]:cuts[clip + 1]] = features
        sums[clip] = _sum(features)
        return features

    def _joints_of(self, clip):
        """The joints (T+1, J, 3) of a clip that is stored as such, or as a mirror image."""
        a, body = self._arrays, motion.SKELETONS[self.skeleton]
        source = int(a["mirror"][clip]) if "mirror" in a else -1
        place = clip if source < 0 else source
        start, end = (a["clip_start"][place:place + 2] + PREFIX.size).tolist()
        joints = decode_joints(self._bytes[start:end].tobytes(), body.parents,
                               int(a["clip_frames"][clip]) + 1, self._version)
        return joints if source < 0 else motion.mirror_joints(joints, body)

    def clips(self):
        """Yield the whole clips, each with its items, as write_pack takes them."""
        a = self._arrays
        order = np.argsort(a["clip"], kind="stable")
        for items in np.split(order, np.flatnonzero(np.diff(a["clip"][order])) + 1):
            i = int(items[0])
            clip = int(a["clip"][i])
            whole, joints = self._whole(clip, i), None
            if self.encoding == "joints":
                joints = self._joints_of(clip)
            parts = [(self.ids[n], int(a["first"][n]), int(a["frames"][n]), self.captions(n))
                     for n in items.tolist()]
            yield Clip(self.ids[i], [], self.splits[i], self.action(i), whole, joints,
                       items=parts)

    def joints(self, i):
        """(T, J, 3) joint positions in metres."""
        return motion.to_metres(self.features(i), self.skeleton, self.rest)

    def captions(self, i):
        """list[Caption]; empty if the dataset has action labels only."""
        first, last = self._arrays["caption"][i:i + 2].tolist()
        cuts = self._arrays["text_start"][first:last + 1]
        try:
            lines = [self._text[s:e].tobytes().decode() for s, e in zip(cuts, cuts[1:])]
            return [Caption(*line.split("\t")) for line in lines]
        except (ValueError, TypeError, lzma.LZMAError):
            raise self._refused(f"is damaged (a caption of {self.ids_of([i])[0]} cannot be "
                                "read)") from None

    @functools.cached_property
    def _text(self):
        text = self._bytes[self._header["text_offset"]:self._index.start]
        if self._header.get("text") != "lzma":
            return text
        size = int(self._arrays["text_start"][-1])
        text = lzma.LZMADecompressor().decompress(text.tobytes(), size + 1)
        if len(text) != size:
            raise ValueError(f"its text is not {size} bytes")
        return np.frombuffer(text, np.uint8)

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


def _sum(array):
    return zlib.crc32(array) or 1


def _remake(path):
    """The command that makes the pack of this name."""
    name = os.path.splitext(os.path.basename(path))[0]
    known = {n: f"{n} DIR" for n in ("humanml3d", "kit", "humanact12", "uestc")} | {"toy": "toy"}
    own = f"humanml3d DIR --name {name} (or bvh DIR --captions FILE --name {name})"
    return f"python prepare.py {known.get(name, own)}"
