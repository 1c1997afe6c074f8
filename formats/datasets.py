"""Datasets as they lie on disk -> clips. Every reader yields Clips, and says in `found` what it leaves out and why.

HumanML3D and KIT-ML (and any set in their layout), HumanAct12 and UESTC (the files that ACTOR publishes), BVH files with captions.
"""
import csv
import hashlib
import os
import re
import tokenize

import numpy as np

from formats import bvh
import motion
from formats import safe_pickle
from formats.pack import Caption, Clip

# ----------------------------------------------------------------------------------------------------------------------
# HumanML3D and KIT-ML: loose files


def need(folder, *names):
    """Raise unless `folder` exists and has all these files and folders."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of the dataset.")
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; expected {', '.join(names)} in it.")


def read_lines(path):
    """The lines of a UTF-8 text file, stripped; ValueError that names the file if it is no such text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text.") from None


def fits(array, shape):
    """Whether it is a float array of this shape (None = any length)."""
    return isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim == len(shape) and \
        all(n in (None, m) for n, m in zip(shape, array.shape))


def load_npy(path, shape):
    """A finite-or-not float array of this shape (None = any length), or ValueError that names the file."""
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (*safe_pickle.READ_ERRORS, OSError, tokenize.TokenError) as error:
        raise ValueError(f"{path} is not a readable .npy file of numbers: {' '.join(str(error).split())}.") from None
    if not fits(array, shape):
        wanted = " x ".join("frames" if n is None else str(n) for n in shape)
        raise ValueError(f"{path}: expected {wanted} floating-point numbers, found {array.dtype} of shape {array.shape}; "
                         "263 numbers a frame go with `prepare.py humanml3d`, 251 with `prepare.py kit`.")
    return array


def read_texts(path):
    """A file of lines `caption#word/TAG word/TAG#from#to` -> list[Caption]; from and to in seconds, 0 and 0 for the whole clip."""
    captions = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            if line:
                text, tokens, start, end = line.rsplit("#", 3)
                captions.append(Caption(text, tokens, *(float(np.nan_to_num(float(x))) for x in (start, end))))  # some are nan
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected `caption#word/TAG word/TAG#from#to`, found {line!r}.") from None
    return captions


def read_layout(folder, nfeats, min_length, max_length, found):
    """Yield the clips of a folder in HumanML3D's layout; what is left out goes into `found`: {reason: [ids]}."""
    splits = {}
    for split in ("train", "val", "test"):
        path = os.path.join(folder, split + ".txt")
        for id in filter(None, read_lines(path)):
            if splits.setdefault(id, split) != split:
                raise ValueError(f"{path}: id {id} is also in {splits[id]}.txt; a clip must be in one split only.")
    if not splits:
        raise ValueError(f"{folder}: train.txt, val.txt and test.txt name no clip; the dataset is empty.")
    vectors, texts = os.path.join(folder, "new_joint_vecs"), os.path.join(folder, "texts")
    for name in sorted(os.listdir(vectors)):
        id = name.removesuffix(".npy")
        if id not in splits and name.endswith(".npy"):  # HumanML3D's 007975 and M007975
            finite = np.isfinite(load_npy(os.path.join(vectors, name), (None, nfeats))).all()
            found["in no split list" if finite else "in no split list, and not finite"].append(id)
    for id, split in splits.items():
        path, words = os.path.join(vectors, id + ".npy"), os.path.join(texts, id + ".txt")
        if not os.path.exists(path) or not os.path.exists(words):
            found["without text" if os.path.exists(path) else "without motion"].append(id)
            continue
        features = load_npy(path, (None, nfeats))
        if not np.isfinite(features).all():
            found["not finite"].append(id)
        elif not min_length <= len(features) < max_length:
            found[f"outside {min_length}..{max_length - 1} frames"].append(id)
        elif not (captions := read_texts(words)):
            found["without text"].append(id)
        else:
            yield Clip(id, captions, split, features=features)


