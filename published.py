"""Checkpoints that others published, read by name.

    read_published("mld_humanml3d.ckpt")   a Lightning file: text, KIT, action, or without a VAE
    read_published("folder")               the hub's folders: config.json and model.safetensors of
                                           the VAE and of the denoiser, in subfolders of `folder`

Nothing in a file is ever run: formats/safe_pickle.py reads tensors and plain data only. Four tables
hold what we know of these files: RENAMES and UNUSED for names, SKELETONS and TOLD for settings.
"""
import os
import re

import numpy as np
import torch

from config import Config, pack_path, set_value, validate
from presets import NOVAE, PRESETS
from formats.datasets import rest_joints
from formats.pack import Pack
from formats.safe_pickle import load_safetensors, load_torch
from mld import Denoiser
from published_clip import read_json, tensors_of
from vae import MotionVAE

# --------------------------------------------------------------------------------------------------
# Names

# published name -> ours; every name that is not here is the same
RENAMES = (
    (r"^vae\.encoder\.skel_embedding\.", "vae.skel_embedding."),  # the ACTOR-style VAE
    (r"^vae\.encoder\.seqTransEncoder\.", "vae.encoder."),
    (r"^vae\.decoder\.seqTransDecoder\.", "vae.decoder."),
    (r"^vae\.decoder\.final_layer\.", "vae.final_layer."),
    (r"^denoiser\.emb_proj\.action_embedding$", "denoiser.emb_proj.weight"),
    (r"^vae\.(mean|std)$", r"\1"),  # the hub's VAE comes with the features' mean and std
)
# names that we know and do not read from here
UNUSED = (
    (r"^text_encoder\.", "CLIP, frozen: read from assets.clip_path"),
    (r"^t2m_(text|move|motion)encoder\.", "the T2M evaluators, frozen: read from assets.t2m_path"),
    (r"^vae\.(en|de)coder\.sequence_pos_encoding\.pe$", "sines and cosines: computed"),
)
# every file has these positions, but only the decoder form has a memory to add them to
MEMORY_POSITIONS = r"^denoiser\.mem_pos\.pe$"
# the hub's names do not say which network they belong to: each has one name that the other lacks
TELLING = {"skel_embedding.weight": "vae", "time_embedding.linear_1.weight": "denoiser"}


def published_tensors(path):
    """{name with its part, vae. or denoiser.: tensor} and {part: its config.json} of a published
    file or folder."""
    if os.path.isdir(path):
        folders = [path, *sorted(entry.path for entry in os.scandir(path) if entry.is_dir())]
        files = [os.path.join(folder, "model.safetensors") for folder in folders]
        files = [file for file in files if os.path.exists(file)]
        if not files:
            raise FileNotFoundError(
                f"{path} has no model.safetensors, nor has a folder in it; put the VAE's and the "
                "denoiser's published folders (config.json and model.safetensors each) into it.")
    else:
        files = [path]
    tensors, settings = {}, {}
    for file in files:
        if str(file).endswith(".safetensors"):
            found = load_safetensors(file)
        else:
            data = load_torch(file)
            whole = isinstance(data, dict) and "state_dict" in data
            found = tensors_of(data["state_dict"] if whole else data, file)
        for part in (part for name, part in TELLING.items() if name in found):
            found = {f"{part}.{name}": value for name, value in found.items()}
            settings |= read_settings(os.path.join(os.path.dirname(file), "config.json"), part)
        tensors |= found
    return tensors, settings


def read_settings(path, part):
    """{part: the settings in the hub's config.json}, or {} where there is no such file."""
    return {part: read_json(path)} if os.path.exists(path) else {}


def rename(tensors):
    """Published tensors -> ours, by name, without those of UNUSED."""
    unused = [pattern for pattern, _ in UNUSED]
    if not any(name.startswith("denoiser.decoder.") for name in tensors):
        unused.append(MEMORY_POSITIONS)
    state = {}
    for name, value in tensors.items():
        if any(re.search(pattern, name) for pattern in unused):
            continue
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        if not value.is_floating_point():
            raise ValueError(f"{name} holds {value.dtype}, not floating-point numbers")
        if name.endswith(".pe") and value.dim() == 3:
            value = value.squeeze(1)  # (rows, 1, D)
        state[name] = value.float()
    actor = ("vae.encoder.mu_token", "vae.encoder.logvar_token")
    if all(name in state for name in actor):
        if len({state[name].shape for name in actor}) > 1:
            raise ValueError("its mu_token and logvar_token differ in shape")
        state["vae.global_motion_token"] = torch.stack([state.pop(name) for name in actor])
    return state


