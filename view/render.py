"""Look at a motion: an HTML player in one file, an animated GIF, or an npy file of the joints.

    motion = {"joints": joints, "caption": "a man jumps"}
    write_player("out.html", [motion])     opens in any browser, offline
    write_gif("out.gif", [motion])         needs Pillow

A motion is a dict with `joints` (T, J, 3) in metres, Y up, the floor at 0. Optional entries:
    caption, title    the text above the person; title is a short line under the caption
    fps               frames a second, 20 by default
    contacts          (T or T-1, 4): does the left ankle, left toe, right ankle, right toe stand?
                      Found from the joints by default.
    parents           (J,), needed only for a body other than HumanML3D's (22 joints), KIT's (21)
                      or SMPL's (24)
Several motions play side by side with one clock and one camera. Page and GIF show the 22 joints of
HumanML3D as a mannequin, every other body as a stick figure.
"""
import html
import json
import math
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files import atomic_write
from formats.mannequin import RADIUS
from motion import KIT, SMPL_PARENTS, T2M
from view import skin, stills

TEMPLATE = Path(__file__).with_name("player.html")
SCRIPTS = ("mannequin.js", "webgl.js", "canvas2d.js", "player.js")  # inlined in this order
FINE, COARSE, FEW = 1, 1.4, 2  # how coarse the mannequin's mesh is for a FEW people, and for more
# Radians. The person faces +Z at first, and yaw 0 looks into the face.
CAMERA = {"yaw": 0.55, "pitch": 0.2, "field_of_view": 0.56}

# --------------------------------------------------------------------------------------------------
# Bodies: what is drawn between the joints

T2M_NAMES = T2M.joint_names
NAMES = {22: T2M_NAMES, 21: KIT.joint_names, 24: T2M_NAMES + ("left_hand", "right_hand")}
PARENTS = {22: T2M.parents, 21: KIT.parents, 24: SMPL_PARENTS}
# Parts beyond the last joint, drawn in the direction of the bone that ends there:
# name, length in metres, radius at the joint and at the end.
TIPS = {"head": ("crown", 0.075, 0.08, 0.098),
        "left_wrist": ("left_hand", 0.085, 0.035, 0.032),
        "right_wrist": ("right_hand", 0.085, 0.035, 0.032)}


def _check(motion, where):
    """A motion as given -> a copy with every entry filled in; ValueError if it cannot be shown."""
    joints = np.asarray(motion["joints"], dtype=np.float64)
    if joints.ndim != 3 or joints.shape[2] != 3 or not len(joints):
        raise ValueError(f"{where}: expected joints of shape (frames, joints, 3), "
                         f"found {joints.shape}")
    bad = np.argwhere(~np.isfinite(joints))
    if len(bad):
        raise ValueError(f"{where}: its joints hold NaN or infinity, first in frame {bad[0, 0]}")
    fps, count = float(motion.get("fps", T2M.fps)), joints.shape[1]
    if not 0 < fps < math.inf:
        raise ValueError(f"{where}: {fps} frames a second, expected a positive number")
    parents = motion.get("parents")
    parents = [int(p) for p in (PARENTS.get(count, ()) if parents is None else parents)]
    if len(parents) != count or not all(-1 <= p < count for p in parents):
        raise ValueError(f"{where}: {count} joints and {len(parents)} parents; a body other than "
                         "the known ones (22, 21 or 24 joints) needs `parents`, one joint number "
                         "for each joint and -1 for the root")
    if count > 60:
        raise ValueError(f"{where}: {count} joints, and the player draws at most 60; "
                         "leave out fingers and face")
    names = NAMES.get(count, ("",) * count)
    ends = ("midfoot", "toe") if count == 21 else ("ankle", "foot")
    sides = ("left", "right") if any(names) else ()
    feet = [names.index(f"{side}_{end}") for side in sides for end in ends]
    contacts = motion.get("contacts")
    contacts = _standing(joints[:, feet], fps) if contacts is None else np.asarray(contacts, bool)
    if contacts.shape not in ((len(joints), len(feet)), (len(joints) - 1, len(feet))):
        raise ValueError(f"{where}: contacts of shape {contacts.shape}, "
                         f"expected ({len(joints)}, {len(feet)})")
    return {"caption": str(motion.get("caption", "")), "title": str(motion.get("title", "")),
            "joints": joints - joints[0, 0] * (1, 0, 1), "fps": fps, "parents": parents,
            "names": names, "feet": feet, "contacts": contacts}


def _standing(feet, fps):
    """Positions of the feet (T, 4, 3) -> bool (T, 4): which stand, that is, move slower than
    0.25 m/s and lie within 12 cm of their lowest point."""
    if len(feet) < 2:
        return np.zeros(feet.shape[:2], bool)
    speed = np.linalg.norm(np.gradient(feet, axis=0), axis=-1) * fps
    return (speed < 0.25) & (feet[..., 1] < feet[..., 1].min(axis=0) + 0.12)


