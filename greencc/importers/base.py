"""What every importer returns."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.ir import IRModule


@dataclass(frozen=True)
class Imported:
    """A source model as a Relax module.

    Attributes:
        module: public function `main` over the user's inputs, in the conventions of greencc/ir.py.
        nodes: operators of the source graph, constants excluded and nested graphs counted.
        edges: uses of values in the source graph.
        source_name: file or directory name, without its folder.
        source_sha256: hex digest of the content that the module was made from.
    """

    module: IRModule
    nodes: int
    edges: int
    source_name: str
    source_sha256: str
