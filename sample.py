"""Make motions from sentences, action labels, or nothing.

    python sample.py "a man jumps"                           writes out/a-man-jumps.html, which any browser opens
    python sample.py "a man jumps" "a woman waves" --num 4   four motions of each, side by side
    python sample.py --file prompts.txt --format html,bvh,npy
    python sample.py --action jump --ckpt out/actions/model.pt
    python sample.py --unconditional --ckpt out/free/model.pt
    python sample.py "a person walks" --seconds 5 --seed 3 --steps 20 --sampler dpm++ --guidance 2

--ckpt takes a model.pt of train.py, or MLD's published weights: a .ckpt, or a folder with the hub's two safetensors
folders; those need CLIP's weights beside them (--clip PATH), and --seconds, as they know nothing of lengths.
"""
import argparse
import os
import re
import sys
import time
import webbrowser

STARTED = time.time()
HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST_NAME = 80


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT")
    add("--file", help="text file with one prompt per line")
    add("--action", action="append", default=[], help="action label, for models trained with --condition action; may be repeated")
    add("--unconditional", action="store_true", help="no prompt at all")
    add("--num", type=int, default=1, help="motions per prompt")
    add("--seconds", type=float, help="length; otherwise drawn from what training saw for such prompts")
    add("--seed", type=int, default=1234, help="motion i is drawn from seed + i")
    add("--steps", type=int, help="denoising steps (the model's own setting otherwise)")
    add("--sampler", choices=("ddim", "ddpm", "dpm++"))
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 = off")
    add("--ckpt", default=os.path.join(HERE, "checkpoints", "toy.pt"), help="model.pt of train.py, or published weights")
    add("--clip", help="CLIP text tower for models that use it: Hugging Face folder or weights file")
    add("--out", default="out", help="folder to write to")
    add("--format", default="html", help="comma-separated: html, bvh, npy, gif (which needs Pillow)")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--precision", choices=("float32", "bf16", "int8"), default="float32", help="of the weights; the latter two are not exact, and bf16 is slow on processors without instructions for it")
    add("--open", action="store_true", help="open the player in the browser")
    return parser.parse_args(argv)


def file_name(caption):
    """'A man jumps!' -> 'a-man-jumps'; letters of any script stay."""
    return re.sub(r"[\W_]+", "-", caption.lower()).strip("-")[:LONGEST_NAME].strip("-") or "motion"


def read_prompts(args):
    prompts = list(args.prompts)
    if args.file:
        try:
            with open(args.file, encoding="utf-8") as file:
                prompts += [line.strip() for line in file if line.strip()]
        except FileNotFoundError:
            raise ValueError(f"There is no file {args.file}; --file takes a text file with one prompt per line.") from None
        except UnicodeDecodeError:
            raise ValueError(f"{args.file} is not a UTF-8 text file; it should have one prompt per line.") from None
    given = [bool(prompts), bool(args.action), args.unconditional]
    if sum(given) != 1:
        raise ValueError("Give prompts (or --file), or --action NAME, or --unconditional: one of the three.")
    if not os.path.exists(args.ckpt):
        raise ValueError(f"There is no checkpoint {args.ckpt}: train one (python train.py --dataset toy) and name it with --ckpt out/toy/model.pt.")
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}.")
    if args.seconds is not None and not args.seconds > 0:
        raise ValueError(f"--seconds must be positive, got {args.seconds:g}.")
    wrong = set(args.format.split(",")) - {"html", "bvh", "npy", "gif"}
    if wrong:
        raise ValueError(f"--format must be of html, bvh, npy, gif, got {', '.join(sorted(wrong))}.")
    return prompts


def main(argv):
    args = arguments(argv)
    try:
        run(args, read_prompts(args))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def run(args, prompts):
    import numpy as np
    import torch  # takes most of the start: not for a wrong flag, nor for --help

    from formats import bvh
    import checkpoint
    import kernels
    import motion
    from view import render
    from config import AssetsConfig

    assets = AssetsConfig(clip_path=args.clip) if args.clip else None
    device = checkpoint.find_device(args.device)
    model = checkpoint.load_model(args.ckpt, assets, device).to_precision(args.precision)
    c, actions = model.config, model.actions
    labels = None
    if args.action:
        unknown = [name for name in args.action if name not in actions]
        if unknown:
            raise ValueError(f"{args.ckpt} knows no action {unknown[0]!r}; it knows {', '.join(actions) or 'none: it was trained with another condition'}.")
        labels = [actions.index(name) for name in args.action for _ in range(args.num)]
    captions = [p for p in prompts or args.action or ["unconditional"] for _ in range(args.num)]
    texts = captions if prompts else None
    if args.seconds:
        lengths = [round(args.seconds * c.data.fps)] * len(captions)
    else:
        lengths = model.draw_lengths(texts, labels, len(captions), args.seed)
    loaded = time.time()
    _, joints = model.generate(texts, labels, lengths=lengths, guidance_scale=args.guidance, sampler=args.sampler,
                               num_inference_steps=args.steps, seed=args.seed, progress=sys.stderr.isatty())
    motions = [j[:n].cpu().numpy() for j, n in zip(joints, lengths)]
    if c.data.skeleton == "t2m":  # every HumanML3D body has the same bones
        bones = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
        motions = [motion.keep_bones(j, bones, motion.T2M.parents) for j in motions]
    made = time.time()

    base = os.path.join(args.out, file_name(captions[0]) + (f"-and-{len(set(captions)) - 1}-more" if len(set(captions)) > 1 else ""))
    written = []
    parents = motion.SKELETONS[c.data.skeleton].parents if c.data.skeleton in motion.SKELETONS else motion.SMPL_PARENTS
    shown = [{"joints": j, "caption": t, "fps": c.data.fps, "parents": parents} for j, t in zip(motions, captions)]
    for kind in args.format.split(","):
        if kind in ("html", "gif"):  # all motions side by side
            (render.write_player if kind == "html" else render.write_gif)(f"{base}.{kind}", shown)
            written.append(f"{base}.{kind}")
            continue
        for i, one in enumerate(shown):
            path = os.path.join(args.out, file_name(captions[i])) + (f"-{i:03d}" if len(shown) > 1 else "") + "." + kind
            if kind == "npy":
                render.write_npy(path, one["joints"])
            else:
                bvh.write_bvh(path, one["joints"], c.data.fps)
            written.append(path)
    print("\n".join(written))
    print(f"{len(motions)} motion(s) of {', '.join(f'{n / c.data.fps:.1f} s' for n in lengths[:8])}{' ...' if len(lengths) > 8 else ''}; "
          f"{loaded - STARTED:.1f} s to load, {made - loaded:.1f} s to make, {time.time() - made:.1f} s to write, on {device}; {kernels.summary()}")
    if args.open and written[0].endswith(".html"):
        webbrowser.open("file://" + os.path.abspath(written[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
