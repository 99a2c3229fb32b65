#!/usr/bin/env python3
"""Writes a GGUF file of Gemma 2B's shape with random weights, for llama.cpp to be measured with (compare.md).

    make_gguf.py --type f16|bf16|q8_0|q4_0 [--pure] [--layers N] OUT.gguf

The decoder of PaliGemma 3B: 18 layers of width 2048, 8 query heads over one key head of 256, gated MLP of 16384, a
vocabulary of 257216 tied to the head. Matrices are of the type asked for, but for q4_0's table: llama-quantize makes that
q6_K where it is the head too. --pure: q4_0 as well. Norms are float32.
Weights have mean 0 and a standard deviation of about 0.02, so that activations stay near one.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3. Needs nothing but Python.
"""
import argparse
import array
import random
import struct
import sys

WIDTH, MLP, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 16384, 8, 1, 256, 257216
ALIGN = 32
F32, F16, Q4_0, Q8_0, Q6_K, BF16 = 0, 1, 2, 8, 14, 30  # enum ggml_type
TYPES = {"f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0}
FILE_TYPE = {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # enum llama_ftype
BLOCK = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q8_0: (32, 34), Q4_0: (32, 18), Q6_K: (256, 210)}  # weights, bytes
U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # enum gguf_type
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # enum llama_token_type
PATTERN = 1 << 20  # weights that are drawn; tensors are pieced together from them


def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def vocabulary():
    """Tokens, scores and types as a SentencePiece vocabulary has them; what they spell does not matter."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [CONTROL, CONTROL, CONTROL, UNKNOWN] + [BYTE] * 256
    for i in range(len(tokens), VOCAB):
        tokens.append(f"\u2581w{i}")
        types.append(NORMAL)
    n = struct.pack("<Q", VOCAB)
    scores = array.array("f", [-float(i) for i in range(VOCAB)]).tobytes()
    return [
        pair("tokenizer.ggml.model", STRING, text("llama")),
        pair("tokenizer.ggml.tokens", ARRAY, struct.pack("<I", STRING) + n + b"".join(map(text, tokens))),
        pair("tokenizer.ggml.scores", ARRAY, struct.pack("<I", FLOAT) + n + scores),
        pair("tokenizer.ggml.token_type", ARRAY, struct.pack("<I", I32) + n + array.array("i", types).tobytes()),
        pair("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 2)),
        pair("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 1)),
        pair("tokenizer.ggml.unknown_token_id", U32, struct.pack("<I", 3)),
        pair("tokenizer.ggml.padding_token_id", U32, struct.pack("<I", 0)),
    ]


def header(kind, n_layer):
    def number(key, v):
        return pair(key, U32, struct.pack("<I", v))

    return [
        pair("general.architecture", STRING, text("gemma")),
        pair("general.name", STRING, text("random weights of Gemma 2B's shape")),
        number("general.alignment", ALIGN),
        number("general.file_type", FILE_TYPE[kind]),
        number("general.quantization_version", 2),
        number("gemma.context_length", 8192),
        number("gemma.embedding_length", WIDTH),
        number("gemma.block_count", n_layer),
        number("gemma.feed_forward_length", MLP),
        number("gemma.attention.head_count", HEADS),
        number("gemma.attention.head_count_kv", KV_HEADS),
        number("gemma.attention.key_length", HEAD_DIM),
        number("gemma.attention.value_length", HEAD_DIM),
        pair("gemma.attention.layer_norm_rms_epsilon", FLOAT, struct.pack("<f", 1e-6)),
    ] + vocabulary()


def tensors(kind, pure, n_layer):
    """Name, dimensions (the fastest first), type."""
    t = TYPES[kind]
    yield "token_embd.weight", (WIDTH, VOCAB), Q6_K if t == Q4_0 and not pure else t
    for i in range(n_layer):
        yield f"blk.{i}.attn_norm.weight", (WIDTH,), F32
        yield f"blk.{i}.attn_q.weight", (WIDTH, HEADS * HEAD_DIM), t
        yield f"blk.{i}.attn_k.weight", (WIDTH, KV_HEADS * HEAD_DIM), t
        yield f"blk.{i}.attn_v.weight", (WIDTH, KV_HEADS * HEAD_DIM), t
        yield f"blk.{i}.attn_output.weight", (HEADS * HEAD_DIM, WIDTH), t
        yield f"blk.{i}.ffn_norm.weight", (WIDTH,), F32
        yield f"blk.{i}.ffn_gate.weight", (WIDTH, MLP), t
        yield f"blk.{i}.ffn_up.weight", (WIDTH, MLP), t
        yield f"blk.{i}.ffn_down.weight", (MLP, WIDTH), t
    yield "output_norm.weight", (WIDTH,), F32


def n_bytes(dims, t):
    n = 1
    for d in dims:
        n *= d
    return n // BLOCK[t][0] * BLOCK[t][1]


def pattern(t, rng):
    """Random weights of a type, as stored."""
    if t == F32:
        return struct.pack("<f", 1.0) * 4096
    if t == F16:
        return b"".join(struct.pack("<e", rng.gauss(0, 0.02)) for _ in range(PATTERN))
    if t == BF16:
        return b"".join(struct.pack("<f", rng.gauss(0, 0.02))[2:] for _ in range(PATTERN))
    if t == Q6_K:  # 192 bytes of numbers, 16 of signed scales, one float16 over all
        return b"".join(
            rng.randbytes(192)
            + bytes(rng.randrange(48, 80) for _ in range(16))
            + struct.pack("<e", 0.02 / 64 / 64 * 12**0.5 * rng.uniform(0.9, 1.1))
            for _ in range(PATTERN // 256)
        )
    # uniform quants: a step that makes their standard deviation 0.02
    q = BLOCK[t][1] - 2
    step = 0.02 / (256 if t == Q8_0 else 16) * 12**0.5
    return b"".join(struct.pack("<e", step * rng.uniform(0.9, 1.1)) + rng.randbytes(q) for _ in range(PATTERN // 32))


def write(out, kind, pure, n_layer):
    rng = random.Random(1)
    listed = list(tensors(kind, pure, n_layer))
    patterns = {t: pattern(t, rng) for t in sorted({t for _, _, t in listed})}
    pairs = header(kind, n_layer)
    out.write(b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs)) + b"".join(pairs))
    at = 0
    for name, dims, t in listed:
        out.write(text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, t, at))
        at += (n_bytes(dims, t) + ALIGN - 1) // ALIGN * ALIGN
    out.write(bytes(-out.tell() % ALIGN))
    for i, (_, dims, t) in enumerate(listed):
        left = n_bytes(dims, t)
        p = patterns[t]
        turn = i * 4801 % (len(p) // BLOCK[t][1]) * BLOCK[t][1]  # no two tensors alike
        p = p[turn:] + p[:turn]
        while left > 0:
            left -= out.write(p[:left])
        out.write(bytes(-out.tell() % ALIGN))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--pure", action="store_true")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("out")
    a = parser.parse_args()
    with open(a.out, "wb") as f:
        write(f, a.type, a.pure, a.layers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
