"""Fine-tuning: a training that starts from a trained model instead of random weights.

    python train.py --dataset mine --init_from checkpoints/toy.pt
    python train.py --dataset mine --init_from humanml3d          from published weights

The model's networks carry over, with their sizes and the noise process they were trained with, and
so do its vocabulary, its actions, the mean and std of its features and those of its latents: what
it knew, it still knows. New words and new actions get rows of their own behind the old ones. Only
the optimisers start anew, with fewer steps at a lower rate, which any flag still changes.
"""
import functools

import numpy as np
import torch

from checkpoint import load_model, weights_digest
from config import FIELDS, SettingError, get_value
from words import extended

SIZES = ("vae", "text", "denoiser", "diffusion")  # sections that carry over whole
CLIPS = ("data.skeleton", "data.fps", "data.max_frames", "data.unit_length")
# a few hundred steps, at a fraction of the rate that the model was trained with
STEPS = {"train_vae.steps": 400, "train_diffusion.steps": 800, "train.eval_every": 100}
RATE, WARMUP = 0.2, 50
# tables of one row per word or action, which may grow
WORDS, ACTIONS = "text_encoder.tower.token_embedding.weight", "denoiser.emb_proj.weight"


@functools.lru_cache(1)
def trained(path):
    """The model to start from. FileNotFoundError or ValueError as load_model."""
    return load_model(path, clip=False)


def settings(path):
    """{"section.key": value}: what carries over of the model's settings, and how it is trained."""
    config = trained(path).config
    if config.diffusion.built_in_guidance:
        raise SettingError(f"{path} is a student of train.py --stage distill, and training cannot "
                           "go on from one: --init_from takes the model that it was made of.")
    found = {key: get_value(config, key) for key in FIELDS
             if key in CLIPS or key.split(".")[0] in (*SIZES, "train_vae", "train_diffusion")}
    for stage in ("train_vae", "train_diffusion"):
        found[f"{stage}.lr"] *= RATE
        found[f"{stage}.warmup"] = WARMUP
        found[f"{stage}.accumulate"] = 1
    return found | STEPS | {"denoiser.num_actions": 0,  # as many as there are then
                            "train_diffusion.freeze_text": False,  # new words are to be learnt
                            "vae.sharpen_from": 0.0}  # the movements are learnt already


def adopt(pack, path):
    """Make the pack speak the model's language: features are normalised as the model's were, and
    labels are numbers of its actions, with the pack's own new ones behind them. Only the open pack
    is changed, not its file. Returns the digest of the model.

    ValueError for clips of another kind."""
    model = trained(path)
    c = model.config.data
    if (pack.skeleton, pack.fps) != (c.skeleton, c.fps):
        raise ValueError(f"{path} was trained on the {c.skeleton} skeleton at {c.fps:g} fps, but "
                         f"{pack.path} holds {pack.skeleton} at {pack.fps:g}: pack the clips at "
                         "that rate, or start from another model.")
    pack.mean, pack.std = (x.cpu().numpy().copy() for x in (model.mean, model.std))
    if model.config.denoiser.condition == "action":
        names = model.actions + [name for name in pack.actions if name not in model.actions]
        number = np.array([names.index(name) for name in pack.actions] + [-1])
        pack.labels, pack.actions = number[pack.labels].astype(pack.labels.dtype), names
    return weights_digest(model)


def vocabulary(path, words):
    """The model's words in their order, and the new ones of `words` behind them."""
    return longer(trained(path), words)[1]


def longer(source, words):
    """The rows of the words that a trained model knows, and its vocabulary, with new `words`."""
    return extended(source.state_dict()[WORDS], source.text_encoder.vocabulary, words,
                    source.config.text.vectors)


def start(model, path):
    """Give a new model the trained one's weights; rows of new actions stay as they are. A denoiser
    of another arch keeps its own, and then this is True.
    SettingError, naming the setting, if sizes differ."""
    source = trained(path)
    archs = {m.config.denoiser.arch for m in (source, model)}
    anew = len(archs) > 1 and model.config.train.stage != "distill"
    for key in FIELDS:
        section, name = key.split(".")
        free = name in ("num_actions", "sharpen_from") or name.startswith("lambda")
        free = free or "dropout" in name or name.endswith("loss")  # change no shape
        if section in ("vae", "text", "denoiser")[:2 if anew else 3] and not free:
            was, now = get_value(source.config, key), get_value(model.config, key)
            if was != now:
                raise SettingError(f"{path} has {key}={was}, but {now} was asked for: a model "
                                   "keeps its sizes when training goes on from it.")
    if source.length_estimator is None and model.config.train.stage == "distill":
        model.length_estimator = None  # nobody would train it
    own, given = model.state_dict(), source.state_dict()
    if model.text_encoder is None:  # the stage of the VAE has none
        given = {name: value for name, value in given.items()
                 if not name.startswith("text_encoder.")}
    elif WORDS in given and hasattr(source.text_encoder, "vocabulary"):
        given[WORDS] = longer(source, model.text_encoder.vocabulary)[0]
    if anew:
        given = {name: value for name, value in given.items()
                 if not name.startswith(("denoiser.", "latent_"))}
    with torch.no_grad():
        for name, value in given.items():
            if own[name].shape != value.shape and name != ACTIONS:
                raise ValueError(f"{path} does not fit: {name} is {tuple(value.shape)}, expected "
                                 f"{tuple(own[name].shape)}.")
            own[name][:len(value)].copy_(value) if value.dim() else own[name].copy_(value)
    return anew
