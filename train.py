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
import contextlib
import ctypes
import dataclasses
import json
import math
import os
import re
import signal
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import checkpoint
import data
import distill
import finetune
import kernels
import resume
from kernels import graphs
from kernels.rates import PAYS, bf16_rate
from clip import WordEncoder
from config import SettingError, to_dict
from files import atomic_write, lock
from flags import parse_args
from data import to_device
from judge.own import EvaluatorStage
from mld import MLD
from published_clip import load_clip
from optimizers import LOOK, clip_logits, learning_rate, make_optimizers
from stages import DiffusionStage, Remembered, VAEStage
from view.report import read_log, show_motions, write_report
from words import vocabulary_of


@dataclasses.dataclass
class Options:
    resume: bool = False  # go on from the run's last checkpoint
    overwrite: bool = False  # start again; what the run's folder holds goes to its folder previous
    allow_change: str = ""  # settings that --resume may find changed: lr, or several as lr,steps
    verbose: bool = False  # print every setting, and on what it runs


# --------------------------------------------------------------------------------------------------
# What the stages share: settings, processes, device, data, folder, log


def keep_freed_memory(keep=True):
    """With keep, glibc keeps freed memory in the process: mapping it anew takes up to a third of a
    VAE step on a CPU. Without, it does what it does on its own once it has seen large blocks."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0 if keep else 65536)  # M_MMAP_MAX
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1 if keep else 2**26)  # M_TRIM_THRESHOLD


def attempt(make):
    """[what make() returns, None], or [None, its error]"""
    try:
        return [make(), None]
    except (ValueError, OSError) as error:
        return [None, error]


class Run:
    def __init__(self, config, options):
        self.config, self.options = config, options
        self.rank, self.world, local = checkpoint.processes()
        self.device = checkpoint.find_device(config.train.device, local)
        self.main, self.share = self.rank == 0, slice(self.rank, None, self.world)
        if self.device.type == "cpu" and config.train.precision == "fp16":
            raise SettingError("train.precision fp16 needs a GPU; on the CPU use float32 or bf16.")
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        keep_freed_memory()
        here, self.workers = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.data.workers
        if self.device.type == "cuda" and not self.workers:  # it would wait for one CPU
            self.workers = min(8, (os.cpu_count() or 1) // (2 * here))
        if self.world > 1:
            alone = self.device.type == "cuda" and here <= torch.cuda.device_count()
            dist.init_process_group("nccl" if alone else "gloo")  # NCCL wants a GPU a process
        self.chosen = config.train.precision == "auto"  # by us; --resume goes on as it began
        if self.chosen:
            config.train.precision = self.from_main(self.fitting_precision)
        self.pack = self.together(lambda: data.open_pack(config))
        self.init = ""  # digest of the model that fine-tuning starts from
        self.new_latents = False  # whether its denoiser gets another VAE than it knows
        self.together(self.adopt)
        self.together(self.count_actions)
        self.id, self.vae, self.states = "", "", {}  # this run's; its VAE's digest; see claim()
        name = config.train.name or config.data.dataset
        if name in (".", "..") or os.path.basename(name) != name:
            raise SettingError(f"--name {name} is a path: expected a plain name; --out sets the "
                               "folder that the run's folder is made in.")
        self.folder = os.path.join(config.train.out, name)
        self.board = None  # TensorBoard's writer, where that is installed
        self.asked, self.stopping = None, False  # when this process was told to stop; all agreed
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)

    def stop(self, number, frame):
        """On Ctrl-C, or SIGTERM as clusters send it: save after this step. A second one ends the
        process at once."""
        now = time.monotonic()
        if self.asked is None:
            self.asked, self.stopping = now, self.world == 1
        elif self.world == 1 or now - self.asked > 2:  # torchrun repeats the terminal's Ctrl-C
            os._exit(128 + number)

    def fitting_precision(self):
        return "bf16" if bf16_rate(self.device) >= PAYS else "float32"

    def adopt(self):
        if self.config.train.init_from:
            self.init = finetune.adopt(self.pack, self.config.train.init_from)

    def count_actions(self):
        c, pack = self.config.denoiser, self.pack
        if c.condition == "action":
            c.num_actions = c.num_actions or len(pack.actions)
            if len(pack.actions) != c.num_actions:
                raise SettingError(f"denoiser.num_actions is {c.num_actions}, but {pack.path} has "
                                   f"{len(pack.actions)} actions.")

    def lock(self):
        """Hold the folder as long as this process lives."""
        self.held = open(self.path(".lock"), "w")
        if not lock(self.held):
            raise SettingError(f"Another process is training in {self.folder}: wait for it or stop "
                               "it; --name NAME puts the new run elsewhere.")
        os.register_at_fork(after_in_child=self.held.close)  # not held by workers that live on

    def path(self, name):
        return os.path.join(self.folder, name)

    def say(self, text):
        if self.main:
            tqdm.write(text)

    def log(self, **values):
        """Add a line to log.jsonl: stage, step, and numbers."""
        if not self.main:
            return
        with open(self.path("log.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        self.board_log(**values)

    def board_log(self, stage, step, **values):
        """The same to TensorBoard, where that is installed: if it is broken, training goes on."""
        try:
            if self.board is None:
                from torch.utils.tensorboard import SummaryWriter
                self.board = SummaryWriter(self.folder)
            for key, value in values.items() if self.board else ():
                self.board.add_scalar(f"{stage}/{key}", value, step)
        except Exception as error:
            self.board = False
            if getattr(error, "name", "") != "tensorboard":  # not just absent
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
                self.say(f"warning: TensorBoard is broken here ({reason}); training goes on "
                         "without it")

    def save(self, path, model, **state):
        """checkpoint.save, with the run's identity and the data's."""
        pack = resume.pack_digest(self.pack)
        norms = [torch.as_tensor(x) for x in (self.pack.mean, self.pack.std)]
        checkpoint.save(path, self.config, model, run=self.id, pack=pack, init=self.init,
                        norms=norms, **state)

    def read_log(self):
        with contextlib.suppress(FileNotFoundError):
            return read_log(self.path("log.jsonl"))
        return []

    def write_log(self, entries, folder=""):
        with atomic_write(self.path(os.path.join(folder, "log.jsonl")), "w") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def rewind_log(self, stage, step):
        """Forget what a stage logged after `step`, from where it goes on, and lines cut short."""
        self.write_log([entry for entry in self.read_log()
                        if entry["stage"] != stage or entry["step"] <= step])

    def batches(self, split, batch_size, **changes):
        c = self.config.data
        settings = dict(seed=self.config.train.seed, rank=self.rank, world=self.world,
                        by_length=c.batch_by_length, min_length=c.min_length,
                        max_length=c.max_length, max_frames=c.max_frames,
                        unit_length=c.unit_length)
        return data.Batches(self.pack, split, batch_size, **(settings | changes))

    def draws(self, stage, step):
        """The random stream of one step. Draw for the whole batch and keep `self.share`: then every
        clip gets the numbers that it would have got in one process."""
        seed = np.random.SeedSequence([self.config.train.seed, stage == "vae", step])
        number = int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator().manual_seed(number)

    def mean(self, values):
        """{name: value weighted by this process' share} -> sums over all processes, as floats."""
        asked = float(self.asked is not None)  # all stop after the same step, or none
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self.device)
                               .detach() for value in (*values.values(), asked)])
        if self.world > 1:
            dist.all_reduce(numbers)
        *numbers, asked = numbers.tolist()
        self.stopping = self.stopping or asked > 0
        return dict(zip(values, numbers))

    def from_main(self, make):
        """What make() returns on the first process, which alone calls it, on every process. Its
        error is everybody's, too, so that none waits for another."""
        if self.world == 1:
            return make()
        result = attempt(make) if self.main else [None, None]
        dist.broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def together(self, make):
        """What make() returns, which every process calls; an error of one is everybody's."""
        if self.world == 1:
            return make()
        value, error = attempt(make)
        errors = [None] * self.world
        dist.all_gather_object(errors, error)
        for rank, error in enumerate(errors):
            if error is not None:
                raise error if rank == 0 else ValueError(f"Process {rank}: {error}")
        return value

    def check_alike(self):
        """SettingError if a process was started with other settings or data than the first."""
        names = [None] * self.world
        if self.world > 1:
            dist.all_gather_object(names, resume.identity(self))
        for rank, name in enumerate(names):
            if name != names[0]:
                raise SettingError(
                    f"Process {rank} has other settings, another pack or another torch than the "
                    "first; start the same command on copies of one dataset.")

    def show(self, name, motions):
        """Write motions, a list of (joints (T, J, 3) in metres, caption), as a player."""
        show_motions(self.path(f"{name}.html"), motions, self.config)

    def autocast(self):
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.config.train.precision)
        return torch.autocast(self.device.type, kind) if kind else contextlib.nullcontext()


