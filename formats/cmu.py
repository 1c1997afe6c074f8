"""HumanML3D's part of the CMU motion capture database -> clips, from two things that anyone may
download: a copy of the database as BVH files, and HumanML3D's index, texts and split lists.

index.csv says which frames, at 20 a second, of which recording are which clip. HumanML3D counts
them from the first frame of the capture. The copies of the database have frame 0 of their own, a
T-pose, so that the capture begins with their frame 1; where somebody has cut the T-pose away, the
number of frames of the capture that went with it has to be given.
"""
import csv
import os
import re
import zipfile
from dataclasses import dataclass

from formats import bvh, rigs
from formats.datasets import need, read_splits, read_texts
from formats.pickle_reader import Budget
from formats.recordings import Window, clips_of, cut, read_recording
from formats.text import read_text, visible
from motion import T2M

# The capture has 120 frames a second, these subjects' has 60. Copies say 120 there as well.
SLOW = {60: 60.0, 61: 60.0}
NAME = re.compile(r"(?:.*/)?(\d{1,3})_(\d{1,3})(?:_poses)?\.(?:bvh|npy)", re.I)
NEAR = 0.2  # seconds by which a window may lead out of a recording


@dataclass
class Index:
    """What HumanML3D says. windows {(subject, take): [(id, first frame, last + 1)]} of CMU; splits
    {id: split}; texts {id: path}; sources: files; rows {what: count}, to print."""
    windows: dict
    splits: dict
    texts: dict
    sources: list
    rows: dict


def read_humanml3d(folder, scratch, encoding=None):
    """The folder of HumanML3D's index.csv, split lists and texts (a folder, or texts.zip, which is
    unpacked into `scratch`), or a copy of its repository -> Index. FileNotFoundError names what is
    missing."""
    need(folder)
    inner = os.path.join(folder, "HumanML3D")
    places = [folder, *[inner] * os.path.isdir(inner)]

    def place(*names):
        paths = [os.path.join(place, name) for place in places for name in names]
        there = [path for path in paths if os.path.exists(path)]
        if not there:
            raise FileNotFoundError(f"{folder} lacks {' or '.join(names)}; expected HumanML3D's "
                                    "index.csv, train.txt, val.txt, test.txt, and texts or "
                                    "texts.zip.")
        return there[0]

    index, lists = place("index.csv"), place("train.txt")
    windows = {}
    for number, row in enumerate(csv.reader(read_text(index, encoding).split("\n")), start=1):
        if not row or "/CMU/" not in row[0]:
            continue
        match, id = NAME.fullmatch(row[0]), row[-1].removesuffix(".npy")
        if len(row) != 4 or not match or not all(re.fullmatch(r"-?\d{1,9}", n) for n in row[1:3]):
            raise ValueError(f"{index}, line {number}: expected `./pose_data/CMU/01/01_01_poses."
                             f"npy,0,117,000001.npy`, found {','.join(row)[:100]!r}.")
        trial = int(match[1]), int(match[2])
        windows.setdefault(trial, []).append((id, int(row[1]), int(row[2])))
    if not windows:
        raise ValueError(f"{index} names no recording of CMU; expected HumanML3D's index.csv.")
    texts = place("texts", "texts.zip")
    source = texts
    if os.path.isfile(texts):
        unpack_texts(texts, scratch)
        texts = scratch
    texts = {os.path.basename(name)[:-4]: os.path.join(texts, name)
             for name in visible(texts, ".txt")}
    rows = {"windows of CMU in index.csv": sum(map(len, windows.values())),
            "recordings they are from": len(windows)}
    splits = read_splits(os.path.dirname(lists), encoding)
    sources = [index, *(os.path.join(os.path.dirname(lists), f"{name}.txt")
                        for name in ("train", "val", "test")), *[source] * os.path.isfile(source)]
    return Index(windows, splits, texts, sources, rows)


