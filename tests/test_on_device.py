"""On a GPU, against the CPU: what dev/gpu.sh checks beyond the kernels and the published sizes.

Word vectors, main directions, several noise levels in one graph, a student's training, Muon, heads
of 40, 8 bits, editing and stories, whole trainings. Without a GPU both sides are the CPU's, which
shows that the tests run."""
import copy
import functools
import os
import tempfile

import numpy as np
import pytest
import torch

import checkpoint
import distill
import edit
import fast
import finetune
import guidance
import latents
import story
import train
from clip import WordEmbedding, WordEncoder
from config import TextEncoderConfig
from flags import parse_args
from conftest import ROOT
from dev import gpu
from dev.gpu import CUDA, DEVICE
from dev.measure import settings
from kernels import graphs
from kernels.rates import bf16_rate
from mld import MLD
from optimizers import Muon, in_blocks
from test_gpu import on_device  # noqa: F401, a fixture
from transformer import Stack
from view.report import read_log

pytestmark = pytest.mark.usefixtures("on_device")
PATH = os.path.join(ROOT, "checkpoints", "toy.pt")
TEXTS = ["a man jumps", "a woman walks and then waves", "", "someone trots gingerly"]
GIVEN = dict(texts=TEXTS, lengths=[40, 24, 16, 40], seed=3, num_inference_steps=5)
GRAPHS = ("0", "1") if CUDA else ("0",)


@functools.cache
def shipped(device):
    return checkpoint.load_model(PATH, device=device)


@functools.cache
def preset(device):
    """The preset of the toy set, with random weights, saved and halved and loaded: word vectors, a
    table of rows for three words, main directions, matrices of 8 bits."""
    config, _ = parse_args(["--dataset", "toy"], train.Options())
    torch.manual_seed(0)
    words = [word for text in TEXTS for word in text.split()[:3]]
    model = MLD(config, WordEncoder(config.text, list(dict.fromkeys(words))),
                std=torch.full((263,), 0.1)).eval()
    basis = torch.linalg.qr(random(*model.latent_in.shape))[0]
    model.latent_in.copy_(2 * basis)
    model.latent_out.copy_(basis.T / 2)
    with tempfile.TemporaryDirectory() as folder:
        path, smaller = (os.path.join(folder, name) for name in ("model.pt", "smaller.pt"))
        checkpoint.save(path, config, model.state_dict(), vocabulary=model.text_encoder.vocabulary)
        checkpoint.halve(path, smaller)
        return checkpoint.load_model(smaller, device=device)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_alike(bound, **parts):
    """parts: name = (found, expected)"""
    assert all([gpu.accept(name, *pair, bound) for name, pair in parts.items()])


# --------------------------------------------------------------------------------------------------
# Sampling


def test_weights_are_loaded_alike():
    """The VAE's matrices of 8 bits, the table of word vectors, the main directions."""
    there, here = preset(DEVICE), preset("cpu")
    found, expected = dict(there.named_buffers()), dict(here.named_buffers())
    found |= there.state_dict()
    expected |= here.state_dict()
    assert found.keys() == expected.keys() and "latent_in" in found
    assert any(name.endswith("token_embedding.table") for name in found)
    for name, value in found.items():
        assert value.device == torch.device(DEVICE), name
        assert torch.equal(value.cpu(), expected[name]), name


# of features and joints; the joints add up the turns of all frames
BOUNDS = {"float32": (2e-4, 2e-4), "int8": (2e-4, 2e-4), "bf16": (2e-2, 2e-2)}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_the_shipped_weights(precision, graph):
    if precision == "bf16" and not CUDA:
        pytest.skip("NOT RUN on a GPU, there is none: test_few_rows.py has bf16 on a CPU")
    there, here = (copy.deepcopy(shipped(d)).to_precision(
        "int8" if precision == "int8" else "float32") for d in (DEVICE, "cpu"))
    there = there.to_precision(precision)
    expected = here.generate(**GIVEN)
    for mode in ("auto", "triton")[:1 + CUDA]:
        if mode == "triton" and precision != "bf16":
            continue
        with settings(mode, graph):
            for _ in range(1 + int(graph)):  # recorded, then replayed
                found = there.generate(**GIVEN)
            assert bool(graphs.recorded) == (graph == "1")
        for name, a, b, bound in zip(("features", "joints"), found, expected, BOUNDS[precision]):
            all_alike(bound, **{f"{mode}, {name}": (a, b)})


@pytest.mark.parametrize("changes", [
    dict(sampler="dpm++"), dict(sampler="ddim", eta=1.0), dict(sampler="ddpm"),
    dict(guidance_scale=1.0), dict(guidance_scale=0.0), dict(guidance_rescale=0.5)], ids=str)