def _body(motion):
    """-> the joints with crown and hands added (T, J', 3), and the bones, each [from joint, to
    joint, radius at each, side]; side is 0 for the trunk, 1 for left, 2 for right."""
    joints, names = motion["joints"], list(motion["names"])

    def bone(a, b, radii=None):
        limb = names[a].startswith(("left", "right")) and "collar" not in names[a]
        side = (1 if names[a].startswith("left") else 2) if limb else 0
        # Two bones must not be equally thick where they meet: their faces would flicker.
        to_limb = names[b].startswith(("left", "right"))
        scale = (1.07, 1.07) if side else (0.8, 1) if to_limb else (1, 1)
        radii = radii or [RADIUS.get(names[j].split("_")[-1], 0.03) * s
                          for j, s in zip((a, b), scale)]
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


# --------------------------------------------------------------------------------------------------
# The player


def _pack(motion):
    """What player.html reads for one motion: positions as 16-bit multiples of `scale` metres, and
    the contacts of a frame as one hexadecimal digit."""
    joints, bones = _body(motion)
    scale = max(float(np.abs(joints).max()), 1e-3) / 32767
    bits = (sum(1 << f for f in np.flatnonzero(row)) for row in motion["contacts"])
    contacts = "".join(f"{number:x}" for number in bits)
    contacts += contacts[-1:] * (len(joints) - len(contacts))  # features have one frame less
    return {"caption": motion["caption"], "title": motion["title"], "fps": motion["fps"],
            "frames": len(joints), "bones": bones, "feet": motion["feet"], "contacts": contacts,
            "scale": scale, "positions": skin.encode(np.rint(joints / scale), "<i2")}


def player_data(motions, path="this player", mesh=None):
    """What `new Player` of player.js needs to play `motions`, as JSON; `mesh`, if the page has one
    already. ValueError, in a sentence that begins with `path`, for what cannot be shown."""
    if not motions:
        raise ValueError(f"{path}: no motions to show")
    motions = [_check(motion, f"{path}, motion {i}") for i, motion in enumerate(motions)]
    packed = [_pack(motion) for motion in motions]
    for motion, data in zip(motions, packed):
        body = skin.body_of(motion["joints"], motion["parents"], motion["fps"])
        if body:
            mesh = mesh or skin.mesh_of(body.offsets, FINE if len(motions) <= FEW else COARSE)
            data |= skin.turns_of(body, mesh["rest"])
    return {"camera": CAMERA, "mesh": mesh, "motions": packed}


def player_script():
    """The scripts of the player, for a page that holds the markup of player.html."""
    return "".join(TEMPLATE.with_name(name).read_text(encoding="utf-8") for name in SCRIPTS)


def write_player(path, motions, title="nanoMLD"):
    """Write one self-contained HTML file that plays `motions` (see the top of this file) side by
    side. Positions are kept to 1/32767 of the motion's extent: 0.2 mm for a path of 6 m.
    ValueError for what cannot be shown."""
    # "<" is escaped so that no caption can end the script element that holds the data.
    data = json.dumps(player_data(motions, path)).replace("<", "\\u003c")
    parts = {"%TITLE%": html.escape(title), "%DATA%": data, "%SCRIPT%": player_script()}
    template = TEMPLATE.read_text(encoding="utf-8")
    page = re.sub("|".join(parts), lambda mark: parts[mark[0]], template)  # all in one pass
    with atomic_write(path, "w") as file:
        file.write(page)


# --------------------------------------------------------------------------------------------------
# GIF: the same camera and colours, drawn with Pillow


def _theme(name):
    """The colours of player.html's style sheet -> {name: (r, g, b)}, and `shadow`, the darkness of
    the shadow."""
    start = {"light": ":root {", "dark": "[data-theme=dark] {"}[name]
    block = TEMPLATE.read_text(encoding="utf-8").split(start)[1].split("}")[0]
    found = re.findall(r"--(\w+): #(\w{6})", block)
    colours = {key: tuple(bytes.fromhex(value)) for key, value in found}
    return colours | {"shadow": float(re.search(r"--shadow: ([\d.]+)", block)[1])}


def _mix(a, b, share):
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


