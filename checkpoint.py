"""Our own checkpoints, and load_model for anybody's.

    save("out/toy/vae.pt", config, model.state_dict(), step=100)  whole, or not at all
    load("out/toy/vae.pt")           {"config": Config, "model": state dict, "step": 100}
    load_model(path)                 MLD, ready for generate(), from a model.pt of train.py or from
                                     published weights (published.py)

    python checkpoint.py halve out/toy/model.pt checkpoints/toy.pt   float16 weights: half the size

Nothing in a file is ever run: ours are read with weights_only=True, others' by safe_pickle.py.
"""
import io
import os
import pickle
import sys

import torch

from clip import WordEncoder, load_clip
from config import SettingError, atomic_write, from_dict, to_dict
from formats.safe_pickle import load_torch
from mld import MLD
from published import check_names, norms, read_published

# a torch file of one dict of tensors and plain data
FORMAT, VERSION = "nanoMLD checkpoint", 1


def save(path, config, model, **training_state):
    """Write a checkpoint atomically: the Config, the state dict `model`, and whatever else training
    needs to go on: tensors and plain data. (TypeError for anything else, which could be written
    but not read.) `vocabulary` is for the words of a WordEncoder.

    Left out are CLIP's weights, which come from assets.clip_path, and the settings that are paths
    of this machine: whoever loads the file has other ones."""
    if config.text.kind == "clip":
        model = {name: value for name, value in model.items()
                 if not name.startswith("text_encoder.")}
    settings = to_dict(config)
    del settings["assets"], settings["train"]["out"], settings["train"]["vae_checkpoint"]
    data = {"format": FORMAT, "version": VERSION, "config": settings, "model": model}
    data |= training_state
    refuse_objects(data, "checkpoint")
    whole = io.BytesIO()  # torch.save to a full disk raises a RuntimeError that does not say so
    torch.save(data, whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def refuse_objects(data, name):
    if isinstance(data, (dict, list, tuple)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            refuse_objects(value, f"{name}[{key!r}]")
    elif type(data) not in (str, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{name} is a {type(data).__name__}; a checkpoint holds tensors and plain "
                        "data only.")


def load(path):
    """Read a checkpoint that `save` wrote: its dict, with "config" as a Config (paths: our
    defaults) and tensors on the CPU. ValueError in one sentence for a file that is cut short, not
    ours, or of another version."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint {path}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError):
        raise ValueError(f"{path} is not a whole nanoMLD checkpoint: it is of another kind or was "
                         "cut short.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is a torch file, but no nanoMLD checkpoint.")
    if data.get("version") != VERSION:
        raise ValueError(f"{path} is a nanoMLD checkpoint of version {data.get('version')}; this "
                         f"code reads version {VERSION}.")
    try:
        data["config"] = from_dict(data["config"])
    except SettingError as error:
        raise ValueError(f"{path} was written by another version of nanoMLD: {error}") from None
    return data


def find_device(name, local=0):
    """auto, cpu, cuda, cuda:1, mps -> torch.device. `cuda` alone is the GPU of this process, number
    `local` of its machine. ValueError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {name} cannot be used here ({reason}); cpu always can.") \
            from None
    return device


def load_model(path, assets=None, device="cpu"):
    """MLD in eval mode, ready for generate(), from our own checkpoint of a finished model or from
    published weights. Its `actions` are the names of the action labels, in their order.

    assets  AssetsConfig with this machine's paths; None = our defaults
    FileNotFoundError or ValueError in one sentence if there is no checkpoint, if it is cut short or
    of another kind, if its weights do not fit, or if CLIP's weights are missing.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    data = {}
    if not os.path.isdir(path) and not str(path).endswith(".safetensors"):
        data = load_torch(path)
    ours = isinstance(data, dict) and data.get("format") == FORMAT
    if ours:
        data = load(path)
        config, state = data["config"], data["model"]
        if data.get("judge"):
            raise ValueError(f"{path} is an evaluator, not a model that makes motions: eval.py "
                             "takes it by --evaluator.")
    else:
        data, (config, state) = {}, read_published(path)
    config.assets = assets or config.assets
    if not ours and "mean" not in state:
        state |= norms(path, config)

    encoder = None
    if config.denoiser.condition == "text":
        if config.text.kind == "clip":
            encoder = load_clip(config.assets.clip_path, config.text.last_hidden_state)
        elif data.get("vocabulary") is None:
            raise ValueError(f"{path} lacks the vocabulary of its text tower; is it a stage's "
                             "checkpoint, not the finished model?")
        else:
            encoder = WordEncoder(config.text, data["vocabulary"])
    model = MLD(config, encoder)
    if not any(name.startswith("length_estimator.") for name in state):
        model.length_estimator = None
    # our files have all but CLIP; a published file has only what the published model has
    optional = ("text_encoder.tower.",) if config.text.kind == "clip" else ()
    if not ours:
        optional = [name for name in model.state_dict() if not name.startswith(("vae.", "denois"))]
    fill(model, state, path, optional)
    # published files have no names of actions
    model.actions = data.get("actions") or list(map(str, range(config.denoiser.num_actions)))
    return model.to(device).eval()


def fill(model, state, path, optional=()):
    """model.load_state_dict(state), all or nothing. ValueError, naming the file `path` and the
    weights, if names or shapes do not fit; names that begin with one of `optional` may be missing.
    """
    own, optional = model.state_dict(), tuple(optional)
    expected = {name: value for name, value in own.items()
                if name in state or not name.startswith(optional)}
    check_names(expected, state, path)
    model.load_state_dict(state, strict=False)


def halve(source, target):
    """Write our finished model or evaluator `source` to `target` with its weights in float16, which
    loading casts back. The mean and std of features and of latents stay exact."""
    data = load(source)
    exact = ("mean", "std", "latent_mean", "latent_std")
    state = {name: value.half() if value.is_floating_point() and name not in exact else value
             for name, value in data["model"].items()}
    kept = {name: data[name] for name in ("vocabulary", "actions", "judge") if name in data}
    save(target, data["config"], state, **kept)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "halve":
        sys.exit("usage: python checkpoint.py halve MODEL.pt SMALLER.pt")
    try:
        halve(*sys.argv[2:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
