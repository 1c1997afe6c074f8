"""One HTML file that makes motions in any browser: the model, its program and the player.

    python -m view.page --out nanomld.html                        the model that ships
    python -m view.page --ckpt out/mine/model.pt --out mine.html --title "Our dancers"
    python -m view.page --weights int8 --out small.html           half the size, not exact

The file needs no server and no network: open it from disk, or put it on any web space. It takes
every model with the small text tower and a VAE; docs/page.md has more.

What is in it: page.html with studio.js, player.html, the weights in base64, and what runs in the
page's worker: model.js (MLD.generate in JavaScript) with tensors.js and words.js, matmul.c as
WebAssembly, turns.js (the mannequin's rotations) and files.js. studio.py serves the same page, and
makes the motions in Python.
"""
import argparse
import base64
import dataclasses
import hashlib
import html
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch

import checkpoint
import clauses
import motion
import words
from config import HERE
from files import atomic_write
from formats.bvh_writer import names_of
from formats.rotations import T_POSES
from kernels.few_rows import to_int8
from view import matmul, render, skin

FOLDER = Path(__file__).resolve().parent
PROGRAM = "tensors.js", "words.js", "clauses.js", "model.js", "turns.js", "files.js", "worker.js"
SCRIPTS = "studio.js", "floor.js", "timeline.js"  # of page.html, in this order
LARGEST = 24 * 10**6  # bytes of a page
KINDS = "auto", "float16", "int8", "float32"
SECTIONS = "data", "vae", "text", "denoiser", "diffusion"
# generating never asks these
UNUSED = ("vae.encoder.", "vae.skel_embedding.", "vae.global_motion_token", "vae.dist_layer.",
          "vae.query_pos_encoder.", "vae.linear_path.narrow.", "vae.linear_path.to_latent.",
          "text_encoder.tower.token_embedding.project.", "latent_in")
ROWS = "text_encoder.tower.token_embedding.weight"
EXACT = ("mean", "std", "latent_mean", "latent_std", "latent_out", "alphas_cumprod",
         "denoiser.modulated.spread", ROWS)  # always float32
EXAMPLES = ("a person walks forward", "someone jumps with both legs", "a man does a cartwheel",
            "a person waves with the right hand", "a person runs in a circle",
            "a person sits down", "someone kicks with the left leg", "a woman dances")


def check_model(model, name):
    """ValueError for a model that the page cannot run."""
    c = model.config
    if c.denoiser.condition != "text":
        raise ValueError(f"{name} is told {c.denoiser.condition}, and the page takes sentences; "
                         "choose a model with denoiser.condition=text.")
    if c.text.kind == "clip":
        raise ValueError(f"{name} reads its sentences with CLIP, whose tower is too large for a "
                         "page (text.kind is clip); choose a model with text.kind=scratch.")
    if model.vae is None:
        raise ValueError(f"{name} has no VAE (vae.arch is none), and the page decodes latents; "
                         "choose a model with a VAE.")
    if c.data.skeleton not in motion.SKELETONS:
        raise ValueError(f"{name} makes motions of the {c.data.skeleton} skeleton; the page knows "
                         f"{' and '.join(motion.SKELETONS)}.")
    if c.diffusion.built_in_guidance:
        raise ValueError(f"{name} is a student of few steps (diffusion.sampler is lcm), and the "
                         "page samples by DPM-Solver++; choose the model that it was made of.")
    if model.length_estimator is None:
        raise ValueError(f"{name} has no length estimator, and the page lets the model choose "
                         "how long a motion is; train it again with this code.")


def pack(model, kind="auto"):
    """-> the header's list of [name, shape, kind], and all bytes, in the order that model.js
    reads. kind: of all weights but a few that are always float32; auto: int8 where that is exact,
    as for what `checkpoint.py halve` wrote, else float16."""
    state = dict(model.state_dict(), alphas_cumprod=model.schedule.alphas_cumprod)
    with torch.no_grad():  # with text.vectors, a word is its row and what is made of its vector
        state[ROWS] = model.text_encoder.tower.token_embedding(torch.arange(len(state[ROWS])))
    tensors, parts = [], []
    for name, value in state.items():
        if name.startswith(UNUSED):
            continue
        value = value.float().cpu().numpy()
        own = "float32" if name in EXACT else kind
        if own in ("int8", "auto") and value.ndim == 2:
            steps, scale = (x.numpy() for x in to_int8(torch.from_numpy(value)))
            exact = np.allclose(steps * scale[:, None], value, rtol=1e-6, atol=0)
            own = "int8" if exact or own == "int8" else "float16"
        elif own in ("int8", "auto"):
            own = "float16"
        if own == "float16" and not np.isfinite(value.astype(np.float16)).all():
            own = "float32"
        if own == "int8":
            data = scale.astype("<f4").tobytes() + steps.tobytes()
        else:
            data = value.astype({"float16": "<f2", "float32": "<f4"}[own]).tobytes()
        tensors.append([name, list(value.shape), own])
        parts += [data, bytes(-len(data) % 4)]
    return tensors, b"".join(parts)


