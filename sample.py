"""Make motions from sentences, action labels, or nothing.

    python sample.py "a man jumps"                  writes out/a-man-jumps.html for any browser,
                                                    or -2.html if that exists (see --force)
    python sample.py "a man jumps" "a woman waves" --num 4   four motions of each, side by side
    python sample.py --file prompts.txt --format html,bvh,npy
    python sample.py "a man jumps" --format glb     a character for Blender and games
    python sample.py --action jump --ckpt out/actions/model.pt
    python sample.py --unconditional --ckpt out/free/model.pt
    python sample.py "a person walks" --seconds 5 --seed 3 --steps 20 --sampler dpm++ --guidance 2
    python sample.py "a person does a backflip" --ckpt humanml3d   the published model, fetched once
    python sample.py "a man walks" --constraints c.json      places, poses, a path: docs/editing.md
    python sample.py "a man walks, then sits down"  two parts, made one after the other (clauses.py)
    python sample.py --story "a man walks" "he turns left" "he sits down"   one motion, no seams
    python sample.py --list                         the words for --ckpt, what they need, and the
                                                    actions that the model knows

--ckpt takes a model.pt of train.py, a word of --list, or MLD's published weights: a .ckpt, or a
folder with the hub's two folders of safetensors. Published weights need CLIP's (a word fetches
them; --clip PATH). They do not know how long a motion should be: without --seconds, a rule that
looks at the verbs decides (lengths.py).

What a model with a vocabulary of its own did not understand, or took for something else, is said
(words.py). A prompt of which nothing is left is refused, and motions longer than those of the
training are, unless --force is given.
"""
import argparse
import contextlib
import gc
import itertools
import os
import re
import sys
import tempfile
import textwrap
import time
import unicodedata
import webbrowser

from formats.text import kinds_of
from lengths import seconds

STARTED = time.perf_counter()
HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST_NAME = 80  # bytes; what is added to it stays within what any file system allows
MOST_MOTIONS, MOST_SECONDS, MOST_STEPS, LAST_SEED = 10_000, 3600, 100_000, 2**63 - 1
MOST_GUIDANCE = 100  # far beyond what any model bears
FORMATS = ("html", "bvh", "npy", "gif", "glb", "vrma", "usda")
TOGETHER = ("html", "gif", "glb")  # one file has all motions


