"""Every setting of nanoMLD as plain dataclasses, one per part, and the checks on their values.

The comment behind each field is its help text. Values must have the field's type; an unknown key, a wrong type or an
impossible combination is refused with one sentence (SettingError) before any file is opened. 

Four layers, each winning over the one before it:

    the default in the dataclass  <  a preset        <  an assets file     <  the command line
                                     --config NAME      --cfg_assets FILE     --section.key=value

    python train.py --dataset humanml3d                         the preset that goes with a dataset
    python train.py --config vae_kit --vae.latent_size=7        a preset by name, one number changed
    python train.py --dataset toy --modules novae               other network parts, as one set
    python train.py --dataset toy --recipe paper                the paper's optimiser settings, not ours
    python train.py --help                                      every setting, its default, its meaning
    python config.py [the same flags]                           print the resolved settings and stop
"""
import ast
import contextlib
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin

HERE = os.path.dirname(os.path.abspath(__file__))


class SettingError(ValueError):
    """A setting that cannot be used; the message is one sentence that says which, why, and what is valid."""


# ----------------------------------------------------------------------------------------------------------------------
# The settings, one dataclass per part


@dataclass
class AssetsConfig:
    data_root: str = os.path.join(HERE, "data")  # folder of the packed datasets: data_root/NAME/NAME.pack
    clip_path: str = "deps/clip-vit-large-patch14"  # CLIP text tower: Hugging Face folder, .safetensors, .bin or ViT-L-14.pt
    t2m_path: str = "deps/t2m"  # published T2M evaluators: t2m_path/t2m/text_mot_match/model/finest.tar, and kit/
    glove_path: str = "deps/glove"  # GloVe vectors of the T2M text encoder: our_vab_data.npy, our_vab_words.pkl, our_vab_idx.pkl
    classifier_path: str = "deps/actionrecognition"  # published action classifiers for HumanAct12 and UESTC
    smpl_path: str = "deps/smpl/SMPL_NEUTRAL.pkl"  # SMPL body model (.pkl or .npz): rest skeleton of published action models, if it is there


@dataclass
class DataConfig:
    dataset: str = "toy"  # toy, humanml3d, kit, humanact12, uestc, or the name under which prepare.py packed your own
    skeleton: Literal["t2m", "kit", "smpl"] = "t2m"  # 22 joints (263 features), 21 joints (251), 24 SMPL rotations (150)
    fps: float = 20.0  # frames a second
    min_length: int = 40  # clips with fewer frames are skipped
    max_length: int = 200  # clips with this many frames or more are skipped (HumanML3D keeps 40..199)
    max_frames: int = 196  # longest crop given to the networks
    unit_length: int = 4  # crops are cut to a multiple of this
    balance_actions: bool = False  # stage diffusion of an action model: clips of rare actions come more than once an epoch
    batch_by_length: bool = True  # put clips of similar length into one batch, so that little padding is computed
    workers: int = 0  # processes that prepare batches ahead; 0 = in the training process (the pack is memory-mapped)

    @property
    def nfeats(self):
        return {"t2m": 263, "kit": 251, "smpl": 150}[self.skeleton]


