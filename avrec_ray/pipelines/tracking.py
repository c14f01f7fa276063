"""MLflow: one parent run a loop, one child a stage, and the registry whose alias says what is served."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.errors import StageError
from avrec_ray.pipelines.run_environment import environment, git_sha
from avrec_ray.pipelines.storage import Storage

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PARENT_TAG = "mlflow.parentRunId"
CHAMPION = "champion"
DIGEST_CHARS = 36
"""Longest digest of a dataset that MLflow keeps."""
MODEL_VERSION, VERDICT, REPLACED = "model_version", "verdict", "replaced_version"
"""Tags of a registered version: the bundle's own version, what the gate said, and the champion before it."""


class _Client(Protocol):
    def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Registered:
    """One version of the registered model."""

    name: str
    version: str
    model_version: str
    tags: dict[str, str]

    @property
    def reference(self) -> str:
        """As MLflow addresses it."""
        return f"models:/{self.name}/{self.version}"


class Tracking:
    """A connection to MLflow. Imported late: MLflow costs seconds, and a loop with nothing to do needs none."""

    def __init__(self, cfg: TrackingConfig, storage: Storage) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_AGENT_TRACING_SETUP", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self.cfg = cfg
        self.uri = cfg.uri or storage.tracking_uri
        self.client: _Client = MlflowClient(self.uri, registry_uri=self.uri)
        found = self.client.get_experiment_by_name(cfg.experiment)
        self.experiment_id: str = (
            found.experiment_id
            if found
            else self.client.create_experiment(cfg.experiment, artifact_location=artifact_location(self.uri))
        )

    def start(self, name: str, params: Mapping[str, Any], parent: str | None = None) -> "Run":
        """Open a run; `params` may be nested, they are flattened with dots."""
        tags = {"mlflow.runName": name, "git_sha": git_sha(), **environment()}
        tags |= {PARENT_TAG: parent} if parent else {}
        run_id: str = self.client.create_run(self.experiment_id, tags=tags).info.run_id
        run = Run(self.client, run_id)
        run.params(params)
        return run

    def reopen(self, run_id: str) -> "Run | None":
        """A run whose driver died, running again; None if there is no such run any more."""
        from mlflow.exceptions import MlflowException

        try:
            if self.client.get_run(run_id).info.lifecycle_stage != "active":
                return None
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return None
        return Run(self.client, run_id)

    def watch(self, run: "Run") -> None:
        """Log what the machine does until the run ends, as often as the config says."""
        if self.cfg.system_metrics_seconds:
            run.monitor(self.uri, self.cfg.system_metrics_seconds)

    def register(self, run: "Run", bundle: Path, model_version: str, tags: Mapping[str, str]) -> str:
        """Log a bundle as artifact of `run` and add it to the registry; gives the version. No alias is moved.

        Once a run: that of a driver that was killed afterwards keeps its version, whose files somebody may be reading.
        """
        name = self.cfg.model_name
        for known in self.client.search_model_versions(f"run_id = '{run.run_id}'"):
            if known.name == name:
                for key, value in tags.items():
                    self.client.set_model_version_tag(name, known.version, key, value)
                return str(known.version)
        self.client.log_artifacts(run.run_id, str(bundle), "bundle")
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name, description="avrec_ray bundles; the champion is served")
        source = f"{self.client.get_run(run.run_id).info.artifact_uri}/bundle"
        tags = {MODEL_VERSION: model_version, **tags}
        return str(self.client.create_model_version(name, source=source, run_id=run.run_id, tags=tags).version)

    def champion(self) -> "Registered | None":
        """What the alias points at; None before the first promotion."""
        name = self.cfg.model_name
        found = self.client.search_registered_models(f"name = '{name}'")
        version = found[0].aliases.get(CHAMPION) if found else None
        return self.registered(str(version)) if version else None

    def registered(self, version: str) -> "Registered":
        """A registered version.

        Raises:
            StageError: there is no such version.
        """
        from mlflow.exceptions import MlflowException

        name = self.cfg.model_name
        try:
            tags = self.client.get_model_version(name, version).tags
        except MlflowException as error:
            raise StageError(
                f"version {version!r} of {name!r} is not in the registry at {self.uri} ({error})"
            ) from error
        return Registered(name, version, tags.get(MODEL_VERSION, ""), dict(tags))

    def promote(self, version: str) -> "Registered":
        """Point the alias at a version, and note on it which one it replaced, for `jobs.promote rollback=true`."""
        before, after = self.champion(), self.registered(version)
        if before and before.version != version:
            self.client.set_model_version_tag(self.cfg.model_name, version, REPLACED, before.version)
        self.client.set_registered_model_alias(self.cfg.model_name, CHAMPION, version)
        return after

    def artifacts_of(self, run_id: str, stage: str, folder: str) -> Path:
        """A local copy of a folder that a run, or its child for `stage`, kept.

        Raises:
            StageError: there is no such run, or it kept nothing of that name.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.search_runs(
                [self.client.get_run(run_id).info.experiment_id],
                f"tags.`{PARENT_TAG}` = '{run_id}' and tags.stage = '{stage}'",
            )
            owner = found[0].info.run_id if found else run_id
            return Path(self.client.download_artifacts(owner, folder))
        except (MlflowException, OSError) as error:
            raise StageError(
                f"run {run_id!r} at {self.uri} has no {folder}/ ({error}); give a run of full_loop or of evaluate"
            ) from error

    def resolve_bundle(self, reference: str) -> Path:
        """A local folder of `models:/name@alias`, `models:/name/version`, or of a folder as it is.

        Raises:
            StageError: nothing is registered under that reference.
        """
        if not reference.startswith("models:/"):
            return Path(reference)
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            return Path(mlflow.artifacts.download_artifacts(reference))
        except MlflowException as error:
            raise StageError(
                f"{reference} is not in the registry at {self.uri} ({error}); build it with: python -m jobs.full_loop"
            ) from error


class Run:
    """One MLflow run, open until `end`."""

    def __init__(self, client: _Client, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._monitor: SystemMetricsMonitor | None = None

    def monitor(self, uri: str, every_seconds: float) -> None:
        """Log system/cpu_utilization_percentage and its like from now until `end`."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=every_seconds, tracking_uri=uri, resume_logging=True
        )
        self._monitor.start()

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; MLflow keeps at most 6,000 characters of each."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:6000]) for key, value in flatten(values).items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(self.run_id, params=flat[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    def last_step(self, name: str) -> int:
        """The highest step at which a metric was logged; -1 if it was not."""
        return max((point.step for point in self.client.get_metric_history(self.run_id, name)), default=-1)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self.client.set_tag(self.run_id, key, value)

    def inputs(self, context: str, tables: Mapping[Path, str]) -> None:
        """Note which tables, path to sha256, the run read, as "training" or "evaluation" data."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = [InputTag("mlflow.data.context", context)]
        noted = [
            Dataset(path.stem, digest[:DIGEST_CHARS], "local", json.dumps({"uri": path.as_uri()}))
            for path, digest in tables.items()
        ]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags) for dataset in noted])

    def artifact(self, path: Path, folder: str | None = None, name: str = "") -> None:
        """Keep a file with the run, under another `name` where given."""
        with tempfile.TemporaryDirectory() as renamed:
            if name:
                path = Path(shutil.copy(path, Path(renamed) / name))
            self.client.log_artifact(self.run_id, str(path), folder)

    def artifact_json(self, values: Any, name: str) -> None:
        """Keep a JSON document with the run."""
        self.client.log_text(self.run_id, json.dumps(values, indent=1, default=str), name)

    def artifact_text(self, text: str, name: str) -> None:
        """Keep a text with the run."""
        self.client.log_text(self.run_id, text, name)

    def end(self, failed: bool = False) -> None:
        """Close the run."""
        if self._monitor is not None:
            self._monitor.finish()
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def artifact_location(uri: str) -> str | None:
    """Where an experiment keeps its files: beside a SQLite database; else None, which leaves it to the server.

    MLflow itself would put those of a database into the working directory, another one for each job.

    >>> artifact_location("sqlite:////data/avrec/mlflow.db")
    'file:///data/avrec/mlartifacts'
    """
    scheme = "sqlite:///"
    return (Path(uri.removeprefix(scheme)).parent / "mlartifacts").as_uri() if uri.startswith(scheme) else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
