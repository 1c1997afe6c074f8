"""The command line: how words become settings, and what a program does with its output.

Each of four layers wins over those above it:

    the default in the dataclass  config.py
    a preset                      --config NAME, --dataset NAME, --modules NAME, --recipe NAME
    an assets file                --cfg_assets FILE
    the command line              --section.key=value

    python train.py --dataset humanml3d                   the preset that goes with a dataset
    python train.py --config vae_kit --vae.latent_size=7  a preset by name, with one number changed
    python train.py --dataset toy --modules novae         other network parts, swapped as a set
    python train.py --dataset toy --recipe paper          the paper's optimiser settings, not ours
    python train.py --dataset kit --help                  KIT's values of the settings changed most
    python train.py --dataset kit --help all              its values of every setting
    python flags.py [the same flags]                      print the resolved settings and stop
"""
import ast
import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
from typing import get_args

from config import (
    BOOLEANS, FIELDS, HERE, SECTIONS, Config, SettingError, convert, nearest, need, pack_path,
    set_value, to_dict, validate)
from presets import DATASET_PRESETS, MODULES, PRESETS, RECIPES

TABLES = {"config": PRESETS, "dataset": DATASET_PRESETS, "modules": MODULES, "recipe": RECIPES}
# short names of the flags that are typed most
SHORT = {name: f"train.{name}" for name in ("stage", "seed", "out", "name", "device", "precision",
                                            "compile", "cache_latents", "init_from")}
SHORT |= {"condition": "denoiser.condition", "cfg_asset": "cfg_assets", "model.target": "modules"}
# what --help shows without `all`
FIRST = ("train.stage", "train.name", "train.seed", "train.device", "train_vae.steps",
         "train_vae.batch_size", "train_vae.lr", "train_diffusion.steps",
         "train_diffusion.batch_size", "train_diffusion.lr", "denoiser.condition",
         "diffusion.guidance_scale")


def choose(flag, name):
    table = TABLES[flag]
    need(name in table, f"Unknown --{flag} {name!r}."
         + nearest(name, table, f" Valid are {', '.join(table)}."))
    return table[name]


def read_assets(path):
    """Read an assets file, lines of Python such as `clip_path = "..."` (of the section assets) or
    `train_vae.lr = 1e-4`. The values are literals, and nothing in the file is executed.
    Returns {"section.key": value}; SettingError names the file and the line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        tree = ast.parse(text, path)
    except (OSError, SyntaxError, ValueError) as error:
        raise SettingError(f"Assets file {path} cannot be read: {error}.") from None
    except (RecursionError, MemoryError):
        raise SettingError(f"Assets file {path} cannot be read: an expression in it is nested too "
                           "deeply; expected lines of `name = literal`.") from None
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        try:
            (target,), value = node.targets, ast.literal_eval(node.value)
            name = ast.unparse(target)
        except (AttributeError, TypeError, ValueError, RecursionError, MemoryError):
            found = text.splitlines()[node.lineno - 1].strip()[:60]
            raise SettingError(f"Assets file {path}, line {node.lineno}: expected `name = "
                               f"literal`, found {found!r}.") from None
        values[name if "." in name else f"assets.{name}"] = value
    return values


def read_flags(argv, own):
    """Words of a command line -> ({name: text}, list of the words that are no flags). `own`:
    {name: field} of the program's own flags."""
    kinds = dict.fromkeys([*TABLES, "cfg_assets"]) | own | FIELDS
    flags, words, queue = {}, [], list(argv)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") and not re.match(r"\w+\.\w+=", word):
            words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = SHORT.get(name := name.replace("-", "_"), name)
        need(name in kinds, f"Unknown setting {name!r}."
             + nearest(name, [*kinds, *SHORT], " --help all lists all of them."))
        if not equals:
            is_flag = kinds[name] is not None and kinds[name].type is bool
            is_flag = is_flag and (not queue or queue[0].lower() not in BOOLEANS)
            need(queue or is_flag, f"--{name} needs a value.")
            value = "true" if is_flag else queue.pop(0)
        flags[name] = value
    return flags, words


def resolve(flags, carried=None):
    """{name: text} of a command line -> (Config, not yet validated, and the preset's name).
    carried: the path of a trained model -> {"section.key": value} of what carries over of it."""
    flags, config = dict(flags), Config()
    dataset = flags.pop("dataset", flags.get("data.dataset"))
    preset = flags.pop("config", DATASET_PRESETS.get(dataset or "toy", "small"))
    layers = [choose("config", preset), {"data.dataset": dataset} if dataset else {}]
    layers += [choose(name, flags.pop(name).removeprefix("modules_"))
               for name in ("modules", "recipe") if name in flags]
    if "cfg_assets" in flags:
        layers.append(read_assets(flags.pop("cfg_assets")))
    if carried and flags.get("train.init_from"):
        layers.append(carried(flags["train.init_from"]))
    for layer in (*layers, flags):
        for key, value in layer.items():
            set_value(config, key, value)
    return config, preset


