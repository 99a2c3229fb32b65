"""The mask codec: a 64x64 mask as 16 tokens of 128, and back.

A VQ-VAE after "All in Tokens" (arXiv 2301.02229). Names and shapes of its parameters are those of the vae-oid.npz that
big_vision's PaliGemma code reads; objects/codec.h has the formulas, and objects/codec.c computes the same in C.

    codec = load("vae-oid.npz")
    codes = codec.encode(masks)    # uint8 [n, 64, 64], 0..255 -> int64 [n, 16], 0..127
    masks = codec.decode(codes)    # -> float32 [n, 64, 64], 0..1; the mask is where it exceeds 0.5

A model may be narrower than the published shapes: save() pads the channels that it lacks with zeros, which changes no
result and compresses to nothing.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIDE = 64  # pixels of a mask, both ways
GRID = 4  # tokens a side
N_CODES = 128  # <seg000> .. <seg127>
CODE_DIM = 512
ENCODER_WIDTHS = (16, 32, 64, 128)  # after each halving; the residual blocks keep the last
DECODER_WIDTHS = (128, 128, 64, 32, 16)  # in the residual blocks, then after each doubling


class ResBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 1))

    def forward(self, x):
        return x + self.net(x)


class MaskVae(nn.Module):
    """Encoder, codebook and decoder with `live` channels; parameter names are the published ones."""

    def __init__(self, encoder=ENCODER_WIDTHS, decoder=DECODER_WIDTHS, code_dim=CODE_DIM, n_codes=N_CODES):
        super().__init__()
        e, d = encoder, decoder
        self.encoder = nn.Sequential(
            nn.Conv2d(1, e[0], 4, 2, 1), nn.ReLU(), nn.Conv2d(e[0], e[1], 4, 2, 1), nn.ReLU(),
            nn.Conv2d(e[1], e[2], 4, 2, 1), nn.ReLU(), nn.Conv2d(e[2], e[3], 4, 2, 1), nn.ReLU(),
            ResBlock(e[3]), ResBlock(e[3]), nn.Conv2d(e[3], code_dim, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, d[0], 1), nn.ReLU(), ResBlock(d[0]), ResBlock(d[0]),
            nn.ConvTranspose2d(d[0], d[1], 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(d[1], d[2], 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(d[2], d[3], 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(d[3], d[4], 4, 2, 1), nn.ReLU(),
            nn.Conv2d(d[4], 1, 1))
        self.register_buffer("embedding", torch.randn(n_codes, code_dim))

    def features(self, masks):
        """f32 [n, 64, 64], 0..1 -> f32 [n, 16, code_dim], rows of the grid first."""
        x = self.encoder(2 * masks[:, None] - 1)
        return x.flatten(2).transpose(1, 2)

    def nearest(self, features):
        """f32 [..., code_dim] -> int64 [...]: the code of the least squared distance, the lower one of equals."""
        flat = features.reshape(-1, features.shape[-1])
        far = (self.embedding ** 2).sum(1) - 2 * flat @ self.embedding.T
        return far.argmin(1).reshape(features.shape[:-1])

    def draw(self, features):
        """f32 [n, 16, code_dim] -> f32 [n, 64, 64], about -1 (outside) to 1 (inside)."""
        x = features.transpose(1, 2).reshape(len(features), -1, GRID, GRID)
        return self.decoder(x)[:, 0]

    @torch.no_grad()
    def encode(self, masks, batch=256):
        masks = np.asarray(masks)
        if masks.dtype == bool:
            masks = masks.astype(np.uint8) * 255
        if masks.dtype != np.uint8 or masks.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"masks are uint8 [n, {SIDE}, {SIDE}], not {masks.dtype} {masks.shape}")
        if masks.size and masks.max() == 1:
            raise ValueError("masks of 0 and 1: give bool, or 0 to 255")
        parts = [self.nearest(self.features(torch.from_numpy(masks[i:i + batch]).float() / 255))
                 for i in range(0, len(masks), batch)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, GRID * GRID), np.int64)

    @torch.no_grad()
    def decode(self, codes, batch=256):
        codes = torch.from_numpy(np.asarray(codes, np.int64))
        parts = [self.draw(F.embedding(codes[i:i + batch], self.embedding)) for i in range(0, len(codes), batch)]
        x = torch.cat(parts).numpy() if parts else np.zeros((0, SIDE, SIDE), np.float32)
        return np.clip(0.5 * x + 0.5, 0, 1)


def published_shapes():
    """{name: shape} of every array of the published layout."""
    whole = MaskVae()
    shapes = {name: tuple(value.shape) for name, value in whole.named_parameters()}
    shapes["_vq_vae._embedding"] = (N_CODES, CODE_DIM)
    return shapes


def save(path, model, dtype=np.float16):
    """Write the model in the published layout, missing channels as zeros, missing codes as copies of others.

    A copy is never chosen, since the lower one of equals is, and decodes like its original.
    """
    have = {name: value.detach().numpy() for name, value in model.named_parameters()}
    book = model.embedding.numpy()
    have["_vq_vae._embedding"] = book[np.arange(N_CODES) % len(book)]
    arrays = {}
    for name, shape in published_shapes().items():
        arrays[name] = np.zeros(shape, dtype)
        arrays[name][tuple(slice(n) for n in have[name].shape)] = have[name]
    np.savez_compressed(path, **arrays)


def load(path):
    """Read an npz of the published layout into a MaskVae in evaluation mode."""
    with np.load(path, allow_pickle=False) as npz:
        arrays = {name: torch.from_numpy(npz[name].astype(np.float32)) for name in npz.files}
    try:
        book = arrays["_vq_vae._embedding"]
        encoder = [len(arrays[f"encoder.{2 * i}.weight"]) for i in range(4)]
        decoder = [len(arrays["decoder.0.weight"])] + [arrays[f"decoder.{n}.weight"].shape[1] for n in (4, 6, 8, 10)]
        model = MaskVae(encoder, decoder, book.shape[1], len(book))
        for name, value in model.named_parameters():
            if value.shape != arrays[name].shape:
                raise ValueError(f"{path}: {name} is {tuple(arrays[name].shape)}, not {tuple(value.shape)}")
            value.data.copy_(arrays[name])
    except KeyError as missing:
        raise ValueError(f"{path}: no array {missing}") from None
    model.embedding.copy_(book)
    return model.eval().requires_grad_(False)
