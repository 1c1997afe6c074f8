"""dev/gpu.sh runs from end to end on a CPU; and no tensor is on the wrong device, seen without a
GPU: a mode pretends that one is there."""
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import checkpoint
import train
from config import parse_args
from conftest import ROOT

# --------------------------------------------------------------------------------------------------
# A GPU that is not there

WAITS = {"item", "tolist", "__int__", "__float__", "__bool__", "__index__", "nonzero", "unique"}
MAY_MIX = {"copy_", "type_as", "_has_compatible_shallow_copy_type", "__set__", "load_state_dict"}


class PretendedGPU(TorchFunctionMode):
    """Inside, device="cuda" works: data stay on the CPU, and the mode remembers which storages
    would be on the GPU. What a real GPU refuses is refused: operations on tensors of both devices,
    a generator of the other device, numpy(). `waits` counts, by function, what waits for the GPU
    or copies to it from memory that is not pinned."""

    def __init__(self):
        super().__init__()
        self.there, self.alive, self.waits = set(), [], Counter()

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
        if name in ("to", "cpu", "cuda"):
            return self.move(name, mine, args, kwargs)
        leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        gpu = {self.on_gpu(t) for t in leaves if t.dim() or self.on_gpu(t)}
        if name == "numpy" and True in gpu:
            raise TypeError("numpy() of a tensor on the GPU")
        if name in ("__getitem__", "__setitem__"):
            index = [i for i in tree_leaves(args[1]) if not isinstance(i, (slice, type(None)))]
            tensors = [i for i in index if isinstance(i, torch.Tensor)]
            if not self.on_gpu(mine) and any(self.on_gpu(i) for i in tensors):
                raise RuntimeError("a tensor on the CPU is indexed by one on the GPU")
            if self.on_gpu(mine) and (isinstance(args[1], list)
                                      or any(not self.on_gpu(i) for i in tensors)):
                self.waits["index from the CPU"] += 1
            gpu = {self.on_gpu(mine)}
        elif len(gpu) == 2 and name not in MAY_MIX:
            raise RuntimeError(f"{name}: tensors on the GPU and on the CPU")
        if name in WAITS and True in gpu:
            self.waits[name] += 1
        made_there = True in gpu
        if kwargs.get("device") is not None:
            made_there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
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
        self.waits["copy"] += 1
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


def test_the_sampler_keeps_its_tensors_on_one_device():
    there = checkpoint.load_model(os.path.join(ROOT, "checkpoints", "toy.pt"))
    texts = ["a man jumps", "a woman walks slowly"]
    expected = there.generate(texts, lengths=[24, 8], seed=1, num_inference_steps=2)
    lengths = there.draw_lengths(texts, seed=1)
    with PretendedGPU() as mode:
        model = there.to("cuda:0")
        assert model.draw_lengths(texts, seed=1) == lengths
        counts = []
        for steps in (2, 4):
            mode.waits.clear()
            found = model.generate(texts, lengths=[24, 8], seed=1, num_inference_steps=steps)
            counts.append(mode.waits.total())
            assert all(x.is_cuda for x in found)
            if steps == 2:
                for a, b in zip(found, expected):
                    torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
        assert counts[0] == counts[1], "something in the sampling loop waits for the GPU"
        z = model.encode_motion(found[0], [24, 8])
        model.decode_latent(z, [24, 8])


FEW = ("--train_vae.steps=2 --train_vae.batch_size=4 --train_diffusion.steps=2 "
       "--train_diffusion.batch_size=8 --train.log_every=1 --train.eval_every=2 "
       "--data.max_length=45 "
       "--train.save_every=2 --train.sample_every=2 --train.cache_latents={} "
       "--diffusion.num_inference_steps=2 --train_diffusion.accumulate=2").split()


@pytest.mark.parametrize("cached", [0, 1])
def test_training_keeps_its_tensors_on_one_device(cached, tmp_path, monkeypatch):
    words = [word.format(cached) for word in FEW]
    config, _ = parse_args(["--dataset", "toy", "--out", str(tmp_path), *words], train.Options())
    monkeypatch.setattr(checkpoint, "find_device", lambda *_: torch.device("cuda:0"))
    monkeypatch.setattr(train, "keep_freed_memory", lambda *_: None)
    with PretendedGPU():
        train.train(config, train.Options())
    assert (tmp_path / "toy" / "model.pt").exists()


# --------------------------------------------------------------------------------------------------
# The script


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_a_dry_run(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    result = subprocess.run(["bash", os.path.join(ROOT, "dev", "gpu.sh"), "--dry"], text=True,
                            env=environment, capture_output=True, timeout=500)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ended = {(r["phase"], r["job"]): r["state"] for r in rows if "state" in r}
    log = (tmp_path / "log.txt").read_text()
    wrong = {job: state for job, state in ended.items() if state != "done"
             and not state.startswith("skipped: triton")}
    assert result.returncode == 0 and not wrong, f"{wrong}\n{result.stdout}\n{log[-4000:]}"
    assert {phase for phase, _ in ended} == {
        "correctness", "kernels", "sampling", "training", "weights"}
    assert all(r.get("ok", True) for r in rows) and "frames/s" in result.stdout
    assert len(list(tmp_path.iterdir())) <= 8
