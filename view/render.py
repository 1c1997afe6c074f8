"""Seeing a motion: an HTML player in one file, an animated GIF, npy. (BVH for other software is in bvh.py.)

    write_player("out.html", [{"joints": joints, "caption": "a man jumps", "fps": 20.0}])   # opens in any browser, offline
    write_gif("out.gif", [{"joints": joints, "caption": "a man jumps"}])                     # needs Pillow
    write_npy("out.npy", joints)

A motion is a dict: `joints` (T, J, 3) metres, Y up, floor at 0; and if you like `caption`, `title` (a short line under the
caption), `fps` (20), `contacts` (T or T-1, 4) for left ankle, left toe, right ankle, right toe (else found from the joints)
and `parents` (J,), which only a body other than HumanML3D's 22, KIT's 21 or SMPL's 24 joints needs. The player plays
several motions side by side, with one clock and one camera; how it draws them is in player.html.
"""
import base64
import html
import json
import math
import re
from pathlib import Path

import numpy as np

from config import atomic_write
from motion import KIT, SMPL_PARENTS, T2M

TEMPLATE = Path(__file__).with_name("player.html")
CAMERA = {"yaw": 0.55, "pitch": 0.2, "field_of_view": 0.56}  # radians; the person faces +Z at first, yaw 0 looks at the face

# ----------------------------------------------------------------------------------------------------------------------
# Bodies: what is drawn between the joints

NAMES = {22: T2M.joint_names, 21: KIT.joint_names, 24: T2M.joint_names + ("left_hand", "right_hand")}
PARENTS = {22: T2M.parents, 21: KIT.parents, 24: SMPL_PARENTS}
RADIUS = {  # metres, how thick the body is at a joint, by the last word of its name
    "pelvis": 0.098, "spine1": 0.1, "spine2": 0.105, "spine3": 0.105, "belly": 0.1, "thorax": 0.11, "neck": 0.055, "head": 0.05,
    "collar": 0.075, "shoulder": 0.06, "elbow": 0.044, "wrist": 0.033, "hand": 0.034, "hip": 0.088, "knee": 0.058,
    "ankle": 0.04, "midfoot": 0.04, "foot": 0.034, "toe": 0.03}
# Parts beyond the last joint: name, metres further on along the bone to this joint, radius at the joint and at the end.
TIPS = {"head": ("crown", 0.075, 0.08, 0.098), "left_wrist": ("left_hand", 0.085, 0.035, 0.032),
        "right_wrist": ("right_hand", 0.085, 0.035, 0.032)}


def _check(motion, where):
    """A motion as given -> the same with everything filled in; ValueError if it cannot be shown."""
    joints = np.asarray(motion["joints"], dtype=np.float64)
    if joints.ndim != 3 or joints.shape[2] != 3 or not len(joints):
        raise ValueError(f"{where}: expected joints of shape (frames, joints, 3), found {joints.shape}")
    if not np.isfinite(joints).all():
        raise ValueError(f"{where}: its joints hold NaN or infinity, first in frame {np.argwhere(~np.isfinite(joints))[0, 0]}")
    fps, count = float(motion.get("fps", T2M.fps)), joints.shape[1]
    if not 0 < fps < math.inf:
        raise ValueError(f"{where}: {fps} frames a second, expected a positive number")
    parents = [int(p) for p in (PARENTS.get(count, ()) if motion.get("parents") is None else motion["parents"])]
    if len(parents) != count or not all(-1 <= p < count for p in parents):
        raise ValueError(f"{where}: {count} joints and {len(parents)} parents; a body other than the known ones (22, 21 or 24 "
                         "joints) needs `parents`, one joint number for each joint and -1 for the root")
    if count > 60:
        raise ValueError(f"{where}: {count} joints, and the player draws at most 60; leave out fingers and face")
    names = NAMES.get(count, ("",) * count)
    ends = (("ankle", "foot"), ("midfoot", "toe"))[count == 21]
    feet = [names.index(f"{side}_{end}") for side in ("left", "right") for end in ends] if any(names) else []
    contacts = motion.get("contacts")
    contacts = _standing(joints[:, feet], fps) if contacts is None else np.asarray(contacts, dtype=bool)
    if contacts.shape not in ((len(joints), len(feet)), (len(joints) - 1, len(feet))):
        raise ValueError(f"{where}: contacts of shape {contacts.shape}, expected ({len(joints)}, {len(feet)})")
    texts = {key: str(motion.get(key, "")) for key in ("caption", "title")}
    return texts | {"joints": joints - joints[0, 0] * (1, 0, 1), "fps": fps, "parents": parents, "names": names, "feet": feet,
                    "contacts": contacts}