def test_every_sampler_and_guidance(changes):
    """Some draw noise in each step, from generators on the CPU."""
    given = GIVEN | changes
    expected = shipped("cpu").generate(**given)
    with settings("auto", "1" if CUDA else "0"):
        for _ in range(2):
            found = shipped(DEVICE).generate(**given)
    all_alike(5e-4, features=(found[0], expected[0]), joints=(found[1], expected[1]))


def test_a_student_of_four_steps():
    found = []
    for device in (DEVICE, "cpu"):
        model = copy.deepcopy(preset(device))
        distill.settings(model.config)
        found.append(model.generate(**GIVEN | {"num_inference_steps": 4}))
    all_alike(5e-4, features=(found[0][0], found[1][0]))


def test_drawn_lengths():
    drawn = [preset(d).draw_lengths(TEXTS, seed=5) for d in (DEVICE, "cpu")]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("B, L", [(2, 5), (8, 7), (300, 7)])
def test_a_stack_of_heads_of_40(B, L, dtype, graph):
    """The toy set's denoiser: 160 wide, 4 heads. No kernel of few tokens fits: the layers' own."""
    exact = Stack(3, 160, 4, 320, skip=True).eval().double()
    x = random(B, L, 160)
    with torch.no_grad():
        expected = exact(x.double())[:, :2]
        stack, x = copy.deepcopy(exact).to(DEVICE, dtype), x.to(DEVICE, dtype)
        for mode in ("torch", "auto", "triton")[:3 if CUDA else 2]:
            with settings(mode, graph):
                if graph == "1":
                    found = graphs.replay(lambda x: fast.few_tokens(stack, x, 2), "heads", x)
                else:
                    found = fast.few_tokens(stack, x, 2)
            all_alike(2e-2 if dtype == torch.bfloat16 else 1e-5, **{mode: (found, expected)})


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_gradients_of_a_stack_of_heads_of_40(precision):
    exact = Stack(3, 160, 4, 320, skip=True).train().double()
    x, lengths = random(6, 9, 160), torch.tensor([9, 1, 4, 9, 2, 7])
    with settings("torch"):
        exact(x.double(), lengths).square().mean().backward()
    stack = copy.deepcopy(exact).to(DEVICE).float()
    for mode in ("torch", "auto", "triton")[:3 if CUDA else 2]:
        stack.zero_grad()
        kind = torch.device(DEVICE).type
        with settings(mode), torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            loss = stack(x.to(DEVICE), lengths.to(DEVICE)).float().square().mean()
        loss.backward()
        pairs = [torch.cat([p.grad.flatten().double().cpu() for p in net.parameters()])
                 for net in (stack, exact)]
        all_alike(5e-2 if precision == "bf16" else 1e-4, **{mode: pairs})


# --------------------------------------------------------------------------------------------------
# Words and directions


def test_words_by_their_vectors():
    """Known words, one that training never saw, a dropped row; and gradients."""
    torch.manual_seed(0)
    cfg = TextEncoderConfig(kind="scratch", vectors=True, width=32, layers=2, heads=2)
    exact = WordEncoder(cfg, ["a", "man", "jumps"])
    there = copy.deepcopy(exact).to(DEVICE)
    exact.double()
    assert isinstance(there.tower.token_embedding, WordEmbedding)
    ids = there.ready(["a man jumps", "a lady gallops", "xqzzy", ""])
    assert ids.device.type == "cpu"  # workers make them, which must leave the GPU alone
    assert int(ids.max()) >= 5  # by a vector alone
    results = []
    for net in (there, exact):
        out = net.of_ready(ids)
        out.square().mean().backward()
        results.append((out, torch.cat([p.grad.flatten() for p in net.parameters()])))
    all_alike(1e-5, embeddings=(results[0][0], results[1][0]))
    all_alike(1e-4, gradients=(results[0][1], results[1][1]))


