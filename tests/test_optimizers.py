"""Muon against the singular value decomposition and against torch's own."""
import copy
from types import SimpleNamespace

import pytest
import torch

import optimizers
from optimizers import LARGEST, Muon, clip_logits, in_blocks, orthogonalize
from transformer import Attention, Stack


@pytest.mark.parametrize("shape", [(3, 40, 24), (2, 24, 40), (1, 32, 32)])
def test_orthogonalize_keeps_directions_and_evens_out_sizes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ orthogonalize(x) @ vt.mT  # diagonal, if the singular directions stayed
    values = inside.diagonal(dim1=1, dim2=2)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-3
    assert values[:, :-2].min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (384, 128), (30, 128)])
def test_gradients_of_low_rank_stay_bounded(kind, shape):
    """Most gradients of the first steps are nearly of rank 1."""
    g = torch.Generator().manual_seed(0)
    for rank in (1, 2, 10):
        left, right = (torch.randn(3, *size, generator=g)
                       for size in ((shape[0], rank), (rank, shape[1])))
        x = left @ right + 1e-4 * torch.randn(3, *shape, generator=g)
        values = torch.linalg.svdvals(in_blocks(x.to(kind)).float())
        assert values.max() < 1.3 and values[:, :rank].min() > 0.6


def test_long_matrices_go_in_blocks():
    """Each block of rows is orthogonal; narrow matrices are not cut."""
    x = torch.randn(1, 2 * LARGEST, 3 * LARGEST, generator=torch.Generator().manual_seed(0))
    halves = [orthogonalize(half) for half in x.chunk(2, 1)]
    assert torch.equal(in_blocks(x), torch.cat(halves, 1))
    assert torch.equal(in_blocks(x.mT), in_blocks(x).mT)
    assert torch.equal(in_blocks(x[:, :LARGEST]), orthogonalize(x[:, :LARGEST]))
    three = in_blocks(torch.randn(2, 2 * LARGEST + 1, 3 * LARGEST))
    assert three.shape == (2, 2 * LARGEST + 1, 3 * LARGEST) and three.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_torch(kind):
    g = torch.Generator().manual_seed(0)
    first = [torch.randn(shape, generator=g) for shape in ((24, 16), (16, 24), (24, 16))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in first] for _ in range(2))
    both = (
        Muon(ours, 0.01, weight_decay=0.1, kind=kind),
        torch.optim.Muon(
            theirs, 0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(5):
        for i, p in enumerate(first):
            ours[i].grad = torch.randn(p.shape, generator=g)
            theirs[i].grad = ours[i].grad.clone()
        for optimizer in both:
            optimizer.step()
    moved = max((a - b).abs().max() for a, b in zip(ours, first))
    assert moved > 0.02
    for a, b in zip(ours, theirs):  # torch's orthogonalises in bfloat16
        assert (a - b).abs().max() < (0.02 if kind == torch.float32 else 0.04) * moved


def stand_in(run, device):
    """graphs.capture's, on a CPU: it runs what it records, as the warm-ups do."""
    run()
    run()
    return SimpleNamespace(replay=run), None


def test_a_recorded_update_is_the_usual_one(monkeypatch):
    """Recording leaves no trace in weights and momentum, and a new learning rate counts."""
    monkeypatch.setattr(optimizers.graphs, "capture", stand_in)
    made = []
    for recorded in (False, True):
        random = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(8, n, generator=random)) for n in (5, 5, 9)]
        muon = Muon(params, 0.1, weight_decay=0.1)
        muon.recorded = recorded
        for p in params:
            p.grad = torch.zeros_like(p)
        for step in range(4):
            if step == 2:
                muon.load_state_dict(copy.deepcopy(muon.state_dict()))  # as if resumed
            for p in params:
                p.grad.copy_(torch.randn(p.shape, generator=random))
            muon.param_groups[0]["lr"] = 0.1 / (1 + step)
            muon.step()
        made.append(params)
        assert len(muon.graphs) == recorded
    for a, b in zip(*made):
        torch.testing.assert_close(a, b)


