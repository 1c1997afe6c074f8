"""Published datasets, as they are on disk -> clips.

HumanML3D and KIT-ML (and any set in their layout), HumanAct12 and UESTC (the files that ACTOR
publishes). Every reader yields Clips, and notes in `found`, a Found, what it leaves out and why.
"""
import csv
import math
import os
import re
import tokenize
from collections import Counter

import numpy as np

import motion
from formats import safe_pickle
from formats.pack import Caption, Clip
from formats.text import inside, read_lines, read_text, visible

# --------------------------------------------------------------------------------------------------
# HumanML3D and KIT-ML: loose files

def need(folder, *names):
    """Raise unless `folder` exists and contains all these files and folders."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of the dataset.")
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; expected {', '.join(names)} "
                                "in it.")


def fits(array, shape):
    """Whether it is an array of floats with this shape (None stands for any length)."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != len(shape):
        return False
    return all(n in (None, m) for n, m in zip(shape, array.shape))


def load_npy(path, shape):
    """The float array of a .npy file, which may hold NaN; ValueError if it has another shape, or
    fewer numbers than its header says (which is looked at first)."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0,
                      (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, columns_first, dtype = header(file)
            size = dtype.itemsize * math.prod(found)
            if dtype.hasobject or size > os.path.getsize(path) - file.tell():
                raise ValueError(f"{size} bytes of {dtype} are not in it")
            array = np.fromfile(file, dtype, math.prod(found)) if size else np.empty(0, dtype)
            array = array.reshape(found, order="F" if columns_first else "C")
    except (*safe_pickle.READ_ERRORS, SyntaxError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a readable .npy file of numbers: {reason}.") from None
    if not fits(array, shape):
        wanted = " x ".join("frames" if n is None else str(n) for n in shape)
        raise ValueError(f"{path}: expected {wanted} floating-point numbers, found {array.dtype} "
                         f"of shape {array.shape}; use `prepare.py humanml3d` for 263 numbers a "
                         "frame, `prepare.py kit` for 251.")
    return array


def read_texts(path, found, encoding=None):
    """Lines `caption#word/TAG word/TAG#from#to` -> list[Caption]; from and to are in seconds, 0
    or nan for the whole clip. A caption without tags, or alone, is taken too, and that is said."""
    captions = []
    for number, line in enumerate(read_lines(path, encoding), start=1):
        text, *rest = line.rsplit("#", 3)
        try:
            if len(rest) == 3:
                start, end = np.nan_to_num([float(seconds) for seconds in rest[1:]]).tolist()
            elif len(rest) == 2:
                raise ValueError
            else:
                start = end = 0.0
                if rest and not all("/" in word for word in rest[0].split()):
                    text, rest = line, []  # as in "player #1 walks"
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected `caption#word/TAG word/TAG#from#to`"
                             f", found {line[:100]!r}.") from None
        tokens = rest[0] if rest else ""
        if text.strip():
            captions.append(Caption(text, tokens, start, end))
            if not tokens.strip():
                name = os.path.basename(path)
                found.say("captions without tags, which the published evaluator cannot judge", name)
    return captions


def read_splits(folder, encoding=None):
    """The split lists of a folder -> {id: split}. An id is a name, which may not lead out of the
    folder."""
    splits = {}
    for split in ("train", "val", "test"):
        path = os.path.join(folder, split + ".txt")
        for id in filter(None, read_lines(path, encoding)):
            if inside(id) != id:
                raise ValueError(f"{path}: {id[:100]!r} is not the name of a clip in this folder.")
            if splits.setdefault(id, split) != split:
                raise ValueError(f"{path}: id {id} is also in {splits[id]}.txt; list it once.")
    if not splits:
        raise ValueError(f"{folder}: train.txt, val.txt and test.txt name no clip.")
    for id in splits:  # part of a clip is named like this, see pack.items_of
        part = re.fullmatch(r"[A-Z]\d*_(.+)", id)
        if part and part[1] in splits:
            raise ValueError(f"{folder}: the lists name {id}, which is also what a part of "
                             f"{part[1]} would be called; rename one of them.")
    return splits


def read_layout(folder, nfeats, min_length, max_length, found, encoding=None):
    """Yield the clips of a folder in HumanML3D's layout."""
    splits = read_splits(folder, encoding)
    vectors, texts = os.path.join(folder, "new_joint_vecs"), os.path.join(folder, "texts")
    moving, told = ([os.path.splitext(name)[0] for name in visible(place, ending)]
                    for place, ending in ((vectors, ".npy"), (texts, ".txt")))
    found.meet("the split lists", splits, "new_joint_vecs", moving)
    there = set(moving)
    if "train" in splits.values() and not any(
            split == "train" and id in there for id, split in splits.items()):
        raise ValueError(f"{folder}: none of train.txt's names is in new_joint_vecs; they must "
                         "be equal, with all their zeros and without an ending.")
    found.meet("new_joint_vecs", [id for id in moving if id in splits], "texts", told)
    for id in moving:
        if id not in splits:  # such as HumanML3D's 007975 and M007975
            try:
                path = os.path.join(vectors, id + ".npy")
                finite = np.isfinite(load_npy(path, (None, nfeats))).all()
                found["in no split list" + ("" if finite else ", and not finite")].append(id)
            except ValueError:
                found["in no split list, and not readable"].append(id)
    moving, told = set(moving), set(told)
    for id, split in splits.items():
        if id not in moving or id not in told:
            found["without text" if id in moving else "without motion"].append(id)
            continue
        try:
            features = load_npy(os.path.join(vectors, id + ".npy"), (None, nfeats))
            captions = read_texts(os.path.join(texts, id + ".txt"), found, encoding)
        except (OSError, ValueError) as error:
            found.fail(id, error)
            continue
        found.good += 1
        if not np.isfinite(features).all():
            found["not finite"].append(id)
        elif not min_length <= len(features) < max_length:
            found[f"outside {min_length}..{max_length - 1} frames"].append(id)
        elif not captions:
            found["without text"].append(id)
        else:
            yield Clip(id, captions, split, features=features)