def read_actions(path):
    """{id: label} from a CSV file with a header, the first column of which is the id; several further columns are joined
    by /, as in walk/tired. A mirrored clip (M and the id) has the same label, with left and right exchanged."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row][1:]
    wrong = next((row for row in rows if len(row) < 2 or not all(row)), None)
    if wrong or not rows:
        raise ValueError(f"{path}: expected a header line, then lines like `000012,walk`, found {','.join(wrong or ['nothing'])!r}.")
    labels = {row[0]: "/".join(row[1:]) for row in rows}
    if len(set(labels.values())) > max(10, len(labels) / 4):
        raise ValueError(f"{path}: {len(set(labels.values()))} different labels for {len(labels)} clips are no actions; keep the columns "
                         "that are: cut -d, -f1-2 FILE > actions.csv")
    return {f"M{id}": swap_sides(label) for id, label in labels.items()} | labels


# ----------------------------------------------------------------------------------------------------------------------
# HumanAct12 and UESTC: pickles of SMPL poses


HUMANACT12 = ("warm_up", "walk", "run", "jump", "drink", "lift_dumbbell", "sit", "eat", "turn steering wheel", "phone", "boxing", "throw")
UESTC_TRAIN = (1, 2, 6, 12, 13, 16, 21, 24, 28, 29, 30, 31, 33, 35, 39, 41, 42, 45, 47, 50, 52, 54, 55, 57, 59, 61, 63, 64, 67, 69, 70, 71,
               73, 77, 81, 84, 86, 87, 88, 90, 91, 93, 96, 99, 102, 103, 104, 107, 108, 112, 113)  # of the 118 people; the others are test
FRAMES = 60  # of a training sample; shorter sequences stand still in their last pose

# Joint positions (24, 3) in metres of a T pose, where no SMPL file is given: our own figure, 1.7 m tall, with the proportions of
# HumanML3D's body. Only pictures and joint losses depend on it; the features are rotations.
DEFAULT_REST = np.array([
    (0, 0, 0), (.06, -.09, 0), (-.06, -.09, 0), (0, .12, -.02), (.10, -.48, 0), (-.10, -.48, 0), (0, .26, 0), (.09, -.90, -.04),
    (-.09, -.90, -.04), (0, .32, .02), (.12, -.96, .09), (-.12, -.96, .09), (0, .53, -.03), (.08, .44, -.02), (-.08, .44, -.02),
    (0, .62, .02), (.18, .47, -.03), (-.18, .47, -.03), (.44, .46, -.05), (-.44, .46, -.05), (.70, .46, -.06), (-.70, .46, -.06),
    (.79, .45, -.07), (-.79, .45, -.07)])


def rest_joints(path):
    """(24, 3) rest joints of an SMPL file (.pkl or .npz), the pelvis at the origin; DEFAULT_REST if `path` is None."""
    if path is None:
        return DEFAULT_REST
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file; expected an SMPL body model, .pkl or .npz.")
    try:
        model = np.load(path, allow_pickle=False) if path.endswith(".npz") else safe_pickle.load_pickle(path)
        array = safe_pickle.dense
        joints = array(model["J"]) if "J" in model else array(model["J_regressor"]) @ array(model["v_template"])
        joints = joints.astype(np.float64).reshape(-1, 3)[:24].reshape(24, 3)
        if not np.isfinite(joints).all():
            raise ValueError("its joints are not finite")
        return joints - joints[0]
    except (*safe_pickle.READ_ERRORS, OSError) as error:
        raise ValueError(f"{path} is not an SMPL body model with 24 rest joints (J, or J_regressor and v_template): {error}.") from None


def pose_features(poses, roots):
    """SMPL poses (T, 72) axis-angle and root positions (T, 3) -> (T', 150), T' >= 60: ACTOR's 25 rows of six numbers a frame.

    Rows 0..23: each joint's rotation, the first two ROWS of its matrix. Row 24: the root's path from the first frame, three zeros.
    """
    matrices = motion.axis_angle_to_matrix(poses.reshape(-1, 24, 3))
    path = np.concatenate([roots - roots[0], np.zeros_like(roots)], axis=1)  # (T, 6)
    rows = np.concatenate([motion.matrix_to_6d(matrices.swapaxes(-1, -2)), path[:, None]], axis=1)  # (T, 25, 6)
    return np.pad(rows.reshape(-1, 150), ((0, max(0, FRAMES - len(rows))), (0, 0)), mode="edge").astype(np.float32)


def load_lists(path, **shapes):
    """Lists of arrays from a published pickle, {key: shape of one array after its frames}; ValueError names what does not fit."""
    data = safe_pickle.load_pickle(path)
    missing = [key for key in shapes if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; expected a pickled dict with {', '.join(shapes)}.")
    lengths = [len(data[key]) if np.iterable(data[key]) else 0 for key in shapes]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"{path}: {', '.join(shapes)} should be lists of one length, found {', '.join(map(str, lengths))}.")
    for i, arrays in enumerate(zip(*(data[key] for key in shapes))):
        frames = None
        for key, array in zip(shapes, arrays):
            empty = not array.size if isinstance(array, np.ndarray) else array == []
            if not empty and not fits(array, (frames, *shapes[key])):
                raise ValueError(f"{path}: {key}[{i}] should be {'some' if frames is None else frames} frames of {shapes[key]} numbers, "
                                 f"found {getattr(array, 'shape', type(array).__name__)}.")
            frames = len(array)
    return data


def read_humanact12(folder, found):
    """-> (clips, action names, source files, {what: count}). All sequences are train: the set is published without a split."""
    need(folder, "humanact12poses.pkl")
    path = os.path.join(folder, "humanact12poses.pkl")
    data = load_lists(path, poses=(72,), joints3D=(24, 3))
    labels = list(data["y"]) if np.iterable(data.get("y")) else []
    wrong = [label for label in labels if str(label) not in map(str, range(len(HUMANACT12)))]
    if len(labels) != len(data["poses"]) or wrong:
        raise ValueError(f"{path}: y should be {len(data['poses'])} actions of 0..11, found {len(labels)}{f' with {wrong[0]!r}' if wrong else ''}.")

    def clips():
        for i, (poses, joints) in enumerate(zip(data["poses"], data["joints3D"])):
            if keep(f"{i:04d}", (poses, joints), found):
                yield Clip(f"{i:04d}", action=HUMANACT12[int(labels[i])], features=pose_features(np.float64(poses), np.float64(joints[:, 0])))
    return clips(), HUMANACT12, [path], {"sequences": len(labels), "actions": len({int(label) for label in labels})}


def read_uestc(folder, found):
    """-> (clips, action names, source files, {what: count}); train and test by person, as published, all views turned to the front."""
    need(folder, "vibe_cache_refined.pkl", "info")
    info, path = os.path.join(folder, "info"), os.path.join(folder, "vibe_cache_refined.pkl")
    need(info, "action_classes.txt", "num_frames_min.txt", "names.txt")
    actions, names, frames = (read_lines(os.path.join(info, f"{name}.txt")) for name in ("action_classes", "names", "num_frames_min"))
    data = load_lists(path, pose=(72,), joints3d=(None, 3), orig_cam=(4,))
    if not len(names) == len(frames) == len(data["pose"]):
        raise ValueError(f"{folder}: {len(names)} names, {len(frames)} lengths and {len(data['pose'])} poses should be the same number.")
    parsed = [re.match(r"a(\d+)_d(\d+)_p(\d+)_c(\d+)", name) for name in names]
    for name, length, match in zip(names, frames, parsed):
        if not match or int(match[1]) >= len(actions) or not length.isdigit():
            raise ValueError(f"{info}: expected a name a<action>_d<view>_p<person>_c<side> with one of {len(actions)} actions, and a number of "
                             f"frames, found {name!r} and {length!r}.")

    def clips():
        for i, match in enumerate(parsed):
            action, view, person, side = map(int, match.groups())
            length, split = min(int(frames[i]), len(data["pose"][i])), "train" if person in UESTC_TRAIN else "test"
            pose, joints, camera = (np.float64(data[key][i][:length]) for key in ("pose", "joints3d", "orig_cam"))
            if side != 1 and view == 8:
                found["of view 8"].append(match[0])
            elif not length or (split == "train" and length < FRAMES * 3 / 4):
                found[f"shorter than {FRAMES * 3 // 4} frames"].append(match[0])
            elif keep(match[0], (pose, joints, camera), found):
                # the camera is (scale, scale, x, y); depth follows from scale with its focal length 500 and half of its 540 pixels
                roots = joints[:, 8 if joints.shape[1] > 24 else 0] + np.stack([*camera.T[2:], 500 / (270 * camera[:, 0])], axis=1)
                if side != 1:
                    turn = motion.axis_angle_to_matrix(np.array([0, -view * np.pi / 4, 0]))
                    pose[:, :3] = motion.matrix_to_axis_angle(turn @ motion.axis_angle_to_matrix(pose[:, :3]))
                    roots = roots @ turn.T
                yield Clip(match[0], split=split, action=actions[action], features=pose_features(pose, roots))
    people = {int(match[3]) for match in parsed}
    return clips(), actions, [path], {"sequences": len(names), "actions": len(actions), "train subjects": len(people & set(UESTC_TRAIN)),
                                      "test subjects": len(people - set(UESTC_TRAIN))}


def keep(id, arrays, found):
    """Whether a sequence can be used; if not, `found` says why."""
    whole, finite = all(map(np.size, arrays)), all(np.isfinite(array).all() for array in arrays)
    reason = "empty" if not whole else "" if finite else "not finite"
    if reason:
        found[reason].append(id)
    return not reason


# ----------------------------------------------------------------------------------------------------------------------
# One's own motion capture: BVH files and a file of captions


FEW = 20  # with fewer files than this, all are train


def read_captions(path, folder):
    """{bvh file, relative to the folder: [captions]} from a captions file; see prepare.py for its form."""
    captions = {}
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file; expected lines `file name: caption`.")
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([^\t]+?)\s*\t\s*(\S.*)", line) or re.fullmatch(r"(.+?)\s*:\s+(\S.*)", line)
        if not match:
            raise ValueError(f"{path}, line {number}: expected `file name: caption` or `file name<TAB>caption`, found {line!r}.")
        name = match[1] if match[1].lower().endswith(".bvh") else match[1] + ".bvh"
        if not os.path.isfile(os.path.join(folder, name)):
            raise FileNotFoundError(f"{path}, line {number}: there is no {name} in {folder}.")
        captions.setdefault(os.path.normpath(name), []).append(match[2])
    if not captions:
        raise ValueError(f"{path} holds no caption; expected lines `file name: caption`.")
    return captions


def swap_sides(text):
    """The caption of the mirrored motion: left for right, clockwise for counterclockwise."""
    def other(word):
        swapped = {"left": "right", "right": "left", "clockwise": "counterclockwise"}.get(word[0].lower(), "clockwise")
        return swapped.capitalize() if word[0][0].isupper() else swapped
    return re.sub(r"\b(left|right|clockwise|(counter|anti)-?clockwise)(?=\b|wards?\b|most\b)", other, text, flags=re.I)


def read_bvhs(captions, folder, found, *, min_length, max_length, mirror=False, rig=None, unit=None, up="y"):
    """Yield clips, with their mirrored copies (prefix M) if `mirror`. A recording of max_length frames or more becomes windows of
    equal length. Windows and copies of one file are in one split, drawn by a hash of its name: 80% train, 5% val, 15% test."""
    table = bvh.RIGS.get(rig) or (bvh.read_table(rig) if rig else None)
    for name, texts in sorted(captions.items()):
        id = os.path.splitext(name)[0].replace(os.sep, "/").replace(" ", "_")
        joints = bvh.to_t2m_joints(bvh.read_bvh(os.path.join(folder, name)), table, unit, up)
        draw = int(hashlib.sha256(id.encode()).hexdigest(), 16) % 100
        split = "train" if draw < 80 or len(captions) < FEW else "val" if draw < 85 else "test"
        frames = len(joints) - 1  # features are one frame shorter
        if frames < min_length:
            found[f"shorter than {min_length} frames"].append(id)
            continue
        windows = -(-frames // (max_length - 1))
        cuts = np.linspace(0, frames, windows + 1).round().astype(int).tolist()
        for number, (first, last) in enumerate(zip(cuts, cuts[1:])):
            part, window = f"{id}_{number}" if windows > 1 else id, joints[first:last + 1]
            copies = [(part, window, texts)]
            if mirror:
                copies.append(("M" + part, motion.mirror_joints(window, motion.T2M), [swap_sides(text) for text in texts]))
            for copy, places, sentences in copies:
                try:
                    features = motion.joints_to_features(places, motion.T2M, motion.T2M_OFFSETS, clip=copy)
                except ValueError as error:  # nobody moves, say
                    found[str(error).removeprefix(f"clip {copy}: ")].append(copy)
                    continue
                yield Clip(copy, [Caption(text) for text in sentences], split, features=features.astype(np.float32))