def test_directions_that_matter(monkeypatch):
    """principal_axes decodes on the device; then into the coordinates and back, under autocast."""
    monkeypatch.setattr(latents, "BATCHES", 3)
    monkeypatch.setattr(latents, "BATCH", 8)
    N, D = preset("cpu").config.vae.latent_size, preset("cpu").config.vae.latent_dim
    spread = torch.logspace(0, -1, N * D).view(N, D)
    mu, logvar = random(500, N, D) * spread, random(500, N, D, seed=1) * 0.1 - 4
    lengths, found = torch.randint(8, 25, (500,)), []
    for device in (DEVICE, "cpu"):
        vae = preset(device).vae
        found.append(latents.principal_axes(
            lambda z, n: vae.decode(z, n, int(n.max())), mu, logvar, lengths, 16, device))
    # axes may be turned among equals and change their sign: what they span is compared
    all_alike(2e-2, span=tuple(into @ back for into, back in found))
    z, exact = mu[:5], copy.deepcopy(preset("cpu")).double()
    expected = latents.to_diffused(exact, z.double())
    kind = torch.device(DEVICE).type
    for enabled in (False, True):
        with torch.autocast(kind, torch.bfloat16, enabled=enabled), torch.no_grad():
            x = latents.to_diffused(preset(DEVICE), z.to(DEVICE))
        assert x.device == torch.device(DEVICE) and x.dtype == torch.float32
        all_alike(1e-5, coordinates=(x, expected))
    back = latents.from_diffused(preset(DEVICE), x)
    all_alike(1e-5, back=(back, latents.from_diffused(exact, expected)))


# --------------------------------------------------------------------------------------------------
# Training


def test_several_noise_levels_a_clip():
    """The loss of K levels from one table of texts, and its gradients; on a GPU as a graph."""
    exact, B, K = copy.deepcopy(preset("cpu")).double(), 3, 4
    there = copy.deepcopy(preset(DEVICE))
    c = there.config.vae
    t = torch.arange(B * K) * 80 + 5
    x0 = random(B, c.latent_size, c.latent_dim).repeat_interleave(K, 0)
    eps = random(B * K, *latents.diffused_shape(there.config), seed=1)
    lengths, dropped = torch.tensor([40, 24, 16]).repeat_interleave(K), torch.arange(B * K) % 3 == 0
    ids = exact.text_encoder.ready([*TEXTS[:2], "a man sits down", ""])
    assert len(ids) == B + 1

    def loss_of(model, names, *tensors):
        given = dict(zip(names, tensors))
        return {"loss": model.diffusion_loss(given.pop("x0"), **given)["loss"]}

    def gradients(model):
        return torch.cat([p.grad.flatten() for p in model.denoiser.parameters()])

    names, tensors = zip(*dict(x0=x0, lengths=lengths, texts=ids, t=t, eps=eps,
                               dropped=dropped).items())
    doubles = [v.double() if v.is_floating_point() else v for v in tensors]
    expected = loss_of(exact, names, *doubles)["loss"]
    expected.backward()
    tensors = [v.to(DEVICE) for v in tensors]
    for mode in ("torch", "auto"):
        with settings(mode):
            loss = loss_of(there, names, *tensors)["loss"]
            there.zero_grad()
            loss.backward()
            all_alike(1e-5, loss=(loss, expected))
            all_alike(1e-3, gradients=(gradients(there), gradients(exact)))
            del loss  # a recording refuses parameters that take part in another backward pass
            if CUDA:
                graph = graphs.TrainingGraph(functools.partial(loss_of, there),
                                             there.parameters())
                for seed in (1, 2):  # recorded, then replayed
                    loss = graph(seed, names, *tensors)["loss"]
                    all_alike(1e-5, graphed=(loss, expected))
                    all_alike(1e-3, gradients=(gradients(there), gradients(exact)))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_muon(kind):
    """Wide, tall and long matrices; in bfloat16 the singular values alone are promised."""
    for M, N in ((160, 640), (640, 160), (300, 400), (30, 30)):
        x = random(2, M, N)
        found = in_blocks(x.to(DEVICE, kind)).double().cpu()
        if kind == torch.float32:
            all_alike(1e-3, **{f"{M} x {N}": (found, in_blocks(x.double()))})
        elif min(M, N) <= 160:
            values = torch.linalg.svdvals(in_blocks(x.to(DEVICE, kind)).float().cpu())
            assert values.max() < 1.3 and values.median() > 0.6
    steps = []
    for device in (DEVICE, "cpu"):
        p = torch.nn.Parameter(random(64, 96).to(device))
        optimizer = Muon([p], 0.01, weight_decay=0.1, kind=kind)
        optimizer.recorded = device == DEVICE and CUDA
        p.grad = torch.zeros_like(p)
        for seed in (1, 2):
            p.grad.copy_(random(64, 96, seed=seed))
            optimizer.step()
        steps.append(p)
    all_alike(1e-5 if kind == torch.float32 else 1e-2, weights=tuple(steps))


def test_the_rate_of_bfloat16():
    """What --precision auto goes by; on an H100 some 16 times as fast as float32."""
    rate = bf16_rate(torch.device(DEVICE))
    gpu.record(what="bf16 beside float32", rate=round(rate, 2), ok=rate > 2 if CUDA else rate >= 0)
    assert rate > 2 or not CUDA


