"""Checkpoints: our own, and the ones that others published.

    save("out/toy/vae.pt", config, model.state_dict(), step=100, optimizer=...)    whole or not at all
    load("out/toy/vae.pt")             {"config": Config, "model": state dict, "step": 100, "optimizer": ...}
    load_model(path)                   MLD, ready for generate(), from our file or from any of these:
        mld_humanml3d.ckpt             the published Lightning files (text, KIT, action, no VAE)
        folder                         the hub's folders: a VAE's and a denoiser's config.json + model.safetensors, as
                                       subfolders of `folder`

    python checkpoint.py halve out/toy/model.pt checkpoints/toy.pt     its networks' weights as float16: half the size

Nothing in a file is ever run: ours are read with weights_only=True, the others by safe_pickle.py.
"""
import io
import json
import os
import pickle
import re
import sys

import numpy as np
import torch

from clip import WordEncoder
from published_clip import load_clip
from config import Config, SettingError, atomic_write, from_dict, pack_path, set_value, to_dict, validate
from mld import MLD, Denoiser
from formats.pack import Pack
from config import NOVAE, PRESETS
from formats.datasets import rest_joints
from formats.safe_pickle import load_safetensors, load_torch, named_tensors
from vae import MotionVAE

# ----------------------------------------------------------------------------------------------------------------------
# Our own format: a torch file of one dict of tensors and plain data

FORMAT, VERSION = "nanoMLD checkpoint", 1


