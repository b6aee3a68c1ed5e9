"""Damaged and hostile files: each gives one line and exit status 2, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.errors import ModelError, UnsupportedOperators, UserError
from greencc.importers.onnx import import_onnx


def tensor_info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def build(*nodes: onnx.NodeProto, **parts: list) -> onnx.ModelProto:
    """A model from x [2, 3] to y; `parts` replace the graph's inputs, outputs or initializers."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        parts.get("inputs", [tensor_info("x", 2, 3)]),
        parts.get("outputs", [tensor_info("y", 2, 3)]),
        parts.get("initializers", []),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def good() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"], name="m"), helper.make_node("Relu", ["z"], ["y"], name="r")]
    return build(*nodes, outputs=[tensor_info("y", 2, 4)], initializers=[weights])


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, kind: type[UserError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        import_onnx(path)
    message = str(caught.value)
    assert caught.value.exit_status == 2
    assert "\n" not in message
    assert path.name in message
    return message


def test_a_good_file_is_read(tmp_path):
    imported = import_onnx(saved(good(), tmp_path))
    assert (imported.nodes, imported.edges) == (2, 3)


def test_a_missing_file_a_folder_and_other_formats_are_no_models(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.onnx")
    for name, content in (("text.onnx", b"hello\n"), ("zip.onnx", b"PK\x03\x04" + b"\0" * 64), ("empty.onnx", b""),
                          ("zeros.onnx", bytes(256)), ("ones.onnx", b"\xff" * 256)):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(content)
        assert "not an ONNX model" in refusal(path)


def test_a_file_truncated_anywhere_is_refused_or_means_the_same(tmp_path):
    data = good().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refusal(path)


def test_a_flipped_bit_anywhere_never_escapes_as_another_error(tmp_path):
    data = good().SerializeToString()
    path = tmp_path / "flipped.onnx"
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            import_onnx(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most damage is harmless, none may raise anything else


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("Add", ["x", "b"], ["a"], name="p"), helper.make_node("Relu", ["a"], ["b"], name="q"),
          helper.make_node("Relu", ["b"], ["y"])], "cycle through 'p', 'q'"),
        ([helper.make_node("Relu", ["y"], ["y"], name="self")], "cycle"),
        ([helper.make_node("Relu", ["x"], ["y"], name="a"), helper.make_node("Tanh", ["x"], ["y"], name="b")],
         "'y' is defined twice (again by 'b')"),
        ([helper.make_node("Relu", ["x"], ["x"], name="a")], "'x' is defined twice"),
        ([helper.make_node("Relu", ["nowhere"], ["y"], name="a")], "node 'a' uses 'nowhere', which nothing defines"),
        ([helper.make_node("Relu", ["x"], ["z"], name="a")], "output 'y' is computed by no node"),
    ],
)  # fmt: skip
def test_graphs_that_make_no_sense(nodes, reason, tmp_path):
    assert reason in refusal(saved(build(*nodes), tmp_path))


def test_an_unsorted_graph_is_sorted(tmp_path):
    nodes = [helper.make_node("Relu", ["z"], ["y"]), helper.make_node("Tanh", ["x"], ["z"])]
    assert import_onnx(saved(build(*nodes), tmp_path)).nodes == 2


def test_a_nested_graph_is_checked_like_the_outer_one(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Relu", ["ghost"], ["t"], name="inner")], "b", [], [tensor_info("t", 2, 3)]
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    path = saved(build(node, inputs=[condition]), tmp_path)
    assert "'ghost', which nothing defines" in refusal(path)


@pytest.mark.parametrize(
    ("dims", "reason"),
    [
        ([1 << 40, 1 << 40], "absurd shape"),
        ([-5, 2], "absurd shape"),
        ([1] * 65, "65 dimensions"),
        ([1 << 20, 1 << 20], "fill"),
    ],
)
def test_absurd_shapes_of_weights(dims, reason, tmp_path):
    model = good()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    assert reason in refusal(saved(model, tmp_path))


def test_absurd_shapes_of_inputs(tmp_path):
    model = build(helper.make_node("Relu", ["x"], ["y"]), inputs=[tensor_info("x", 1 << 40, 1 << 40)])
    assert "absurd shape" in refusal(saved(model, tmp_path))


def test_weights_that_do_not_fill_their_shape_and_unknown_types(tmp_path):
    model = good()
    model.graph.initializer[0].raw_data = b"\0" * 7
    assert "don't fill its shape" in refusal(saved(model, tmp_path))
    model = good()
    model.graph.initializer[0].data_type = 99
    assert "unknown element type 99" in refusal(saved(model, tmp_path))


def test_inputs_that_are_no_numeric_tensors(tmp_path):
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [2])
    assert "holds strings" in refusal(saved(build(helper.make_node("Identity", ["x"], ["y"]), inputs=[text]), tmp_path))
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    model = build(helper.make_node("Identity", ["x"], ["y"]), inputs=[sequence])
    assert "is no tensor" in refusal(saved(model, tmp_path))