def _standing(feet, fps):
    """Which feet stand, from their positions (T, 4, 3): slower than 0.25 m/s and within 12 cm of their lowest -> bool (T, 4)."""
    if len(feet) < 2:
        return np.zeros(feet.shape[:2], bool)
    speed = np.linalg.norm(np.gradient(feet, axis=0), axis=-1) * fps
    return (speed < 0.25) & (feet[..., 1] < feet[..., 1].min(axis=0) + 0.12)


def _body(motion):
    """-> joints with crown and hands added (T, J', 3), and the bones [from, to, radius there, and there, side 0 1 2]."""
    joints, names = motion["joints"], list(motion["names"])

    def bone(a, b, radii=None):
        """Arms and legs have their side's colour. No two bones are equally thick where they meet: their faces would flicker."""
        arm_or_leg = names[a].startswith(("left", "right")) and "collar" not in names[a]
        side = (1 if names[a].startswith("left") else 2) if arm_or_leg else 0
        scale = (1.07, 1.07) if side else (0.8, 1) if names[b].startswith(("left", "right")) else (1, 1)
        radii = radii or [RADIUS.get(names[j].split("_")[-1], 0.03) * s for j, s in zip((a, b), scale)]
        return [a, b, *np.round(radii, 4).tolist(), side]

    bones = [bone(parent, j) for j, parent in enumerate(motion["parents"]) if parent >= 0]
    for name, (tip, length, *radii) in TIPS.items():
        if name in names and tip not in names:
            j = names.index(name)
            along = joints[:, j] - joints[:, motion["parents"][j]]
            along = along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
            joints = np.concatenate([joints, (joints[:, j] + length * along)[:, None]], axis=1)
            names.append(tip)
            bones.append(bone(j, len(names) - 1, radii))
    return joints, bones


# ----------------------------------------------------------------------------------------------------------------------
# The player


def _pack(motion):
    """What player.html reads for one motion: positions as 16-bit multiples of `scale` metres, contacts as a hex digit a frame."""
    joints, bones = _body(motion)
    scale = max(float(np.abs(joints).max()), 1e-3) / 32767
    contacts = "".join(f"{sum(1 << f for f in np.flatnonzero(row)):x}" for row in motion["contacts"])
    return {"caption": motion["caption"], "title": motion["title"], "fps": motion["fps"], "frames": len(joints), "bones": bones,
            "feet": motion["feet"], "contacts": contacts + contacts[len(contacts) - (len(joints) - len(contacts)):], "scale": scale,
            "positions": base64.b64encode(np.rint(joints / scale).astype("<i2").tobytes()).decode()}


def write_player(path, motions, title="nanoMLD"):
    """One self-contained HTML file that plays `motions`, a list of dicts as in this file's docstring, side by side.

    Positions keep 1/32767 of the motion's extent (0.2 mm for a path of 6 m). ValueError for what cannot be shown.
    """
    if not motions:
        raise ValueError(f"{path}: no motions to show")
    packed = [_pack(_check(motion, f"{path}, motion {i}")) for i, motion in enumerate(motions)]
    # "<" is written as an escape so that no caption can end the script element that holds the data
    data = json.dumps({"camera": CAMERA, "motions": packed}).replace("<", "\\u003c")
    parts = {"%TITLE%": html.escape(title), "%DATA%": data}  # both at once: a caption may say %TITLE%
    page = re.sub("|".join(parts), lambda mark: parts[mark[0]], TEMPLATE.read_text(encoding="utf-8"))
    with atomic_write(path, "w") as file:
        file.write(page)


def write_npy(path, joints):
    """joints (T, 22, 3), metres -> a float32 .npy file of that shape."""
    joints = np.asarray(joints, dtype=np.float32)
    if joints.ndim != 3 or joints.shape[2] != 3 or not np.isfinite(joints).all():
        raise ValueError(f"{path}: expected finite joints of shape (frames, joints, 3), found {joints.shape}")
    with atomic_write(path) as file:
        np.save(file, joints, allow_pickle=False)


# ----------------------------------------------------------------------------------------------------------------------
# GIF: the same camera and colours, drawn with Pillow


