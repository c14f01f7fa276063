"""The lineup: the bundle that serves, the one that challenges it, and who gets which."""

import dataclasses
import hashlib
from dataclasses import dataclass

from avrec_ray.dataclass_io import check_choice, check_range

MODES = ("alone", "canary", "ab", "shadow", "interleave")
"""What a candidate is there for. alone: there is none. canary: a few users get it, and it is watched. ab: the same
without an end. shadow: nobody gets it, but it is asked what others are asked. interleave: lists of both are mixed."""

CHAMPION, CANDIDATE, INTERLEAVED = "champion", "candidate", "interleaved"
"""Names of variants in answers and impressions."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One bundle, and the Serve application whose replicas hold it."""

    model_version: str
    bundle: str
    """Folder of the bundle."""
    app: str
    """Name of the application."""


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """What is served. Immutable: a change is another lineup."""

    champion: Arm
    candidate: Arm | None = None
    previous: Arm | None = None
    """The champion before, whose replicas still run: what a rollback returns to."""
    mode: str = "alone"
    share: float = 0.0
    """Share of users that the candidate's mode concerns; of requests where it is a shadow."""
    deployed: str = ""
    """The bundle that the deployment was told to serve: another one there begins anew."""
    reason: str = ""
    """Why this lineup followed the one before."""

    def __post_init__(self) -> None:
        check_choice("lineup.mode", self.mode, MODES)
        check_range("lineup.share", self.share, 0, 1)
        if (self.candidate is None) != (self.mode == "alone"):
            raise ValueError(
                f"lineup: mode {self.mode!r} and candidate {self.candidate}; one says what the other is for"
            )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every bundle that must be at hand."""
        return tuple(arm for arm in (self.champion, self.candidate, self.previous) if arm is not None)

    def variant_of(self, key: str | None) -> str:
        """What the user of that stored name gets, always the same while the candidate is there.

        Whoever has no name gets the champion: the next request could not be given the same.
        """
        if key is None or self.candidate is None or self.mode == "shadow":
            return CHAMPION
        if unit_of(self.candidate.model_version, key) >= self.share:
            return CHAMPION
        return INTERLEAVED if self.mode == "interleave" else CANDIDATE

    def promoted(self, arm: Arm, reason: str) -> "Lineup":
        """`arm` serves everybody, and the champion of now is what a rollback returns to."""
        previous = self.previous if arm.app == self.champion.app else self.champion
        return dataclasses.replace(
            self, champion=arm, candidate=None, previous=previous, mode="alone", share=0.0, reason=reason
        )

    def challenged(self, arm: Arm, mode: str, share: float, reason: str) -> "Lineup":
        """`arm` is there as a candidate."""
        return dataclasses.replace(self, candidate=arm, mode=mode, share=share, reason=reason)

    def without_candidate(self, reason: str) -> "Lineup":
        """The champion alone."""
        return dataclasses.replace(self, candidate=None, mode="alone", share=0.0, reason=reason)


def unit_of(salt: str, key: str) -> float:
    """A number in [0, 1), fixed for salt and key, and independent between salts.

    Hash assignment as in Kohavi et al., "Trustworthy Online Controlled Experiments", 2020, ch. 4: a larger share keeps
    everybody who was in the smaller one.
    """
    digest = hashlib.sha256(f"{salt}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
