"""User attributes as groups that can be compared: few, and each of some size."""

from collections import Counter
from collections.abc import Mapping, Sequence

MAX_GROUPS = 12
"""Groups of an attribute that are looked at."""
MIN_COVERED = 0.5
"""Least share of the users with an attribute whom its largest groups hold together; else it says who one is, like a
name or a post code, and not which group one is of."""
DECADE = 10


def attribute_groups(attributes: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Group of each user by attribute, None where it is unknown or too small a group; attributes sorted by name.

    Numbers of more than MAX_GROUPS values, such as ages, become ranges of ten. Of the values then left the MAX_GROUPS
    most frequent are kept; attributes with fewer than two groups, or of which these hold too few users, are left out.

    Args:
        attributes: those of each user, empty where nothing is known.

    >>> attribute_groups([{"gender": "F", "plan": "free"}, {"gender": "M", "plan": "free"}, {}])
    {'gender': ['F', 'M', None]}
    """
    names = sorted({name for known in attributes for name in known})
    found = {name: _groups([known.get(name) or None for known in attributes]) for name in names}
    return {name: groups for name, groups in found.items() if len(set(groups) - {None}) > 1}


def _groups(values: list[str | None]) -> list[str | None]:
    known = [value for value in values if value is not None]
    if len(set(known)) > MAX_GROUPS and all(_is_number(value) for value in known):
        values = [None if value is None else _decade(value) for value in values]
    counts = Counter(value for value in values if value is not None)
    # Of as many users the first by name, so that the order of users decides nothing.
    largest = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_GROUPS])
    if sum(largest.values()) < MIN_COVERED * len(known):
        return [None] * len(values)
    return [value if value in largest else None for value in values]


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdecimal()


def _decade(value: str) -> str:
    """
    >>> _decade("37")
    '30-39'
    """
    start = int(value) // DECADE * DECADE
    return f"{start}-{start + DECADE - 1}"
