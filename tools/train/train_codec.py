#!/usr/bin/env python3
"""Train the mask codec and write it in the published layout.

    OMP_NUM_THREADS=1 python3 tools/train/train_codec.py --out vae-oid.npz

draws its own masks (mask_shapes.py) and, with --scenes PROGRAM, takes those of espalier-scenes too. The same arguments
give the same masks and the same course up to the rounding of the sums. models/tiny/vae-oid.npz is what the defaults gave. Prints the mean IoU of reconstructed masks that
were not trained on, how many codes are in use, and how often a code stays when the mask is seen coarsely.

How it learns: a squared loss that asks no more of a pixel once it is beyond +-1 on the right side; the codebook follows
its members by moving averages, and a code that nobody chooses is put where some feature lies (arXiv 1711.00937, 2005.00341).
Two things make the tokens easy for a language model: the encoder sees half of the masks at the resolution that a small
object has in the picture, or shifted a little, and must still say what draws the sharp one; and some codes are swapped for
others before drawing, so that one wrong token does not spoil a mask.
"""

import argparse
import struct
import subprocess
import time

import numpy as np
import torch
from torch.nn import functional as F

import codec
import mask_shapes


def scene_masks(program, seed, n):
    """The first n masks of espalier-scenes --stream, uint8 [n, 64, 64]."""
    masks = []
    run = subprocess.Popen([program, "--stream", "--seed", str(seed), "--first", "0"], stdout=subprocess.PIPE)
    try:
        while len(masks) < n:
            head = run.stdout.read(8)
            if len(head) < 8 or head[:4] != b"ESPS":
                raise RuntimeError(f"{program}: the stream ended or is none")
            body = run.stdout.read(struct.unpack("<I", head[4:])[0] - 8)
            side, n_objects = struct.unpack_from("<HH", body, 8)
            n_text = body[15]
            at = 16 + 5 * side * side + n_text + 16
            for _ in range(n_objects):
                masks.append(np.frombuffer(body, np.uint8, 64 * 64, at + 20).reshape(64, 64))
                at += 20 + 64 * 64
    finally:
        run.kill()
        run.wait()
    return np.stack(masks[:n])


def coarse(masks, rng):
    """Masks f32 [n, 64, 64] as a picture with few pixels would give them, and moved by up to a pixel."""
    side = int(rng.integers(14, 48))
    small = (F.interpolate(masks[:, None], (side, side), mode="area") > 0.5).float()
    back = F.interpolate(small, (64, 64), mode="nearest")
    dy, dx = rng.integers(-1, 2, 2)
    return torch.roll(back, (int(dy), int(dx)), (2, 3))[:, 0]


def iou(a, b):
    return (a & b).sum((1, 2)) / np.maximum((a | b).sum((1, 2)), 1)


def report(model, masks, rng):
    codes = model.encode(masks)
    ious = iou(model.decode(codes) > 0.5, masks > 127)
    seen = coarse(torch.from_numpy(masks).float() / 255, rng).numpy()
    kept = (model.encode((seen * 255).astype(np.uint8)) == codes).mean()
    wrong = codes.copy()
    wrong[np.arange(len(codes)), rng.integers(16, size=len(codes))] = rng.choice(codes.ravel(), len(codes))
    hurt = iou(model.decode(wrong) > 0.5, masks > 127).mean()
    share = np.bincount(codes.ravel(), minlength=codec.N_CODES) / codes.size
    perplexity = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
    return (f"mean IoU {ious.mean():.4f}, worst twentieth {np.quantile(ious, 0.05):.3f}, "
            f"with one code wrong {hurt:.3f}; {(share > 0).sum()} codes, perplexity {perplexity:.1f}; kept when coarse {kept:.3f}")


