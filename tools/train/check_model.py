#!/usr/bin/env python3
"""Holds model.py against transformers' PaliGemma on random weights: logits of whole sequences, gradients of kernels.

usage: check_model.py [--config config.json]
Prints the largest deviations and fails where one is above 1e-4 of the largest value.
"""
import argparse
import json
import os
import sys
import tempfile

import torch
import torch.nn.functional as F

import kernels
from export import write_weights
from model import Model, prefix_bias


def reference(model, config):
    from transformers import PaliGemmaForConditionalGeneration

    with tempfile.TemporaryDirectory() as where:
        with open(os.path.join(where, "config.json"), "w", encoding="utf-8") as f:
            json.dump(config, f)
        write_weights(model, os.path.join(where, "model.safetensors"))
        ref, info = PaliGemmaForConditionalGeneration.from_pretrained(
            where, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    # The head is tied, so the checkpoint has none.
    missing = [k for k in info["missing_keys"] if "lm_head" not in k]
    if missing or info["unexpected_keys"]:
        sys.exit(f"names differ: missing {missing}, unexpected {list(info['unexpected_keys'])}")
    return ref.eval()


def main():
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("--config", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "config.json"))
    config = json.load(open(arg.parse_args().config, encoding="utf-8"))
    gen = torch.Generator().manual_seed(7)
    model = Model(config, loc0=1000, seed=1)
    worst = 0.0

    def close(name, a, b, bound=1e-4):
        nonlocal worst
        off = float((a - b).abs().max() / b.abs().max())
        worst = max(worst, off / bound if off == off else float("inf"))
        print(f"{name:44} {off:.2e}")

    with torch.no_grad():
        for t in model.p.values():  # biases and norms that are not at their start, and bf16 so that both sides agree
            t.add_(torch.randn(t.shape, generator=gen) * 0.05 * t.abs().max().clamp(min=1))
            t.copy_(t.bfloat16().float())
        ref = reference(model, config)
        table = model.table(round_bf16=True)
        n_img, image_id = model.n_img, config["image_token_index"]
        size = config["vision_config"]["image_size"]
        pixels = torch.rand(2, 3, size, size, generator=gen) * 2 - 1
        rows = model.project(model.vision(pixels))
        lengths = [(5, 9), (8, 4), (3, 12)]
        picture = [0, 1, 1]
        texts = [torch.randint(4, image_id, (p + s,), generator=gen) for p, s in lengths]
        for t in texts:
            t[0] = 2
        n_p, n_s = max(p for p, _ in lengths), max(s for _, s in lengths)
        ids = torch.zeros(3, n_p + n_s, dtype=torch.long)
        for j, ((p, s), t) in enumerate(zip(lengths, texts)):
            ids[j, n_p - p : n_p + s] = t
        plen = torch.tensor([p for p, _ in lengths])
        total = torch.tensor([p + s for p, s in lengths])
        bias = prefix_bias(plen, n_p, total, n_s, n_img)
        pos = (torch.arange(n_p + n_s) - n_p + plen[:, None]).clamp(min=0) + n_img + 1
        emb = F.embedding(ids, table) * model.d**0.5
        # exact: image rows in front, they too see the prompt.
        top = torch.cat((torch.zeros(3, n_img, n_img),
                         bias[:, :1, n_img:].expand(-1, n_img, -1)), 2).clone()
        top[:, :, n_img + n_p :] = -1e30
        x = torch.cat((rows[picture], emb), 1)
        all_pos = torch.cat((torch.arange(1, n_img + 1).expand(3, -1), pos), 1)
        whole = model.decode(x, all_pos, torch.cat((top, bias), 1), first=n_img + n_p - 1) @ table.t()
        for j, ((p, s), t) in enumerate(zip(lengths, texts)):
            seq = torch.cat((torch.full((n_img,), image_id), t))[None]
            kind = torch.zeros_like(seq)
            kind[:, n_img + p :] = 1
            # token_type_ids make the prompt bidirectional; labels make transformers believe it trains, as it must to
            # see a suffix, and change nothing in the logits.
            out = ref(input_ids=seq, pixel_values=pixels[picture[j]][None], token_type_ids=kind,
                      attention_mask=torch.ones_like(seq), labels=seq)
            close(f"exact, sequence {j}", whole[j, : s + 1], out.logits[0, n_img + p - 1 :])
        feats = ref.model.get_image_features(pixels)
        feats = getattr(feats, "pooler_output", feats)
        feats = feats[0] if isinstance(feats, (tuple, list)) else feats
        close("image rows", rows, feats.view_as(rows))
        # packed: the same numbers as sequences of one whose image rows do not see the prompt.
        past = [(k[picture], v[picture]) for k, v in model.image_keys(rows)]
        packed = model.decode(emb, pos, bias, past, first=n_p - 1)
        top[:, :, n_img:] = -1e30
        alone = model.decode(x, all_pos, torch.cat((top, bias), 1), first=n_img + n_p - 1)
        for j, (p, s) in enumerate(lengths):
            close(f"packed, sequence {j}", packed[j, : s + 1], alone[j, : s + 1])

    lib = kernels._lib
    if lib:
        def both(name, f, *shapes):
            args = [torch.randn(*s, generator=gen) for s in shapes]
            got = []
            for kernels._lib in (lib, None):
                a = [t.clone().requires_grad_(True) for t in args]
                y = f(*a)
                (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
                got.append([y] + [t.grad for t in a])
            kernels._lib = lib
            for j, (u, v) in enumerate(zip(*got)):
                close(f"kernel {name}, {'value' if j == 0 else f'gradient {j}'}", u.detach(), v.detach(), 1e-5)

        cos, sin = model.angles(torch.randint(1, 99, (2, 5), generator=gen))
        hidden = torch.zeros(3, 5, 9).masked_fill(torch.rand(3, 5, 9, generator=gen) < 0.4, -1e30)
        hidden[:, :, 0] = 0
        hd = model.hd
        both("mlp", kernels.mlp, (7, 32), (48, 32), (48,), (32, 48), (32,))
        both("gated", kernels.gated_mlp, (7, 32), (48, 32), (48, 32), (32, 48))
        both("rms", lambda x, w: kernels.rms_norm(x, w, 1e-6), (7, 32), (32,))
        both("rope", lambda x: kernels.rope(x, cos, sin), (2, 5, 4, hd))
        both("mqa", lambda q, k, v: kernels.mqa(q, k, v, hidden), (3, 5, 4, 32), (3, 9, 32), (3, 9, 32))
        both("mha", lambda x: kernels.mha(x, 3), (2, 10, 3 * 96))
    print("ok" if worst <= 1 else "DIFFERS")
    return worst > 1


if __name__ == "__main__":
    sys.exit(main())
