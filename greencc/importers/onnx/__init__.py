"""ONNX -> Relax: an own graph walker; see docs/decisions/0001-onnx-importer.md."""

from greencc.importers.onnx.walker import import_onnx

__all__ = ["import_onnx"]