@dataclass
class VAEConfig:
    arch: Literal["encoder_decoder", "all_encoder", "actor", "none"] = "encoder_decoder"  # none = diffusion on frames
    latent_size: int = 1  # N, number of latent tokens
    latent_dim: int = 256  # D, width of the network and of each latent token
    ff_size: int = 1024  # width of the feed-forward layers
    num_layers: int = 9  # layers of the encoder, and of the decoder; odd, because of the skip connections
    num_heads: int = 4  # attention heads
    dropout: float = 0.1  # dropout in every layer while the VAE trains
    attention_dropout: float = 0.1  # dropout on attention probabilities; 0 keeps the fast attention path
    activation: Literal["gelu", "relu"] = "gelu"  # of the feed-forward layers
    normalize_before: bool = False  # pre-norm layers (the published ones are post-norm)
    position_embedding: Literal["learned", "sine"] = "learned"  # positions of frames
    max_positions: int = 500  # rows of the position table: frames plus two latent sets
    mlp_dist: bool = False  # mean and log-variance from one token through a Linear, instead of two sets of tokens
    logvar_bias: float = 0.0  # start of that Linear's log-variance half; -4 starts the posterior narrow
    cosines: int = 0  # > 0: a linear path from frames to latent and back beside the stacks, through that many cosines over time
    cosine_span: int = 200  # frames in the slowest cosine's half period
    recons_loss: Literal["smooth_l1", "mse"] = "smooth_l1"  # reconstruction loss: the code's, or the paper's wording
    joints_loss: Literal["same", "distance"] = "same"  # for joints: that loss too, or their mean distance, which stays steep to the end
    lambda_rec: float = 1.0  # weight of the loss on features
    lambda_joint: float = 1.0  # weight of the same loss on joints recovered from them
    lambda_velocity: float = 0.0  # weight of the mean distance of the joints' steps from frame to frame: still feet, no jitter
    lambda_kl: float = 1e-4  # weight of the KL divergence to the unit Gaussian


@dataclass
class TextEncoderConfig:
    kind: Literal["clip", "scratch"] = "clip"  # the frozen CLIP tower at assets.clip_path, or a small one trained here
    last_hidden_state: bool = False  # condition on every token's hidden state instead of the pooled one
    width: int = 128  # width of the small tower
    layers: int = 2  # layers of the small tower
    heads: int = 4  # attention heads of the small tower
    context_length: int = 77  # longest prompt in tokens, start and end tokens included
    word_dropout: float = 0.1  # share of words that training replaces by the unknown word, so that new words do no harm


@dataclass
class DenoiserConfig:
    condition: Literal["text", "action", "none"] = "text"  # what guides the diffusion
    arch: Literal["trans_enc", "trans_dec"] = "trans_enc"  # condition as tokens beside the latent, or through cross-attention
    skip_connect: bool = True  # long skip connections between mirrored layers
    latent_dim: int = 256  # width; the VAE's latent_dim, where there is a VAE
    ff_size: int = 1024  # width of the feed-forward layers
    num_layers: int = 9  # odd with skip connections
    num_heads: int = 4  # attention heads
    dropout: float = 0.1  # dropout in every layer
    attention_dropout: float = 0.1  # dropout on attention probabilities
    activation: Literal["gelu", "relu"] = "gelu"  # of the feed-forward layers
    normalize_before: bool = False  # pre-norm layers (the published ones are post-norm)
    position_embedding: Literal["learned", "sine"] = "learned"  # positions of tokens
    max_positions: int = 500  # rows of the position table
    text_encoded_dim: int = 768  # width of the text encoder's output (768 for CLIP ViT-L/14)
    num_actions: int = 0  # number of action labels; 0 = as many as the dataset has
    condition_dropout: float = 0.1  # share of training samples whose condition is dropped (classifier-free guidance)
    flip_sin_to_cos: bool = True  # order of the timestep embedding's halves
    freq_shift: float = 0.0  # shift of the timestep embedding's frequencies
    normalize_latents: bool = False  # diffuse latents normalised by the training set's mean and std
    final_linear: bool = False  # a Linear after the last layer norm, which alone cannot change its output's size
    length_token: bool = False  # a token tells the denoiser how long the motion is (the published one is not told)
    mask_padding: bool = True  # diffusion on frames: padded frames are no attention keys (the published code lets them be)


