"""Pack a dataset into the one file that the other programs read, or look at a packed one.

    python prepare.py toy                     rebuild the toy set (pip fetches pybullet 3.2.7)
    python prepare.py toy WHEEL_OR_FOLDER     the same from a wheel, or from its data/motions folder
    python prepare.py humanml3d DIR           HumanML3D, or any other set in its layout
    python prepare.py humanml3d DIR --name mine --min-length 24 --actions labels.csv
    python prepare.py kit DIR                 KIT-ML, in the same layout
    python prepare.py humanact12 DIR          humanact12poses.pkl
    python prepare.py uestc DIR               vibe_cache_refined.pkl and info/
    python prepare.py bvh DIR --captions FILE --name mine       your own motion capture
    python prepare.py cmu BVH_DIR --humanml3d DIR       HumanML3D's part of the CMU database
    python prepare.py toy --times 7 --name toy7      seven times as many clips, by the same rules;
                                                     --sequences 1: not of actions in a row
    python prepare.py join NAME A B:5 ...     one pack of several, B's train clips five times

    python prepare.py show toy                play the first four clips in a browser
    python prepare.py show toy 000012 000345  play these clips (writes out/toy.html)
    python prepare.py export toy 000012 --format glb    write clips for other programs: glb, vrma,
                                              usda (a character), bvh (a skeleton), npy (joints)
    python prepare.py check toy               compare a pack with its checksum
    python prepare.py time humanml3d DIR      how much faster the pack loads than the loose files

A pack is written to data/NAME/NAME.pack. The options of a command: python prepare.py COMMAND --help

HumanML3D's layout is new_joint_vecs/, texts/, Mean.npy, Std.npy, train.txt, val.txt and test.txt.
A captions file for `bvh` has lines `file name: caption` or `file name<TAB>caption`, with the name
relative to DIR and .bvh optional; a file may have several. Empty lines and # lines are skipped.
After the name may stand a window in seconds and an action: `take1 0.5-3.2 [jump]: a man jumps`.

Unit, axis that points up, left and right, and pace of your own recordings are found from the body
in them, and said; --unit, --up and --fps say otherwise. Files that cannot be read and motion that
no person can have made are left out, and all of them are named; --keep packs such motion, --strict
refuses the set. Names that ought to meet (captions and recordings, lists and files) are counted.
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
import zipfile

import numpy as np
from tqdm import tqdm

import motion
from files import check_place
from data import Batches
from formats import cmu, datasets, joined, plausible, recordings
from formats.found import Found
from formats.pack import Pack, write_pack
from formats.pack_index import MAGIC, NFEATS, PLAIN_NAME
from formats.pickle_reader import Budget
from formats.text import read_lines, visible
from view.packs import check, compare_times, export_clips, open_named, place_of, show

# What the published datasets hold, according to their authors or to training logs.
EXPECTED = {
    "humanml3d": {"ids in all.txt": 29_228, "ids in train.txt": 23_384, "ids in val.txt": 1_460,
                  "ids in test.txt": 4_384, "test items": 4_648},
    "kit": {"ids in train.txt": 4_888, "ids in val.txt": 300, "ids in test.txt": 830},
    "humanact12": {"sequences": 1_191, "actions": 12},
    "cmu": {"windows of CMU in index.csv": 2_913, "recordings they are from": 2_035},
    "uestc": {"sequences": 25_600, "actions": 40, "train subjects": 51, "test subjects": 67},
}
MOTIONS = "pybullet_data/data/motions/"  # in the wheel
MOTIONS_SHA256 = "c2284f4a9c83a9bd3e2a57f62f008b35426603cd217f8609887bc3e68584c484"

# --------------------------------------------------------------------------------------------------
# Packing

def pack_layout(args):
    """Pack a folder in HumanML3D's layout."""
    skeleton = {"humanml3d": motion.T2M, "kit": motion.KIT}[args.command]
    names = ("Mean.npy", "Std.npy", "train.txt", "val.txt", "test.txt")
    datasets.need(args.folder, "new_joint_vecs", "texts", *names)
    sources = [os.path.join(args.folder, name) for name in names]
    mean, std = (datasets.load_npy(path, (skeleton.num_features,)) for path in sources[:2])
    for path, array, least in zip(sources, (mean, std), (-np.inf, 0)):
        if not (sane := np.isfinite(array) & (array > least)).all():
            i = np.argmin(sane)
            raise ValueError(f"{path}: number {i} is {array[i]}, which cannot normalise motion.")
    rows = {}
    for name in ("all.txt", "train.txt", "val.txt", "test.txt"):
        if os.path.exists(path := os.path.join(args.folder, name)):
            rows[f"ids in {name}"] = len(set(read_lines(path, args.encoding)) - {""})
    found, labels = Found(), {}
    if args.actions:
        ids = datasets.read_splits(args.folder, args.encoding)
        labels = datasets.read_actions(args.actions, ids, found, args.encoding)
    lengths = {"min_length": args.min_length, "max_length": args.max_length}
    clips = datasets.read_layout(args.folder, skeleton.num_features, found=found,
                                 encoding=args.encoding, **lengths)
    clips = (dataclasses.replace(clip, action=labels.get(clip.id, "")) for clip in clips)
    # The published loader cuts KIT's sub-clips as if it had 20 frames a second; it has 12.5.
    write(args, clips, rows, found, skeleton=skeleton.name, fps=skeleton.fps, mean=mean, std=std,
          actions=sorted(set(labels.values())), sources=sources + [args.actions] * bool(labels),
          **lengths)


