"""What makes two kernels the same to the tuner."""

from __future__ import annotations

import hashlib

import tvm_ffi
from tvm import tirx

from greencc.targets.base import RULE_ATTR
from greencc.targets.tuning.emitted import RECIPE_ATTR


def workload_key(func: tirx.PrimFunc, constants: frozenset[int]) -> str:
    """A key of 16 hexadecimal digits: equal for kernels that compute the same from the same kinds of parameters.

    Names don't count. It changes with what TVM hashes and how, so a record is one of a version of TVM.

    Args:
        func: a kernel that isn't scheduled yet.
        constants: indices of parameters that are compile-time constants: what can be packed.
    """
    kept = {name: func.attrs[name] for name in (RULE_ATTR, RECIPE_ATTR) if func.attrs and name in func.attrs}
    plain = tirx.PrimFunc(func.params, func.body, func.ret_type)
    if kept:
        plain = plain.with_attrs(kept)
    number = int(tvm_ffi.structural_hash(plain)) & (2**64 - 1)
    text = f"{number:016x} {sorted(constants)}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
