"""Muon (Jordan et al. 2024): momentum whose matrix is replaced by the nearest one with orthonormal rows or columns.

torch.optim.Muon does the same one matrix at a time, in bfloat16. In float32, and for all matrices of a shape at once, it
takes about half the time on a CPU, and several processes get the numbers that one would have got.
"""
import torch


class Muon(torch.optim.Optimizer):
    """For matrices that multiply activations. An update has the size of AdamW's (Liu et al. 2025), so that lr has too."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum, alike = group["lr"], group["momentum"], {}
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                average = self.state[p]["momentum"]
                average.lerp_(p.grad, 1 - momentum)
                alike.setdefault(p.shape, []).append((p, p.grad.lerp(average, momentum)))  # Nesterov's look ahead
            for shape, pairs in alike.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                for (p, _), update in zip(pairs, updates):
                    p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-0.2 * lr * max(shape) ** 0.5)


def orthogonalize(x):
    """x (B, M, N) = U S V^T -> about U V^T: five Newton-Schulz steps take the singular values to between 0.7 and 1.2."""
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x
