#!/usr/bin/env python3
"""Holds Espalier's greedy answers against transformers' PaliGemma on the same checkpoint, pictures and prompts.

usage: compare_transformers.py --model models/tiny --data scenes.jsonl [--results results.jsonl] [--write FILE]

The reference runs in float32 on the CPU, its attention in plain torch ("eager"), pictures go through transformers' own
SigLIP processor (Pillow's bicubic) as preprocessor_config.json says, prompts through SentencePiece. results.jsonl is
what `espalier eval --data scenes.jsonl --out results.jsonl` wrote; a difference is printed with both texts and with the
reference's margin: how far the logit of its own token is above that of Espalier's where they part (nan: one was cut,
see --max-tokens). Fails where an answer differs.

--write FILE makes a reference file, a JSON object a line for each example: line (in scenes.jsonl, from 1), image,
prompt, text, ids (without the end token), logprobs (of each id under the full softmax), eos_logprob (null when the
answer was cut at --max-tokens), and margin, the least distance of the best logit from the second over all steps.
"""
import argparse
import json
import math
import os
import sys

import torch


class Reference:
    """transformers' PaliGemma of a folder, and what it takes to ask it."""

    def __init__(self, path):
        import sentencepiece
        from transformers import PaliGemmaForConditionalGeneration

        try:  # where there are two, this is the one that works with Pillow
            from transformers import SiglipImageProcessorPil as Processor
        except ImportError:
            from transformers import SiglipImageProcessor as Processor

        self.model, info = PaliGemmaForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        missing = [name for name in info["missing_keys"] if "lm_head" not in name]  # tied to the embeddings
        if missing or info["unexpected_keys"]:
            sys.exit(f"{path}: missing {missing}, unexpected {sorted(info['unexpected_keys'])}")
        self.model.eval()
        self.processor = Processor.from_pretrained(path)
        self.sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(path, "tokenizer.model"))
        self.config = self.model.config
        image_token = getattr(self.config, "image_token_id", None)
        self.image_token = self.config.image_token_index if image_token is None else image_token
        self.n_img = self.config.vision_config.image_size**2 // self.config.vision_config.patch_size**2
        self.bos, self.eos = self.config.bos_token_id, self.config.eos_token_id
        self.shown = (None, None)

    def pixels(self, path):
        """The picture as the tower takes it, f32[1,3,S,S]; the last one is kept, since examples share pictures."""
        from PIL import Image

        if self.shown[0] != path:
            with Image.open(path) as picture:
                self.shown = (path, self.processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"])
        return self.shown[1]

    def answer(self, image, prompt, max_tokens):
        """@return ids, without the end token; logits f32[steps,V], one step more than ids where it ended by itself"""
        ids = [self.image_token] * self.n_img + [self.bos] + self.sp.encode(prompt) + self.sp.encode("\n")
        ids = torch.tensor([ids])
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids, pixel_values=self.pixels(image), attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),  # all of it is prefix: every position sees every other
                max_new_tokens=max_tokens, do_sample=False, num_beams=1, output_logits=True,
                return_dict_in_generate=True)
        made = out.sequences[0, ids.shape[1] :].tolist()
        if made and made[-1] == self.eos:
            made.pop()
        return made, torch.cat(out.logits)


def read_examples(path, count):
    """[(line, picture's path, example)] of the first examples of a scenes.jsonl (count 0: all)."""
    out = []
    with open(path, encoding="utf-8") as lines:
        for at, line in enumerate(lines, 1):
            if line.strip():
                example = json.loads(line)
                out.append((at, os.path.join(os.path.dirname(path), example["image"]), example))
                if len(out) == count:
                    break
    return out


def read_results(path):
    """{line: result} of results.jsonl; the last of several counts, and the header has no line."""
    out = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                result = json.loads(line)
            except ValueError:  # the last line of a run that was stopped
                continue
            if "line" in result:
                out[result["line"]] = result
    return out


def parting(ours, ended, theirs, logits, eos):
    """The first step at which Espalier's ids leave the reference's: (step, margin), or None when they are the same.

    ended: Espalier's answer came to its end token, rather than to its limit of tokens.
    """
    a = ours + [eos] if ended else ours
    b = theirs + [eos] * (len(logits) - len(theirs))
    for step, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return step, float(logits[step, y] - logits[step, x])
    return None if len(a) == len(b) else (min(len(a), len(b)), math.nan)


def main():
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("--model", required=True, help="folder of the checkpoint")
    arg.add_argument("--data", required=True, help="scenes.jsonl")
    arg.add_argument("--results", help="what espalier eval --out wrote about it")
    arg.add_argument("--count", type=int, default=0, help="the first so many examples (all)")
    arg.add_argument("--write", help="reference file to make")
    arg.add_argument("--max-tokens", type=int, default=128, help="as espalier eval had (128)")
    arg.add_argument("--threads", type=int, default=1)
    args = arg.parse_args()
    if not args.results and not args.write:
        arg.error("nothing to do: neither --results nor --write")
    torch.set_num_threads(args.threads)
    examples = read_examples(args.data, args.count)
    results = read_results(args.results) if args.results else {}
    if args.results:
        lacking = [at for at, _, e in examples if at not in results or results[at]["prompt"] != e["prompt"]]
        if lacking:
            sys.exit(f"{args.results}: nothing about line {lacking[0]} of {args.data}, and {len(lacking) - 1} more")
    reference = Reference(args.model)
    equal, off, written = 0, 0.0, []
    for at, image, example in examples:
        ids, logits = reference.answer(image, example["prompt"], args.max_tokens)
        logprobs = torch.log_softmax(logits, 1)
        text = reference.sp.decode(ids)
        if args.write:
            best = logits.topk(2, 1).values
            written.append({
                "line": at, "image": example["image"], "prompt": example["prompt"], "text": text, "ids": ids,
                "logprobs": [round(float(logprobs[i, t]), 6) for i, t in enumerate(ids)],
                "eos_logprob": round(float(logprobs[-1, reference.eos]), 6) if len(logits) > len(ids) else None,
                "margin": round(float((best[:, 0] - best[:, 1]).min()), 6),
            })
        if not args.results:
            continue
        result = results[at]
        if "error" in result:
            print(f"line {at}: {example['prompt']}: Espalier failed: {result['error']}")
            continue
        where = parting(result["ids"], result.get("finish") == "eos", ids, logits, reference.eos)
        for i, (a, b) in enumerate(zip(result["ids"], ids)):
            if a != b:
                break
            off = max(off, abs(result["logprobs"][i] - float(logprobs[i, b])))
        if where is None:
            equal += 1
            continue
        print(f"line {at}: {example['image']}: {example['prompt']}\n  espalier      {result['text']}\n"
              f"  transformers  {text}\n  part at token {where[0]}, margin {where[1]:.4g}")
    if args.write:
        with open(args.write, "w", encoding="utf-8") as f:
            for line in written:
                f.write(json.dumps(line) + "\n")
        print(f"{args.write}: {len(written)} answers")
    if args.results:
        print(f"{equal} of {len(examples)} answers are the same, token for token; "
              f"log-probabilities of the same tokens differ by at most {off:.2g}")
        return equal != len(examples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
