"""Business rules: items that a person pins to a place, blocks or boosts, read from a YAML or JSON file.

    - name: launch
      match: {creator: [studio-a], category: [trailer]}   # of each key any value; all keys must fit
      action: pin
      place: 1
      from: 2026-12-01                                    # half open, UTC; both optional
      until: 2026-12-08
    - {name: taken down, match: {item_ids: [i17]}, action: block}
    - {name: season, match: {tag: [winter]}, action: boost, boost: 0.5}   # in deviations of a request's scores

Dimension key: N catalogue.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import ConfigError

ACTIONS = ("pin", "block", "boost")
MATCHES = ("item_ids", "creator", "category", "tag")
_OWN_KEY = {"pin": "place", "boost": "boost"}
"""The key that an action needs beside name, match, action, from and until."""


@dataclass(frozen=True)
class Rule:
    """One rule; what to match is kept as (key of MATCHES, values)."""

    name: str
    match: tuple[tuple[str, tuple[str, ...]], ...]
    action: str
    place: int = 0
    """Of a pin, from 1."""
    boost: float = 0.0
    """Added to the score, in standard deviations of the scores of a request; negative lowers."""
    from_seconds: float = -math.inf
    until_seconds: float = math.inf

    @property
    def is_dated(self) -> bool:
        """It does not hold always."""
        return self.from_seconds > -math.inf or self.until_seconds < math.inf

    def holds_at(self, at_seconds: float) -> bool:
        """At a POSIX time; half open."""
        return self.from_seconds <= at_seconds < self.until_seconds

    def matches(self, items: Catalogue) -> npt.NDArray[np.bool_]:
        """Bool [N]. Items, creators and tags that the catalogue lacks match nothing: catalogues change."""
        keep = np.ones(len(items), bool)
        for key, values in self.match:
            wanted = set(values)
            keep &= np.fromiter((not wanted.isdisjoint(v) for v in _values(items, key)), bool, len(items))
        return keep

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it names; empty where it says only what they are like."""
        return dict(self.match).get("item_ids", ())


def load_rules(path: str | Path) -> tuple[Rule, ...]:
    """The rules of a file, checked.

    Raises:
        ConfigError: naming the file, the rule and the field.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"policy.rules={str(path)!r} cannot be read as YAML or JSON: {error}") from error
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise ConfigError(f"policy.rules={str(path)!r} holds a {type(entries).__name__}; expected a list of rules")
    try:
        rules = tuple(read_rule(entry, number) for number, entry in enumerate(entries, start=1))
        _check_names(rules)
    except ConfigError as error:
        raise ConfigError(f"policy.rules={str(path)!r}: {error}") from error
    return rules


def read_rule(entry: Any, number: int) -> Rule:
    """One entry of a rules file, the `number`-th.

    Raises:
        ConfigError: naming the rule and the field, what was got, and what is expected.
    """
    if not isinstance(entry, Mapping):
        raise ConfigError(f"rule {number}: got {entry!r}, expected a mapping with name, match and action")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"rule {number}: name={name!r}; expected text, by which errors call it")
    action = entry.get("action")
    if action not in ACTIONS:
        raise ConfigError(f"rule {name!r}: action={action!r} is not one of {list(ACTIONS)}")
    own = _OWN_KEY.get(action)
    known = ["name", "match", "action", "from", "until", *([own] if own else [])]
    if unknown := [key for key in entry if key not in known]:
        raise ConfigError(f"rule {name!r}: unknown field {unknown[0]!r}; a {action} has {known}")
    start = _seconds(name, "from", entry.get("from"), -math.inf)
    end = _seconds(name, "until", entry.get("until"), math.inf)
    if start >= end:
        raise ConfigError(f"rule {name!r}: from={entry['from']} is not before until={entry['until']}")
    return Rule(
        name=name,
        match=_match(name, entry.get("match")),
        action=action,
        place=_place(name, entry.get("place")) if action == "pin" else 0,
        boost=_boost(name, entry.get("boost")) if action == "boost" else 0.0,
        from_seconds=start,
        until_seconds=end,
    )


def _match(rule: str, given: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"rule {rule!r}: match={given!r}; expected one or more of {list(MATCHES)} with lists of text")
    for key, values in given.items():
        if key not in MATCHES:
            raise ConfigError(f"rule {rule!r}: match has {key!r}; expected one or more of {list(MATCHES)}")
        if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
            raise ConfigError(
                f"rule {rule!r}: match.{key}={values!r}; expected a list of text, such as ['a'] (quote numbers)"
            )
    return tuple((key, tuple(given[key])) for key in MATCHES if key in given)


def _place(rule: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"rule {rule!r}: place={value!r}; expected a whole number from 1, the place to pin to")
    return value


def _boost(rule: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"rule {rule!r}: boost={value!r}; expected a number, in standard deviations of the scores")
    return float(value)


def _seconds(rule: str, key: str, value: Any, default: float) -> float:
    """A date or time, as YAML reads it or as ISO text, to POSIX seconds; without a zone it is UTC."""
    if value is None:
        return default
    try:
        at = datetime.datetime.fromisoformat(value.isoformat() if isinstance(value, datetime.date) else value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"rule {rule!r}: {key}={value!r}; expected a date or time such as 2026-12-01") from error
    return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()


def _check_names(rules: Sequence[Rule]) -> None:
    names = [rule.name for rule in rules]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"rule {repeated[0]!r}: name is given twice; expected one rule a name")


def _values(items: Catalogue, key: str) -> Sequence[Sequence[str | None]]:
    if key == "tag":
        return items.tags
    columns: dict[str, Sequence[str | None]] = {
        "item_ids": items.item_ids,
        "creator": items.creator_ids,
        "category": items.categories,
    }
    return [(value,) for value in columns[key]]