def pack_actions(args):
    """Pack HumanAct12 or UESTC, from pickles of SMPL poses."""
    found, rest = Found(), datasets.rest_joints(args.smpl)
    read, fps = {"humanact12": (datasets.read_humanact12, 20.0),
                 "uestc": (datasets.read_uestc, 30.0)}[args.command]
    clips, actions, sources, rows = read(args.folder, found, args.encoding)
    write(args, clips, rows, found, skeleton="smpl", fps=fps, actions=actions, rest=rest,
          sources=sources)


def pack_bvh(args):
    """Pack your own motion capture: BVH files and a file of captions."""
    datasets.need(args.folder)
    found = Found()
    captions = recordings.read_captions(args.captions, args.folder, found, args.encoding)
    splits = args.splits and recordings.read_split_table(args.splits, captions, found,
                                                         args.encoding)
    actions = {window.action for windows in captions.values() for window in windows} - {""}
    actions |= {datasets.swap_sides(action) for action in actions if args.mirror}
    lengths = {"min_length": args.min_length, "max_length": args.max_length}
    clips = recordings.read_bvhs(
        captions, args.folder, found, mirror=args.mirror, rig=args.rig, unit=args.unit, up=args.up,
        fps=args.fps, keep=args.keep, encoding=args.encoding, splits=splits, store=args.store,
        **lengths)
    sources = [args.captions, *[args.splits] * bool(args.splits),
               *(os.path.join(args.folder, name) for name in sorted(captions))]
    rows = {"BVH files": len(captions) + len(found["without caption"]),
            "with captions": len(captions)}
    write(args, clips, rows, found, skeleton="t2m", fps=20.0, sources=sources,
          encoding=args.store, actions=sorted(actions), **lengths)
    if len(captions) < recordings.FEW and not splits:
        print(f"fewer than {recordings.FEW} files: all of them are in the train split")


def pack_cmu(args):
    """Pack what HumanML3D says about a copy of the CMU database as BVH files."""
    datasets.need(args.folder)
    found = Found()
    with tempfile.TemporaryDirectory() as scratch:
        index = cmu.read_humanml3d(args.humanml3d, scratch, args.encoding)
        lengths = {"min_length": args.min_length, "max_length": args.max_length}
        clips = cmu.read_cmu(args.folder, index, found, trimmed=args.trimmed, rig=args.rig,
                             mirror=args.mirror, store=args.store, keep=args.keep, **lengths)
        write(args, clips, index.rows, found, skeleton="t2m", fps=20.0, sources=index.sources,
              encoding=args.store, **lengths)


def pack_join(args):
    """Make one pack of several, which must have the same skeleton and frame rate. NAME:5 takes the
    train clips of a set five times, so that a small one counts beside a large one."""
    asked = [re.fullmatch(r"(.+?)(?::(\d+))?", name).groups() for name in args.packs]
    packs, found = [open_named(name) for name, _ in asked], Found()
    times = [1 if count is None else int(count) for _, count in asked]
    for name, count in zip(args.packs, times):
        if not 1 <= count <= 1000:
            raise ValueError(f"NAME:N takes a set's train clips 1 to 1000 times, found {name}.")
    settings = joined.settings_of(packs)
    rows = {f"{pack.name} items": len(pack) for pack in packs}
    write(args, joined.joined(packs, found, times), rows, found,
          sources=[pack.path for pack in packs], **settings)