def numbers(text):
    return [float(part) for part in text.split(",")]


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT")
    add("--file", help="text file with one prompt per line")
    add("--encoding", help="of that file, where it is neither UTF-8 nor UTF-16")
    add("--action", action="append", default=[], metavar="NAME",
        help="action label, for models trained with --condition action; may be repeated")
    add("--unconditional", action="store_true", help="no prompt at all")
    add("--num", type=int, default=1, help="motions per prompt")
    add("--seconds", type=numbers, help="length, or one for each prompt, such as 3,2.5; otherwise "
        "drawn to suit the prompt")
    add("--seed", type=int, default=1234, help="motion i is drawn from seed + i (of a "
        "--story of n prompts: seed + n i)")
    add("--steps", type=int, help="denoising steps; otherwise the model's own setting")
    add("--sampler", choices=("ddim", "ddpm", "dpm++", "lcm"), help="otherwise the model's own")
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 = off")
    add("--constraints", metavar="FILE", help="JSON of what to meet, in the world's frame")
    add("--start", metavar="NPY", help="begin in the last pose of this motion")
    add("--end", metavar="NPY", help="end in the first pose of this motion")
    add("--path", metavar="CSV", help="go this way: lines of seconds, x, z")
    add("--continue", dest="goes_on", metavar="NPY", help="what comes after this motion")
    add("--story", nargs="*", metavar="PROMPT", help="prompts in a row, or several --action")
    add("--whole", action="store_true", help="never take a prompt apart into what is done first, "
        "then, and after that")
    add("--loop", action="store_true", help="a motion, or a story, that can be repeated")
    add("--interpolate", nargs="*", metavar="PROMPT", help="--num motions between two prompts")
    add("--vary", metavar="NPY", help="--num variations of this motion")
    add("--strength", type=float, default=0.4, help="of --vary: 0 changes nothing, 1 all")
    add("--effort", choices=("low", "normal", "high"), default="normal", help="to meet constraints")
    add("--ckpt", default=os.path.join(HERE, "checkpoints", "toy.pt"),
        help="model.pt of train.py, published weights, or a word of --list")
    add("--list", action="store_true",
        help="say which words --ckpt takes, what they need, and which actions the model knows")
    add("--offline", action="store_true", help="fetch nothing")
    add("--assets.cache", dest="cache", default="", metavar="FOLDER",
        help="for weights that are fetched; otherwise $XDG_CACHE_HOME/nanomld")
    add("--assets.lock", dest="lock", default="", metavar="FILE",
        help="lock file to share: the commits and digests that fetched weights must have")
    add("--assets.clip_dtype", dest="clip_dtype", default="float32",
        choices=("float32", "float16"), help="of CLIP as it is kept; float16 is half the disk")
    add("--clip", help="CLIP's text tower: Hugging Face folder or weights file")
    add("--out", default="out", help="folder to write to")
    add("--force", action="store_true",
        help="overwrite files of the same name, where otherwise new ones get a number; and make "
             "motions longer than those of the training")
    add("--format", default="html", help="html, bvh, npy, gif (needs Pillow), or a character: "
        "glb, vrma, usda; several with commas between")
    add("--lock-feet", action=argparse.BooleanOptionalAction,
        help="feet that stand do not slide; otherwise that is so in glb, vrma and usda alone")
    add("--fps", type=float, help="frames a second of the files; otherwise the model's own")
    add("--bvh", choices=("rigid", "exact"), default="rigid", help="rigid: rotations only, which "
        "every program reads, 2 mm off on average; exact: joints have position channels, too")
    add("--unit", choices=("m", "cm"), default="m", help="of BVH files; other files have metres")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--precision", choices=("float32", "bf16", "int8"), default="float32",
        help="of the weights; bf16 and int8 are not exact, and bf16 is slow on processors that "
             "have no instructions for it")
    add("--open", action="store_true", help="open the player in the browser")
    add("--verbose", action="store_true", help="say what took how long, and on which kernels")
    return parser.parse_args(argv)


