"""Train nanoMLD: the VAE, then the diffusion in its latent space.

    python train.py --dataset toy                     all of it; sample.py takes out/toy/model.pt
    python train.py --dataset toy --stage vae         one part: vae, diffusion or evaluator
    python train.py --dataset toy --stage distill     a student of out/toy/model.pt: 1 to 4 steps
    python train.py --dataset toy --resume            go on where a run stopped, to equal numbers
    python train.py --dataset toy --resume --train_diffusion.steps=9000 --allow-change steps
    python train.py --dataset humanml3d               the published sizes with our optimiser
    python train.py --dataset humanml3d --recipe paper         with the paper's
    python train.py --dataset toy --condition action  labels instead of sentences, or none
    python train.py --dataset toy --modules novae     diffusion straight on frames
    python train.py --dataset mine --init_from checkpoints/toy.pt    fine-tune a trained model
    torchrun --standalone --nproc_per_node=2 train.py --dataset toy    half a batch each
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d \\
        --rdzv_endpoint=HOST:29500 train.py --dataset humanml3d        two machines

Each machine needs the packed dataset (and CLIP's weights); the run's folder is the first process'
alone, which sends what the others need.

Everything random is a pure function of (seed, stage, step, clip). So a resumed run continues
exactly, and several processes see together what one alone would have seen. The folder of a run,
out/NAME, holds

    vae.pt, diffusion.pt            all that --resume needs: weights, optimiser, where it stands
    vae_best.pt, diffusion_best.pt  its weights (the moving average) with the lowest loss on val
    model.pt                        the finished model
    log.jsonl, report.html          every logged number; curves, settings and example motions
    previous/                       the run that was here before --overwrite

Ctrl-C and SIGTERM save and stop after the step at hand, on all processes; a second one stops at
once. Each .pt file names its run, and nothing of another run is ever taken. --resume refuses
settings that change the numbers unless --allow-change names them, as in the example above; the
sizes of a network and its optimiser must stay.
"""
import dataclasses
import json
import os
import re
import sys

import torch
import torch.distributed as dist

import checkpoint
import distill
import finetune
import kernels
import resume
from clip import WordEncoder
from config import SettingError, to_dict
from flags import parse_args
from judge.own import EvaluatorStage
from loop import fit
from mld import MLD
from published_clip import load_clip
from run import Run
from stages import DiffusionStage, Remembered, VAEStage
from view.report import write_report
from words import vocabulary_of


@dataclasses.dataclass
class Options:
    resume: bool = False  # go on from the run's last checkpoint
    overwrite: bool = False  # start again; what the run's folder holds goes to its folder previous
    allow_change: str = ""  # settings that --resume may find changed: lr, or several as lr,steps
    verbose: bool = False  # print every setting, and on what it runs


def build(run):
    """A fresh MLD for the run's dataset, weights drawn from the seed."""
    c, pack = run.config, run.pack
    torch.manual_seed(c.train.seed)
    encoder, ours = None, c.denoiser.condition == "text" and c.text.kind == "scratch"
    if c.train_diffusion.freeze_text and not (run.init and ours):
        raise SettingError("train_diffusion.freeze_text needs a text tower of ours that has "
                           "learnt: --init_from names its model.")
    if c.denoiser.condition == "text" and c.train.stage != "vae":
        if c.text.kind == "clip":
            encoder = Remembered(load_clip(c.assets.clip_path, c.text.last_hidden_state))
        else:
            texts = (caption.text for i in pack.indices("train") for caption in pack.captions(i))
            words = vocabulary_of(texts)
            if run.init:  # a student reads what its teacher reads
                new = [] if c.train.stage == "distill" else words
                words = finetune.vocabulary(c.train.init_from, new)
            encoder = WordEncoder(c.text, words)
    model = MLD(c, encoder, pack.mean, pack.std, pack.rest)
    if run.init and finetune.start(model, c.train.init_from):
        run.new_latents = True
        run.say(f"the denoiser is of another arch than that of {c.train.init_from}: it begins "
                "anew, and so do the mean and the directions of the latents that it is to see")
    return model.to(run.device)


def million(network):
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"


def train_evaluator(run):
    """Train the network that judges motions; returns the finished file, or None if stopped."""
    stage, c = EvaluatorStage(run), run.config.train
    run.say(f"{run.folder}: {million(stage)}")
    if not fit(run, stage):
        return None
    path = run.path("evaluator_model.pt")
    run.from_main(lambda: stage.save(path))
    found = c.name in ("", run.config.data.dataset) and c.out == type(c)().out
    run.say("eval.py finds it there" if found else f"eval.py takes it by --evaluator {path}")
    return path