def pack_toy(args):
    """Rebuild the set that ships, from DeepMimic's motions in the pybullet wheel."""
    from toy import motions as toy
    least = min(args.times, 1 if args.sequences is None else args.sequences)
    if least < 1:
        raise ValueError(f"--times and --sequences must be at least 1, found {least}.")
    other = args.times > 1 or args.sequences not in (None, 1)
    if other and args.name == "toy":
        raise ValueError("A larger set needs a --name of its own: toy is the one that ships.")
    with tempfile.TemporaryDirectory() as scratch:
        clips = toy.build(find_motions(args.source, scratch), args.times, args.sequences)
    args.line = "python prepare.py toy"  # the file must not depend on where the wheel was
    more = "" if args.sequences is None else f" --sequences {args.sequences}"
    args.line += f" --times {args.times}{more} --name {args.name}" * other
    write(args, clips, {}, Found(), skeleton="t2m", fps=20.0, encoding="joints",
          actions=sorted({clip.action for clip in clips} - {""}))


def find_motions(source, scratch):
    """The folder of DeepMimic's motions. `source` is this folder, or a wheel, which is unpacked
    into `scratch`; None fetches the wheel."""
    source = source or fetch_wheel(scratch)
    if os.path.isfile(source):
        try:
            with zipfile.ZipFile(source) as wheel:
                wanted = [info for info in wheel.infolist() if info.filename.startswith(MOTIONS)
                          and info.filename.endswith(".txt")]
                Budget(os.path.getsize(source)).spend(sum(info.file_size for info in wanted))
                wheel.extractall(scratch, wanted)
        except zipfile.BadZipFile:
            raise ValueError(f"{source} is not a wheel; expected pybullet 3.2.7, or the folder of "
                             "its motions.") from None
    datasets.need(top := scratch if os.path.isfile(source) else source)
    inside = os.path.join(top, MOTIONS)
    folder = inside if os.path.isdir(inside) else top
    names = visible(folder, ".txt")
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(name.encode() + b"\0" + file.read())
    if digest.hexdigest() != MOTIONS_SHA256:
        found, expected = digest.hexdigest()[:12], MOTIONS_SHA256[:12]
        raise ValueError(f"{source} does not hold the motions of pybullet 3.2.7 ({len(names)} "
                         f"files, checksum {found}, expected {expected}).")
    return folder


def fetch_wheel(folder):
    """Download the wheel of pybullet 3.2.7 into `folder`; its path."""
    print("fetching the pybullet 3.2.7 wheel (100 MB) ...")
    options = ("--quiet --no-deps --only-binary=:all: --python-version=3.11 --implementation=cp "
               "--platform=manylinux2014_x86_64 pybullet==3.2.7").split()
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise OSError(f"pip could not fetch pybullet==3.2.7 ({reason}); download its wheel from "
                      "PyPI on another machine and run: python prepare.py toy WHEEL")
    return os.path.join(folder, wheels[0])


def screened(clips, found, skeleton, fps, args):
    """The clips in which nothing happens that no person can do; at the end, ValueError if too many
    were left out."""
    postures = []
    for clip in clips:
        faults = ()
        if args.command in ("bvh", "cmu", "join"):
            pass  # these have been looked at
        elif clip.joints is not None:
            faults = plausible.faults(clip.joints, fps)
        elif datasets.fits(clip.features, (None, NFEATS[skeleton])):
            faults = plausible.feature_faults(clip.features, skeleton, fps)
            if skeleton != "smpl":
                postures.append(plausible.posture(clip.features, skeleton))
        if faults and not args.keep:
            found.leave(clip.id, f"frame {faults[0].frame}: {faults[0].reason}")
            found.good -= 1
        else:
            yield clip
    upright, mirrored = np.sum(postures, axis=0) if postures else (0, 0)
    if upright < len(postures) / 2:
        found.say(f"warning: the head is above the feet in only {upright} of {len(postures)} "
                  "clips; does Y point up in this set?")
    if mirrored > len(postures) / 2:
        found.say(f"warning: the toes point backwards in {mirrored} of {len(postures)} clips; are "
                  "left and right exchanged in this set?")
    found.judge(args.strict)