def largest_logits(attention, x, memory, lengths):
    """(H,), by the definition, one sample, head and token after the other."""
    D, H, weight, bias = x.shape[-1], attention.heads, *(
        p.detach().double() for p in (attention.in_proj_weight, attention.in_proj_bias))
    found = torch.zeros(H)
    for i, sample in enumerate(x.double()):
        keys = sample if memory is None else memory[i].double()
        keys = keys[:lengths[i]]
        sample = keys if memory is None else sample
        for h in range(H):
            rows = torch.arange(D).view(H, -1)[h]
            q, k = (tokens @ weight[part + rows].T + bias[part + rows]
                    for tokens, part in ((sample, 0), (keys, D)))
            found[h] = max(found[h], (q @ k.T).abs().max() / (D // H) ** 0.5)
    return found


@pytest.mark.parametrize("cross", [False, True])
def test_logits_come_down_to_the_limit_where_they_are_above(cross):
    g = torch.Generator().manual_seed(0)
    attention, x = Attention(16, 4), torch.randn(3, 7, 16, generator=g)
    memory = torch.randn(3, 5, 16, generator=g) if cross else None
    lengths = torch.tensor([5, 3, 4] if cross else [7, 4, 6])
    (x if memory is None else memory)[1, 4:] *= 100  # padding, which counts for nothing
    with torch.no_grad():
        attention.in_proj_bias.normal_(generator=g)
        attention.in_proj_weight[:4] *= 50  # the first head's queries
        attention.in_proj_weight[28:32] *= 20  # the last one's keys
    given = {"memory": memory, "lengths": lengths}
    before = copy.deepcopy(attention)
    was = largest_logits(before, x, **given)
    assert (was > 20).tolist() == [True, False, False, True]
    top = clip_logits(attention, lambda: attention(x, **given), 20.0)
    assert abs(top - was.max()) < 1e-3 * top
    now = largest_logits(attention, x, **given)
    assert torch.allclose(now, was.clamp(max=20.0), rtol=1e-5)
    kept = torch.ones(48, dtype=torch.bool)
    kept[[0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19, 28, 29, 30, 31]] = False
    for name in ("in_proj_weight", "in_proj_bias"):
        new, old = getattr(attention, name), getattr(before, name)
        assert torch.equal(new[kept], old[kept]) and not torch.equal(new[~kept], old[~kept])
    assert torch.equal(attention.out_proj.weight, before.out_proj.weight)
    assert not attention._forward_pre_hooks


def test_logits_that_a_causal_layer_does_not_see_count_for_nothing():
    attention, x = Attention(4, 1), torch.zeros(1, 3, 4)
    x[0, 0, 0], x[0, 2, 1], x[0, 1, 2:] = 100.0, 100.0, 3.0  # the first query meets the last key
    with torch.no_grad():
        attention.in_proj_bias.zero_()
        attention.in_proj_weight[:4] = torch.eye(4)
        attention.in_proj_weight[4:8] = torch.eye(4).roll(1, 1)
    for causal, largest in ((False, 5000.0), (True, 150.0)):
        top = clip_logits(attention, lambda: attention(x, causal=causal), 1e9)
        assert top == largest


def test_all_layers_of_a_network_are_limited_each_by_its_own_logits():
    torch.manual_seed(0)
    stack, x = Stack(3, 16, 2, 32, skip=True), torch.randn(2, 5, 16)
    layers = [module for module in stack.modules() if isinstance(module, Attention)]
    with torch.no_grad():
        for factor, layer in zip((30, 1, 60), layers):
            layer.in_proj_weight[:32] *= factor
    lengths = torch.tensor([5, 5])
    tops = [clip_logits(stack, lambda: stack(x, lengths), limit) for limit in (1e6, 8.0, 8.0)]
    assert tops[0] == tops[1] > 100
    # one layer's output is the next one's input, which is another now
    assert tops[2] < 20
    for _ in range(8):
        last = clip_logits(stack, lambda: stack(x, lengths), 8.0)
    assert last < 8.1
    assert clip_logits(torch.nn.Linear(2, 2), lambda: None, 8.0) == 0.0
    first = copy.deepcopy(layers[0])  # called twice: the larger counts
    tops = [clip_logits(first, lambda: [first(x * size) for size in sizes], 1e6)
            for sizes in ((1, 3), (3, 1), (3,))]
    assert tops[0] == tops[1] == tops[2]
    for number in (torch.inf, torch.nan):  # are left to whoever looks at the loss
        before = copy.deepcopy(stack.state_dict())
        assert clip_logits(stack, lambda: stack(x * number, lengths), 8.0) == 0.0
        assert all(torch.equal(before[name], p) for name, p in stack.state_dict().items())
