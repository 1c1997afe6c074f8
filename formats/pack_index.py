"""What the index of a pack must hold, so that nothing it says leads outside of the file or into
another clip. See pack.py for the file."""
import re
import struct

import numpy as np

MAGIC, VERSION = b"nanoMLD\n", 2
PREFIX = struct.Struct("<8sIIQQ32s")  # magic, version, size and offset of the index, size, sha256
PLAIN_NAME = re.compile(r"\w[\w.-]{0,199}")  # a name, which leads to no other folder
SPLITS = ("train", "val", "test")
LONGEST_TEXT = 1 << 28  # bytes that compressed text may have when it is unpacked
NFEATS = {"t2m": 263, "kit": 251, "smpl": 150}
TYPES = {"clip_start": "<i8", "clip_frames": "<i4", "text_start": "<i8", "clip": "<i4",
         "first": "<i4", "frames": "<i4", "split": "|u1", "label": "<i2", "caption": "<i4",
         "mean": "<f4", "std": "<f4"}


def fault_of(header, a, end):
    """What is wrong with an index, or None; linear in its size. header: its JSON; a: its arrays;
    end: where motion and text end in the file."""
    def rises(name, first, last):  # starts that lie in order, from `first` to at most `last`
        steps = a[name]
        return (len(steps) and steps[0] == first and steps[-1] <= last
                and (steps[1:] >= steps[:-1]).all())

    skeleton, name, actions = header.get("skeleton"), header.get("name"), header.get("actions")
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        return f"its name is {str(name)[:40]!r}, which is not a plain word"
    if not isinstance(skeleton, str) or skeleton not in NFEATS:
        return f"its skeleton is {str(skeleton)[:40]!r}"
    fps, width, encoding = header.get("fps"), NFEATS[skeleton], header.get("encoding")
    if type(fps) not in (int, float) or not 1 <= fps <= 1000:
        return f"it has {str(fps)[:40]} frames a second"
    if encoding not in ("features", "joints")[:1 + (skeleton != "smpl")]:
        return f"its encoding is {str(encoding)[:40]!r}"
    if header.get("dtype") not in ("<f2", "<f4"):
        return f"its numbers are {str(header.get('dtype'))[:40]}, not floating-point"
    if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
        return "its actions are not names"
    if not all(isinstance(source, list) and len(source) == 3 and isinstance(source[0], str)
               for source in header.get("sources", [0])):
        return "its sources are not files"
    wrong = [key for key, kind in TYPES.items() if key not in a or a[key].dtype.str != kind]
    if wrong or a.get("ids", a["clip"]).dtype.kind != "S":
        return f"{(wrong or ['ids'])[0]} is missing or of another type"
    items, clips = len(a["ids"]), len(a["clip_frames"])
    lengths = {key: items for key in ("clip", "first", "frames", "split", "label")}
    lengths |= {"caption": items + 1, "clip_start": clips + 1, "mean": width, "std": width}
    wrong = [key for key, length in lengths.items() if a[key].shape != (length,)]
    if wrong or not items:
        return f"{(wrong or ['ids'])[0]} has {a[(wrong or ['ids'])[0]].shape} entries"
    if not (np.isfinite(a["mean"]).all() and np.isfinite(a["std"]).all() and (a["std"] > 0).all()):
        return "its mean and std cannot normalise motion"
    if "clip_crc" in a and (a["clip_crc"].shape, a["clip_crc"].dtype.str) != ((clips,), "<u4"):
        return "it has not one checksum for every clip"
    if "mirror" in a:
        source = a["mirror"]
        if (source.shape, source.dtype.str) != ((clips,), "<i4") or encoding != "joints":
            return "its mirror images are of another type"
        images = source >= 0
        if (source < -1).any() or (source >= clips).any() or images[source[images]].any():
            return "a mirror image is of no clip"
        if (a["clip_frames"][images] != a["clip_frames"][source[images]]).any():
            return "a mirror image is longer or shorter than its clip"
    if "rest" in a and (a["rest"].shape != (24, 3) or a["rest"].dtype.str != "<f4"
                        or not np.isfinite(a["rest"]).all()):
        return "its rest pose is not 24 joints"
    text = header.get("text_offset")
    if type(text) is not int or not PREFIX.size <= text <= end:
        return "its text lies outside of the file"
    per_row = width * int(header["dtype"][2]) if encoding == "features" else 1
    frames, starts = a["clip_frames"], a["clip_start"]
    if not rises("clip_start", 0, (text - PREFIX.size) // per_row) or not (frames > 0).all():
        return "its clips lie outside of one another"
    if encoding == "features" and not (starts[1:] - starts[:-1] == frames).all():
        return "its clips do not have as many frames as it says"
    kind = header.get("text", "plain")  # version 1 does not say
    if kind not in ("plain", "lzma"):
        return f"its text is {str(kind)[:40]!r}"
    if (not rises("text_start", 0, LONGEST_TEXT if kind == "lzma" else end - text)
            or not rises("caption", 0, len(a["text_start"]) - 1)):
        return "its captions lie outside of one another"
    clip, first, length = a["clip"], a["first"], a["frames"]
    if not ((clip >= 0) & (clip < clips)).all() or not (first >= 0).all():
        return "an item lies outside of every clip"
    if not ((length > 0) & (length <= frames[clip] - first)).all():
        return "an item reaches into the next clip"
    if not (a["split"] < len(SPLITS)).all():
        return "an item is in an unknown split"
    if not ((a["label"] >= -1) & (a["label"] < len(actions))).all():
        return "an item has an unknown action"
    return None
