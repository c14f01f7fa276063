"""What the present champion shows to the users of an evaluation: asked once, for the report and for the gate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.errors import BundleError, StageError
from avrec_ray.pipelines.recommend import recommend_users
from avrec_ray.pipelines.split import history_paths, read_candidates
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.tracking import Registered

FILE = "champion_recommendations.parquet"
"""The champion's lists in evaluation/; the schema's metadata says whose they are."""
_VERSION = b"model_version"


@dataclass(frozen=True, eq=False)
class ChampionLists:
    """Lists of the champion, or why there are none."""

    name: str = ""
    """Its bundle and its version in the registry, for people."""
    model_version: str = ""
    lists: pa.Table | None = None
    note: str = ""
    """A sentence that says why it is not compared; empty where `lists` holds something."""

    def save(self, folder: Path) -> None:
        """Keep the lists in `folder`, where there are any."""
        if self.lists is not None:
            metadata = {_VERSION: self.model_version.encode()}
            pq.write_table(self.lists.replace_schema_metadata(metadata), folder / FILE)


def ask_champion(
    loop: Loop,
    job: JobConfig,
    bundle: Bundle,
    users: Sequence[str],
    log: Callable[[str], None],
    saved: Path | None = None,
) -> ChampionLists:
    """The lists of the registry's champion for `users`, with the histories that the candidate `bundle` was given.

    Args:
        saved: the folder of an evaluation of the same users and split; its lists are taken where they are of the
            present champion.

    Raises:
        StageError: the champion is registered but its files cannot be fetched, which may pass.
    """
    champion = loop.tracking.champion()
    if champion is None:
        return ChampionLists(note="There is no champion yet.")
    name = f"{champion.model_version} (version {champion.version})"
    if champion.model_version == bundle.metadata.model_version:
        return ChampionLists(name, champion.model_version, note="The champion is this very bundle.")
    lists = _read_saved(saved, champion)
    if lists is None:
        try:
            path = loop.tracking.resolve_bundle(champion.reference)
            load_bundle(path)
        except BundleError as error:
            return ChampionLists(
                name,
                champion.model_version,
                note=f"The champion {name} cannot be read, so nothing is compared: {error}",
            )
        log(f"asking champion {name} about {len(users)} users")
        parts = history_paths(loop.storage.root)
        candidates = read_candidates(loop.storage.root)
        lists = recommend_users(path, parts, users, job, job.evaluation.list_length, candidates, log)
    return ChampionLists(name, champion.model_version, lists)


def ask_champion_if_possible(
    loop: Loop, job: JobConfig, bundle: Bundle, users: Sequence[str], log: Callable[[str], None]
) -> ChampionLists:
    """As `ask_champion` for a report, which is written even where the champion cannot be fetched."""
    try:
        return ask_champion(loop, job, bundle, users, log)
    except StageError as error:
        return ChampionLists(note=f"The champion cannot be fetched, so nothing is compared: {error}")


def _read_saved(folder: Path | None, champion: Registered) -> pa.Table | None:
    if folder is None or not (folder / FILE).is_file():
        return None
    table = pq.read_table(folder / FILE)
    found = (table.schema.metadata or {}).get(_VERSION, b"").decode()
    return table if found == champion.model_version else None
