"""Sliding windows: what Conv, ConvTranspose and the pools share about kernels, strides, dilations and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from greencc.importers.onnx.context import NodeContext
from greencc.importers.onnx.values import Dim, as_expr, simplify


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes. All sequences have one entry per axis; pads may be symbolic sizes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[Dim, ...]
    end: tuple[Dim, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Input elements that one window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def static_pads(self) -> list[int] | None:
        """Begin pads, then end pads, or None when some are symbolic."""
        pads = [*self.begin, *self.end]
        return [int(pad) for pad in pads] if all(isinstance(pad, int) for pad in pads) else None

    def outputs(self, sizes: Sequence[Dim], *, ceil: bool = False) -> list[Dim]:
        """Output size per axis; with `ceil`, a last window that starts in the end padding is dropped."""
        result: list[Dim] = []
        for axis, size in enumerate(sizes):
            stride = self.strides[axis]
            padded = size + self.begin[axis]
            room = padded + self.end[axis] - self.extents[axis]
            count = floor_div(room, stride) + 1
            if ceil:
                count = smaller(ceil_div(room, stride) + 1, floor_div(padded - 1, stride) + 1)
            result.append(simplify(count))
        return result


def read_window(ctx: NodeContext, sizes: Sequence[Dim], kernel: Sequence[int]) -> Window:
    """The node's window over spatial axes of `sizes`, `auto_pad` resolved (symbolically where sizes are)."""
    count = len(kernel)
    strides = _per_axis(ctx, "strides", count)
    dilations = _per_axis(ctx, "dilations", count)
    if any(k < 1 for k in kernel):
        raise ctx.refuse(f"the kernel {list(kernel)} is empty")
    mode = ctx.attr("auto_pad", "NOTSET")
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin: list[Dim] = [0] * count
    end: list[Dim] = [0] * count
    if mode == "NOTSET":
        pads = [int(pad) for pad in ctx.attr("pads", [0] * (2 * count))]
        if len(pads) != 2 * count or min(pads, default=0) < 0:
            raise ctx.refuse(f"the pads {pads} must be {2 * count} sizes that aren't negative")
        begin, end = list(pads[:count]), list(pads[count:])
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(count):
            total = same_padding(sizes[axis], strides[axis], extents[axis])
            small, large = simplify(floor_div(total, 2)), simplify(floor_div(total + 1, 2))
            begin[axis], end[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode != "VALID":
        raise ctx.refuse(f"auto_pad '{mode}' is unknown")
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(begin), tuple(end))


def same_padding(size: Dim, stride: int, extent: int) -> Dim:
    """Padding in all with which ceil(size / stride) windows fit."""
    if stride == 1:
        return extent - 1
    total = (ceil_div(size, stride) - 1) * stride + extent - size
    return simplify(total if extent >= stride else larger(total, 0))


def floor_div(a: Dim, b: int) -> Dim:
    """The quotient rounded down."""
    return a // b if isinstance(a, int) else tirx.floordiv(a, tirx.IntImm("int64", b))


def ceil_div(a: Dim, b: int) -> Dim:
    """The quotient rounded up."""
    return floor_div(a + (b - 1), b)


def larger(a: Dim, b: Dim) -> Dim:
    """max(a, b)."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(as_expr(a), as_expr(b))


def smaller(a: Dim, b: Dim) -> Dim:
    """min(a, b)."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(as_expr(a), as_expr(b))


def check_sizes(ctx: NodeContext, sizes: Sequence[Dim]) -> None:
    """Refuse output sizes that are not positive."""
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise ctx.refuse(f"the window is larger than the padded input: output sizes {list(sizes)}")


def _per_axis(ctx: NodeContext, name: str, count: int) -> list[int]:
    values = [int(value) for value in ctx.attr(name, [1] * count)]
    if len(values) != count or min(values, default=1) < 1:
        raise ctx.refuse(f"{name} {values} must be {count} positive numbers")
    return values