class _Camera:
    """The player's camera, following `motion`: makes pixels of points.

    Every pose fits into an image of `size` below the uppermost `head` pixels, which the caption
    takes. `motion` needs `drawn` (T, J', 3) and `centre` (T, 3), what the camera turns about;
    `target` is the centre of the frame at hand.
    """

    def __init__(self, motion, size, head):
        yaw, pitch, tan = CAMERA["yaw"], CAMERA["pitch"], math.tan(CAMERA["field_of_view"] / 2)
        (sy, cy), (sp, cp) = ((math.sin(angle), math.cos(angle)) for angle in (yaw, pitch))
        self.axes = np.array([[cy, 0, -sy], [-sy * sp, cp, -cy * sp], [sy * cp, sp, cy * cp]])
        wide, high = size[0], size[1] - head
        self.middle, self.scale = (wide / 2, head + high / 2), high / 2 / tan
        self.away, self.aside = max(2.3, 1.6 * high / wide) / 2 / tan, np.zeros(2)
        body = (motion["drawn"] - motion["centre"][:, None]) @ self.axes.T
        for rounds in (1, 3):  # as `look` of player.html: how far away, then centred from there
            for k, narrow in enumerate((tan * wide / high, tan)):
                for _ in range(rounds):
                    more = (narrow * body[..., 2] + body[..., k]).max() + 0.13  # 0.13: the flesh
                    less = (narrow * body[..., 2] - body[..., k]).max() + 0.13
                    self.aside[k] = (more - less) / 2
                    self.away = max(self.away, (more + less) / 2 / narrow)
                    narrow = (more + less) / 2 / self.away

    def __call__(self, points):
        """points (..., 3) -> (..., 3): x and y in pixels, and metres from the lens."""
        x, y, back = np.moveaxis((np.asarray(points) - self.target) @ self.axes.T, -1, 0)
        depth = np.maximum(self.away - back, 0.1)
        pixels = self.scale / depth
        return np.stack([self.middle[0] + (x - self.aside[0]) * pixels,
                         self.middle[1] - (y - self.aside[1]) * pixels, depth], axis=-1)


def _capsule(pen, a, b, radius_a, radius_b, colour):
    """Draw two discs and what lies between them."""
    for (x, y), r in ((a, radius_a), (b, radius_b)):
        pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    along = b - a
    across = np.array([-along[1], along[0]]) / max(np.hypot(*along), 1e-6)
    wide_a, wide_b = across * radius_a, across * radius_b
    corners = a + wide_a, b + wide_b, b - wide_b, a - wide_a
    pen.polygon([tuple(corner) for corner in corners], fill=colour)


def _draw_person(image, motion, t, camera, theme):
    """Draw floor, trail, shadow and body of frame t into a Pillow image."""
    from PIL import Image, ImageDraw
    pen, background = ImageDraw.Draw(image), theme["background"]
    now, ground = motion["drawn"][t], motion["joints"][:, 0] * (1, 0, 1)
    around = np.round(camera.target) * (1, 0, 1)
    for i in range(-5, 6):
        for j in range(-5, 5):
            colour = _mix(background, theme["line"], max(0.0, 1 - math.hypot(i, j + 0.5) / 5.5))
            for points in ([[i, 0, j], [i, 0, j + 1]], [[j, 0, i], [j + 1, 0, i]]):
                line = camera(around + np.array(points))
                pen.line([tuple(p) for p in line[:, :2]], fill=colour, width=2)
    path = camera(ground)
    for s in range(1, len(path)):
        colour = _mix(background, theme["trail"], 0.85 if s <= t else 0.25)
        pen.line([tuple(path[s - 1, :2]), tuple(path[s, :2])], width=4, fill=colour)
    feet = np.array(motion["feet"]).reshape(-1, 2)  # ankle and toe, left and right
    contacts = motion["contacts"][min(t, len(motion["contacts"]) - 1)]
    standing = feet[contacts.reshape(-1, 2).any(axis=1)]
    for foot in standing:
        cross = 0.14 * np.array([[-1, 0, 0], [1, 0, 0], [0, 0, -1], [0, 0, 1]])
        ring = camera(now[foot].mean(axis=0) * (1, 0, 1) + cross)[:, :2]
        pen.ellipse([*ring.min(0), *ring.max(0)], outline=theme["contact"], width=4)

    # The shadow falls straight along the player's light.
    shade, (x, y, z) = Image.new("L", image.size), now.T
    dark = ImageDraw.Draw(shade)
    shadow, seen = camera(np.stack([x - 0.43 * y, 0 * y, z - 0.49 * y], axis=-1)), camera(now)
    for a, b, radius_a, radius_b, _ in motion["bones"]:
        r = np.array([radius_a, radius_b]) * camera.scale / shadow[[a, b], 2] * 0.8
        _capsule(dark, shadow[a, :2], shadow[b, :2], *r, round(255 * theme["shadow"]))
    image.paste((0, 0, 0), mask=shade)

    if motion["flesh"]:
        colours = stills.colours_of(motion["bones"], standing[:, 1:], theme)
        for outline, colour in motion["flesh"].faces(t, camera, colours):
            pen.polygon(outline, fill=colour)
        return

    # Far parts come first, in the player's order: the trunk is one part; height counts only when
    # looking from above; limbs count as 6 cm nearer, since each encloses the joint where it begins.
    toward = math.sin(CAMERA["yaw"]), math.sin(CAMERA["pitch"]) ** 3, math.cos(CAMERA["yaw"])
    trunk = [bone for bone in motion["bones"] if not bone[4]]
    parts = [[bone] for bone in motion["bones"] if bone[4]] + [trunk] * bool(trunk)

    def nearness(part):
        joints = [end for bone in part for end in bone[:2]]
        return (now @ toward)[joints].mean() + 0.06 * (len(part) == 1)

    light = camera.axes @ (0.36, 0.84, 0.41)  # as the camera sees it: right, up, towards the lens
    layers = ((1.0, -0.36), (0.86, -0.18), (0.68, -0.04), (0.46, 0.09), (0.22, 0.2))
    for part in sorted(parts, key=nearness):
        for grow, lit in layers:  # from the dark rim to the lit middle
            for a, b, radius_a, radius_b, side in part:
                name = "contact" if b in standing[:, 1:] else ("middle", "left", "right")[side]
                shown = _mix(theme[name], (255, 255, 255) if lit > 0 else (0, 0, 0), abs(lit))
                r = np.array([radius_a, radius_b]) * camera.scale / seen[[a, b], 2]
                move = light[:2] * (1, -1) * r.mean() * (1 - grow) * 0.55
                _capsule(pen, seen[a, :2] + move, seen[b, :2] + move, *(r * grow), shown)


