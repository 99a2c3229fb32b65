#!/usr/bin/env python3
"""Writes a training state as a published checkpoint: model.safetensors in bf16 and the files beside it.

usage: export.py --state STATE.pt --tokenizer DIR --out models/tiny
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

from model import L, Model


def write_weights(model, path):
    """model: Model. Tensors in bf16 under the published names; the location rows are made and stored as any others."""
    with torch.no_grad():
        out = {n: t.detach().bfloat16().contiguous() for n, t in model.p.items() if n != "loc_weight"}
        out[L + "embed_tokens.weight"] = model.table().bfloat16().contiguous()
    save_file(out, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)


def main():
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("--state", required=True, help="state file that train.py wrote")
    arg.add_argument("--tokenizer", required=True, help="folder that tokenizer.py wrote")
    arg.add_argument("--out", required=True)
    args = arg.parse_args()
    state = torch.load(args.state, map_location="cpu", weights_only=True)
    model = Model(state["config"], state["loc0"], state["n_basis"])
    for name, tensor in state["weights"].items():
        model.p[name] = tensor
    os.makedirs(args.out, exist_ok=True)
    for name in ("tokenizer.model", "preprocessor_config.json", "generation_config.json"):
        shutil.copyfile(os.path.join(args.tokenizer, name), os.path.join(args.out, name))
    with open(os.path.join(args.out, "config.json"), "w", encoding="utf-8") as f:
        json.dump(state["config"], f, indent=1, sort_keys=True)
        f.write("\n")
    write_weights(model, os.path.join(args.out, "model.safetensors"))
    size = os.path.getsize(os.path.join(args.out, "model.safetensors"))
    print(f"{args.out}: step {state['step']} of {state['stage']}, {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
