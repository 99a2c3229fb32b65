"""PaliGemma in plain torch, computed as transformers and Espalier compute it, arranged for fast training on a CPU.

Weights live in one dict under the published tensor names (Model.p), so export is writing them down. Formulas:
SigLIP (arXiv 2303.15343) with learned positions, pre-LayerNorm, tanh GELU, a LayerNorm at the end; one linear
projector; Gemma (arXiv 2403.08295): text rows scaled by sqrt(d), RMSNorm x*(1+w), rotary halves with base 10000,
gated tanh GELU, one key head, head tied to the embeddings; prefix-LM mask and positions from 1 (arXiv 2407.07726).

Location rows of the embedding table are not free parameters in training: row i is a sum of smooth functions of i
(cosines, loc_basis), times loc_weight, so that bins near each other learn from each other. Model.table() gives the
table as it is exported.
"""
import math

import torch
import torch.nn.functional as F

import kernels

V = "vision_tower.vision_model."
L = "language_model.model."


def loc_basis(n_bins, n_functions):
    """f32[n_bins, n_functions]: cosines of rising frequency over the bins, all of the same size, first constant."""
    at = (torch.arange(n_bins, dtype=torch.float64) + 0.5) / n_bins
    basis = torch.cos(math.pi * at[:, None] * torch.arange(n_functions, dtype=torch.float64))
    return basis.float()


