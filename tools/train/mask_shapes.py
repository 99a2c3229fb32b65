"""Masks to train the codec on without pictures: one shape each, turned, stretched, partly hidden, cut to its box.

    masks = draw(n, rng)    # uint8 [n, 64, 64], 0 or 255

What is seen of a shape is stretched to fill the 64x64 pixels, as the codec wants it. About half are bitten by one or two
other shapes or by the edge of a picture; at least a quarter of the area stays.
"""

import numpy as np

SIDE = 64
NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")


def _polygon(x, y, corners):
    """Even-odd rule. x, y [n, p]; corners [n, k, 2] -> bool [n, p]."""
    inside = np.zeros(x.shape, bool)
    k = corners.shape[1]
    for i in range(k):
        ax, ay = corners[:, i, 0, None], corners[:, i, 1, None]
        bx, by = corners[:, (i + 1) % k, 0, None], corners[:, (i + 1) % k, 1, None]
        crosses = (ay > y) != (by > y)
        slope = (bx - ax) / np.where(by == ay, 1e-9, by - ay)
        inside ^= crosses & (x < ax + (y - ay) * slope)
    return inside


def _inside(shape, x, y, vary):
    """Points x, y [n, p] in a shape's own axes (y down, about -1..1); vary [n], 0..1, is its free proportion."""
    v = vary[:, None]
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.88
    if shape == "triangle":
        n = len(vary)
        one = np.ones(n)
        return _polygon(x, y, np.stack([np.stack([0 * one, -one], 1), np.stack([0.8 + 0.2 * vary, 0.8 * one], 1),
                                        np.stack([-0.8 - 0.2 * vary, 0.8 * one], 1)], 1))
    if shape == "star":
        turn = np.pi / 5 * np.arange(10)
        radius = np.where(np.arange(10) % 2, 0.36 + 0.16 * v, 1.0)
        return _polygon(x, y, np.stack([radius * np.sin(turn), -radius * np.cos(turn)], 2))
    if shape == "cross":
        arm = 0.26 + 0.14 * v
        return (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= arm)
    if shape == "ring":
        r = x * x + y * y
        return (r <= 1) & (r >= (0.45 + 0.2 * v) ** 2)
    if shape == "diamond":
        return abs(x) / (0.65 + 0.35 * v) + abs(y) <= 1
    # heart: two lobes and a point below, or the sextic; both are drawn as hearts
    sx, sy = 1.2 * x, -1.2 * y + 0.1
    sextic = (sx * sx + sy * sy - 1) ** 3 - sx * sx * sy ** 3 <= 0
    lobe = (abs(x) - 0.48) ** 2 + (y + 0.4) ** 2 <= 0.52 ** 2
    return np.where(v < 0.5, sextic, lobe | (abs(x) <= (0.95 - y) * 0.74) & (y > -0.25) & (abs(x) < 1))


def _all_inside(kind, x, y, pose):
    """Points [n, p] of the plane against shapes of several kinds. pose [n, 6]: x, y, half width, half height, turn, vary."""
    out = np.zeros(x.shape, bool)
    sin, cos = np.sin(pose[:, 4, None]), np.cos(pose[:, 4, None])
    dx, dy = x - pose[:, 0, None], y - pose[:, 1, None]
    u = (cos * dx + sin * dy) / pose[:, 2, None]
    w = (cos * dy - sin * dx) / pose[:, 3, None]
    for i, name in enumerate(NAMES):
        at = np.flatnonzero(kind == i)
        if len(at):
            out[at] = _inside(name, u[at], w[at], pose[at, 5])
    return out


def _box(seen, x0, y0, dx, dy):
    """Bounds of what is seen, bool [n, s, s] on a grid of steps dx, dy [n] from x0, y0 [n]; half a step beyond the points."""
    s = seen.shape[1]
    cols, rows = seen.any(1), seen.any(2)
    left, right = cols.argmax(1), s - 1 - cols[:, ::-1].argmax(1)
    top, bottom = rows.argmax(1), s - 1 - rows[:, ::-1].argmax(1)
    return x0 + dx * left, y0 + dy * top, x0 + dx * (right + 1), y0 + dy * (bottom + 1)


def _batch(n, rng):
    kind = rng.integers(len(NAMES), size=n)
    pose = np.zeros((n, 6))
    pose[:, 2:4] = rng.uniform(0.75, 1, (n, 2))
    pose[:, 4] = rng.uniform(-0.5, 0.5, n) * (rng.random(n) < 0.8)
    pose[:, 5] = rng.random(n)
    n_bite = rng.choice(3, n, p=(0.45, 0.4, 0.15))
    bites = []
    for i in range(2):
        b = np.zeros((n, 6))
        far, way = rng.uniform(0.6, 1.7, n), rng.uniform(0, 2 * np.pi, n)
        b[:, 0], b[:, 1] = far * np.cos(way), far * np.sin(way)
        b[:, 2:4] = rng.uniform(0.4, 1.5, (n, 1)) * rng.uniform(0.85, 1.15, (n, 2))
        b[:, 4] = rng.uniform(-0.5, 0.5, n)
        b[:, 5] = rng.random(n)
        bites.append((rng.integers(len(NAMES), size=n), b, i < n_bite))
    edge = np.where(rng.random((n, 4)) < 0.06, rng.uniform(0.3, 0.9, (n, 4)), 9.0)  # the picture ends there

    def seen(x0, y0, x1, y1, side):
        at = (np.arange(side) + 0.5) / side
        x = (x0[:, None, None] + (x1 - x0)[:, None, None] * at[None, None, :]).repeat(side, 1).reshape(n, -1)
        y = (y0[:, None, None] + (y1 - y0)[:, None, None] * at[None, :, None]).repeat(side, 2).reshape(n, -1)
        whole = _all_inside(kind, x, y, pose)
        here = whole & (x < edge[:, 0, None]) & (x > -edge[:, 1, None]) & (y < edge[:, 2, None]) & (y > -edge[:, 3, None])
        for what, where, on in bites:
            here &= ~(_all_inside(what, x, y, where) & on[:, None])
        return here.reshape(n, side, side), whole.sum(1)

    lo, hi = np.full(n, -1.5), np.full(n, 1.5)
    coarse, whole = seen(lo, lo, hi, hi, 48)
    keep = coarse.sum((1, 2)) > 0.25 * whole
    x0, y0, x1, y1 = _box(coarse, lo, lo, (hi - lo) / 48, (hi - lo) / 48)
    # Once more around that box, then exactly within it.
    mx, my = (x1 - x0) * 0.05 + 0.07, (y1 - y0) * 0.05 + 0.07
    fine, _ = seen(x0 - mx, y0 - my, x1 + mx, y1 + my, SIDE)
    keep &= fine.any((1, 2))
    x0, y0, x1, y1 = _box(fine, x0 - mx, y0 - my, (x1 - x0 + 2 * mx) / SIDE, (y1 - y0 + 2 * my) / SIDE)
    exact, _ = seen(x0, y0, x1, y1, SIDE)
    return exact[keep & exact.any((1, 2))].astype(np.uint8) * 255


def draw(n, rng):
    parts, have = [], 0
    while have < n:
        parts.append(_batch(512, rng))
        have += len(parts[-1])
    return np.concatenate(parts)[:n]