class Codebook:
    """Moving averages of each code's members."""

    def __init__(self, model, rng, decay=0.99):
        self.model, self.rng, self.decay = model, rng, decay
        self.count = torch.ones(len(model.embedding))
        self.total = model.embedding.clone()

    @torch.no_grad()
    def follow(self, features, codes):
        flat, codes = features.reshape(-1, features.shape[-1]), codes.reshape(-1)
        ones = F.one_hot(codes, len(self.count)).float()
        self.count.mul_(self.decay).add_(ones.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(ones.T @ flat, alpha=1 - self.decay)
        dead = torch.nonzero(self.count < 0.01 * self.count.mean()).flatten()
        if len(dead):
            near = torch.from_numpy(self.rng.integers(len(flat), size=len(dead)))
            self.total[dead] = flat[near]
            self.count[dead] = 1.0
        self.model.embedding.copy_(self.total / self.count[:, None])
        return len(dead)


def train(args):
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    start = time.monotonic()
    masks = mask_shapes.draw(args.masks, rng)
    held = {"drawn": mask_shapes.draw(2000, np.random.default_rng(args.seed + 1))}
    if args.scenes:
        masks = np.concatenate([masks, scene_masks(args.scenes, args.seed, args.masks)])
        held["scenes"] = scene_masks(args.scenes, args.seed + 1, 2000)
    print(f"{len(masks)} masks in {time.monotonic() - start:.0f} s", flush=True)

    if args.resume:
        model = codec.load(args.resume).train().requires_grad_(True)
    else:
        w = args.width
        model = codec.MaskVae((16, 32, w, w), (w, w, min(w, 48), 24, 16), args.code_dim, args.codes)
    print(f"{sum(p.numel() for p in model.parameters())} live parameters", flush=True)
    book, primed = Codebook(model, rng), bool(args.resume)
    adam = torch.optim.Adam(model.parameters(), lr=args.rate, betas=(0.9, 0.98))
    turn = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min(
        1, (i + 1) / 100, max(0.02, (1 - i / args.steps) / 0.6)))
    loss_sum = n_dead = 0
    for step in range(1, args.steps + 1):
        clean = torch.from_numpy(masks[rng.integers(len(masks), size=args.batch)]).float() / 255
        if rng.random() < 0.5:
            clean = clean.flip(2)
        given = coarse(clean, rng) if rng.random() < 0.5 else clean
        features = model.features(given)
        if not primed:  # the first codes are features
            flat = features.detach().reshape(-1, features.shape[-1])
            pick = torch.from_numpy(rng.permutation(len(flat))[:len(model.embedding)])
            model.embedding.copy_(flat[pick])
            book.total.copy_(model.embedding)
            primed = True
        codes = model.nearest(features.detach())
        swap = torch.from_numpy(rng.random(codes.shape) < args.swap)
        other = codes.flatten()[torch.from_numpy(rng.integers(codes.numel(), size=codes.shape))]
        exact = F.embedding(codes, model.embedding)
        used = F.embedding(torch.where(swap, other, codes), model.embedding)
        # Straight through: the gradient of the drawing goes to the features, except where the code was swapped.
        drawn = model.draw(torch.where(swap[..., None], used, features + (used - features).detach()))
        loss = F.relu(1 - (2 * clean - 1) * drawn).square().mean() + 0.25 * F.mse_loss(features, exact)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        turn.step()
        if step < 0.9 * args.steps:
            n_dead += book.follow(features.detach(), codes)
        loss_sum += loss.item()
        if step % args.report == 0 or step == args.steps:
            line = "; ".join(f"{name}: {report(model, m[:500], np.random.default_rng(0))}" for name, m in held.items())
            print(f"step {step}, {time.monotonic() - start:.0f} s: loss {loss_sum / args.report:.4f}, "
                  f"{n_dead} moved; {line}", flush=True)
            loss_sum = n_dead = 0
            codec.save(args.out, model)
    done = codec.load(args.out)
    for name, m in held.items():
        print(f"held out, {name}: {report(done, m, np.random.default_rng(0))}")
    print(f"{time.monotonic() - start:.0f} s in all, {torch.get_num_threads()} thread(s)")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="the npz to write; also every --report steps")
    ap.add_argument("--scenes", help="espalier-scenes, for masks of its scenes as well")
    ap.add_argument("--resume", help="start from this npz")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--masks", type=int, default=30000, help="masks to draw, and again to take of the scenes")
    ap.add_argument("--steps", type=int, default=2500)
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--rate", type=float, default=1e-3)
    ap.add_argument("--width", type=int, default=64, help="live channels, of 128")
    ap.add_argument("--code-dim", type=int, default=32, help="live numbers of a code, of 512")
    ap.add_argument("--codes", type=int, default=64, help="codes in use, of 128")
    ap.add_argument("--swap", type=float, default=0.04, help="share of codes swapped before drawing")
    ap.add_argument("--report", type=int, default=250)
    train(ap.parse_args())


if __name__ == "__main__":
    main()
