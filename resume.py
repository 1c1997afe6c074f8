"""The folder of a run: what is in it already, whether it may be taken, and with which changes.

train.py asks before it starts. --resume goes on with what is there, and refuses settings and data
that would change its numbers; --overwrite sets it aside. Names of runs are hashes of all that their
numbers depend on, so files of two runs are not mixed."""
import hashlib
import json
import math
import os

import torch

import checkpoint
from config import FIELDS, SAMPLING, SettingError, get_value, nearest
from files import remove_parts

FILES = {  # of a stage: its state, its best weights, what is made of them
    "vae": ("vae.pt", "vae_best.pt"),
    "diffusion": ("diffusion.pt", "diffusion_best.pt", "model.pt"),
    "distill": ("distill.pt", "distill_best.pt", "student.pt"),
    "evaluator": ("evaluator.pt", "evaluator_best.pt", "evaluator_model.pt"),
}
# the sections of settings that change a stage's numbers
DEPENDS = {"vae": ("vae",), "diffusion": ("vae", "text", "denoiser", "diffusion"),
           "distill": ("vae", "text", "denoiser", "diffusion"), "evaluator": ("text", "evaluator")}
FREE = ("workers", "accumulate", *SAMPLING)  # settings in them that change nothing


def claim(run):
    """Settle what becomes of a run that is in the folder already: --resume goes on with it, and
    --overwrite sets it aside. Returns the run's identity and, to go on from, {stage: its state}.
    SettingError if neither flag is given, if the folder's files are of several runs, or if they
    were made with other settings."""
    options, c = run.options, run.config
    if options.resume and options.overwrite:
        raise SettingError("--resume goes on, --overwrite starts again: give one of the two.")
    if options.allow_change and not options.resume:
        raise SettingError("--allow-change names what --resume may change: give that as well.")
    os.makedirs(run.folder, exist_ok=True)
    run.lock()
    remove_parts(run.folder)
    trained = ("vae", "diffusion") if c.train.stage == "all" else (c.train.stage,)
    stages = ("vae", "diffusion") if "vae" in trained else trained  # a denoiser goes with its VAE
    held = [name for stage in stages for name in FILES[stage] if os.path.exists(run.path(name))]
    if held and not (options.resume or options.overwrite):
        raise SettingError(
            f"{run.folder} holds a run already ({held[0]}): --resume goes on with it, --overwrite "
            "starts again, --name NAME puts the new one elsewhere.")
    if options.resume and not held:
        run.say(f"{run.folder} holds no run to go on with: a new one begins")
    if options.overwrite:
        set_aside(run, stages)
        held = []
    own_vae = os.path.exists(run.path("vae_best.pt")) and not c.train.vae_checkpoint
    if trained == ("diffusion",) and own_vae:
        held.insert(0, "vae_best.pt")

    found = {name: checkpoint.load(run.path(name)) for name in held if "model" not in name}
    ids = [state.get("run", "") for state in found.values()] or [identity(run)]
    for name, other in zip(found, ids):
        if other != ids[0]:
            raise SettingError(
                f"{run.path(name)} is of another run than {held[0]} beside it, and nothing of "
                "another run is taken: move it away, or --overwrite starts again.")
    states = {stage: found[f"{stage}.pt"] for stage in trained if f"{stage}.pt" in found}
    for stage, state in states.items():
        refuse_changes(run, stage, state)
    unfinished = states.get("vae", {"step": 0})["step"] < c.train_vae.steps
    if "diffusion.pt" in found and "vae" in trained and c.vae.arch != "none" and unfinished:
        raise SettingError(
            f"{run.path('diffusion.pt')} was trained on the VAE as it is, which more steps would "
            "change: leave train_vae.steps as it was, or --overwrite starts again.")
    return ids[0], states


def vae_of(run):
    """The trained VAE that stage diffusion starts from: the one named, or the run's own, or that
    of the model which fine-tuning starts from."""
    train, own = run.config.train, run.path("vae_best.pt")
    start = "" if os.path.exists(own) else train.init_from
    return train.vae_checkpoint or start or own


def identity(run):
    """The name of a new run, of all that its numbers depend on: equal runs have equal names."""
    known = [checkpoint.portable(run.config), pack_digest(run.pack), torch.__version__,
             run.device.type, run.world, run.init]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def pack_digest(pack):
    """Of the packed dataset: its first bytes hold a checksum of all others."""
    return hashlib.sha256(bytes(pack._bytes[:64])).hexdigest()[:16]


def set_aside(run, stages):
    """Move a run's files to its folder `previous`, the last stage's first: wherever this is cut
    short, the files that stay fit together."""
    os.makedirs(run.path("previous"), exist_ok=True)
    names = [name for stage in stages for name in FILES[stage]]
    names += [name for name in os.listdir(run.folder) if name.endswith(".html")
              and name.split("-")[0] in (*stages, "report.html")]
    for name in reversed(names):
        old = run.path(os.path.join("previous", name))
        if os.path.exists(run.path(name)):
            os.replace(run.path(name), old)
        elif os.path.exists(old):
            os.unlink(old)
    entries = run.read_log()
    run.write_log([e for e in entries if e["stage"] in stages], "previous")
    run.write_log([e for e in entries if e["stage"] not in stages])


def refuse_changes(run, stage, state):
    """SettingError if a stage would go on with settings or data that change its numbers, unless
    --allow-change names them."""
    sections = ("data", f"train_{stage}", *DEPENDS[stage])
    watched = [key for key in FIELDS if key.split(".")[0] in sections
               and key.split(".")[1] not in FREE]
    watched += ["train.seed", "train.precision"] + ["train.cache_latents"] * (stage == "diffusion")
    if run.chosen and state["config"].train.precision != "auto":
        run.config.train.precision = state["config"].train.precision
    values = {key: [get_value(c, key) for c in (state["config"], run.config)] for key in watched}
    packs = [state.get("pack"), pack_digest(run.pack)]
    if None not in packs and packs[0] != packs[1]:
        values["data.dataset"] = [f"{name} packed as {digest}" for name, digest
                                  in zip(values["data.dataset"], packs)]
    allowed = [name for name in run.options.allow_change.split(",") if name]
    known = [name for key in FIELDS for name in (key, key.split(".")[1])]
    for name in allowed:
        if name not in known:
            raise SettingError(f"--allow-change: unknown setting {name!r}.{nearest(name, known)}")
    for key in (key for key, (was, now) in values.items() if was != now):
        fixed = key.endswith(".optimizer")  # each has a state of its own
        if fixed or not (key in allowed or key.split(".")[1] in allowed):
            how = "" if fixed else f", or with this change if you add --allow-change {key}"
            raise SettingError(
                f"{run.path(stage)}.pt was trained with {key}={values[key][0]}, now it is "
                f"{values[key][1]}: --resume goes on with the same settings{how}; --overwrite "
                "starts again, --name NAME puts the new run elsewhere.")
        if not key.startswith("train"):
            state["best"] = math.inf  # another loss, or other clips: earlier values don't compare