# --------------------------------------------------------------------------------------------------
# Sizes, read off the shapes


def depth(state, stack):
    """(number of layers, whether they have skip connections) of the stack with that name."""
    blocks = r"\.(layers|input_blocks|middle_block|output_blocks)(\.\d+)?(?=\.)"
    found = (re.match(re.escape(stack) + blocks, name) for name in state)
    layers = {match[0] for match in found if match}
    return len(layers), f"{stack}.middle_block" in layers


def infer_vae(state):
    """(features per frame, {key of VAEConfig: value})"""
    dim, nfeats = state["vae.skel_embedding.weight"].shape
    cross = any(name.startswith("vae.decoder.") and ".multihead_attn." in name for name in state)
    layers, skip = depth(state, "vae.encoder")
    mlp_dist = "vae.dist_layer.weight" in state
    first = "vae.encoder." + ("input_blocks" if skip else "layers") + ".0"
    settings = {
        "arch": "actor" if not skip else "encoder_decoder" if cross else "all_encoder",
        "latent_size": len(state["vae.global_motion_token"]) // (1 if mlp_dist else 2),
        "latent_dim": dim, "num_layers": layers, "mlp_dist": mlp_dist,
        "ff_size": len(state[first + ".linear1.weight"]),
    }
    if skip:
        settings["max_positions"] = len(state["vae.query_pos_encoder.pe"])
    return nfeats, settings


def infer_denoiser(state):
    """(features per frame or None, {key of DenoiserConfig: value})"""
    decoder = any(name.startswith("denoiser.decoder.") for name in state)
    stack = "denoiser.decoder" if decoder else "denoiser.encoder"
    layers, skip = depth(state, stack)
    first = stack + (".input_blocks" if skip else ".layers") + ".0"
    rows, dim = state["denoiser.query_pos.pe"].shape
    settings = {
        "arch": "trans_dec" if decoder else "trans_enc", "skip_connect": skip, "latent_dim": dim,
        "num_layers": layers, "max_positions": rows,
        "ff_size": len(state[first + ".linear1.weight"]),
    }
    text = state.get("denoiser.emb_proj.1.weight")
    if text is not None:
        settings |= {"condition": "text", "text_encoded_dim": text.shape[1]}
    else:
        actions = len(state["denoiser.emb_proj.weight"])
        settings |= {"condition": "action", "num_actions": actions, "text_encoded_dim": dim}
    frames = state.get("denoiser.pose_embd.weight")
    return None if frames is None else frames.shape[1], settings


# --------------------------------------------------------------------------------------------------
# The whole checkpoint

# features per frame -> our preset of the published model
SKELETONS = {263: "mld_humanml3d", 251: "mld_kit", 150: "mld_humanact12"}
# settings that shapes do not tell, as both the hub's config.json and ours call them
TOLD = ("num_heads", "activation", "normalize_before", "flip_sin_to_cos", "freq_shift")