def save(path, config, model, **training_state):
    """Write a checkpoint atomically: Config, the state dict `model`, and whatever else training needs to go on (tensors
    and plain data; TypeError for anything else, which could be written but not read). `vocabulary`: the words of a
    WordEncoder. Left out are CLIP's weights, which come from assets.clip_path, and the settings that are paths of the
    machine at hand: whoever loads the file has their own."""
    if config.text.kind == "clip":
        model = {name: value for name, value in model.items() if not name.startswith("text_encoder.")}
    settings = to_dict(config)
    del settings["assets"], settings["train"]["out"], settings["train"]["vae_checkpoint"]
    data = {"format": FORMAT, "version": VERSION, "config": settings, "model": model, **training_state}
    refuse_objects(data, "checkpoint")
    whole = io.BytesIO()  # torch.save itself, on a disk that is full, raises a RuntimeError that does not say so
    torch.save(data, whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def refuse_objects(data, name):
    if isinstance(data, (dict, list, tuple)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            refuse_objects(value, f"{name}[{key!r}]")
    elif type(data) not in (str, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{name} is a {type(data).__name__}; a checkpoint holds tensors and plain data only.")


def load(path):
    """Read a checkpoint that `save` wrote: its dict, "config" as a Config (paths: our defaults), tensors on the CPU.
    ValueError in one sentence for a file that is cut short, not ours, or of another version."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint {path}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError):
        raise ValueError(f"{path} is not a whole nanoMLD checkpoint: it is of another kind or was cut short.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is a torch file, but no nanoMLD checkpoint.")
    if data.get("version") != VERSION:
        raise ValueError(f"{path} is a nanoMLD checkpoint of version {data.get('version')}; this code reads {VERSION}.")
    try:
        data["config"] = from_dict(data["config"])
    except SettingError as error:
        raise ValueError(f"{path} was written by another version of nanoMLD: {error}") from None
    return data


def find_device(name, local=0):
    """auto, cpu, cuda, cuda:1, mps -> torch.device; cuda alone is the GPU of this process, number `local` of its machine.
    ValueError for one that is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {name} cannot be used here ({str(error).splitlines()[0]}); cpu always can.") from None
    return device


def load_model(path, assets=None, device="cpu"):
    """MLD in eval mode, ready for generate(), from our own checkpoint of a finished model or from a published one; its
    `actions` are the names of the action labels, in the order of their numbers.

    assets  AssetsConfig with this machine's paths; None = our defaults
    FileNotFoundError or ValueError in one sentence: no checkpoint there, cut short, of another kind, weights that do not
    fit, CLIP's weights missing.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    data = {} if os.path.isdir(path) or str(path).endswith(".safetensors") else load_torch(path)
    ours = isinstance(data, dict) and data.get("format") == FORMAT
    if ours:
        data = load(path)
        config, state = data["config"], data["model"]
        if data.get("judge"):
            raise ValueError(f"{path} is an evaluator, not a model that makes motions: eval.py takes it by --evaluator.")
    else:
        config, state = read_published(path)
    config.assets = assets or config.assets
    if not ours and "mean" not in state:
        state |= norms(path, config)
    encoder = None
    if config.denoiser.condition == "text":
        if config.text.kind == "clip":
            encoder = load_clip(config.assets.clip_path, config.text.last_hidden_state)
        elif data.get("vocabulary") is None:
            raise ValueError(f"{path} lacks the vocabulary of its text tower; is it a stage's checkpoint, not the finished "
                             "model?")
        else:
            encoder = WordEncoder(config.text, data["vocabulary"])
    model = MLD(config, encoder)
    if not any(name.startswith("length_estimator.") for name in state):
        model.length_estimator = None
    # a published file knows nothing of what is ours alone
    fill(model, state, path, ("text_encoder.tower.",) * (config.text.kind == "clip") if ours else
         tuple(name for name in model.state_dict() if not name.startswith(("vae.", "denoiser."))))
    model.actions = data.get("actions") or [str(i) for i in range(config.denoiser.num_actions)]  # published files have no names
    return model.to(device).eval()


def norms(path, config):
    """The features' mean and std for a published checkpoint that does not have them; for rotations, which were not
    normalised, a rest pose: that of assets.smpl_path, or a default. ValueError says where to put the files."""
    if config.data.skeleton == "smpl":  # features are rotations as they are
        body = config.assets.smpl_path if os.path.exists(config.assets.smpl_path) else None
        return {"rest": torch.tensor(rest_joints(body), dtype=torch.float32)}
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    files = [os.path.join(folder, name) for name in ("Mean.npy", "Std.npy")]
    if all(map(os.path.exists, files)):
        mean, std = (np.load(file, allow_pickle=False) for file in files)
    elif os.path.exists(pack_path(config)):
        pack = Pack.open(pack_path(config))
        mean, std = pack.mean, pack.std
    else:
        raise ValueError(f"{path} does not hold the mean and std of its features; put the dataset's Mean.npy and Std.npy "
                         "beside it, or pack the dataset (python prepare.py --help).")
    return {"mean": torch.tensor(mean, dtype=torch.float32), "std": torch.tensor(std, dtype=torch.float32)}


def fill(model, state, path, optional=()):
    """model.load_state_dict(state), all or nothing. ValueError, naming the file `path` and the weights, if names or
    shapes do not fit; names that begin with one of `optional` may be missing."""
    own, optional = model.state_dict(), tuple(optional)
    check({name: value for name, value in own.items() if name in state or not name.startswith(optional)}, state, path)
    model.load_state_dict(state, strict=False)


def check(expected, state, path):
    """ValueError, naming `path`, unless both state dicts have the same names and shapes."""
    def shape(value):
        return tuple(value.shape) if isinstance(value, torch.Tensor) else ()

    wrong = [f"{key} is {shape(state[key])} instead of {shape(value)}" for key, value in expected.items()
             if key in state and shape(state[key]) != shape(value)]
    for words, names in (("has weights of other shapes", wrong),
                         ("lacks weights", [name for name in expected if name not in state]),
                         ("has weights that this network does not have", [name for name in state if name not in expected])):
        if names:
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{path} does not fit: it {words}: {', '.join(names[:3])}{more}.")


# ----------------------------------------------------------------------------------------------------------------------
# Published checkpoints: names

# published name -> ours; every name that is not here is the same
RENAMES = (
    (r"^vae\.encoder\.skel_embedding\.", "vae.skel_embedding."),  # the ACTOR-style VAE
    (r"^vae\.encoder\.seqTransEncoder\.", "vae.encoder."),
    (r"^vae\.decoder\.seqTransDecoder\.", "vae.decoder."),
    (r"^vae\.decoder\.final_layer\.", "vae.final_layer."),
    (r"^denoiser\.emb_proj\.action_embedding$", "denoiser.emb_proj.weight"),
    (r"^vae\.(mean|std)$", r"\1"),  # the hub's VAE brings the features' mean and std along
)
# names that we know and do not read from here
UNUSED = (
    (r"^text_encoder\.", "CLIP, frozen: read from assets.clip_path"),
    (r"^t2m_(text|move|motion)encoder\.", "the T2M evaluators, frozen: read from assets.t2m_path"),
    (r"^vae\.(en|de)coder\.sequence_pos_encoding\.pe$", "sines and cosines: computed"),
)
MEMORY_POSITIONS = r"^denoiser\.mem_pos\.pe$"  # is in every file; only the decoder form has a memory to add it to


def published_tensors(path):
    """{name with its part, vae. or denoiser.: tensor} and {part: its config.json} of a published file or folder."""
    if os.path.isdir(path):
        folders = [str(path)] + sorted(entry.path for entry in os.scandir(path) if entry.is_dir())
        files = [file for folder in folders if os.path.exists(file := os.path.join(folder, "model.safetensors"))]
        if not files:
            raise FileNotFoundError(f"{path} has no model.safetensors, nor has a folder in it; put the VAE's and the "
                                    "denoiser's published folders (config.json and model.safetensors each) into it.")
    else:
        files = [path]
    tensors, settings = {}, {}
    for file in files:
        if str(file).endswith(".safetensors"):
            found = load_safetensors(file)
        else:
            data = load_torch(file)
            found = named_tensors(data["state_dict"] if isinstance(data, dict) and "state_dict" in data else data)
        of = {"skel_embedding.weight": "vae", "time_embedding.linear_1.weight": "denoiser"}
        for part in (of[name] for name in of if name in found):  # the hub's names do not say it
            found = {f"{part}.{name}": value for name, value in found.items()}
            json_file = os.path.join(os.path.dirname(file), "config.json")
            if os.path.exists(json_file):
                try:
                    with open(json_file, encoding="utf-8") as opened:
                        settings[part] = dict(json.load(opened))
                except ValueError as error:
                    raise ValueError(f"{json_file} is not JSON with settings: {error}.") from None
        tensors |= found
    return tensors, settings


def rename(tensors):
    """Published tensors -> ours, by name; those of UNUSED left out."""
    unused = [pattern for pattern, _ in UNUSED]
    if not any(name.startswith("denoiser.decoder.") for name in tensors):
        unused.append(MEMORY_POSITIONS)
    state = {}
    for name, value in tensors.items():
        if any(re.search(pattern, name) for pattern in unused):
            continue
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        if name.endswith(".pe") and value.dim() == 3:
            value = value.squeeze(1)  # (rows, 1, D)
        state[name] = value.float() if value.is_floating_point() else value
    if "vae.encoder.mu_token" in state and "vae.encoder.logvar_token" in state:
        tokens = [state.pop(f"vae.encoder.{name}_token") for name in ("mu", "logvar")]
        state["vae.global_motion_token"] = torch.stack(tokens)
    return state


# ----------------------------------------------------------------------------------------------------------------------
# Published checkpoints: sizes


def depth(state, stack):
    """(number of layers, whether they have skip connections) of the stack with that name."""
    block = re.escape(stack) + r"\.(layers|input_blocks|middle_block|output_blocks)(\.\d+)?(?=\.)"
    found = (re.match(block, name) for name in state)
    layers = {match[0] for match in found if match}
    return len(layers), f"{stack}.middle_block" in layers


def infer_vae(state):
    dim, nfeats = state["vae.skel_embedding.weight"].shape
    cross = any(name.startswith("vae.decoder.") and ".multihead_attn." in name for name in state)
    layers, skip = depth(state, "vae.encoder")
    mlp_dist = "vae.dist_layer.weight" in state
    first = "vae.encoder." + ("input_blocks" if skip else "layers") + ".0"
    settings = {"arch": "actor" if not skip else "encoder_decoder" if cross else "all_encoder", "mlp_dist": mlp_dist,
                "latent_size": len(state["vae.global_motion_token"]) // (1 if mlp_dist else 2), "latent_dim": dim,
                "ff_size": len(state[first + ".linear1.weight"]), "num_layers": layers}
    if skip:
        settings["max_positions"] = len(state["vae.query_pos_encoder.pe"])
    return nfeats, settings


def infer_denoiser(state):
    arch = "trans_dec" if any(name.startswith("denoiser.decoder.") for name in state) else "trans_enc"
    stack = "denoiser." + ("decoder" if arch == "trans_dec" else "encoder")
    layers, skip = depth(state, stack)
    rows, dim = state["denoiser.query_pos.pe"].shape
    settings = {"arch": arch, "skip_connect": skip, "latent_dim": dim, "num_layers": layers, "max_positions": rows,
                "ff_size": len(state[stack + (".input_blocks" if skip else ".layers") + ".0.linear1.weight"])}
    if "denoiser.emb_proj.1.weight" in state:
        settings |= {"condition": "text", "text_encoded_dim": state["denoiser.emb_proj.1.weight"].shape[1]}
    else:
        actions = len(state["denoiser.emb_proj.weight"])
        settings |= {"condition": "action", "num_actions": actions, "text_encoded_dim": dim}
    return settings


# settings that shapes do not tell, as the hub's config.json calls them, and so do we
TOLD = ("num_heads", "activation", "normalize_before", "flip_sin_to_cos", "freq_shift")


def read_published(path):
    """Read a published MLD checkpoint by name: a Lightning file, or the hub's folders of safetensors.

    Returns (Config, state dict for MLD). The networks' sizes are read off the shapes. What shapes do not tell (TOLD) comes
    from config.json where there is one; the Lightning files were all published with 4 heads, post-norm and gelu, which are
    our defaults. The state has mean and std only if the file has (the hub's VAE), and only the parts that the file has: a
    VAE alone gives vae.* alone.
    ValueError if a name is unknown or missing, a shape does not fit, or the file is cut short or of another kind.
    """
    tensors, found = published_tensors(path)
    state = rename(tensors)
    has = {part: any(name.startswith(part + ".") for name in state) for part in ("vae", "denoiser")}
    if not any(has.values()):
        raise ValueError(f"{path} holds {len(tensors)} tensors, but neither a VAE nor a denoiser of MLD.")
    config, nfeats = Config(), None
    try:
        denoiser = infer_denoiser(state) if has["denoiser"] else {}
        nfeats, vae = infer_vae(state) if has["vae"] else (None, {"arch": "none"})
        if nfeats is None and "denoiser.pose_embd.weight" in state:
            nfeats = state["denoiser.pose_embd.weight"].shape[1]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} does not fit: it lacks weights that tell the networks' sizes ({error}).") from None
    if nfeats is None:
        raise ValueError(f"{path} holds a denoiser of latents without its VAE; put both published folders into one and "
                         "name that.")
    skeleton = {263: "t2m", 251: "kit", 150: "smpl"}.get(nfeats)
    if skeleton is None:
        raise ValueError(f"{path} is for {nfeats} features per frame; known are 263 (HumanML3D), 251 (KIT) and 150 (SMPL "
                         "rotations).")
    action = "mld_uestc" if denoiser.get("num_actions") == 40 else "mld_humanact12"
    name = {"t2m": "mld_humanml3d", "kit": "mld_kit", "smpl": action}[skeleton]
    # Without a VAE the published denoiser attends to padded frames too: its weights have learnt to, and are run that way.
    layers = [PRESETS[name], {} if has["vae"] else NOVAE | {"denoiser.mask_padding": False}]
    if has["vae"] and not has["denoiser"]:
        denoiser = {"latent_dim": vae["latent_dim"]}
    for part, values in (("vae", vae), ("denoiser", denoiser)):
        known = vars(getattr(config, part))
        told = {key: value for key, value in found.get(part, {}).items() if key in TOLD and key in known}
        layers.append({f"{part}.{key}": value for key, value in (values | told).items()})
    try:
        for key, value in ((key, value) for layer in layers for key, value in layer.items()):
            set_value(config, key, value)
        validate(config)
        with torch.device("meta"):  # shapes only
            nets = {"vae": MotionVAE(config.vae, nfeats)} if has["vae"] else {}
            nets |= {"denoiser": Denoiser(config.denoiser, None if has["vae"] else nfeats)} if has["denoiser"] else {}
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from None
    expected = {f"{part}.{key}": value for part, net in nets.items() for key, value in net.state_dict().items()}
    expected |= {key: torch.empty(nfeats, device="meta") for key in ("mean", "std") if key in state}
    check(expected, state, path)
    return config, state


# ----------------------------------------------------------------------------------------------------------------------


def halve(source, target):
    """Write our finished model or evaluator `source` to `target` with its weights in float16; loading casts them back."""
    data = load(source)
    exact = ("mean", "std", "latent_mean", "latent_std")  # of features and latents
    state = {name: value if name in exact or not value.is_floating_point() else value.half() for name, value in data["model"].items()}
    save(target, data["config"], state, **{name: data[name] for name in ("vocabulary", "actions", "judge") if name in data})


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "halve":
        sys.exit("usage: python checkpoint.py halve MODEL.pt SMALLER.pt")
    try:
        halve(*sys.argv[2:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
