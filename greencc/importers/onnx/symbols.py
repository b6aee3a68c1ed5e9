"""Input parameters and their symbolic dimensions, as the model, `--shape` and `--dynamic` settle them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from tvm import relax, tirx

from greencc.errors import ModelError, UserError
from greencc.importers.onnx.values import SUPPORTED, Dim

# Names that exporters write where they have none; two of them don't mean the same size.
_NAMELESS = frozenset({"", "?", "None"})
# Buffers are planned for upper bounds; beyond this one a dimension counts as unbounded.
MAX_PLANNED_SIZE = 1 << 20
MAX_SIZE = 1 << 31


@dataclass
class Implied:
    """What the graph says of symbolic dimensions: inclusive upper limits by name, and names that mean another one."""

    limits: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def learn(self, symbol: str, limit: int | None, other: str | None) -> bool:
        """Take up a limit or an equality; False when it is no news."""
        if other is not None:
            if symbol == other or symbol in self.aliases:
                return False
            self.aliases = {name: other if to == symbol else to for name, to in self.aliases.items()}
            self.aliases[symbol] = other
            if symbol in self.limits:
                self.limits[other] = min(self.limits.pop(symbol), self.limits.get(other, MAX_SIZE))
            return True
        if limit is None or self.limits.get(symbol, MAX_SIZE) <= limit:
            return False
        self.limits[symbol] = limit
        return True


class Symbols:
    """Symbolic dimensions of a model's inputs. The same name means the same size."""

    def __init__(
        self,
        path: Path,
        shapes: dict[str, tuple[int, ...]],
        dynamic: dict[str, tuple[int, int]],
        implied: Implied,
    ) -> None:
        self._path = path
        self._implied = implied.limits
        self._aliases = implied.aliases
        self._shapes = shapes
        self._vars: dict[str, tirx.Var] = {}
        self._fixed: dict[str, int] = {}
        for name, (low, high) in dynamic.items():
            if low < 1 or high < low:
                raise UserError(f"--dynamic {name}={low}..{high}: bounds must satisfy 1 <= low <= high")
            limit = self._implied.get(self._aliases.get(name, name), MAX_SIZE)
            if high > limit:
                raise UserError(f"--dynamic {name}={low}..{high}: the model's constants allow at most {limit}")
        self._dynamic = self._merged(dynamic)

    def parameters(self, infos: list[onnx.ValueInfoProto]) -> list[relax.Var]:
        """The Relax parameters for the graph inputs. Raises UserError when an option names nothing of them."""
        for name in self._shapes:
            if name not in {info.name for info in infos}:
                known = ", ".join(info.name for info in infos)
                raise UserError(f"--shape {name}: the model has no such input; it has: {known}")
        for info in infos:
            fixed = self._shapes.get(info.name)
            if fixed is not None and info.type.tensor_type.HasField("shape"):
                self._settle(info.name, list(info.type.tensor_type.shape.dim), fixed)
        params = [self._parameter(info) for info in infos]
        for name in self._dynamic:
            if name not in self._vars:
                known = ", ".join(sorted(self._vars)) or "none (every dimension is fixed)"
                raise UserError(f"--dynamic {name}: the model has no such open dimension; it has: {known}")
        return params

    def _parameter(self, info: onnx.ValueInfoProto) -> relax.Var:
        if not info.type.HasField("tensor_type"):
            raise ModelError(f"{self._path}: input '{info.name}' is no tensor")
        tensor_type = info.type.tensor_type
        try:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
        except (KeyError, TypeError) as error:
            raise ModelError(f"{self._path}: input '{info.name}' has no known element type") from error
        if dtype == "object":
            raise ModelError(f"{self._path}: input '{info.name}' holds strings; greencc compiles numeric models")
        if dtype not in SUPPORTED:
            raise ModelError(f"{self._path}: input '{info.name}' holds {dtype}, which greencc does not compute with")
        fixed = self._shapes.get(info.name)
        if not tensor_type.HasField("shape"):
            if fixed is None:
                raise UserError(f"{self._path}: input '{info.name}' has no shape; give --shape {info.name}=D,D,...")
            return relax.Var(info.name, relax.TensorType(list(fixed), dtype))
        dims: list[Dim] = []
        for axis, dim in enumerate(tensor_type.shape.dim):
            if fixed is not None:
                dims.append(fixed[axis])
            elif dim.dim_value > 0:
                dims.append(int(dim.dim_value))
            else:
                # 0 and negative sizes are how some exporters spell an open dimension.
                dims.append(self._symbol(dim.dim_param, info.name, axis))
        return relax.Var(info.name, relax.TensorType(dims, dtype))

    def bounds(self) -> tuple[dict[str, int], dict[str, int]]:
        """(lower, upper) bounds by symbol name; every symbol is at least 1."""
        lower = {name: self._dynamic.get(name, (1, 1))[0] for name in self._vars}
        upper = {name: high for name, (_, high) in self._dynamic.items()}
        # A far limit (exporters write "everything" as 1e9) is none that memory could be planned for.
        implied = {name: limit for name, limit in self._implied.items() if limit < MAX_PLANNED_SIZE}
        return lower, {**implied, **upper}

    def ranges(self) -> dict[tirx.Var, tuple[int, int | None]]:
        """Inclusive bounds of every symbol; None where there is no upper one."""
        lower, upper = self.bounds()
        upper = {**self._implied, **upper}
        return {var: (lower[name], upper.get(name)) for name, var in self._vars.items()}

    def _symbol(self, name: str, owner: str, axis: int) -> Dim:
        label = self._label(name, owner, axis)
        if label in self._fixed:
            return self._fixed[label]
        return self._vars.setdefault(label, tirx.Var(label, "int64"))

    def _label(self, name: str, owner: str, axis: int) -> str:
        """The symbol's name: the dimension's own, or one made from the input, or of the dimension it must equal."""
        label = _identifier(f"{owner}_dim{axis}" if name in _NAMELESS else name)
        return self._aliases.get(label, label)

    def _merged(self, dynamic: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Bounds by symbol; dimensions that must be equal share the intersection of theirs."""
        merged: dict[str, tuple[int, int]] = {}
        for name, (low, high) in dynamic.items():
            label = self._aliases.get(name, name)
            others = merged.get(label, (low, high))
            merged[label] = max(low, others[0]), min(high, others[1])
            if merged[label][0] > merged[label][1]:
                text = f"the model makes it equal to '{label}', which has other bounds"
                raise UserError(f"--dynamic {name}={low}..{high}: {text}")
        return merged

    def _settle(self, name: str, declared: list[onnx.TensorShapeProto.Dimension], fixed: tuple[int, ...]) -> None:
        text = ",".join(map(str, fixed))
        if len(declared) != len(fixed):
            raise UserError(f"--shape {name}={text}: the input has {len(declared)} dimensions")
        for axis, (dim, size) in enumerate(zip(declared, fixed, strict=True)):
            if size < 1:
                raise UserError(f"--shape {name}={text}: sizes must be at least 1")
            if dim.dim_value > 0 and dim.dim_value != size:
                raise UserError(f"--shape {name}={text}: the model fixes {dim.dim_value} where {size} is asked for")
            if dim.dim_value <= 0:
                label = self._label(dim.dim_param, name, axis)
                if self._fixed.setdefault(label, size) != size:
                    raise UserError(
                        f"--shape {name}={text}: dimension '{label}' is {self._fixed[label]} in another input"
                    )


def _identifier(name: str) -> str:
    """A name that TVM's printer and our manifest accept: letters, digits and underscores."""
    label = re.sub(r"\W", "_", name)
    return f"d{label}" if label[:1].isdigit() else label