FEW = ("--train_vae.steps=3 --train_vae.batch_size=8 --train_diffusion.steps=4 "
       "--train_diffusion.batch_size=16 --train_distill.steps=3 --train_distill.batch_size=8 "
       "--train_distill.levels=4 --train.log_every=1 --train.eval_every=2 --train.save_every=4 "
       "--train.sample_every=0 --diffusion.num_inference_steps=4 --data.max_length=45 "
       "--vae.dropout=0 --vae.attention_dropout=0 --vae.sharpen_from=0 --data.workers=2").split()


def losses_of(out, device, precision, monkeypatch, *words):
    """The losses that train.py logs on a device: VAE, diffusion, student."""
    found = []
    for name, stage in (("toy", "all"), ("few", "distill")):
        flags = ["--dataset", "toy", "--device", device, "--out", str(out), f"--stage={stage}",
                 f"--name={name}", f"--precision={precision}", *FEW, *words]
        if stage == "distill":
            flags += ["--init_from", str(out / "toy" / "model.pt")]
        config, _ = parse_args(flags, train.Options(), "", finetune.settings)
        train.train(config, train.Options())
        found.append(torch.tensor([row[key] for row in read_log(out / name / "log.jsonl")
                                   for key in ("loss", "val_loss") if key in row]))
    return found


@pytest.mark.skipif(not CUDA, reason="NOT RUN on a GPU, there is none: test_gpu.py trains on a "
                    "pretended one")
@pytest.mark.parametrize("precision, graph", [("float32", "1"), ("float32", "0"), ("bf16", "1")])
def test_a_whole_training(precision, graph, tmp_path, monkeypatch):
    """The toy set's preset, with main directions, word vectors, four levels a clip, Muon: the same
    losses as on a CPU, step by step, both with and without graphs."""
    monkeypatch.setattr(latents, "BATCHES", 3)
    monkeypatch.setattr(graphs, "MODE", graph)
    found = losses_of(tmp_path / "there", DEVICE, precision, monkeypatch)
    expected = losses_of(tmp_path / "here", "cpu", "float32", monkeypatch)
    for name, a, b in zip(("model", "student"), found, expected):
        assert len(a) == len(b) and a.isfinite().all()
        all_alike(2e-3 if precision == "float32" else 5e-2, **{f"losses of a {name}": (a, b)})


# --------------------------------------------------------------------------------------------------
# Editing

WRIST = [{"joint": "left_wrist", "time": 0.5, "position": [0.3, 1.2, 0.5]},
         {"joint": "pelvis", "time": 1, "position": [0.1, 0.9, 0.4]}]


@pytest.mark.parametrize("effort, precision", [
    ("low", "float32"), ("high", "float32"), ("low", "bf16"), ("low", "int8")])
def test_constraints(effort, precision, monkeypatch):
    """They are met; and where little is added up, by the motion of the CPU."""
    monkeypatch.setattr(guidance, "TRIES", 3)
    monkeypatch.setattr(guidance, "EFFORTS", {"low": (4, 2), "high": (3, 3)})
    made = []
    for device in (DEVICE, "cpu")[:1 if precision == "bf16" else 2]:
        model = copy.deepcopy(shipped(device)).to_precision(precision)
        motions, reports = edit.edit(model, TEXTS[:2], constraints=WRIST, lengths=[40, 24],
                                     effort=effort)
        assert all(np.isfinite(m).all() for m in motions)
        assert max(row["error"] for report in reports for row in report) < 0.02
        motions, _ = edit.edit(model, TEXTS[:2], constraints=WRIST, lengths=[40, 24],
                               effort=effort, exactly=False)
        made.append(torch.cat([torch.from_numpy(m) for m in motions]))
    if len(made) == 2:
        all_alike(5e-2, joints=tuple(made))


def test_stories_loops_and_variations():
    made = []
    for device in (DEVICE, "cpu"):
        model, few = shipped(device), {"num_inference_steps": 4}
        whole, _ = story.story(model, TEXTS[:2], lengths=[24, 24], loop=True, **few)
        between = story.interpolate(model, TEXTS[:2], lengths=[24, 16], num=3, **few)
        varied = story.vary(model, between[0], TEXTS[:1], num=2, **few)
        made.append([torch.from_numpy(np.ascontiguousarray(x))
                     for x in (whole, between[1], varied[1])])
    for name, a, b in zip(("story", "between", "variation"), *made):
        all_alike(5e-2, **{name: (a, b)})
