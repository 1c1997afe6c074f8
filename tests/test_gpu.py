"""What only a GPU can prove: sampler, training steps and programs there, against float64 or a CPU.
Without a GPU the same at tiny sizes, dev/gpu.sh from end to end, and a pretended GPU that notices
tensors on the wrong device."""
import copy
import faulthandler
import functools
import json
import os
import subprocess
import sys
from collections import Counter, OrderedDict
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import checkpoint
import diffusion
import distill
import edit
import fast
import finetune
import guidance
import kernels
import latents
import losses
import story
import train
from flags import parse_args
from conftest import ROOT
from dev import gpu, recorder
from dev.baseline import draw_lengths, prompts, random_clips, vae_step_loss
from dev.gpu import CUDA, DEVICE, SAMPLERS, generate, make_sides
from dev.measure import settings
from kernels import graphs

# --------------------------------------------------------------------------------------------------
# On the device: dev/gpu.sh runs these on a GPU, at the published sizes


@pytest.fixture
def on_device(request, monkeypatch):
    """What no kernel writes is NaN. A test that hangs or breaks its CUDA context ends its process;
    xdist then starts another. Errors go to the results of dev/gpu.sh, if that runs the tests."""
    monkeypatch.setitem(gpu.NOW, "phase", "correctness")
    monkeypatch.setitem(gpu.NOW, "job", request.node.name)
    if "GPU_SCRATCH" not in os.environ:
        monkeypatch.setattr(gpu, "RESULTS", os.devnull)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    alone = recorder.FILE is None  # else it watches over every test
    if alone:
        faulthandler.dump_traceback_later(90, exit=True)
    yield
    if alone:
        faulthandler.cancel_dump_traceback_later()
    torch.use_deterministic_algorithms(False)
    try:
        torch.rand(2, device=DEVICE).sum().item()
    except RuntimeError:
        os._exit(3)


# relative errors of features and joints, which add up the turns of all frames; rounding grows over
# 50 guided steps
BOUNDS = {"random": {"float32": (1e-4, 1e-3), "tf32": (2e-2, 0.2), "bf16": (0.2, 2.0)},
          "shipped": {"float32": (2e-3, 2e-3)}}
HERE = [v for v in SAMPLERS if v[0] != "baseline" and (CUDA or v[:2] == ("torch", "0"))]


