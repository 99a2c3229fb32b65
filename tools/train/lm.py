"""Prompts and answers as tensors, and the two ways of training the decoder on them.

A pair is (picture, prompt ids: bos ... line feed, suffix ids ... eos). Pairs of like length share a bucket, laid out
[prompt, padded on the left | suffix, padded on the right], so that the rows that predict are the same in all of them.

packed: the image rows of a picture are computed once, seeing each other only, and all pairs look at their keys.
exact: each pair has its own image rows, which see the prompt too: the prefix-LM that inference computes.
"""
import functools
import re

import numpy as np
import torch
import torch.nn.functional as F

from model import prefix_bias
from stream import TASKS

BOS, EOS, PAD = 2, 1, 0
PLACE = re.compile(r"<seg@(\d+)>")
CUTS = (3, 9, 20)  # buckets by the suffix's tokens: words, boxes or letters, a mask or a caption, more


class Tokens:
    """The project's tokenizer, with the ids that matter here."""

    def __init__(self, path):
        import sentencepiece

        self.sp = sentencepiece.SentencePieceProcessor(model_file=path)
        self.loc0, self.seg0 = self.sp.piece_to_id("<loc0000>"), self.sp.piece_to_id("<seg000>")
        self.newline = self.sp.encode("\n")
        self.n = self.sp.vocab_size()
        self.encode = functools.lru_cache(1 << 16)(lambda text: tuple(self.sp.encode(text)))

    def prompt(self, text):
        return [BOS, *self.encode(text), *self.newline]

    def suffix(self, text, codes):
        """codes[k]: the 16 codes of object k's mask, for each <seg@k>."""
        out, at = [], 0
        for m in PLACE.finditer(text):
            out += self.encode(text[at : m.start()])
            out += [self.seg0 + int(c) for c in codes[int(m.group(1))]]
            at = m.end()
        return [*out, *self.encode(text[at:]), EOS]


def fake_codes(masks):
    """Stands in for a codec in trials of speed: codes that depend on the mask a little. u8[n,64,64] -> i64[n,16]"""
    return masks.reshape(len(masks), 4, 16, 4, 16).mean((2, 4)).reshape(len(masks), 16).astype(np.int64) // 4


def choose(pairs, k, rng):
    """k of a scene's pairs (all when k is 0), one of each task first: the rare tasks are the hard ones."""
    if k == 0 or len(pairs) <= k:
        return pairs
    order = rng.permutation(len(pairs))
    seen, first, rest = set(), [], []
    for i in order:
        task = pairs[i][0]
        (rest if task in seen else first).append(pairs[i])
        seen.add(task)
    return (first + rest)[:k]


def batch_of(scenes, tokens, encode, per_scene, seed):
    """list of Scene -> dict: rgb u8[B,S,S,3] and buckets, a list of dicts of tensors (see the file's head)."""
    rng = np.random.default_rng((seed, scenes[0].index))
    pairs, masks, wanted = [], [], {}
    for b, s in enumerate(scenes):
        for task, prompt, answer in choose(s.pairs, per_scene, rng):
            for m in PLACE.finditer(answer):
                key = (b, int(m.group(1)))
                if key not in wanted:
                    wanted[key] = len(masks)
                    masks.append(s.objects["mask"][key[1]])
            pairs.append((b, task, prompt, answer))
    codes = encode(np.stack(masks)) if masks else ()
    rows = []
    for b, task, prompt, answer in pairs:
        mine = {k: codes[i] for (p, k), i in wanted.items() if p == b} if "<seg@" in answer else None
        rows.append((b, task, tokens.prompt(prompt), tokens.suffix(answer, mine)))
    buckets = []
    lo = 0
    for hi in (*CUTS, 1 << 30):
        some = [r for r in rows if lo < len(r[3]) <= hi]
        lo = hi
        if some:
            buckets.append(bucket_of(some))
    return {"rgb": torch.from_numpy(np.stack([s.rgb for s in scenes])), "buckets": buckets, "pairs": len(rows)}


def bucket_of(rows):
    n_p, n_s = max(len(r[2]) for r in rows), max(len(r[3]) for r in rows)
    ids = np.zeros((len(rows), n_p + n_s), np.int64)
    for i, (_, _, p, s) in enumerate(rows):
        ids[i, n_p - len(p) : n_p] = p
        ids[i, n_p : n_p + len(s)] = s
    plen = torch.tensor([len(r[2]) for r in rows])
    return {
        "ids": torch.from_numpy(ids), "n_p": n_p, "n_s": n_s, "plen": plen,
        "total": plen + torch.tensor([len(r[3]) for r in rows]),
        "picture": torch.tensor([r[0] for r in rows]), "task": torch.tensor([r[1] for r in rows]),
    }


def hidden_packed(model, table, past, b):
    """f32[n, n_s, d]: the rows that predict the suffix, image rows apart. past: Model.image_keys of all pictures."""
    n_img, n_p, n_s = model.n_img, b["n_p"], b["n_s"]
    x = F.embedding(b["ids"][:, :-1], table) * model.d**0.5
    pos = (torch.arange(n_p + n_s - 1) - n_p + b["plen"][:, None]).clamp(min=0) + n_img + 1
    bias = prefix_bias(b["plen"], n_p, b["total"], n_s - 1, n_img)
    mine = [(k[b["picture"]], v[b["picture"]]) for k, v in past]
    return model.decode(x, pos, bias, mine, first=n_p - 1)


