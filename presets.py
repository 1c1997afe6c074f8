"""Named presets, and the command line that chooses and changes settings.

Four layers, each winning over the one before it:

    the default in config.py  <  a preset        <  an assets file     <  the command line
                                 --config NAME      --cfg_assets FILE     --section.key=value

    python train.py --dataset humanml3d                         the preset that goes with a dataset
    python train.py --config vae_kit --vae.latent_size=7        a preset by name, one number changed
    python train.py --dataset toy --modules novae               other network parts, as one set
    python train.py --dataset toy --recipe paper                the paper's optimiser settings, not ours
    python train.py --help                                      every setting, its default, its meaning
    python presets.py [the same flags]                          print the resolved settings and stop
"""
import ast
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
from typing import Literal, get_args, get_origin

from config import HERE, SECTIONS, Config, SettingError, convert, pack_path, set_value, to_dict, validate

# ----------------------------------------------------------------------------------------------------------------------
# Presets: tables of "section.key": value over the defaults above

HUMANML3D = {
    "data.dataset": "humanml3d",
    "train_vae.steps": 1_100_000, "train_vae.batch_size": 128,
    "train_diffusion.steps": 550_000, "train_diffusion.batch_size": 64, "train_diffusion.lr": 1e-4,
    "train_evaluator.steps": 30_000, "train_evaluator.batch_size": 128,
    "train.eval_every": 10_000, "train.save_every": 5_000, "train.sample_every": 50_000, "train.cache_latents": 10,
}
KIT = HUMANML3D | {
    "data.dataset": "kit", "data.skeleton": "kit", "data.fps": 12.5, "data.min_length": 24,
    "train_vae.steps": 220_000, "train_diffusion.steps": 220_000,
}
ACTION = {  # the published action model: ACTOR's VAE, a 15-layer denoiser, 1000 DDPM steps
    "data.skeleton": "smpl", "data.min_length": 60, "data.max_length": 100_000, "data.max_frames": 60, "data.unit_length": 60,
    "vae.arch": "actor", "vae.num_layers": 6, "denoiser.condition": "action", "denoiser.num_layers": 15,
    "denoiser.text_encoded_dim": 256, "diffusion.sampler": "ddpm", "diffusion.num_inference_steps": 1000,
    "diffusion.clip_sample": True, "train_evaluator.steps": 5000,
}
SMALL = {  # small enough for two CPU cores; x0 prediction on normalised latents is what learns in that budget
    "vae.latent_dim": 128, "vae.ff_size": 512, "vae.num_layers": 5, "vae.dropout": 0.0, "vae.attention_dropout": 0.0,
    "vae.mlp_dist": True, "vae.logvar_bias": -4.0, "vae.latent_size": 2, "vae.position_embedding": "sine",
    "vae.cosines": 64, "vae.cosine_span": 196,
    "vae.joints_loss": "distance", "vae.lambda_joint": 0.05, "vae.lambda_velocity": 10.0,
    "text.kind": "scratch",
    "denoiser.latent_dim": 128, "denoiser.ff_size": 512, "denoiser.num_layers": 5, "denoiser.dropout": 0.0,
    "denoiser.attention_dropout": 0.0, "denoiser.text_encoded_dim": 128, "denoiser.max_positions": 256,
    "denoiser.normalize_latents": True, "denoiser.final_linear": True, "denoiser.length_token": True,
    "diffusion.prediction_type": "sample", "diffusion.guidance_scale": 1.5, "data.balance_actions": True,
    "train_vae.steps": 4000, "train_vae.batch_size": 16, "train_vae.optimizer": "muon", "train_vae.lr": 2e-3, "train_vae.warmup": 200,
    "train_diffusion.steps": 5000, "train_diffusion.batch_size": 128, "train_diffusion.lr": 1e-3,
    "train_diffusion.warmup": 200, "train.cache_latents": 4,
    "evaluator.width": 128, "evaluator.layers": 2, "evaluator.embed_dim": 64,
    "train_evaluator.steps": 1500, "train_evaluator.batch_size": 128, "train_evaluator.lr": 1e-3, "train_evaluator.warmup": 100,
}
TOY = SMALL | {
    "data.dataset": "toy", "data.max_frames": 120, "vae.cosines": 48, "vae.cosine_span": 120,
    "vae.lambda_velocity": 2.0, "train_vae.steps": 6000, "diffusion.guidance_scale": 2.5,
}
NOVAE = {  # no VAE: diffusion straight on frames, the condition through cross-attention
    "vae.arch": "none", "denoiser.arch": "trans_dec", "denoiser.skip_connect": False, "denoiser.normalize_latents": False,
    "train.cache_latents": 0, "diffusion.sampler": "ddpm", "diffusion.num_inference_steps": 1000,
}
PAPER = {  # the published optimiser: constant rate from the first step, no clipping, no average of weights
    f"{stage}.{key}": value for stage in ("train_vae", "train_diffusion") for key, value in
    {"lr": 1e-4, "warmup": 0, "schedule": "constant", "grad_clip": 0.0, "ema": 0.0}.items()
}

