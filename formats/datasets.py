"""Published datasets and your own recordings, as they are on disk -> clips.

HumanML3D and KIT-ML (and any set in their layout), HumanAct12 and UESTC (the files that ACTOR
publishes), BVH files with captions. Every reader yields Clips, and notes in `found`, a dict
{reason: [ids]}, which clips it leaves out.
"""
import csv
import hashlib
import os
import re
import tokenize

import numpy as np

import motion
from formats import bvh, rigs, safe_pickle
from formats.pack import Caption, Clip

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


def read_lines(path):
    """The lines of a UTF-8 text file, stripped; ValueError if it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text.") from None


def fits(array, shape):
    """Whether it is an array of floats with this shape (None stands for any length)."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != len(shape):
        return False
    return all(n in (None, m) for n, m in zip(shape, array.shape))


def load_npy(path, shape):
    """The float array of a .npy file, which may hold NaN; ValueError if it has another shape."""
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (*safe_pickle.READ_ERRORS, OSError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a readable .npy file of numbers: {reason}.") from None
    if not fits(array, shape):
        wanted = " x ".join("frames" if n is None else str(n) for n in shape)
        raise ValueError(f"{path}: expected {wanted} floating-point numbers, found {array.dtype} "
                         f"of shape {array.shape}; use `prepare.py humanml3d` for 263 numbers a "
                         "frame, `prepare.py kit` for 251.")
    return array


def read_texts(path):
    """Lines `caption#word/TAG word/TAG#from#to` -> list[Caption]; from and to are in seconds, 0
    or nan for the whole clip."""
    captions = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            if line:
                text, tokens, *span = line.rsplit("#", 3)
                start, end = np.nan_to_num([float(seconds) for seconds in span]).tolist()
                captions.append(Caption(text, tokens, start, end))
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected `caption#word/TAG word/TAG#from#to`"
                             f", found {line!r}.") from None
    return captions


