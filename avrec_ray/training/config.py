"""Settings of the training loop, of pretraining and of fine-tuning."""

import dataclasses
from dataclasses import dataclass, field
from typing import Self

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.types import POSITIVE_EVENTS

NEGATIVES = ("full", "mixed", "in_batch", "uniform", "auto")
AUXILIARY_HEADS = ("like", "watch", "skip")
"""like: a like, favorite or share followed; watch: the quantile of watch time beside items as long; skip: it was turned
down."""
FINETUNE_LOSSES = ("softmax", "corrected", "gbce")
PRETRAIN_LOSSES = ("infonce", "siglip")
BARRED = ("window", "history", "none")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay. Batch sizes are a worker's, unless `global_batch_size` is set."""

    epochs: int = 10
    batch_size: int = 64
    global_batch_size: int = 0
    """Rows a step over all workers, whatever their number; `batch_size` is then not read. 0: `batch_size` a worker."""
    accumulate_steps: int = 1
    """Batches whose gradients are added up before the weights change. Where the loss is a weighted mean over targets
    and the candidates are the same in every batch (full softmax), the update is that of one batch as large as all of
    them together; where a batch brings its own negatives, each of its rows still meets those of its own batch only."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    """Share of all steps in which the learning rate climbs from 0."""
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    """Moving average of the weights, which is then what is validated and kept; 0: the weights themselves. The n-th
    update counts with at most (1 + n) / (10 + n), so that a short training is not its first weights."""
    precision: str = "auto"
    """Key of PRECISIONS, what matrix products are computed in; the weights are float32. auto: bfloat16 on a GPU that
    has it, else float32. float16 scales its gradients."""
    checkpoint_every_epochs: int = 10
    checkpoint_every_steps: int = 0
    """Also within an epoch, after so many updates each; 0: at the end of epochs alone."""
    validate_every_epochs: int = 0
    """How often the stage measures itself on what it does not train on, where it can; 0: never."""
    patience: int = 0
    """Validations in a row without a better `patience_metric` that end training early, with the best weights; 0: all
    epochs are trained, and the last weights stay."""
    patience_metric: str = "ndcg_at_10"
    """Of the validation; larger is better."""

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 0)
        check_range("batch_size", self.batch_size, 1)
        check_range("global_batch_size", self.global_batch_size, 0)
        check_range("accumulate_steps", self.accumulate_steps, 1)
        check_range("ema_decay", self.ema_decay, 0.0, 0.99999)
        check_choice("precision", self.precision, PRECISIONS)
        check_range("checkpoint_every_steps", self.checkpoint_every_steps, 0)
        check_range("validate_every_epochs", self.validate_every_epochs, 0)
        check_range("patience", self.patience, 0)
        if self.patience and not self.validate_every_epochs:
            raise ConfigError(f"patience={self.patience} needs validations; set validate_every_epochs to 1 or more")
        check_range("learning_rate", self.learning_rate, 0.0)
        check_range("warmup_share", self.warmup_share, 0.0, 1.0)
        check_range("checkpoint_every_epochs", self.checkpoint_every_epochs, 1)

    def for_workers(self, num_workers: int) -> Self:
        """The same training as one of `num_workers` workers sees it: `batch_size` is this worker's.

        Raises:
            ConfigError: `global_batch_size` cannot be shared out evenly.
        """
        if not self.global_batch_size:
            return self
        if self.global_batch_size % num_workers:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} does not divide among {num_workers} workers; "
                f"take {-(-self.global_batch_size // num_workers) * num_workers}"
            )
        return dataclasses.replace(self, batch_size=self.global_batch_size // num_workers)


@dataclass(kw_only=True)
class PretrainConfig(OptimConfig):
    """Contrast between the modalities of an item."""

    epochs: int = 60
    loss: str = "infonce"
    """infonce: each item among the others (CLIP); siglip: each pair of items for itself."""
    chunk_size: int = 0
    """Items that the encoders see at once, for batches whose activations do not fit; 0: all. Costs one more forward
    pass, changes no gradient."""
    crop_share: float = 0.8
    """Smallest side of the random crop, as a share of the frame; 1: no crop."""
    flip_share: float = 0.0
    """Share of clips that are mirrored. Off by default: writing in the picture, and what is left and right, mean
    something."""
    brightness_jitter: float = 0.1
    """Largest change of brightness, as a share of the range, one a clip."""
    contrast_jitter: float = 0.1
    """Largest change of contrast about the clip's mean, as a share, one a clip."""
    tint_jitter: float = 0.03
    """Largest change of each of red, green and blue, as a share of the range, one a clip."""
    gain_db: float = 6.0
    """Largest change of loudness in decibels, up or down, one a clip."""
    spec_masks: int = 2
    """Bands hidden along mel bins and along time each (SpecAugment, Park et al. 2019)."""
    token_dropout: float = 0.2
    """Chance that a word is hidden."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pretrain.loss", self.loss, PRETRAIN_LOSSES)
        check_range("pretrain.chunk_size", self.chunk_size, 0)
        check_range("pretrain.crop_share", self.crop_share, 0.1, 1.0)
        check_range("pretrain.flip_share", self.flip_share, 0.0, 1.0)
        for name in ("brightness_jitter", "contrast_jitter", "tint_jitter"):
            check_range(f"pretrain.{name}", getattr(self, name), 0.0, 0.9)
        check_range("pretrain.gain_db", self.gain_db, 0.0, 40.0)
        check_range("pretrain.spec_masks", self.spec_masks, 0, 16)
        check_range("pretrain.token_dropout", self.token_dropout, 0.0, 0.9)


def default_event_weights() -> dict[str, float]:
    """Weight of each positive event as a target."""
    return dict.fromkeys(POSITIVE_EVENTS, 1.0)


@dataclass(kw_only=True)
class FinetuneConfig(OptimConfig):
    """Next-item training of both towers."""

    epochs: int = 60
    batch_size: int = 64
    loss: str = "softmax"
    """softmax: over the candidates, with logQ; corrected: with the positive left out of logQ; gbce: a decision each."""
    gbce_calibration: float = 0.75
    """t of gBCE: 0 is plain binary cross entropy, 1 takes all of what sampling does to probabilities back."""
    logq: bool = True
    """Take the chance of being sampled out of the softmax. False is for comparison: it favours rare items."""
    negatives: str = "auto"
    """full: every item; in_batch: what others of the step chose; uniform: drawn evenly; mixed: both; auto: full up to
    `full_max_items` items, mixed above."""
    full_max_items: int = 200
    num_uniform: int = 256
    """Uniform negatives a step, shared by all queries of all workers."""
    mask_own: str = "window"
    """Which of a user's own items are no negatives. window: all of the window, chosen later ones too; history: those
    met up to the query, so that what comes next is told from what comes later; none: the target alone."""
    newest_share: float = 0.0
    """Chance that the window cut from a history longer than towers.history_length is the newest one, which a request
    will read, and not one anywhere in it."""
    unordered: bool = False
    """Events have no order worth learning (data without times): each epoch reads every history in another one."""
    event_weights: dict[str, float] = field(default_factory=default_event_weights)
    watch_weight: float = 0.0
    """How much more a target counts the longer it was watched beside others of its duration: from 1 - this to 1 + this.
    Events without a watch time count as they are."""
    auxiliary_weights: dict[str, float] = field(default_factory=dict)
    """Weight of the loss of each auxiliary head: like, watch, skip; none by default. They shape the towers, whose dot
    product alone is served."""
    refresh_epochs: int = 20
    """Epochs on train and valid together, after those on train alone."""
    refresh_learning_rate: float = 1e-3
    validate_users: int = 1000
    """Users of valid, drawn by the seed, on whom a validation measures recall_at_20 and ndcg_at_10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("finetune.negatives", self.negatives, NEGATIVES)
        check_choice("finetune.loss", self.loss, FINETUNE_LOSSES)
        check_range("finetune.gbce_calibration", self.gbce_calibration, 0.0, 1.0)
        check_choice("finetune.mask_own", self.mask_own, BARRED)
        check_range("finetune.newest_share", self.newest_share, 0.0, 1.0)
        check_range("finetune.num_uniform", self.num_uniform, 1)
        for event in self.event_weights:
            check_choice("finetune.event_weights", event, POSITIVE_EVENTS)
        check_range("finetune.watch_weight", self.watch_weight, 0.0, 0.95)
        for head, weight in self.auxiliary_weights.items():
            check_choice("finetune.auxiliary_weights", head, AUXILIARY_HEADS)
            check_range(f"finetune.auxiliary_weights.{head}", weight, 0.0)
        check_range("finetune.refresh_epochs", self.refresh_epochs, 1)
        check_range("finetune.refresh_learning_rate", self.refresh_learning_rate, 0.0)
        check_range("finetune.validate_users", self.validate_users, 1)

    def for_refresh(self) -> "FinetuneConfig":
        """The same training with the epochs and the learning rate of the refresh; nothing is left to validate on."""
        return dataclasses.replace(
            self,
            epochs=self.refresh_epochs,
            learning_rate=self.refresh_learning_rate,
            validate_every_epochs=0,
            patience=0,
        )