@functools.cache
def expected_motions(weights):
    """-> model, arguments and result: of random weights, guided, two lengths, in float64; or of the
    model that ships, on a CPU."""
    with settings("torch"):
        if weights == "random":
            sides, n = make_sides(), 8 if CUDA else 2
            lengths, x_T = [sides.frames, sides.frames // 2] * (n // 2), sides.noise(n)
            given = dict(texts=prompts(n), lengths=lengths)
            expected = generate(copy.deepcopy(sides.model).double(), x_T=x_T.double(), **given)
            return sides.model, given | {"x_T": x_T}, expected
        path = os.path.join(ROOT, "checkpoints", "toy.pt")
        given = dict(texts=["a man jumps", "a woman walks and then waves", ""], seed=3)
        on_cpu, model = checkpoint.load_model(path), checkpoint.load_model(path, device=DEVICE)
        lengths = on_cpu.draw_lengths(**given)
        assert model.draw_lengths(**given) == lengths
        given["lengths"] = lengths if CUDA else [8] * 3
        return model, given, generate(on_cpu, **given)


@pytest.mark.parametrize("weights, variant", [
    (weights, v) for weights, v in product(BOUNDS, HERE) if v[2] in BOUNDS[weights]])
def test_motions_on_device(on_device, weights, variant):
    (mode, graph, precision), (model, given, expected) = variant, expected_motions(weights)
    if precision == "bf16":
        model = copy.deepcopy(model).to_precision("bf16")
    before = kernels.calls.copy()
    with settings(mode, graph, precision):
        for _ in range(1 + int(graph)):  # recorded, then replayed
            found = generate(model, **given)
        assert bool(graphs.recorded) == (CUDA and graph == "1")
    ran = ", ".join(f"{k[0]} x{v}" for k, v in sorted((kernels.calls - before).items()))
    parts = zip(("features", "joints"), found, expected, BOUNDS[weights][precision])
    assert all([gpu.accept(*part, ran=ran) for part in parts])


@functools.cache
def gradients(stage, mode, precision):
    """-> loss and gradients of a training step, whose inputs are always the same."""
    model, B = make_sides().model, 6 if CUDA else 2
    torch.manual_seed(1)  # only now: the first call of make_sides draws the weights
    model = copy.deepcopy(model).double() if precision == "float64" else model
    c, net, number = model.config.vae, getattr(model, stage), torch.arange(B, device=DEVICE)
    features, lengths = random_clips(draw_lengths(B, make_sides().frames).to(DEVICE))
    eps, x0 = torch.randn(2, B, c.latent_size, c.latent_dim, device=DEVICE).to(model.dtype)
    net.train().zero_grad(set_to_none=True)
    bf16 = torch.autocast(eps.device.type, torch.bfloat16, enabled=precision == "bf16")
    with settings(mode, precision=precision), kernels.expect(mode), bf16:
        if stage == "vae":
            loss = vae_step_loss(model, features.to(model.dtype), lengths, eps)
        else:
            loss = model.diffusion_loss(x0, texts=prompts(B), t=150 * number + 7, eps=eps,
                                        dropped=number % 3 == 0)["loss"]
        loss.backward()
    net.eval()
    return loss, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("stage, mode, precision", [
    (stage, mode, precision) for stage, mode, precision in product(
        ("vae", "denoiser"), ("torch", "triton"), ("float32", "tf32", "bf16"))
    if CUDA or (mode, precision) == ("torch", "float32")])
def test_a_training_step_on_device(on_device, stage, mode, precision):
    """Ours err no more than torch's own operations do in the same precision."""
    exact, found = gradients(stage, "torch", "float64"), gradients(stage, mode, precision)
    bounds = {"float32": (1e-4, 1e-4), "tf32": (3e-2, 1e-1), "bf16": (1e-1, 4e-1)}[precision]
    if mode == "triton" and precision != "float32":
        theirs = gpu.error_of(gradients(stage, "torch", precision)[1], exact[1])
        bounds = bounds[0], 1.2 * theirs
    parts = zip(("loss", "gradients"), found, exact, bounds)
    assert all([gpu.accept(*part) for part in parts])


def test_one_process_with_nccl_on_device(on_device):
    """DistributedDataParallel changes no gradient."""
    kind = "nccl" if CUDA else "gloo"
    dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        net, found = copy.deepcopy(make_sides().model.denoiser).train(), []
        x = torch.randn(3, 1, net.cfg.latent_dim, device=DEVICE)
        text = torch.randn(3, 1, net.cfg.text_encoded_dim, device=DEVICE)
        for form in (net, torch.nn.parallel.DistributedDataParallel(net)):
            net.zero_grad()
            form(x, torch.arange(3, device=DEVICE), text).square().mean().backward()
            found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        del form  # freed after its group, it may wait for gloo's thread, which waits for us
        shares = [None]
        dist.all_gather_object(shares, "sent")
        assert shares == ["sent"] and gpu.accept("gradients", *found, 1e-5)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not CUDA, reason="NOT RUN on a GPU, there is none")
@pytest.mark.parametrize("words", [
    ["sample.py", "a man jumps", "--format", "html,npy"],
    ["sample.py", "a man walks", "--precision", "bf16", "--num", "3"],
    ["eval.py", "--ckpt", "checkpoints/toy.pt", "--eval.replications=1", "--eval.mm_texts=2",
     "--eval.mm_samples=4", "--eval.mm_pairs=2"]], ids=" ".join)
def test_programs_on_device(on_device, words, tmp_path):
    code, text = gpu.python(50, *words, "--out", str(tmp_path))
    assert code == 0, text[-2000:]


# --------------------------------------------------------------------------------------------------
# A GPU that is not there

WAITS = {"item", "tolist", "__int__", "__float__", "__bool__", "__index__", "nonzero", "unique"}
COPIES = {"tensor", "as_tensor", "new_tensor", "asarray"}  # to the GPU, of numbers in Python
MAY_MIX = {"copy_", "type_as", "_has_compatible_shallow_copy_type", "__set__", "load_state_dict"}