def write(args, clips, rows, found, **settings):
    """Write the pack; print what was left out and why, and {what: count} beside EXPECTED."""
    if os.path.exists(args.out):
        print(f"{args.out} is there already, and will be replaced")
    clips = screened(clips, found, settings["skeleton"], settings["fps"], args)
    clips = tqdm(clips, "packing", unit="clip", disable=None)
    try:
        counts = write_pack(args.out, clips, name=args.name, command=args.line, **settings)
    finally:
        for line in found.report():
            print(line)
    print(f"\n{'':24s}{'found':>10s}{'expected':>10s}")
    for key, number in (rows | {f"{split} items": n for split, n in counts.items()}).items():
        known = EXPECTED.get(args.name, {}).get(key)
        mark = "  <- differs" if known not in (None, number) else ""
        print(f"{key:24s}{number:10,d}{f'{known:,d}' if known else '':>10s}{mark}")
    pack = Pack.open(args.out)
    frames, size = int(pack.lengths.sum()), os.path.getsize(args.out) / 2**20
    print(f"{args.out}: {len(pack):,d} items, {frames:,d} frames "
          f"({frames / pack.fps / 60:,.1f} minutes), {size:.1f} MB")
    if pack.skeleton != "smpl" and counts["train"] and settings.get("min_length", 4) >= 4:
        sorted_share, share = (Batches(pack, "train", 64, by_length=by_length).padded_share()
                               for by_length in (True, False))
        print(f"padding in batches of 64: {sorted_share:.1%} of all frames grouped by length, "
              f"{share:.1%} otherwise")


# --------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "folder": {"help": "folder of the dataset's files"},
    "source": {"nargs": "?", "help": "pybullet's wheel, or the folder of its motions"},
    "dataset": {"help": "name of a packed dataset, or path of a .pack file"},
    "ids": {"nargs": "*", "help": "clips to show; default: the first four"},
    "clips": {"nargs": "+", "metavar": "ID", "help": "clips to write"},
    "--format": {"default": "glb", "help": "glb, vrma, usda, bvh or npy, or several with commas "
                                           "between (%(default)s)"},
    "--lock-feet": {"action": argparse.BooleanOptionalAction, "help": "feet that stand do not "
                    "slide; otherwise that is so in glb, vrma and usda alone"},
    "--out": {"help": "file to write, or for `export` the folder"},
    "--name": {"help": "name of the dataset; default: that of the command"},
    "--min-length": {"type": int, "help": "leave out clips with fewer frames (%(default)s)"},
    "--max-length": {"type": int, "help": "leave out clips of this length or more (%(default)s)"},
    "--actions": {"help": "CSV file of action labels: a header line, then id,label (or "
                          "id,content,style, which makes labels like walk/tired)"},
    "new_name": {"metavar": "NAME", "help": "name of the new dataset"},
    "packs": {"nargs": "+", "metavar": "PACK", "help": "names of packed datasets, or paths"},
    "--humanml3d": {"required": True, "metavar": "DIR", "help": "folder with HumanML3D's index.csv,"
                    " train.txt, val.txt, test.txt, and texts or texts.zip"},
    "--splits": {"help": "CSV file of lines `file name,split`; default: drawn by name"},
    "--store": {"choices": ("features", "joints"), "help": "what the pack holds: features, or "
                "joints on a 0.5 mm grid in a twentieth of the space (%(default)s)"},
    "--trimmed": {"type": int, "default": 0, "metavar": "FRAMES", "help": "frames that your copy "
                  "lacks at the beginning of each recording, at CMU's own rate (%(default)s)"},
    "--smpl": {"help": "SMPL body model (.pkl or .npz), the body for joint positions"},
    "--captions": {"required": True, "help": "file of captions, as in python prepare.py --help"},
    "--mirror": {"action": argparse.BooleanOptionalAction, "help": "add a mirrored copy of each "
                 "clip (%(default)s)"},
    "--rig": {"help": "cmu, mixamo, lafan1, bandai, or a file with a table of joint names (see "
                      "formats/rigs.py); default: recognised by the joint names"},
    "--unit": {"help": "unit of the files: m, cm, mm, in, cmu; default: found from a leg's length"},
    "--up": {"help": "axis that points up: y, z, x, or the other way round as in --up=-y; default: "
                     "found from the body"},
    "--fps": {"type": float, "help": "frames a second, where the files say something wrong"},
    "--keep": {"action": "store_true", "help": "pack rest poses and motion that no person can have "
                                               "made, too"},
    "--strict": {"action": "store_true", "help": "refuse the set if a single clip cannot be used"},
    "--times": {"type": int, "default": 1, "metavar": "N",
                "help": "N times as many clips, more of what is hard to learn: the others are for "
                        "training; wants a --name"},
    "--sequences": {"type": int, "metavar": "N",
                    "help": "as --times, for clips of actions in a row; otherwise the same"},
    "--encoding": {"help": "of text files that are neither UTF-8 nor UTF-16, such as gbk"},
}
COMMON = "--keep --strict --encoding --out"
LAYOUT = f"folder --name --min-length --max-length --actions {COMMON}"
COMMANDS = {
    "toy": (pack_toy, "source --times --sequences --name --out"),
    "humanml3d": (pack_layout, LAYOUT), "kit": (pack_layout, LAYOUT),
    "humanact12": (pack_actions, f"folder --name --smpl {COMMON}"),
    "uestc": (pack_actions, f"folder --name --smpl {COMMON}"),
    "bvh": (pack_bvh, "--captions --splits --mirror --store --rig --unit --up --fps --name "
                      f"--min-length --max-length {COMMON} folder"),
    "cmu": (pack_cmu, "folder --humanml3d --name --mirror --store --rig --trimmed --min-length "
                      f"--max-length {COMMON}"),
    "join": (pack_join, "new_name packs --out"),
    "show": (show, "dataset ids --out"),
    "export": (export_clips, "dataset clips --format --lock-feet --out"),
    "check": (check, "dataset"),
    "time": (compare_times, "dataset folder"),
}


