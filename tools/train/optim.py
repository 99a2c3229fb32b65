"""Muon for the matrices inside layers, AdamW for all else.

Muon (momentum whose matrix is replaced by the nearest orthogonal one through five Newton-Schulz steps; K. Jordan 2024)
learns from about half the examples that Adam needs at this size. Its step is scaled by 0.2 sqrt(max(rows, columns)), so
that both parts live with one learning rate (arXiv 2502.16982).
"""
import torch

NS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g):
    """f32[n,r,c] -> the same with singular values near one."""
    wide = g.shape[1] <= g.shape[2]
    x = g if wide else g.transpose(1, 2).contiguous()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = torch.bmm(x, x.transpose(1, 2))
        b = torch.baddbmm(a, a, a, beta=NS[1], alpha=NS[2])
        x = torch.baddbmm(x, b, x, beta=NS[0])
    return x if wide else x.transpose(1, 2)


class Optimizer:
    """params: dict name -> leaf tensor; matrices: names for Muon; scale: dict name -> factor of the learning rate."""

    def __init__(self, params, matrices, scale=None, decay=0.02, betas=(0.9, 0.98), momentum=0.95):
        self.params, self.scale, self.decay, self.betas, self.momentum = params, scale or {}, decay, betas, momentum
        self.matrices = [n for n in params if n in set(matrices)]
        self.rest = [n for n in params if n not in set(matrices)]
        self.groups = {}
        for n in self.matrices:
            self.groups.setdefault(tuple(params[n].shape), []).append(n)
        self.state = {n: torch.zeros_like(params[n]) for n in params}
        self.second = {n: torch.zeros_like(params[n]) for n in self.rest}
        self.t = 0

    def zero(self):
        for p in self.params.values():
            p.grad = None

    def clip(self, limit):
        """Scales all gradients so that their joint norm is at most limit. @return the norm before"""
        grads = [p.grad for p in self.params.values() if p.grad is not None]
        norm = float(torch.stack(torch._foreach_norm(grads)).norm())
        if norm > limit:
            torch._foreach_mul_(grads, limit / norm)
        return norm

    @torch.no_grad()
    def step(self, lr):
        self.t += 1
        b1, b2 = self.betas
        for names in self.groups.values():
            names = [n for n in names if self.params[n].grad is not None and self.scale.get(n, 1) > 0]
            if not names:
                continue
            g = torch.stack([self.params[n].grad for n in names])
            m = torch.stack([self.state[n] for n in names]).mul_(self.momentum).add_(g)
            for n, row in zip(names, m):
                self.state[n].copy_(row)
            u = orthogonalize(g.add_(m, alpha=self.momentum))
            for n, row in zip(names, u):
                p, rate = self.params[n], lr * self.scale.get(n, 1)
                p.mul_(1 - rate * self.decay).add_(row, alpha=-rate * 0.2 * max(p.shape) ** 0.5)
        for n in self.rest:
            p = self.params[n]
            rate = lr * self.scale.get(n, 1)
            if p.grad is None or rate == 0:
                continue
            m, v = self.state[n], self.second[n]
            m.lerp_(p.grad, 1 - b1)
            v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            if p.dim() > 1:
                p.mul_(1 - rate * self.decay)
            root = (v / (1 - b2**self.t)).sqrt_().add_(1e-8)
            p.addcdiv_(m, root, value=-rate / (1 - b1**self.t))

    def save(self):
        return {"t": self.t, "first": self.state, "second": self.second}

    def load(self, saved):
        self.t = saved["t"]
        for mine, theirs in ((self.state, saved["first"]), (self.second, saved["second"])):
            for n in mine:
                mine[n].copy_(theirs[n])
