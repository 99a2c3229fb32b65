#!/usr/bin/env python3
"""Trains the small PaliGemma on drawn scenes, in stages: see README.md.

usage: train.py STAGE --work DIR (--scenes PROGRAM | --fifo PATH) --steps N [option ...]

STAGE is vision (the tower, from labelled patches), packed (tower and decoder, all questions of a picture at once) or
exact (sequences as inference sees them). --init names the state of the stage before. The state lives in DIR/STAGE.pt
(weights, optimizer, step; written every two minutes and at the end); the same command goes on from it. DIR/STAGE.log
takes a line every --every steps. A file DIR/STAGE.cool makes the rate fall from that step on, over --decay steps, after
which the run ends.
"""
import argparse
import json
import os
import sys
import time

import torch

import kernels
import lm
import vision
from model import L, Model, V
from optim import Optimizer
from stream import Batches


def rate_at(step, args, cool):
    """Warm-up, a plateau, and a linear fall to zero over the last --decay steps (begun at `cool`)."""
    left = 1.0 - (step - cool) / args.decay
    return args.lr * min(1.0, (step + 1) / args.warmup) * max(0.0, min(1.0, left))


def exported(path, model):
    """The weights of a folder that export.py wrote, as training has them: location rows as sums of cosines again."""
    from safetensors.torch import load_file

    weights = {n: t.float() for n, t in load_file(os.path.join(path, "model.safetensors")).items()}
    if model.loc0 is not None:
        rows = weights[L + "embed_tokens.weight"][model.loc0 : model.loc0 + 1024]
        weights["loc_weight"] = torch.linalg.lstsq(model.basis, rows).solution
    return weights


class Run:
    """What all stages share: state file, log, schedule."""

    def __init__(self, args, model, params, optimizer):
        self.args, self.model, self.params, self.optimizer = args, model, params, optimizer
        self.path = os.path.join(args.work, args.stage + ".pt")
        self.log_path = os.path.join(args.work, args.stage + ".log")
        self.cool_path = os.path.join(args.work, args.stage + ".cool")
        self.rounded = False
        self.step, self.scenes, self.seconds, self.cool = 0, args.first, 0.0, args.steps - args.decay
        os.makedirs(args.work, exist_ok=True)
        if os.path.exists(self.path):
            state = torch.load(self.path, weights_only=True)
            with torch.no_grad():
                for n, t in state["weights"].items():
                    params[n].copy_(t)
            optimizer.load(state["optimizer"])
            self.step, self.scenes, self.seconds = state["step"], state["scenes"], state["seconds"]
            self.cool = min(self.cool, state["cool"])
        elif args.init:
            self.take(args.init)
        self.sums, self.n_sums, self.since, self.saved = {}, 0, time.time(), time.time()
        self.last_scenes = self.scenes

    def take(self, path):
        """Weights of another stage's state, or of an exported checkpoint's folder, those that this one has too."""
        if os.path.isdir(path):
            weights, step = exported(path, self.model), "exported"
        else:
            state = torch.load(path, weights_only=True)
            weights, step = state["weights"], state["step"]
        with torch.no_grad():
            found = [n for n in weights if n in self.params]
            for n in found:
                self.params[n].copy_(weights[n])
        self.say(f"# {len(found)} tensors from {path}, step {step}")

    def say(self, line):
        with open(self.log_path, "a", encoding="utf-8") as f:
            f.write(line + "\n")
        print(line, flush=True)

    @torch.no_grad()
    def round(self):
        """Rounds what is stored in bf16. @return list of (tensor, its unrounded copy)"""
        kept = []
        for n, t in self.model.p.items():
            if n != "loc_weight":
                kept.append((t, t.clone()))
                t.copy_(t.bfloat16())
        return kept

    def save(self):
        state = {
            "stage": self.args.stage, "step": self.step, "scenes": self.scenes, "cool": self.cool,
            "seconds": self.seconds + time.time() - self.started, "config": self.model.config,
            "loc0": self.model.loc0, "n_basis": self.args.basis, "optimizer": self.optimizer.save(),
            "weights": {n: t.detach() for n, t in self.params.items()},
        }
        torch.save(state, self.path + ".part")
        os.replace(self.path + ".part", self.path)
        self.saved = time.time()

    def go(self, batches, loss_of):
        """loss_of(batch) -> loss, log, number of scenes. Runs to the last step."""
        args = self.args
        self.started = time.time()
        while self.step < min(args.steps, self.cool + args.decay):
            wait = time.time()
            batch = next(batches)
            wait = time.time() - wait
            self.optimizer.zero()
            # Towards the end the weights are rounded on the way forward, so that storing them in bf16 costs nothing.
            self.rounded = args.round > 0 and self.step >= min(args.steps, self.cool + args.decay) - args.round
            kept = self.round() if self.rounded else None
            loss, log, n = loss_of(batch)
            if not torch.isfinite(loss):
                sys.exit(f"step {self.step}: the loss is {float(loss)}")
            loss.backward()
            if kept:
                with torch.no_grad():
                    for t, master in kept:
                        t.copy_(master)
            log["norm"] = self.optimizer.clip(args.clip)
            rate = rate_at(self.step, args, self.cool)
            self.optimizer.step(rate)
            self.step += 1
            self.scenes += n
            log["waited"] = wait
            for k, v in log.items():
                if v == v:
                    s = self.sums.setdefault(k, [0.0, 0])
                    s[0] += v
                    s[1] += 1
            if self.step % args.every == 0:
                now = time.time()
                means = " ".join(f"{k} {s / c:.4g}" for k, (s, c) in self.sums.items())
                spent = self.seconds + now - self.started
                self.say(f"step {self.step} scenes {self.scenes} lr {rate:.2e} s {spent:.0f} "
                         f"scenes/s {(self.scenes - self.last_scenes) / (now - self.since):.1f} {means}")
                self.sums, self.since, self.last_scenes = {}, now, self.scenes
            if os.path.exists(self.cool_path) and self.step < self.cool:
                os.remove(self.cool_path)
                self.cool = self.step
                self.say(f"# cooling from step {self.step}")
            if time.time() - self.saved > 120:
                self.save()
        self.save()
        self.say(f"# done: step {self.step}, {self.scenes} scenes, {self.seconds + time.time() - self.started:.0f} s")