# --------------------------------------------------------------------------------------------------
# The loop, the same for every stage


def fit(run, stage):
    """Train `stage` for its number of steps and leave it with its best weights. Returns whether it
    is finished: if not, it was told to stop, and the state is saved."""
    train, steps, loop = run.config.train, stage.settings.steps, Loop(run, stage)

    def due(every):
        return loop.step % every == 0 or loop.step == steps

    for batch in loop.batches():
        loop.update(batch)
        if due(train.log_every):
            loop.log()
        if due(train.eval_every):
            loop.validate()
        if due(train.save_every):
            loop.save()
    loop.bar.close()
    if loop.step < steps:
        loop.save()
        run.say(f"stopped at step {loop.step} of {stage.name}, saved to {loop.last}; the same "
                "command with --resume goes on from here")
        return False
    loop.finish()
    return True


class Loop:
    """What a stage's training consists of: the network, its optimisers, the moving average of its
    weights, and where it stands. save() writes all of that, and --resume reads it back."""

    def __init__(self, run, stage):
        self.run, self.stage, self.name, self.s = run, stage, stage.name, stage.settings
        self.last, self.best_file = (run.path(f"{self.name}{end}.pt") for end in ("", "_best"))
        self.params = [p for p in stage.parameters() if p.requires_grad]
        self.clip = self.s.grad_clip or math.inf
        self.optimizers = make_optimizers(stage, run.config.train.precision)
        self.scaler = torch.amp.GradScaler(enabled=run.config.train.precision == "fp16")
        self.ema = [p.detach().clone() for p in self.params] if self.s.ema else []
        self.step, self.best, self.logit = 0, math.inf, 0.0
        self.since = fresh()
        if self.name in run.states:
            self.restore(run.states.pop(self.name))
        if run.main:
            run.rewind_log(self.name, self.step)
        parallel = torch.nn.parallel.DistributedDataParallel
        self.net = parallel(stage, broadcast_buffers=False) if run.world > 1 else stage
        self.graph, self.ahead = None, None  # ahead: the next batch, fetched while the GPU works
        if self.recordable():
            self.graph = graphs.TrainingGraph(self.recorded_loss, self.params, self.clip)
            for optimizer in self.optimizers[1:]:
                optimizer.recorded = True
        self.bar = tqdm(total=self.s.steps, initial=self.step, desc=self.name, unit="step",
                        disable=not run.main, dynamic_ncols=True)
        stage.train()

    def restore(self, state):
        optional = "latent_"  # older files had no latents' means and directions
        checkpoint.fill(self.stage, state["model"], self.last, [optional])
        if state.get("vae", self.run.vae) != self.run.vae:
            raise SettingError(f"{self.last} was trained on another VAE than the one at hand: "
                               "--resume goes on with that one, --overwrite starts again.")
        if (state.get("init") or "") != self.run.init:
            raise SettingError(f"{self.last} was fine-tuned from another model than "
                               f"{self.run.config.train.init_from or 'none'}: --resume goes on "
                               "with that one, --overwrite starts again.")
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            groups = [{key: value for key, value in group.items() if key != "params"}
                      for group in optimizer.param_groups]
            for group, old in zip(optimizer.param_groups, saved["param_groups"]):
                if "fused" in group:  # of this device, not of the one that saved
                    old["fused"] = group["fused"]
            optimizer.load_state_dict(saved)
            for group, settings in zip(optimizer.param_groups, groups):
                group.update(settings)  # which --allow-change may have changed
        self.scaler.load_state_dict(state["scaler"])
        if self.s.ema:
            ema = state["ema"] or self.params
            self.ema = [e.detach().clone().to(self.run.device) for e in ema]
        self.step, self.best = state["step"], state["best"]
        self.since = state.get("since") or fresh()
        self.run.say(f"{self.name}: going on from step {self.step} of {self.last}")

    def save(self):
        self.check_weights()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        self.run.from_main(lambda: self.run.save(
            self.last, self.stage.state_dict(), step=self.step, best=self.best, ema=self.ema,
            optimizers=optimizers, scaler=self.scaler.state_dict(), since=self.since,
            vae=self.run.vae))

    def recordable(self):
        """Whether a step's forward and backward can be CUDA graphs: five times as fast as launching
        them one by one (docs/gpu.md)."""
        run, train = self.run, self.run.config.train
        return (run.device.type == "cuda" and graphs.MODE != "0" and run.world == 1
                and hasattr(self.stage, "tensors") and self.s.accumulate == 1
                and train.precision != "fp16" and not train.compile
                and run.config.vae.arch != "none" and self.stage.model[0].rest is None)

    def recorded_loss(self, names, *tensors):
        with self.run.autocast():
            return self.net(dict(zip(names, tensors)))

    def batches(self):
        """The batches of the steps that are left, until the run is told to stop."""
        self.source = self.stage.batches.stream(
            self.step, self.s.steps, self.run.workers, self.stage.prepare)
        try:
            while self.step < self.s.steps and not self.run.stopping:
                self.started = time.perf_counter()
                batch, self.ahead = self.ahead or self.fetch(), None
                yield batch
        finally:
            self.source.close()  # its workers end now, not when it is collected (data.plainly)
            self.graph = None  # a circle with this: its memory would be held as long

    def fetch(self):
        batch = to_device(next(self.source), self.run.device)
        return batch if self.graph is None else {**batch, "tensors": self.stage.tensors(batch)}

    def update(self, batch):
        """One step of the optimisers."""
        self.rate = learning_rate(self.s, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate
        losses = self.backward(batch)
        if self.graph is None:  # else they are looked at when the GPU has its work
            losses = self.checked(losses, batch, self.step)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.s.max_logit and self.step % LOOK == 0:
            with self.run.autocast():
                self.logit = clip_logits(self.stage, lambda: self.stage(batch), self.s.max_logit)
        if self.ema:  # a full decay from the start would keep the random first weights
            decay = min(self.s.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - decay)
        self.step += 1
        if self.graph is not None:
            if self.step < self.s.steps:
                self.ahead = self.fetch()
            losses = self.checked(losses, batch, self.step - 1)
        since, sums = self.since, self.since["sums"]
        since["steps"] += 1
        since["frames"] += batch["global_frames"]
        since["seconds"] += time.perf_counter() - self.started
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + value
        self.bar.update()

    def backward(self, batch):
        """The gradients of a batch, in micro-batches, clipped; returns this process' share of the
        losses."""
        run, n = self.run, self.s.accumulate
        # dropout and the like draw from torch's own stream: it depends on the step, not on the past
        stream = (run.config.train.seed, self.name == "vae", self.step, run.rank)
        seed = hash(stream) % 2**63
        torch.manual_seed(seed)
        if self.graph is not None:
            tensors = batch["tensors"]
            losses = self.graph(seed, tuple(tensors), *tensors.values())
            self.norm = self.graph.norm
            return losses
        self.stage.zero_grad(set_to_none=True)
        losses, parts = {}, list(micro_batches(batch, n))
        for i, part in enumerate(parts):
            # Each loss is a mean over clips. Weighted by its share of the whole batch, the sum over
            # micro-batches and processes is what one big batch would have given. (DDP averages
            # over processes, hence `world`.)
            share = len(part["ids"]) / batch["global_size"]
            wait = run.world > 1 and i + 1 < len(parts)
            with self.net.no_sync() if wait else contextlib.nullcontext():
                with run.autocast():
                    out = self.net(part)
                self.scaler.scale(out["loss"] * (share * run.world)).backward()
            for key, value in out.items():
                losses[key] = losses.get(key, 0.0) + value.detach() * share
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.norm = torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        return losses

    def checked(self, losses, batch, step):
        """The losses over all processes; FloatingPointError if they are no numbers."""
        own, losses = losses["loss"], self.run.mean(losses)
        if not math.isfinite(losses["loss"]):
            clips = f" in the batch of clips {', '.join(batch['ids'])}"
            clips = "" if math.isfinite(own) else clips
            self.fail(f"the loss is {losses['loss']} at step {step}{clips}")
        return losses

    def fail(self, what):
        kept = "no checkpoint was saved yet"
        if os.path.exists(self.last):
            kept = f"the last good checkpoint is {self.last}"
        raise FloatingPointError(
            f"{self.name}: {what}; {kept}. Try a lower train_{self.name}.lr, "
            f"train_{self.name}.grad_clip=1 or --precision float32.")

    def check_weights(self):
        """FloatingPointError for weights that are no numbers: a finite loss may have an infinite
        gradient, and what is saved must be good."""
        good = torch.stack([p.detach().isfinite().all() for p in self.params]).all()
        if not good:
            self.fail(f"weights are no longer finite after step {self.step - 1}")

    def log(self):
        means = {key: value / self.since["steps"] for key, value in self.since["sums"].items()}
        speed = round(self.since["frames"] / max(self.since["seconds"], 1e-9))
        self.bar.set_postfix(loss=f"{means['loss']:.4f}", frames=f"{speed}/s")
        self.run.log(stage=self.name, step=self.step, lr=self.rate, grad_norm=float(self.norm),
                     **({"logit": self.logit} if self.s.max_logit else {}), frames_per_s=speed,
                     **self.stage.summary(means))
        self.since = fresh()

    def validate(self):
        """Losses over val with the averaged weights, which are kept if they are the best so far;
        now and then example motions."""
        run, every = self.run, self.run.config.train.sample_every
        self.check_weights()
        self.stage.eval()
        with averaged(self.params, self.ema), run.autocast():
            values = self.stage.validate()
            if values["loss"] < self.best:
                self.best = values["loss"]
                run.from_main(lambda: run.save(self.best_file, self.stage.state_dict(),
                                               step=self.step))
            if every and self.step % every == 0 and self.step < self.s.steps:
                run.from_main(lambda: self.stage.show(self.step))
        self.stage.train()
        words = ", ".join(f"val {key} {value:.4g}" for key, value in values.items())
        run.say(f"{self.name} step {self.step}: {words}")
        run.log(stage=self.name, step=self.step,
                **{f"val_{key}": value for key, value in values.items()})

    def finish(self):
        """Take the best weights, and show what they do."""
        best = self.run.from_main(lambda: checkpoint.load(self.best_file)["model"])
        checkpoint.fill(self.stage, best, self.best_file)
        self.stage.eval()
        with self.run.autocast():
            self.run.from_main(lambda: self.stage.show(self.step))


def fresh():
    """What is counted from one line of the log to the next."""
    return {"steps": 0, "sums": {}, "frames": 0, "seconds": 0.0}


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

    def along_clips(value):
        return isinstance(value, list) or torch.is_tensor(value) and value.shape[:1] == (size,)

    cuts = [size * i // n for i in range(n + 1)]
    for a, b in zip(cuts, cuts[1:]):
        if b > a:
            yield {key: value[a:b] if along_clips(value) else value for key, value in batch.items()}


# --------------------------------------------------------------------------------------------------
# The program


def build(run):
    """A fresh MLD for the run's dataset, weights drawn from the seed."""
    c, pack = run.config, run.pack
    torch.manual_seed(c.train.seed)
    encoder = None
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
    if run.init:
        finetune.start(model, c.train.init_from)
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
