"""Our own checkpoints, and load_model for anybody's.

    save("out/toy/vae.pt", config, model.state_dict(), step=100)  whole, or not at all
    load("out/toy/vae.pt")           {"config": Config, "model": state dict, "step": 100}
    load_model(path)                 MLD, ready for generate(), from a model.pt of train.py or from
                                     published weights (published.py)

    python checkpoint.py halve out/toy/model.pt checkpoints/toy.pt   for a file of a third

Nothing in a file is ever run: formats/safe_pickle.py reads tensors and plain data only. A checksum
over all of them is verified at loading, and the sizes that the settings declare are compared with
the weights before a network is built.
"""
import dataclasses
import hashlib
import io
import math
import os
import re
import sys
import zlib

import torch
from torch.overrides import TorchFunctionMode

from clip import WordEncoder
from config import AssetsConfig, SettingError, from_dict, get_value, to_dict
from files import atomic_write
from formats.safe_pickle import load_torch
from kernels.few_rows import to_int8
from mld import MLD
from published import check_names, norms, read_published
from published_clip import finite, load_clip
from words import vectors

# --------------------------------------------------------------------------------------------------
# Our own format: a torch file of one dict of tensors and plain data

FORMAT, VERSION = "nanoMLD checkpoint", 3  # 1 had no checksum, 2 no weights of 8 bits
SCALE = ".int8_scale"  # the factors, one a row, of a matrix of 8-bit numbers
LARGE = 2**13  # numbers of a matrix; halve makes such matrices of
MATRICES = "weight", "latent_in", "latent_out", ".pe", "positional_embedding"
TIMES, SPARE = 20, 2**20  # memory that a file may ask for: bytes for each of its own, and for any
DEEPEST = 20  # how deeply dicts and lists may be nested
# what a checkpoint may hold: the kind of each entry, and of what is in it
ENTRIES = {
    "config": (dict, dict), "model": (dict, torch.Tensor), "vocabulary": (list, str),
    "actions": (list, str), "judge": (bool, None), "run": (str, None), "pack": (str, None),
    "vae": (str, None), "init": (str, None), "vectors": (str, None), "step": (int, None),
    "best": ((int, float), None),
    "ema": (list, torch.Tensor), "optimizers": (list, dict), "scaler": (dict, None),
    "since": (dict, None), "norms": (list, torch.Tensor),
}


