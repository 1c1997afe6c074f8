"""Train nanoMLD: the VAE, then the diffusion in its latent space, with the text tower where it is ours to train.

    python train.py --dataset toy                       everything; ends in out/toy/model.pt, which sample.py takes
    python train.py --dataset toy --stage vae           one part: vae, diffusion or evaluator
    python train.py --dataset toy --resume              go on where a killed run stopped: the very same numbers follow
    python train.py --dataset humanml3d                 the published sizes, our optimiser (--recipe paper: theirs)
    python train.py --dataset toy --condition action    labels instead of sentences; --condition none: no condition
    python train.py --dataset toy --modules novae       diffusion straight on frames
    torchrun --standalone --nproc_per_node=2 train.py --dataset toy                     two processes, half a batch each
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py --dataset humanml3d

Everything random is a pure function of (seed, stage, step, clip), so a resumed run continues exactly, and several
processes see together what one alone would have seen. A run's folder, out/NAME, holds

    vae.pt, diffusion.pt            state of each stage: weights, moving average, optimiser, step. What --resume reads
    vae_best.pt, diffusion_best.pt  weights (the moving average) with the lowest loss on val
    model.pt                        the finished model
    log.jsonl, report.html          every logged number; curves, settings and example motions
"""
import contextlib
import ctypes
import dataclasses
import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import checkpoint
import data
import kernels
from clip import WordEncoder, vocabulary_of
from published_clip import load_clip
from config import SAMPLING, SettingError, parse_args, atomic_write, to_dict
from judge.own import EvaluatorStage
from mld import MLD
from view.report import read_log, show_motions, write_report
from data import to_device
from stages import DiffusionStage, Muon, Remembered, VAEStage

@dataclasses.dataclass
class Options:
    resume: bool = False  # go on from the run's last checkpoint
    overwrite: bool = False  # start again although the run's folder holds a run


# ----------------------------------------------------------------------------------------------------------------------
# What the stages share: settings, processes, device, data, folder, log


def keep_freed_memory(keep=True):
    """glibc: freed memory stays in the process, since mapping it anew takes up to a third of a VAE step on a CPU; keep=False:
    as glibc does by itself once it has seen large blocks come and go."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0 if keep else 65536)  # M_MMAP_MAX
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1 if keep else 2**26)  # M_TRIM_THRESHOLD


class Run:
    def __init__(self, config, options):
        self.config, self.options = config, options
        env = {key: int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))}
        self.rank, self.world = env["RANK"], env["WORLD_SIZE"]  # set by torchrun
        self.device = checkpoint.find_device(config.train.device, env["LOCAL_RANK"])
        if self.device.type == "cpu" and config.train.precision == "fp16":
            raise SettingError("train.precision fp16 needs a GPU; on the CPU use float32 or bf16.")
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        keep_freed_memory()
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.main, self.share = self.rank == 0, slice(self.rank, None, self.world)
        self.pack = data.open_pack(config)
        self.folder = os.path.join(config.train.out, config.train.name or config.data.dataset)
        self.stopping, self.board = False, None  # TensorBoard's writer, where that is installed
        signal.signal(signal.SIGINT, self.stop)

    def stop(self, *_):
        if self.stopping:  # a second Ctrl-C does not wait for the step's end
            raise KeyboardInterrupt
        self.stopping = True

    def path(self, name):
        return os.path.join(self.folder, name)

    def say(self, *words):
        if self.main:
            tqdm.write(" ".join(map(str, words)))

    def log(self, **values):
        if self.main:
            with open(self.path("log.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            if self.board is None:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                    self.board = SummaryWriter(self.folder)
                except ImportError:
                    self.board = False
            if self.board:
                stage, step = values.pop("stage"), values.pop("step")
                for key, value in values.items():
                    self.board.add_scalar(f"{stage}/{key}", value, step)

    def rewind_log(self, stage, step):
        """Forget what was logged after the checkpoint that the run resumes from, and lines that a kill cut short."""
        with contextlib.suppress(FileNotFoundError):
            entries = read_log(self.path("log.jsonl"))
            with atomic_write(self.path("log.jsonl"), "w") as out:
                out.writelines(json.dumps(e) + "\n" for e in entries if e["stage"] != stage or e["step"] <= step)

    def batches(self, split, batch_size, **changes):
        c = self.config.data
        settings = dict(seed=self.config.train.seed, rank=self.rank, world=self.world, by_length=c.batch_by_length,
                        min_length=c.min_length, max_length=c.max_length, max_frames=c.max_frames, unit_length=c.unit_length)
        return data.Batches(self.pack, split, batch_size, **(settings | changes))

    def draws(self, stage, step):
        """The random stream of one step. Draw for the whole batch and keep `self.share`: then every clip gets the numbers that
        it would have got in one process."""
        seed = np.random.SeedSequence([self.config.train.seed, stage == "vae", step]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))

    def mean(self, values):
        """{name: value weighted by this process' share} -> the sums over all processes, as floats."""
        numbers = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device).detach() for v in values.values()])
        if self.world > 1:
            dist.all_reduce(numbers)
        return dict(zip(values, numbers.tolist()))

    def show(self, name, motions):
        """Write motions, a list of (joints (T, J, 3) in metres, caption), as a player into the run's folder."""
        show_motions(self.path(f"{name}.html"), motions, self.config)

    def autocast(self):
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.train.precision)
        return torch.autocast(self.device.type, kind) if kind else contextlib.nullcontext()