def fresh_tables():
    """A pretended GPU does not know what another one kept."""
    for table in (diffusion.on_device, losses.parents_of, fast.levels_on, distill.numbers_on):
        table.cache_clear()


class PretendedGPU(TorchFunctionMode):
    """Inside, device="cuda" works: data stay on the CPU, and the mode remembers which storages
    would be on the GPU. What a real GPU refuses is refused: operations on tensors of both devices,
    a generator of the other device, numpy(). `waits` counts, by function, what waits for the GPU
    or copies to it from memory that is not pinned; while a graph is recorded, that is an error."""

    def __init__(self):
        super().__init__()
        self.there, self.alive, self.waits, self.recording = set(), [], Counter(), False

    def wait(self, what):
        if self.recording:
            raise RuntimeError(f"{what}: operation not permitted when a stream is capturing")
        self.waits[what] += 1

    def capture(self, run, device, warm_ups=2, pool=None):
        """graphs.capture, of a graph that is no more than a list of addresses: what run() leaves in
        new tensors is copied to where the recording left it."""
        run()
        self.recording = True
        try:
            outputs = run()
        finally:
            self.recording = False
        held = [t for t in tree_leaves(outputs) if torch.is_tensor(t)]

        def replay():
            for old, new in zip(held, tree_leaves(run())):
                old.copy_(new)

        return SimpleNamespace(replay=replay, pool=lambda: 0), outputs

    def record(self, monkeypatch, mode="1"):
        """From now on CUDA graphs are recorded, and replayed, as far as that goes here."""
        monkeypatch.setattr(graphs, "MODE", mode)
        monkeypatch.setattr(graphs, "capture", self.capture)
        monkeypatch.setattr(graphs, "recorded", OrderedDict())
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def on_gpu(self, tensor):
        return tensor.untyped_storage()._cdata in self.there

    def tag(self, value, gpu):
        for t in tree_leaves(value):
            if isinstance(t, torch.Tensor) and gpu != self.on_gpu(t) and gpu:
                self.alive.append(t.untyped_storage())  # or another tensor could get its number
                self.there.add(t.untyped_storage()._cdata)
        return value

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        mine = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if name == "__get__" and mine is not None:
            if function == torch.Tensor.device.__get__:
                return torch.device("cuda:0" if self.on_gpu(mine) else "cpu")
            if function == torch.Tensor.is_cuda.__get__:
                return self.on_gpu(mine)
        if name == "pin_memory":
            return mine
        if name in ("to", "cpu", "cuda"):
            return self.move(name, mine, args, kwargs)
        given = args[:1] if name == "__deepcopy__" else args  # its memo holds any tensors
        leaves = [t for t in tree_leaves((given, kwargs)) if isinstance(t, torch.Tensor)]
        gpu = {self.on_gpu(t) for t in leaves if t.dim() or self.on_gpu(t)}
        if name == "numpy" and True in gpu:
            raise TypeError("numpy() of a tensor on the GPU")
        if name in ("__getitem__", "__setitem__"):
            index = [i for i in tree_leaves(args[1]) if not isinstance(i, (slice, type(None)))]
            tensors = [i for i in index if isinstance(i, torch.Tensor)]
            if not self.on_gpu(mine) and any(self.on_gpu(i) for i in tensors):
                raise RuntimeError("a tensor on the CPU is indexed by one on the GPU")
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if self.on_gpu(mine) and (any(isinstance(i, (list, np.ndarray)) for i in parts)
                                      or any(not self.on_gpu(i) for i in tensors)):
                self.wait("index from the CPU")
            gpu = {self.on_gpu(mine)}
        elif len(gpu) == 2 and name not in MAY_MIX:
            raise RuntimeError(f"{name}: tensors on the GPU and on the CPU")
        if name in WAITS and True in gpu:
            self.wait(name)
        made_there = True in gpu
        if kwargs.get("device") is not None:
            made_there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
        if made_there and name in COPIES and not leaves:
            self.wait(name)
        generator = kwargs.get("generator")
        if generator is not None and (generator.device.type == "cuda") != made_there:
            raise RuntimeError(f"{name}: a generator on {generator.device} for the other device")
        return self.tag(function(*args, **kwargs), made_there)

    def move(self, name, tensor, args, kwargs):
        """to(device), to(dtype), to(other), cpu(), cuda()"""
        words = [*args[1:], *kwargs.values()]
        gpu, dtype = self.on_gpu(tensor), None
        if name != "to":
            gpu = name == "cuda"
        for word in words:
            if isinstance(word, torch.Tensor):
                gpu, dtype = self.on_gpu(word), word.dtype
            elif isinstance(word, torch.dtype):
                dtype = word
            elif isinstance(word, (str, torch.device)):
                gpu = torch.device(word).type == "cuda"
        if gpu == self.on_gpu(tensor):
            return self.tag(tensor if dtype is None else tensor.to(dtype), gpu)
        self.wait("copy")
        return self.tag(tensor.to(dtype or tensor.dtype, copy=True), gpu)