def read_actions(path, ids, found, encoding=None):
    """A CSV file with a header and the id in its first column -> {id: label}. Further columns are
    joined by /, as in walk/tired. The mirrored clip (M and the id) has left and right exchanged.

    ids: those of the clips. Blanks around an entry, .npy after an id and a missing header do no
    harm. ValueError if no id of the table is that of a clip, or if one has two labels."""
    try:
        table = csv.reader(read_text(path, encoding).split("\n"), strict=True)
        rows = [[part.strip() for part in row] for row in table if row]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}.") from None
    names, labels, known = [row[0].removesuffix(".npy") for row in rows], {}, set(ids)
    headed = bool(names) and names[0] not in known and f"M{names[0]}" not in known
    if names and not headed:
        found.say(f"{path} has no header line: its first line is the label of {names[0]}")
    for row, id in list(zip(rows, names))[headed:]:
        label = "/".join(row[1:])
        if len(row) < 2 or not all(row) or labels.setdefault(id, label) != label:
            wanted = (f"one label for {id}" if labels.get(id, label) != label
                      else "a header line, then lines like `000012,walk`")
            raise ValueError(f"{path}: expected {wanted}, found {','.join(row)[:100]!r}.")
    if not labels:
        raise ValueError(f"{path}: expected a header line, then lines like `000012,walk`, found "
                         "nothing.")
    if (kinds := len(set(labels.values()))) > max(10, len(labels) / 4):
        raise ValueError(f"{path}: {kinds} labels are too many for {len(labels)} clips; keep only "
                         "columns that name the action: cut -d, -f1-2 FILE > actions.csv")
    # A table may name the mirrored copy too; without, it goes with the clip.
    whole = [id for id in ids if id in labels or id[:1] != "M" or id[1:] not in known]
    found.meet(path, labels, "the split lists", whole)
    return {f"M{id}": swap_sides(label) for id, label in labels.items()} | labels


def swap_sides(text):
    """The caption of the mirrored motion: left for right, clockwise for counterclockwise."""
    others = {"left": "right", "right": "left", "clockwise": "counterclockwise"}

    def other(word):
        swapped = others.get(word[0].lower(), "clockwise")
        return swapped.capitalize() if word[0][0].isupper() else swapped
    words = r"\b(left|right|clockwise|(counter|anti)-?clockwise)(?=\b|wards?\b|most\b)"
    return re.sub(words, other, text, flags=re.I)


# --------------------------------------------------------------------------------------------------
# HumanAct12 and UESTC: pickles of SMPL poses

HUMANACT12 = ("warm_up", "walk", "run", "jump", "drink", "lift_dumbbell", "sit", "eat",
              "turn steering wheel", "phone", "boxing", "throw")
# Of UESTC's 118 people, these are in the train split and the others in the test split.
UESTC_TRAIN = (1, 2, 6, 12, 13, 16, 21, 24, 28, 29, 30, 31, 33, 35, 39, 41, 42, 45, 47, 50, 52, 54,
               55, 57, 59, 61, 63, 64, 67, 69, 70, 71, 73, 77, 81, 84, 86, 87, 88, 90, 91, 93, 96,
               99, 102, 103, 104, 107, 108, 112, 113)