def file_name(caption):
    """'A man jumps!' -> 'a-man-jumps'; letters of any script stay, as far as the bytes go."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", caption).lower()).strip("-")
    return words.encode()[:LONGEST_NAME].decode(errors="ignore").strip("-") or "motion"


def read_prompts(args):
    """The prompts of the command line and of --file. ValueError for flags that cannot be used."""
    prompts = args.prompts + (args.story or []) + (args.interpolate or [])
    if args.file:
        from formats.text import read_lines
        try:
            prompts += filter(None, read_lines(args.file, args.encoding))
        except FileNotFoundError:
            raise ValueError(f"There is no file {args.file}; --file takes a text file with one "
                             "prompt per line.") from None
        if not prompts:
            raise ValueError(f"--file {args.file} holds no prompt.")
    if sum([bool(prompts), bool(args.action), args.unconditional]) != 1:
        raise ValueError("Give prompts (or --file), or --action NAME, or --unconditional: one of "
                         "the three.")
    if not os.path.exists(args.ckpt) and args.ckpt not in (known := hub().WORDS):
        raise ValueError(f"There is no checkpoint {args.ckpt}: train one (python train.py "
                         "--dataset toy) and name it with --ckpt out/toy/model.pt, or take one "
                         f"that is known by a word: {', '.join(known)} (--list).")
    for prompt in prompts:
        if not any(letter.isalnum() or ord(letter) > 127 for letter in prompt):
            raise ValueError(f"The prompt {prompt!r} says nothing: give it words. "
                             "--unconditional makes any motion.")
    try:
        "".join(prompts).encode()
    except UnicodeEncodeError:
        raise ValueError("A prompt has bytes that are no text in this terminal's encoding; put it "
                         "into a UTF-8 file and give that with --file.") from None
    check_numbers(args, len(prompts) or len(args.action) or 1)
    check_output(args)
    return prompts


def check_numbers(args, count):
    """ValueError for numbers that no model can take. count: of prompts or actions"""
    if not 1 <= args.num * count <= MOST_MOTIONS:
        raise ValueError(f"--num must be at least 1, and make at most {MOST_MOTIONS} motions, got "
                         f"{args.num} for each of {count} prompt(s).")
    for one in args.seconds or []:
        if not 0 < one <= MOST_SECONDS:
            raise ValueError(f"--seconds must be positive and at most {MOST_SECONDS}, got {one:g}.")
    if args.seconds and len(args.seconds) not in (1, count):
        raise ValueError("--seconds takes one length, or one for each prompt; found "
                         f"{len(args.seconds)} for {count}.")
    if args.steps is not None and not 1 <= args.steps <= MOST_STEPS:
        raise ValueError(f"--steps must be 1 to {MOST_STEPS}, got {args.steps}.")
    if not 0 <= args.seed <= LAST_SEED:
        raise ValueError(f"--seed must be a whole number from 0 to {LAST_SEED}, got {args.seed}.")
    if args.fps is not None and not 1 <= args.fps <= 1000:
        raise ValueError(f"--fps must be from 1 to 1000, got {args.fps:g}.")
    if args.guidance is not None and not 0 <= args.guidance <= MOST_GUIDANCE:
        raise ValueError(f"--guidance must be 0 to {MOST_GUIDANCE} (guidance_scale; 1 = off), got "
                         f"{args.guidance:g}.")


def check_output(args):
    """ValueError for formats that cannot be written, and for flags that would change nothing."""
    kinds = formats_of(args)
    given = args.constraints, args.start, args.end, args.path, args.goes_on, args.loop or None
    met = any(value is not None for value in given)
    for flag, default, used, what in (
            ("unit", "m", "bvh" in kinds, "is of BVH files: --format bvh"),
            ("bvh", "rigid", "bvh" in kinds, "is of BVH files: --format bvh"),
            ("strength", 0.4, args.vary is not None, "is of --vary"),
            ("effort", "normal", met, "is of --constraints, --start, --end, --path, "
             "--continue and --loop"),
            ("encoding", None, args.file, "is of --file")):
        if getattr(args, flag) != default and not used:
            raise ValueError(f"--{flag} {what}.")
    if args.open and "html" not in kinds:
        raise ValueError(f"--open shows the player: add html to --format {args.format}.")
    if "gif" in kinds:
        try:
            from PIL import Image  # noqa: F401
        except Exception as error:  # a broken installation raises whatever it likes
            raise ValueError("--format gif needs Pillow, which cannot be imported here "
                             f"({error}); run: pip install pillow") from None


def formats_of(args):
    return kinds_of(args.format, FORMATS)


def make_folder(folder):
    """The output folder. ValueError if it is none, OSError if nothing can be written to it."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--out {folder} is a file; expected a folder to write to.")
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def lengths_of(args, model, texts, labels, count):
    """How many frames each motion has: as --seconds says, as the model draws, or by a rule."""
    c = model.config.data
    if args.seconds:
        times = count // len(args.seconds)
        return [round(one * c.fps) for one in args.seconds for _ in range(times)]
    if model.length_estimator is not None or texts is None:
        return model.draw_lengths(texts, labels, count, args.seed)
    print("These weights do not know how long a motion should be: a rule that looks at the verbs "
          "decides. --seconds sets another length.", file=sys.stderr)
    return [round(seconds(text) * c.fps / c.unit_length) * c.unit_length for text in texts]