def header_of(model, tensors, ckpt=""):
    """What model.js and the page have to know beside the weights; plain data."""
    c, skeleton = model.config, motion.SKELETONS[model.config.data.skeleton]
    same_body = skeleton.name == "t2m"  # every HumanML3D body has the same bones
    lengths = np.linalg.norm(motion.T2M_OFFSETS, axis=1) if same_body else None
    vocabulary = model.text_encoder.vocabulary
    known = [text for text in EXAMPLES if set(text.split()) <= set(vocabulary)]
    return {
        "config": {name: dataclasses.asdict(getattr(c, name)) for name in SECTIONS},
        "vocabulary": vocabulary, "book": book_of(vocabulary), "clauses": clauses_of(),
        "tensors": tensors,
        "fps": c.data.fps,
        "unit": skeleton.unit, "parents": skeleton.parents, "most": model.max_frames,
        "bones": None if lengths is None else lengths.tolist(),
        "camera": render.CAMERA, "body": body_of(skeleton), "ckpt": ckpt,
        "kinds": ["bvh", "npy"] if same_body else ["npy"],  # of files
        "pose": pose_of(T_POSES[skeleton.num_joints]) if same_body else None,
        "examples": known or model.actions[:6]}


def book_of(vocabulary):
    """What words.js has to know about words that are no words of the vocabulary; None without
    word vectors.

    rows: a line for each row of the vectors: all forms of a word, then the known ones among them,
    then known words that are like it, with | between the three."""
    known = words.known(tuple(vocabulary))
    held, lines = known.held, []
    table = held.table.astype(np.float32)
    lengths = np.maximum(np.linalg.norm(table, axis=1), 1e-9)
    nearest = (known.unit @ table.T).max(axis=0, initial=-1) / lengths
    for row, forms in enumerate(held.forms):
        same, others = known.of_row.get(row, []), []
        if not same and (meant := known.meaning(row)):
            others = [meant]
        elif not same and nearest[row] > words.LIKE - 1e-3 and (like := known.like(row)[1]):
            others = known.of_row[held.number[like]]
        others = [word for word in others if word not in words.VAGUE]
        lines.append("|".join(map(" ".join, (forms, same, others))))
    return {"rows": "\n".join(lines), "small": sorted(words.SMALL), "not": sorted(words.NOT),
            "numbers": words.ALIKE, "quiet": sorted(words.SAY_NOTHING),
            "subjects": sorted(words.SUBJECTS), "unlike": sorted(words.UNLIKE),
            "nobody": sorted(words.NOBODY), "scenery": sorted(words.SCENERY)}


def clauses_of():
    """What clauses.js has to know of clauses.py: its words, and its patterns as JavaScript has
    them."""
    names = ("ACTIONS MOVES WHERE GETS BEGINS KEEPS PREPARES RISES RESTS ENDS GAITS PARTS THINGS "
             "PASSIVE ARTICLES BETWEEN").split()
    patterns = {name: getattr(clauses, name) for name in
                "THEN BEFORE AFTER FRONT WHEN JOINT TOGETHER NEGATED ASIDE ROUND TIMES ITEM "
                "FIRST".split()}
    patterns = {name: p.pattern if not p.flags & re.X else re.sub(r"\s+", "", p.pattern)
                for name, p in patterns.items()} | {"WORD": clauses.WORD}
    patterns["FRONT"] = f"^(?:{patterns['FRONT']})$"
    return {"sets": {name: sorted(getattr(clauses, name)) for name in names},
            "one": [[sorted(words) for words in pair] for pair in clauses.ONE],
            "patterns": {name: text.replace(r"[^\W_]", r"[\p{L}\p{N}]").replace(
                             r"\w", r"[\p{L}\p{N}_]")
                         for name, text in patterns.items()},
            "most": clauses.MOST, "longest": clauses.LONGEST, "names": clauses.NAMES}


def body_of(skeleton):
    """What the player draws: bones, feet, and how far crown and hands are beyond their joints."""
    rest = np.zeros((1, skeleton.num_joints, 3))
    one = render._pack(render._check({"joints": rest, "parents": skeleton.parents}, "the page"))
    tips = [[j, render.TIPS[name][1]] for j, name in sorted(
        ((skeleton.joint_names.index(name), name) for name in render.TIPS
         if name in skeleton.joint_names), key=lambda tip: list(render.TIPS).index(tip[1]))]
    return {"bones": one["bones"], "feet": one["feet"], "tips": tips}