def save(path, config, model, **training_state):
    """Write a checkpoint atomically: the Config, the state dict `model`, and whatever else training
    needs to go on: tensors and plain data. (TypeError for anything else, which could be written
    but not read.) `vocabulary` is for the words of a WordEncoder.

    Left out are CLIP's weights, which come from assets.clip_path, and the settings that are paths
    of this machine: whoever loads the file has other ones."""
    if config.text.kind == "clip":
        model = {name: value for name, value in model.items()
                 if not name.startswith("text_encoder.")}
    data = {"format": FORMAT, "version": VERSION, "config": portable(config), "model": model}
    data |= training_state
    if reads_vectors(model):
        data["vectors"] = vectors().digest
    data["checksum"] = checksum(data)
    whole = io.BytesIO()  # torch.save to a full disk raises a RuntimeError that does not say so
    torch.save(data, whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def reads_vectors(model):
    """Whether a state dict has a text tower that reads word_vectors.bin (words.py)."""
    return "text_encoder.tower.token_embedding.project.weight" in model


def portable(config):
    """The settings as plain data, without those that are paths of this machine."""
    settings = to_dict(config)
    del settings["assets"]
    for name in ("out", "vae_checkpoint", "init_from"):
        del settings["train"][name]
    return settings


def checksum(data, most=math.inf):
    """CRC-32 of tensors and plain data, at several GB/s. TypeError for anything else, ValueError
    for more than `most` bytes."""
    total, spent = 0, 0
    for piece in pieces(data):
        spent += len(piece) + 100  # lists in lists may tell of the same things over and over
        if spent > most:
            raise ValueError(f"it would grow to more than {TIMES} times its size")
        total = zlib.crc32(piece, total)
    return total


def pieces(data, name="checkpoint", depth=0):
    """All bytes that tell nested dicts and lists of tensors and plain data from any others."""
    if isinstance(data, torch.Tensor) and data.layout == torch.strided:
        numbers = data.detach()
        if numbers.nbytes > numbers.untyped_storage().nbytes():  # strides of 0 repeat a number
            raise TypeError(f"{name} is a tensor that shows its numbers more than once")
        yield f"{numbers.dtype} {tuple(numbers.shape)}".encode()
        yield numbers.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    elif type(data) in (str, int, float, bool, type(None)):
        yield repr(data).encode()
    elif isinstance(data, (dict, list, tuple)) and depth < DEEPEST:
        yield f"{len(data)} {'dict' if isinstance(data, dict) else 'list'}".encode()
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from pieces(key, f"a key of {name}", DEEPEST)
            yield from pieces(value, f"{name}[{key!r}]", depth + 1)
    else:
        raise TypeError(f"{name} is a {type(data).__name__}; a checkpoint holds tensors and plain "
                        "data only")


def load(path):
    """Read a checkpoint that `save` wrote: its dict, with "config" as a Config (paths: our
    defaults) and tensors on the CPU. ValueError in one sentence for a file that is cut short,
    damaged, not ours, or of another version."""
    return check(path, read(path))


def read(path):
    """What a torch file holds. ValueError or FileNotFoundError in one sentence."""
    try:
        check_listed(path)
        return load_torch(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint {path}.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error.strerror}.") from None


def check_listed(path):
    """ValueError for a file that differs from its line in the SHA256SUMS beside it: so the weights
    that ship, which were written before checkpoints had a checksum, are checked as well."""
    sums = os.path.join(os.path.dirname(path), "SHA256SUMS")
    if not os.path.isfile(sums):
        return
    with open(sums, encoding="utf-8") as file:
        listed = dict(reversed(line.split()) for line in file if len(line.split()) == 2)
    wanted = listed.get(os.path.basename(path))
    if wanted:
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != wanted:
                raise ValueError(f"{path} is damaged: it is not the file that {sums} lists; get it "
                                 "again.")


def is_ours(data):
    name = data.get("format") if isinstance(data, dict) else None
    return isinstance(name, str) and name == FORMAT


def check(path, data):
    """The checkpoint `data`, read from `path`, if it is ours and whole; see `load`."""
    if not is_ours(data):
        raise ValueError(f"{path} is a torch file, but no nanoMLD checkpoint.")
    version, told = data.get("version"), data.pop("checksum", None)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"{path} is a nanoMLD checkpoint of version {str(version)[:20]}; this "
                         f"code reads versions 1 to {VERSION}.")
    try:
        found = checksum(data, TIMES * os.path.getsize(path) + SPARE)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole nanoMLD checkpoint: {str(error)[:200]}.") from None
    if told != found and not (told is None and version == 1):
        raise ValueError(f"{path} is damaged: its checksum does not match its contents; get or "
                         "make it again.")
    for name, (kind, inner) in ENTRIES.items():
        value = data.get(name)
        if value is None and name not in ("config", "model"):
            continue
        fits, inside = isinstance(value, kind), value
        if fits and kind is dict:
            fits, inside = all(isinstance(key, str) for key in value), value.values()
        if not fits or inner and not all(isinstance(x, inner) for x in inside):
            raise ValueError(f"{path} is not a whole nanoMLD checkpoint: its entry {name!r} is "
                             "missing or of another kind.")
    try:
        data["config"] = from_dict(data["config"])
    except SettingError as error:
        raise ValueError(f"{path} was written by another version of nanoMLD, or is damaged: "
                         f"{error}") from None
    if reads_vectors(data["model"]) and data.get("vectors") != vectors().digest:
        raise ValueError(f"{path} was trained with other word vectors than those of this version "
                         "of nanoMLD (word_vectors.bin): take that version, or train again.")
    data["model"] = whole_matrices(path, data["model"])
    return {name: own(value) for name, value in data.items()}


def whole_matrices(path, state):
    """A state dict with each pair that `halve` made of a matrix as a matrix again. ValueError for
    half a pair."""
    for name in [name for name in state if name.endswith(SCALE)]:
        scale, numbers = state.pop(name), state.get(name[:-len(SCALE)])
        if numbers is None or numbers.dtype != torch.int8 or scale.shape != numbers.shape[:1]:
            raise ValueError(f"{path} is not a whole nanoMLD checkpoint: {name} does not fit the "
                             "matrix that it belongs to.")
        state[name[:-len(SCALE)]] = numbers * scale[:, None].float()
    return state


def own(data):
    """The same with copies of the tensors: what is read is mapped from a file that may change."""
    if isinstance(data, torch.Tensor):
        return data.clone()
    if isinstance(data, dict):
        return {key: own(value) for key, value in data.items()}
    return type(data)(map(own, data)) if isinstance(data, (list, tuple)) else data


DEVICES = "cpu", "cuda", "mps", "xpu"