def hidden_exact(model, table, rows, b):
    """The same under the true mask; rows f32[B,N,d] from Model.project."""
    n_img, n_p, n_s = model.n_img, b["n_p"], b["n_s"]
    x = F.embedding(b["ids"][:, :-1], table) * model.d**0.5
    x = torch.cat((rows[b["picture"]], x), 1)
    pos = (torch.arange(n_p + n_s - 1) - n_p + b["plen"][:, None]).clamp(min=0) + n_img + 1
    n = len(pos)
    pos = torch.cat((torch.arange(1, n_img + 1).expand(n, -1), pos), 1)
    own = prefix_bias(b["plen"], n_p, b["total"], n_s - 1, n_img)
    # An image row sees what the first row of the prompt's block sees: image and prompt.
    bias = torch.cat((own[:, :1].expand(-1, n_img, -1), own), 1)
    return model.decode(x, pos, bias, first=n_img + n_p - 1)


@functools.lru_cache(1)
def spread(sigma):
    """f32[1024,1024]: row i, the target over bins when bin i is right; sigma: its standard deviation in bins."""
    at = torch.arange(1024)
    w = torch.exp(-0.5 * ((at[:, None] - at[None, :]) / sigma).square())
    return w / w.sum(1, keepdim=True)


def loss_of(hidden, buckets, table, tokens, weights, absent, sigma, places):
    """Cross-entropy of all suffix tokens, locations against spread targets, each pair's tokens times its task's weight.

    Location tokens weigh `places` times as much, their targets are spread over `sigma` bins: a wide spread is learnt
    first, since a sharp peak over 1024 bins takes large logits and features of high frequency.

    An answer without a word says that nothing of what was asked for is there. A greedy reader weighs its one end token
    against the single likeliest bin, which holds a few hundredths of the belief that something is there: `absent`, a
    further factor of such answers, makes up for that.

    hidden: one f32[n,n_s,d] a bucket; weights: a factor for each of TASKS. @return loss, log (per task: how many pairs
    are right word for word given their own past, letters or codes right, pixels off)
    """
    h, want, task, pair, empty, n_pairs = [], [], [], [], [], 0
    for x, b in zip(hidden, buckets):
        t = b["ids"][:, b["n_p"] :]
        real = torch.arange(b["n_s"]) < (b["total"] - b["plen"])[:, None]
        h.append(x[real])
        want.append(t[real])
        task.append(b["task"][:, None].expand_as(t)[real])
        pair.append((torch.arange(len(t)) + n_pairs)[:, None].expand_as(t)[real])
        empty.append((real.sum(1, keepdim=True) == 1).expand_as(t)[real])
        n_pairs += len(t)
    h, want, task, pair, empty = (torch.cat(x) for x in (h, want, task, pair, empty))
    logits = h @ table.t()
    lse = torch.logsumexp(logits, 1)
    is_loc = (want >= tokens.loc0) & (want < tokens.loc0 + 1024)
    is_seg = (want >= tokens.seg0) & (want < tokens.seg0 + 128)
    hit = logits.gather(1, want[:, None])[:, 0]
    at = torch.nonzero(is_loc).flatten()
    locs = logits[at, tokens.loc0 : tokens.loc0 + 1024]
    bins = want[at] - tokens.loc0
    if len(at):
        hit = hit.index_put((at,), (locs * spread(sigma)[bins]).sum(1))
    ce = lse - hit
    w = weights[task] * torch.where(is_loc, places, 1.0) * torch.where(empty, absent, 1.0)
    loss = (ce * w).sum() / w.sum()
    with torch.no_grad():
        log = {"loss": float(loss)}
        best = logits.argmax(1)
        right = best == want
        off = torch.zeros(len(want))
        if len(at):
            away = (best[at] - want[at]).abs().float()
            right[at] = away <= 18
            log["loc_px"] = float(away.clamp(max=1024).median()) * 112 / 1024
            log["loc_mean_px"] = float((locs.argmax(1) - bins).abs().float().mean()) * 112 / 1024
            off[at] = 1
        if is_seg.any():
            log["seg%"] = 100 * float(right[is_seg].float().mean())
        words = right | is_seg
        whole = torch.ones(n_pairs).index_put((pair[~words],), torch.tensor(0.0))
        task_of = torch.zeros(n_pairs, dtype=torch.long).index_put((pair,), task)
        nothing = torch.zeros(n_pairs, dtype=torch.bool).index_put((pair,), empty)
        detect = task_of == TASKS.index("detect")
        if (detect & nothing).any():
            log["absent%"] = 100 * float(whole[detect & nothing].mean())
        first = torch.ones(len(pair), dtype=torch.bool)
        first[1:] = pair[1:] != pair[:-1]
        begun = detect[pair] & first & ~empty
        if begun.any():
            log["present%"] = 100 * float((best[begun] != EOS).float().mean())
        for i, name in enumerate(TASKS):
            some = task_of == i
            if some.any():
                log[name + "%"] = 100 * float(whole[some].mean())
            mine = task == i
            if mine.any():
                log[name] = float(ce[mine].mean())
    return loss, log
