"""What a bundle calls a user. Its profiles have the names of the day it was built, perhaps of an older key."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.training.profiles import UserProfiles


class BundleNames:
    """Stored names to those of one bundle, so that its models need no keys."""

    def __init__(self, pseudonyms: Pseudonyms, known: Collection[str]) -> None:
        """`known`: users of the bundle's profiles."""
        self._pseudonyms = pseudonyms
        self._known = known

    def of(self, name: str) -> str:
        """The name under which the bundle knows a user; the stored name of one whom it does not know."""
        if not self._known:
            return name
        return next((alias for alias in self._pseudonyms.aliases(name) if alias in self._known), name)

    def of_many(self, users: Sequence[str]) -> list[str]:
        """The same from ids or names of any key."""
        return [self.of(name) for name in self._pseudonyms.stored_many(users)]

    def column(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """`of_many` for a column."""
        encoded = values.combine_chunks().dictionary_encode()
        names = pa.array(self.of_many(encoded.dictionary.to_pylist()), pa.string())
        return pa.chunked_array([pa.DictionaryArray.from_arrays(encoded.indices, names).dictionary_decode()])


def profile_data(profiles: UserProfiles | None, names: Sequence[str]) -> Mapping[str, Any] | None:
    """What a bundle's profile says of a user, who has one of `names`; None where it says nothing.

    Friends are somebody else's data: their number is told. Attributes are kept as numbers of hash buckets.
    """
    row = next((profiles.row_of[name] for name in names if name in profiles.row_of), None) if profiles else None
    if profiles is None or row is None:
        return None
    told: dict[str, Any] = {"attribute_buckets": [int(bucket) for bucket in profiles.attribute_ids[row] if bucket]}
    if profiles.friends is not None:
        starts, choices = profiles.friends.friend_starts, profiles.friends.starts
        told["num_friends"] = int(starts[row + 1] - starts[row])
        told["num_choices_shown_to_friends"] = int(choices[row + 1] - choices[row])
    return told