def stage_vision(args, model):
    params = {n: t for n, t in model.p.items() if n.startswith(V)}
    heads = vision.init_heads(model.D, args.seed)
    params.update(heads)
    run = Run(args, model, params, Optimizer(params, model.matrices(), decay=args.weight_decay))
    batches = open_batches(args, run, lambda scenes: vision.targets(scenes, model.patch))

    def loss_of(t):
        loss, log = vision.loss_of(model.vision(t["rgb"]), heads, t)
        return loss, log, len(t["rgb"])

    run.go(batches, loss_of)
    batches.close()


def stage_lm(args, model, tokens):
    """packed and exact: everything is trained, the tower at --tower of the rate (0: not at all)."""
    exact = args.stage == "exact"
    params = dict(model.p)
    heads = vision.init_heads(model.D, args.seed) if args.dense > 0 else {}
    params.update(heads)
    scale = {n: args.tower for n in params if n.startswith(V)}
    scale |= {"loc_weight": args.sharpen, L + "norm.weight": args.sharpen}
    run = Run(args, model, params, Optimizer(params, model.matrices(), scale, decay=args.weight_decay))
    encode = lm.fake_codes if args.codec == "fake" else codec_of(args.codec)
    weights = torch.tensor([float(w) for w in args.weights.split(",")])

    def make(scenes):
        batch = lm.batch_of(scenes, tokens, encode, args.pairs, args.seed)
        batch["dense"] = vision.targets(scenes, model.patch) if heads else None
        return batch

    def loss_of(batch):
        with torch.set_grad_enabled(args.tower > 0):
            features = model.vision(batch["rgb"])
        rows = model.project(features)
        table = model.table(round_bf16=run.rounded)
        if exact:
            hidden = [lm.hidden_exact(model, table, rows, b) for b in batch["buckets"]]
        else:
            past = model.image_keys(rows)
            hidden = [lm.hidden_packed(model, table, past, b) for b in batch["buckets"]]
        loss, log = lm.loss_of(hidden, batch["buckets"], table, tokens, weights, args.absent, args.sigma,
                               args.places)
        log["pairs"] = batch["pairs"]
        if heads:
            dense, more = vision.loss_of(features, heads, batch["dense"])
            loss = loss + args.dense * dense
            log.update({"v." + k: more[k] for k in ("loss", "shape%", "glyph%", "place%", "m_iou") if k in more})
        return loss, log, len(batch["rgb"])

    batches = open_batches(args, run, make)
    run.go(batches, loss_of)
    batches.close()