FRAMES = 60  # of a training sample; a shorter sequence ends with its last pose held still

# Joints (24, 3) in metres of a T pose, used where no SMPL file is given: a figure of our own, 1.7 m
# tall, with the proportions of HumanML3D's body. The features are rotations and do not depend on
# it; pictures and joint losses do.
DEFAULT_REST = np.array([
    (0, 0, 0), (.06, -.09, 0), (-.06, -.09, 0), (0, .12, -.02), (.10, -.48, 0), (-.10, -.48, 0),
    (0, .26, 0), (.09, -.90, -.04), (-.09, -.90, -.04), (0, .32, .02), (.12, -.96, .09),
    (-.12, -.96, .09), (0, .53, -.03), (.08, .44, -.02), (-.08, .44, -.02), (0, .62, .02),
    (.18, .47, -.03), (-.18, .47, -.03), (.44, .46, -.05), (-.44, .46, -.05), (.70, .46, -.06),
    (-.70, .46, -.06), (.79, .45, -.07), (-.79, .45, -.07)])


def rest_joints(path):
    """The rest joints (24, 3) of an SMPL file (.pkl or .npz), with the pelvis at the origin;
    DEFAULT_REST if `path` is None. ValueError if the file is not an SMPL body model."""
    if path is None:
        return DEFAULT_REST
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file; expected an SMPL body model, .pkl or .npz.")
    load, dense = safe_pickle.load_pickle, safe_pickle.dense
    try:
        model = safe_pickle.load_npz(path) if path.endswith(".npz") else load(path)
        if "J" in model:
            joints = dense(model["J"])
        else:
            joints = dense(model["J_regressor"]) @ dense(model["v_template"])
        joints = joints.astype(np.float64).reshape(-1, 3)[:24].reshape(24, 3)
        if not np.isfinite(joints).all():
            raise ValueError("its joints are not finite")
        return joints - joints[0]
    except safe_pickle.READ_ERRORS as error:
        raise ValueError(f"{path} is not an SMPL body model with 24 rest joints (J, or J_regressor "
                         f"and v_template): {error}.") from None


def pose_features(poses, roots):
    """SMPL poses (T, 72) axis-angle and root positions (T, 3) -> (T', 150), T' >= 60.

    A frame is ACTOR's 25 rows of six numbers. Rows 0..23: each joint's rotation, as the first two
    ROWS of its matrix. Row 24: the root's path from the first frame, and three zeros."""
    matrices = motion.axis_angle_to_matrix(poses.reshape(-1, 24, 3))
    path = np.concatenate([roots - roots[0], np.zeros_like(roots)], axis=1)  # (T, 6)
    rotations = motion.matrix_to_6d(matrices.swapaxes(-1, -2))
    rows = np.concatenate([rotations, path[:, None]], axis=1)  # (T, 25, 6)
    short = max(0, FRAMES - len(rows))
    return np.pad(rows.reshape(-1, 150), ((0, short), (0, 0)), mode="edge").astype(np.float32)


def load_lists(path, shapes):
    """A published pickle of lists of arrays; shapes: {key: shape of an array without its frames}.
    ValueError names what does not fit."""
    data = safe_pickle.load_pickle(path)
    missing = [key for key in shapes if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; expected a pickled dict with "
                         f"{', '.join(shapes)}.")
    lengths = [len(data[key]) if np.iterable(data[key]) else 0 for key in shapes]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"{path}: {', '.join(shapes)} should be lists of the same length, found "
                         f"{', '.join(map(str, lengths))}.")
    return data


def usable(path, i, id, arrays, shapes, found):
    """Whether sequence `i` of a pickle can be used; if not, notes why in `found`."""
    frames = None
    for (key, shape), array in zip(shapes.items(), arrays):
        empty = not array.size if isinstance(array, np.ndarray) else array == []
        if not empty and not fits(array, (frames, *shape)):
            count = "some" if frames is None else frames
            found.fail(id, f"{path}: {key}[{i}] should be {count} frames of {shape} numbers, found "
                           f"{getattr(array, 'shape', type(array).__name__)}.")
            return False
        frames = len(array)
    found.good += 1
    whole = all(map(np.size, arrays))
    if whole and all(np.isfinite(array).all() for array in arrays):
        return True
    found["not finite" if whole else "empty"].append(id)
    return False


