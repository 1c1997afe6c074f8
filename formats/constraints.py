"""What a motion must meet, as people write it down: a JSON file, a list of dicts, a CSV of a path.

    {"joint": "left_wrist", "time": 1.2, "position": [0.3, 1.4, 0.2]}    metres; Y is up
    {"joint": "left_wrist", "time": 1.2, "height": 1.4}                  or "speed", in m/s
    {"pose": "clip.npy", "frame": 0, "time": 0}                          every joint of a frame
    {"path": [[0, 0, 0], [2, 1, 1.5]]}        rows of seconds, x, z, and degrees to the left if the
                                              facing is given; or "path": "way.csv". "facing":
                                              "follow" is looking ahead, "free" is as it comes
    {"keep": "left_arm", "from": "clip.npy"}  a part of the body does what it does in a clip
    {"floor": true}                           nothing is under the floor, standing feet do not slide
    {"start": [0, 0], "facing": 90}           where the motion begins

Everything is in the world's frame. A motion begins where a "start", the first pose, a kept body or
the first row of a path says, or else at the origin, facing +Z. A "frame" below 0 counts from the
end.
"""
import contextlib
import json
import math
import os
import re

import numpy as np

from config import nearest
from formats.pins import ancestors
from formats.text import read_lines

KINDS = {"joint": {"joint", "time", "position", "height", "speed"}, "floor": {"floor"},
         "pose": {"pose", "frame", "time"}, "path": {"path", "facing"}, "keep": {"keep", "from"},
         "start": {"start", "facing"}}
FASTEST = 12.0  # metres a second; no joint of a person moves faster, but in a kick or throw
HIGHEST = 3.2  # metres; a hand in a jump
LOWEST = -0.3  # metres; a clip that goes deeper is upside down, or has another axis up
COLUMNS = {name: number for number, names in enumerate(  # of a path
    ("seconds second sec s time t", "x", "z", "degrees degree deg facing heading angle yaw"))
    for name in names.split()}


def parts_of(pose):
    """{name of a part of the body: (the fork that it is seen from, or None, its joints)}"""
    (pelvis, (l_hip, r_hip, trunk)), (chest, (l_arm, r_arm, neck)) = pose.forks.items()

    def below(*bones):  # the fork's own bones are stiff; what moves begins after them
        tops = {child for bone in bones for child in pose.children[bone] or [bone]}
        return [j for j in range(len(pose.parents))
                if tops & {j, *ancestors(pose.parents, j)}]
    return {"left_arm": (chest, below(l_arm)), "right_arm": (chest, below(r_arm)),
            "arms": (chest, below(l_arm, r_arm)), "head": (chest, below(neck)),
            "left_leg": (pelvis, below(l_hip)), "right_leg": (pelvis, below(r_hip)),
            "upper_body": (pelvis, below(trunk)),
            "lower_body": (None, [pelvis, l_hip, r_hip, *below(l_hip, r_hip)])}


def read_constraints(source):
    """A JSON file, a CSV of a path, or a list of dicts -> (list of dicts, folder of the files that
    they name). OSError or ValueError in one sentence."""
    if not isinstance(source, (str, os.PathLike)):
        return list(source), ""
    source = os.fspath(source)
    if source.lower().endswith(".csv"):
        return [{"path": os.path.basename(source)}], os.path.dirname(source)
    try:
        with open(source, encoding="utf-8-sig") as file:
            found = json.load(file)
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not UTF-8 text; expected a JSON list of "
                         "constraints.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}, line {error.lineno}: this is not JSON "
                         f"({error.msg}).") from None
    except RecursionError:
        raise ValueError(f"{source} holds lists in lists without end.") from None
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise ValueError(f"{source} must hold a list of constraints, found {type(found).__name__}.")
    return found, os.path.dirname(source)


