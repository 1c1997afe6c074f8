"""Your own motion capture, BVH files with a file of captions -> clips.

What a file does not say is found from the body in it: its unit, which axis points up, whether left
and right are exchanged, whether people walk at a usual pace. What was found is said.
"""
import csv
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

import motion
from formats import bvh, plausible, rigs
from formats.datasets import swap_sides
from formats.pack import Caption, Clip
from formats.pack_index import SPLITS
from formats.text import inside, read_lines, read_text, visible

FEW = 20  # with fewer files than this, all are in the train split
NUMBER = r"\d+(?:\.\d*)?|\.\d+"
WINDOW = re.compile(rf"(?P<name>.+?)(?:\s+(?P<start>{NUMBER})\s*-\s*(?P<end>{NUMBER})\s*s?)?"
                    r"(?:\s*\[(?P<action>[^\[\]]*)\])?")

# --------------------------------------------------------------------------------------------------
# Captions

@dataclass
class Window:
    """Part of a recording, and what is said about it."""
    start: float | None = None  # seconds from the file's first frame; None: the whole recording
    end: float | None = None
    action: str = ""
    captions: list = field(default_factory=list)  # of Caption
    mirrored: list | None = None  # of the mirror image; None: left and right exchanged


def read_captions(path, folder, found, encoding=None):
    """{bvh file, relative to the folder: [Window]} from a captions file (see prepare.py).

    Names that no recording has, and recordings without a caption, are counted in `found`.
    ValueError for a line of another form, for two actions of one window, or if no name meets a
    recording."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file; expected lines `file name: caption`.")
    files = visible(folder, ".bvh")
    known = {name[:-4]: name for name in files} | {name: name for name in files}
    recordings, strangers = {}, []
    for number, line in enumerate(read_lines(path, encoding), start=1):
        if not line or line.startswith("#"):
            continue
        # A name may hold a colon or a caption a tab: what names a recording decides.
        pairs = [line.split(mark, 1) for mark in ("\t", ": ", ":") if mark in line]
        pairs = [(name.strip(), text.strip()) for name, text in pairs]
        pairs = [pair for pair in pairs if all(pair)]
        if not pairs:
            raise ValueError(f"{path}, line {number}: expected `file name: caption` or "
                             f"`file name<TAB>caption`, found {line[:100]!r}.")
        parsed = [(_place(name, known), text) for name, text in pairs]
        met = next(((place, text) for place, text in parsed if place), None)
        if met is None:
            strangers.append(pairs[0][0])
            continue
        (name, start, end, action), text = met
        if start is not None and start >= end:
            raise ValueError(f"{path}, line {number}: the window {start:g}-{end:g} of {name} ends "
                             "before it begins; expected `file name START-END: caption`, in "
                             "seconds.")
        windows = recordings.setdefault(name, {})
        window = windows.setdefault((start, end), Window(start, end))
        if action and window.action not in ("", action):
            raise ValueError(f"{path}, line {number}: {name} has two actions, [{window.action}] "
                             f"and [{action}]; a recording or a window has one.")
        window.action = action or window.action
        window.captions.append(Caption(text))
    if not recordings and not strangers:
        raise ValueError(f"{path} holds no caption; expected lines `file name: caption`.")
    found.meet(path, [*recordings, *strangers], folder, files)
    found["without caption"] += [name for name in files if name not in recordings]
    return {name: list(windows.values()) for name, windows in recordings.items()}


def _place(name, known):
    """`take1`, `take1 0.5-3.2`, `take1 [jump]` or `take1 0.5-3.2 [jump]` -> (file, start, end,
    action), or None if no recording is called that."""
    if inside(name) in known:
        return known[inside(name)], None, None, ""
    match = WINDOW.fullmatch(name)
    if not match or inside(match["name"]) not in known:
        return None
    start, end = (None if s is None else float(s) for s in (match["start"], match["end"]))
    return known[inside(match["name"])], start, end, " ".join((match["action"] or "").split())


def read_split_table(path, captions, found, encoding=None):
    """A CSV file of lines `file name,split` -> {bvh file: split}. `captions`: the files there are.
    ValueError for another form, or if it meets none of them."""
    known = {name[:-4]: name for name in captions} | {name: name for name in captions}
    splits = {}
    for number, row in enumerate(csv.reader(read_text(path, encoding).split("\n")), start=1):
        row = [part.strip() for part in row]
        if not any(row) or number == 1 and row[-1] not in SPLITS:
            continue  # an empty line, or the header
        name = known.get(inside(row[0]), row[0])
        if len(row) != 2 or row[1] not in SPLITS or splits.setdefault(name, row[1]) != row[1]:
            raise ValueError(f"{path}, line {number}: expected `file name,split`, with a split of "
                             f"{', '.join(SPLITS)} and each file once, found "
                             f"{','.join(row)[:100]!r}.")
    found.meet(path, splits, "the captions", captions)
    return splits


def ids_of(names):
    """Files (relative names) -> {file: id}: without .bvh and blanks. Files whose ids would be the
    same keep their own names."""
    short = {name: name[:-4].replace(" ", "_") for name in names}
    for make in (lambda name: name[:-4], lambda name: name):
        counts = Counter(short.values())
        short = {name: make(name) if counts[id] > 1 else id for name, id in short.items()}
    return short


def unused(id, taken, found):
    """`id`, or a longer one if a recording is called that; notes it in `taken`."""
    wanted = id
    while id in taken:
        id += "_"
    taken.add(id)
    if id != wanted:
        found.say("called differently, because another recording has the name",
                  f"{wanted} -> {id}")
    return id


# --------------------------------------------------------------------------------------------------
# Recordings

@dataclass
class Recording:
    name: str
    joints: np.ndarray  # (T, 22, 3) metres, at the file's own rate
    fps: float
    first: int  # frames from `first` to `last` are motion; around them is a rest pose
    last: int
    up: str  # the axis that points up in the file


def read_recording(folder, name, table, found, *, unit=None, up=None, fps=None, keep=False,
                   encoding=None):
    """A BVH file -> Recording, whole; ValueError if it cannot be read or understood."""
    recording = bvh.read_bvh(os.path.join(folder, name), encoding)
    joints, what = rigs.to_metres(recording, table, unit, up)
    rate, first, last = fps or recording.fps, 0, len(joints)
    if not 2 <= rate <= 1000:
        raise ValueError(f"{rate:g} frames a second cannot be; give the true rate with --fps")
    far = np.abs(joints).max(axis=(1, 2))
    if not (far < 1e4).all():  # kilometres away: a broken number, which would drown all others
        frame = int(np.argmin(far < 1e4))
        raise ValueError(f"frame {frame}: a joint is {far[frame]:.3g} m away, where no person "
                         "can be")
    if not keep:
        first = plausible.rest_frames(joints, rate)
        last -= plausible.rest_frames(joints[first:][::-1], rate, blend=False)
        if first:
            found.say("a rest pose before the motion is left out", f"{name}: {first} frames")
        if last < len(joints):
            found.say("a rest pose after the motion is left out",
                      f"{name}: {len(joints) - last} frames")
        if not fps:
            plausible.check_pace(joints[first:last], rate)
            if plausible.pace(joints[first:last], rate) is None:
                found.say("the frame rate is the file's own: nobody walks six even steps that "
                          "would show whether it is right", name)
    found.say(f"read with {what['unit']} as the unit, {what['up']} up, {rate:g} frames a second",
              name)
    if what["mirrored"]:
        found.say("left and right are exchanged (left-handed coordinates); x is turned round", name)
    return Recording(name, joints, rate, first, last, what["up"])


def cut(recording, first, last, keep=False):
    """Frames first..last-1 of a Recording -> joints (T, 22, 3) at 20 frames a second, and their
    faults [(first, last frame of the result, sentence)]."""
    joints, rate = recording.joints[first:last], recording.fps
    faults = [] if keep else plausible.faults(joints, rate)
    scale, near = motion.T2M.fps / rate, 3  # a spline rings for some frames around a jump
    return rigs.resample(joints, rate, motion.T2M.fps), [
        (int((fault.first - near) * scale), int((fault.last + near) * scale) + 1,
         f"{recording.name}, frame {fault.frame + first}: {fault.reason}") for fault in faults]


def frames_of(window, recording):
    """The frames of a Window as (first, last + 1); ValueError if it leads out of the recording."""
    if window.start is None:
        return recording.first, recording.last
    first, last = (int(seconds * recording.fps + 0.500001)  # a half goes up, whatever its last bits
                   for seconds in (window.start, window.end))
    frames = len(recording.joints)
    if last > frames:  # the end may be rounded up to the frame after the last
        raise ValueError(f"the window {window.start:g}-{window.end:g} leads out of the recording, "
                         f"which ends at {(frames - 1) / recording.fps:.2f} s")
    return first, min(last + 1, frames)


def copies_of(id, window, joints, taken, found, mirror, store):
    """A window's motion -> [(id, joints, window)], with its mirror image if `mirror`. What is to
    be stored as joints is put on HumanML3D's body first, so that the image is an exact one."""
    if store == "joints":
        joints = motion.canonical_joints(joints, motion.T2M, motion.T2M_OFFSETS, clip=id)
    copies = [(id, joints, window)]
    if mirror:
        captions = window.mirrored or [
            replace(caption, text=swap_sides(caption.text), tokens=swap_sides(caption.tokens))
            for caption in window.captions]
        swapped = Window(window.start, window.end, swap_sides(window.action), captions)
        copies.append((unused(f"M{id}", taken, found), motion.mirror_joints(joints, motion.T2M),
                       swapped))
    return copies


