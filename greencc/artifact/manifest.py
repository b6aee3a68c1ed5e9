"""manifest.json: everything about an artifact but its code and weights, and the hashes that guard those.

The file's bytes are a function of its content (sorted keys, one layout), so a reader that renders what it
parsed and compares finds any change, white space included; `manifest_sha256` finds a changed value.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from greencc.artifact.bundle import ARITHMETIC, DTYPES, KernelCall, TensorSpec
from greencc.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = "greencc-artifact"
VERSION = 2
MEMBERS = ("code.so", "golden.safetensors", "weights.safetensors")
"""Files of every artifact besides the manifest."""
KERNELS = {
    "cuda": ("kernels.cubin", "kernels.json", "kernels.ptx"),
    "vulkan": ("kernels.json", "kernels.spv"),
}
"""Further files by the kind of GPU that they are for. The set is closed: a manifest can't name any other file."""

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_DIM = 1 << 48
"""No tensor that fits a machine has a longer dimension."""
_MAX_AMOUNT = 1 << 62
"""No kernel has more operations to do, or bytes to move."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """Size in bytes and SHA-256 (hexadecimal) of one file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The model that an artifact was compiled from: its file name (no folder) and SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        versions: of `greencc`, `tvm` and `tvm-ffi`, as the compiling machine had them.
        inputs: the model's inputs, in call order.
        outputs: the model's outputs, in the order of the returned tuple.
        weights: names in call order; types and shapes are in weights.safetensors.
        symbols: bounds of every symbolic dimension.
        target: see `greencc.artifact.bundle.Compiled`.
        calls: kernel launches of one run, in order.
        report: what the compiler did.
        members: size and hash of every other file.
        source: the model file.
    """

    versions: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...]
    symbols: Mapping[str, tuple[int, int | None]]
    target: Mapping[str, object]
    calls: tuple[KernelCall, ...]
    report: Mapping[str, object]
    members: Mapping[str, Member]
    source: Source


def members_for(target: Mapping[str, object]) -> tuple[str, ...]:
    """Every file of an artifact for `target` but the manifest."""
    return tuple(sorted((*MEMBERS, *KERNELS.get(str(target.get("kind")), ()))))


def render_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: equal manifests give equal bytes."""
    document = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    return _render(document | {"manifest_sha256": _digest(document)})


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse and check manifest.json.

    Args:
        data: the file's bytes.
        where: the artifact's path, for messages.

    Raises:
        ArtifactError: any byte differs from what `render_manifest` wrote, the format's version is another
            one, or a field has the wrong type. Every message names manifest.json.
    """
    label = f"{where}: {MANIFEST}"
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{label} is larger than {_MAX_MANIFEST_BYTES >> 20} MB")
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{label} is damaged: not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"{label} does not describe a greencc artifact")
    if document.get("version") != VERSION:
        raise ArtifactError(
            f"{label} has format version {document.get('version')!r}, this greencc reads {VERSION}: "
            "compile the model again"
        )
    digest = document.pop("manifest_sha256", None)
    if digest != _digest(document) or data != _render(document | {"manifest_sha256": digest}):
        raise ArtifactError(f"{label} is damaged: its content does not match its hash")
    return _Fields(label).manifest(document)


def _canonical(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(document: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(document)).hexdigest()


def _render(document: Mapping[str, object]) -> bytes:
    """Like the canonical form, with a layout that people can read and tools can diff."""
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class _Fields:
    """Turns parsed JSON into typed fields, or says which one is wrong. A hash proves no honest author."""

    label: str

    def fail(self, field: str, problem: str) -> ArtifactError:
        return ArtifactError(f"{self.label}: field '{field}' {problem}")

    def manifest(self, document: dict[str, object]) -> Manifest:
        known = {"format", "version", *Manifest.__dataclass_fields__}
        if document.keys() != known:
            odd = sorted(document.keys() ^ known)
            raise ArtifactError(f"{self.label}: fields missing or unknown: {', '.join(odd)}")
        symbols = self.symbols(document["symbols"])
        result = Manifest(
            versions=self.texts(document["versions"], "versions"),
            inputs=self.specs(document["inputs"], "inputs"),
            outputs=self.specs(document["outputs"], "outputs"),
            weights=self.names(document["weights"], "weights"),
            symbols=symbols,
            target=self.table(document["target"], "target"),
            calls=self.calls(document["calls"]),
            report=self.table(document["report"], "report"),
            members=self.members(document["members"], members_for(self.table(document["target"], "target"))),
            source=self.source(document["source"]),
        )
        for spec in result.inputs:
            for dim in spec.shape:
                if isinstance(dim, str) and dim not in symbols:
                    raise self.fail("inputs", f"uses symbol {dim!r}, which 'symbols' does not bound")
        return result

    def table(self, value: object, field: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self.fail(field, "is not an object")
        return value

    def items(self, value: object, field: str) -> list[object]:
        if not isinstance(value, list):
            raise self.fail(field, "is not a list")
        return value

    def text(self, value: object, field: str) -> str:
        if not isinstance(value, str):
            raise self.fail(field, "holds something that is not text")
        return value

    def whole(self, value: object, field: str, limit: int = _MAX_DIM) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise self.fail(field, f"holds something that is not an integer from 0 to {limit}")
        return value

    def amount(self, value: object, field: str) -> int | str | None:
        return value if value is None or isinstance(value, str) else self.whole(value, field, _MAX_AMOUNT)

    def texts(self, value: object, field: str) -> dict[str, str]:
        return {key: self.text(item, field) for key, item in self.table(value, field).items()}

    def names(self, value: object, field: str) -> tuple[str, ...]:
        return self.distinct((self.text(item, field) for item in self.items(value, field)), field)

    def distinct(self, names: Iterable[str], field: str) -> tuple[str, ...]:
        result = tuple(names)
        if len(set(result)) != len(result):
            raise self.fail(field, "names something twice")
        return result

    def specs(self, value: object, field: str) -> tuple[TensorSpec, ...]:
        specs = tuple(self.spec(item, field) for item in self.items(value, field))
        self.distinct((spec.name for spec in specs), field)
        return specs

    def spec(self, value: object, field: str) -> TensorSpec:
        table = self.record(value, field, ("name", "dtype", "shape"))
        dtype = self.text(table["dtype"], field)
        if dtype not in DTYPES:
            raise self.fail(field, f"has element type {dtype!r}, not one of {', '.join(DTYPES)}")
        shape = tuple(
            dim if isinstance(dim, str) else self.whole(dim, field) for dim in self.items(table["shape"], field)
        )
        return TensorSpec(self.text(table["name"], field), dtype, shape)

    def record(self, value: object, field: str, keys: tuple[str, ...]) -> dict[str, object]:
        table = self.table(value, field)
        if table.keys() != set(keys):
            raise self.fail(field, f"has entries without exactly: {', '.join(keys)}")
        return table

    def symbols(self, value: object) -> dict[str, tuple[int, int | None]]:
        result: dict[str, tuple[int, int | None]] = {}
        for name, bounds in self.table(value, "symbols").items():
            pair = self.items(bounds, "symbols")
            if len(pair) != 2:
                raise self.fail("symbols", f"does not give {name!r} two bounds")
            low = self.whole(pair[0], "symbols")
            high = None if pair[1] is None else self.whole(pair[1], "symbols")
            if high is not None and high < low:
                raise self.fail("symbols", f"gives {name!r} the empty range {low}..{high}")
            result[name] = (low, high)
        return result

    def calls(self, value: object) -> tuple[KernelCall, ...]:
        result = []
        for item in self.items(value, "calls"):
            table = self.record(item, "calls", tuple(KernelCall.__dataclass_fields__))
            nodes = tuple(self.text(node, "calls") for node in self.items(table["nodes"], "calls"))
            arithmetic = self.text(table["arithmetic"], "calls")
            if arithmetic not in ARITHMETIC:
                raise self.fail("calls", f"has arithmetic {arithmetic!r}, not one of {', '.join(ARITHMETIC)}")
            operations, moved = (self.amount(table[name], "calls") for name in ("operations", "bytes"))
            result.append(KernelCall(self.text(table["kernel"], "calls"), nodes, operations, moved, arithmetic))
        return tuple(result)

    def members(self, value: object, names: Sequence[str]) -> dict[str, Member]:
        table = self.table(value, "members")
        if table.keys() != set(names):
            raise self.fail("members", f"does not list exactly: {', '.join(names)}")
        return {name: self.member(table[name]) for name in names}

    def member(self, value: object) -> Member:
        table = self.record(value, "members", ("bytes", "sha256"))
        sha256 = self.text(table["sha256"], "members")
        if not _SHA256.fullmatch(sha256):
            raise self.fail("members", "holds something that is not a SHA-256")
        return Member(self.whole(table["bytes"], "members"), sha256)

    def source(self, value: object) -> Source:
        table = self.record(value, "source", ("name", "sha256"))
        return Source(self.text(table["name"], "source"), self.text(table["sha256"], "source"))
