"""Reads the generator's record stream (`espalier-scenes --stream`) and hands batches over from a thread.

A record, little-endian, packed: "ESPS", u32 bytes of the whole record, u64 scene index, u16 side, u16 objects,
u16 questions, u8 background, u8 length of the text; rgb u8[s,s,3], owner u8[s,s] (0 background, 1.. object, 254 text),
glyph u8[s,s] (0 or ASCII); the text, its box f32[4]; per object shape, colour, pattern, size class u8, box f32[4]
(y0 x0 y1 x1 of 0..1), mask u8[64,64]; per question u8 task, u16 n, prompt, u16 m, answer.
"""
import queue
import struct
import subprocess
import sys
import threading

import numpy as np

TASKS = ("caption", "answer", "detect", "segment", "ocr")
HEAD = struct.Struct("<4sIQHHHBB")
OBJECT = np.dtype([("shape", "u1"), ("colour", "u1"), ("pattern", "u1"), ("size", "u1"), ("box", "<f4", 4),
                   ("mask", "u1", (64, 64))])
SHAPES, COLOURS, PATTERNS, SIZES = 8, 12, 3, 2
MAX_OBJECTS = 5


class Scene:
    __slots__ = ("index", "rgb", "owner", "glyph", "background", "text", "text_box", "objects", "pairs")


def parse(body, head):
    """One record without its head -> Scene. head: the unpacked HEAD."""
    _, n_bytes, index, side, n_obj, n_qa, background, n_text = head
    if side == 0 or n_obj > MAX_OBJECTS or n_bytes != HEAD.size + len(body):
        raise ValueError(f"scene {index}: impossible head (side {side}, {n_obj} objects, {n_bytes} bytes)")
    s = Scene()
    area = side * side
    s.index, s.background = index, background
    s.rgb = np.frombuffer(body, np.uint8, 3 * area, 0).reshape(side, side, 3)
    s.owner = np.frombuffer(body, np.uint8, area, 3 * area).reshape(side, side)
    s.glyph = np.frombuffer(body, np.uint8, area, 4 * area).reshape(side, side)
    at = 5 * area
    s.text = body[at : at + n_text].decode("ascii")
    at += n_text
    s.text_box = np.frombuffer(body, "<f4", 4, at)
    at += 16
    s.objects = np.frombuffer(body, OBJECT, n_obj, at)
    at += n_obj * OBJECT.itemsize
    s.pairs = []
    for _ in range(n_qa):
        task, n = struct.unpack_from("<BH", body, at)
        prompt = body[at + 3 : at + 3 + n].decode("utf-8")
        at += 3 + n
        (m,) = struct.unpack_from("<H", body, at)
        s.pairs.append((task, prompt, body[at + 2 : at + 2 + m].decode("utf-8")))
        at += 2 + m
    if at != len(body):
        raise ValueError(f"scene {index}: {len(body)} bytes, {at} of them explained")
    return s


def read_scenes(file):
    """Yields scenes until the end of a binary file object."""
    while True:
        raw = file.read(HEAD.size)
        if not raw:
            return
        if len(raw) < HEAD.size:
            raise ValueError("the stream ends inside a head")
        head = HEAD.unpack(raw)
        if head[0] != b"ESPS" or head[1] < HEAD.size:
            raise ValueError(f"not a record: it begins with {raw[:8]!r}")
        body = file.read(head[1] - HEAD.size)
        if len(body) < head[1] - HEAD.size:
            raise ValueError(f"the stream ends inside scene {head[2]}")
        yield parse(body, head)


class Batches:
    """Iterator over lists of n scenes, or over make(list), read by a thread that keeps `ahead` of them ready.

    program: path of espalier-scenes, started with seed and first; or path: a file, a FIFO, or "-" for standard input,
    read as it is (a file is read again from its start when `again` is set).
    """

    def __init__(self, n, program=None, path=None, seed=1, first=0, side=112, again=False, make=None, ahead=6):
        self.n, self.path, self.again, self.make = n, path, again, make
        self.child = None
        if program:
            command = [program, "--stream", "--seed", str(seed), "--first", str(first), "--side", str(side)]
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=1 << 20)
            self.file = self.child.stdout
        else:
            self.file = sys.stdin.buffer if path == "-" else open(path, "rb", buffering=1 << 20)
        self.queue = queue.Queue(ahead)
        self.over = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _scenes(self):
        while True:
            yield from read_scenes(self.file)
            if not self.again:
                return
            self.file.seek(0)

    def _run(self):
        try:
            batch = []
            for scene in self._scenes():
                batch.append(scene)
                if len(batch) == self.n:
                    item = self.make(batch) if self.make else batch
                    batch = []
                    while not self.over:
                        try:
                            self.queue.put(item, timeout=0.5)
                            break
                        except queue.Full:
                            pass
                if self.over:
                    return
            self.queue.put(None)
        except Exception as err:  # handed to the thread that waits
            self.queue.put(err)

    def __iter__(self):
        return self

    def __next__(self):
        item = self.queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def close(self):
        self.over = True
        if self.child:
            self.child.terminate()
            self.child.wait()