def read_published(path):
    """Read a published MLD checkpoint by name: a Lightning file, or the hub's folders.

    Returns (Config, state dict for MLD). The networks' sizes are read off the shapes. What shapes
    do not tell (TOLD) comes from config.json where there is one. The Lightning files were all
    published with 4 heads, post-norm and gelu, which are our defaults. The state has mean and std
    only if the file has them (the hub's VAE does), and only the parts that the file has.
    ValueError if a name is unknown or missing, if a shape does not fit, or if the file is cut short
    or of another kind.
    """
    tensors, found = published_tensors(path)
    try:
        state = rename(tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}.") from None
    vae, denoiser = (any(name.startswith(part) for name in state) for part in ("vae.", "denoiser."))
    if not (vae or denoiser):
        raise ValueError(f"{path} holds {len(tensors)} tensors, but neither a VAE nor a denoiser "
                         "of MLD.")
    try:
        frames, denoiser_sizes = infer_denoiser(state) if denoiser else (None, {})
        nfeats, vae_sizes = infer_vae(state) if vae else (frames, {"arch": "none"})
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: it lacks weights that tell the networks' sizes "
                         f"({error}).") from None
    if nfeats is None:
        raise ValueError(f"{path} holds a denoiser of latents without its VAE; put both published "
                         "folders into one and name that.")
    if nfeats not in SKELETONS:
        raise ValueError(f"{path} is for {nfeats} features per frame; known are 263 (HumanML3D), "
                         "251 (KIT) and 150 (SMPL rotations).")
    preset = "mld_uestc" if denoiser_sizes.get("num_actions") == 40 else SKELETONS[nfeats]
    layers = [PRESETS[preset]]
    if not vae:
        # the published denoiser of frames attends to padding: its weights have learnt to
        layers.append(NOVAE | {"denoiser.mask_padding": False})
    if not denoiser:
        denoiser_sizes = {"latent_dim": vae_sizes["latent_dim"]}
    config = Config()
    for part, sizes in (("vae", vae_sizes), ("denoiser", denoiser_sizes)):
        told = {key: value for key, value in found.get(part, {}).items()
                if key in TOLD and hasattr(getattr(config, part), key)}
        layers.append({f"{part}.{key}": value for key, value in (sizes | told).items()})
    try:
        for layer in layers:
            for key, value in layer.items():
                set_value(config, key, value)
        validate(config)
        with torch.device("meta"):  # shapes only
            nets = {"vae": MotionVAE(config.vae, nfeats)} if vae else {}
            if denoiser:
                nets["denoiser"] = Denoiser(config.denoiser, None if vae else nfeats)
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from None
    expected = {f"{part}.{name}": value for part, net in nets.items()
                for name, value in net.state_dict().items()}
    expected |= {name: torch.empty(nfeats, device="meta") for name in ("mean", "std")
                 if name in state}
    check_names(expected, state, path)
    return config, state


def norms(path, config):
    """The features' mean and std for a published checkpoint without them; for rotations, which were
    not normalised, a rest pose: that of assets.smpl_path, or a default. ValueError says where to
    put the files."""
    if config.data.skeleton == "smpl":
        body = config.assets.smpl_path if os.path.exists(config.assets.smpl_path) else None
        return {"rest": torch.tensor(rest_joints(body), dtype=torch.float32)}
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    files = [os.path.join(folder, name) for name in ("Mean.npy", "Std.npy")]
    if all(map(os.path.exists, files)):
        mean, std = (read_array(file, config.data.nfeats) for file in files)
    elif os.path.exists(pack_path(config)):
        pack = Pack.open(pack_path(config))
        mean, std = pack.mean, pack.std
    else:
        raise ValueError(
            f"{path} does not hold the mean and std of its features; put the dataset's Mean.npy "
            "and Std.npy beside it, or pack the dataset (python prepare.py --help).")
    return {"mean": torch.tensor(mean, dtype=torch.float32),
            "std": torch.tensor(std, dtype=torch.float32)}


def read_array(path, size):
    """The `size` numbers in an .npy file. ValueError for anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape == (size,) and array.dtype.kind == "f":
            return np.array(array)
        found = f"an array of shape {array.shape} and type {array.dtype}"
    except (ValueError, EOFError, AttributeError):
        found = "something else"
    raise ValueError(f"{path} should be an .npy file of {size} numbers, but is {found}; get it "
                     "again.")


def check_names(expected, state, path):
    """ValueError, naming the file `path`, unless both state dicts have equal names and shapes, and
    floating-point numbers in the same places."""
    def shape(value):
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            return "no plain tensor"
        return tuple(value.shape)

    def floats(value):
        return value.is_floating_point()

    both = [name for name in expected if name in state]
    wrong = [f"{name} is {shape(state[name])} instead of {shape(expected[name])}"
             for name in both if shape(state[name]) != shape(expected[name])]
    odd = [] if wrong else [f"{name} ({state[name].dtype})" for name in both
                            if floats(state[name]) != floats(expected[name])]
    missing = [name for name in expected if name not in state]
    unknown = [str(name)[:80] for name in state if name not in expected]
    for words, names in (("has weights of other shapes", wrong), ("lacks weights", missing),
                         ("has weights that this network does not have", unknown),
                         ("has weights that are not of its type", odd)):
        if names:
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{path} does not fit: it {words}: {', '.join(names[:3])}{more}.")