class Model:
    """config: dict as in config.json. tokens: dict with loc0 (id of <loc0000>) or None for free location rows."""

    def __init__(self, config, loc0=None, n_basis=128, seed=0):
        self.config = config
        vis, txt = config["vision_config"], config["text_config"]
        self.vis, self.txt = vis, txt
        self.D, self.d = vis["hidden_size"], txt["hidden_size"]
        self.patch = vis["patch_size"]
        self.side = vis["image_size"] // self.patch
        self.n_img = self.side**2
        self.heads_v = vis["num_attention_heads"]
        self.heads, self.hd = txt["num_attention_heads"], txt.get("head_dim", 256)
        self.layers_v, self.layers = vis["num_hidden_layers"], txt["num_hidden_layers"]
        self.eps_v, self.eps = vis.get("layer_norm_eps", 1e-6), txt.get("rms_norm_eps", 1e-6)
        self.loc0 = loc0
        self.p = {}
        gen = torch.Generator().manual_seed(seed)

        def normal(name, *shape, std=None):
            std = shape[-1] ** -0.5 if std is None else std
            self.p[name] = torch.randn(*shape, generator=gen) * std

        def const(name, value, *shape):
            self.p[name] = torch.full(shape, float(value))

        D, d, M, Mt = self.D, self.d, vis["intermediate_size"], txt["intermediate_size"]
        e = V + "embeddings."
        normal(e + "patch_embedding.weight", D, 3, self.patch, self.patch, std=(3 * self.patch**2) ** -0.5)
        const(e + "patch_embedding.bias", 0, D)
        normal(e + "position_embedding.weight", self.n_img, D, std=0.1)
        for i in range(self.layers_v):
            a = f"{V}encoder.layers.{i}."
            for n in ("layer_norm1", "layer_norm2"):
                const(a + n + ".weight", 1, D)
                const(a + n + ".bias", 0, D)
            for n in ("q_proj", "k_proj", "v_proj", "out_proj"):
                normal(a + f"self_attn.{n}.weight", D, D, std=D**-0.5 * (0.3 if n == "out_proj" else 1))
                const(a + f"self_attn.{n}.bias", 0, D)
            normal(a + "mlp.fc1.weight", M, D)
            const(a + "mlp.fc1.bias", 0, M)
            normal(a + "mlp.fc2.weight", D, M, std=0.3 * M**-0.5)
            const(a + "mlp.fc2.bias", 0, D)
        const(V + "post_layernorm.weight", 1, D)
        const(V + "post_layernorm.bias", 0, D)
        normal("multi_modal_projector.linear.weight", d, D)
        const("multi_modal_projector.linear.bias", 0, d)
        normal(L + "embed_tokens.weight", txt["vocab_size"], d, std=d**-0.5)
        for i in range(self.layers):
            a = f"{L}layers.{i}."
            const(a + "input_layernorm.weight", 0, d)
            normal(a + "self_attn.q_proj.weight", self.heads * self.hd, d)
            normal(a + "self_attn.k_proj.weight", self.hd, d)
            normal(a + "self_attn.v_proj.weight", self.hd, d)
            normal(a + "self_attn.o_proj.weight", d, self.heads * self.hd, std=0.3 * (self.heads * self.hd) ** -0.5)
            const(a + "post_attention_layernorm.weight", 0, d)
            normal(a + "mlp.gate_proj.weight", Mt, d)
            normal(a + "mlp.up_proj.weight", Mt, d)
            normal(a + "mlp.down_proj.weight", d, Mt, std=0.3 * Mt**-0.5)
        const(L + "norm.weight", 0, d)
        if loc0 is not None:
            self.basis = loc_basis(1024, n_basis)
            # Falling weight of the finer cosines: neighbours start alike, and no row is longer than the others.
            fall = 1.0 / (1.0 + torch.arange(n_basis) / 8.0)
            fall = fall / (0.5 * fall.square().sum()).sqrt()
            self.p["loc_weight"] = torch.randn(n_basis, d, generator=gen) * fall[:, None] * d**-0.5
        for t in self.p.values():
            t.requires_grad_(True)
        half = torch.arange(0, self.hd, 2, dtype=torch.float32) / self.hd
        self.inv_freq = 1.0 / txt.get("rope_theta", 10000.0) ** half

    def matrices(self):
        """Names of the matrices inside layers and of the projector: what Muon may turn."""
        return [n for n, t in self.p.items() if t.dim() == 2 and (".layers." in n or n.startswith("multi"))]

    def table(self, round_bf16=False):
        """The embedding table f32[V,d] with the location rows made; rounded as if stored in bf16 when asked."""
        e = self.p[L + "embed_tokens.weight"]
        if self.loc0 is not None:
            loc = self.basis @ self.p["loc_weight"]
            e = torch.cat((e[: self.loc0], loc, e[self.loc0 + 1024 :]))
        if round_bf16:
            e = e + (e.detach().bfloat16().float() - e.detach())
        return e

    def vision(self, pixels):
        """pixels u8[B,S,S,3] or f32[B,3,S,S] in [-1,1] -> f32[B,N,D], after the last LayerNorm."""
        p, P, n = self.p, self.patch, self.side
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() / 255 - 0.5).div_(0.5).permute(0, 3, 1, 2)
        b = pixels.shape[0]
        x = pixels.reshape(b, 3, n, P, n, P).permute(0, 2, 4, 1, 3, 5).reshape(b * n * n, 3 * P * P)
        e = V + "embeddings."
        x = torch.addmm(p[e + "patch_embedding.bias"], x, p[e + "patch_embedding.weight"].view(self.D, -1).t())
        x = (x.view(b, n * n, self.D) + p[e + "position_embedding.weight"]).view(b * n * n, self.D)
        for i in range(self.layers_v):
            a = f"{V}encoder.layers.{i}."
            s = a + "self_attn."
            h = F.layer_norm(x, (self.D,), p[a + "layer_norm1.weight"], p[a + "layer_norm1.bias"], self.eps_v)
            w = torch.cat([p[s + c + "_proj.weight"] for c in "qkv"])
            bias = torch.cat([p[s + c + "_proj.bias"] for c in "qkv"])
            h = kernels.mha(torch.addmm(bias, h, w.t()).view(b, n * n, 3 * self.D), self.heads_v)
            x = x + torch.addmm(p[s + "out_proj.bias"], h.view(-1, self.D), p[s + "out_proj.weight"].t())
            h = F.layer_norm(x, (self.D,), p[a + "layer_norm2.weight"], p[a + "layer_norm2.bias"], self.eps_v)
            m = a + "mlp.fc"
            x = x + kernels.mlp(h, p[m + "1.weight"], p[m + "1.bias"], p[m + "2.weight"], p[m + "2.bias"])
        a = V + "post_layernorm."
        return F.layer_norm(x, (self.D,), p[a + "weight"], p[a + "bias"], self.eps_v).view(b, n * n, self.D)

    def project(self, features):
        """f32[B,N,D] -> image rows f32[B,N,d] of the decoder."""
        return F.linear(features, self.p["multi_modal_projector.linear.weight"],
                        self.p["multi_modal_projector.linear.bias"])

    def angles(self, positions):
        """positions i64[n,T] -> cos, sin f32[n,T,hd/2]."""
        a = positions[..., None].float() * self.inv_freq
        return a.cos(), a.sin()

    def layer(self, i, x, angles, bias, past=None, first=0):
        """Decoder layer i on x f32[n,T,d]; keys of past (k, v f32[n,S0,hd]) come before its own.

        bias f32[n,T,S0+T] is added to the scores. Only rows from `first` on are computed beyond their keys and come
        back, with (k, v) of x's own rows.
        """
        p, a = self.p, f"{L}layers.{i}."
        n, t, d = x.shape
        cos, sin = angles
        h = kernels.rms_norm(x, p[a + "input_layernorm.weight"], self.eps)
        kv = h.view(-1, d) @ torch.cat((p[a + "self_attn.k_proj.weight"], p[a + "self_attn.v_proj.weight"])).t()
        k, v = kv.view(n, t, 2 * self.hd).split(self.hd, 2)
        k, v = kernels.rope(k, cos, sin), v.contiguous()
        if first == t:
            return None, (k, v)
        own = (k, v)
        if past is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        if first:
            h, x, bias = h[:, first:], x[:, first:], bias[:, first:]
            cos, sin = cos[:, first:].contiguous(), sin[:, first:].contiguous()
        rows = n * (t - first)
        q = (h.reshape(rows, d) @ p[a + "self_attn.q_proj.weight"].t()).view(n, t - first, self.heads, self.hd)
        o = kernels.mqa(kernels.rope(q, cos, sin), k, v, bias)
        x = x.reshape(rows, d) + o.reshape(rows, -1) @ p[a + "self_attn.o_proj.weight"].t()
        h = kernels.rms_norm(x, p[a + "post_attention_layernorm.weight"], self.eps)
        x = x + kernels.gated_mlp(h, p[a + "mlp.gate_proj.weight"], p[a + "mlp.up_proj.weight"],
                                  p[a + "mlp.down_proj.weight"])
        return x.view(n, t - first, d), own

    def decode(self, x, positions, bias, past=None, first=0):
        """All layers and the last norm: f32[n,T,d] -> f32[n,T-first,d]. past: per layer (k, v), or None."""
        angles = self.angles(positions)
        for i in range(self.layers):
            last = i == self.layers - 1
            x, _ = self.layer(i, x, angles, bias, past[i] if past else None, first if last else 0)
        return kernels.rms_norm(x, self.p[L + "norm.weight"], self.eps)

    def image_keys(self, rows):
        """Keys and values of image rows f32[B,N,d] that see each other only: per layer (k, v f32[B,N,hd])."""
        b = rows.shape[0]
        angles = self.angles(torch.arange(1, self.n_img + 1).expand(b, -1))
        bias = torch.zeros(b, self.n_img, self.n_img)
        past, x = [], rows
        for i in range(self.layers):
            x, kv = self.layer(i, x, angles, bias, None, self.n_img if i == self.layers - 1 else 0)
            past.append(kv)
        return past


