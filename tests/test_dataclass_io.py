"""Configs from plain dicts: nothing unknown, nothing of another type, nothing left out gets in."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.dataclass_io import check_choice, check_range, from_dict, to_dict
from avrec_ray.errors import ConfigError


@dataclass(kw_only=True)
class Inner:
    rate: float = 0.1
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Outer:
    size: int
    inner: Inner = field(default_factory=Inner)
    label: str | None = None
    on: bool = False
    anything: Any = None

    def __post_init__(self) -> None:
        check_range("outer.size", self.size, 1, 10)


def test_from_dict_builds_nested_dataclasses() -> None:
    built = from_dict(Outer, {"size": 3, "inner": {"rate": 2, "names": ["a"], "weights": {"like": 1}}, "label": None})
    assert built == Outer(size=3, inner=Inner(rate=2.0, names=["a"], weights={"like": 1.0}))
    assert isinstance(built.inner.rate, float)


def test_from_dict_takes_an_instance_as_it_is() -> None:
    inner = Inner(rate=0.5)
    assert from_dict(Outer, {"size": 1, "inner": inner}).inner is inner


def test_from_dict_reads_numbers_as_yaml_spells_them() -> None:
    values = yaml.safe_load("{size: 2, inner: {rate: 3e-4}}")
    assert values["inner"]["rate"] == "3e-4"  # PyYAML leaves it a string, OmegaConf does not
    assert from_dict(Outer, values).inner.rate == 3e-4
    assert from_dict(Outer, {"size": "2"}).size == 2
    assert from_dict(Outer, {"size": 2.0}).size == 2


def test_from_dict_with_an_unknown_key_names_it_and_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"inner: unknown key 'rat'; expected one of \['names', 'rate', 'weights'\]"):
        from_dict(Outer, {"size": 1, "inner": {"rat": 1}})
    with pytest.raises(ConfigError, match="Outer: unknown key 'sizes'"):
        from_dict(Outer, {"sizes": 1})


def test_from_dict_without_a_required_key_names_it() -> None:
    with pytest.raises(ConfigError, match="Outer: key 'size' is missing"):
        from_dict(Outer, {"label": "x"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 2.5}, r"size=2.5: got float, expected int"),
        ({"size": "two"}, r"size='two': got str, expected int"),
        ({"size": True}, r"size=True: got bool, expected int"),
        ({"size": None}, r"size=None: got NoneType, expected int"),
        ({"size": float("inf")}, r"size=inf: got float, expected int"),
        ({"size": float("nan")}, r"size=nan: got float, expected int"),
        ({"size": 1, "label": 3}, r"label=3: got int, expected str"),
        ({"size": 1, "on": "true"}, r"on='true': got str, expected bool"),
        ({"size": 1, "on": 1}, r"on=1: got int, expected bool"),
        ({"size": 1, "inner": 4}, r"inner: got int, expected a mapping"),
        ({"size": 1, "inner": {"rate": "fast"}}, r"inner.rate='fast': got str, expected float"),
        ({"size": 1, "inner": {"names": "abc"}}, r"inner.names='abc': got str, expected a list"),
        ({"size": 1, "inner": {"names": ["a", 2]}}, r"inner.names\[1\]=2: got int, expected str"),
        ({"size": 1, "inner": {"weights": [1]}}, r"inner.weights=\[1\]: got list, expected a mapping"),
        ({"size": 1, "inner": {"weights": {"like": "x"}}}, r"inner.weights.like='x': got str, expected float"),
    ],
)
def test_from_dict_with_a_wrong_type_names_the_path_and_both_types(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, values)


def test_from_dict_of_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="Outer: got list, expected a mapping"):
        from_dict(Outer, [("size", 1)])  # type: ignore[arg-type]


def test_from_dict_runs_the_checks_of_the_dataclass() -> None:
    with pytest.raises(ConfigError, match=r"outer.size=11 is outside \[1, 10\]"):
        from_dict(Outer, {"size": 11})


def test_check_choice_with_an_unknown_value_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"index.backend='foo' is not one of \['exact', 'hnsw'\]"):
        check_choice("index.backend", "foo", {"hnsw": 1, "exact": 2})


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_check_range_outside_the_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"rate=.* is outside \[0, 1\]"):
        check_range("rate", value, 0, 1)


@given(
    st.builds(
        Outer,
        size=st.integers(1, 10),
        inner=st.builds(
            Inner,
            rate=st.floats(allow_nan=False),
            names=st.lists(st.text()),
            weights=st.dictionaries(st.text(), st.floats(allow_nan=False)),
        ),
        label=st.none() | st.text(),
        on=st.booleans(),
    )
)
def test_to_dict_through_json_and_from_dict_is_the_same_config(config: Outer) -> None:
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config
    assert dataclasses.asdict(config) == to_dict(config)
