"""Every setting of nanoMLD.

The settings are plain dataclasses, one per part; the comment beside or above a field is its help
text. An unknown key, a value of the wrong type or an impossible combination is refused in one
sentence (SettingError) before any file is opened. presets.py has tables of values, and flags.py the
command line, which says in which order all of these win.
"""
import contextlib
import dataclasses
import difflib
import math
import os
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

HERE = os.path.dirname(os.path.abspath(__file__))


class SettingError(ValueError):
    """A setting that cannot be used; the message says in one sentence which, why, and what is."""


# --------------------------------------------------------------------------------------------------
# The settings, one dataclass per part


@dataclass
class AssetsConfig:
    data_root: str = os.path.join(HERE, "data")  # folder of packed datasets, NAME/NAME.pack in it
    clip_path: str = "deps/clip-vit-large-patch14"  # CLIP: hub folder, .safetensors, .bin, .pt
    t2m_path: str = "deps/t2m"  # T2M evaluators: t2m_path/(t2m|kit)/text_mot_match/model/finest.tar
    glove_path: str = "deps/glove"  # GloVe of the T2M text encoder: our_vab_{data.npy,words.pkl,..}
    classifier_path: str = "deps/actionrecognition"  # published classifiers: HumanAct12, UESTC
    smpl_path: str = "deps/smpl/SMPL_NEUTRAL.pkl"  # optional SMPL body (.pkl or .npz): rest pose
    cache: str = ""  # folder for weights that are fetched; empty = $XDG_CACHE_HOME/nanomld
    lock: str = ""  # lock file to share: the commits and digests that fetched weights must have
    clip_dtype: Literal["float32", "float16"] = "float32"  # of CLIP as fetched: exact, or half
    offline: bool = False  # fetch nothing


@dataclass
class DataConfig:
    dataset: str = "toy"  # a published one, or the name that prepare.py packed your own under
    skeleton: Literal["t2m", "kit", "smpl"] = "t2m"  # 263, 251 or 150 features per frame
    fps: float = 20.0  # frames per second
    min_length: int = 40  # clips with fewer frames are skipped
    max_length: int = 200  # clips with this many frames or more are skipped
    max_frames: int = 196  # longest crop given to the networks
    unit_length: int = 4  # crops are cut to a multiple of this
    balance_actions: bool = False  # action models: repeat clips of rare actions within an epoch
    batch_by_length: bool = True  # batches of clips of similar length: little padding
    workers: int = 0  # processes that prepare batches ahead; 0 = none, or 8 for a GPU

    @property
    def nfeats(self):
        return {"t2m": 263, "kit": 251, "smpl": 150}[self.skeleton]


@dataclass
class StackConfig:  # what the VAE and the denoiser have in common
    latent_dim: int = 256  # D, width of the network and of each latent token
    ff_size: int = 1024  # width of the feed-forward layers
    num_layers: int = 9  # layers (of the VAE's encoder and decoder each); odd if skip-connected
    num_heads: int = 4  # attention heads
    dropout: float = 0.1  # dropout in every layer in training
    attention_dropout: float = 0.1  # dropout on attention probabilities; 0 keeps fast attention
    activation: Literal["gelu", "relu"] = "gelu"  # of the feed-forward layers
    normalize_before: bool = False  # pre-norm layers; the published ones are post-norm
    position_embedding: Literal["learned", "sine"] = "learned"  # positions of frames and tokens
    max_positions: int = 500  # rows of the position table


@dataclass
class VAEConfig(StackConfig):
    arch: Literal["encoder_decoder", "all_encoder", "actor", "none"] = "encoder_decoder"  # or none
    latent_size: int = 1  # N, number of latent tokens
    mlp_dist: bool = False  # mu and logvar from one token through a Linear, not from two tokens
    logvar_bias: float = 0.0  # start of that Linear's logvar; -4 starts with a narrow posterior
    cosines: int = 0  # > 0: a linear path from frames to latent and back through so many cosines
    cosine_span: int = 200  # half period of the slowest cosine, in frames
    recons_loss: Literal["smooth_l1", "mse"] = "smooth_l1"  # the published code's, or the paper's
    joints_loss: Literal["same", "distance"] = "same"  # as on features, or distance in metres
    lambda_rec: float = 1.0  # weight of the loss on features
    lambda_joint: float = 1.0  # weight of the loss on the joints recovered from them
    lambda_velocity: float = 0.0  # weight of the loss on joint velocities: still feet, no jitter
    lambda_acceleration: float = 0.0  # of joint accelerations; this and the next five: losses.py
    lambda_energy: float = 0.0  # of each joint's mean speed, acceleration and jerk over a clip
    lambda_spectrum: float = 0.0  # of velocities' amplitudes by joint, moment and frequency
    lambda_power: float = 0.0  # of the power of a clip's velocities by frequency
    lambda_bones: float = 0.0  # of the bones' directions, in which a nod counts like a kick
    lambda_head: float = 0.0  # of the neck's and the head's directions once more
    sharpen_from: float = 0.0  # share of the steps after which these six count
    lambda_kl: float = 1e-4  # weight of the KL divergence to the unit Gaussian
    lambda_kl_late: float = 0.0  # added to it from sharpen_from on: latents that hold less