def unpack_texts(path, scratch):
    """Unpack the .txt files of texts.zip into a folder, by their bare names."""
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [info for info in archive.infolist()
                      if re.fullmatch(r"(?:.*/)?M?\w{1,40}\.txt", info.filename)
                      and "__MACOSX" not in info.filename]
            Budget(os.path.getsize(path)).spend(sum(info.file_size for info in wanted))
            for info in wanted:
                with open(os.path.join(scratch, os.path.basename(info.filename)), "wb") as file:
                    file.write(archive.read(info))
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is not a whole ZIP file; download it again.") from None


def read_cmu(folder, index, found, *, min_length, max_length, trimmed=0, mirror=True,
             store="joints", rig=None, keep=False):
    """Yield the clips of an Index, with mirrored copies (prefix M) if `mirror`; what is missing is
    counted in `found`. folder: BVH files named like 01_01.bvh, in folders of any form; trimmed:
    frames of the capture that they lack in front, where they have no T-pose there."""
    files, wanted = {}, index.windows
    for name in visible(folder, ".bvh"):
        match = NAME.fullmatch(name)
        trial = (int(match[1]), int(match[2])) if match else name
        if trial in files:
            found.say("there twice; the first is read", f"{files[trial]} and {name}")
        files.setdefault(trial, name)
    titles = {trial: name_of(trial) for trial in [*files, *wanted]}
    found.meet("index.csv", [titles[t] for t in wanted], folder, [titles[t] for t in files])
    index.rows["recordings there"] = sum(trial in files for trial in wanted)
    table = rigs.RIGS.get(rig) or (rigs.read_table(rig) if rig else None)
    taken = {id for windows in wanted.values() for id, _, _ in windows}
    for trial, windows in sorted(wanted.items()):
        rows = []
        for row in windows:
            reason = ("recording not there" if trial not in files
                      else "without text" if row[0] not in index.texts
                      else "in no split list" if row[0] not in index.splits else None)
            rows += [row] * (reason is None)
            if reason:
                found[reason].append(row[0])
        if not rows:
            continue
        try:
            recording = read_trial(folder, files[trial], trial, table, found)
        except (OSError, ValueError) as error:
            found.fail(files[trial], error)
            continue
        for row in rows:
            try:
                window = told(row[0], index.texts, found)
                first, last = frames_of(row, recording, trial, trimmed)
                joints, faults = cut(recording, first, last, keep)
            except (OSError, ValueError) as error:
                found.fail(row[0], error)
                continue
            if not min_length < len(joints) <= max_length:
                found[f"outside {min_length}..{max_length - 1} frames"].append(row[0])
                continue
            yield from clips_of(row[0], window, joints, faults, index.splits[row[0]], found, taken,
                                min_length, max_length, mirror, store)


def name_of(trial):
    return trial if isinstance(trial, str) else f"{trial[0]:02d}_{trial[1]:02d}"


def read_trial(folder, name, trial, table, found):
    """The Recording of a trial, at the rate of its capture."""
    fps = SLOW.get(trial[0])
    if fps and bvh.read_bvh(os.path.join(folder, name)).fps <= fps:
        fps = None  # this copy says what is right
    return read_recording(folder, name, table, found, fps=fps)


def frames_of(row, recording, trial, trimmed):
    """HumanML3D's frames first..last-1 at 20 a second -> (first, last + 1) of the recording's.
    ValueError if they lead out of it."""
    _, first, last = row
    seconds = len(recording.joints) / recording.fps
    # A T-pose in front is one frame more than the capture has; the rest that was cut is a blend.
    lead = 1 / recording.fps if recording.first else -trimmed / SLOW.get(trial[0], 120.0)
    start, end = first / T2M.fps + lead, (last - 1) / T2M.fps + lead
    if last < 0:
        end = seconds
    if end > seconds + NEAR or start < -NEAR or start >= end:
        raise ValueError(f"frames {first} to {last} of {recording.name} lead out of the recording, "
                         f"which has {seconds:.2f} s")
    first, last = round(start * recording.fps), round(end * recording.fps) + 1
    return max(first, recording.first), min(last, recording.last)


def told(id, texts, found):
    """The Window of a clip: its captions and, if HumanML3D has them, those of its mirror image."""
    image = texts.get(f"M{id}")
    return Window(captions=read_texts(texts[id], found),
                  mirrored=read_texts(image, found) if image else None)
