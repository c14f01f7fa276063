"""Artifacts of runs that MLflow keeps outside of the storage path: found, fetched, put back changed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from avrec_ray.pipelines.tracking import Tracking

ALL_RUNS = 3
"""mlflow.entities.ViewType.ALL: deleted runs keep their artifacts."""


def kept_elsewhere(tracking: Tracking, root: Path) -> Iterator[tuple[str, str]]:
    """Runs whose artifacts do not lie under `root`: id, and where they lie."""
    token: str | None = None
    while True:
        runs = tracking.client.search_runs([tracking.experiment_id], run_view_type=ALL_RUNS, page_token=token)
        for run in runs:
            uri = run.info.artifact_uri
            if not Path(uri.removeprefix("file://")).is_relative_to(root):
                yield run.info.run_id, uri
        token = runs.token
        if not token:
            return


def fetch_artifacts(tracking: Tracking, run_id: str, names: Sequence[str], folder: Path) -> list[Path]:
    """Copies, <folder>/<name> each, of those of the named artifacts that a run kept."""
    found = []
    for name in names:
        parent, _, _ = name.rpartition("/")
        if any(kept.path == name for kept in tracking.client.list_artifacts(run_id, parent or None)):
            fetched, wanted = Path(tracking.client.download_artifacts(run_id, name, str(folder))), folder / name
            if fetched != wanted:  # a file may come without the folder in its name
                wanted.parent.mkdir(parents=True, exist_ok=True)
                fetched.rename(wanted)
            found.append(wanted)
    return found


def replace_artifact(tracking: Tracking, run_id: str, folder: Path, name: str) -> None:
    """Log <folder>/<name> in the place of the artifact of that name."""
    tracking.client.log_artifact(run_id, str(folder / name), str(Path(name).parent) if "/" in name else None)