def test_the_pretended_gpu_refuses_what_a_real_one_refuses():
    with PretendedGPU() as mode:
        a, b = torch.randn(2, device="cuda"), torch.randn(2)
        assert a.is_cuda and a.device.type == "cuda" and not b.is_cuda
        assert (a + a.new_zeros(2)).is_cuda and a.cpu().device.type == "cpu"
        for wrong in (lambda: a + b, lambda: torch.cat((a, b)), lambda: b[torch.tensor([0]).cuda()],
                      lambda: torch.randn(2, device="cuda", generator=torch.Generator())):
            with pytest.raises(RuntimeError, match="GPU|other device"):
                wrong()
        with pytest.raises(TypeError):
            a.numpy()
        net = torch.nn.Linear(2, 2).to("cuda")
        assert net.weight.is_cuda and net(a).is_cuda
        net(a).sum().backward()
        assert net.weight.grad.is_cuda and not mode.waits["item"]
        assert a.sum().item() is not None and mode.waits["item"] == 1


def test_the_sampler_keeps_its_tensors_on_one_device(monkeypatch):
    fresh_tables()
    there = checkpoint.load_model(os.path.join(ROOT, "checkpoints", "toy.pt"))
    texts = ["a man jumps", "a woman walks slowly"]
    expected = there.generate(texts, lengths=[24, 8], seed=1, num_inference_steps=2)
    lengths = there.draw_lengths(texts, seed=1)
    with PretendedGPU() as mode:
        model = there.to("cuda:0")
        assert model.draw_lengths(texts, seed=1) == lengths
        counts = []
        for steps in (3, 2, 4):  # the first time, tables are copied
            mode.waits.clear()
            found = model.generate(texts, lengths=[24, 8], seed=1, num_inference_steps=steps)
            counts.append(mode.waits.total())
            assert all(x.is_cuda for x in found)
            if steps == 2:
                for a, b in zip(found, expected):
                    torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
        assert counts[1] == counts[2], "something in the sampling loop waits for the GPU"
        z = model.encode_motion(found[0], [24, 8])
        model.decode_latent(z, [24, 8])
        mode.record(monkeypatch)  # the loop and the decoder, recorded and then replayed
        for seed in (1, 2):
            found = model.generate(texts, lengths=[24, 8], seed=seed, num_inference_steps=2)
            if seed == 1:
                for a, b in zip(found, expected):
                    torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
        assert len(graphs.recorded) == 2


def test_editing_keeps_its_tensors_on_one_device(monkeypatch):
    """Constraints, a story, a loop, variations; with every effort."""
    fresh_tables()
    monkeypatch.setattr(guidance, "TRIES", 2)
    there = checkpoint.load_model(os.path.join(ROOT, "checkpoints", "toy.pt"))
    wrist = [{"joint": "left_wrist", "time": 0.5, "position": [0.3, 1.2, 0.5]}]
    with PretendedGPU():
        for precision in ("float32", "int8", "bf16"):
            model = there.to("cuda:0").to_precision(precision)
            settings = {"num_inference_steps": 2}
            effort = {"float32": "high", "int8": "normal", "bf16": "low"}[precision]
            motions, _ = edit.edit(model, ["a man jumps"], constraints=wrist, lengths=[24],
                                   effort=effort, **settings)
            assert np.isfinite(motions[0]).all()
        story.story(model, ["a man walks", "he jumps"], lengths=[24, 24], loop=True, **settings)
        story.vary(model, motions[0], ["a man jumps"], num=2, **settings)
        story.interpolate(model, ["a man jumps", "a man walks"], lengths=[24, 8], num=2, **settings)


