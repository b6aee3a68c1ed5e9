"""What products and convolutions in int8 are, in numpy's integers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from greencc.ops import Conv2dAttrs
from greencc.passes.stored import quantize_channels
from tests.targets.cpu.running import normal


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels 0..255, scale and zero point of every row."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    span = high - low
    with np.errstate(divide="ignore"):
        inverse = np.where(span > 0, np.float32(255) / span, np.float32(0))
    zero = np.rint(-low * inverse)
    levels = np.clip(np.rint(x * inverse + zero), 0, 255)
    return levels.astype(np.int64), span / np.float32(255), zero.astype(np.int64)


def expected(x: np.ndarray, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    levels, row_scale, zero = quantized(x)
    return ((levels - zero) @ w.astype(np.int64)).astype(np.float32) * (row_scale * scale)


@dataclass(frozen=True)
class Convolution:
    shape: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int]
    attrs: Conv2dAttrs = field(default_factory=Conv2dAttrs)

    @property
    def weight(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.filters, self.shape[1] // self.attrs.groups, *self.kernel)
        return quantize_channels(normal(*shape, seed=self.filters), 0)

    def quantized(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levels, scale and zero point of every image, flat."""
        return quantized(x.reshape(len(x), -1))

    def expected(self, x: np.ndarray) -> np.ndarray:
        """The sums in int64, of an image that is padded with zeros after its zero point has been taken off."""
        (w, scale), attrs = self.weight, self.attrs
        flat, image_scale, zero = self.quantized(x)
        top, left, bottom, right = attrs.padding
        image = np.pad((flat - zero).reshape(x.shape), ((0, 0), (0, 0), (top, bottom), (left, right)))
        out = [attrs.out_size(axis, self.shape[2 + axis], self.kernel[axis]) for axis in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(
            image, [(k - 1) * d + 1 for k, d in zip(self.kernel, attrs.dilation, strict=True)], axis=(2, 3)
        )[:, :, :: attrs.strides[0], :: attrs.strides[1], :: attrs.dilation[0], :: attrs.dilation[1]]
        assert windows.shape[2:4] == tuple(out)
        parts = zip(np.split(windows, attrs.groups, 1), np.split(w.astype(np.int64), attrs.groups), strict=True)
        sums = np.concatenate([np.einsum("ncyxrq,kcrq->nkyx", part, own) for part, own in parts], 1)
        return sums.astype(np.float32) * (image_scale.reshape(-1, 1, 1, 1) * scale.reshape(1, -1, 1, 1))


CONVOLUTIONS = [
    Convolution((1, 16, 14, 14), 24, (3, 3), Conv2dAttrs(padding=(1, 1, 1, 1))),
    Convolution((2, 3, 30, 30), 16, (7, 7), Conv2dAttrs((2, 2), (3, 3, 3, 3))),  # a word that is not full
    Convolution((1, 600, 7, 7), 200, (1, 1)),  # panels
    Convolution((1, 18, 26, 26), 12, (1, 1), Conv2dAttrs((2, 2))),
    Convolution((1, 12, 9, 9), 12, (1, 1), Conv2dAttrs(groups=2)),  # groups that are not whole words
    Convolution((1, 16, 20, 20), 8, (3, 3), Conv2dAttrs((1, 1), (2, 3, 2, 3), (2, 3), 2)),
    Convolution((1, 4, 7, 7), 4, (3, 3), Conv2dAttrs((3, 3), (2, 0, 0, 2))),
    Convolution((3, 7, 2, 3), 5, (1, 1)),  # less than a vector
]