def read_clip(path, joints, where=""):
    """A .npy file of joints (T, J, 3), or (J, 3) -> (T, J, 3) float64 in metres."""
    try:
        clip = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{where}There is no file {path}.") from None
    except OSError as error:
        raise ValueError(f"{where}{path} cannot be read ({error.strerror}).") from None
    except (ValueError, EOFError):  # whose words are about pickles
        raise ValueError(f"{where}{path} is not a whole .npy file of joints.") from None
    if not isinstance(clip, np.ndarray):  # an open .npz file
        clip.close()
        raise ValueError(f"{where}{path} holds several arrays; expected a .npy file of joints.")
    return checked_clip(clip, joints, where, path)


def checked_clip(clip, joints, where, name):
    """Joints (T, J, 3), or (J, 3), as an array or lists -> (T, J, 3) float64 in metres."""
    try:
        clip = np.asarray(clip)
    except ValueError:  # lists of different lengths
        clip = np.empty(0)
    clip = clip[None] if clip.ndim == 2 else clip
    right = clip.shape[1:] == (joints, 3) and len(clip)
    if not right or clip.dtype.kind not in "fiu":
        found = f"{clip.shape} of {clip.dtype}" if clip.ndim else "no array"
        raise ValueError(f"{where}{name} must hold joints of shape (frames, {joints}, 3) in "
                         f"metres, found {found}.")
    wrong = np.flatnonzero(~np.isfinite(clip).all((1, 2)))
    if len(wrong):
        raise ValueError(f"{where}{name} holds a number that is not finite, in frame {wrong[0]}.")
    lowest = clip[..., 1].min()
    if lowest < LOWEST:
        raise ValueError(f"{where}{name} goes {-lowest:.2g} m under the floor: its joints must be "
                         "in metres, with Y up and the floor at 0.")
    return clip.astype(np.float64)


def clip_of(one, key, joints, where, folder):
    """The clip that a constraint names by its file, or holds."""
    if isinstance(one[key], str):
        return read_clip(os.path.join(folder, one[key]), joints, where)
    return checked_clip(one[key], joints, where, repr(key))


def read_way(path, where=""):
    """A CSV of seconds, x, z and, if given, degrees -> its rows. A first line of names says which
    column is which. Where semicolons part the cells, a comma is a decimal point."""
    try:
        lines = [line for line in read_lines(path) if line and not line.startswith("#")]
        cells = [line.replace(",", ".").split(";") if ";" in line else line.split(",")
                 for line in lines]
        names = [cell.strip(" \"'").lower() for cell in cells[0]] if cells else []
        if not names or not all(name[:1].isalpha() for name in names):
            return [[float(cell) for cell in row] for row in cells]
        order = [COLUMNS.get(re.match("[a-z]*", name)[0]) for name in names]
        if sorted(order, key=str) != [*range(len(names))] or len(names) not in (3, 4):
            raise ValueError(f"its columns are named {', '.join(names)[:200]}; they must be "
                             "seconds, x, z, and facing if it is given")
        return [[float(row[order.index(number)]) for number in range(len(row))]
                if len(row) == len(order) else [float(cell) for cell in row] for row in cells[1:]]
    except FileNotFoundError:
        raise ValueError(f"{where}There is no file {path}.") from None
    except ValueError as error:
        raise ValueError(f"{where}{path} must have lines of numbers `seconds, x, z` "
                         f"({error}).") from None


def numbers(value, count, where, name):
    """A number, or `count` of them, as an array; ValueError for anything else."""
    try:
        found = np.array(value)
        right = found.dtype.kind in "fiu" and found.shape == ((count,) if count else ())
        right = right and np.isfinite(found := found.astype(np.float64)).all()
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right:
        raise ValueError(f"{where}{name!r} must be {count or 'a'} number{'s' * bool(count)}, found "
                         f"{value!r}.")
    return found


def last_time(constraints, folder=""):
    """The last second that constraints name, 0 for none; what is wrong in them is told later."""
    times = [0.0]
    for one in constraints:
        # what is wrong here is said in a sentence when it is checked
        with contextlib.suppress(TypeError, ValueError, LookupError, AttributeError):
            rows = one["path"] if "path" in one else [[one.get("time", 0)]]
            rows = read_way(os.path.join(folder, rows)) if isinstance(rows, str) else rows
            times += filter(math.isfinite, [float(row[0]) for row in rows])
    return max(times)