TWO = ("--train_vae.steps=2 --train_vae.batch_size=4 --train_diffusion.steps=2 "
       "--train_diffusion.batch_size=8 --train.log_every=1 --train.eval_every=2 "
       "--data.max_length=45 --train.save_every=2 --train.sample_every=2 "
       "--diffusion.num_inference_steps=2 --precision=float32 --train_distill.steps=2 "
       "--train_distill.batch_size=4 --train_distill.levels=4").split()


def pretend(monkeypatch):
    """What train.py finds on its pretended GPU."""
    monkeypatch.setattr(checkpoint, "find_device", lambda *_: torch.device("cuda:0"))
    monkeypatch.setattr("run.keep_freed_memory", lambda *_: None)
    monkeypatch.setattr(latents, "BATCHES", 2)  # the pretended GPU keeps every tensor
    monkeypatch.setattr(latents, "BATCH", 8)
    fresh_tables()


@pytest.mark.parametrize("words", [
    "", "--train.cache_latents=0 --train_diffusion.accumulate=2 --train_diffusion.draws=1"])
def test_training_keeps_its_tensors_on_one_device(words, tmp_path, monkeypatch):
    """And nothing of what it records as a CUDA graph waits for the GPU: both stages, a student."""
    pretend(monkeypatch)
    with PretendedGPU() as mode:
        mode.record(monkeypatch)
        for stage in ("all", "distill")[:1 if words else 2]:
            words_of_it = ["--dataset", "toy", "--out", str(tmp_path), *TWO, *words.split()]
            words_of_it += ["--stage", stage]
            if stage == "distill":
                words_of_it += ["--init_from", str(tmp_path / "toy" / "model.pt"), "--name=few"]
            config, _ = parse_args(words_of_it, train.Options(), "", finetune.settings)
            train.train(config, train.Options())
    assert (tmp_path / "toy" / "model.pt").exists()
    assert words or (tmp_path / "few" / "student.pt").exists()


# --------------------------------------------------------------------------------------------------
# The script


def test_names_are_kept_of_tests_that_fail_hang_or_die(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import os, time\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'not so'\n"
        "def test_hangs(): time.sleep(100)\n"
        "def test_dies(): os._exit(3)\n"
        "def test_last(): pass\n")
    kept = tmp_path / "tests.jsonl"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n1", "-p", "dev.recorder", "-p",
         "no:cacheprovider", str(tmp_path)], cwd=ROOT, capture_output=True, timeout=120,
        env=os.environ | {"TEST_RECORD": str(kept), "TEST_PATIENCE": "3", "PYTHONPATH": str(ROOT)})
    passed, failed, lost = recorder.read(str(kept))
    said = {name.split("::")[1]: words for name, words in failed}
    assert passed == 2 and said.keys() == {"test_wrong", "test_hangs", "test_dies"} and not lost
    assert "crashed" in said["test_hangs"] and "not so" in said["test_wrong"]
    assert "test_hangs" in (tmp_path / "tests.jsonl.stacks").read_text()
    kept.write_text('{"begun": "a"}\n{"begun": "b"}\n{"ended": "a", "outcome": "passed"}\n{"e')
    assert recorder.read(str(kept)) == (1, [], ["b"])


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_a_dry_run(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    result = subprocess.run(["bash", os.path.join(ROOT, "dev", "gpu.sh"), "--dry"], text=True,
                            env=environment, capture_output=True, timeout=500)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ended = {(r["phase"], r["job"]): r["state"] for r in rows if "state" in r}
    log = (tmp_path / "log.txt").read_text()
    wrong = {job: state for job, state in ended.items() if state != "done"}
    assert result.returncode == 0 and not wrong, f"{wrong}\n{result.stdout}\n{log[-4000:]}"
    assert {phase for phase, _ in ended} == {
        "correctness", "kernels", "sampling", "training", "weights"}
    assert all(r.get("ok", True) for r in rows) and "frames_s" in result.stdout
    assert len(list(tmp_path.iterdir())) <= 8
