"""Pack a dataset into the one file that the other programs read, data/NAME/NAME.pack; look at its clips.

    python prepare.py toy                        rebuild the set that ships (fetches the pybullet 3.2.7 wheel with pip)
    python prepare.py toy WHEEL_OR_FOLDER        the same from a wheel at hand, or from its data/motions folder
    python prepare.py humanml3d DIR              new_joint_vecs/, texts/, Mean.npy, Std.npy, train.txt, val.txt, test.txt
    python prepare.py humanml3d DIR --name mine --min-length 24      any other set in the same layout
    python prepare.py humanml3d DIR --name mine --actions labels.csv                  with action labels
    python prepare.py kit DIR                    the same for KIT-ML: 21 joints, 251 numbers, 12.5 frames a second
    python prepare.py humanact12 DIR             humanact12poses.pkl
    python prepare.py uestc DIR                  vibe_cache_refined.pkl, info/
    python prepare.py bvh DIR --captions FILE --name mine [--mirror] [--rig NAME_OR_TABLE] [--unit cm] [--up z]
    python prepare.py show toy 000012 000345     play clips in a browser: writes out/toy.html
    python prepare.py check toy                  read all of a pack and compare it with its checksum
    python prepare.py time humanml3d DIR         how much faster the pack loads than the loose files

A captions file for `bvh` has one caption a line, as `file name: caption` or `file name<TAB>caption`, several lines for a
file if you like; the name is relative to DIR, with or without .bvh; empty lines and lines that begin with # are skipped.
"""
import argparse
import dataclasses
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
from tqdm import tqdm

import motion
from formats import datasets
from view import render
from config import HERE
from data import Batches
from formats.pack import Pack, write_pack

# What the published datasets hold, as far as their authors or everybody's logs say it.
EXPECTED = {
    "humanml3d": {"ids in all.txt": 29_228, "ids in train.txt": 23_384, "ids in val.txt": 1_460, "ids in test.txt": 4_384, "test items": 4_648},
    "kit": {"ids in train.txt": 4_888, "ids in val.txt": 300, "ids in test.txt": 830},
    "humanact12": {"sequences": 1_191, "actions": 12},
    "uestc": {"sequences": 25_600, "actions": 40, "train subjects": 51, "test subjects": 67},
}
MOTIONS = "pybullet_data/data/motions/"  # in the wheel
MOTIONS_SHA256 = "c2284f4a9c83a9bd3e2a57f62f008b35426603cd217f8609887bc3e68584c484"

# ----------------------------------------------------------------------------------------------------------------------
# Packing


def pack_layout(args):
    """humanml3d and kit: loose files in HumanML3D's layout."""
    skeleton, fps = {"humanml3d": ("t2m", 20.0), "kit": ("kit", 12.5)}[args.command]
    nfeats = motion.SKELETONS[skeleton].num_features
    datasets.need(args.folder, "new_joint_vecs", "texts", "Mean.npy", "Std.npy", "train.txt", "val.txt", "test.txt")
    sources = [os.path.join(args.folder, name) for name in ("Mean.npy", "Std.npy", "train.txt", "val.txt", "test.txt")]
    mean, std = (datasets.load_npy(path, (nfeats,)) for path in sources[:2])
    for path, array, sane in ((sources[0], mean, np.isfinite(mean)), (sources[1], std, np.isfinite(std) & (std > 0))):
        if not sane.all():
            raise ValueError(f"{path}: number {np.argmin(sane)} is {array[np.argmin(sane)]}, which cannot normalise motion.")
    rows = {}
    for name in ("all.txt", "train.txt", "val.txt", "test.txt"):
        if os.path.exists(path := os.path.join(args.folder, name)):
            rows[f"ids in {name}"] = len(set(datasets.read_lines(path)) - {""})
    found = Found()
    labels = datasets.read_actions(args.actions) if args.actions else {}
    clips = (dataclasses.replace(clip, action=labels.get(clip.id, ""))
             for clip in datasets.read_layout(args.folder, nfeats, args.min_length, args.max_length, found))
    # The published loader cuts KIT's sub-clips at 20 frames a second, too; this one at the 12.5 that KIT has.
    write(args, clips, rows, found, skeleton=skeleton, fps=fps, mean=mean, std=std, actions=sorted(set(labels.values())),
          sources=sources + [args.actions] * bool(args.actions), min_length=args.min_length, max_length=args.max_length)


def pack_actions(args):
    """humanact12 and uestc: pickles of SMPL poses."""
    found = Found()
    read, fps = {"humanact12": (datasets.read_humanact12, 20.0), "uestc": (datasets.read_uestc, 30.0)}[args.command]
    rest = datasets.rest_joints(args.smpl)
    clips, actions, sources, rows = read(args.folder, found)
    write(args, clips, rows, found, skeleton="smpl", fps=fps, actions=actions, rest=rest, sources=sources)