@dataclass
class TextEncoderConfig:
    kind: Literal["clip", "scratch"] = "clip"  # CLIP, frozen, or a small tower trained here
    last_hidden_state: bool = False  # condition on every token, not on the pooled feature
    width: int = 128  # width of the small tower
    layers: int = 2  # layers of the small tower
    heads: int = 4  # attention heads of the small tower
    context_length: int = 77  # longest prompt in tokens, with the start and end tokens
    word_dropout: float = 0.1  # share of words that training makes unknown
    vectors: bool = False  # the small tower: also read the words' vectors (words.py)
    row_dropout: float = 0.3  # with vectors: share of words that training reads by these alone


@dataclass
class DenoiserConfig(StackConfig):
    condition: Literal["text", "action", "none"] = "text"  # what guides the diffusion
    arch: Literal["trans_enc", "trans_dec", "modulated"] = "trans_enc"  # mld.py has a table
    modulated_dim: int = 640  # modulated: width of the layers; latent_dim is the condition's
    skip_connect: bool = True  # long skip connections between mirrored layers
    text_encoded_dim: int = 768  # width of the text encoder's output; 768 for CLIP ViT-L/14
    num_actions: int = 0  # number of action labels; 0 = as many as the dataset has
    condition_dropout: float = 0.1  # share of samples trained without condition, for guidance
    flip_sin_to_cos: bool = True  # order of the timestep embedding's halves
    freq_shift: float = 0.0  # shift of the timestep embedding's frequencies
    normalize_latents: bool = False  # diffuse latents normalised by the training set's mean and std
    principal: int = 0  # > 0: diffuse so many tokens of the latents' main directions (latents.py)
    final_linear: bool = False  # a Linear after the last layer norm, so that outputs can be scaled
    length_token: bool = False  # a token tells the motion's length; the paper has none
    length_dropout: float = 0.0  # share of training clips whose length it does not tell
    mask_padding: bool = True  # without a VAE: mask padded frames (the published code did not)


@dataclass
class DiffusionConfig:
    num_train_timesteps: int = 1000  # T, number of noise levels
    beta_start: float = 0.00085  # variance of the first noise step
    beta_end: float = 0.012  # variance of the last noise step
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"  # in between
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"  # noise, x0 or v
    sampler: Literal["ddim", "ddpm", "dpm++", "lcm"] = "ddim"  # dpm++: DPM-Solver++(2M); distill.py
    num_inference_steps: int = 50  # denoising steps of a sample
    eta: float = 0.0  # noise added in each DDIM step: 0 = deterministic, 1 = as much as DDPM
    guidance_scale: float = 7.5  # s of classifier-free guidance; 1 = off
    guidance_rescale: float = 0.0  # how far the guided std is set back to the conditional one, 0..1
    clip_sample: bool = False  # clip the predicted x0 to -1..1; published for HumanAct12 only
    built_in_guidance: float = 0.0  # > 0: weights of a student of distill.py, with this guidance

    def __post_init__(self):
        for condition, rule in self.rules():
            need(condition, rule)

    def rules(self):
        """What holds of a student, also when generate() changes settings: pairs as in rules()."""
        n, scale = self.num_inference_steps, self.guidance_scale
        if not self.built_in_guidance:
            yield self.sampler != "lcm", ("The sampler lcm is for students of train.py --stage "
                                          "distill, and these weights are none: use another.")
            return
        made = "These weights are a student made by train.py --stage distill: "
        yield self.sampler == "lcm", f"{made}their sampler is lcm, not {self.sampler}."
        yield isinstance(n, str) or n <= FEW, (f"{made}they answer in 1 to {FEW} steps, and "
                                               f"num_inference_steps={n} would not be better.")
        yield scale in (0, 1), (f"{made}guidance {self.built_in_guidance:g} is built in and cannot "
                                f"be changed, so guidance_scale must be 1, not {scale:g}.")