def codec_of(path):
    import codec

    return codec.load(path).encode


def open_batches(args, run, make):
    return Batches(args.batch, program=args.scenes, path=args.fifo, seed=args.seed, first=run.scenes,
                   side=run.model.vis["image_size"], again=args.again, make=make)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("stage", choices=("vision", "packed", "exact"))
    arg.add_argument("--work", required=True, help="folder of states and logs, outside the repository")
    arg.add_argument("--config", default=os.path.join(here, "config.json"))
    source = arg.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", help="espalier-scenes, started with the seed")
    source.add_argument("--fifo", help="a stream of it: a FIFO, a file, or -")
    arg.add_argument("--again", action="store_true", help="read the file of --fifo again and again")
    arg.add_argument("--init", help="state of an earlier stage, or the folder of an exported checkpoint, to begin with")
    arg.add_argument("--steps", type=int, required=True)
    arg.add_argument("--decay", type=int, help="steps of the falling rate at the end (a third of --steps)")
    arg.add_argument("--warmup", type=int, default=100)
    arg.add_argument("--batch", type=int, default=64, help="scenes a step")
    arg.add_argument("--lr", type=float, default=2e-3)
    arg.add_argument("--weight-decay", type=float, default=0.02)
    arg.add_argument("--clip", type=float, default=2.0)
    arg.add_argument("--seed", type=int, default=1)
    arg.add_argument("--first", type=int, default=0, help="index of the first scene")
    arg.add_argument("--basis", type=int, default=128, help="cosines that location rows are made of")
    arg.add_argument("--tokenizer", help="tokenizer.model; packed and exact")
    arg.add_argument("--codec", default="fake", help="vae-oid.npz, or 'fake' for trials of speed")
    arg.add_argument("--pairs", type=int, default=0, help="questions of a scene that are used (0: all)")
    arg.add_argument("--tower", type=float, default=0.3, help="the tower's share of the rate; 0 freezes it")
    arg.add_argument("--dense", type=float, default=0.0, help="weight of the vision stage's loss beside the answers'")
    arg.add_argument("--sigma", type=float, default=14.0, help="bins over which a location's target is spread")
    arg.add_argument("--places", type=float, default=2.0, help="further weight of location tokens")
    arg.add_argument("--sharpen", type=float, default=4.0,
                     help="factor of the rate of what makes logits of locations large: their rows, the last norm")
    arg.add_argument("--weights", default="1,2,1,1,2", help="of a token by task: caption,answer,detect,segment,ocr")
    arg.add_argument("--absent", type=float, default=0.04, help="further weight of empty answers (see lm.loss_of)")
    arg.add_argument("--round", type=int, default=0, help="last steps that are taken with weights rounded to bf16")
    arg.add_argument("--every", type=int, default=20)
    arg.add_argument("--threads", type=int, default=1)
    args = arg.parse_args()
    args.decay = args.decay or max(1, args.steps // 3)
    kernels.keep_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = json.load(open(args.config, encoding="utf-8"))
    if args.stage == "vision":
        stage_vision(args, Model(config, loc0=None, n_basis=args.basis, seed=args.seed))
        return
    if not args.tokenizer:
        sys.exit(f"{args.stage} needs --tokenizer")
    tokens = lm.Tokens(args.tokenizer)
    config["image_token_index"] = config["vocab_size"] = tokens.n
    config["text_config"]["vocab_size"] = -(-(tokens.n + 1) // 64) * 64
    stage_lm(args, Model(config, loc0=tokens.loc0, n_basis=args.basis, seed=args.seed), tokens)


if __name__ == "__main__":
    main()