def check_trained(args, config, frames):
    """ValueError for motions longer than the training's, unless --force is given; of others that it
    never saw, the user is told. frames: for each motion a list, of its parts, each of which shares
    frames with the one before"""
    from story import SHARED

    c = config.data
    longest, shortest = c.max_frames / c.fps, min(c.min_length, c.max_frames)

    def excess(parts):
        return max(n + SHARED * (k > 0) for k, n in enumerate(parts)) - c.max_frames

    worst = max(frames, key=excess)
    if excess(worst) > 0:
        count, most = len(worst), longest * len(worst) - SHARED / c.fps * (len(worst) - 1)
        any_motion = "any motion" if count == 1 else \
            f"{count} things one after the other ({most:g} s) made of motions"
        why = f"{sum(worst) / c.fps:g} s is longer than {any_motion} that this model was trained on"
        if not args.force:
            raise ValueError(f"{why}, which have at most {longest:g} s: it would drift or stand "
                             f"still. Take --seconds {most:g} or less, or --force to see it.")
        print(f"{why}.", file=sys.stderr)
    elif args.seconds and min(map(sum, frames)) < shortest:
        print(f"{min(map(sum, frames)) / c.fps:g} s is shorter than any motion that this model was "
              f"trained on, which have at least {shortest / c.fps:g} s.", file=sys.stderr)


def understood(prompts, vocabulary):
    """The prompts as the model should read them. What it takes for something else is said on
    standard error. ValueError for a prompt of which nothing is left."""
    from words import understand

    read = [understand(prompt, vocabulary) for prompt in prompts]
    for report in read:
        if report.error:
            apart = len(prompts) > 1 and not any(" " in prompt for prompt in prompts)
            raise ValueError(report.error + apart * (
                f' One sentence goes in quotes: "{" ".join(prompts)}".'))
        for note in report.notes:
            print(f"{report.prompt}: {note}" if len(read) > 1 else note, file=sys.stderr)
    return [report.text for report in read]


def as_read(model, prompts, apart=True, whole=False):
    """For each prompt a list of what the model should read: several texts for what is done one
    after the other, if `apart`. That it is, or why not, is told on standard error; `whole`: the
    user has asked for one motion of all."""
    from clauses import taken_apart

    vocabulary, each = getattr(model.text_encoder, "vocabulary", None), []
    for prompt in prompts:
        parts, spelled = taken_apart(prompt, vocabulary) if not whole else ([prompt], {})
        each.append(parts if apart else [prompt])
        if len(parts) > 1 and not apart:
            print(f"{prompt!r} is made as one motion here: {len(parts)} prompts of a --story would "
                  "be made one after the other.", file=sys.stderr)
        elif len(parts) > 1:
            pairs = "".join(f"Read {a!r} as {b!r}. " for a, b in spelled.items())
            print(f"{pairs}Made one after the other: {', then '.join(map(repr, parts))} (--whole "
                  "makes one motion of all).", file=sys.stderr)
    if vocabulary:
        read = iter(understood([part for parts in each for part in parts], vocabulary))
        each = [[next(read) for _ in parts] for parts in each]
    if model.text_encoder is not None:
        say_what_is_cut_off(model.text_encoder, dict.fromkeys(sum(each, [])))
    return each


def say_what_is_cut_off(encoder, texts):
    """On standard error, for texts of which the text tower reads the beginning only."""
    from words import words_of

    for text in texts:
        own_words = hasattr(encoder, "vocabulary")
        found = words_of(text) if own_words else encoder.tokenizer.encode(text)
        most = len(encoder.tower.positional_embedding) - (1 if own_words else 2)  # start and end
        if len(found) > most:
            unit = "words" if own_words else "tokens"
            print(f"This model reads {most} {unit} of a prompt; the last {len(found) - most} of "
                  f"{text[:40]!r}... are left out.", file=sys.stderr)