def read_bvhs(captions, folder, found, *, min_length, max_length, mirror=False, rig=None,
              up=None, encoding=None, splits=None, store="features", **options):
    """Yield the clips of {bvh file: [Window]}, with mirrored copies (prefix M) if `mirror`.

    A window of max_length frames or more is cut into parts of equal length. A hash of the file's
    name puts all its windows and copies into one split: 80% train, 5% val, 15% test; `splits`
    {bvh file: split} goes before. rig (a name or the path of a table), and unit, up, fps: None
    finds them. Windows in which something happens that no person can do are left out and named,
    unless `keep`. store: "features" or "joints", what the clips hold."""
    table = rigs.RIGS.get(rig) or (rigs.read_table(rig, encoding) if rig else None)
    ids = ids_of(sorted(captions))
    taken, ups, again = set(ids.values()), Counter(), {}
    for name, id in chain(ids.items(), again.items()):  # `again` fills while the first are read
        usual = up or (ups.most_common(1)[0][0] if name in again and ups else None)
        try:
            recording = read_recording(folder, name, table, found, up=usual, encoding=encoding,
                                       **options)
            if name in again:
                found.say(f"somebody lies there: {recording.up} is taken to point up, as in most "
                          "other recordings", name)
            elif up and plausible.lies(recording.joints):
                found.say(f"with --up={up} the head is beside or below the feet in most frames; "
                          "is that right?", name)
            ups[recording.up] += 1
        except (OSError, ValueError) as error:
            if isinstance(error, plausible.Unclear) and name not in again:
                again[name] = id
                continue
            found.fail(name, error)
            continue
        draw = int(hashlib.sha256(id.encode()).hexdigest(), 16) % 100
        split = "train" if draw < 80 or len(captions) < FEW else "val" if draw < 85 else "test"
        split = (splits or {}).get(name, split)
        for window in captions[name]:
            where = id
            if window.start is not None:
                where = unused(f"{id}_{window.start:g}-{window.end:g}", taken, found)
            try:
                joints, faults = cut(recording, *frames_of(window, recording),
                                     keep=options.get("keep", False))
            except ValueError as error:
                found.fail(where, f"{name}: {error}")
                continue
            yield from clips_of(where, window, joints, faults, split, found, taken, min_length,
                                max_length, mirror, store)


