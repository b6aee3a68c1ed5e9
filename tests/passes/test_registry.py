from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from greencc.errors import UserError
from greencc.passes import registry
from greencc.passes.base import Pass
from greencc.passes.prune_dead_nodes import PruneDeadNodes
from greencc.passes.registry import PASSES, default_pipeline, make_pass, names, parse_pipeline


def test_every_pass_keeps_the_naming_rule():
    for name, cls in PASSES.items():
        module = cls.__module__.rsplit(".", 1)[-1]
        assert cls.name == name
        assert module == name.replace("-", "_")
        assert cls.__name__.lower() == name.replace("-", "")
        assert (Path(__file__).parent / f"test_{module}.py").exists()


@pytest.mark.parametrize("name", PASSES)
def test_passes_are_frozen_and_number_their_conditions(name):
    cls = PASSES[name]
    assert dataclasses.fields(cls) is not None
    assert cls.__dataclass_params__.frozen
    numbers = [condition.number for condition in cls.conditions]
    assert numbers == sorted(set(numbers))
    documentation = f"{sys.modules[cls.__module__].__doc__}\n{cls.__doc__}"
    for number in numbers:
        assert f"{number}." in documentation
    assert all(condition.reason for condition in cls.conditions)


def test_default_pipeline_holds_registered_passes_and_ends_pruned():
    passes = default_pipeline()
    assert all(PASSES[p.name] is type(p) for p in passes)
    assert set(names(passes)) <= set(PASSES)
    assert passes[0].name == passes[-1].name == "prune-dead-nodes"


def test_parses_names_and_options():
    parsed = parse_pipeline(" prune-dead-nodes{drop-unused-inputs=true}, fold-constants{max_growth=7} ,")
    assert parsed[0] == PruneDeadNodes(drop_unused_inputs=True)
    assert (parsed[1].name, parsed[1].max_growth) == ("fold-constants", 7)
    assert parse_pipeline("prune-dead-nodes,prune-dead-nodes{}") == (PruneDeadNodes(), PruneDeadNodes())
    assert parse_pipeline("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune-dead-node", r"unknown pass 'prune-dead-node' \(did you mean 'prune-dead-nodes'\?\); known: "),
        ("zzz", r"unknown pass 'zzz'; known: .*fold-constants"),
        ("fold-constants{growth=1}", r"has no option 'growth'; it has: max-growth"),
        ("fold-constants{max-growth=many}", r"'many' is no int for option 'max-growth'"),
        ("prune-dead-nodes{drop-unused-inputs=1}", r"'1' is no bool"),
        (
            "fold-constants{max-growth}",
            r"'max-growth' of pass 'fold-constants' isn't written as option=value",
        ),
        ("fold-constants{max-growth=}", r"isn't written as option=value"),
        ("fold-constants prune-dead-nodes", r"can't read 'fold-constants prune-dead-nodes'"),
        ("fold-constants,,prune-dead-nodes", r"can't read ',prune-dead-nodes'"),
        ("fold-constants{max-growth=1", r"can't read"),
        ("a{b={c=1}}", r"can't read"),
        ("prune dead", r"can't read 'prune dead'; write a,b\{option=value\}"),
    ],
)
def test_a_wrong_request_says_what_is_known(text, message):
    with pytest.raises(UserError, match=message):
        parse_pipeline(text)


def test_a_pass_without_options_says_so(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Plain(Pass):
        name = "plain"

        def run(self, module, context):
            raise NotImplementedError

    monkeypatch.setitem(registry.PASSES, "plain", Plain)
    with pytest.raises(UserError, match="pass 'plain' has no option 'x'; it has: none"):
        make_pass("plain", {"x": "1"})