def pack_bvh(args):
    """bvh: one's own motion capture."""
    datasets.need(args.folder)
    captions, found = datasets.read_captions(args.captions, args.folder), Found()
    files = {os.path.relpath(os.path.join(top, name), args.folder)
             for top, _, names in os.walk(args.folder) for name in names if name.lower().endswith(".bvh")}
    found["without caption"] += sorted(files - captions.keys())
    clips = datasets.read_bvhs(captions, args.folder, found, min_length=args.min_length, max_length=args.max_length,
                              mirror=args.mirror, rig=args.rig, unit=args.unit, up=args.up)
    write(args, clips, {"BVH files": len(files), "with captions": len(captions)}, found, skeleton="t2m", fps=20.0,
          sources=[args.captions, *(os.path.join(args.folder, name) for name in sorted(captions))],
          min_length=args.min_length, max_length=args.max_length)
    if len(captions) < datasets.FEW:
        print(f"fewer than {datasets.FEW} files: all of them are in the train split")


def pack_toy(args):
    """toy: the set that ships, built by toy.py from DeepMimic's clips."""
    from toy import motions as toy
    with tempfile.TemporaryDirectory() as scratch:
        clips = toy.build(find_motions(args.source, scratch))
    args.name, args.line = "toy", "python prepare.py toy"  # the file must not depend on where the wheel lay
    write(args, clips, {}, Found(), skeleton="t2m", fps=20.0, encoding="joints", actions=sorted({clip.action for clip in clips} - {""}))


def find_motions(source, scratch):
    """The folder of DeepMimic's motions: `source` itself, or unpacked into `scratch` from a wheel, fetched if `source` is None."""
    if source is None:
        print("fetching the pybullet 3.2.7 wheel (100 MB) ...")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11",
                   "--implementation=cp", "--platform=manylinux2014_x86_64", "--dest", scratch, "pybullet==3.2.7"]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = [name for name in os.listdir(scratch) if name.endswith(".whl")]
        if done.returncode or not wheels:
            raise OSError(f"pip could not fetch pybullet==3.2.7 ({(done.stderr.strip().splitlines() or ['no reason given'])[-1]}); download "
                          "its wheel from PyPI on another machine and run: python prepare.py toy WHEEL")
        source = os.path.join(scratch, wheels[0])
    if os.path.isfile(source):
        try:
            with zipfile.ZipFile(source) as wheel:
                wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(MOTIONS) and name.endswith(".txt")])
        except zipfile.BadZipFile:
            raise ValueError(f"{source} is not a wheel; expected pybullet 3.2.7, or the folder of its motions.") from None
        folder = os.path.join(scratch, MOTIONS)
    else:
        datasets.need(source)
        inside = os.path.join(source, MOTIONS)
        folder = inside if os.path.isdir(inside) else source
    names = sorted(os.path.relpath(os.path.join(top, name), folder).replace(os.sep, "/")
                   for top, _, files in os.walk(folder) for name in files if name.endswith(".txt"))
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(name.encode() + b"\0" + file.read())
    if digest.hexdigest() != MOTIONS_SHA256:
        raise ValueError(f"{source} does not hold the motions of pybullet 3.2.7 ({len(names)} files, checksum {digest.hexdigest()[:12]}..., "
                         f"expected {MOTIONS_SHA256[:12]}...).")
    return folder


class Found(dict):
    """{reason to leave a clip out: [ids]}"""
    def __missing__(self, reason):
        return self.setdefault(reason, [])


def write(args, clips, rows, found, **settings):
    """Write the pack; print what was found beside what is expected, what was left out and why, and what was written."""
    clips = tqdm(clips, "packing", unit="clip", disable=None)
    try:
        counts = write_pack(args.out, clips, name=args.name, command=args.line, **settings)
    finally:
        for reason, ids in found.items():
            if ids:
                print(f"left out, {reason}: {len(ids):,d} ({', '.join(ids[:6])}{', ...' if len(ids) > 6 else ''})")
    expected = EXPECTED.get(args.name, {})
    print(f"\n{'':24s}{'found':>10s}{'expected':>10s}")
    for key, number in (rows | {f"{split} items": n for split, n in counts.items()}).items():
        known = expected.get(key)
        print(f"{key:24s}{number:10,d}{f'{known:,d}' if known else '':>10s}{'  <- differs' if known not in (None, number) else ''}")
    pack = Pack.open(args.out)
    frames = int(pack.lengths.sum())
    print(f"{args.out}: {len(pack):,d} items, {frames:,d} frames ({frames / pack.fps / 60:,.1f} minutes), {os.path.getsize(args.out) / 2**20:.1f} MB")
    if pack.skeleton != "smpl" and counts["train"] and settings.get("min_length", 4) >= 4:
        shares = [Batches(pack, "train", 64, by_length=by_length).padded_share() for by_length in (True, False)]
        print(f"padding in batches of 64: {shares[0]:.1%} of all frames grouped by length, {shares[1]:.1%} otherwise")


# ----------------------------------------------------------------------------------------------------------------------
# Looking at packs