def actions_of(path):
    """Lines on what our checkpoint at `path` knows: its actions, each with a caption of its dataset
    where that is here; or its words, where the actions have no names."""
    import checkpoint
    from config import pack_path
    from formats.pack import Pack

    data = checkpoint.load(path)
    if "judge" in data:
        raise ValueError(f"{path} is a judge of eval.py, which makes no motions.")
    config, names, vocabulary = data["config"], data.get("actions"), data.get("vocabulary")
    if not names:
        yield f"{path} takes sentences of these words:" if vocabulary else \
            f"{path} has no names of actions."
        yield from textwrap.wrap(" ".join(vocabulary or []), 98)
        return
    yield f"{path} knows these actions:"
    examples = {}
    with contextlib.suppress(OSError, ValueError):  # no such pack, or a stale or damaged one
        pack = Pack(pack_path(config))
        for item in reversed(pack.indices("train")):
            for caption in pack.captions(item):
                examples.setdefault(pack.action(item), set()).add(caption.text)
    for name in names:
        said = sorted(examples.get(name, ()), key=lambda text: (abs(len(text) - 30), text))
        yield f"{name:22s}{said[0] if said else ''}".rstrip()


def labels_of(args, known):
    """The numbers of the actions asked for, among the names that the model knows."""
    for name in args.action:
        if name not in known:
            why = ", ".join(known) or "none: it was trained with another condition"
            raise ValueError(f"{args.ckpt} knows no action {name!r}; it knows {why}.")
    return [known.index(name) for name in args.action for _ in range(args.num)] or None


def choose_names(args, captions):
    """[(format, number of the motion, or None for all of them, path)] of the files to write. Where
    one exists, all of this run get the next free number: a-man-jumps-2.html."""
    several = len(dict.fromkeys(captions)) - 1
    more = f"-and-{several}-more" if several else ""

    def names(again):
        for kind in formats_of(args):
            if kind in TOGETHER:
                yield kind, None, f"{file_name(captions[0])}{more}{again}.{kind}"
                continue
            for i, caption in enumerate(captions):
                number = f"-{i:03d}" if len(captions) > 1 else ""
                yield kind, i, f"{file_name(caption)}{again}{number}.{kind}"

    for turn in itertools.count(1):
        chosen = [(kind, i, os.path.join(args.out, name))
                  for kind, i, name in names(f"-{turn}" if turn > 1 else "")]
        if args.force or not any(os.path.lexists(path) for _, _, path in chosen):
            return chosen


def write_motions(args, shown, fps):
    """Write each motion of `shown`, the player's dicts, in each format; returns the files' names.
    A player, a GIF and a GLB have all motions, other files hold one each."""
    from formats import export
    from view import render

    captions = [one["caption"] for one in shown]
    alike = len(set(captions)) < len(captions)
    names = [f"{caption} {i}" if alike else caption for i, caption in enumerate(captions)]
    chosen = choose_names(args, captions)
    for kind, i, path in chosen:
        if kind in ("html", "gif"):
            moving = [one | {"joints": export.locked(one["joints"], fps)} for one in shown
                      ] if args.lock_feet else shown
            (render.write_player if kind == "html" else render.write_gif)(path, moving)
            continue
        held = range(len(shown)) if i is None else [i]
        motions = {names[k]: shown[k]["joints"] for k in held}
        export.write_file(path, motions, fps, args.lock_feet, args.bvh == "exact", args.unit)
    return [path for _, _, path in chosen]


