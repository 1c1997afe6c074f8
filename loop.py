"""The loop of a training, the same for every stage: steps, validation, checkpoints."""
import contextlib
import math
import os
import time

import torch
from tqdm import tqdm

import checkpoint
from config import SettingError
from data import to_device
from kernels import graphs
from optimizers import LOOK, clip_logits, learning_rate, make_optimizers

ASTRAY = 1.1  # times the best loss on val: from there on it is said


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
        self.step, self.best = 0, math.inf
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
        begun = time.perf_counter()
        batch = to_device(next(self.source), self.run.device)
        self.since["loading"] = self.since.get("loading", 0.0) + time.perf_counter() - begun
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
                logit = clip_logits(self.stage, lambda: self.look(batch), self.s.max_logit)
            self.since["logit"] = max(logit, self.since.get("logit", 0.0))
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

    def look(self, batch):
        """Forward passes of a batch alone."""
        for part in micro_batches(batch, self.s.accumulate):
            self.stage(part)

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
        since, taken = self.since, max(self.since["seconds"], 1e-9)
        means = {key: value / since["steps"] for key, value in since["sums"].items()}
        speed, loading = since["frames"] / taken, since.get("loading", 0.0) / taken
        looked = {"logit": since["logit"]} if "logit" in since else {}
        self.bar.set_postfix(loss=f"{means['loss']:.4f}", frames=f"{speed:.0f}/s")
        self.run.log(stage=self.name, step=self.step, lr=self.rate, grad_norm=float(self.norm),
                     **looked, frames_per_s=round(speed), loading=round(loading, 4),
                     **self.stage.summary(means))
        self.since = fresh()

    def validate(self):
        """Losses over val with the averaged weights, which are kept if they are the best so far, or
        with keep = last; now and then example motions."""
        run, every = self.run, self.run.config.train.sample_every
        self.check_weights()
        self.stage.eval()
        with averaged(self.params, self.ema), run.autocast():
            values = self.stage.validate()
            note = astray(values["loss"], self.best) * (self.s.keep == "best")
            if values["loss"] < self.best or self.s.keep == "last":
                self.best = min(self.best, values["loss"])
                run.from_main(lambda: run.save(self.best_file, self.stage.state_dict(),
                                               step=self.step))
            if every and self.step % every == 0 and self.step < self.s.steps:
                run.from_main(lambda: self.stage.show(self.step))
        self.stage.train()
        words = ", ".join(f"val {key} {value:.4g}" for key, value in values.items())
        run.say(f"{self.name} step {self.step}: {words}{note}")
        run.log(stage=self.name, step=self.step,
                **{f"val_{key}": value for key, value in values.items()})

    def finish(self):
        """Take the weights that were kept, say of which step they are, and show what they do."""
        best = self.run.from_main(lambda: checkpoint.load(self.best_file))
        checkpoint.fill(self.stage, best["model"], self.best_file)
        why = ", the best on val" * (self.s.keep == "best")
        self.run.say(f"{self.name}: kept are the weights of step {best['step']}{why}")
        self.stage.eval()
        with self.run.autocast():
            self.run.from_main(lambda: self.stage.show(self.step))


def astray(loss, best):
    """What is said of a loss on val far above the best so far, or none; of another one nothing."""
    if loss <= ASTRAY * best:
        return ""
    return (f"\n  The best so far was {best:.4g}: the training has gone astray, or it learns its "
            "clips by heart. What is kept are the weights of the best; docs/training.md has what "
            "helps.")


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

    @torch.no_grad()
    def become(values):  # not through .data, which hides from copies of weights that they changed
        torch._foreach_copy_([*params], values)

    become(ema)
    try:
        yield
    finally:
        become(own)


def micro_batches(batch, n):
    """Cut a batch into n parts along its clips."""
    size = len(batch["ids"])

    def along_clips(value):
        return isinstance(value, list) or torch.is_tensor(value) and value.shape[:1] == (size,)

    cuts = [size * i // n for i in range(n + 1)]
    for a, b in zip(cuts, cuts[1:]):
        if b > a:
            yield {key: value[a:b] if along_clips(value) else value for key, value in batch.items()}
