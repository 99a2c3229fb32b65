"""Dense supervision of the vision tower: what each patch's last feature must tell, through one linear layer.

Nothing of it is exported. It makes the features linear in what the decoder is later asked for (what is where, its exact
box, its mask, the letters), from 64 labelled patches a picture instead of a few answers.

Boxes are asked for twice: as numbers, and as cosines of each coordinate, as a location's logits are sums of cosines. With
numbers alone the decoder has to turn one into the other, which it learns slowly.

Per patch: what covers it; the object that covers most of it (kind, box, mask); the object whose middle lies in it (one
such patch per object: what counting and listing need); the background; letters in three upright strips, and their place
in the word.
"""
import numpy as np
import torch
import torch.nn.functional as F

from stream import COLOURS, MAX_OBJECTS, PATTERNS, SHAPES, SIZES

GLYPHS = 37  # none, A-Z, 0-9
PLACES = 6  # none, first to fifth or later letter
UNIT = 4.0  # boxes are predicted in quarters of the picture, from the patch's middle
MASK = 16  # side of the mask within the box
WAVES = 8  # cosines of a box's coordinates that a row must hold: what a location's logits are made of (model.py)

# name -> outputs of the linear layer
HEADS = {
    "cover": 3, "any": 49, "background": COLOURS, "glyph": 3 * GLYPHS, "place": 3 * PLACES, "text_box": 4, "middle": 1,
    "shape": SHAPES, "colour": COLOURS, "pattern": PATTERNS, "size": SIZES, "box": 4, "own": 49, "mask": MASK * MASK,
    "rank": MAX_OBJECTS, "code": 4 * WAVES,
    "m_shape": SHAPES, "m_colour": COLOURS, "m_pattern": PATTERNS, "m_size": SIZES, "m_box": 4, "m_rank": MAX_OBJECTS,
    "m_code": 4 * WAVES,
}
WEIGHTS = {"box": 3.0, "m_box": 3.0, "giou": 1.0, "mask": 2.0, "own": 1.0, "any": 1.0, "glyph": 2.0, "background": 0.3,
           "rank": 0.3, "m_rank": 0.3, "text_box": 1.0, "middle": 2.0, "code": 6.0, "m_code": 6.0}
ALL = ("cover", "any", "background", "glyph", "place", "middle")
OBJECT = ("shape", "colour", "pattern", "size", "box", "own", "mask", "rank", "code")
MIDDLE = ("m_shape", "m_colour", "m_pattern", "m_size", "m_box", "m_rank", "m_code")


def init_heads(width, seed):
    gen = torch.Generator().manual_seed(seed + 1)
    out = {}
    for name, n in HEADS.items():
        out[f"head.{name}.weight"] = torch.randn(n, width, generator=gen) * 0.3 * width**-0.5
        out[f"head.{name}.bias"] = torch.zeros(n)
    for t in out.values():
        t.requires_grad_(True)
    return out


def _glyph_class():
    table = np.zeros(256, np.int64)
    for i in range(26):
        table[ord("A") + i] = 1 + i
    for i in range(10):
        table[ord("0") + i] = 27 + i
    return torch.from_numpy(table)


GLYPH_CLASS = _glyph_class()