def read_layout(folder, nfeats, min_length, max_length, found):
    """Yield the clips of a folder in HumanML3D's layout."""
    splits = {}
    for split in ("train", "val", "test"):
        path = os.path.join(folder, split + ".txt")
        for id in filter(None, read_lines(path)):
            if splits.setdefault(id, split) != split:
                raise ValueError(f"{path}: id {id} is also in {splits[id]}.txt; list it once.")
    if not splits:
        raise ValueError(f"{folder}: train.txt, val.txt and test.txt name no clip.")
    vectors, texts = os.path.join(folder, "new_joint_vecs"), os.path.join(folder, "texts")
    for name in sorted(os.listdir(vectors)):
        id = name.removesuffix(".npy")
        if id not in splits and name.endswith(".npy"):  # such as HumanML3D's 007975 and M007975
            finite = np.isfinite(load_npy(os.path.join(vectors, name), (None, nfeats))).all()
            found["in no split list" + ("" if finite else ", and not finite")].append(id)
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
    """A CSV file with a header and the id in its first column -> {id: label}. Further columns are
    joined by /, as in walk/tired. The mirrored clip (M and the id) has left and right exchanged."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row][1:]
    wrong = next((row for row in rows if len(row) < 2 or not all(row)), None)
    if wrong or not rows:
        raise ValueError(f"{path}: expected a header line, then lines like `000012,walk`, found "
                         f"{','.join(wrong or ['nothing'])!r}.")
    labels = {row[0]: "/".join(row[1:]) for row in rows}
    if (kinds := len(set(labels.values()))) > max(10, len(labels) / 4):
        raise ValueError(f"{path}: {kinds} labels are too many for {len(labels)} clips; keep only "
                         "columns that name the action: cut -d, -f1-2 FILE > actions.csv")
    return {f"M{id}": swap_sides(label) for id, label in labels.items()} | labels


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
        model = np.load(path, allow_pickle=False) if path.endswith(".npz") else load(path)
        if "J" in model:
            joints = dense(model["J"])
        else:
            joints = dense(model["J_regressor"]) @ dense(model["v_template"])
        joints = joints.astype(np.float64).reshape(-1, 3)[:24].reshape(24, 3)
        if not np.isfinite(joints).all():
            raise ValueError("its joints are not finite")
        return joints - joints[0]
    except (*safe_pickle.READ_ERRORS, OSError) as error:
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


def load_lists(path, **shapes):
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
    for i, arrays in enumerate(zip(*(data[key] for key in shapes))):
        frames = None
        for key, array in zip(shapes, arrays):
            empty = not array.size if isinstance(array, np.ndarray) else array == []
            if not empty and not fits(array, (frames, *shapes[key])):
                count = "some" if frames is None else frames
                raise ValueError(f"{path}: {key}[{i}] should be {count} frames of {shapes[key]} "
                                 f"numbers, found {getattr(array, 'shape', type(array).__name__)}.")
            frames = len(array)
    return data


def keep(id, arrays, found):
    """Whether a sequence can be used; if not, notes why in `found`."""
    whole = all(map(np.size, arrays))
    if whole and all(np.isfinite(array).all() for array in arrays):
        return True
    found["not finite" if whole else "empty"].append(id)


def read_humanact12(folder, found):
    """-> (clips, action names, source files, {what: count}). All are in the train split, because
    the set is published without splits."""
    need(folder, "humanact12poses.pkl")
    path = os.path.join(folder, "humanact12poses.pkl")
    data = load_lists(path, poses=(72,), joints3D=(24, 3))
    labels = list(data["y"]) if np.iterable(data.get("y")) else []
    wrong = [label for label in labels if str(label) not in map(str, range(len(HUMANACT12)))]
    if len(labels) != len(data["poses"]) or wrong:
        raise ValueError(f"{path}: y should be {len(data['poses'])} actions of 0..11, found "
                         f"{len(labels)}{f' with {wrong[0]!r}' if wrong else ''}.")

    def clips():
        for i, (poses, joints) in enumerate(zip(data["poses"], data["joints3D"])):
            if keep(f"{i:04d}", (poses, joints), found):
                features = pose_features(np.float64(poses), np.float64(joints[:, 0]))
                yield Clip(f"{i:04d}", action=HUMANACT12[int(labels[i])], features=features)
    rows = {"sequences": len(labels), "actions": len({int(label) for label in labels})}
    return clips(), HUMANACT12, [path], rows


def read_uestc(folder, found):
    """-> (clips, action names, source files, {what: count}). Split by person, as published; all
    views are turned to the front."""
    need(folder, "vibe_cache_refined.pkl", "info")
    info, path = os.path.join(folder, "info"), os.path.join(folder, "vibe_cache_refined.pkl")
    need(info, "action_classes.txt", "num_frames_min.txt", "names.txt")
    actions, names, frames = (read_lines(os.path.join(info, f"{name}.txt"))
                              for name in ("action_classes", "names", "num_frames_min"))
    data = load_lists(path, pose=(72,), joints3d=(None, 3), orig_cam=(4,))
    if not len(names) == len(frames) == len(data["pose"]):
        raise ValueError(f"{folder}: {len(names)} names, {len(frames)} lengths and "
                         f"{len(data['pose'])} poses should be the same number.")
    parsed = [re.match(r"a(\d+)_d(\d+)_p(\d+)_c(\d+)", name) for name in names]
    for name, length, match in zip(names, frames, parsed):
        if not match or int(match[1]) >= len(actions) or not length.isdigit():
            raise ValueError(f"{info}: expected names a<0..{len(actions) - 1}>_d<view>_p<person>_"
                             f"c<side> and numbers of frames, found {name!r} and {length!r}.")

    def clips():
        for i, match in enumerate(parsed):
            action, view, person, side = map(int, match.groups())
            length = min(int(frames[i]), len(data["pose"][i]))
            split = "train" if person in UESTC_TRAIN else "test"
            pose, joints, camera = (np.float64(data[key][i][:length])
                                    for key in ("pose", "joints3d", "orig_cam"))
            if side != 1 and view == 8:
                found["of view 8"].append(match[0])
            elif not length or (split == "train" and length < FRAMES * 3 / 4):
                found[f"shorter than {FRAMES * 3 // 4} frames"].append(match[0])
            elif keep(match[0], (pose, joints, camera), found):
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


# --------------------------------------------------------------------------------------------------
# Your own motion capture: BVH files and a file of captions

FEW = 20  # with fewer files than this, all are in the train split


def read_captions(path, folder):
    """{bvh file, relative to the folder: [captions]} from a captions file (see prepare.py)."""
    captions = {}
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file; expected lines `file name: caption`.")
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = (re.fullmatch(r"([^\t]+?)\s*\t\s*(\S.*)", line)
                 or re.fullmatch(r"(.+?)\s*:\s+(\S.*)", line))
        if not match:
            raise ValueError(f"{path}, line {number}: expected `file name: caption` or "
                             f"`file name<TAB>caption`, found {line!r}.")
        name = match[1] if match[1].lower().endswith(".bvh") else match[1] + ".bvh"
        if not os.path.isfile(os.path.join(folder, name)):
            raise FileNotFoundError(f"{path}, line {number}: there is no {name} in {folder}.")
        captions.setdefault(os.path.normpath(name), []).append(match[2])
    if not captions:
        raise ValueError(f"{path} holds no caption; expected lines `file name: caption`.")
    return captions


def swap_sides(text):
    """The caption of the mirrored motion: left for right, clockwise for counterclockwise."""
    others = {"left": "right", "right": "left", "clockwise": "counterclockwise"}

    def other(word):
        swapped = others.get(word[0].lower(), "clockwise")
        return swapped.capitalize() if word[0][0].isupper() else swapped
    words = r"\b(left|right|clockwise|(counter|anti)-?clockwise)(?=\b|wards?\b|most\b)"
    return re.sub(words, other, text, flags=re.I)


def read_bvhs(captions, folder, found, *, min_length, max_length, mirror=False, rig=None,
              unit=None, up="y"):
    """Yield the clips of {bvh file: [captions]}, with mirrored copies (prefix M) if `mirror`.

    A recording of max_length frames or more is cut into windows of equal length. A hash of the
    file's name puts all its windows and copies into one split: 80% train, 5% val, 15% test.
    rig (a name or the path of a table), unit, up: as in rigs.to_t2m_joints."""
    table = rigs.RIGS.get(rig) or (rigs.read_table(rig) if rig else None)
    for name, texts in sorted(captions.items()):
        id = os.path.splitext(name)[0].replace(os.sep, "/").replace(" ", "_")
        recording = bvh.read_bvh(os.path.join(folder, name))
        joints = rigs.to_t2m_joints(recording, table, unit, up)
        draw = int(hashlib.sha256(id.encode()).hexdigest(), 16) % 100
        split = "train" if draw < 80 or len(captions) < FEW else "val" if draw < 85 else "test"
        frames = len(joints) - 1  # features have one frame less
        if frames < min_length:
            found[f"shorter than {min_length} frames"].append(id)
            continue
        windows = -(-frames // (max_length - 1))
        cuts = np.linspace(0, frames, windows + 1).round().astype(int).tolist()
        for number, (first, last) in enumerate(zip(cuts, cuts[1:])):
            part, window = f"{id}_{number}" if windows > 1 else id, joints[first:last + 1]
            copies = [(part, window, texts)]
            if mirror:
                swapped = [swap_sides(text) for text in texts]
                copies.append((f"M{part}", motion.mirror_joints(window, motion.T2M), swapped))
            for copy, places, sentences in copies:
                try:
                    features = motion.joints_to_features(places, motion.T2M, motion.T2M_OFFSETS,
                                                         clip=copy).astype(np.float32)
                except ValueError as error:  # for example, nobody moves
                    found[str(error).removeprefix(f"clip {copy}: ")].append(copy)
                    continue
                yield Clip(copy, [Caption(text) for text in sentences], split, features=features)
