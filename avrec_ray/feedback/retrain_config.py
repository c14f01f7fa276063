"""Settings of retraining: what is held back, what events are worth, and how far the champion's towers are taken on."""

from dataclasses import dataclass, field

from avrec_ray.dataclass_io import check_range
from avrec_ray.evaluation.drift import DriftConfig
from avrec_ray.feedback.labels import LabelConfig
from avrec_ray.feedback.suspicion import SuspicionConfig


@dataclass(kw_only=True)
class RetrainConfig:
    """jobs.retrain."""

    min_new_events: int = 1
    """Fewer new events, impressions not counted, are left for the next run."""
    epochs: int = 20
    """Of the champion's towers on train; on train and valid together then as training.finetune says for its refresh."""
    learning_rate: float = 1e-3
    keep_runs: int = 2
    """Newest finished runs whose folders stay under retrain/; older ones go, and the registry keeps its bundles."""
    every_hours: float = 0.0
    """Run again so long after each start, until stopped; 0: once."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    suspicion: SuspicionConfig = field(default_factory=SuspicionConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)

    def __post_init__(self) -> None:
        check_range("retrain.min_new_events", self.min_new_events, 1)
        check_range("retrain.epochs", self.epochs, 1)
        check_range("retrain.learning_rate", self.learning_rate, 0.0)
        check_range("retrain.keep_runs", self.keep_runs, 1)
        check_range("retrain.every_hours", self.every_hours, 0.0)