PRESETS = {
    "toy": TOY,
    "small": SMALL,
    "vae_humanml3d": HUMANML3D | {"train.stage": "vae"},
    "mld_humanml3d": HUMANML3D,
    "novae_humanml3d": HUMANML3D | NOVAE | {"denoiser.latent_dim": 512, "train.stage": "diffusion"},
    "vae_kit": KIT | {"train.stage": "vae"},
    "mld_kit": KIT,
    "mld_humanact12": ACTION | {"data.dataset": "humanact12", "denoiser.num_actions": 12},
    "mld_uestc": ACTION | {"data.dataset": "uestc", "data.fps": 30.0, "denoiser.num_actions": 40},
}
DATASET_PRESETS = {"toy": "toy", "humanml3d": "mld_humanml3d", "kit": "mld_kit", "humanact12": "mld_humanact12", "uestc": "mld_uestc"}
MODULES = {  # the network parts swapped as a set, as the published code's module folders do
    "mld": {"vae.arch": "encoder_decoder", "denoiser.arch": "trans_enc", "denoiser.skip_connect": True},
    "novae": NOVAE,
    "humanact12": {key: value for key, value in ACTION.items() if not key.startswith("data.")},
}
RECIPES = {"ours": {}, "paper": PAPER}

# Short names of the flags that are typed most.
SHORT = {name: f"train.{name}" for name in ("stage", "seed", "out", "name", "device", "precision", "compile", "cache_latents")}
SHORT |= {"condition": "denoiser.condition", "cfg_asset": "cfg_assets", "model.target": "modules"}

# ----------------------------------------------------------------------------------------------------------------------
# The command line