# --------------------------------------------------------------------------------------------------
# Checking


def frame_at(time, frames, fps, where):
    time = float(numbers(time, 0, where, "time"))
    frame = round(time * fps)
    if not 0 <= frame <= frames or time < 0:
        raise ValueError(f"{where}time {time:g} is outside the motion, which has "
                         f"{frames / fps:g} seconds.")
    return min(frame, frames - 1)


def loaded(one, kind, where, frames, fps, pose, folder):
    """A constraint with its files read and its numbers checked."""
    names, one = pose.joint_names, dict(one)
    if kind == "joint":
        if one["joint"] not in names:
            near = nearest(str(one["joint"]), names)
            raise ValueError(f"{where}there is no joint {one['joint']!r}.{near} The joints are "
                             f"{', '.join(names)}.")
        asked = [key for key in ("position", "height", "speed") if key in one]
        if len(asked) != 1:
            raise ValueError(f"{where}a joint takes one of position, height and speed, found "
                             f"{', '.join(asked) or 'none'}.")
        key, = asked
        one["value"] = numbers(one[key], 3 if key == "position" else 0, where, key)
        height = one["value"][1] if key == "position" else one["value"]
        if key == "speed" and not 0 <= height <= FASTEST:
            raise ValueError(f"{where}a speed must be 0 to {FASTEST:g} m/s, found {height:g}.")
        if key != "speed" and not -0.02 <= height <= HIGHEST:
            raise ValueError(f"{where}{one['joint']} at {height:g} m is "
                             + ("under the floor." if height < 0 else
                                f"higher than a person reaches ({HIGHEST:g} m)."))
    if kind in ("joint", "pose"):
        if "time" not in one:
            raise ValueError(f"{where}a {kind} needs a 'time' in seconds.")
        one["at"] = frame_at(one["time"], frames, fps, where)
    if kind == "pose":
        clip = clip_of(one, "pose", len(names), where, folder)
        frame = one.get("frame", 0)
        if not isinstance(frame, int) or not -len(clip) <= frame < len(clip):
            raise ValueError(f"{where}{one['pose']} has the frames 0 to {len(clip) - 1}, found "
                             f"frame {frame!r}.")
        one["joints"] = clip[frame]
    if kind == "keep":
        parts = parts_of(pose)
        if str(one["keep"]) not in parts:
            near = nearest(str(one["keep"]), parts)
            raise ValueError(f"{where}there is no part {one['keep']!r}.{near} The parts are "
                             f"{', '.join(parts)}.")
        if "from" not in one:
            raise ValueError(f"{where}keep needs 'from', the clip to keep it from.")
        one["clip"] = clip_of(one, "from", len(names), where, folder)
        one["part"] = parts[one["keep"]]
    if kind == "path":
        rows = one["path"]
        rows = read_way(os.path.join(folder, rows), where) if isinstance(rows, str) else rows
        some = (list, tuple, np.ndarray)
        if not isinstance(rows, some) or not len(rows):
            raise ValueError(f"{where}the path must have rows of seconds, x, z, found {rows!r}.")
        width = 4 if isinstance(rows[0], some) and len(rows[0]) == 4 else 3
        one["path"] = np.stack([numbers(row, width, where, "path") for row in rows])
        one["at"] = [frame_at(row[0], frames, fps, where) for row in one["path"]]
        if (np.diff(one["path"][:, 0]) <= 0).any():
            raise ValueError(f"{where}the times of a path must rise from row to row.")
        if one.setdefault("facing", "follow") not in ("follow", "free"):
            raise ValueError(f"{where}'facing' of a path must be follow or free, found "
                             f"{one['facing']!r}; give degrees as a fourth number of each row.")
    if kind == "start":
        one["start"] = numbers(one["start"], 2, where, "start")
        one["turn"] = np.radians(numbers(one.get("facing", 0), 0, where, "facing"))
    if kind == "floor" and not isinstance(one["floor"], bool):
        raise ValueError(f"{where}floor must be true or false, found {one['floor']!r}.")
    return one
