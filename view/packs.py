"""Looking at packed datasets: prepare.py show, export, check and time."""
import itertools
import os
import re
import time

import numpy as np

import motion
from config import HERE
from files import check_place
from formats import datasets, export
from formats.found import Found
from formats.pack import Pack
from formats.text import kinds_of
from view import render


def place_of(name):
    """The path of a dataset's pack, of its name or the path itself, which ends in .pack."""
    return name if name.endswith(".pack") else os.path.join(HERE, "data", name, name + ".pack")


def open_named(name):
    """The Pack of a dataset's name, or of a path that ends in .pack."""
    return Pack.open(place_of(name))


def upright(pack, i):
    """The joints (T, J, 3) of item i of a pack, metres, on the floor."""
    joints = pack.joints(i)
    if pack.skeleton == "smpl" and joints[:, 15, 1].mean() < joints[:, 0, 1].mean():
        joints = joints * (1, -1, -1)  # camera coordinates with Y down: turn the person upright
    joints[..., 1] -= motion.floor_height(joints)
    return joints


def show(args):
    """Play clips in a browser; without ids, the first four."""
    pack, motions = open_named(args.dataset), []
    for id in args.ids or pack.ids[:4]:
        i = pack.index(id)
        joints = upright(pack, i)
        caption = " / ".join(caption.text for caption in pack.captions(i)) or pack.action(i)
        motions.append({"joints": joints, "caption": caption, "fps": pack.fps,
                        "title": f"{pack.name} {id}"})
        if pack.skeleton != "smpl":
            motions[-1]["contacts"] = pack.features(i)[:, -4:] > 0.5
    out = args.out or os.path.join("out", pack.name + ".html")
    check_place(out, b"<!DOCTYPE html>")
    render.write_player(out, motions)
    print(f"wrote {out}")


def export_clips(args):
    """Write clips for other programs; a GLB has all of them, every other file one."""
    pack, folder = open_named(args.dataset), args.out or "out"
    motions = {id: upright(pack, pack.index(id)) for id in args.clips}
    if os.path.isfile(folder):
        raise ValueError(f"--out {folder} is a file; expected a folder to write to.")
    for kind in kinds_of(args.format, export.KINDS):
        files = [motions] if kind == "glb" else [{id: motions[id]} for id in motions]
        written = set()
        for file in files:
            name = re.sub(r"[^\w.-]+", "-", f"{pack.name}-{next(iter(file))}")
            more = f"-and-{len(file) - 1}-more" if len(file) > 1 else ""
            again = next(n for n in itertools.count(1) if (name, n) not in written)
            written.add((name, again))  # ids may differ in signs that a file's name has not
            path = os.path.join(folder, f"{name}{f'-{again}' * (again > 1)}{more}.{kind}")
            export.write_file(path, file, pack.fps, args.lock_feet)
            print(f"wrote {path}")


def check(args):
    """Read all of a pack and compare it with its checksum."""
    pack = open_named(args.dataset)
    pack.check()
    print(f"{pack.path}: {len(pack):,d} items, the checksum is right")


def compare_times(args):
    """Time what training does before its first step, with the pack and with the loose files."""
    datasets.need(args.folder, "new_joint_vecs", "texts")
    pack = open_named(args.dataset)
    vectors, texts = (os.path.join(args.folder, name) for name in ("new_joint_vecs", "texts"))
    ids = [id for id in pack.ids if os.path.exists(os.path.join(vectors, id + ".npy"))]
    if not ids:
        raise ValueError(f"{args.folder} has no clip of {pack.path}; was it packed from there?")

    def loose():
        return [(np.load(os.path.join(vectors, id + ".npy")).astype(np.float32),
                 datasets.read_texts(os.path.join(texts, id + ".txt"), Found())) for id in ids]

    def read_all():
        opened = Pack.open(pack.path)
        return [(opened.features(i), opened.captions(i)) for i in range(len(opened))]

    def seconds(task):
        task()  # once before, so that all files are in the page cache
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    files, opening, reading = map(seconds, (loose, lambda: Pack.open(pack.path), read_all))
    print(f"{len(ids):,d} loose .npy and .txt files read: {files:.3f} s")
    print(f"pack opened: {opening:.4f} s, {files / opening:,.0f} times faster")
    print(f"pack opened, and every frame and caption read: {reading:.3f} s, "
          f"{files / reading:.1f} times faster")