def nearest(name, known):
    """' Did you mean X?' for the closest of the `known` names, or a list of them."""
    close = difflib.get_close_matches(name, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
    return f" Did you mean {close[0]}?" if close else f" Valid are: {', '.join(known)}."


def choose(table, name, what):
    if name not in table:
        raise SettingError(f"Unknown {what} {name!r}.{nearest(name, list(table))}")
    return table[name]


def read_assets(path):
    """Read an assets file: Python assignments of literals, `clip_path = "..."` (an asset) or `train.batch_size = 32`-like
    `section.key = value`. Nothing in it is executed. Returns {"section.key": value}."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read(), path)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
        raise SettingError(f"Assets file {path} cannot be read: {error}.") from None
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        try:
            (target,), value = node.targets, ast.literal_eval(node.value)
            name = ast.unparse(target)
        except (AttributeError, TypeError, ValueError):
            raise SettingError(f"Assets file {path}, line {node.lineno}: expected `name = literal`, found {ast.unparse(node)!r}.") from None
        values[name if "." in name else f"assets.{name}"] = value
    return values


def parse_args(argv, options=None, doc=""):
    """Resolve a command line into settings.

    argv     list of words, as sys.argv[1:]
    options  instance of a dataclass with the program's own flags (--resume, ...): its fields are set in place
    doc      the program's docstring, shown above the settings by --help
    Returns (Config, list of words that are no flags). Raises SettingError; `--help` prints and exits.
    """
    if "--help" in argv or "-h" in argv:
        try:
            print(help_text(doc, options), flush=True)
        except BrokenPipeError:  # `--help | head` has read enough; nothing may be left to flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    own = {f.name: f for f in dataclasses.fields(options)} if options is not None else {}
    known = [f"{s}.{f.name}" for s, cls in SECTIONS.items() for f in dataclasses.fields(cls)]
    flags, words, queue = {}, [], list(argv)
    while queue:
        word = queue.pop(0)
        match = re.fullmatch(r"(?:--)?([A-Za-z_]\w*(?:\.\w+)?)=(.*)", word, re.S) if word.startswith("--") or re.match(r"\w+\.\w+=", word) else None
        if not word.startswith("-") and not match:
            words.append(word)
            continue
        name, value = match.groups() if match else (word.lstrip("-"), None)
        name = SHORT.get(name, name)
        if name not in own and name not in known and name not in ("config", "dataset", "modules", "recipe", "cfg_assets"):
            raise SettingError(f"Unknown setting {name!r}.{nearest(name, [*own, *known, *SHORT, 'config', 'dataset', 'modules', 'recipe', 'cfg_assets'])}")
        if value is None:
            kind = own[name].type if name in own else inspect.get_annotations(SECTIONS[name.split(".")[0]])[name.split(".")[1]] if name in known else str
            is_flag = kind is bool and not (queue and queue[0].lower() in ("true", "false", "0", "1", "yes", "no"))
            if not is_flag and not queue:
                raise SettingError(f"--{name} needs a value.")
            value = "true" if is_flag else queue.pop(0)
        flags[name] = value

    config = Config()
    dataset = flags.pop("dataset", flags.get("data.dataset"))
    preset = flags.pop("config", DATASET_PRESETS.get(dataset or "toy", "small"))
    layers = [choose(PRESETS, preset, "preset (--config)")]
    if dataset:
        layers.append({"data.dataset": dataset})
    layers.append(choose(MODULES, flags.pop("modules").removeprefix("modules_"), "module set (--modules)") if "modules" in flags else {})
    layers.append(choose(RECIPES, flags.pop("recipe"), "recipe (--recipe)") if "recipe" in flags else {})
    layers.append(read_assets(flags.pop("cfg_assets")) if "cfg_assets" in flags else {})
    layers.append({key: value for key, value in flags.items() if key not in own})
    for layer in layers:
        for key, value in layer.items():
            set_value(config, key, value)
    for key in own.keys() & flags.keys():
        setattr(options, key, convert(flags[key], own[key].type, "--" + key))
    name = config.data.dataset
    if name not in DATASET_PRESETS and not os.path.exists(pack_path(config)):
        raise SettingError(f"Unknown dataset {name!r}, and no {pack_path(config)}; pack your own with prepare.py.{nearest(name, list(DATASET_PRESETS))}")
    return validate(config), words


def comments(cls):
    """{field: the comment behind it} of a dataclass, read from its source."""
    found = re.findall(r"^    (\w+): .*?#\s*(.*)$", inspect.getsource(cls), re.M)
    return dict(found)


def help_text(doc, options=None):
    lines = [doc.strip(), "", "Choosing settings (see config.py):",
             f"  --config NAME        preset: {', '.join(PRESETS)}",
             f"  --dataset NAME       the preset that goes with it: {', '.join(DATASET_PRESETS)}, or your own packed dataset",
             f"  --modules NAME       swap the network parts as a set: {', '.join(MODULES)}",
             f"  --recipe NAME        optimiser settings: {', '.join(RECIPES)}",
             "  --cfg_assets FILE    a file of `name = literal` lines: paths, or any section.key",
             "  short names          " + ", ".join(f"--{k}" for k in SHORT)]
    if options is not None:
        lines += ["", "This program:"] + [f"  --{f.name:24s} {str(f.default):>14s}  {comments(type(options)).get(f.name, '')}" for f in dataclasses.fields(options)]
    for section, cls in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for f in dataclasses.fields(cls):
            default = os.path.relpath(f.default, HERE) if f.name == "data_root" else f.default
            choices = f" ({'|'.join(get_args(f.type))})" if get_origin(f.type) is Literal else ""
            lines.append(f"  --{section + '.' + f.name:34s} {str(default):>16s}  {comments(cls)[f.name]}{choices}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        config, words = parse_args(sys.argv[1:], doc=__doc__)
        if words:
            raise SettingError(f"presets.py takes flags only, found {words[0]!r}; see --help.")
        print(json.dumps(to_dict(config), indent=2))
    except SettingError as error:
        sys.exit(f"error: {error}")