@dataclass
class DiffusionConfig:
    num_train_timesteps: int = 1000  # T, noise levels
    beta_start: float = 0.00085  # variance of the first noise step
    beta_end: float = 0.012  # variance of the last noise step
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"  # how it grows in between
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"  # what the denoiser predicts: noise, x0, or v
    sampler: Literal["ddim", "ddpm", "dpm++"] = "ddim"  # DPM-Solver++(2M) is dpm++
    num_inference_steps: int = 50  # denoising steps of a sample
    eta: float = 0.0  # noise put back in each DDIM step, 0 = deterministic, 1 = as much as DDPM
    guidance_scale: float = 7.5  # s of classifier-free guidance; 1 = off
    guidance_rescale: float = 0.0  # share of the guided prediction's std that is set back to the conditional one's
    clip_sample: bool = False  # clip the predicted x0 to -1..1 in each step (published for HumanAct12 only)


SAMPLING = ("sampler", "num_inference_steps", "eta", "guidance_scale", "guidance_rescale")  # of DiffusionConfig, may differ from training


@dataclass
class EvaluatorConfig:
    kind: Literal["auto", "t2m", "own"] = "auto"  # published T2M evaluator, one trained here, or whichever is present
    embed_dim: int = 512  # width of the shared text-motion space
    width: int = 256  # width of our own evaluator
    layers: int = 4  # layers of our own evaluator


@dataclass
class StageConfig:
    steps: int = 100_000  # optimiser steps
    batch_size: int = 64  # clips per step over all processes
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices by orthogonalised momentum, everything else by AdamW
    lr: float = 2e-4  # peak learning rate
    min_lr_ratio: float = 0.01  # end of the cosine, as a share of lr
    warmup: int = 1000  # steps of linear warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # learning rate after warm-up
    weight_decay: float = 0.01  # AdamW's, on matrices only
    beta2: float = 0.999  # AdamW's second-moment decay
    grad_clip: float = 1.0  # largest gradient norm; 0 = no clipping
    accumulate: int = 1  # micro-batches per step
    ema: float = 0.999  # decay of the weights' moving average, which is what gets sampled; 0 = none


@dataclass
class TrainConfig:
    stage: Literal["all", "vae", "diffusion", "evaluator"] = "all"  # which part to train
    out: str = "out"  # folder for checkpoints, logs and the report: out/NAME
    name: str = ""  # name of the run; empty = the dataset's
    vae_checkpoint: str = ""  # trained VAE for stage diffusion; empty = the one that stage vae left in the run's folder
    seed: int = 1234  # seed of weights, order of clips, crops and noise
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads per process; 0 = torch's choice
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # autocast type; fp16 (with loss scaling) on GPUs only
    compile: bool = False  # torch.compile the training step
    cache_latents: int = 4  # stage diffusion: crops per clip whose posteriors are encoded once; 0 = encode every batch
    log_every: int = 10  # steps between lines of log.jsonl
    eval_every: int = 500  # steps between validations (and checks of the sampled latents)
    save_every: int = 500  # steps between checkpoints
    sample_every: int = 2000  # steps between sample motions rendered to the player; 0 = at the end only


@dataclass
class EvalConfig:
    replications: int = 20  # repetitions behind each confidence interval
    batch_size: int = 32  # motions generated at once
    group: int = 32  # motions among which R-precision ranks a text's own
    diversity_pairs: int = 300  # pairs behind Diversity
    mm_texts: int = 100  # texts behind MultiModality
    mm_samples: int = 30  # motions per text
    mm_pairs: int = 10  # pairs per text
    split: Literal["train", "val", "test"] = "test"  # clips to evaluate on
    seed: int = 1234  # seed of everything drawn
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps


