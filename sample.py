"""Make motions from sentences, action labels, or nothing.

    python sample.py "a man jumps"                  writes out/a-man-jumps.html for any browser
    python sample.py "a man jumps" "a woman waves" --num 4   four motions of each, side by side
    python sample.py --file prompts.txt --format html,bvh,npy
    python sample.py --action jump --ckpt out/actions/model.pt
    python sample.py --unconditional --ckpt out/free/model.pt
    python sample.py "a person walks" --seconds 5 --seed 3 --steps 20 --sampler dpm++ --guidance 2

--ckpt takes a model.pt of train.py, or MLD's published weights: a .ckpt, or a folder with the hub's
two folders of safetensors. Those need CLIP's weights (--clip PATH), and --seconds, since they do
not know how long a motion should be.
"""
import argparse
import os
import re
import sys
import time
import webbrowser

STARTED = time.perf_counter()
HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST_NAME = 80
FORMATS = ("html", "bvh", "npy", "gif")


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT")
    add("--file", help="text file with one prompt per line")
    add("--action", action="append", default=[], metavar="NAME",
        help="action label, for models trained with --condition action; may be repeated")
    add("--unconditional", action="store_true", help="no prompt at all")
    add("--num", type=int, default=1, help="motions per prompt")
    add("--seconds", type=float, help="length; otherwise drawn to suit the prompt")
    add("--seed", type=int, default=1234, help="motion i is drawn from seed + i")
    add("--steps", type=int, help="denoising steps; otherwise the model's own setting")
    add("--sampler", choices=("ddim", "ddpm", "dpm++"), help="otherwise the model's own")
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 = off")
    add("--ckpt", default=os.path.join(HERE, "checkpoints", "toy.pt"),
        help="model.pt of train.py, or published weights")
    add("--clip", help="CLIP's text tower: Hugging Face folder or weights file")
    add("--out", default="out", help="folder to write to")
    add("--format", default="html", help="html, bvh, npy, gif, or several with commas between; "
                                         "gif needs Pillow")
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
    """'A man jumps!' -> 'a-man-jumps'; letters of any script stay."""
    words = re.sub(r"[\W_]+", "-", caption.lower()).strip("-")
    return words[:LONGEST_NAME].strip("-") or "motion"


def read_prompts(args):
    """The prompts of the command line and of --file. ValueError for flags that cannot be used."""
    prompts = list(args.prompts)
    if args.file:
        try:
            with open(args.file, encoding="utf-8") as file:
                prompts += [line.strip() for line in file if line.strip()]
        except FileNotFoundError:
            raise ValueError(f"There is no file {args.file}; --file takes a text file with one "
                             "prompt per line.") from None
        except UnicodeDecodeError:
            raise ValueError(f"{args.file} is not a UTF-8 text file; it should have one prompt "
                             "per line.") from None
    if sum([bool(prompts), bool(args.action), args.unconditional]) != 1:
        raise ValueError("Give prompts (or --file), or --action NAME, or --unconditional: one of "
                         "the three.")
    if not os.path.exists(args.ckpt):
        raise ValueError(f"There is no checkpoint {args.ckpt}: train one (python train.py "
                         "--dataset toy) and name it with --ckpt out/toy/model.pt.")
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}.")
    if args.seconds is not None and not args.seconds > 0:
        raise ValueError(f"--seconds must be positive, got {args.seconds:g}.")
    if args.fps is not None and not 1 <= args.fps <= 1000:
        raise ValueError(f"--fps must be from 1 to 1000, got {args.fps:g}.")
    wrong = sorted(set(args.format.split(",")) - set(FORMATS))
    if wrong:
        raise ValueError(f"--format must be of {', '.join(FORMATS)}, got {', '.join(wrong)}.")
    return prompts


def labels_of(args, known):
    """The numbers of the actions asked for, among the names that the model knows."""
    for name in args.action:
        if name not in known:
            why = ", ".join(known) or "none: it was trained with another condition"
            raise ValueError(f"{args.ckpt} knows no action {name!r}; it knows {why}.")
    return [known.index(name) for name in args.action for _ in range(args.num)] or None


def write_motions(args, shown, fps):
    """Write each motion of `shown`, the player's dicts, in each format; returns the files' names.
    A player and a GIF show all motions side by side, other files hold one each."""
    from formats import bvh
    from view import render

    captions = list(dict.fromkeys(one["caption"] for one in shown))
    more = f"-and-{len(captions) - 1}-more" if len(captions) > 1 else ""
    base = os.path.join(args.out, file_name(captions[0]) + more)
    written = []
    for kind in args.format.split(","):
        if kind in ("html", "gif"):
            write = render.write_player if kind == "html" else render.write_gif
            write(f"{base}.{kind}", shown)
            written.append(f"{base}.{kind}")
            continue
        for i, one in enumerate(shown):
            number = f"-{i:03d}" if len(shown) > 1 else ""
            path = os.path.join(args.out, f"{file_name(one['caption'])}{number}.{kind}")
            if kind == "npy":
                render.write_npy(path, one["joints"])
            else:
                bvh.write_bvh(path, one["joints"], fps, args.bvh == "exact", args.unit)
            written.append(path)
    return written


def run(args, prompts):
    import numpy as np
    import torch  # noqa: F401, takes most of the start: not for a wrong flag, nor for --help

    import checkpoint
    import kernels
    import motion
    from config import AssetsConfig
    from formats import rigs

    assets = AssetsConfig(clip_path=args.clip) if args.clip else None
    device = checkpoint.find_device(args.device)
    model = checkpoint.load_model(args.ckpt, assets, device).to_precision(args.precision)
    skeleton, fps = model.config.data.skeleton, model.config.data.fps
    labels = labels_of(args, model.actions)
    captions = [caption for caption in prompts or args.action or ["unconditional"]
                for _ in range(args.num)]
    texts = captions if prompts else None
    if args.seconds:
        lengths = [round(args.seconds * fps)] * len(captions)
    else:
        lengths = model.draw_lengths(texts, labels, len(captions), args.seed)
    loaded = time.perf_counter()

    _, joints = model.generate(
        texts, labels, lengths=lengths, guidance_scale=args.guidance, sampler=args.sampler,
        num_inference_steps=args.steps, seed=args.seed, progress=sys.stderr.isatty())
    motions = [j[:n].cpu().numpy() for j, n in zip(joints, lengths)]
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
    if args.open and written[0].endswith(".html"):
        webbrowser.open("file://" + os.path.abspath(written[0]))


def main(argv):
    args = arguments(argv)
    try:
        run(args, read_prompts(args))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    from config import program

    program(main)