def read_humanact12(folder, found, encoding=None):
    """-> (clips, action names, source files, {what: count}). All are in the train split, because
    the set is published without splits."""
    need(folder, "humanact12poses.pkl")
    path = os.path.join(folder, "humanact12poses.pkl")
    shapes = {"poses": (72,), "joints3D": (24, 3)}
    data = load_lists(path, shapes)
    labels = list(data["y"]) if np.iterable(data.get("y")) else []
    known = {str(label) for label in range(len(HUMANACT12))}
    wrong = [label for label in labels
             if not isinstance(label, (str, int, np.integer)) or str(label) not in known]
    if len(labels) != len(data["poses"]) or wrong:
        raise ValueError(f"{path}: y should be {len(data['poses'])} actions of 0..11, found "
                         f"{len(labels)}{f' with {wrong[0]!s:.20}' if wrong else ''}.")

    def clips():
        for i, (poses, joints) in enumerate(zip(data["poses"], data["joints3D"])):
            if usable(path, i, f"{i:04d}", (poses, joints), shapes, found):
                features = pose_features(np.float64(poses), np.float64(joints[:, 0]))
                yield Clip(f"{i:04d}", action=HUMANACT12[int(labels[i])], features=features)
    rows = {"sequences": len(labels), "actions": len({int(label) for label in labels})}
    return clips(), HUMANACT12, [path], rows


def read_uestc(folder, found, encoding=None):
    """-> (clips, action names, source files, {what: count}). Split by person, as published; all
    views are turned to the front."""
    need(folder, "vibe_cache_refined.pkl", "info")
    info, path = os.path.join(folder, "info"), os.path.join(folder, "vibe_cache_refined.pkl")
    need(info, "action_classes.txt", "num_frames_min.txt", "names.txt")
    actions, names, frames = (read_lines(os.path.join(info, f"{name}.txt"), encoding)
                              for name in ("action_classes", "names", "num_frames_min"))
    shapes = {"pose": (72,), "joints3d": (None, 3), "orig_cam": (4,)}
    data = load_lists(path, shapes)
    if not len(names) == len(frames) == len(data["pose"]):
        raise ValueError(f"{folder}: {len(names)} names, {len(frames)} lengths and "
                         f"{len(data['pose'])} poses should be the same number.")
    form = re.compile("_".join(letter + r"(\d{1,4})" for letter in "adpc") + r"(?!\d)")
    parsed = [form.match(name) for name in names]
    for name, length, match in zip(names, frames, parsed):
        if not match or int(match[1]) >= len(actions) or not re.fullmatch(r"\d{1,9}", length, re.A):
            raise ValueError(f"{info}: expected names a<0..{len(actions) - 1}>_d<view>_p<person>_"
                             f"c<side> and numbers of frames, found {name!r} and {length!r}.")

    twice = [id for id, times in Counter(match[0] for match in parsed).items() if times > 1]
    if twice:
        raise ValueError(f"{info}: {twice[0]} is there twice in names.txt; each name needs to be "
                         "of one sequence.")

    def clips():
        for i, match in enumerate(parsed):
            action, view, person, side = map(int, match.groups())
            if not usable(path, i, match[0], [data[key][i] for key in shapes], shapes, found):
                continue
            length = min(int(frames[i]), len(data["pose"][i]))
            split = "train" if person in UESTC_TRAIN else "test"
            pose, joints, camera = (np.float64(data[key][i][:length]) for key in shapes)
            if side != 1 and view == 8:
                found["of view 8"].append(match[0])
            elif not length or (split == "train" and length < FRAMES * 3 / 4):
                found[f"shorter than {FRAMES * 3 // 4} frames"].append(match[0])
            else:
                # The camera is (scale, scale, x, y), its focal length 500, its image 540 pixels.
                depth = 500 / (270 * camera[:, 0])
                pelvis = joints[:, 8 if joints.shape[1] > 24 else 0]
                roots = pelvis + np.stack([*camera.T[2:], depth], axis=1)
                if side != 1:
                    turn = motion.axis_angle_to_matrix(np.array([0, -view * np.pi / 4, 0]))
                    turned = turn @ motion.axis_angle_to_matrix(pose[:, :3])
                    pose[:, :3] = motion.matrix_to_axis_angle(turned)
                    roots = roots @ turn.T
                features = pose_features(pose, roots)
                yield Clip(match[0], split=split, action=actions[action], features=features)
    people, train = {int(match[3]) for match in parsed}, set(UESTC_TRAIN)
    rows = {"sequences": len(names), "actions": len(actions),
            "train subjects": len(people & train), "test subjects": len(people - train)}
    return clips(), actions, [path], rows