def _theme(name):
    """The colours of player.html's style sheet -> {name: (r, g, b)}, and shadow, how dark it is."""
    start = {"light": ":root {", "dark": "[data-theme=dark] {"}[name]
    block = TEMPLATE.read_text(encoding="utf-8").split(start)[1].split("}")[0]
    colours = {key: tuple(bytes.fromhex(value)) for key, value in re.findall(r"--(\w+): #(\w{6})", block)}
    return colours | {"shadow": float(re.search(r"--shadow: ([\d.]+)", block)[1])}


def _mix(a, b, share):
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


class _Camera:
    """Looks at a point 0.96 m over `target` (x, z) from where the player's camera stands at first; makes pixels of points.

    The person fits into an image of `size` below the uppermost `head` pixels, which are for the caption.
    """

    def __init__(self, target, size, head):
        yaw, pitch, tan = CAMERA["yaw"], CAMERA["pitch"], math.tan(CAMERA["field_of_view"] / 2)
        self.middle, self.scale = (size[0] / 2, (size[1] + head) / 2), (size[1] - head) / 2 / tan
        self.away = max(2.3, 1.6 * (size[1] - head) / size[0]) / 2 / tan
        self.target = np.array([target[0], 0.96, target[1]])
        self.axes = np.array([[math.cos(yaw), 0, -math.sin(yaw)],
                              [-math.sin(yaw) * math.sin(pitch), math.cos(pitch), -math.cos(yaw) * math.sin(pitch)],
                              [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)]])

    def __call__(self, points):
        """points (..., 3) -> (..., 3): x, y in pixels, metres from the lens."""
        x, y, back = np.moveaxis((np.asarray(points) - self.target) @ self.axes.T, -1, 0)
        depth = np.maximum(self.away - back, 0.1)
        return np.stack([self.middle[0] + x * self.scale / depth, self.middle[1] - y * self.scale / depth, depth], axis=-1)


def _capsule(pen, a, b, radius_a, radius_b, colour):
    """Two discs and what lies between them."""
    for (x, y), r in ((a, radius_a), (b, radius_b)):
        pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    along = b - a
    across = np.array([-along[1], along[0]]) / max(np.hypot(*along), 1e-6)
    corners = [a + across * radius_a, b + across * radius_b, b - across * radius_b, a - across * radius_a]
    pen.polygon([tuple(corner) for corner in corners], fill=colour)


def _draw_person(image, motion, t, camera, theme):
    """Floor, trail, shadow and body of frame t into a Pillow image."""
    from PIL import Image, ImageDraw
    pen = ImageDraw.Draw(image)
    now, ground = motion["drawn"][t], motion["joints"][:, 0] * (1, 0, 1)
    around = np.round(camera.target) * (1, 0, 1)
    for i in range(-5, 6):
        for j in range(-5, 5):
            fade = max(0.0, 1 - math.hypot(i, j + 0.5) / 5.5)
            for points in ([[i, 0, j], [i, 0, j + 1]], [[j, 0, i], [j + 1, 0, i]]):
                line = camera(around + np.array(points))
                pen.line([tuple(p) for p in line[:, :2]], fill=_mix(theme["background"], theme["line"], fade), width=2)
    path = camera(ground)
    for s in range(1, len(path)):
        pen.line([tuple(path[s - 1, :2]), tuple(path[s, :2])], width=4,
                 fill=_mix(theme["background"], theme["trail"], 0.85 if s <= t else 0.25))
    feet = np.array(motion["feet"]).reshape(-1, 2)  # ankle and toe, left and right
    standing = feet[motion["contacts"][min(t, len(motion["contacts"]) - 1)].reshape(-1, 2).any(axis=1)]
    for foot in standing:
        ring = camera(now[foot].mean(axis=0) * (1, 0, 1) + 0.14 * np.array([[-1, 0, 0], [1, 0, 0], [0, 0, -1], [0, 0, 1]]))
        pen.ellipse([*ring[:, :2].min(0), *ring[:, :2].max(0)], outline=theme["contact"], width=4)

    shade = Image.new("L", image.size)  # the shadow falls straight along the player's light
    shadow = camera(np.stack([now[:, 0] - 0.43 * now[:, 1], 0 * now[:, 1], now[:, 2] - 0.49 * now[:, 1]], axis=-1))
    seen = camera(now)
    light = camera.axes @ (0.36, 0.84, 0.41)  # as the camera sees it: to the right, up, towards the lens
    for a, b, radius_a, radius_b, _ in motion["bones"]:
        r = [radius * camera.scale / shadow[j, 2] * 0.8 for radius, j in ((radius_a, a), (radius_b, b))]
        _capsule(ImageDraw.Draw(shade), shadow[a, :2], shadow[b, :2], *r, round(255 * theme["shadow"]))
    image.paste((0, 0, 0), mask=shade)
    # Far parts first, in the player's order: the trunk is one part; height counts only when one looks from above; limbs
    # come 6 cm nearer, as they enclose where they begin.
    near = now @ (math.sin(CAMERA["yaw"]), math.sin(CAMERA["pitch"]) ** 3, math.cos(CAMERA["yaw"]))
    parts = [[bone for bone in motion["bones"] if not bone[4]]] + [[bone] for bone in motion["bones"] if bone[4]]
    nearness = lambda part: near[[end for bone in part for end in bone[:2]]].mean() + 0.06 * (len(part) == 1)
    for part in sorted(filter(None, parts), key=nearness):
        for grow, lit in ((1.0, -0.36), (0.86, -0.18), (0.68, -0.04), (0.46, 0.09), (0.22, 0.2)):  # dark rim to lit middle
            for a, b, radius_a, radius_b, side in part:
                colour = theme["contact"] if b in standing[:, 1:] else theme[("middle", "left", "right")[side]]
                r = np.array([radius_a * camera.scale / seen[a, 2], radius_b * camera.scale / seen[b, 2]])
                move = light[:2] * (1, -1) * r.mean() * (1 - grow) * 0.55
                shown = _mix(colour, (255, 255, 255) if lit > 0 else (0, 0, 0), abs(lit))
                _capsule(pen, seen[a, :2] + move, seen[b, :2] + move, *(r * grow), shown)


