"""Your own motion capture, BVH files with a file of captions -> clips.

What a file does not say is found from the body in it: its unit, which axis points up, whether left
and right are exchanged, whether people walk at a usual pace. What was found is said.
"""
import hashlib
import os
from collections import Counter
from itertools import chain

import numpy as np

import motion
from formats import bvh, plausible, rigs
from formats.datasets import swap_sides
from formats.pack import Caption, Clip
from formats.text import inside, read_lines, visible

FEW = 20  # with fewer files than this, all are in the train split


def read_captions(path, folder, found, encoding=None):
    """{bvh file, relative to the folder: [captions]} from a captions file (see prepare.py).

    Names that no recording has, and recordings without a caption, are counted in `found`.
    ValueError for a line of another form, or if no name meets a recording."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file; expected lines `file name: caption`.")
    files = visible(folder, ".bvh")
    known = {name[:-4]: name for name in files} | {name: name for name in files}
    captions, strangers = {}, []
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
        met = [(inside(name), text) for name, text in pairs if inside(name) in known]
        if met:
            captions.setdefault(known[met[0][0]], []).append(met[0][1])
        else:
            strangers.append(pairs[0][0])
    if not captions and not strangers:
        raise ValueError(f"{path} holds no caption; expected lines `file name: caption`.")
    found.meet(path, [*captions, *strangers], folder, files)
    found["without caption"] += [name for name in files if name not in captions]
    return captions


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


def read_recording(folder, name, table, found, *, unit=None, up=None, fps=None, keep=False,
                   encoding=None):
    """A BVH file -> joints (T, 22, 3) at 20 frames a second, its faults [(first, last frame of the
    result, sentence)], and which axis points up in it. ValueError if it cannot be read or
    understood."""
    recording = bvh.read_bvh(os.path.join(folder, name), encoding)
    joints, what = rigs.to_metres(recording, table, unit, up)
    rate, cut, faults = fps or recording.fps, 0, []
    if not 2 <= rate <= 1000:
        raise ValueError(f"{rate:g} frames a second cannot be; give the true rate with --fps")
    far = np.abs(joints).max(axis=(1, 2))
    if not (far < 1e4).all():  # kilometres away: a broken number, which would drown all others
        frame = int(np.argmin(far < 1e4))
        raise ValueError(f"frame {frame}: a joint is {far[frame]:.3g} m away, where no person "
                         "can be")
    if not keep:
        cut = plausible.rest_frames(joints, rate)
        after = len(joints) - plausible.rest_frames(joints[cut:][::-1], rate, blend=False)
        if cut:
            found.say("a rest pose before the motion is left out", f"{name}: {cut} frames")
        if after < len(joints):
            found.say("a rest pose after the motion is left out",
                      f"{name}: {len(joints) - after} frames")
        joints = joints[cut:after]
        faults = plausible.faults(joints, rate)
        if not fps:
            plausible.check_pace(joints, rate)
            if plausible.pace(joints, rate) is None:
                found.say("the frame rate is the file's own: nobody walks six even steps that "
                          "would show whether it is right", name)
    found.say(f"read with {what['unit']} as the unit, {what['up']} up, {rate:g} frames a second",
              name)
    if what["mirrored"]:
        found.say("left and right are exchanged (left-handed coordinates); x is turned round", name)
    scale, near = motion.T2M.fps / rate, 3  # a spline rings for some frames around a jump
    return rigs.resample(joints, rate, motion.T2M.fps), [
        (int((fault.first - near) * scale), int((fault.last + near) * scale) + 1,
         f"{name}, frame {fault.frame + cut}: {fault.reason}") for fault in faults], what["up"]


def read_bvhs(captions, folder, found, *, min_length, max_length, mirror=False, rig=None,
              up=None, encoding=None, **options):
    """Yield the clips of {bvh file: [captions]}, with mirrored copies (prefix M) if `mirror`.

    A recording of max_length frames or more is cut into windows of equal length. A hash of the
    file's name puts all its windows and copies into one split: 80% train, 5% val, 15% test.
    rig (a name or the path of a table), and unit, up, fps: None finds them. Windows in which
    something happens that no person can do are left out and named, unless `keep`."""
    table = rigs.RIGS.get(rig) or (rigs.read_table(rig, encoding) if rig else None)
    ids = ids_of(sorted(captions))
    taken, ups, again = set(ids.values()), Counter(), {}
    for name, id in chain(ids.items(), again.items()):  # `again` fills while the first are read
        usual = up or (ups.most_common(1)[0][0] if name in again and ups else None)
        try:
            joints, faults, axis = read_recording(folder, name, table, found, up=usual,
                                                  encoding=encoding, **options)
            if name in again:
                found.say(f"somebody lies there: {axis} is taken to point up, as in most other "
                          "recordings", name)
            ups[axis] += 1
        except (OSError, ValueError) as error:
            if isinstance(error, plausible.Unclear) and name not in again:
                again[name] = id
                continue
            found.fail(name, error)
            continue
        draw = int(hashlib.sha256(id.encode()).hexdigest(), 16) % 100
        split = "train" if draw < 80 or len(captions) < FEW else "val" if draw < 85 else "test"
        frames = len(joints) - 1  # features have one frame less
        if frames < min_length:
            found[f"shorter than {min_length} frames"].append(id)
            continue
        windows, texts = -(-frames // (max_length - 1)), captions[name]
        cuts = np.linspace(0, frames, windows + 1).round().astype(int).tolist()
        for number, (first, last) in enumerate(zip(cuts, cuts[1:])):
            part = unused(f"{id}_{number}", taken, found) if windows > 1 else id
            fault = next((f for f in faults if f[0] <= last and f[1] >= first), None)
            if fault:
                found.leave(part, fault[2])
                continue
            window = joints[first:last + 1]
            copies = [(part, window, texts)]
            found.good += 1
            if mirror:
                swapped = [swap_sides(text) for text in texts]
                other = motion.mirror_joints(window, motion.T2M)
                copies.append((unused(f"M{part}", taken, found), other, swapped))
            for copy, places, sentences in copies:
                try:
                    features = motion.joints_to_features(places, motion.T2M, motion.T2M_OFFSETS,
                                                         clip=copy).astype(np.float32)
                except ValueError as error:  # for example, nobody moves
                    found[str(error).removeprefix(f"clip {copy}: ")].append(copy)
                    continue
                yield Clip(copy, [Caption(text) for text in sentences], split, features=features)
