"""CUDA graphs: the launches of a model whose sizes are all known become one launch.

    main(x, w): arena = alloc; k1(x, w, arena); k2(arena); y = alloc; k3(arena, y); return y
 -> main(x, w): arena = cached_alloc(); run_or_capture(capture, (x, w, arena)); y = alloc; k3(arena, y); return y

TVM's pass does the work, and its CUDA runtime records what `capture` launches in a VM's first call and replays it in
later ones. Legality, and why it holds here:

1. What a recorded kernel reads or writes has the same address in every call of a VM. The arena is allocated once for
   a VM; weights are on the device for good; inputs are copied to tensors that the VM's owner keeps
   (greencc.runtime.executable.Machine), as any other program must that runs an artifact.
2. Outputs belong to the caller and are new in every call: kernels that write them are launched one by one.
3. No size is symbolic, and nothing is called under a condition: otherwise nothing is done.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from greencc.ir import bindings_of, shape_of

FUNCTIONS = ("vm.builtin.cuda_graph.get_cached_alloc", "vm.builtin.cuda_graph.run_or_capture")
"""What rewritten code calls of TVM's CUDA runtime."""
_ENABLED = {"relax.backend.use_cuda_graph": True}
# Of a function: from which parameter on arguments are the same in every call (condition 1).
_INPUTS = "num_input"


def capture_launches(module: tvm.IRModule) -> tvm.IRModule:
    """The module of placed tensors (targets/memory.py) with the launches of `main` in graphs, where sizes are known."""
    main = module["main"]
    branches = any(isinstance(binding.value, relax.If) for binding in bindings_of(main))
    if branches or not all(_is_static(param) for param in main.params):
        return module
    marked = module.clone()
    marked.update_func(module.get_global_var("main"), main.with_attr(_INPUTS, 0))
    with tvm.transform.PassContext(config=_ENABLED):
        return relax.transform.RewriteCUDAGraph()(marked)


def _is_static(param: relax.Var) -> bool:
    dims = shape_of(param.ty)
    return dims is not None and all(isinstance(dim, tirx.IntImm) for dim in dims)
