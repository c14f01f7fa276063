"""Business rules: read with errors that name rule and field, matched on a catalogue, valid when they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avrec_ray.errors import ConfigError
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.ranking.rules import load_rules, read_rule
from tests.tiny_bundle import tiny_catalogue

ITEMS = tiny_catalogue(24)
DECEMBER = 1_796_083_200.0  # 2026-12-01, UTC
YAML = """
- name: launch
  match: {creator: [c1, c2], category: [sport]}
  action: pin
  place: 2
  from: 2026-12-01
  until: 2026-12-08T12:00:00+02:00
- {name: taken down, match: {item_ids: [i05]}, action: block}
- {name: season, match: {tag: [night]}, action: boost, boost: -0.5, until: "2026-12-01"}
"""


def effects(*entries: dict[str, Any]) -> RuleEffects:
    named = [{"name": f"r{n}", **entry} for n, entry in enumerate(entries)]
    return RuleEffects([read_rule(entry, n) for n, entry in enumerate(named, start=1)], ITEMS)


def test_rules_of_yaml_and_of_json_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(YAML)
    launch, down, season = load_rules(tmp_path / "rules.yaml")
    assert (launch.action, launch.place, launch.match) == (
        "pin",
        2,
        (("creator", ("c1", "c2")), ("category", ("sport",))),
    )
    assert (launch.from_seconds, launch.until_seconds) == (DECEMBER, DECEMBER + (7 * 24 + 10) * 3600)
    assert (down.item_ids, down.is_dated, launch.item_ids) == (("i05",), False, ())
    assert (season.boost, season.until_seconds) == (-0.5, DECEMBER)
    told = [
        {
            "name": "launch",
            "match": {"creator": ["c1", "c2"], "category": ["sport"]},
            "action": "pin",
            "place": 2,
            "from": "2026-12-01",
            "until": "2026-12-08T10:00:00Z",
        }
    ]
    (tmp_path / "rules.json").write_text(json.dumps(told))
    assert load_rules(tmp_path / "rules.json") == (launch,)


def test_an_empty_file_has_no_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("# none yet\n")
    assert load_rules(tmp_path / "rules.yaml") == ()


FINE = {"name": "x", "match": {"item_ids": ["i1"]}, "action": "pin", "place": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, r"rule 1: name=''; expected text"),
        ({"action": "hide"}, r"rule 'x': action='hide' is not one of \['pin', 'block', 'boost'\]"),
        ({"match": {}}, r"rule 'x': match=\{\}; expected one or more of \['item_ids'"),
        ({"match": {"genre": ["a"]}}, r"rule 'x': match has 'genre'; expected"),
        ({"match": {"tag": "calm"}}, r"rule 'x': match.tag='calm'; expected a list of text"),
        ({"match": {"item_ids": [17]}}, r"rule 'x': match.item_ids=\[17\]; expected a list of text.*quote numbers"),
        ({"place": 0}, r"rule 'x': place=0; expected a whole number from 1"),
        ({"place": True}, r"rule 'x': place=True"),
        ({"place": None}, r"rule 'x': place=None"),
        ({"boost": 1.0}, r"rule 'x': unknown field 'boost'; a pin has \['name', .*'place'\]"),
        ({"action": "block"}, r"rule 'x': unknown field 'place'; a block has"),
        ({"from": "tomorrow"}, r"rule 'x': from='tomorrow'; expected a date or time such as 2026-12-01"),
        ({"until": 3}, r"rule 'x': until=3; expected a date"),
        ({"from": "2026-12-02", "until": "2026-12-01"}, r"rule 'x': from=2026-12-02 is not before until=2026-12-01"),
    ],
)
def test_a_wrong_rule_is_named_with_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rule({**FINE, **change}, 1)


@pytest.mark.parametrize("boost", [None, "much", float("nan"), float("inf"), True])
def test_a_wrong_boost_is_refused(boost: object) -> None:
    with pytest.raises(ConfigError, match=f"rule 'x': boost={boost!r}; expected a number"):
        read_rule({"name": "x", "match": {"tag": ["calm"]}, "action": "boost", "boost": boost}, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read as YAML or JSON"),
        ("a: 1", "holds a dict; expected a list of rules"),
        ("- pin", r"rule 1: got 'pin', expected a mapping"),
        (json.dumps([FINE, FINE]), "rule 'x': name is given twice"),
        ("- !!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"policy.rules='.*rules.yaml'.*{message}"):
        load_rules(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rules(tmp_path / "nothing.yaml")


def test_keys_of_a_match_narrow_and_values_widen() -> None:
    rule = read_rule({**FINE, "match": {"category": ["music", "sport"], "tag": ["loud"], "creator": ["c1"]}}, 1)
    expected = [
        ITEMS.categories[row] in ("music", "sport") and "loud" in ITEMS.tags[row] and ITEMS.creator_ids[row] == "c1"
        for row in range(24)
    ]
    assert rule.matches(ITEMS).tolist() == expected
    assert any(expected)


def test_validity_is_half_open() -> None:
    rule = read_rule({**FINE, "from": "2026-12-01", "until": "2026-12-02"}, 1)
    assert [rule.holds_at(DECEMBER + s) for s in (-1, 0, 86_399, 86_400)] == [False, True, True, False]


def test_boosts_add_up_and_blocks_unite() -> None:
    found = effects(
        {"match": {"category": ["music"]}, "action": "boost", "boost": 1.0},
        {"match": {"item_ids": ["i04", "gone"]}, "action": "boost", "boost": 0.5},
        {"match": {"item_ids": ["i01"]}, "action": "block"},
        {"match": {"creator": ["c2"]}, "action": "block"},
    )
    rows = np.array([4, 0, 1, 2])
    assert found.boosts(rows, 0.0).tolist() == [1.5, 1.0, 0.0, 0.0]
    assert found.blocked(rows, 0.0).tolist() == [False, False, True, True]


def test_pins_take_the_best_that_fits_and_the_next_free_place() -> None:
    found = effects(
        {"match": {"category": ["sport"]}, "action": "pin", "place": 2},
        {"match": {"category": ["sport", "cooking"]}, "action": "pin", "place": 2},
        {"match": {"item_ids": ["gone"]}, "action": "pin", "place": 1},
    )
    rows = np.array([4, 9, 5, 1])  # sport: 9, 5, 1
    assert found.pins(rows, 0.0) == {1: 1, 2: 2}


def test_named_pins_are_candidates_while_they_hold_and_fit_in_the_list() -> None:
    found = effects(
        {"match": {"item_ids": ["i03", "gone", "i03"]}, "action": "pin", "place": 3},
        {"match": {"item_ids": ["i04"]}, "action": "pin", "place": 1, "until": "2026-12-01"},
        {"match": {"category": ["sport"]}, "action": "pin", "place": 1},
    )
    assert found.pinned_items(10, DECEMBER - 1) == ["i03", "i04"]
    assert found.pinned_items(2, DECEMBER) == []
    with pytest.raises(ValueError, match="give the at_seconds"):
        found.time_of(None)
    assert effects({"match": {"tag": ["calm"]}, "action": "block"}).time_of(None) == 0.0