def run(args, prompts):
    import numpy as np
    import torch  # noqa: F401, takes most of the start: not for a wrong flag, nor for --help

    import checkpoint
    import edit
    import kernels
    import motion
    import story
    from config import AssetsConfig
    from formats import rigs

    if not gc.isenabled():  # what was imported stays: it need not be searched for garbage again
        gc.freeze()
        gc.enable()
    assets = AssetsConfig(cache=args.cache, lock=args.lock, clip_dtype=args.clip_dtype,
                          offline=args.offline)
    assets.clip_path = args.clip or assets.clip_path
    if edit.wanted(args):
        edit.kind_of(args)
    device = checkpoint.find_device(args.device)
    model = checkpoint.load_model(args.ckpt, assets, device).to_precision(args.precision)
    skeleton, fps = model.config.data.skeleton, model.config.data.fps
    labels = labels_of(args, model.actions)
    captions = [caption for caption in prompts or args.action or ["unconditional"]
                for _ in range(args.num)]
    seeds, each = [args.seed + i for i in range(len(captions))], None
    if prompts:
        read = as_read(model, prompts, not edit.wanted(args), args.whole)
        each = [parts for parts in read for _ in range(args.num)]
    texts = each and [parts[0] for parts in each]
    lengths = lengths_of(args, model, texts, labels, len(captions))
    lengths = edit.long_enough(args, model, lengths)
    frames = [[n] for n in lengths]
    for i, parts in enumerate(each or []):
        if len(parts) > 1:
            total = lengths[i] if args.seconds else None
            frames[i] = story.lengths_of(model, parts, seeds[i], total)
    check_trained(args, model.config, frames)
    model.check_lengths([n for one in frames for n in one])
    make_folder(args.out)
    loaded = time.perf_counter()

    settings = {"guidance_scale": args.guidance, "sampler": args.sampler,
                "num_inference_steps": args.steps, "progress": sys.stderr.isatty()}
    if edit.wanted(args):
        motions, captions = edit.made(args, model, texts, labels, lengths, captions)
    elif each is not None:
        motions = story.scenes(model, each, frames, seeds, **settings)
    else:
        _, joints = model.generate(None, labels, lengths=lengths, seed=args.seed, **settings)
        motions = [j[:n].cpu().numpy() for j, n in zip(joints, lengths)]
    if not all(np.isfinite(j).all() for j in motions):
        raise ValueError("The model came to numbers that are not finite: its guidance, "
                         f"{'its own' if args.guidance is None else f'{args.guidance:g}'}, may be "
                         "too strong.")
    if args.fps:
        motions = [rigs.resample(j, fps, args.fps) for j in motions]
        fps = args.fps
    if skeleton == "t2m":  # every HumanML3D body has the same bones
        bones = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
        motions = [motion.keep_bones(j, bones, motion.T2M.parents) for j in motions]
    made = time.perf_counter()

    known = skeleton in motion.SKELETONS
    parents = motion.SKELETONS[skeleton].parents if known else motion.SMPL_PARENTS
    shown = [{"joints": j, "caption": caption, "fps": fps, "parents": parents}
             for j, caption in zip(motions, captions)]
    written = write_motions(args, shown, fps)
    ended = time.perf_counter()
    print("\n".join(written))
    count = "1 motion" if len(motions) == 1 else f"{len(motions)} motions"
    long = ", ".join(f"{len(j) / fps:.1f} s" for j in motions[:4]) + ", ..." * (len(motions) > 4)
    print(f"{count} ({long}) made in {ended - STARTED:.1f} s")
    if args.verbose:
        print(f"{loaded - STARTED:.1f} s to load, {made - loaded:.1f} s to sample, "
              f"{ended - made:.1f} s to write, on {device}; {kernels.summary()}")
    if args.open:
        player = next(path for path in written if path.endswith(".html"))
        webbrowser.open("file://" + os.path.abspath(player))


def hub():
    from formats import hub  # here, since most never download

    return hub


def main(argv):
    args = arguments(argv)
    try:
        if args.list:
            print("\n".join(hub().listing(args.cache)))
            if args.ckpt not in hub().WORDS:
                print("", *actions_of(args.ckpt), sep="\n")
        else:
            run(args, read_prompts(args))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    from flags import program

    gc.disable()  # importing torch makes 250,000 objects that stay; run() turns it on again
    program(main)
