"""Writes a BERT encoder as ONNX with torch's exporters, in a virtual environment of its own that has torch.

Usage: python torch_export.py MODEL_DIRECTORY OUTPUT_DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
BATCH, SEQUENCE = 1, 128


class Encoder(torch.nn.Module):
    """The encoder with positional arguments and one output, which is what both exporters trace best."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.inner = AutoModel.from_pretrained(directory, add_pooling_layer=False).eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Last hidden state, float32 [batch, sequence, hidden], from three int64 [batch, sequence]."""
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return out.last_hidden_state


def example(batch: int, sequence: int) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with. The mask has zeros: an all-ones mask lets an exporter drop the masking."""
    ids = torch.arange(batch * sequence).reshape(batch, sequence) % 1000 + 1000
    mask = torch.ones(batch, sequence, dtype=torch.int64)
    mask[:, sequence // 2 :] = 0
    return ids, mask, torch.zeros(batch, sequence, dtype=torch.int64)


def main(model: Path, out: Path) -> None:
    """Write torchscript_static, torchscript_dynamic, dynamo_static and dynamo_dynamic."""
    encoder = Encoder(model).eval()
    axes = {name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "last_hidden_state")}
    batch, sequence = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("sequence", min=2, max=512)
    for dynamic in (False, True):
        suffix = "dynamic" if dynamic else "static"
        # Sizes of 1 are specialised by torch.export, so open dimensions are traced with other sizes.
        arguments = example(2, 48) if dynamic else example(BATCH, SEQUENCE)
        names = {"input_names": list(INPUTS), "output_names": ["last_hidden_state"]}
        torch.onnx.export(
            encoder,
            arguments,
            str(out / f"torchscript_{suffix}.onnx"),
            dynamo=False,
            opset_version=17,
            dynamic_axes=axes if dynamic else None,
            **names,
        )
        torch.onnx.export(
            encoder,
            arguments,
            str(out / f"dynamo_{suffix}.onnx"),
            dynamo=True,
            dynamic_shapes=tuple({0: batch, 1: sequence} for _ in INPUTS) if dynamic else None,
            **names,
        )


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