def external(location: str, **entries: int) -> onnx.ModelProto:
    model = good()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../secret.bin", "outside the model's folder"),
        ("/etc/hostname", "outside the model's folder"),
        ("", "outside the model's folder"),
        ("absent.bin", "is missing"),
        (".", "is missing"),
        ("link.bin", "outside the model's folder"),
    ],
)
def test_external_data_stay_in_the_models_folder(location, reason, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert reason in refusal(saved(external(location), folder))


@pytest.mark.parametrize(
    "entries", [{"offset": 1}, {"offset": -4}, {"length": 40}, {"offset": 1 << 62}, {"offset": "x"}, {"length": "1e3"}]
)
def test_external_data_that_are_too_short_or_misdescribed(entries, tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(48))
    message = refusal(saved(external("w.bin", **entries), tmp_path))
    assert "tensor 'w'" in message


def test_external_data_are_used_where_they_lie(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(4) + np.arange(12, dtype=np.float32).tobytes())
    assert import_onnx(saved(external("w.bin", offset=4, length=48), tmp_path)).nodes == 2


def test_every_unsupported_operator_is_listed_with_name_operator_domain_and_opset(tmp_path):
    model = build(
        helper.make_node("Strange", ["x"], ["a"], name="first", domain="my.domain"),
        helper.make_node("Stranger", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Strangest", ["x"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    )
    model.opset_import.add(domain="my.domain", version=3)
    path = saved(model, tmp_path)
    message = refusal(path, UnsupportedOperators)
    assert "3 unsupported node(s)" in message
    for part in (
        "Strange 'first' (my.domain opset 3)",
        "Stranger 'second' (ai.onnx opset 17)",
        "Strangest 'd' (ai.onnx",
    ):
        assert part in message


def test_unsupported_operators_in_branches_are_listed_too(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Strange", ["x"], ["t"], name="inner")], "b", [], [tensor_info("t", 2, 3)]
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    inputs = [tensor_info("x", 2, 3), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    assert "Strange 'inner'" in refusal(saved(build(node, inputs=inputs), tmp_path), UnsupportedOperators)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shapes": {"z": (2, 3)}}, "no such input; it has: x"),
        ({"shapes": {"x": (2,)}}, "has 2 dimensions"),
        ({"shapes": {"x": (2, 4)}}, "fixes 3"),
        ({"shapes": {"x": (0, 3)}}, "at least 1"),
        ({"dynamic": {"m": (1, 4)}}, "no such open dimension; it has: n"),
        ({"dynamic": {"n": (4, 1)}}, "1 <= low <= high"),
        ({"dynamic": {"n": (0, 1)}}, "1 <= low <= high"),
    ],
)
def test_options_that_do_not_fit_the_model(options, reason, tmp_path):
    path = saved(build(helper.make_node("Relu", ["x"], ["y"]), inputs=[tensor_info("x", "n", 3)]), tmp_path)
    with pytest.raises(UserError, match=reason.replace("(", r"\(")) as caught:
        import_onnx(path, **options)
    assert caught.value.exit_status == 2


def table_lookup(limit: int) -> Callable[[Path], Path]:
    """x [n, 3] plus the first n rows of a table of `limit` rows, as encoders add their positions."""

    def write(folder: Path) -> Path:
        constants = [numpy_helper.from_array(np.ones((limit, 3), np.float32), "table"),
                     *(numpy_helper.from_array(np.array([v], np.int64), k) for k, v in (("zero", 0), ("one", 1)))]  # fmt: skip
        nodes = [
            helper.make_node("Shape", ["x"], ["s"], end=1),
            helper.make_node("Slice", ["table", "zero", "s", "zero"], ["rows"]),
            helper.make_node("Add", ["x", "rows"], ["y"], name="sum"),
        ]
        return saved(build(*nodes, inputs=[tensor_info("x", "n", 3)], initializers=constants), folder)

    return write


def test_a_bound_that_the_models_constants_imply_is_learnt(tmp_path):
    path = table_lookup(512)(tmp_path)
    attrs = import_onnx(path).module["main"].attrs
    assert dict(attrs["tir_var_upper_bound"]) == {"n": 512}
    assert dict(import_onnx(path, dynamic={"n": (1, 100)}).module["main"].attrs["tir_var_upper_bound"]) == {"n": 100}
    with pytest.raises(UserError, match="allow at most 512"):
        import_onnx(path, dynamic={"n": (1, 513)})
