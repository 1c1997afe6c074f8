"""train.py as a program on a small dataset: each stage, exact resume, two processes, bad ends."""
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch._dynamo  # optimisers import it: once here, not in every child that is forked
import test_optimizers
import warm

import checkpoint
import loop
import stages
import train
from files import PART
from flags import parse_args
from conftest import GOLDEN
from dev import step
from formats.pack import Caption, Clip, write_pack
from kernels import rates, training
from stages import DiffusionStage

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = """
    --train_vae.steps=12 --train_diffusion.steps=12 --train.eval_every=6 --train.save_every=3
    --train.sample_every=6 --train.log_every=1 --cache_latents=2 --vae.latent_dim=16
    --vae.ff_size=32 --vae.num_layers=3 --denoiser.latent_dim=16 --denoiser.ff_size=32
    --denoiser.num_layers=3 --denoiser.text_encoded_dim=16 --text.width=16 --text.layers=1
    --diffusion.num_inference_steps=4 --train_vae.batch_size=8 --train_vae.optimizer=muon
    --train_vae.warmup=0 --train_vae.lr=1e-3 --train_diffusion.batch_size=8 --train.threads=1
    --train_vae.max_logit=0.2 --train_diffusion.max_logit=0.2
    --precision=float32 --data.max_frames=60
""".split()


def clips_of(seed):
    """40 short clips in two actions."""
    features = np.load(GOLDEN / "motion_features.npz")["t2m/features"].astype(np.float32)
    rng = np.random.default_rng(seed)
    for i in range(40):
        action = ("walk", "jump")[i % 2]
        split = ("train", "train", "train", "val", "test")[i % 5]
        frames = features[:int(rng.integers(40, 59))]
        motion = frames + rng.normal(size=(1, 263)).astype(np.float32) * 0.05
        captions = [Caption(f"a man {action}s {word}") for word in ("once", "slowly", "here")]
        yield Clip(f"{i:03d}", captions, split, action, motion)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data/made/made.pack."""
    folder = tmp_path_factory.mktemp("train")
    write_pack(folder / "data" / "made" / "made.pack", clips_of(0), name="made", skeleton="t2m",
               fps=20.0, actions=["walk", "jump"])
    return folder


def command(root, *flags, processes=1):
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *many[:4 * (processes > 1)], "train.py", "--dataset=made",
            f"--assets.data_root={root / 'data'}", f"--out={root / 'out'}", *SMALL, *flags]


def run(root, *flags):
    return warm.run(*command(root, *flags)[1:])


def log(root, name):
    """{(stage, step): {key: value}} of a run, without what the clock decides."""
    entries = {}
    for line in (root / "out" / name / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for timed in ("frames_per_s", "loading"):
            entry.pop(timed, None)
        entries.setdefault((entry["stage"], entry["step"]), {}).update(entry)
    return entries


@pytest.fixture(scope="module")
def whole(root):
    """An uninterrupted run of both stages."""
    done = run(root, "--name=whole")
    assert done.returncode == 0, done.stderr[-2000:]
    return root / "out" / "whole"


def test_one_command_ends_in_a_model_that_samples(root, whole):
    assert {
        "vae.pt",
        "diffusion.pt",
        "vae_best.pt",
        "diffusion_best.pt",
        "model.pt",
        "log.jsonl",
        "report.html",
    } <= set(os.listdir(whole))
    entries = log(root, "whole")
    assert len(entries) == 24 and all(
        np.isfinite(list(v for k, v in e.items() if k != "stage")).all() for e in entries.values()
    )
    assert {"val_error_t0", "val_sampled_std_ratio", "lr", "grad_norm", "error_t3"} <= set(
        entries["diffusion", 12]
    )
    assert entries["vae", 12]["features"] < entries["vae", 1]["features"]
    model = checkpoint.load_model(str(whole / "model.pt"))
    lengths = model.draw_lengths(["a man walks"], seed=0)
    features, joints = model.generate(["a man walks"], lengths=lengths, seed=0)
    assert joints.shape == (1, lengths[0], 22, 3) and joints.isfinite().all()


def test_the_final_motions_are_in_the_folder_and_the_terminal_is_quiet(root, whole):
    """sample_every is 6: motions of step 6 while training, and of the finished stages at 12."""
    shown = sorted(name for name in os.listdir(whole) if name.endswith(".html"))
    assert shown == ["diffusion-0000006.html", "diffusion-0000012.html", "report.html",
                     "vae-0000006.html", "vae-0000012.html"]
    done = run(root, "--name=whole", "--resume", "--train.sample_every=0")
    assert done.returncode == 0 and len(done.stdout.splitlines()) < 10, done.stderr[-2000:]
    assert '"lambda_kl"' in run(root, "--name=whole", "--resume", "--verbose").stdout


def test_the_frozen_vae_does_not_change_by_a_bit(whole):
    before, after = (
        checkpoint.load(whole / "vae_best.pt")["model"],
        checkpoint.load(whole / "model.pt")["model"],
    )
    vae = [key for key in after if key.startswith("vae.")]
    assert vae and all(torch.equal(before[key], after[key]) for key in vae)


KILLER = """
import contextlib, os, signal, sys
sys.path.insert(0, {root!r})
import checkpoint, train
where, count = {where!r}, {count}
log, write = train.Run.log, checkpoint.atomic_write