def check_output(args):
    """ValueError or OSError for a pack that must not be written where --out or --name say."""
    check_place(args.out, MAGIC)
    sources = [getattr(args, name, None) for name in ("captions", "splits", "actions", "smpl")]
    sources += [re.fullmatch(r"(.+?)(?::\d+)?", name)[1] for name in getattr(args, "packs", ())]
    sources = [place_of(x) if x and args.command == "join" else x for x in sources]
    if args.command != "toy":
        sources.append(place_of("toy"))
    for source in sources:
        if source and os.path.realpath(source) == os.path.realpath(args.out):
            raise ValueError(f"{args.out} would be written over, and it is "
                             + ("the set that ships" if source is sources[-1] else
                                "one of the files to read") + ": give another name.")


def parse(argv):
    parser = argparse.ArgumentParser(usage="python prepare.py COMMAND ...", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                     help=argparse.SUPPRESS)
    for name, (run, words) in COMMANDS.items():
        sub = commands.add_parser(name, description=run.__doc__, prog=f"python prepare.py {name}")
        for word in words.split():
            sub.add_argument(word, **ARGUMENTS[word])
        lengths = {"min_length": 24 if name == "kit" else 40, "max_length": 200}
        small = {"mirror": True, "store": "joints"} if name == "cmu" else {
            "mirror": False, "store": "features"}
        sub.set_defaults(run=run, name=name, keep=False, strict=False, **lengths, **small)
    args = parser.parse_args(argv)
    args.name = getattr(args, "new_name", args.name)
    if args.run in (pack_toy, pack_layout, pack_actions, pack_bvh, pack_cmu, pack_join):
        args.out = args.out or place_of(args.name)
    args.line = shlex.join(["python", "prepare.py", *argv])
    return args


def main(argv):
    try:
        args = parse(argv)
        if not PLAIN_NAME.fullmatch(args.name):
            raise ValueError(f"--name must be a plain word, found {args.name!r}.")
        if not 1 <= args.min_length < args.max_length:
            raise ValueError("--min-length must be at least 1 and below --max-length, found "
                             f"{args.min_length} and {args.max_length}.")
        if getattr(args, "fps", None) is not None and not 2 <= args.fps <= 1000:
            raise ValueError(f"--fps must be 2 to 1000 frames a second, found {args.fps}.")
        if args.run not in (show, export_clips, check, compare_times):
            check_output(args)  # now: reading a dataset takes minutes
        args.run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from flags import program

    program(main)