def pose_of(pose):
    """What turns.js and files.js have to know of a TPose of formats/rotations.py."""
    ends = pose.directions * 0.1
    for j, name in enumerate(pose.joint_names):
        ends[j, 1] *= not name.endswith("foot")
    return {"names": pose.joint_names, "parents": pose.parents, "children": pose.children,
            "directions": pose.directions.tolist(), "mirror": pose.mirror, "spine": pose.spine,
            "hinges": {j: axis.tolist() for j, axis in pose.hinges.items()},
            "forks": [[fork, *bones] for fork, bones in pose.forks.items()],
            "levels": pose.levels, "mixamo": names_of(pose), "ends": ends.tolist()}


def mesh_of(model, text):
    """The mannequin's mesh for the body of a motion that the model makes of a text; None for bodies
    that are drawn as stick figures."""
    c, skeleton = model.config, motion.SKELETONS[model.config.data.skeleton]
    length = min(3 * round(c.data.fps), model.max_frames)
    _, joints = model.generate([text], lengths=[length], seed=0, sampler="dpm++",
                               num_inference_steps=10)
    joints = joints[0].cpu().numpy()
    if skeleton.name == "t2m":
        joints = motion.keep_bones(joints, np.linalg.norm(motion.T2M_OFFSETS, axis=1),
                                   skeleton.parents)
    body = skin.body_of(joints, skeleton.parents, c.data.fps)
    return body and skin.mesh_of(body.offsets, render.COARSE)


def script_hash(text):
    """The Content-Security-Policy's name for a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def scripts(text):
    """The scripts of a page that run; data in script elements has a type, and does not."""
    return re.findall(r"<script>(.*?)</script>", text, re.S)


def policy(*pages, connect="'none'"):
    """A Content-Security-Policy under which these pages' own scripts run, and nothing is loaded.
    connect: what they may ask."""
    allowed = " ".join(script_hash(text) for page in pages for text in scripts(page))
    return (f"default-src 'none'; connect-src {connect}; base-uri 'none'; form-action 'none'; "
            "worker-src blob:; img-src data:; style-src 'unsafe-inline'; "
            f"script-src {allowed} 'wasm-unsafe-eval'")


def as_data(value):
    """JSON for a script element: "<" is escaped, so that nothing in it can end the element."""
    return json.dumps(value).replace("<", "\\u003c")


def page_text(header, title="nanoMLD", program="", product=b"", weights=b"", connect="'none'"):
    """The page. header: what studio.js and page.html read; program, product and weights: what its
    worker runs, or nothing where a server that may be connected to makes the motions."""
    page, player, *parts = (FOLDER.joinpath(name).read_text(encoding="utf-8")
                            for name in ("page.html", "player.html", *SCRIPTS))
    page = page.replace("%STUDIO%", "".join(parts))
    player = player.replace("%SCRIPT%", render.player_script())
    parts = {
        "%TITLE%": html.escape(title), "%POLICY%": policy(page, player, connect=connect),
        "%HEADER%": as_data(header),
        "%PLAYER%": as_data(player.replace("%TITLE%", "The motion").split("%DATA%")),
        "%PROGRAM%": as_data(program),
        "%PRODUCT%": base64.b64encode(product).decode(),
        "%WEIGHTS%": base64.b64encode(weights).decode()}
    return re.sub("|".join(parts), lambda mark: parts[mark[0]], page)  # all in one pass


def write_page(path, model, title="nanoMLD", kind="auto", ckpt=""):
    """Write the page; returns its size in bytes. ValueError for a model that cannot be in it, or
    one that is too large."""
    check_model(model, ckpt or "this model")
    tensors, weights = pack(model, kind)
    header = header_of(model, tensors, ckpt and f" --ckpt {shlex.quote(ckpt)}")
    header["mesh"] = mesh_of(model, (header["examples"] or [""])[0])
    if header["mesh"]:
        header["kinds"].insert(0, "glb")
    text = page_text(header, title, program_text(), matmul.kept()[2], weights)
    if len(text.encode()) > LARGEST:
        raise ValueError(f"{path} would have {len(text) / 1e6:.0f} MB, and a page has at most "
                         f"{LARGEST / 1e6:.0f}; take --weights int8, or a smaller model.")
    with atomic_write(path, "w") as file:
        file.write(text)
    return len(text.encode())


def program_text():
    """What runs in the page's worker."""
    return "".join(FOLDER.joinpath(name).read_text(encoding="utf-8") for name in PROGRAM)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m view.page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="nanomld.html", help="the file to write")
    parser.add_argument("--ckpt", default=os.path.join(HERE, "checkpoints", "toy.pt"),
                        help="model.pt of train.py, with the small text tower")
    parser.add_argument("--title", default="nanoMLD", help="the page's heading")
    parser.add_argument("--weights", default="auto", choices=KINDS,
                        help="how numbers are kept; int8 is not exact where auto has float16")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        ships = os.path.samefile(args.ckpt, parser.get_default("ckpt")) \
            if os.path.exists(args.ckpt) else False
        model = checkpoint.load_model(args.ckpt)
        size = write_page(args.out, model, args.title, args.weights, "" if ships else args.ckpt)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}\n{size / 1e6:.1f} MB, {args.weights}, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
