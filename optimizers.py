"""How a stage of training is optimised: the learning rate of a step, AdamW, Muon, and a limit to
the logits of attention."""
import math

import torch
import torch.distributed as dist
import torch.nn as nn

from kernels import graphs, split_heads
from transformer import Attention, length_mask

LOOK = 10  # steps from one look at the logits to the next
LARGEST = 128  # rows that Muon orthogonalises at once: the time grows with their square


def learning_rate(s, step):
    """Linear warm-up, then cosine down to min_lr_ratio (or constant)."""
    warm = min(1.0, (step + 1) / s.warmup) if s.warmup else 1.0
    if s.schedule == "constant":
        return s.lr * warm
    progress = min(1.0, max(0.0, (step - s.warmup) / max(1, s.steps - s.warmup)))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return s.lr * warm * (s.min_lr_ratio + (1 - s.min_lr_ratio) * cosine)


def make_optimizers(stage, precision="float32"):
    """[AdamW] for all of the stage's parameters, or [AdamW, Muon]. Muon takes the matrices that
    multiply activations, but not the tables of tokens and positions."""
    s = stage.settings
    tables = {p for module in stage.modules() if isinstance(module, nn.Embedding)
              for p in module.parameters()}
    trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
    muon = [p for name, p in trained.items() if s.optimizer == "muon" and p.dim() == 2
            and name.endswith("weight") and p not in tables]
    matrices = set(muon)
    rest = [p for p in trained.values() if p not in matrices]
    groups = [{"params": [p for p in rest if p.dim() > 1], "weight_decay": s.weight_decay},
              {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained.values())
    optimizers = [torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, s.beta2), fused=fused)]
    if muon:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizers.append(Muon(muon, s.lr, weight_decay=s.weight_decay, kind=kind))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, for matrices that multiply activations. An update has the size of
    AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so both take the same lr.

    Its hundreds of small products cost more to launch than to compute. With `recorded` a CUDA graph
    makes each update, as long as every .grad stays the tensor that it was at the first."""

    recorded = False

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, kind=torch.float32):
        self.kind = kind  # of the numbers of a step; what is kept is in the parameters' own
        self.graphs = []  # of each group: the tensor of its learning rate, and the graph
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.graphs = []  # which know the older momentum

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            if not self.recorded:
                self.update(group, group["lr"])
        if self.recorded and not self.graphs:
            self.graphs = [self.graph_of(group) for group in self.param_groups]
        for group, (lr, graph) in zip(self.param_groups, self.graphs):
            lr.fill_(group["lr"])
            graph.replay()

    def update(self, group, lr):
        """One step of a group; lr is a float, or a tensor of one number."""
        params, momentum, by_shape = group["params"], group["momentum"], {}
        averages, grads = [self.state[p]["momentum"] for p in params], [p.grad for p in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, averages, momentum)  # Nesterov's look ahead
        for p, update in zip(params, updates):
            by_shape.setdefault(p.shape, []).append((p, update))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for shape, pairs in by_shape.items():
            alike, updates = zip(*pairs)
            updates = in_blocks(torch.stack(updates).to(self.kind)).to(updates[0].dtype)
            torch._foreach_sub_(alike, (updates * (0.2 * lr * max(shape) ** 0.5)).unbind())

    def graph_of(self, group):
        params = group["params"]
        lr = torch.zeros((), device=params[0].device)
        kept = [*params, *(self.state[p]["momentum"] for p in params)]
        return lr, graphs.in_place(lambda: self.update(group, lr), kept)


def in_blocks(x):
    """orthogonalize(x), block by block where both sides are long: a linear path with N latent
    tokens has matrices of N * D by several thousand, and the whole of it would take longer than the
    rest of the step. Blocks are of as many rows, or columns, as an even cut into LARGEST makes."""
    B, M, N = x.shape
    if min(M, N) <= LARGEST:
        return orthogonalize(x)
    if M > N:
        return in_blocks(x.mT).mT
    parts = -(-M // LARGEST)
    if M % parts == 0:  # all at once: on a GPU each operation costs its launch
        return orthogonalize(x.reshape(B * parts, M // parts, N)).view(B, M, N)
    return torch.cat([orthogonalize(part) for part in x.chunk(parts, 1)], 1)


def orthogonalize(x):
    """x (B, M, N) = U S V^T -> about U V^T: five Newton-Schulz steps bring the singular values to
    between 0.7 and 1.2.

    Step k multiplies x from the left by a polynomial p_k of the Gram matrix x x^T, which it turns
    into p_k x x^T p_k. So the steps are made on small square matrices, and the product of all p_k
    meets the wide x once. In bfloat16 the rounded Gram matrix of a nearly singular x would have
    negative eigenvalues, which grow with each step, so there each step is made on x itself."""
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.dtype == torch.bfloat16:
        for _ in range(5):
            gram = x @ x.mT
            p = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
            x = torch.baddbmm(x, p, x, beta=3.4445)
        return x
    gram, product, one = x @ x.mT, None, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for k in range(5):
        p = 3.4445 * one + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        product = p if product is None else p @ product
        if k < 4:
            gram = p @ gram @ p
    return product @ x


# --------------------------------------------------------------------------------------------------
# A limit to the logits of attention


@torch.no_grad()
def clip_logits(network, run, limit):
    """Bring each head's largest attention logit of run(), forward passes of the network in training
    mode, down to `limit`, by a factor on its rows of the query's and the key's projection (QK-clip:
    Kimi K2, 2025, section 2.1). Returns the largest logit that there was, a float.

    All of an update of Muon's is of one size, however small the gradient, so queries and keys grow
    for as long as training lasts. Logits of thousands pick one token alone, and nothing is learnt
    through them any more."""
    found = {}

    def look(attention, args, kwargs):
        x, memory, lengths, causal = of_call(*args, **kwargs)
        q, k, _ = split_heads(*attention.packed(x, memory), attention.heads)
        logits = (q.float() @ k.float().mT).abs() / q.shape[-1] ** 0.5
        logits = logits.tril() if causal else logits  # what is not seen counts for nothing,
        if lengths is not None:  # nor does padding
            real = length_mask(lengths, logits.shape[-1])
            logits = logits * real[:, None, None]
            logits = logits * real[:, None, :, None] if memory is None else logits
        largest = logits.amax((0, 2, 3))
        found[attention] = largest.maximum(found.get(attention, largest))

    def of_call(x, memory=None, lengths=None, causal=False):
        return x, memory, lengths, causal

    modules = [module for module in network.modules() if isinstance(module, Attention)]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules]
    try:
        with torch.compiler.set_stance("force_eager"):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    seen = [module for module in modules if module in found]  # in the same order everywhere
    if not seen:
        return 0.0
    largest = torch.stack([found[module] for module in seen])
    if dist.is_initialized():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    largest = largest.nan_to_num(0.0, 0.0)  # the loss is to tell of numbers that are none
    for attention, scale in zip(seen, (limit / largest).clamp(max=1).sqrt()):
        D = attention.in_proj_weight.shape[1]
        rows = scale.repeat_interleave(D // attention.heads).repeat(2)  # queries', then keys'
        attention.in_proj_weight[:2 * D].mul_(rows[:, None])
        attention.in_proj_bias[:2 * D].mul_(rows)
    return largest.max().item()