def trained_vae(path, pack, init=""):
    """The weights of a file with a VAE, the mean and std (F,) of the features it learned from, by
    which the pack's are to be normalised as well, and whether it belongs to the model, of digest
    `init`, that fine-tuning starts from. SettingError for a VAE that does not fit."""
    if not os.path.exists(path):
        raise SettingError(f"{path} does not exist: train the VAE first (--stage vae) or name one "
                           "with --train.vae_checkpoint=FILE.")
    data = checkpoint.load(path)
    state, c, began = data["model"], data["config"].data, data.get("init") or ""
    if (c.skeleton, c.fps) != (pack.skeleton, pack.fps):
        raise SettingError(f"The VAE of {path} learned from the {c.skeleton} skeleton at {c.fps:g} "
                           f"fps, but {pack.path} holds {pack.skeleton} at {pack.fps:g}: train one "
                           "(--stage vae).")
    norms = [state["mean"], state["std"]] if "mean" in state else data.get("norms")
    if norms is None:  # of an older version
        digest = resume.pack_digest(pack)
        if data.get("pack", digest) != digest or began != init:
            raise SettingError(f"The VAE of {path} learned from features with another mean and std "
                               f"than those of {pack.path}, and the file does not say with which: "
                               "train one (--stage vae), or take a finished model.pt.")
        norms = [torch.as_tensor(x) for x in (pack.mean, pack.std)]
    good = len(norms) == 2 and all(x.shape == pack.mean.shape and x.isfinite().all() for x in norms)
    if not good or not (norms[1] > 0).all():
        raise SettingError(f"{path} is damaged: its mean and std cannot normalise motion.")
    return state, norms, began == init


def train_model(run):
    """Train the VAE and the diffusion, or one of them, or a student; returns the finished file, or
    None."""
    model, c = run.together(lambda: build(run)), run.config.train
    parts = {name: getattr(model, name) for name in ("vae", "denoiser", "text_encoder")}
    run.say(f"{run.folder}: " + "; ".join(f"{name} {million(part)}"
                                          for name, part in parts.items() if part))
    if model.vae and c.stage in ("all", "vae") and not fit(run, VAEStage(run, model)):
        return None
    if c.stage == "vae":
        return run.path("vae_best.pt")
    if model.vae and c.stage == "diffusion":
        source = resume.vae_of(run)
        # its VAE the model has already
        if not c.init_from or os.path.realpath(source) != os.path.realpath(c.init_from):
            state, norms, own = run.from_main(lambda: trained_vae(source, run.pack, run.init))
            if run.init and not own:
                run.new_latents = True
                run.say(f"the VAE of {source} is another than that of {c.init_from}: the denoiser "
                        "begins with weights that know other latents, and learns these anew")
            model.mean.copy_(norms[0]), model.std.copy_(norms[1])
            run.pack.mean, run.pack.std = (x.numpy().copy() for x in norms)
            checkpoint.fill(model.vae, {name.removeprefix("vae."): value for name, value in
                                        state.items() if name.startswith("vae.")}, source)
    run.vae = checkpoint.weights_digest(model.vae) if model.vae else ""
    student = c.stage == "distill"
    if not fit(run, (distill.DistillStage if student else DiffusionStage)(run, model)):
        return None
    path = run.path("student.pt" if student else "model.pt")
    run.from_main(lambda: run.save(
        path, model.state_dict(), actions=list(run.pack.actions),
        vocabulary=getattr(model.text_encoder, "vocabulary", None)))
    return path


def train(config, options):
    if config.train.stage == "distill":
        distill.settings(config)
    run = Run(config, options)
    run.check_alike()
    run.id, run.states = run.from_main(lambda: resume.claim(run))
    config.train.precision = run.from_main(lambda: config.train.precision)
    if run.chosen and config.train.precision == "bf16":
        run.say("training in bfloat16, in which this device multiplies at least twice as fast; "
                "--precision float32 for the other way")
    if "val" not in run.pack.splits:
        run.say(f"{run.pack.path} has no val clips: clips of train stand in for them, and losses "
                "on val do not show what is learnt by heart")
    if options.verbose:
        run.say(json.dumps(to_dict(config), indent=1))
        run.say(f"run {run.id}: {run.world} process(es) on {run.device}, "
                f"{torch.get_num_threads()} thread(s) each, {config.train.precision}")
    path = train_evaluator(run) if config.train.stage == "evaluator" else train_model(run)
    if path and run.main:
        report = run.path("report.html")
        write_report(report, run.path("log.jsonl"), config)
        run.say(f"done: {path}; curves and example motions in {report}")
        if options.verbose:
            run.say(kernels.summary())


def main(argv):
    options = Options()
    try:
        config, words = parse_args(argv, options, __doc__, finetune.settings)
        if config.train.stage == "distill" and not config.train.init_from:
            run = os.path.join(config.train.out, config.train.name or config.data.dataset)
            teacher = f"--init_from={os.path.join(run, 'model.pt')}"
            config, words = parse_args([*argv, teacher], options, __doc__, finetune.settings)
        if words:
            raise SettingError(f"train.py takes flags only, found {words[0]!r}; see --help.")
        train(config, options)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write or read {error.filename or 'a file'} ({error.strerror}); "
                 "checkpoints written before are intact.")
    except RuntimeError as error:
        if not dist.is_initialized() or not re.search("gloo|NCCL|[Cc]onnection|peer", str(error)):
            raise
        sys.exit("error: another process of this training has ended or cannot be reached; what it "
                 "said comes before this. --resume goes on from the last checkpoint.")
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    from flags import program

    program(main)
