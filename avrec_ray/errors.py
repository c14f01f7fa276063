"""Every exception that avrec_ray raises on purpose. Messages say what was got, what was expected, what to do next.

AvrecError
├── ConfigError          a wrong or unknown setting
├── TableError           a table that breaks its schema
├── MediaError           a media file that cannot become a clip; carries a quarantine reason
├── CheckpointError      a checkpoint that is torn or of another shape
├── BundleError          a bundle that is incomplete, mixed or damaged
├── StageError           a pipeline stage that cannot start or produced nothing
└── FeedbackError        an event that cannot be kept
    └── EventConflictError   an event_id that was seen before with another body
"""


class AvrecError(Exception):
    """Base of all errors of this package."""


class ConfigError(AvrecError, ValueError):
    """A setting is unknown, of the wrong type, or outside its range."""


class TableError(AvrecError, ValueError):
    """A table breaks its schema; the message names the column and, where there is one, the row."""


class MediaError(AvrecError):
    """A media file that cannot become a clip.

    `reason` is one of the codes in `avrec_ray.types.QUARANTINE_REASONS`; `detail` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class CheckpointError(AvrecError):
    """A checkpoint that is torn, or that does not fit the model."""


class BundleError(AvrecError):
    """A bundle that is incomplete, mixes versions, or whose files do not match their digests."""


class StageError(AvrecError):
    """A stage of the pipeline that cannot start, or that ended with nothing usable."""


class FeedbackError(AvrecError, ValueError):
    """An event that cannot be kept; the message says which field is wrong."""


class EventConflictError(FeedbackError):
    """The same event_id was kept before with another body."""