def _wrap(text, font, width):
    """Words into at most three lines of `width` pixels."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:3]


def write_gif(path, motions, size=(320, 360), columns=None, theme="light"):
    """An endless GIF of `motions` (dicts as in this file's docstring) side by side, `size` pixels each; needs Pillow.

    All are played at the frame rate of the first; shorter ones wait in their last pose. ImportError names what to install.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise ImportError(f"{path}: GIFs are drawn with Pillow, which is not installed; run: pip install pillow") from None
    if not motions:
        raise ValueError(f"{path}: no motions to show")
    motions = [_check(motion, f"{path}, motion {i}") for i, motion in enumerate(motions)]
    colours, dense = _theme(theme), 2  # drawn twice as large, then made smaller: smooth edges
    columns = columns or min(len(motions), 4)
    whole = size[0] * columns, size[1] * math.ceil(len(motions) / columns)
    font = ImageFont.load_default(15)
    for motion in motions:
        motion["drawn"], motion["bones"] = _body(motion)
        root, last = motion["joints"][:, 0, ::2], len(motion["joints"]) - 1
        reach = [min(round(0.6 * motion["fps"]), t, last - t) for t in range(last + 1)]
        motion["centre"] = [root[t - r:t + r + 1].mean(axis=0) for t, r in enumerate(reach)]  # as the player follows the path
        motion["lines"] = _wrap(motion["caption"], font, size[0] - 20)
    frames = []
    for t in range(max(len(motion["joints"]) for motion in motions)):
        image = Image.new("RGB", whole, colours["background"])
        for i, motion in enumerate(motions):
            now = min(t, len(motion["joints"]) - 1)
            cell = Image.new("RGB", (size[0] * dense, size[1] * dense), colours["background"])
            camera = _Camera(motion["centre"][now], cell.size, dense * (8 + 19 * len(motion["lines"])))
            _draw_person(cell, motion, now, camera, colours)
            cell = cell.resize(size, Image.Resampling.LANCZOS)
            ImageDraw.Draw(cell).multiline_text((10, 8), "\n".join(motion["lines"]), fill=colours["text"], font=font)
            image.paste(cell, (size[0] * (i % columns), size[1] * (i // columns)))
        frames.append(image)
    strip = Image.new("RGB", (whole[0], 4 * whole[1] + 40), colours["trail"])  # one palette for all frames, from four of them
    for i in range(4):
        strip.paste(frames[(len(frames) - 1) * i // 3], (0, i * whole[1]))
    palette = strip.quantize(160, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_write(path) as file:
        frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], loop=0, duration=round(1000 / motions[0]["fps"]))