def clips_of(id, window, joints, faults, split, found, taken, min_length, max_length, mirror,
             store):
    """Yield the clips of one Window's joints at 20 frames a second, as `read_bvhs` describes."""
    frames = len(joints) - 1  # features have one frame less
    if frames < min_length:
        found[f"shorter than {min_length} frames"].append(id)
        return
    parts = -(-frames // (max_length - 1))
    cuts = np.linspace(0, frames, parts + 1).round().astype(int).tolist()
    for number, (first, last) in enumerate(zip(cuts, cuts[1:])):
        part = unused(f"{id}_{number}", taken, found) if parts > 1 else id
        fault = next((f for f in faults if f[0] <= last and f[1] >= first), None)
        if fault:
            found.leave(part, fault[2])
            continue
        found.good += 1
        try:
            copies = copies_of(part, window, joints[first:last + 1], taken, found, mirror, store)
        except ValueError as error:  # for example, nobody moves
            found[str(error).removeprefix(f"clip {part}: ")].append(part)
            continue
        for copy, places, said in copies:
            try:
                features = motion.joints_to_features(places, motion.T2M, motion.T2M_OFFSETS,
                                                     clip=copy).astype(np.float32)
            except ValueError as error:
                found[str(error).removeprefix(f"clip {copy}: ")].append(copy)
                continue
            yield Clip(copy, said.captions, split, said.action, features,
                       places if store == "joints" else None)