def targets(scenes, patch):
    """list of Scene -> dict of tensors; rows of patches are B*N in row order."""
    b, side = len(scenes), scenes[0].rgb.shape[0]
    n = side // patch
    t = {"rgb": torch.from_numpy(np.stack([s.rgb for s in scenes]))}

    def patches(name):
        a = torch.from_numpy(np.stack([getattr(s, name) for s in scenes]))
        return a.view(b, n, patch, n, patch).permute(0, 1, 3, 2, 4).reshape(b * n * n, patch, patch)

    kinds = np.zeros((b, MAX_OBJECTS, 4), np.int64)
    boxes = np.zeros((b, MAX_OBJECTS, 4), np.float32)
    boxes[:, :, 2:] = 1
    masks = np.zeros((b, MAX_OBJECTS, MASK * MASK), np.float32)
    ranks = np.zeros((b, MAX_OBJECTS), np.int64)
    rows = torch.arange(b * n * n)
    picture = rows // (n * n)
    middle = torch.zeros(b * n * n, dtype=torch.long)  # 0 none, else object + 1
    for i, s in enumerate(scenes):
        o = s.objects
        if not len(o):
            continue
        k = len(o)
        kinds[i, :k] = np.stack([o["shape"], o["colour"], o["pattern"], o["size"]], 1)
        boxes[i, :k] = o["box"]
        masks[i, :k] = o["mask"].reshape(k, MASK, 4, MASK, 4).mean((2, 4), dtype=np.float32).reshape(k, -1) / 255
        y, x = (o["box"][:, 0] + o["box"][:, 2]) / 2, (o["box"][:, 1] + o["box"][:, 3]) / 2
        ranks[i, :k] = np.argsort(np.argsort(x, kind="stable"))
        for j in range(k):
            at = int(min(y[j] * n, n - 1)) * n + int(min(x[j] * n, n - 1))
            middle[i * n * n + at] = j + 1
    kinds, boxes, masks, ranks = map(torch.from_numpy, (kinds, boxes, masks, ranks))
    own = patches("owner")
    flat = own.view(len(own), -1)
    count = torch.stack([(flat == k + 1).sum(1) for k in range(MAX_OBJECTS)], 1)
    total, words = count.sum(1), (flat == 254).sum(1)
    t["cover"] = torch.stack((patch * patch - total - words, total, words), 1).float() / patch**2
    best, main = count.max(1)
    t["object_rows"] = torch.nonzero(best >= 4).flatten()
    t["middle_rows"] = torch.nonzero(middle).flatten()
    t["middle"] = (middle > 0).float()
    cell = patch // 7

    def sub(m):
        return m.view(-1, 7, cell, 7, cell).float().mean((2, 4)).view(-1, 49)

    t["any"] = sub((own > 0) & (own <= MAX_OBJECTS))
    t["background"] = torch.tensor([s.background for s in scenes]).repeat_interleave(n * n)
    centre = torch.stack(((rows // n % n + 0.5) / n, (rows % n + 0.5) / n) * 2, 1)

    def of_objects(sel, which, prefix):
        p = picture[sel]
        for c, name in enumerate(("shape", "colour", "pattern", "size")):
            t[prefix + name] = kinds[p, which, c]
        t[prefix + "box"] = (boxes[p, which] - centre[sel]) * UNIT
        t[prefix + "rank"] = ranks[p, which]
        waves = torch.pi * torch.arange(1, WAVES + 1)
        t[prefix + "code"] = torch.cos(boxes[p, which][:, :, None] * waves).flatten(1)

    sel = t["object_rows"]
    of_objects(sel, main[sel], "")
    t["own"] = sub(own[sel] == (main[sel] + 1)[:, None, None])
    t["mask"] = masks[picture[sel], main[sel]]
    sel = t["middle_rows"]
    of_objects(sel, middle[sel] - 1, "m_")
    glyph = patches("glyph")
    at = torch.tensor([patch // 6, patch // 2, patch - 1 - patch // 6])
    strips = glyph[:, :, at].amax(1)  # u8[BN,3]
    t["glyph"] = GLYPH_CLASS[strips.long()]
    place = torch.zeros(b * n * n, 3, dtype=torch.long)
    text_box = torch.zeros(b, 4)
    with_text = torch.nonzero(strips.amax(1)).flatten()
    for i in with_text.tolist():
        s = scenes[i // (n * n)]
        text_box[i // (n * n)] = torch.from_numpy(s.text_box.copy())
        x0, x1 = float(s.text_box[1]), float(s.text_box[3])
        for j in range(3):
            code = int(strips[i, j])
            if code:
                x = ((i % n) * patch + int(at[j]) + 0.5) / side
                guess = (x - x0) / max(x1 - x0, 1e-6) * len(s.text) - 0.5
                here = [k for k, c in enumerate(s.text) if ord(c) == code]
                if here:
                    place[i, j] = min(1 + min(here, key=lambda k: abs(k - guess)), PLACES - 1)
    t["place"] = place
    t["text_rows"] = with_text
    t["text_box"] = (text_box[picture[with_text]] - centre[with_text]) * UNIT
    t["centre"] = centre
    return t


def giou(a, b):
    """Generalised IoU of boxes y0 x0 y1 x1 f32[n,4]; a may be degenerate. @return giou, iou f32[n]"""
    lo, hi = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inter = (hi - lo).clamp(min=0).prod(1)
    area_a = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1)
    area_b = (b[:, 2:] - b[:, :2]).clamp(min=0).prod(1)
    union = area_a + area_b - inter
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    iou = inter / union.clamp(min=1e-6)
    return iou - (hull - union) / hull.clamp(min=1e-6), iou


def loss_of(features, heads, t):
    """features f32[B,N,D], heads from init_heads, t from targets. @return loss, dict of floats for the log"""
    x = features.reshape(-1, features.shape[-1])
    out, log, loss = {}, {}, 0.0
    for names, sel in ((ALL, None), (OBJECT, t["object_rows"]), (MIDDLE, t["middle_rows"]),
                       (("text_box",), t["text_rows"])):
        rows = x if sel is None else x[sel]
        w = torch.cat([heads[f"head.{n}.weight"] for n in names])
        bias = torch.cat([heads[f"head.{n}.bias"] for n in names])
        for n, y in zip(names, torch.addmm(bias, rows, w.t()).split([HEADS[n] for n in names], 1)):
            out[n] = y

    def add(name, value, weight=None):
        nonlocal loss
        log[name] = float(value.detach())
        loss = loss + value * (WEIGHTS.get(name, 1.0) if weight is None else weight)

    def right(name, y, want):
        log[name + "%"] = 100 * float((y.argmax(-1) == want).float().mean()) if len(want) else float("nan")

    add("cover", F.cross_entropy(out["cover"], t["cover"]))
    add("any", F.binary_cross_entropy_with_logits(out["any"], t["any"]))
    add("background", F.cross_entropy(out["background"], t["background"]))
    right("background", out["background"], t["background"])
    middle = F.binary_cross_entropy_with_logits(out["middle"][:, 0], t["middle"],
                                                pos_weight=torch.tensor(3.0))
    add("middle", middle)
    guess = out["middle"][:, 0] > 0.55
    both = float((guess & (t["middle"] > 0)).sum())
    log["middle_f1%"] = 200 * both / max(1.0, float(guess.sum()) + float(t["middle"].sum()))
    for name, n in (("glyph", GLYPHS), ("place", PLACES)):
        y, want = out[name].reshape(-1, n), t[name].view(-1)
        # Most strips hold no letter: those that do weigh as much as the rest together.
        some = want > 0
        ce = F.cross_entropy(y, want, reduction="none")
        if some.any():
            add(name, 0.5 * ce[some].mean() + 0.5 * ce[~some].mean())
            right(name, y[some], want[some])
        else:
            add(name, ce.mean())
    if len(t["text_rows"]):
        add("text_box", F.smooth_l1_loss(out["text_box"], t["text_box"], beta=0.02))
    for prefix in ("", "m_"):
        if not len(t[prefix + "shape"]):
            continue
        for name in ("shape", "colour", "pattern", "size", "rank"):
            add(prefix + name, F.cross_entropy(out[prefix + name], t[prefix + name]))
            right(prefix + name, out[prefix + name], t[prefix + name])
        a, b = out[prefix + "box"], t[prefix + "box"]
        add(prefix + "box", F.smooth_l1_loss(a, b, beta=0.02))
        g, iou = giou(a, b)
        add(prefix + "giou", 1 - g.mean(), WEIGHTS["giou"])
        add(prefix + "code", F.smooth_l1_loss(out[prefix + "code"], t[prefix + "code"], beta=0.1))
        log[prefix + "iou"] = float(iou.detach().mean())
    if len(t["object_rows"]):
        add("own", F.binary_cross_entropy_with_logits(out["own"], t["own"]))
        add("mask", F.binary_cross_entropy_with_logits(out["mask"], t["mask"]))
        with torch.no_grad():
            a, b = out["mask"] > 0, t["mask"] > 0.5
            log["mask_iou"] = float(((a & b).sum(1) / (a | b).sum(1).clamp(min=1)).mean())
    log["loss"] = float(loss.detach())
    return loss, log
