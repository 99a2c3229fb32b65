#!/usr/bin/env python3
"""Makes the tokenizer of models/tiny from the words that the scenes use.

It is of Gemma's kind: byte-pair merges with byte fallback, digits apart, spaces kept, no space put in front; pad 0,
eos 1, bos 2, unk 3. As in PaliGemma's, <loc0000>..<loc1023> and <seg000>..<seg127> come last, and <image> is the first
id behind all pieces. Words of the scenes' language are pieces of their own, with and without a space before them;
capitals and digits stand alone, so that printed text is spelled.

    espalier-scenes --out DIR --count 3000 --seed 1
    tools/train/tokenizer.py DIR/scenes.jsonl models/tiny/tokenizer.model

Needs sentencepiece and protobuf for Python. The same corpus gives the same file. (SentencePiece's own trainer fails a
check when a corpus has so few words that it runs out of pairs to merge; the merges are therefore found here.)
"""

import argparse
import collections
import json
import re

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SPACE = "\u2581"  # what SentencePiece writes for a space
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789?.,;:'\"!-()"


def words(path):
    """How often each lower-case word stands in prompts and answers, a space before it being part of it."""
    counts = collections.Counter()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            for text in (example["prompt"], example["answer"]):
                text = re.sub(r"<[a-z]+\d+>", "\n", text)
                counts.update(w.replace(" ", SPACE) for w in re.findall(r" ?[a-z]+", text))
    # A word that opens a prompt may stand inside another one day, and the other way round.
    for word in list(counts):
        other = word[1:] if word[0] == SPACE else SPACE + word
        counts[other] += 0
    return counts


def merges(counts):
    """Pieces in the order in which byte-pair encoding makes them, until each word is one."""
    parts = {word: list(word) for word in counts}
    made = []
    while True:
        pairs = collections.Counter()
        for word, split in parts.items():
            for pair in zip(split, split[1:]):
                pairs[pair] += counts[word] + 1
        if not pairs:
            return made
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        made.append("".join(best))
        for split in parts.values():
            i = 0
            while i + 1 < len(split):
                if (split[i], split[i + 1]) == best:
                    split[i:i + 2] = [made[-1]]
                i += 1


def build(counts):
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece

    def add(piece, kind, score=0.0):
        proto.pieces.add(piece=piece, score=score, type=kind)

    for piece, kind in (("<pad>", kinds.CONTROL), ("<eos>", kinds.CONTROL), ("<bos>", kinds.CONTROL),
                        ("<unk>", kinds.UNKNOWN), ("\n", kinds.USER_DEFINED)):
        add(piece, kind)
    for byte in range(256):
        add("<0x%02X>" % byte, kinds.BYTE)
    made = list(dict.fromkeys(merges(counts)))
    for rank, piece in enumerate(made + [SPACE] + list(LETTERS)):
        add(piece, kinds.NORMAL, -float(rank))
    for i in range(1024):
        add("<loc%04d>" % i, kinds.USER_DEFINED)
    for i in range(128):
        add("<seg%03d>" % i, kinds.USER_DEFINED)
    spec = proto.trainer_spec
    spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    spec.vocab_size = len(proto.pieces)
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec.pad_piece, spec.eos_piece, spec.bos_piece, spec.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    spec.byte_fallback = spec.split_digits = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString(deterministic=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenes", help="scenes.jsonl of a few thousand scenes")
    parser.add_argument("out", help="where tokenizer.model goes")
    args = parser.parse_args()
    counts = words(args.scenes)
    model = build(counts)
    with open(args.out, "wb") as f:
        f.write(model)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    for word in counts:
        assert len(tokenizer.encode(word.replace(SPACE, " "))) == 1, word
    print(f"{args.out}: {tokenizer.vocab_size()} pieces for {len(counts)} words; "
          f"<loc0000> {tokenizer.piece_to_id('<loc0000>')}, <seg000> {tokenizer.piece_to_id('<seg000>')}, "
          f"<image> {tokenizer.vocab_size()}")


if __name__ == "__main__":
    main()