def find_device(name, local=0):
    """auto, cpu, cuda, cuda:1, mps -> torch.device. `cuda` alone is the GPU of this process, number
    `local` of its machine. ValueError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda":  # several processes may share a card
            name = f"cuda:{local % max(1, torch.cuda.device_count())}"
        if name.split(":")[0] not in DEVICES:
            raise RuntimeError(f"expected auto or one of {', '.join(DEVICES)}")
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {name} cannot be used here ({reason}); cpu always can.") \
            from None
    return device


def processes():
    """(rank, world, local rank) of this process, which torchrun sets. ValueError for numbers that
    cannot be."""
    found = []
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, str(default))
        least = int(name == "WORLD_SIZE")
        if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < least:
            raise ValueError(f"The environment says {name}={text[:20]!r}, expected a whole number "
                             f"from {least} on; torchrun sets it, and alone it is best unset.")
        found.append(int(text))
    rank, world, local = found
    if rank >= world:
        raise ValueError(f"The environment says RANK={rank}, which must be below WORLD_SIZE="
                         f"{world}; torchrun sets both, and alone they are best unset.")
    return rank, world, local


def load_model(path, assets=None, device="cpu", clip=True):
    """MLD in eval mode, ready for generate(), from our own checkpoint of a finished model, from
    published weights, or from a word of formats/hub.py, which fetches them. Its `actions` are the
    names of the action labels, in their order.

    assets  AssetsConfig with this machine's paths; None = our defaults
    clip    whether a model that needs CLIP gets it; without, it has no text encoder
    FileNotFoundError or ValueError in one sentence if there is no checkpoint, if it is cut short or
    of another kind, if its weights do not fit, or if CLIP's weights are missing.
    """
    if not os.path.exists(path):
        path, assets = fetched(path, assets or AssetsConfig(), clip)
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    data = {}
    if not os.path.isdir(path) and not str(path).endswith(".safetensors"):
        data = read(path)
    ours = is_ours(data)
    if ours:
        data = check(path, data)
        config, state = data["config"], data["model"]
        if data.get("judge"):
            raise ValueError(f"{path} is an evaluator, not a model that makes motions: eval.py "
                             "takes it by --evaluator.")
    else:
        data, (config, state) = {}, read_published(path)
    config.assets = assets or config.assets
    if not ours and "mean" not in state:
        state |= norms(path, config)
    with_text, from_clip = config.denoiser.condition == "text", config.text.kind == "clip"
    if with_text and not from_clip and data.get("vocabulary") is None:
        raise ValueError(f"{path} lacks the vocabulary of its text tower; is it a stage's "
                         "checkpoint, not the finished model?")

    def make():
        own_words = with_text and not from_clip
        model = MLD(config, WordEncoder(config.text, data["vocabulary"]) if own_words else None)
        if not any(name.startswith("length_estimator.") for name in state):
            model.length_estimator = None
        return model

    # a published file has only what the published model has
    others = ("length_estimator.", "mean", "std", "rest", "latent_")
    model = fitted(make, config, state, path, () if ours else others,
                   data.get("vocabulary"))
    if with_text and from_clip and clip:
        model.text_encoder = load_clip(config.assets.clip_path, config.text.last_hidden_state)
    # published files have no names of actions
    model.actions = data.get("actions") or list(map(str, range(config.denoiser.num_actions)))
    return model.to(device).eval()


def fetched(word, assets, clip=True):
    """Where a word's published weights are now, and the assets with the path of their CLIP. Whoever
    has CLIP already, or named a place for it, keeps that one."""
    from formats import hub  # here, since most never download

    if word not in hub.WORDS:
        return word, assets
    own_clip = assets.clip_path != AssetsConfig.clip_path or os.path.exists(assets.clip_path)
    path, clip = hub.fetch(word, assets.cache, assets.lock, assets.clip_dtype, assets.offline,
                           clip=clip and not own_clip)
    return path, dataclasses.replace(assets, clip_path=clip or assets.clip_path)


def fitted(make, config, state, path, optional=(), words=(), judge=False):
    """make(), a network with these settings and these words, with the weights `state`. ValueError
    as in `fill`, before much memory is taken for it: where its settings may ask for too much, the
    network is first made without, on the meta device."""
    for key in ("vae.num_layers", "denoiser.num_layers", "text.layers", "evaluator.layers"):
        if get_value(config, key) > len(state):
            raise ValueError(f"{path} does not fit: {key} is {get_value(config, key)}, but it has "
                             f"no more than {len(state)} weights.")
    given = sum(value.nbytes for value in state.values())
    most = TIMES * given + SPARE
    if 4 * at_most(config, len(words or ()), judge) > most:  # rare: it takes a second
        with torch.device("meta"):
            plan = make()
        check_names(wanted(plan, state, optional), state, path)
        size = sum(value.nbytes for value in (*plan.parameters(), *plan.buffers()))
        if size > most:
            raise ValueError(f"{path} does not fit: its settings ask for {size / 1e6:.0f} MB, but "
                             f"it holds {given / 1e6:.1f} MB of weights.")
    with Undrawn():
        made = make()
    return fill(made, state, path, optional)


def at_most(config, words, judge=False):
    """More numbers than a network with these settings and so many words can have: a bound that is
    quickly had, and one and a half to four times what most have."""
    d, v, n, t, e = (getattr(config, name) for name in
                     ("data", "vae", "denoiser", "text", "evaluator"))

    def stack(layers, width, hidden, rows, others):
        """Layers with cross-attention, positions, and matrices to and from `others` numbers."""
        layer = 10 * width * width + 2 * width * hidden + 20 * width + 2 * hidden
        return (layers + 1) * layer + width * (2 * rows + 3 * others)

    def text(width):
        vectors = 16 * (words + 40_000) * t.vectors  # of 8 bits
        return vectors + stack(t.layers, width, 4 * width, t.context_length,
                               words + n.text_encoded_dim + 200)

    features, latent = 2 * d.nfeats, v.latent_size * v.latent_dim
    if judge:
        return text(e.width) + stack(e.layers, e.width, 4 * e.width, 1024,
                                     3 * features + e.embed_dim + words) + 10 * features
    numbers = 2 * stack(v.num_layers, v.latent_dim, v.ff_size, v.max_positions, features)
    numbers += v.cosines * (v.max_positions + (latent + 1) * v.latent_dim)
    given = n.text_encoded_dim + n.num_actions
    if n.arch == "modulated":
        D, W, F = n.latent_dim, n.modulated_dim, n.ff_size
        numbers += D * (10 * D + 20 + 2 * given) + W * (2 * latent + 2 * D + 10)
        numbers += n.num_layers * (2 * F * (W + D + 3) + 3 * W) + 4 * latent
    else:
        numbers += stack(n.num_layers, n.latent_dim, n.ff_size, n.max_positions, features + given)
    numbers += 2 * latent * (2 + n.principal * n.latent_dim)
    numbers += 200 * (n.text_encoded_dim + n.latent_dim + d.max_frames + 10)  # of lengths
    return numbers + (text(t.width) if t.kind == "scratch" else 0) + 10 * features


class Undrawn(TorchFunctionMode):
    """Networks are made without random weights, for those of a file to take their place."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name in ("normal_", "uniform_", "xavier_uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return (torch.empty if name in ("rand", "randn") else function)(*args, **kwargs)


