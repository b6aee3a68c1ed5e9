"""Batches of sequences without their padding: counting the tokens, packing their rows together, spreading them again.

A mask [B, S] is not zero where a token is real. The N real tokens keep their order; where there is none, N is 1 and
the first place of the batch stands in, so that no tensor is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, element_type, sequence

# How a tensor's first axes run over the batch: [B, S, ...], [B, 1, ...], [1, S, ...] or [S, ...].
TOKENS, SEQUENCES, POSITIONS, BARE_POSITIONS = "tokens", "sequences", "positions", "bare-positions"


def _is_real(value: tirx.Expr) -> tirx.Expr:
    """1 for a real token, 0 for padding. Code generation has no inequality of booleans."""
    real = value if element_type(value) == "bool" else tirx.NE(value, tirx.const(0, element_type(value)))
    return tirx.Cast("int64", real)


def token_starts(mask: te.Tensor, *, dims: list[tirx.Expr]) -> list[te.Tensor]:
    """Two int64 tensors: [B, S], how many real tokens come before each place; [1], how many there are, at least 1."""
    batch, longest = mask.shape

    def generate(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        source, starts, count = (T.buffer_proxy(buffer) for buffer in (*ins, *outs))
        with IRBuilder() as builder:
            with sequence():
                count[0] = tirx.IntImm("int64", 0)
                with T.serial(0, batch * longest) as i:
                    starts[i] = count[0]
                    count[0] = count[0] + _is_real(source[i])
                count[0] = tirx.max(count[0], tirx.IntImm("int64", 1))
            return builder.get()

    return list(
        te.extern(
            [mask.shape, (tirx.IntImm("int64", 1),)],
            [mask],
            generate,
            dtype=["int64", "int64"],
            in_buffers=[tirx.decl_buffer(mask.shape, element_type(mask), "mask")],
            out_buffers=[
                tirx.decl_buffer(mask.shape, "int64", "starts"),
                tirx.decl_buffer((tirx.IntImm("int64", 1),), "int64", "count"),
            ],
            name="token_starts",
            tag="token_starts",
        )
    )


def token_places(mask: te.Tensor, starts: te.Tensor, *, dims: list[tirx.Expr]) -> te.Tensor:
    """[N] int64: the place b * S + s of each real token; N is dims[0]."""
    batch, longest = mask.shape

    def generate(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        source, before, places = (T.buffer_proxy(buffer) for buffer in (*ins, *outs))
        with IRBuilder() as builder:
            with sequence():
                places[0] = tirx.IntImm("int64", 0)
                with T.serial(0, batch * longest) as i, T.If(_is_real(source[i]) != 0), T.Then():
                    places[before[i]] = i
            return builder.get()

    return te.extern(
        [(dims[0],)],
        [mask, starts],
        generate,
        dtype="int64",
        in_buffers=[
            tirx.decl_buffer(mask.shape, element_type(mask), "mask"),
            tirx.decl_buffer(mask.shape, "int64", "starts"),
        ],
        out_buffers=[tirx.decl_buffer((dims[0],), "int64", "places")],
        name="token_places",
        tag="token_places",
    )


def pack_tokens(x: te.Tensor, places: te.Tensor, *, dims: list[tirx.Expr], lead: str) -> te.Tensor:
    """[1, N, ...]: the rows of x that belong to the tokens at `places` [N]. `lead` is how x runs over the batch.

    dims is [S].
    """
    zero = tirx.IntImm("int64", 0)
    skipped = 1 if lead == BARE_POSITIONS else 2

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        place = places(index[1])
        sequence, position = tirx.floordiv(place, dims[0]), tirx.floormod(place, dims[0])
        first = {
            TOKENS: (sequence, position),
            SEQUENCES: (sequence, zero),
            POSITIONS: (zero, position),
            BARE_POSITIONS: (position,),
        }[lead]
        return x(*first, *index[2:])

    return compute([tirx.IntImm("int64", 1), places.shape[0], *x.shape[skipped:]], element, "pack_tokens")


def unpack_tokens(x: te.Tensor, mask: te.Tensor, starts: te.Tensor, *, dims: list[tirx.Expr]) -> te.Tensor:
    """[B, S, ...]: the rows of x [1, N, ...] at the places of their tokens, zeros elsewhere."""
    nothing = tirx.const(0, element_type(x))

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        place = index[:2]
        # The last places of padding have no row: nothing may be read there.
        row = x(tirx.IntImm("int64", 0), starts(*place), *index[2:])
        return tirx.if_then_else(_is_real(mask(*place)) != 0, row, nothing)

    return compute([*mask.shape, *x.shape[2:]], element, "unpack_tokens")


KERNELS: dict[str, Kernel] = {
    "pack_tokens": pack_tokens,
    "token_places": token_places,
    "token_starts": token_starts,
    "unpack_tokens": unpack_tokens,
}