@dataclass
class Config:
    assets: AssetsConfig = field(default_factory=AssetsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    train_vae: StageConfig = field(default_factory=StageConfig)
    train_diffusion: StageConfig = field(default_factory=StageConfig)
    train_evaluator: StageConfig = field(default_factory=StageConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


SECTIONS = {f.name: f.default_factory for f in dataclasses.fields(Config)}
MAY_BE_ZERO = ("workers", "cosines", "num_actions", "warmup", "seed", "threads", "cache_latents", "sample_every")  # whole numbers
ANY_SIGN = ("logvar_bias", "freq_shift")  # no other number may be negative

# ----------------------------------------------------------------------------------------------------------------------
# Changing and checking settings


def convert(value, kind, name):
    """Turn `value` (text from the command line, or a Python literal) into type `kind`; raise SettingError if it is not one."""
    wrong = SettingError(f"{name} must be {describe(kind)}, got {value!r}.")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise wrong
        return value
    if kind is bool:
        table = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in table:
            raise wrong
        return table[str(value).lower()]
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if isinstance(value, bool):
        raise wrong
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise wrong from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise wrong
    return kind(number)


def describe(kind):
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def set_value(config, key, value):
    """Set `section.key` of `config` to `value`, checked against the field's type."""
    section, _, name = key.partition(".")
    known = [f"{s}.{f.name}" for s, cls in SECTIONS.items() for f in dataclasses.fields(cls)]
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.endswith("." + (name or key))]
        raise SettingError(f"Unknown setting {key!r}." + (f" Did you mean {near[0]}?" if near else " See --help for all of them."))
    part = getattr(config, section)
    setattr(part, name, convert(value, inspect.get_annotations(type(part))[name], key))


def pack_path(config):
    """Where the packed dataset of this config lies: data_root/NAME/NAME.pack."""
    return os.path.join(config.assets.data_root, config.data.dataset, config.data.dataset + ".pack")


def validate(config):
    """Raise SettingError for combinations that cannot work; return the config."""
    c = config

    def need(condition, text):
        if not condition:
            raise SettingError(text)

    for section, part in vars(c).items():
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            if f.type in (int, float) and f.name not in ANY_SIGN:
                need(value > 0 or value == 0 and (f.type is float or f.name in MAY_BE_ZERO),
                     f"{section}.{f.name} must {'not be negative' if value < 0 else 'be positive'}, got {value}.")
    tokens = 2  # of the denoiser, beside the latent: noise level and condition
    if c.text.last_hidden_state and c.denoiser.condition == "text":
        tokens = 1 + (77 if c.text.kind == "clip" else c.text.context_length)
    tokens += c.denoiser.length_token
    rows = tokens + (c.vae.latent_size if c.vae.arch != "none" else c.data.max_frames)
    need(rows <= c.denoiser.max_positions,
         f"denoiser.max_positions ({c.denoiser.max_positions}) must hold {tokens} tokens and "
         f"{'vae.latent_size' if c.vae.arch != 'none' else 'data.max_frames'}: {rows} or more.")
    need(c.text.context_length > 2, f"text.context_length must be at least 3, got {c.text.context_length}.")
    stacks = [("denoiser", c.denoiser, c.denoiser.skip_connect)]
    if c.vae.arch != "none":
        stacks.append(("vae", c.vae, c.vae.arch != "actor"))
        need(c.denoiser.latent_dim == c.vae.latent_dim or c.train.stage == "vae",
             f"denoiser.latent_dim is {c.denoiser.latent_dim} but vae.latent_dim is {c.vae.latent_dim}; they must be equal.")
        need(c.vae.latent_size <= 10, f"vae.latent_size must be 1 to 10, got {c.vae.latent_size}.")
        need(c.vae.arch != "actor" or c.vae.latent_size == 1, "The ACTOR-style VAE has one latent token; set vae.latent_size=1.")
        need(c.data.max_frames + 2 * c.vae.latent_size <= c.vae.max_positions,
             f"vae.max_positions ({c.vae.max_positions}) must hold data.max_frames ({c.data.max_frames}) and 2 x vae.latent_size.")
        need(not c.vae.cosines or c.data.max_frames <= c.vae.cosine_span,
             f"vae.cosine_span ({c.vae.cosine_span}) must hold data.max_frames ({c.data.max_frames}).")
    else:
        need(c.train.stage != "vae", "train.stage is vae, but vae.arch is none: there is no VAE to train.")
        need(not c.train.cache_latents, "train.cache_latents needs a VAE; set train.cache_latents=0 with vae.arch none.")
    for name, part, skips in stacks:
        need(not skips or part.num_layers % 2 == 1, f"{name}.num_layers must be odd for the skip connections, got {part.num_layers}.")
        need(part.latent_dim % part.num_heads == 0, f"{name}.num_heads ({part.num_heads}) must divide {name}.latent_dim ({part.latent_dim}).")
        need(part.latent_dim % 2 == 0, f"{name}.latent_dim must be even, got {part.latent_dim}.")
        need(part.dropout < 1 and part.attention_dropout < 1, f"{name}.dropout and {name}.attention_dropout must be in 0..1.")
    need(c.text.width % c.text.heads == 0, f"text.heads ({c.text.heads}) must divide text.width ({c.text.width}).")
    need(c.text.word_dropout < 1 and c.denoiser.condition_dropout <= 1, "text.word_dropout and denoiser.condition_dropout must be in 0..1.")
    need(c.text.kind != "scratch" or c.denoiser.condition != "text" or c.denoiser.text_encoded_dim == c.text.width,
         f"denoiser.text_encoded_dim ({c.denoiser.text_encoded_dim}) must equal text.width ({c.text.width}) for the small text tower.")
    need(c.data.min_length < c.data.max_length, f"data.min_length ({c.data.min_length}) must be below data.max_length ({c.data.max_length}).")
    need(c.data.unit_length <= c.data.min_length, f"data.unit_length must be 1 to data.min_length, got {c.data.unit_length}.")
    need(c.data.max_frames % c.data.unit_length == 0, f"data.max_frames ({c.data.max_frames}) must be a multiple of data.unit_length ({c.data.unit_length}).")
    need(c.data.fps > 0, f"data.fps must be positive, got {c.data.fps}.")
    d = c.diffusion
    need(0 < d.beta_start < d.beta_end < 1, f"diffusion.beta_start ({d.beta_start}) and beta_end ({d.beta_end}) must grow within 0..1.")
    need(d.num_inference_steps <= d.num_train_timesteps,
         f"diffusion.num_inference_steps must be 1 to diffusion.num_train_timesteps ({d.num_train_timesteps}), got {d.num_inference_steps}.")
    need(d.guidance_rescale <= 1 and d.eta <= 1, "diffusion.guidance_rescale and diffusion.eta must be in 0..1.")
    need(c.evaluator.width % 4 == 0, f"evaluator.width must be a multiple of 4, got {c.evaluator.width}.")
    for name in ("train_vae", "train_diffusion", "train_evaluator"):
        s = getattr(c, name)
        need(s.lr > 0, f"{name}.lr must be positive.")
        need(s.batch_size % s.accumulate == 0, f"{name}.accumulate ({s.accumulate}) must divide {name}.batch_size ({s.batch_size}).")
        need(s.ema < 1 and s.beta2 < 1, f"{name}.ema and {name}.beta2 must be in 0..1.")
    return c


# ----------------------------------------------------------------------------------------------------------------------
# Config <-> plain data, and the one way files are written


def to_dict(config):
    """Config -> {section: {key: value}}, plain data fit for JSON and for checkpoints."""
    return dataclasses.asdict(config)


def from_dict(data):
    """Inverse of to_dict, with every key and type checked: a checkpoint of another version is refused, not guessed at."""
    config = Config()
    for section, values in data.items():
        for key, value in values.items():
            set_value(config, f"{section}.{key}", value)
    return validate(config)


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """`with atomic_write(path) as f`: the file appears under its name whole, or not at all (an old one stays as it was)."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write.")
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=os.path.basename(path) + ".", suffix=".part")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise

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
            raise SettingError(f"config.py takes flags only, found {words[0]!r}; see --help.")
        print(json.dumps(to_dict(config), indent=2))
    except SettingError as error:
        sys.exit(f"error: {error}")