def die_in_log(self, **values):
    log(self, **values)
    if (values["stage"], values["step"]) == (where, count):
        os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def die_in_write(path):
    global count
    count -= 1
    with write(path) as file:
        if count == 0:
            file.write(b"half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        yield file

train.Run.log = die_in_log
if where == "write":
    checkpoint.atomic_write = die_in_write
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "processes, where, count", [(1, "vae", 5), (1, "diffusion", 8), (1, "write", 3), (2, "vae", 8)]
)
def test_killed_and_resumed_gives_the_same_numbers(root, whole, tmp_path, processes, where, count):
    name = f"killed-{processes}-{where}"
    (tmp_path / "killer.py").write_text(KILLER.format(root=str(ROOT), where=where, count=count))
    argv = [
        str(tmp_path / "killer.py") if word == "train.py" else word
        for word in command(root, f"--name={name}", processes=processes)
    ]
    # a dead rank takes the other with it
    start = subprocess.run if processes == 2 else lambda argv, **_: warm.run(*argv[1:])
    killed = start(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert killed.returncode != 0 and not (root / "out" / name / "model.pt").exists()
    if processes == 2:
        assert "SIGKILL" in killed.stderr, "torchrun names the rank that died, and how"
    with open(root / "out" / name / "log.jsonl", "a") as file:
        file.write('{"stage": "vae", "st')  # a line cut in the middle
    if processes == 1:
        done = run(root, f"--name={name}", "--resume")
        assert done.returncode == 0 and "going on from step" in done.stdout, done.stderr[-2000:]
        assert log(root, name) == log(root, "whole")
    else:
        codes, out = two_processes(root, "train.py", f"--name={name}", "--resume")
        assert codes == [0, 0] and "going on from step" in out[0], out
        compare(log(root, name), log(root, "whole"), 1e-4)
        codes, out = two_processes(root, "train.py", "--name=two-whole")
        assert codes == [0, 0] and log(root, name) == log(root, "two-whole"), out


def forked(flags, root, hook=None):
    """train.py in a child of this process, which has everything imported; returns its status."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            if hook:
                hook()
            train.main(command(root, *flags)[2:])
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


STEPS = 23


def dies(point, how):
    """A hook that ends a training at its step `point`, counted over both stages: a SIGKILL after
    the step, one after the next line of the log, or Ctrl-C."""
    def hook():
        update, write = loop.Loop.update, train.Run.log

        def reached(stage, step):
            return step + STEPS * (stage == "diffusion") >= point

        def updated(self, batch):
            update(self, batch)
            if how != "in log" and reached(self.name, self.step):
                os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGINT)

        def logged(self, **values):
            write(self, **values)
            if how == "in log" and reached(values["stage"], values["step"]):
                os.kill(os.getpid(), signal.SIGKILL)

        loop.Loop.update, train.Run.log = updated, logged
    return hook


def test_twenty_kills_leave_every_line_of_the_log_as_it_is(root):
    """The intervals of log, validation and checkpoint are coprime, so that kills and Ctrl-C fall
    between all of them."""
    flags = (f"--train_vae.steps={STEPS}", f"--train_diffusion.steps={STEPS}",
             "--train.log_every=5", "--train.save_every=3", "--train.eval_every=7",
             "--train.sample_every=0")
    assert forked((*flags, "--name=unkilled"), root) == 0
    expected, rng = log(root, "unkilled"), np.random.default_rng(0)
    assert [step for stage, step in expected if stage == "vae"] == [5, 7, 10, 14, 15, 20, 21, 23]
    for name in ("killed-0", "killed-1", "killed-2", "killed-3"):
        points = sorted(rng.choice(np.arange(1, 2 * STEPS - 2), 5, replace=False).tolist())
        for i, point in enumerate(points):
            how = ("kill", "in log", "ctrl-c")[rng.integers(3)]
            ended = forked((*flags, f"--name={name}", *["--resume"] * (i > 0)), root,
                           dies(point, how))
            assert (ended == 0) == (how == "ctrl-c"), (name, point, how, ended)
            assert not (root / "out" / name / "model.pt").exists()
        assert forked((*flags, f"--name={name}", "--resume"), root) == 0
        assert log(root, name) == expected, points


VAE = ("--stage=vae", "--train.eval_every=100", "--train.sample_every=0")


def test_an_overwritten_run_leaves_nothing_to_the_new_one(root, whole, tmp_path):
    """Killed in its first stage, a run that overwrites another goes on alone."""
    shutil.copytree(whole, root / "out" / "again")
    killer = tmp_path / "killer.py"
    killer.write_text(KILLER.format(root=str(ROOT), where="vae", count=5))
    flags = ("--name=again", "--seed=7")
    argv = [str(killer) if word == "train.py" else word
            for word in command(root, *flags, "--overwrite")]
    assert warm.run(*argv[1:]).returncode
    left = os.listdir(root / "out" / "again")
    assert "vae.pt" in left and not {"diffusion.pt", "model.pt", "vae_best.pt"} & set(left)
    before = (whole / "model.pt").read_bytes()
    assert (root / "out" / "again" / "previous" / "model.pt").read_bytes() == before
    assert run(root, *flags, "--resume").returncode == 0
    assert run(root, "--name=fresh", "--seed=7").returncode == 0
    assert log(root, "again") == log(root, "fresh") != log(root, "whole")
    files = ("vae.pt", "vae_best.pt", "diffusion.pt", "diffusion_best.pt", "model.pt")
    ids = {checkpoint.load(root / "out" / "again" / name)["run"] for name in files}
    assert len(ids) == 1 and ids != {checkpoint.load(whole / "model.pt")["run"]}


@pytest.mark.parametrize("more", [(), ("--denoiser.arch=modulated", "--denoiser.modulated_dim=12")],
                         ids=["", "modulated"])
def test_resume_goes_on_in_the_directions_that_it_began_in(root, monkeypatch, more):
    """Another machine may find main directions with the other sign, or mixed where two matter
    alike; the denoiser knows the first ones only."""
    def train_it(name, *flags):
        options = train.Options()
        config, _ = parse_args(command(root, f"--name={name}{bool(more)}", *more,
                                       "--denoiser.principal=1", *flags)[2:], options)
        train.train(config, options)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    straight, turned = f"straight{bool(more)}", f"turned{bool(more)}"
    train_it("straight")
    usual, axes = loop.Loop.update, stages.principal_axes

    def update(self, batch):
        usual(self, batch)
        self.run.stopping = self.name == "diffusion" and self.step == 7

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "update", update)
        train_it("turned")
    assert not (root / "out" / turned / "model.pt").exists()
    shutil.copytree(root / "out" / turned, root / "moved" / turned)  # this process locks it
    monkeypatch.setattr(stages, "principal_axes", lambda *args: [-x for x in axes(*args)])
    train_it("turned", "--resume", f"--out={root / 'moved'}")
    shutil.copytree(root / "moved" / turned, root / "out" / turned, dirs_exist_ok=True)
    assert log(root, turned) == log(root, straight)
    ends = [checkpoint.load(root / "out" / name / "model.pt")["model"] for name in
            (turned, straight)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])


def refused(root, words, *flags):
    done = run(root, *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert words in done.stderr, done.stderr[-800:]


def test_nothing_of_another_run_is_taken(root, whole):
    for name in ("other-vae", "mixed"):
        assert run(root, f"--name={name}", *VAE, "--seed=8").returncode == 0
    mixed = root / "out" / "mixed"
    shutil.copy(whole / "diffusion.pt", mixed)
    refused(root, "diffusion.pt is of another run than vae.pt beside it", "--name=mixed",
            "--resume", "--seed=8")
    shutil.copy(whole / "vae_best.pt", mixed)
    refused(root, "vae_best.pt is of another run", "--name=mixed", "--resume", *VAE, "--seed=8")
    shutil.copytree(whole, root / "out" / "on-others")
    refused(root, "was trained on another VAE", "--name=on-others", "--stage=diffusion",
            f"--train.vae_checkpoint={root / 'out' / 'other-vae' / 'vae_best.pt'}", "--resume")
    refused(root, "more steps would change", "--name=on-others", "--resume",
            "--train_vae.steps=14", "--allow-change=steps")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_without_a_precision_resume_goes_on_in_that_which_it_began_in(root, precision):
    name = f"--name=in-{precision}"
    flags = (name, *VAE, "--train_vae.steps=6", "--train_vae.schedule=constant")
    assert run(root, *flags, f"--precision={precision}").returncode == 0
    done = run(root, *flags, "--train_vae.steps=9", "--allow-change=steps", "--resume",
               "--precision=auto")
    assert done.returncode == 0 and "going on from step 6" in done.stdout, done.stderr[-800:]
    assert ("training in bfloat16" in done.stdout) == (precision == "bf16")
    held = checkpoint.load(root / "out" / name[7:] / "vae.pt")
    assert (held["step"], held["config"].train.precision) == (9, precision)


def test_the_precision_is_chosen_by_what_the_processor_does(root, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options, chosen = train.Options(), []
    for rate in (1.9, 2.0, 9.0):
        monkeypatch.setattr("run.bf16_rate", lambda device, rate=rate: rate)
        config, _ = parse_args(command(root, "--name=rates", "--precision=auto")[2:], options, "")
        chosen.append(train.Run(config, options).config.train.precision)
    assert chosen == ["float32", "bf16", "bf16"]
    assert rates.bf16_rate(torch.device("mps")) == 0 < rates.bf16_rate(torch.device("cpu"))
    # a product in bfloat16 that takes 100 times as long is tried on small matrices only
    sizes = []
    slow = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
    monkeypatch.setattr(rates, "seconds", lambda a, b: sizes.append(len(a)) or slow[a.dtype])
    assert rates.bf16_rate(torch.device("cpu")) == pytest.approx(0.01) and set(sizes) == {64}
    # small ones may take longer where large ones are faster
    took = {(64, torch.float32): 1e-5, (64, torch.bfloat16): 2e-5,
            (512, torch.float32): 2e-3, (512, torch.bfloat16): 5e-4}
    monkeypatch.setattr(rates, "seconds", lambda a, b: took[len(a), a.dtype])
    assert rates.bf16_rate(torch.device("cpu")) == pytest.approx(4)


def test_resume_refuses_changes_that_are_not_named(root):
    assert run(root, "--name=changed", *VAE).returncode == 0
    again = ("--name=changed", *VAE, "--resume")
    said = run(root, "--name=misspelled", *VAE, "--resume").stdout
    assert "misspelled holds no run to go on with: a new one begins" in said
    refused(root, "give that as well", "--name=new", *VAE, "--allow-change=lr")
    for flag, words in (
        ("--seed=5", "train.seed=1234, now it is 5"),
        ("--train_vae.batch_size=4", "train_vae.batch_size=8, now it is 4"),
        ("--train_vae.schedule=constant", "train_vae.schedule=cosine, now it is constant"),
        ("--train_vae.ema=0.5", "if you add --allow-change train_vae.ema"),
        ("--precision=bf16", "train.precision=float32, now it is bf16"),
        ("--data.min_length=44", "data.min_length=40, now it is 44"),
        ("--vae.lambda_kl=0.1", "vae.lambda_kl=0.0001, now it is 0.1"),
        ("--allow-change=lr,stepps", "unknown setting 'stepps'. Did you mean steps?"),
        ("--overwrite", "--resume goes on, --overwrite starts again: give one of the two"),
    ):
        refused(root, words, *again, flag)
    refused(root, "vae.pt does not fit: it has weights of other shapes", *again,
            "--vae.ff_size=12", "--allow-change=vae.ff_size")
    refused(root, "train_vae.optimizer=muon, now it is adamw", *again,
            "--train_vae.optimizer=adamw", "--allow-change=optimizer")
    pack = root / "data" / "made" / "made.pack"
    whole = pack.read_bytes()
    try:
        write_pack(pack, clips_of(1), name="made", skeleton="t2m", fps=20.0,
                   actions=["walk", "jump"])
        refused(root, "data.dataset=made packed as ", *again)
    finally:
        pack.write_bytes(whole)


def test_a_change_that_is_named_is_made(root):
    """More steps at another rate: the log says what was asked for, after the old lines."""
    flags = ("--name=longer", *VAE)
    assert run(root, *flags).returncode == 0
    before = log(root, "longer")
    more = ("--train_vae.steps=15", "--train_vae.lr=3e-4", "--train_vae.schedule=constant",
            "--train_vae.weight_decay=0.5", "--train_vae.ema=0")
    done = run(root, *flags, *more, "--resume",
               "--allow-change=lr,steps,train_vae.schedule,weight_decay,ema")
    assert done.returncode == 0, done.stderr[-2000:]
    after = log(root, "longer")
    assert {key: after[key] for key in before} == before and len(after) == 15
    assert [after["vae", step]["lr"] for step in (13, 14, 15)] == [3e-4] * 3
    state = checkpoint.load(root / "out" / "longer" / "vae.pt")
    groups = [group for one in state["optimizers"] for group in one["param_groups"]]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0} and state["ema"] == []


def compare(a, b, tolerance):
    assert a.keys() == b.keys()
    for key in a:
        for name in a[key].keys() - {"stage", "step"}:
            assert a[key][name] == pytest.approx(b[key][name], rel=tolerance, abs=1e-6), (key, name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(root, whole, number):
    """A terminal and a cluster send it to the processes that prepare batches, too."""
    name = f"stopped-{number}"
    flags = (f"--name={name}", "--train.save_every=1000", "--data.workers=1")
    running = subprocess.Popen(command(root, *flags), cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, start_new_session=True)
    path = root / "out" / name / "log.jsonl"
    while running.poll() is None and not (path.exists() and '"step": 2' in path.read_text()):
        time.sleep(0.01)
    os.killpg(running.pid, number)
    out = running.communicate(timeout=100)[0]
    assert running.returncode == 0 and "--resume goes on from here" in out, out[-2000:]
    assert run(root, f"--name={name}", "--resume").returncode == 0
    assert log(root, name) == log(root, "whole")


def test_two_machines_need_not_share_a_disk(root, whole, tmp_path):
    """The second process has a folder of its own, and nothing is read from there or written."""
    other = (f"--out={tmp_path / 'elsewhere'}",)
    script = tmp_path / "signalled.py"
    script.write_text(HOOKED.format(root=str(ROOT), then="if (self.run.rank, self.name, self.step) "
                                    "== (0, 'diffusion', 4): os.kill(os.getpid(), 2)"))
    codes, out = two_processes(root, script, "--name=apart", other=other)
    assert codes == [0, 0] and "stopped at step 5 of diffusion" in out[0], out
    codes, out = two_processes(root, "train.py", "--name=apart", "--resume", other=other)
    assert codes == [0, 0] and not (tmp_path / "elsewhere").exists(), out
    compare(log(root, "apart"), log(root, "whole"), 1e-4)
    # what one process finds wrong ends both, each with the sentence
    data = tmp_path / "data" / "made" / "made.pack"
    for flags, words in (
        (("--train_vae.lr=1e-5",), "Process 1 has other settings"),
        ((f"--assets.data_root={tmp_path / 'data'}",), "Process 1 has other settings, another"),
        (("--device=cpu", "--data.fps=30"), "Process 1: "),
    ):
        data.parent.mkdir(parents=True, exist_ok=True)
        write_pack(data, clips_of(1), name="made", skeleton="t2m", fps=20.0,
                   actions=["walk", "jump"])
        codes, out = two_processes(root, "train.py", "--name=unalike", other=flags)
        assert codes == [1, 1] and all(words in one for one in out), out
        assert not any("Traceback" in one for one in out), out
    codes, out = two_processes(root, "train.py", "--name=apart", other=other)
    assert codes == [1, 1] and all("holds a run already" in one for one in out), out


def test_two_trainings_in_one_folder_are_refused(root, whole, tmp_path):
    """And the lock of the first one ends with it, however it ends; so does what it left half."""
    script = tmp_path / "waits.py"
    script.write_text(HOOKED.format(root=str(ROOT), then="print('in a step', flush=True); "
                                    "time.sleep(60)"))
    flags = ("--name=twice", "--data.workers=1")
    argv = [str(script) if word == "train.py" else word for word in command(root, *flags)]
    running = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while running.stdout.readline().strip() not in ("in a step", ""):
        pass
    for more in ((), ("--resume",), ("--overwrite",)):
        refused(root, "Another process is training in", *flags, *more)
    folder = root / "out" / "twice"
    (folder / f"vae.pt.abcd{PART}").write_bytes(b"half of a checkpoint")
    running.kill()
    running.wait()
    running.stdout.close()
    done = run(root, *flags, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert log(root, "twice") == log(root, "whole") and not list(folder.glob("*.part"))


@pytest.mark.parametrize("fault", ["raise TypeError('Descriptors cannot be created')",
                                   "raise ImportError('libprotobuf.so: no such file')"])
def test_a_broken_tensorboard_costs_one_warning(root, tmp_path, fault):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text(fault)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = warm.run(*command(root, "--name=board", *VAE, "--overwrite")[1:], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (done.stdout + done.stderr).count("warning: TensorBoard is broken") == 1


def test_a_wall_clock_that_stands_still_or_goes_back_harms_nothing(root):
    clock = iter(range(10**9, 0, -1))

    def hook():
        time.time = lambda: float(next(clock) // 1000)

    assert forked(("--name=clock", *VAE), root, hook) == 0
    lines = (root / "out" / "clock" / "log.jsonl").read_text().splitlines()
    speeds = [entry["frames_per_s"] for entry in map(json.loads, lines) if "loss" in entry]
    assert len(speeds) == 12 and all(0 < speed < 1e7 for speed in speeds)


HOOKED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import loop
import train
update = loop.Loop.update

def updated(self, batch):
    update(self, batch)
    {then}

loop.Loop.update = updated
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_without_a_traceback(root, tmp_path, number):
    script = tmp_path / "slow.py"
    script.write_text(HOOKED.format(root=str(ROOT), then="print('in a step', flush=True); "
                                    "[time.sleep(1) for _ in range(60)]"))
    argv = [str(script) if word == "train.py" else word
            for word in command(root, f"--name=twice-{number}", *VAE)]
    running = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    while running.stdout.readline().strip() not in ("in a step", ""):
        pass
    for _ in range(2):
        running.send_signal(number)
        time.sleep(0.3)
    _, errors = running.communicate(timeout=10)
    assert running.returncode == 128 + number and "Traceback" not in errors, errors[-2000:]


def two_processes(root, script, *flags, other=()):
    """Two processes, the second with flags of its own -> exit codes, and what they printed."""
    def line(*more):
        words = command(root, *flags, *more)[1:]
        return [str(script) if word == "train.py" else word for word in words]

    ended = warm.two(*line(), other=line(*other))
    return [done.returncode for done in ended], [done.stdout + done.stderr for done in ended]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_of_two_stops_both_after_the_same_step(root, whole, tmp_path, rank):
    script, name = tmp_path / "signalled.py", f"one-of-two-{rank}"
    script.write_text(HOOKED.format(root=str(ROOT), then=f"if (self.run.rank, self.step) == "
                                    f"({rank}, 5): os.kill(os.getpid(), signal.SIGTERM)"))
    codes, out = two_processes(root, script, f"--name={name}", "--train.save_every=1000")
    assert codes == [0, 0] and "stopped at step 6 of vae" in out[0], out
    codes, out = two_processes(root, "train.py", f"--name={name}", "--resume")
    assert codes == [0, 0], out
    compare(log(root, name), log(root, "whole"), 1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ("--condition=action",),
        ("--condition=none",),
        ("--modules=novae",),
        ("--vae.latent_size=7", "--cache_latents=0"),
        (
            "--precision=bf16",
            "--train_vae.accumulate=2",
            "--train_diffusion.accumulate=3",
            "--train_diffusion.batch_size=9",
        ),
    ],
    ids=lambda flags: flags[0].strip("-"),
)
def test_other_models_train_too(root, flags):
    flags = (*flags, "--diffusion.num_inference_steps=4", "--overwrite", "--name=other")
    flags = (
        (*flags, "--cache_latents=0", "--diffusion.sampler=ddim")
        if "--modules=novae" in flags
        else flags
    )
    done = run(root, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    model = checkpoint.load_model(str(root / "out" / "other" / "model.pt"))
    kind = model.config.denoiser.condition
    conditions = {"text": (["a man walks"], None), "action": (None, [1]), "none": (None, None)}[
        kind
    ]
    assert model.generate(*conditions, lengths=[44], seed=0)[1].isfinite().all()


def test_micro_batches_are_one_batch_for_losses_and_for_the_limit_of_logits(root):
    logs = []
    for parts in (1, 2):
        done = run(root, f"--name=parts{parts}", "--stage=vae", "--vae.dropout=0",
                   "--vae.attention_dropout=0", f"--train_vae.accumulate={parts}")
        assert done.returncode == 0, done.stderr[-2000:]
        logs.append(log(root, f"parts{parts}"))
    one, two = logs
    looks = [step for step in one if "logit" in one[step]]
    assert looks == [("vae", 1), ("vae", 11)] and one["vae", 1]["logit"] > 0.2
    for step, values in one.items():
        for key in {"loss", "logit", "val_loss"} & set(values):
            assert two[step][key] == pytest.approx(values[key], rel=1e-3), (step, key)


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "holds a run already"),
        (("--stage=diffusion",), "holds a run already (diffusion.pt)"),
        (("--resume", "--vae.ff_size=12"), "vae.ff_size=32, now it is 12"),
        (("--resume", "--train_vae.optimizer=adamw"), "train_vae.optimizer=muon, now it is adamw"),
        (
            ("--resume", "--diffusion.prediction_type=epsilon"),
            "prediction_type=v_prediction, now it is epsilon",
        ),
    ],
)
def test_a_finished_run_is_not_overwritten_unasked_nor_resumed_as_another(
    root, whole, flags, words
):
    done = run(root, "--name=whole", *flags)
    assert (
        done.returncode == 1
        and words in done.stderr
        and "--resume goes on" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr[-800:]


def test_a_nan_loss_names_step_clips_and_checkpoint(root):
    done = run(
        root,
        "--name=nan",
        "--stage=vae",
        "--train_vae.lr=100",
        "--train_vae.grad_clip=0",
        "--train_vae.warmup=0",
        "--train.save_every=1",
    )
    last = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode == 1
        and "the loss is" in last
        and "batch of clips 0" in last
        and "vae.pt" in last
    ), done.stderr[-1500:]


def test_cached_latents_come_with_the_lengths_of_their_crops(root, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options = train.Options()
    config, _ = parse_args(command(root, "--name=lengths")[2:], options, "")
    made = train.Run(config, options)
    stage = DiffusionStage(made, train.build(made).eval())
    steps, same = len(stage.batches), []
    for epoch in range(4):
        batch = stage.batches.batch(epoch, 0)
        ready = stage.prepare(batch, epoch * steps)
        # two crops are cached
        _, lengths, _ = made.batches("train", 8).crops(epoch % 2, batch["items"].numpy())
        assert ready["lengths"].tolist() == lengths.tolist()
        same.append(torch.equal(ready["lengths"], batch["lengths"]))
    assert same[:2] == [True, True] and not all(same)


@pytest.mark.parametrize("flags", [
    [], ["--denoiser.condition=action"], ["--modules=novae", "--cache_latents=0"]])
def test_several_noise_levels_of_a_clip_are_as_many_batches(root, monkeypatch, flags):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options = train.Options()
    flags = command(root, "--name=levels", "--train_diffusion.draws=3", *flags)[2:]
    config, _ = parse_args(flags, options, "")
    made = train.Run(config, options)
    model = train.build(made).eval()
    stage = DiffusionStage(made, model)
    batch = stage.prepare(stage.batches.batch(0, 0), 0)
    thirds = batch["t"] * 3 // len(model.schedule)  # one level in each third of them
    assert batch["t"].shape == (8, 3) and thirds.sort(1).values.tolist() == [[0, 1, 2]] * 8
    assert not torch.equal(batch["eps"][:, 0], batch["eps"][:, 1])

    asked, encoder = [], model.text_encoder
    if encoder is not None:
        monkeypatch.setattr(encoder, "forward", lambda texts, own=encoder.forward:
                            asked.append(len(texts)) or own(texts))
    whole = stage(batch)["loss"].detach()
    assert all(count <= len({*batch["texts"], ""}) for count in asked)
    drawn = ("t", "eps", "dropped")
    parts = [{**batch, **{k: batch[k][:, i:i + 1] for k in drawn}} for i in range(3)]
    each = torch.stack([stage(part)["loss"].detach() for part in parts])
    torch.testing.assert_close(whole, each.mean())
    assert each.std() > 0
    # where a whole step is a CUDA graph, texts come as what the encoder makes of them beforehand
    if stage.kind == "text" and hasattr(encoder, "ready"):
        ready = {**batch, **stage.tensors(batch)}
        torch.testing.assert_close(stage(ready)["loss"].detach(), whole)
    # of validation there is one level a clip, whatever the setting
    assert stage.prepare(made.batches("val", 4).batch(0, 0), 0, "val")["t"].shape == (4, 1)


@pytest.mark.parametrize("cached", [0, 1])
def test_some_clips_tell_no_length(root, monkeypatch, cached):
    """A share of training's, none of val's; the numbers that are drawn for the rest stay."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ready = {}
    for share in (0.0, 0.5):
        options = train.Options()
        flags = command(root, f"--name=told{share}", "--train_diffusion.batch_size=8",
                        f"--cache_latents={cached}", f"--denoiser.length_dropout={share}")[2:]
        config, _ = parse_args(flags, options, "")
        made = train.Run(config, options)
        stage = DiffusionStage(made, train.build(made).eval())
        ready[share] = [stage.prepare(stage.batches.batch(0, 0), step) for step in range(20)]
        val = stage.prepare(made.batches("val", 4).batch(0, 0), 0, "val")
        assert "told" not in val
    for plain, batch in zip(ready[0.0], ready[0.5]):
        assert "told" not in plain and torch.equal(plain["lengths"], batch["lengths"])
        assert all(torch.equal(plain[name], batch[name]) for name in ("t", "eps", "dropped"))
    told = torch.stack([batch["told"] for batch in ready[0.5]])
    lengths = torch.stack([batch["lengths"] for batch in ready[0.5]])
    assert ((told == 0) | (told == lengths)).all() and 0.3 < (told == 0).float().mean() < 0.7
    # the denoiser is told 0, the length estimator learns from the clip's own length
    batch = ready[0.5][0]
    found = stage(batch)
    torch.testing.assert_close(stage({**batch, **stage.tensors(batch)})["loss"], found["loss"])
    same = stage({**batch, "told": batch["lengths"]})
    assert found["loss"] != same["loss"] and found["length_loss"] == same["length_loss"]


def test_a_full_disk_leaves_the_checkpoint_intact(root, whole):
    done = run(root, "--name=full", "--stage=vae", "--train.save_every=100")
    assert done.returncode == 0
    before = (root / "out" / "full" / "vae.pt").read_bytes()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    done = subprocess.run(command(root, "--name=full", "--stage=vae", "--overwrite"), cwd=ROOT,
                          text=True, capture_output=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 1 and "error: cannot write" in done.stderr, done.stderr[-1500:]
    assert (root / "out" / "full" / "previous" / "vae.pt").read_bytes() == before
    assert not list((root / "out" / "full").rglob("*.part"))


def test_bad_commands_say_what_is_wrong(root):
    (root / "file").touch()
    for flags, words in (
        (["--stage=diffusion", "--name=none"], "train the VAE first"),
        ([f"--out={root / 'file'}"], "cannot write"),
        (["--precision=fp16"], "needs a GPU"),
        (["words"], "flags only"),
        (["--data.fps=30"], "fps"),
    ):
        done = run(root, *flags)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, (
            flags,
            done.stderr[-800:],
        )


class WithoutAGraph:
    """graphs.TrainingGraph's stand-in on a CPU: the same calls, nothing recorded."""

    def __init__(self, loss_of, parameters, clip):
        self.loss_of, self.parameters, self.shapes = loss_of, list(parameters), set()
        self.clip = clip
        for p in self.parameters:
            p.grad = torch.zeros_like(p)

    def __call__(self, seed, names, *tensors):
        self.shapes.add(tuple(t.shape for t in tensors))
        for p in self.parameters:
            p.grad.zero_()
        losses = self.loss_of(names, *tensors)
        losses["loss"].backward()
        self.norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        return {name: value.detach() for name, value in losses.items()}


@pytest.mark.parametrize("keep, step", [("best", 6), ("last", 12)])
def test_a_training_that_goes_astray_says_so_and_keeps_its_best(root, monkeypatch, capsys, keep,
                                                                step):
    losses = iter([2.0, 1.0, 1.09, 1.2])
    flags = command(root, f"--name=astray-{keep}", "--stage=vae", "--train.eval_every=3",
                    f"--train_vae.keep={keep}", "--train.sample_every=0")[2:]
    options = train.Options()
    config, _ = parse_args(flags, options, "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(stages.VAEStage, "validate", lambda self: {"loss": next(losses)})
    train.train(config, options)
    said = capsys.readouterr().out
    assert checkpoint.load(root / "out" / f"astray-{keep}" / "vae_best.pt")["step"] == step
    if keep == "last":
        assert f"vae: kept are the weights of step {step}\n" in said and "gone astray" not in said
        return
    assert said.count("gone astray") == 1 and "1.2\n  The best so far was 1: " in said
    assert "gone astray" in loop.astray(float("nan"), 1.0) and not loop.astray(9.0, np.inf)
    assert "vae: kept are the weights of step 6, the best on val" in said


@pytest.mark.parametrize("condition", ["text", "action", "none"])
def test_steps_that_a_graph_can_record_train_the_same(root, condition, monkeypatch, capsys):
    """Batches as tensors of few shapes, losses read after the optimiser's step, the next batch
    fetched ahead: the log of both stages agrees with the usual way's to rounding."""
    def train_it(name):
        flags = command(root, f"--name={name}", f"--condition={condition}")[2:]
        options = train.Options()
        config, _ = parse_args(flags, options, "")
        train.train(config, options)
        return log(root, name)

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    expected = train_it(f"usual-{condition}")
    made = []
    monkeypatch.setattr(loop.Loop, "recordable", lambda self: True)
    monkeypatch.setattr(loop.graphs, "capture", test_optimizers.stand_in)
    monkeypatch.setattr(loop.graphs, "TrainingGraph",
                        lambda *args: made.append(WithoutAGraph(*args)) or made[-1])
    found = train_it(f"tensors-{condition}")
    assert len(made) == 2 and all(1 <= len(graph.shapes) <= 3 for graph in made)
    assert found.keys() == expected.keys()
    for key in expected:
        for name, value in expected[key].items():
            if name != "stage":
                assert found[key][name] == pytest.approx(value, rel=2e-3, abs=2e-4), (key, name)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp/run"])
def test_a_run_has_a_name_and_no_path(root, name):
    done = run(root, f"--name={name}", "--stage=vae")
    assert done.returncode and "is a path: expected a plain name" in done.stderr


def test_weights_that_are_no_numbers_are_never_saved(root, monkeypatch):
    """A finite loss with an infinite gradient: the checkpoint of the step before stays the last."""
    flags = command(root, "--name=infinite", "--stage=vae", "--train.save_every=1")[2:]
    options = train.Options()
    config, _ = parse_args(flags, options, "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    usual = loop.Loop.backward

    def backward(self, batch):
        losses = usual(self, batch)
        if self.step == 2:
            self.params[0].grad.view(-1)[0] = float("inf")
        return losses

    monkeypatch.setattr(loop.Loop, "backward", backward)
    with pytest.raises(FloatingPointError, match="no longer finite after step 2; the last good "):
        train.train(config, options)
    state = checkpoint.load(str(root / "out" / "infinite" / "vae.pt"))
    assert state["step"] == 2 and all(v.isfinite().all() for v in state["model"].values())


def test_that_train_stands_in_for_val_is_said(root):
    write_pack(root / "data" / "alone" / "alone.pack",
               [dataclasses.replace(clip, split="train") for clip in clips_of(3)], name="alone",
               skeleton="t2m", fps=20.0, actions=["walk", "jump"])
    given = command(root, "--name=alone", "--stage=vae", "--train.eval_every=12",
                    "--train.sample_every=0")
    done = warm.run(*[word.replace("=made", "=alone") for word in given[1:]])
    assert done.returncode == 0 and "has no val clips: clips of train stand in" in done.stdout


@pytest.mark.skipif(isinstance(training.library(), str),
                    reason="NOT TESTED: no library of training.c")
def test_the_step_that_is_timed_takes_both_ways(root, monkeypatch, capsys):
    """dev.step sends every batch through the C code and through torch's."""
    asked = {"C": 0, "torch": 0}

    def counted(name, way):
        def takes(*args):
            asked[name] += 1
            return way(*args)
        return takes

    for name in ("takes_attention", "takes_gelu"):
        monkeypatch.setattr(training, name, counted("C", getattr(training, name)))
    monkeypatch.setattr(step, "never", counted("torch", step.never))
    monkeypatch.setattr(loop, "Loop", loop.Loop)  # put back afterwards
    monkeypatch.setattr(step, "STEPS", 7)
    step.main(["vae", "--dataset=made", f"--assets.data_root={root / 'data'}", *SMALL])
    *times, ratio = re.findall(r"^(?:C: |torch: |torch takes )([\d.]+) ",
                               capsys.readouterr().out, re.M)
    assert len(times) == 2 and float(ratio) > 0
    assert min(asked.values()) >= 7 * 5  # three layers' attention, and their GELU
