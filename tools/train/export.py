#!/usr/bin/env python3
"""Writes a training state as a published checkpoint: model.safetensors in bf16 and the files beside it.

usage: export.py --state STATE.pt --tokenizer tokenizer.model [--codec vae-oid.npz] --out models/tiny

Whatever goes into models/tiny stays in the repository's history for good: the folder may hold at most 16 MB, and this
program fails where it holds more. (At the shapes of config.json the weights are 11.7 MB, the codec 1.1 MB.)
"""
import argparse
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

from model import L, Model

MAX_BYTES = 16_000_000


def write_weights(model, path):
    """model: Model. Tensors in bf16 under the published names; the location rows are made and stored as any others."""
    with torch.no_grad():
        out = {n: t.detach().bfloat16().contiguous() for n, t in model.p.items() if n != "loc_weight"}
        out[L + "embed_tokens.weight"] = model.table().bfloat16().contiguous()
    save_file(out, path + ".part", metadata={"format": "pt"})
    os.chmod(path + ".part", 0o644)  # safetensors makes it for its user alone
    os.replace(path + ".part", path)


def load_state(path):
    """A state that train.py packed or exact wrote -> Model, state. What only helps in training is left behind."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["loc0"] is None:
        sys.exit(f"{path}: a state of the {state['stage']} stage has no decoder; export one of packed or exact")
    model = Model(state["config"], state["loc0"], state["n_basis"])
    missing = [name for name in model.p if name not in state["weights"]]
    if missing:
        sys.exit(f"{path}: lacks {missing[0]} and {len(missing) - 1} more")
    for name in model.p:
        model.p[name] = state["weights"][name]
    return model, state


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("--state", required=True, help="state file that train.py wrote")
    arg.add_argument("--tokenizer", required=True, help="tokenizer.model that tokenizer.py wrote")
    arg.add_argument("--codec", help="vae-oid.npz that train_codec.py wrote")
    arg.add_argument("--out", required=True)
    args = arg.parse_args()
    model, state = load_state(args.state)
    os.makedirs(args.out, exist_ok=True)
    for name in ("preprocessor_config.json", "generation_config.json"):
        shutil.copyfile(os.path.join(here, name), os.path.join(args.out, name))
    shutil.copyfile(args.tokenizer, os.path.join(args.out, "tokenizer.model"))
    if args.codec:
        shutil.copyfile(args.codec, os.path.join(args.out, "vae-oid.npz"))
    with open(os.path.join(args.out, "config.json"), "w", encoding="utf-8") as f:
        json.dump(state["config"], f, indent=1, sort_keys=True)
        f.write("\n")
    write_weights(model, os.path.join(args.out, "model.safetensors"))
    size = os.path.getsize(os.path.join(args.out, "model.safetensors"))
    whole = sum(entry.stat().st_size for entry in os.scandir(args.out))
    print(f"{args.out}: step {state['step']} of {state['stage']}, {size / 1e6:.2f} MB of weights, {whole / 1e6:.2f} in all")
    if whole > MAX_BYTES:
        sys.exit(f"{args.out}: more than {MAX_BYTES / 1e6:.0f} MB, too large for the repository; narrow config.json")


if __name__ == "__main__":
    main()