FEW = 4  # steps that a student is made for
# of DiffusionConfig: may be changed once the model is trained
SAMPLING = ("sampler", "num_inference_steps", "eta", "guidance_scale", "guidance_rescale")


@dataclass
class EvaluatorConfig:
    kind: Literal["auto", "t2m", "own"] = "auto"  # what is present, the published one, or ours
    embed_dim: int = 512  # width of the space that texts and motions share
    width: int = 256  # width of our own evaluator
    layers: int = 4  # layers of our own evaluator


@dataclass
class StageConfig:
    steps: int = 100_000  # optimiser steps
    batch_size: int = 64  # clips per step, over all processes
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for matrices, with AdamW for the rest
    lr: float = 2e-4  # peak learning rate
    min_lr_ratio: float = 0.01  # learning rate at the end of the cosine, as a share of lr
    warmup: int = 1000  # steps of linear warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # learning rate after the warm-up
    weight_decay: float = 0.01  # of matrices only
    beta2: float = 0.999  # AdamW's second-moment decay
    grad_clip: float = 1.0  # largest gradient norm; 0 = no clipping
    accumulate: int = 1  # micro-batches per step
    ema: float = 0.999  # decay of the moving average of weights, which is what samples; 0 = none
    keep: Literal["best", "last"] = "best"  # weights: the best on val, or those of the last step
    max_logit: float = 0.0  # limit to the logits of attention (optimizers.py); 0 = none


@dataclass
class DenoisingConfig(StageConfig):
    draws: int = 1  # noise levels for each clip of a batch, whose text is encoded once
    length_weight: float = 0.01  # of the length estimator's loss beside the denoiser's
    freeze_text: bool = False  # leave the small text tower as init_from brings it


@dataclass
class DistillConfig(StageConfig):
    steps: int = 50_000  # optimiser steps
    levels: int = 12  # points of each path that the student learns from; a multiple of 4


@dataclass
class TrainConfig:
    stage: Literal["all", "vae", "diffusion", "distill", "evaluator"] = "all"  # what to train
    out: str = "out"  # folder for runs; each has its own folder in it
    name: str = ""  # name of the run and its folder; empty = the dataset's
    vae_checkpoint: str = ""  # trained VAE for stage diffusion; empty = that of the run's folder
    init_from: str = ""  # trained model to start from: fine-tuning (finetune.py)
    seed: int = 1234  # seed of weights, order of clips, crops and noise
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads per process; 0 = torch's choice
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"  # auto: bf16 where that pays
    compile: bool = False  # torch.compile the training step
    cache_latents: int = 4  # crops of a clip encoded once, before diffusion; 0 = each time
    log_every: int = 10  # steps between lines of log.jsonl
    eval_every: int = 500  # steps between validations
    save_every: int = 500  # steps between checkpoints
    sample_every: int = 2000  # steps between example motions; 0 = only those of the final model