def _wrap(text, font, width):
    """Break `text` into at most three lines of `width` pixels."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:3]


def write_gif(path, motions, size=(320, 360), columns=None, theme="light"):
    """Write an endless GIF of `motions` (see the top of this file) side by side, each of `size`.

    All play at the frame rate of the first; shorter ones wait in their last pose. A bar on stderr
    shows how far it is. Needs Pillow: ImportError says what to install.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise ImportError(f"{path}: GIFs are drawn with Pillow, which is not installed; "
                          "run: pip install pillow") from None
    if not motions:
        raise ValueError(f"{path}: no motions to show")
    motions = [_check(motion, f"{path}, motion {i}") for i, motion in enumerate(motions)]
    colours, dense = _theme(theme), 2  # drawn twice as large, then made smaller: smooth edges
    columns = columns or min(len(motions), 4)
    whole = size[0] * columns, size[1] * math.ceil(len(motions) / columns)
    font = ImageFont.load_default(15)
    for motion in motions:
        motion["drawn"], motion["bones"] = _body(motion)
        motion["flesh"] = stills.flesh_of(motion["joints"], motion["parents"], motion["fps"])
        root, last = motion["joints"][:, 0], len(motion["joints"]) - 1
        reach = [min(round(0.6 * motion["fps"]), t, last - t) for t in range(last + 1)]
        motion["centre"] = np.stack([root[t - r:t + r + 1].mean(0) for t, r in enumerate(reach)])
        heights = motion["drawn"][..., 1]
        motion["centre"][:, 1] = (min(0, heights.min()) + heights.max()) / 2
        motion["lines"] = _wrap(motion["caption"], font, size[0] - 20)
        motion["camera"] = _Camera(motion, (size[0] * dense, size[1] * dense),
                                   dense * (8 + 19 * len(motion["lines"])))
    frames, count = [], max(len(motion["joints"]) for motion in motions)
    for t in tqdm(range(count), desc=Path(path).name, unit="frame", leave=False, disable=None):
        image = Image.new("RGB", whole, colours["background"])
        for i, motion in enumerate(motions):
            now, camera = min(t, len(motion["joints"]) - 1), motion["camera"]
            cell = Image.new("RGB", (size[0] * dense, size[1] * dense), colours["background"])
            camera.target = motion["centre"][now]
            _draw_person(cell, motion, now, camera, colours)
            cell = cell.resize(size, Image.Resampling.LANCZOS)
            ImageDraw.Draw(cell).multiline_text((10, 8), "\n".join(motion["lines"]), font=font,
                                                fill=colours["text"])
            image.paste(cell, (size[0] * (i % columns), size[1] * (i // columns)))
        frames.append(image)
    # one palette for all frames, from four of them
    strip = Image.new("RGB", (whole[0], 4 * whole[1] + 40), colours["trail"])
    for i in range(4):
        strip.paste(frames[(len(frames) - 1) * i // 3], (0, i * whole[1]))
    palette = strip.quantize(160, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_write(path) as file:
        frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], loop=0,
                       duration=round(1000 / motions[0]["fps"]))
