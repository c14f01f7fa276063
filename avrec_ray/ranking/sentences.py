"""Explanations as plain sentences. They say what was measured and nothing else.

>>> ordinal(14), clock(64.9)
('14th', '1:04')
"""

from collections.abc import Sequence

VERBS = {
    "view": "watched",
    "like": "liked",
    "favorite": "saved",
    "share": "shared",
    "comment": "commented on",
    "follow": "followed",
}
"""What the user did with an item, by event."""
NOUNS = {"video": "picture", "audio": "sound", "text": "text"}
"""What to call the moments of a modality."""
NOTHING_CARRIED = "No single thing that you watched raised its score."


def because_sentence(
    event: str,
    title: str,
    moment: str,
    tags: Sequence[str],
    rank: int,
    rank_without: int,
) -> str:
    """Why an item is at `rank`.

    Args:
        event: what the user did with the watched item, a key of VERBS.
        title: of the watched item.
        moment: a clause of `counted_most` or `nearest_to_it`; "" says nothing of moments.
        tags: that both items have.
        rank_without: the rank by a history without the watched item.

    >>> because_sentence("view", "X", counted_most("audio", 4, 8), ["calm"], 2, 9)
    'Because you watched "X": its sound at 0:04-0:08 counted most; both are tagged calm. Without "X" this would be 9th.'
    """
    clauses = [clause for clause in (moment, f"both are tagged {_listed(tags)}" if tags else "") if clause]
    lead = f'Because you {VERBS[event]} "{title}"' + (": " + "; ".join(clauses) if clauses else "")
    would = "would still be" if rank_without == rank else "would be"
    return f'{lead}. Without "{title}" this {would} {ordinal(rank_without)}.'


def counted_most(modality: str, start_seconds: float, end_seconds: float) -> str:
    """Clause for the moment without which the score falls most."""
    return f"its {_span(modality, start_seconds, end_seconds)} counted most"


def nearest_to_it(modality: str, start_seconds: float, end_seconds: float) -> str:
    """Clause for the moment that is nearest to the watched item where no moment moves the score."""
    return f"its {_span(modality, start_seconds, end_seconds)} is what is nearest to it"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def clock(seconds: float) -> str:
    """Minutes and seconds, rounded down."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _span(modality: str, start_seconds: float, end_seconds: float) -> str:
    """A moment in words; items without a length, and text, have no span."""
    if modality == "text" or end_seconds <= start_seconds:
        return NOUNS[modality]
    return f"{NOUNS[modality]} at {clock(start_seconds)}-{clock(end_seconds)}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
