"""CLIP's published weights, from the Hugging Face hub or from OpenAI -> clip.CLIPTextEncoder.

    encoder = load_clip("deps/clip-vit-large-patch14")     # a folder, or one file
"""
import json
import os
import re

import torch

from clip import CLIPTextEncoder, TextTower
from formats import safe_pickle

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "ViT-L-14.pt")
HOW = ("Get config.json and model.safetensors (or pytorch_model.bin) of "
       "openai/clip-vit-large-patch14 from the Hugging Face hub, or OpenAI's ViT-L-14.pt, and put "
       "them there, or point to another place with --assets.clip_path=PATH.")

# (pattern of a published name, our name); what no pattern matches is not part of the text tower
HF_LAYER, LAYER = r"text_model\.encoder\.layers\.(\d+)\.", r"transformer.layers.\1."
HUGGING_FACE = [
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (HF_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", LAYER + r"self_attn.in_proj_\3.\2"),
    (HF_LAYER + r"self_attn\.out_proj\.(weight|bias)", LAYER + r"self_attn.out_proj.\2"),
    (HF_LAYER + r"layer_norm([12])\.(weight|bias)", LAYER + r"norm\2.\3"),
    (HF_LAYER + r"mlp\.fc([12])\.(weight|bias)", LAYER + r"linear\2.\3"),
    (r"text_model\.final_layer_norm\.(weight|bias)", r"transformer.norm.\1"),
    (r"text_projection\.weight", "text_projection.weight"),
]
OPENAI_LAYER = r"transformer\.resblocks\.(\d+)\."
OPENAI = [
    (r"token_embedding\.weight", "token_embedding.weight"),
    (r"positional_embedding", "positional_embedding"),
    (OPENAI_LAYER + r"attn\.in_proj_(weight|bias)", LAYER + r"self_attn.in_proj_\2"),
    (OPENAI_LAYER + r"attn\.out_proj\.(weight|bias)", LAYER + r"self_attn.out_proj.\2"),
    (OPENAI_LAYER + r"ln_([12])\.(weight|bias)", LAYER + r"norm\2.\3"),
    (OPENAI_LAYER + r"mlp\.c_fc\.(weight|bias)", LAYER + r"linear1.\2"),
    (OPENAI_LAYER + r"mlp\.c_proj\.(weight|bias)", LAYER + r"linear2.\2"),
    (r"ln_final\.(weight|bias)", r"transformer.norm.\1"),
    (r"text_projection", "text_projection.weight"),
]


def rename(tensors):
    """Published tensors of either naming -> ours, in float32.

    Everything else in them (the image tower) is not even read."""
    hugging_face = any(name.startswith("text_model.") for name in tensors)
    table, found = HUGGING_FACE if hugging_face else OPENAI, {}
    for name, tensor in tensors.items():
        for pattern, ours in table:
            if match := re.fullmatch(pattern, name):
                if not tensor.is_floating_point():
                    raise ValueError(f"{name} holds {tensor.dtype}, not floating-point numbers")
                if name == "text_projection":  # OpenAI multiplies from the left
                    tensor = tensor.T
                found[match.expand(ours)] = tensor.float().contiguous()
                break
    for name in [n for n in found if n.endswith(".q")]:  # three projections -> one product
        parts = [found.pop(name[:-1] + part) for part in "qkv"]
        found[name[:-2]] = torch.cat(parts)
    return found


def build_tower(tensors, heads=None, activation="quick_gelu"):
    """TextTower with these weights (under our names), from which its sizes are read.

    heads: where it is not known, width / 64, as in every published CLIP."""
    vocab_size, width = tensors["token_embedding.weight"].shape
    norm1 = re.compile(r"transformer\.layers\.\d+\.norm1\.weight")
    layers = sum(1 for name in tensors if norm1.fullmatch(name))
    embed_dim = tensors["text_projection.weight"].shape[0]
    with torch.device("meta"):
        tower = TextTower(vocab_size, width, layers, heads or max(1, width // 64), embed_dim,
                          len(tensors["positional_embedding"]), activation)
    tower.load_state_dict(tensors, assign=True)
    return tower


def read_json(path):
    """The dict in a JSON file. ValueError for anything else."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON: {str(error)[:100]}; get it again.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not JSON with settings, but a {type(data).__name__}; get it "
                         "again.")
    return data


def finite(value):
    """Whether no number of a tensor is NaN or infinite; the least and the largest tell."""
    return not value.numel() or bool(torch.stack(value.float().aminmax()).isfinite().all())


def tensors_of(data, file):
    """{dotted name: tensor} of what is read from the file. ValueError for dicts without end."""
    try:
        return safe_pickle.named_tensors(data)
    except (ValueError, RecursionError):
        raise ValueError(f"{file} holds dicts that are nested without end; get it again.") from None


def read_tensors(file):
    """{published name: tensor} of a weights file, or of the several files that an index names."""
    if file.endswith(".index.json"):
        places = read_json(file).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
            raise ValueError(f"{file} has no weight_map from names to files; get it again.")
        names = {os.path.basename(name) for name in places.values()}
        shards = [os.path.join(os.path.dirname(file), name) for name in sorted(names)]
        return {k: v for shard in shards for k, v in safe_pickle.load_safetensors(shard).items()}
    if file.endswith(".safetensors"):
        return safe_pickle.load_safetensors(file)
    return tensors_of(safe_pickle.load_torch(file), file)


def load_clip(path, last_hidden_state=False):
    """CLIPTextEncoder from published weights; only the text tower is read.

    path: a Hugging Face folder (config.json with model.safetensors, in one file or several, or
    with pytorch_model.bin), one such file, or OpenAI's ViT-L-14.pt. Nothing in the file is run.
    FileNotFoundError says what to get, ValueError what is wrong with a file."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"CLIP's weights are not at {path}. {HOW}")
    heads, activation, file = None, "quick_gelu", path
    if os.path.isdir(path):
        file = next((f for name in FILES if os.path.exists(f := os.path.join(path, name))), None)
        if file is None:
            raise FileNotFoundError(f"{path} holds no model.safetensors, pytorch_model.bin or "
                                    f"ViT-L-14.pt. {HOW}")
        if os.path.exists(settings := os.path.join(path, "config.json")):
            settings = read_json(settings)
            nested = settings.get("text_config")
            settings = nested if isinstance(nested, dict) else settings
            heads = settings.get("num_attention_heads")
            activation = settings.get("hidden_act", activation)
            if not isinstance(heads, (int, type(None))) or not 0 < (heads or 1) <= 1024:
                raise ValueError(f"{path}/config.json says num_attention_heads={str(heads)[:20]}, "
                                 "expected a positive whole number; get it again.")
    published = read_tensors(file)
    try:
        tensors = rename(published)
        tower = build_tower(tensors, heads, activation)
        if not all(map(finite, tensors.values())):
            raise ValueError("its weights are not all finite numbers")
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not hold a whole CLIP text tower ({reason}). "
                         f"{HOW}") from None
    return CLIPTextEncoder(tower, last_hidden_state)