def wanted(model, state, optional=()):
    """The weights of a model, without those that may be missing from the state dict and are."""
    return {name: value for name, value in model.state_dict().items()
            if name in state or not name.startswith(tuple(optional))}


SPREADS = "std", "latent_std", "denoiser.modulated.spread"


def fill(model, state, path, optional=()):
    """The model with the weights `state`, all or nothing. ValueError, naming the file `path` and
    the weights, if names or shapes do not fit, or numbers are not finite; names that begin with
    one of `optional` may be missing."""
    check_names(wanted(model, state, optional), state, path)
    for name, value in state.items():
        spread = name in SPREADS
        if not finite(value) or spread and value.min() <= 0:
            raise ValueError(f"{path} does not fit: the numbers of {name} must be finite"
                             + " and positive" * spread + "; get or make it again.")
    model.load_state_dict(state, strict=False)
    return model


def weights_digest(module):
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------


def halve(source, target):
    """Write our finished model or evaluator `source` to `target` with its large matrices in 8 bits
    and a factor for each row, the rest in float16; loading casts them back. The mean and std of
    features and of latents stay exact."""
    data = load(source)
    if "mean" not in data["model"] and "judge" not in data:
        raise ValueError(f"{source} is no finished model: expected the model.pt, or the "
                         "evaluator_model.pt, of a run.")
    exact = ("mean", "latent_mean", *SPREADS)
    state = {name: value.half() if value.is_floating_point() and name not in exact else value
             for name, value in data["model"].items()}
    for name, value in data["model"].items():
        if value.dim() == 2 and value.numel() >= LARGE and name.endswith(MATRICES):
            numbers, scale = to_int8(value.float())
            state[name], state[name + SCALE] = numbers, scale.half()
    kept = {name: data[name] for name in ("vocabulary", "actions", "judge") if name in data}
    save(target, data["config"], state, **kept)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "halve":
        usage = "usage: python checkpoint.py halve MODEL.pt SMALLER.pt"
        sys.exit(print(usage) if sys.argv[1:] == ["--help"] else usage)
    try:
        halve(*sys.argv[2:])
        print(f"{sys.argv[3]}: {os.path.getsize(sys.argv[3]) / 2**20:.1f} MB")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
