"""A run of train.py: its folder, log, processes and device, the data, and what is drawn when."""
import contextlib
import ctypes
import json
import os
import signal
import time

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import checkpoint
import data
import finetune
import resume
from config import SettingError
from files import atomic_write, lock
from kernels.rates import PAYS, bf16_rate
from view.report import read_log, show_motions


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
        self.new_latents = False  # whether its denoiser does not know the latents it gets
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
