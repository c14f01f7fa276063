"""Where a run's tables come from."""

from dataclasses import dataclass, field
from pathlib import Path

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError

DATASETS = ("tables", "synthetic", "movielens", "lastfm", "microvideo")
MODES = ("cached", "stream")
MOVIELENS_VARIANTS = ("ml-100k", "ml-latest-small")


@dataclass(kw_only=True)
class SyntheticConfig:
    """A catalogue of rendered media and the behaviour of users who like some of its planted factors."""

    num_items: int = 300
    """Items in the catalogue, the broken and the cold ones included."""
    num_users: int = 500
    num_interactions: int = 15_000
    """Rows of the interactions table, exactly."""
    num_days: int = 60
    """Days that the interactions span."""
    cold_fraction: float = 0.05
    """Share of items published in the last tenth of the time; nobody can have seen them before."""
    broken_items: int = 6
    """Items whose media file is truncated, mislabelled, empty or missing. Nobody interacts with them."""
    single_modality_user_fraction: float = 0.3
    """Share of users who care for the picture only, the music only, or the topic only (a third each)."""
    num_creators: int = 40
    """Creators; each has favourite factors, so that its items resemble each other."""
    preference_strength: float = 1.0
    """Scale of what users like against what is popular; 0 makes everyone follow popularity."""
    popularity_strength: float = 1.0
    """Scale of the planted popularity; 0 makes all items equally popular."""
    drift_fraction: float = 0.15
    """Chance that a user's taste in one factor is another at the end of the time than at its start."""
    session_strength: float = 3.0
    """How much a session keeps to one factor value, in units of log odds; 0 for no session interest."""
    min_seconds: float = 4.0
    """Shortest media, seconds."""
    max_seconds: float = 6.0
    """Longest media, seconds."""
    frame_size: int = 128
    """Side of the square picture, pixels; even."""
    frames_per_second: int = 12

    def __post_init__(self) -> None:
        check_range("synthetic.num_items", self.num_items, 25)
        check_range("synthetic.num_users", self.num_users, 4)
        check_range("synthetic.num_days", self.num_days, 10)
        check_range("synthetic.num_creators", self.num_creators, 1)
        check_range("synthetic.cold_fraction", self.cold_fraction, 0, 0.5)
        check_range("synthetic.broken_items", self.broken_items, 0, self.num_items // 4)
        check_range("synthetic.single_modality_user_fraction", self.single_modality_user_fraction, 0, 1)
        check_range("synthetic.preference_strength", self.preference_strength, 0)
        check_range("synthetic.popularity_strength", self.popularity_strength, 0)
        check_range("synthetic.drift_fraction", self.drift_fraction, 0, 1)
        check_range("synthetic.session_strength", self.session_strength, 0)
        check_range("synthetic.min_seconds", self.min_seconds, 1)
        check_range("synthetic.max_seconds", self.max_seconds, self.min_seconds, 600)
        check_range("synthetic.frame_size", self.frame_size, 32, 1024)
        check_range("synthetic.frames_per_second", self.frames_per_second, 4, 60)
        if self.frame_size % 2:
            raise ConfigError(f"synthetic.frame_size={self.frame_size} is odd; h264 needs an even picture side")
        self._check_activity()

    def _check_activity(self) -> None:
        """A user seldom sees an item twice, so the catalogue must be larger than what a user sees."""
        low, high = 5 * self.num_users, self.num_users * self.num_items // 5
        if not low <= self.num_interactions <= high:
            raise ConfigError(
                f"synthetic.num_interactions={self.num_interactions} is outside [{low}, {high}]: between 5 a user and "
                f"a fifth of the catalogue a user; change num_interactions, num_users or num_items"
            )


@dataclass(kw_only=True)
class MovieLensConfig:
    """A MovieLens folder as published."""

    variant: str = "ml-100k"
    """One of MOVIELENS_VARIANTS."""
    source: str = ""
    """Absolute folder with the published files."""
    posters: str | None = None
    """Absolute folder of poster images; null takes `posters` beside `source` where there is one, else no images."""

    def __post_init__(self) -> None:
        check_choice("movielens.variant", self.variant, MOVIELENS_VARIANTS)
        _check_absolute("movielens.source", self.source)
        _check_absolute("movielens.posters", self.posters or "")


@dataclass(kw_only=True)
class LastFMConfig:
    """The Last.fm folder of HetRec 2011 as published."""

    source: str = ""
    """Absolute folder with the published files."""

    def __post_init__(self) -> None:
        _check_absolute("lastfm.source", self.source)


@dataclass(kw_only=True)
class MicroVideoConfig:
    """A folder of micro-videos known by their features: interactions.npz, audio_feat.npy, image_feat.npy."""

    source: str = ""
    """Absolute folder with these files."""

    def __post_init__(self) -> None:
        _check_absolute("microvideo.source", self.source)


@dataclass(kw_only=True)
class DataConfig:
    """Which dataset a run uses, and where its tables lie."""

    dataset: str = "tables"
    """One of DATASETS: your own Parquet tables, a rendered catalogue, MovieLens, Last.fm, or micro-videos' features."""
    items: str = ""
    """Absolute path of the items table; empty for <storage_path>/tables/items.parquet. The same for the next three."""
    interactions: str = ""
    users: str = ""
    """Optional table."""
    edges: str = ""
    """Optional table."""
    media_roots: list[str] = field(default_factory=list)
    """Folders that media may be read from; empty allows any local path."""
    mode: str = "cached"
    """What pretraining reads. cached: the clips that decode_media wrote, the same in every epoch. stream: the media
    themselves, decoded while the trainers compute."""
    random_clips: bool = True
    """mode=stream: a new clip at a random place of each item in each epoch; false: the clips of mode=cached."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    movielens: MovieLensConfig = field(default_factory=MovieLensConfig)
    lastfm: LastFMConfig = field(default_factory=LastFMConfig)
    microvideo: MicroVideoConfig = field(default_factory=MicroVideoConfig)

    def __post_init__(self) -> None:
        check_choice("data.dataset", self.dataset, DATASETS)
        check_choice("data.mode", self.mode, MODES)
        for name in ("items", "interactions", "users", "edges"):
            _check_absolute(f"data.{name}", getattr(self, name))
        for root in self.media_roots:
            _check_absolute("data.media_roots", root)


def _check_absolute(name: str, path: str) -> None:
    """A worker's current folder is not the caller's, so a relative path would mean another file there."""
    if path and not Path(path).is_absolute():
        raise ConfigError(f"{name}={path!r} is relative; expected an absolute path such as {Path(path).resolve()}")
