"""The pieces of a training step that torch's CPU back end does slowly, with their gradients.

kernels.c is compiled on first use into the user's cache (XDG_CACHE_HOME) and called through ctypes; without a C
compiler the plain torch formulas below stand in (slower, the same numbers up to rounding). All tensors are
contiguous float32 on the CPU.
"""
import ctypes
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F


def _build():
    source = pathlib.Path(__file__).with_name("kernels.c")
    flags = ["-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512", "-std=gnu11", "-fopenmp", "-fPIC",
             "-shared"]
    try:
        model = [l for l in open("/proc/cpuinfo") if l.startswith(("model name", "flags"))][:2]
    except OSError:
        model = []
    key = hashlib.sha256((source.read_text() + " ".join(flags) + "".join(model)).encode()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "espalier-train"
    path = cache / f"kernels-{key}.so"
    if not path.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                out = os.path.join(scratch, "k.so")
                subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", out, str(source), "-lm"], check=True)
                os.replace(out, path)
        except (OSError, subprocess.CalledProcessError) as err:
            print(f"kernels.py: no C kernels ({err}), torch's own instead: slower", file=sys.stderr)
            return None
    return ctypes.CDLL(str(path))


_lib = None if os.environ.get("ESPALIER_TRAIN_KERNELS") == "0" else _build()


def _call(name, *args):
    def cast(a):
        if isinstance(a, torch.Tensor):
            assert a.is_contiguous() and a.dtype == torch.float32, name
            return ctypes.c_void_p(a.data_ptr())
        return ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int64(a)

    getattr(_lib, name)(*[cast(a) for a in args])


class _Mlp(torch.autograd.Function):
    """W2 gelu(W1 x + b1) + b2 over rows: x f32[T,D]."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2):
        h = torch.addmm(b1, x, w1.t())
        a = torch.empty_like(h)
        _call("gelu_forward", a, h, h.numel())
        ctx.save_for_backward(x, w1, w2, h, a)
        return torch.addmm(b2, a, w2.t())

    @staticmethod
    def backward(ctx, g):
        x, w1, w2, h, a = ctx.saved_tensors
        g = g.contiguous()
        gw2 = g.t() @ a
        gh = g @ w2
        gb1 = torch.zeros(h.shape[1])
        _call("gelu_backward", gh, gb1, h, h.shape[0], h.shape[1])
        return gh @ w1, gh.t() @ x, gb1, gw2, g.sum(0)


class _Gated(torch.autograd.Function):
    """down(gelu(gate x) * up x) over rows; w f32[2F,d] is gate above up."""

    @staticmethod
    def forward(ctx, x, w, down):
        both = x @ w.t()
        a = torch.empty(both.shape[0], both.shape[1] // 2)
        _call("gated_forward", a, both, a.shape[0], a.shape[1])
        ctx.save_for_backward(x, w, down, both, a)
        return a @ down.t()

    @staticmethod
    def backward(ctx, g):
        x, w, down, both, a = ctx.saved_tensors
        g = g.contiguous()
        gdown = g.t() @ a
        ga = g @ down
        gboth = torch.empty_like(both)
        _call("gated_backward", gboth, ga, both, ga.shape[0], ga.shape[1])
        return gboth @ w, gboth.t() @ x, gdown


class _Rms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        x = x.contiguous()
        out, r = torch.empty_like(x), torch.empty(x.numel() // x.shape[-1])
        _call("rms_forward", out, r, x, w, r.numel(), x.shape[-1], float(eps))
        ctx.save_for_backward(x, w, r)
        return out

    @staticmethod
    def backward(ctx, g):
        x, w, r = ctx.saved_tensors
        gx, gw = torch.empty_like(x), torch.zeros_like(w)
        _call("rms_backward", gx, gw, g.contiguous(), x, w, r, r.numel(), x.shape[-1])
        return gx, gw, None


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        out = x.clone(memory_format=torch.contiguous_format)
        half = cos.shape[-1]
        rows = cos.numel() // half
        _call("rope_rotate", out, cos, sin, rows, out.numel() // rows // (2 * half), half, 1.0)
        return out

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        out = g.clone(memory_format=torch.contiguous_format)
        half = cos.shape[-1]
        rows = cos.numel() // half
        _call("rope_rotate", out, cos, sin, rows, out.numel() // rows // (2 * half), half, -1.0)
        return out, None, None


class _Mqa(torch.autograd.Function):
    """Attention of H query heads over one key head: q f32[n,T,H,hd], k and v f32[n,S,hd], bias f32[n,T,S]."""

    @staticmethod
    def forward(ctx, q, k, v, bias):
        n, t, h, hd = q.shape
        q = q.reshape(n, t * h, hd) * hd**-0.5
        kt = k.transpose(1, 2).contiguous()
        p = torch.bmm(q, kt)
        _call("masked_softmax", p, bias.contiguous(), n * t, h, kt.shape[2])
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(n, t, h, hd)

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved_tensors
        n, t, h, hd = g.shape
        g = g.reshape(n, t * h, hd)
        gv = torch.bmm(p.transpose(1, 2), g)
        gp = torch.bmm(g, v.transpose(1, 2).contiguous())
        _call("softmax_backward", gp, p, p.shape[0] * p.shape[1], p.shape[2], 1.0)
        gq = torch.bmm(gp, k).mul_(hd**-0.5)
        return gq.view(n, t, h, hd), torch.bmm(gp.transpose(1, 2), q), gv, None


class _Mha(torch.autograd.Function):
    """Full attention without a mask on the fused projection: qkv f32[B,T,3*H*hd] -> f32[B,T,H*hd]."""

    @staticmethod
    def forward(ctx, qkv, heads):
        b, t, w = qkv.shape
        hd = w // 3 // heads
        split = qkv.view(b, t, 3, heads, hd)
        q = (split[:, :, 0].transpose(1, 2) * hd**-0.5).reshape(b * heads, t, hd)
        kt = split[:, :, 1].permute(0, 2, 3, 1).reshape(b * heads, hd, t)
        v = split[:, :, 2].transpose(1, 2).reshape(b * heads, t, hd)
        p = torch.bmm(q, kt).softmax(-1)
        ctx.save_for_backward(q, kt, v, p)
        ctx.shape = (b, t, heads, hd)
        return torch.bmm(p, v).view(b, heads, t, hd).transpose(1, 2).reshape(b, t, heads * hd)

    @staticmethod
    def backward(ctx, g):
        q, kt, v, p = ctx.saved_tensors
        b, t, heads, hd = ctx.shape
        g = g.view(b, t, heads, hd).transpose(1, 2).reshape(b * heads, t, hd)
        out = torch.empty(b, t, 3, heads, hd)
        gp = torch.bmm(g, v.transpose(1, 2).contiguous())
        _call("softmax_backward", gp, p, p.shape[0] * t, t, 1.0)
        out[:, :, 2] = torch.bmm(p.transpose(1, 2), g).view(b, heads, t, hd).transpose(1, 2)
        out[:, :, 0] = torch.bmm(gp, kt.transpose(1, 2).contiguous()).mul_(hd**-0.5).view(b, heads, t, hd).transpose(1, 2)
        out[:, :, 1] = torch.bmm(gp.transpose(1, 2), q).view(b, heads, t, hd).transpose(1, 2)
        return out.view(b, t, 3 * heads * hd), None


def mlp(x, w1, b1, w2, b2):
    """SigLIP's MLP over rows f32[T,D]."""
    if _lib:
        return _Mlp.apply(x, w1, b1, w2, b2)
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)