def parse_args(argv, options=None, doc="", carried=None):
    """Resolve a command line into settings.

    argv     list of words, as sys.argv[1:]
    options  instance of a dataclass with the program's own flags, whose fields are set in place
    doc      the program's docstring, which --help shows above the settings
    carried  see resolve()
    Returns (Config, list of the words that are no flags). Raises SettingError. `--help` prints
    the values that the other flags lead to, of the most important or of `all` settings, and exits.
    """
    own = {f.name: f for f in dataclasses.fields(options)} if options is not None else {}
    asked = next((i for i, word in enumerate(argv) if word in ("-h", "--help")), None)
    if asked is not None:
        everything = argv[asked + 1:asked + 2] == ["all"]
        argv = argv[:asked] + argv[asked + 1 + everything:]
    flags, words = read_flags(argv, own)
    given = {key: value for key, value in flags.items() if key not in own}
    config, preset = resolve(given, carried)
    if asked is not None:
        try:
            print(help_text(doc, options, config, preset, everything), flush=True)
        except BrokenPipeError:  # `--help | head` has read enough; nothing may be left to flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    for key in own.keys() & flags.keys():
        setattr(options, key, convert(flags[key], own[key].type, "--" + key))
    name = config.data.dataset
    need(name in DATASET_PRESETS or os.path.exists(pack_path(config)),
         f"Unknown dataset {name!r}, and no {pack_path(config)}; pack your own with prepare.py."
         + nearest(name, DATASET_PRESETS, f" Known are {', '.join(DATASET_PRESETS)}."))
    return validate(config), words


def comments(cls):
    """{field: the comment beside it} of a dataclass, read from its source."""
    source = "".join(inspect.getsource(base) for base in cls.__mro__[:-1])
    return dict(re.findall(r"^ +(\w+): .*?#\s*(.*)$", source, re.M))


def help_text(doc, options=None, config=None, preset="", everything=False):
    """What --help prints: the docstring `doc`, flags that choose tables of settings, the program's
    own `options`, and the values of `config` for the settings of FIRST, or for all."""
    lines = [doc.strip(), "", "Flags that choose many settings at once:"]
    lines += [f"  --{name:13s} {', '.join(table)}" for name, table in TABLES.items()]
    lines += ["  --cfg_assets    a file of lines such as clip_path = '/models/clip'"]
    if options is not None:
        lines += ["", "Flags of this program:"]
        lines += [f"  --{name.replace('_', '-'):13s} {meaning}"
                  for name, meaning in comments(type(options)).items()]
    lines += ["", f"Settings, with the values of the preset {preset}:"]
    short, config = {key: name for name, key in SHORT.items()}, config or Config()
    for key in FIELDS if everything else FIRST:
        section, name = key.split(".")
        value, choices = getattr(getattr(config, section), name), get_args(FIELDS[key].type)
        value = os.path.relpath(value, HERE) if name == "data_root" else value
        meaning = comments(SECTIONS[section])[name] + f" ({'|'.join(choices)})" * bool(choices)
        lines.append(f"  --{short.get(key, key):29s} {str(value):>9s}  {meaning}")
    if not everything:
        lines += ["", "Any setting is set by --section.key=value; --help all lists all of them."]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------
# A program's output


class Output:
    """Standard output or error. A program whose reader has gone, as in `| head -1`, ends here, and
    quietly: not by an OSError, which programs tell of files."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self.until_closed(self.stream.write, text)

    def flush(self):
        return self.until_closed(self.stream.flush)

    def until_closed(self, call, *args):
        try:
            return call(*args)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # for what is still to be flushed
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            raise SystemExit(0) from None


def program(main):
    """Run main(the command line's words), which returns an exit status or None, and exit."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    try:
        status = main(sys.argv[1:])
    except BaseException:
        with contextlib.suppress(SystemExit):
            sys.stdout.flush()
        raise
    sys.stdout.flush()
    sys.exit(status)


def main(argv):
    try:
        config, words = parse_args(argv, doc=__doc__)
        need(not words, f"flags.py takes flags only, found {words and words[0]!r}; see --help.")
        print(json.dumps(to_dict(config), indent=2))
    except SettingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    program(main)
