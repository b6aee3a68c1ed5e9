"""What compiled code may call at run time: functions that libtvm_runtime and libtvm_ffi hold.

An artifact runs with those two libraries alone. TVM lowers some operators to functions of its larger runtime
(sorting) or of its Python package (`relax.run.nonzero`): such code would build here and fail on a user's machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import tvm_ffi
from tvm import relax

from greencc.errors import GreenccError

# tests/targets/cpu/test_runtime_functions.py looks each of these up in a process with the small runtime only.
RUNTIME_FUNCTIONS = frozenset(
    {
        "vm.builtin.alloc_shape_heap",
        "vm.builtin.alloc_storage",
        "vm.builtin.alloc_tensor",
        "vm.builtin.call_tir_dyn",
        "vm.builtin.check_func_info",
        "vm.builtin.check_prim_value_info",
        "vm.builtin.check_shape_info",
        "vm.builtin.check_tensor_info",
        "vm.builtin.check_tuple_info",
        "vm.builtin.copy",
        "vm.builtin.ensure_zero_offset",
        "vm.builtin.invoke_closure",
        "vm.builtin.make_closure",
        "vm.builtin.make_prim_value",
        "vm.builtin.make_shape",
        "vm.builtin.make_tuple",
        "vm.builtin.match_prim_value",
        "vm.builtin.match_shape",
        "vm.builtin.null_value",
        "vm.builtin.read_if_cond",
        "vm.builtin.reshape",
        "vm.builtin.shape_of",
        "vm.builtin.tensor_to_shape",
        "vm.builtin.tuple_getitem",
        "vm.builtin.tuple_reset_item",
    }
)
# How the text of an executable declares what it links to: its own kernels, and functions of the runtime.
_LINKED = re.compile(r"^@(\S+) packed_func;$", re.MULTILINE)
# The builder adds functions that compute shapes.
_SHAPE_FUNCTION = re.compile(r"shape_func\d*")
# Kernels look functions up by name: a string of the library that ends in a zero byte.
_NAME = re.compile(rb"[A-Za-z_]\w*(?:\.\w+)+(?=\0)")


def check_runtime_functions(
    executable: relax.VMExecutable, library: bytes, kernels: Iterable[str], of_device: Iterable[str] = ()
) -> None:
    """Raise GreenccError when compiled code calls what the small runtime doesn't hold.

    Args:
        executable: the program whose bytecode calls kernels and functions of the runtime.
        library: the shared library that it was written to, with the kernels.
        kernels: names of the kernels.
        of_device: what the runtime of the model's device has besides.
    """
    registered = set(tvm_ffi.registry.list_global_func_names())
    called = set(_LINKED.findall(executable.as_text())) - set(kernels)
    called |= {name for name in map(bytes.decode, _NAME.findall(library)) if name in registered}
    missing = sorted(n for n in called - RUNTIME_FUNCTIONS - set(of_device) if not _SHAPE_FUNCTION.fullmatch(n))
    if missing:
        raise GreenccError(
            f"the compiled model would call {', '.join(missing)}, which an artifact's runtime does not have; "
            "please report it with the model's operators (greencc inspect MODEL)"
        )