def open_named(name):
    return Pack.open(name if name.endswith(".pack") else os.path.join(HERE, "data", name, name + ".pack"))


def show(args):
    pack, motions = open_named(args.dataset), []
    for id in args.ids:
        i = pack.index(id)
        joints = pack.joints(i)
        if joints[:, 15, 1].mean() < joints[:, 0, 1].mean() and pack.skeleton == "smpl":
            joints = joints * (1, -1, -1)  # camera coordinates, Y down: turn the person the right way up
        joints[..., 1] -= joints[..., 1].min()
        caption = " / ".join(caption.text for caption in pack.captions(i)) or pack.action(i)
        entry = {"joints": joints, "caption": caption, "fps": pack.fps, "title": f"{pack.name} {id}"}
        if pack.skeleton != "smpl":
            entry["contacts"] = pack.features(i)[:, -4:] > 0.5
        motions.append(entry)
    out = args.out or os.path.join("out", pack.name + ".html")
    render.write_player(out, motions)
    print(f"wrote {out}")


def check(args):
    pack = open_named(args.dataset)
    pack.check()
    print(f"{pack.path}: {len(pack):,d} items, checksum right")


def compare_times(args):
    """Time what a training run does before its first step: the pack against the loose files, both in the page cache."""
    datasets.need(args.folder, "new_joint_vecs", "texts")
    pack = open_named(args.dataset)
    ids = [id for id in pack.ids if os.path.exists(os.path.join(args.folder, "new_joint_vecs", id + ".npy"))]
    if not ids:
        raise ValueError(f"{args.folder} holds no motion of {pack.path}; give the folder that it was packed from.")

    def loose():
        return [(np.load(os.path.join(args.folder, "new_joint_vecs", id + ".npy")).astype(np.float32),
                 datasets.read_texts(os.path.join(args.folder, "texts", id + ".txt"))) for id in ids]

    def read_all():
        opened = Pack.open(pack.path)
        return [(opened.features(i), opened.captions(i)) for i in range(len(opened))]

    seconds = []
    for task in (loose, lambda: Pack.open(pack.path), read_all):
        task()
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    print(f"{len(ids):,d} loose .npy and .txt files read: {seconds[0]:.3f} s")
    print(f"pack opened:  {seconds[1]:.4f} s, {seconds[0] / seconds[1]:,.0f} times faster")
    print(f"pack opened, and every frame and caption read: {seconds[2]:.3f} s, {seconds[0] / seconds[2]:.1f} times faster")


# ----------------------------------------------------------------------------------------------------------------------


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, *positional, min_length=None, **options):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        sub.add_argument("--out", help="file to write")
        for word in positional:
            sub.add_argument(word, nargs={"source": "?", "ids": "+"}.get(word))
        if run in (pack_layout, pack_actions, pack_bvh):
            sub.add_argument("--name", default=name, help="name of the dataset, for data/NAME/NAME.pack and --dataset NAME")
        if min_length:
            sub.add_argument("--min-length", type=int, default=min_length, help="clips with fewer frames are left out")
            sub.add_argument("--max-length", type=int, default=200, help="clips with this many frames or more are left out")
        for option, settings in options.items():
            sub.add_argument("--" + option, **settings)

    command("toy", pack_toy, "source")
    actions = {"help": "CSV file of action labels: a header line, then id,label (or id,content,style: walk/tired)"}
    command("humanml3d", pack_layout, "folder", min_length=40, actions=actions)
    command("kit", pack_layout, "folder", min_length=24, actions=actions)
    smpl = {"help": "SMPL body model (.pkl or .npz), for the rest skeleton behind joint positions"}
    command("humanact12", pack_actions, "folder", smpl=smpl)
    command("uestc", pack_actions, "folder", smpl=smpl)
    command("bvh", pack_bvh, "folder", min_length=40, captions={"required": True}, mirror={"action": "store_true", "help": "add mirrored copies"},
            rig={"help": "a known rig, or a table of joint names (see bvh.py); default: recognised by its names"},
            unit={"help": "unit of the files: m, cm, ...; default: measured on a leg"}, up={"default": "y", "help": "y or z"})
    command("show", show, "dataset", "ids")
    command("check", check, "dataset")
    command("time", compare_times, "dataset", "folder")
    args = parser.parse_args(argv)
    if "folder" in args and "name" in args or args.command == "toy":
        name = getattr(args, "name", "toy")
        args.out = args.out or os.path.join(HERE, "data", name, name + ".pack")
    args.line = shlex.join(["python", "prepare.py", *argv])
    try:
        if not re.fullmatch(r"\w[\w.-]*", getattr(args, "name", "toy")):
            raise ValueError(f"--name must be a plain word, got {args.name!r}.")
        if getattr(args, "min_length", 1) < 1 or getattr(args, "min_length", 0) >= getattr(args, "max_length", 1):
            raise ValueError(f"--min-length must be at least 1 and below --max-length, got {args.min_length} and {args.max_length}.")
        args.run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