# ----------------------------------------------------------------------------------------------------------------------
# The loop, the same for every stage


def learning_rate(s, step):
    """Linear warm-up, then cosine down to min_lr_ratio (or constant)."""
    warm = min(1.0, (step + 1) / s.warmup) if s.warmup else 1.0
    if s.schedule == "constant":
        return s.lr * warm
    progress = min(1.0, max(0.0, (step - s.warmup) / max(1, s.steps - s.warmup)))
    return s.lr * warm * (s.min_lr_ratio + (1 - s.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(stage, s):
    """AdamW for all of the stage's parameters, or for what Muon leaves: it takes the matrices that multiply activations, not
    tables of tokens and positions."""
    tables = {p for m in stage.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    own = dict.fromkeys(p for name, p in stage.named_parameters() if s.optimizer == "muon" and p.requires_grad
                        and p.dim() == 2 and name.endswith("weight") and p not in tables)
    rest = [p for p in stage.parameters() if p.requires_grad and p not in own]
    groups = [{"params": [p for p in rest if p.dim() > 1], "weight_decay": s.weight_decay},
              {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, s.beta2))]
    if own:
        optimizers.append(Muon(list(own), s.lr, weight_decay=s.weight_decay))
    return optimizers


@contextlib.contextmanager
def averaged(params, ema):
    """Inside, the parameters are their moving average."""
    if not ema:
        yield
        return
    own = [p.detach().clone() for p in params]
    torch._foreach_copy_([p.data for p in params], ema)
    try:
        yield
    finally:
        torch._foreach_copy_([p.data for p in params], own)


def micro_batches(batch, n):
    """Cut a batch into n parts along its clips."""
    size = len(batch["ids"])
    cuts = [size * i // n for i in range(n + 1)]
    for a, b in zip(cuts, cuts[1:]):
        if b > a:
            yield {key: value[a:b] if isinstance(value, list) or (torch.is_tensor(value) and value.dim() and len(value) == size) else value
                   for key, value in batch.items()}


def refuse_changes(old, new, name, path):
    """SettingError if a run would resume with another network, other data, another noise process or another optimiser."""
    sections = {"vae": ("vae",), "diffusion": ("vae", "text", "denoiser", "diffusion"), "evaluator": ("evaluator",)}[name]
    old, new = to_dict(old), to_dict(new)
    for section, key in [(s, key) for s in ("data", *sections) for key in new[s]] + [(f"train_{name}", "optimizer")]:
        if old[section][key] != new[section][key] and key not in ("workers", *SAMPLING):
            raise SettingError(f"{path} was trained with {section}.{key}={old[section][key]}, now it is {new[section][key]}: --resume goes on "
                               "with the same settings, --overwrite starts again, --name NAME puts the new run elsewhere.")


def fit(run, stage):
    """Train `stage` for its number of steps; returns when done, or False if Ctrl-C asked to stop (the state is saved)."""
    s, train, name = stage.settings, run.config.train, stage.name
    params = [p for p in stage.parameters() if p.requires_grad]
    optimizers = make_optimizers(stage, s)
    scaler = torch.amp.GradScaler(enabled=train.precision == "fp16")
    ema = [p.detach().clone() for p in params] if s.ema else []
    step, best = 0, math.inf

    last, best_file = run.path(f"{name}.pt"), run.path(f"{name}_best.pt")
    if run.options.resume and os.path.exists(last):
        state = checkpoint.load(last)
        refuse_changes(state["config"], run.config, name, last)
        stage.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        scaler.load_state_dict(state["scaler"])
        ema, step, best = [e.to(run.device) for e in state["ema"]], state["step"], state["best"]
        run.say(f"{name}: going on from step {step} of {last}")
    if run.main:
        run.rewind_log(name, step)

    def save():
        if run.main:
            checkpoint.save(last, run.config, stage.state_dict(), optimizers=[o.state_dict() for o in optimizers],
                            scaler=scaler.state_dict(), ema=ema, step=step, best=best)
        if run.world > 1:
            dist.barrier()

    net = torch.nn.parallel.DistributedDataParallel(stage) if run.world > 1 else stage
    bar = tqdm(total=s.steps, initial=step, desc=name, unit="step", disable=not run.main, dynamic_ncols=True)
    frames, since, sums, source, epoch = 0, time.time(), {}, None, None
    stage.train()
    while step < s.steps and not run.stopping:
        now, first = divmod(step, len(stage.batches))
        if now != epoch:
            epoch, source = now, stage.batches.epoch(now, first, run.config.data.workers)
        batch = to_device(stage.prepare(next(source), step), run.device)
        rate = learning_rate(s, step)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        # dropout and the like, which are torch's own draws, depend on the step and not on what ran before
        torch.manual_seed(hash((train.seed, name == "vae", step, run.rank)) % 2**63)
        stage.zero_grad(set_to_none=True)
        losses = {}
        parts = list(micro_batches(batch, s.accumulate))
        for i, part in enumerate(parts):
            # each loss is a mean over clips: weighted by its share of the whole batch, the sum over micro-batches and
            # processes (DDP averages over them, hence `world`) is what one big batch would have given
            share = len(part["ids"]) / batch["global_size"]
            with net.no_sync() if run.world > 1 and i + 1 < len(parts) else contextlib.nullcontext():
                with run.autocast():
                    out = net(part)
                scaler.scale(out["loss"] * (share * run.world)).backward()
            for key, value in out.items():
                losses[key] = losses.get(key, 0.0) + value.detach() * share
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(params, s.grad_clip or math.inf)
        losses = run.mean(losses)
        if not math.isfinite(losses["loss"]):
            bad = "" if math.isfinite(float(out["loss"])) else f" in the batch of clips {', '.join(batch['ids'])}"
            kept = f"the last good checkpoint is {last}" if os.path.exists(last) else "no checkpoint was saved yet"
            raise FloatingPointError(f"{name}: the loss is {losses['loss']} at step {step}{bad}; {kept}. Try a lower "
                                     f"train_{name}.lr, train_{name}.grad_clip=1 or --precision float32.")
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        if ema:
            torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - min(s.ema, (1 + step) / (10 + step)))
        step += 1
        frames += batch["global_frames"]
        sums = {key: sums.get(key, 0.0) + value for key, value in losses.items()}
        bar.update()
        if step % train.log_every == 0 or step == s.steps:
            count, speed = (step - 1) % train.log_every + 1, frames / (time.time() - since)
            entry = {key: value / count for key, value in sums.items()}
            bar.set_postfix(loss=f"{entry['loss']:.4f}", frames=f"{speed:.0f}/s")
            run.log(stage=name, step=step, lr=rate, grad_norm=float(norm), frames_per_s=round(speed), **stage.summary(entry))
            frames, since, sums = 0, time.time(), {}
        if step % train.eval_every == 0 or step == s.steps:
            stage.eval()
            with averaged(params, ema), run.autocast():
                values = stage.validate()
                if values["loss"] < best:
                    best = values["loss"]
                    if run.main:
                        checkpoint.save(best_file, run.config, stage.state_dict(), step=step)
                if train.sample_every and step % train.sample_every == 0 and run.main:
                    stage.show(step)
            stage.train()
            run.say(f"{name} step {step}: " + ", ".join(f"val {key} {value:.4g}" for key, value in values.items()))
            run.log(stage=name, step=step, **{f"val_{key}": value for key, value in values.items()})
            since = time.time()
        if step % train.save_every == 0 or step == s.steps:
            save()
    bar.close()
    if run.stopping:
        save()
        run.say(f"stopped at step {step} of {name}, saved to {last}; the same command with --resume goes on from here")
        return False
    stage.load_state_dict(checkpoint.load(best_file)["model"])
    return True


# ----------------------------------------------------------------------------------------------------------------------
# The program


def build(run):
    """A fresh MLD for the run's dataset, weights drawn from the seed."""
    c, pack = run.config, run.pack
    torch.manual_seed(c.train.seed)
    if c.denoiser.condition == "action":
        c.denoiser.num_actions = c.denoiser.num_actions or len(pack.actions)
        if len(pack.actions) != c.denoiser.num_actions:
            raise SettingError(f"denoiser.num_actions is {c.denoiser.num_actions}, but {pack.path} has {len(pack.actions)} actions.")
    encoder = None
    if c.denoiser.condition == "text" and c.train.stage != "vae":
        if c.text.kind == "clip":
            encoder = Remembered(load_clip(c.assets.clip_path, c.text.last_hidden_state))
        else:
            texts = (caption.text for i in pack.indices("train") for caption in pack.captions(i))
            encoder = WordEncoder(c.text, vocabulary_of(texts))
    return MLD(c, encoder, pack.mean, pack.std, pack.rest).to(run.device)


def train(config, options):
    run = Run(config, options)
    if run.main:
        os.makedirs(run.folder, exist_ok=True)
        own = {"diffusion": ("diffusion.pt",), "evaluator": ("evaluator.pt",)}.get(config.train.stage, ("vae.pt", "diffusion.pt"))
        held = [name for name in own if os.path.exists(run.path(name))]
        if held and not (options.resume or options.overwrite):
            raise SettingError(f"{run.folder} holds a run already ({', '.join(held)}): --resume goes on with it, --overwrite starts again, --name NAME puts the new one elsewhere.")
    if config.train.stage == "evaluator":
        stage = EvaluatorStage(run)
        run.say(f"{run.folder}: {sum(p.numel() for p in stage.parameters()) / 1e6:.2f} M parameters")
        if fit(run, stage) and run.main:
            stage.save(run.path("evaluator_model.pt"))
            write_report(run.path("report.html"), run.path("log.jsonl"), config)
            found = config.train.name in ("", config.data.dataset) and config.train.out == type(config.train)().out
            run.say(f"done: {run.path('evaluator_model.pt')}; eval.py {'finds it there' if found else 'takes it by --evaluator'}")
        return
    model = build(run)
    params = {part: sum(p.numel() for p in getattr(model, part).parameters()) / 1e6 for part in ("vae", "denoiser", "text_encoder") if getattr(model, part)}
    run.say(json.dumps(to_dict(config), indent=1))
    run.say(f"{run.folder}: {', '.join(f'{name} {count:.2f} M' for name, count in params.items())} parameters; {run.world} process(es) on {run.device}, "
            f"{torch.get_num_threads()} thread(s) each, {config.train.precision}, MLD_KERNELS={os.environ.get('MLD_KERNELS', 'auto')}")
    if model.vae and config.train.stage in ("all", "vae"):
        if not fit(run, VAEStage(run, model)):
            return
    if config.train.stage in ("all", "diffusion"):
        if model.vae and config.train.stage == "diffusion":
            source = config.train.vae_checkpoint or run.path("vae_best.pt")
            if not os.path.exists(source):
                raise SettingError(f"{source} does not exist: train the VAE first (--stage vae) or name one with --train.vae_checkpoint=FILE.")
            state = checkpoint.load(source)["model"]
            checkpoint.fill(model.vae, {k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")}, source)
        if not fit(run, DiffusionStage(run, model)):
            return
        if run.main:
            state = {key: value for key, value in model.state_dict().items() if config.text.kind == "scratch" or not key.startswith("text_encoder.")}
            checkpoint.save(run.path("model.pt"), config, state, vocabulary=getattr(model.text_encoder, "vocabulary", None), actions=list(run.pack.actions))
    if run.main:
        write_report(run.path("report.html"), run.path("log.jsonl"), config)
        run.say(f"done: {run.path('model.pt' if config.train.stage != 'vae' else 'vae_best.pt')}, curves and examples in {run.path('report.html')}; {kernels.summary()}")


def main(argv):
    options = Options()
    try:
        config, words = parse_args(argv, options, __doc__)
        if words:
            raise SettingError(f"train.py takes flags only, found {words[0]!r}; see --help.")
        train(config, options)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write or read {error.filename or 'a file'} ({error.strerror}); checkpoints written before are intact.")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
