"""Where everything that a run writes lies, derived from one absolute `storage_path`."""

from dataclasses import dataclass
from pathlib import Path

from avrec_ray.errors import ConfigError


@dataclass(frozen=True)
class Storage:
    """Paths under `storage_path`. On a cluster the folder is shared by its nodes (NFS, EFS, a mounted bucket)."""

    root: Path

    @classmethod
    def at(cls, storage_path: str) -> "Storage":
        """Check and open a storage folder.

        Raises:
            ConfigError: the path is empty or relative: workers have another working directory than the driver.
        """
        if not storage_path or not Path(storage_path).is_absolute():
            raise ConfigError(
                f"storage_path={storage_path!r} is not absolute; workers run in another directory, "
                "give a full path such as storage_path=/data/avrec"
            )
        root = Path(storage_path)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"storage_path={storage_path!r} cannot be a folder ({error}); give another one"
            ) from error
        return cls(root)

    def folder(self, name: str) -> Path:
        """The folder of a stage or table; not created."""
        return self.root / name

    @property
    def items(self) -> Path:
        """Items table as prepared."""
        return self.root / "tables" / "items.parquet"

    @property
    def interactions(self) -> Path:
        """Interactions table as prepared."""
        return self.root / "tables" / "interactions.parquet"

    @property
    def truth(self) -> Path:
        """Planted truth of synthetic data."""
        return self.root / "tables" / "truth"

    @property
    def tracking_uri(self) -> str:
        """The embedded MLflow database."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def events_url(self) -> str:
        """The embedded event store."""
        return f"sqlite:///{self.root / 'events.db'}"