def prefix_bias(prompt_len, n_prompt, total_len, n_suffix, n_img):
    """Scores' bias of the prefix-LM for rows laid out [prompt, padded on the left | suffix, padded on the right].

    prompt_len, total_len i64[n]: tokens of the prompt (bos to the line feed) and of prompt and suffix. Every row may
    see the n_img image rows and its prompt; a suffix row also the suffix up to itself.
    @return f32[n, n_prompt+n_suffix, n_img+n_prompt+n_suffix]
    """
    t = n_prompt + n_suffix
    at = torch.arange(t)
    real = (at >= n_prompt - prompt_len[:, None]) & (at < n_prompt + (total_len - prompt_len)[:, None])
    see = (at[None, :] < n_prompt) | (at[None, :] <= at[:, None])
    own = torch.zeros(len(prompt_len), t, t).masked_fill_(~(see[None] & real[:, None, :]), -1e30)
    return torch.cat((torch.zeros(len(prompt_len), t, n_img), own), 2)


def greedy(model, rows, prompt_ids, n_max, eos, table=None):
    """Greedy answers under the true mask, one after the other sequence: for checks, not speed.

    rows f32[N,d] of one picture, prompt_ids a list of ids (bos to line feed). @return list of ids without eos
    """
    table = model.table() if table is None else table
    out = []
    with torch.no_grad():
        for _ in range(n_max):
            ids = torch.tensor([prompt_ids + out])
            x = torch.cat((rows[None], F.embedding(ids, table) * model.d**0.5), 1)
            t, c = x.shape[1], model.n_img + len(prompt_ids)
            see = torch.ones(t, t, dtype=torch.bool).tril() | (torch.arange(t) < c)
            bias = torch.zeros(1, t, t).masked_fill_(~see, -1e30)
            h = model.decode(x, torch.arange(1, t + 1)[None], bias, first=t - 1)
            best = int((h[0, -1] @ table.t()).argmax())
            if best == eos:
                break
            out.append(best)
    return out