@dataclass
class EvalConfig:
    replications: int = 20  # repetitions behind each confidence interval
    batch_size: int = 32  # motions generated at once
    group: int = 32  # number of motions among which R-precision looks for a text's own
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
    train_diffusion: DenoisingConfig = field(default_factory=DenoisingConfig)
    train_distill: DistillConfig = field(default_factory=DistillConfig)
    train_evaluator: StageConfig = field(default_factory=StageConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


SECTIONS = {f.name: f.default_factory for f in dataclasses.fields(Config)}
FIELDS = {f"{section}.{f.name}": f for section, cls in SECTIONS.items()
          for f in dataclasses.fields(cls)}

# --------------------------------------------------------------------------------------------------
# Changing and checking settings

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
MAY_BE_ZERO = ("workers", "cosines", "num_actions", "principal", "warmup", "seed", "threads",
               "cache_latents", "sample_every")  # all other whole numbers are positive
POSITIVE, ANY_SIGN = ("lr", "fps"), ("logvar_bias", "freq_shift")  # other numbers: 0 or more
BELOW_1 = ("dropout", "attention_dropout", "word_dropout", "row_dropout", "ema", "beta2",
           "length_dropout")
MOST = {  # what a network, a machine or float32 can take; others: a billion, and a million
    "condition_dropout": 1, "sharpen_from": 1, "guidance_rescale": 1, "eta": 1, "lr": 100,
    "fps": 1000,
    "seed": 2**63 - 1, "threads": 1024, "workers": 256, "layers": 1000, "num_layers": 1000,
    "num_train_timesteps": 100_000,
} | dict.fromkeys(("latent_dim", "ff_size", "width", "embed_dim", "text_encoded_dim",
                    "modulated_dim"), 65_536) \
  | dict.fromkeys(("max_positions", "context_length", "cosines", "num_actions"), 1_000_000)


def need(condition, text, config=None):
    """SettingError with `text` unless `condition`; with `config`, the values of the settings that
    the text names are added to it."""
    if not condition:
        keys = [key for key in re.findall(r"\w+\.\w+", text) if key in FIELDS] if config else ()
        found = [f"{key}={str(get_value(config, key))[:60]}" for key in dict.fromkeys(keys)]
        raise SettingError(text + (f"; found {', '.join(found)}." if found else ""))


def convert(value, kind, name):
    """`value`, text from the command line or a Python literal, as the type `kind`.
    SettingError, naming the setting `name`, if it is not one."""
    choices, result = get_args(kind), None
    if choices or kind is str:
        result = value if isinstance(value, str) and value in (choices or [value]) else None
    elif kind is bool:
        result = BOOLEANS.get(str(value).lower())
    elif not isinstance(value, bool):
        result = number(value, kind)
    need(result is not None, f"{name} must be {KINDS.get(kind) or 'one of ' + ', '.join(choices)}, "
         f"got {value!r}.")
    return result


def number(value, kind):
    """`value` as a finite float or a whole number (1e3 is one, too); None if it is neither."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if kind is int and isinstance(value, (int, str)):
            with contextlib.suppress(ValueError):
                return int(value)  # a float would round whole numbers above 2^53
        found = float(value)
        if math.isfinite(found) and (kind is float or found.is_integer() and abs(found) < 2**53):
            return kind(found)
    return None


def nearest(name, known, otherwise=""):
    """' Did you mean X?' for the closest of the `known` names, or else `otherwise`."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    close += [other for other in known if other.split(".")[-1] == name.split(".")[-1]]
    return f" Did you mean {close[0]}?" if close else otherwise


def set_value(config, key, value):
    """Set `section.key` of `config` to `value`, checked against the field's type."""
    if key not in FIELDS:
        raise SettingError(f"Unknown setting {key!r}." + nearest(key, FIELDS, " See --help all."))
    section, name = key.split(".")
    setattr(getattr(config, section), name, convert(value, FIELDS[key].type, key))


def get_value(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def pack_path(config):
    """Where the packed dataset of this config lies: data_root/NAME/NAME.pack."""
    name = config.data.dataset
    return os.path.join(config.assets.data_root, name, name + ".pack")


def rules(config):
    """What must hold of a config's values: pairs of a condition and the rule in words."""
    c, data, vae, text, denoiser = config, config.data, config.vae, config.text, config.denoiser
    for key, f in FIELDS.items():
        name, value = key.split(".")[1], get_value(c, key)
        if f.type not in (int, float):
            continue
        most = MOST.get(name, 10**9 if f.type is int else 10**6)
        yield abs(value) <= most, f"{key} must be at most {most}" + " in size" * (name in ANY_SIGN)
        yield name not in BELOW_1 or value < 1, f"{key} must be below 1"
        if name not in ANY_SIGN:
            zero = name in MAY_BE_ZERO or f.type is float and name not in POSITIVE
            sign = "not be negative" if zero else "be positive"
            yield value > 0 or zero and value == 0, f"{key} must {sign}"
    yield (re.fullmatch(r"[^/\\\0]+", data.dataset) and data.dataset not in (".", ".."),
           "data.dataset must be a name, not a path")

    yield (not denoiser.length_dropout or denoiser.length_token and vae.arch != "none",
           "denoiser.length_dropout needs denoiser.length_token, and a VAE")
    tokens = 2 + denoiser.length_token  # beside the latent: noise level, condition, length
    if text.last_hidden_state and denoiser.condition == "text":
        tokens += (77 if text.kind == "clip" else text.context_length) - 1
    sequence = "denoiser.principal" if denoiser.principal else "vae.latent_size"
    sequence = sequence if vae.arch != "none" else "data.max_frames"
    rows = tokens + get_value(c, sequence)
    yield rows <= denoiser.max_positions, (f"denoiser.max_positions must hold {tokens} tokens and "
                                           f"{sequence}: {rows} or more")
    yield (denoiser.arch != "modulated" or vae.arch != "none" and not text.last_hidden_state,
           "denoiser.arch=modulated needs a VAE, and text.last_hidden_state=False")
    yield (denoiser.arch != "modulated" or denoiser.normalize_latents,
           "denoiser.arch=modulated needs denoiser.normalize_latents, to know how latents spread")
    yield data.fps >= 1, "data.fps must be at least 1"
    yield text.context_length > 2, "text.context_length must be at least 3"
    yield text.width % text.heads == 0, "text.heads must divide text.width"
    small_tower = text.kind == "scratch" and denoiser.condition == "text"
    yield (not small_tower or denoiser.text_encoded_dim == text.width,
           "denoiser.text_encoded_dim must equal text.width for the small text tower")
    yield data.min_length < data.max_length, "data.min_length must be below data.max_length"
    yield data.unit_length <= data.min_length, "data.unit_length must be 1 to data.min_length"
    yield (data.max_frames % data.unit_length == 0,
           "data.max_frames must be a multiple of data.unit_length")
    d = c.diffusion
    yield (0 < d.beta_start < d.beta_end < 1,
           "diffusion.beta_start and diffusion.beta_end must grow within 0..1")
    yield (d.num_inference_steps <= d.num_train_timesteps,
           "diffusion.num_inference_steps must be 1 to diffusion.num_train_timesteps")
    yield from d.rules()
    if c.train.stage == "distill":
        s = c.train_distill
        yield (s.levels % FEW == 0 and s.levels <= d.num_train_timesteps,
               f"train_distill.levels must be a multiple of {FEW}, and at most "
               "diffusion.num_train_timesteps")
        yield (d.guidance_scale > 0,
               "diffusion.guidance_scale, which a student has built in, must be above 0")
    yield c.evaluator.width % 4 == 0, "evaluator.width must be a multiple of 4"
    if vae.arch == "none":
        yield c.train.stage != "vae", "train.stage=vae needs a VAE to train, and vae.arch is none"
        yield c.train.cache_latents == 0, "train.cache_latents needs a VAE; set it to 0"
    else:
        held = vae.latent_size * vae.latent_dim
        yield (denoiser.latent_dim == vae.latent_dim or c.train.stage == "vae" or
               denoiser.principal > 0 or denoiser.arch == "modulated",
               "denoiser.latent_dim and vae.latent_dim differ; they must be equal")
        yield denoiser.principal <= held, ("denoiser.principal must be at most vae.latent_size x "
                                           f"vae.latent_dim, {held}")
        yield (denoiser.normalize_latents or not denoiser.principal,
               "denoiser.principal needs denoiser.normalize_latents")
        yield vae.latent_size <= 10, "vae.latent_size must be 1 to 10"
        yield (vae.arch != "actor" or vae.latent_size == 1,
               "The ACTOR-style VAE has one latent token; set vae.latent_size=1")
        yield (data.max_frames + 2 * vae.latent_size <= vae.max_positions,
               "vae.max_positions must hold data.max_frames and 2 x vae.latent_size")
        yield (not vae.cosines or data.max_frames <= vae.cosine_span,
               "vae.cosine_span must hold data.max_frames")
    for name in ("denoiser", "vae") if vae.arch != "none" else ("denoiser",):
        s = getattr(c, name)
        skips = vae.arch != "actor" if name == "vae" else (
            denoiser.skip_connect and denoiser.arch != "modulated")
        yield not skips or s.num_layers % 2, f"{name}.num_layers must be odd for skip connections"
        yield s.latent_dim % s.num_heads == 0, f"{name}.num_heads must divide {name}.latent_dim"
        yield s.latent_dim % 2 == 0, f"{name}.latent_dim must be even"
    for name in ("train_vae", "train_diffusion", "train_distill", "train_evaluator"):
        s = getattr(c, name)
        yield s.batch_size % s.accumulate == 0, f"{name}.accumulate must divide {name}.batch_size"


def validate(config):
    """The config. SettingError, with the values found, for settings that cannot work together."""
    for condition, rule in rules(config):
        need(condition, rule, config)
    return config


# --------------------------------------------------------------------------------------------------
# Settings as plain data


def to_dict(config):
    """Config -> {section: {key: value}}, plain data fit for JSON and for checkpoints."""
    return dataclasses.asdict(config)


def from_dict(data):
    """The inverse of to_dict. SettingError for a key or type that this version does not know."""
    config = Config()
    for section, values in data.items():
        for key, value in values.items():
            set_value(config, f"{section}.{key}", value)
    return validate(config)