def gated_mlp(x, gate, up, down):
    """Gemma's MLP over rows f32[T,d]."""
    if _lib:
        return _Gated.apply(x, torch.cat((gate, up)), down)
    return F.linear(F.gelu(F.linear(x, gate), approximate="tanh") * F.linear(x, up), down)


def rms_norm(x, w, eps):
    """x / rms(x) * (1 + w) along the last axis."""
    if _lib:
        return _Rms.apply(x, w, eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + w)


def rope(x, cos, sin):
    """Rotates halves: x f32[n,T,H,hd] or f32[n,T,hd], cos and sin f32[n,T,hd/2]."""
    if _lib:
        return _Rope.apply(x, cos, sin)
    if x.dim() == 4:
        cos, sin = cos[:, :, None], sin[:, :, None]
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def mqa(q, k, v, bias):
    """softmax(q k^T / sqrt(hd) + bias) v for one key head: shapes as in _Mqa."""
    if _lib:
        return _Mqa.apply(q, k, v, bias)
    n, t, h, hd = q.shape
    s = (q.reshape(n, t * h, hd) * hd**-0.5 @ k.transpose(1, 2)).view(n, t, h, -1) + bias[:, :, None]
    return (s.softmax(-1).view(n, t * h, -1) @ v).view(n, t, h, hd)


def mha(qkv, heads):
    """Unmasked attention of the vision tower: f32[B,T,3*D] -> f32[B,T,D]."""
    if _lib:
        return _Mha.apply(qkv, heads)
    b, t, w = qkv.shape
    q, k, v = qkv.view(b, t, 3, heads, w // 3 // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w // 3)


def keep_memory():
    """Lets malloc keep freed blocks: activations are as large in every step, and mapping them anew costs a fifth."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass
