"""What would happen to files, as a table: gate, probe and decoding in the sandboxed process, as the pipeline does it.

Run: python -m avrec_ray.media.probe FILE...
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from avrec_ray.errors import MediaError
from avrec_ray.media.answer import plain
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder
from avrec_ray.media.file_report import FileReport

USAGE = """usage: python -m avrec_ray.media.probe FILE...

Prints a line a file: what it is, and what decoding makes of it with the default settings: its clips and the decoders
used, or the reason to set it aside for. The last line names the layers of the sandbox.

Exit status: 0 when every file gives clips, 1 when a file would be set aside, 2 for a wrong call."""

HEADINGS = ("file", "kind", "streams", "video", "size", "fps", "audio", "seconds", "outcome")


@dataclass(kw_only=True)
class Outcome:
    """What happens to one file."""

    name: str
    report: FileReport | None = None
    """None where not even the probe succeeds."""
    num_clips: int = 0
    decoder: str = ""
    reason: str = ""
    """"" for a file that gives clips."""
    detail: str = ""


def examine(path: str, decoder: ItemDecoder) -> Outcome:
    """Probe and decode one file; never raises MediaError."""
    outcome = Outcome(name=plain(path, 4096))
    absolute = path if ":" in path.split("/")[0] else os.path.abspath(path)
    try:
        outcome.report = decoder.report(absolute)
        clips = decoder.decode(path, absolute)
    except MediaError as error:
        outcome.reason, outcome.detail = error.reason, error.detail
    else:
        outcome.num_clips, outcome.decoder = len(clips), clips[0].decoder
    return outcome


def cells(outcome: Outcome) -> tuple[str, ...]:
    """One line of the table, in the order of HEADINGS."""
    found = outcome.report
    if outcome.reason:
        verdict = f"{outcome.reason}: {outcome.detail}"
    else:
        verdict = f"{outcome.num_clips} clip{'s' * (outcome.num_clips > 1)} by {outcome.decoder}"
    if found is None:
        return (outcome.name, *[""] * 7, verdict)
    return (
        outcome.name,
        found.kind,
        str(found.num_streams),
        found.video_codec,
        f"{found.width}x{found.height}" if found.video_codec else "",
        f"{found.fps:.2f}" if found.fps else "",
        f"{found.audio_codec} {found.sample_rate_hz}" if found.audio_codec else "",
        f"{found.duration_seconds:.2f}",
        verdict,
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """All outcomes as text in columns."""
    rows = [HEADINGS, *map(cells, outcomes)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS) - 1)]
    padded = [[cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def main(arguments: Sequence[str]) -> int:
    """Print the table for the files named; the exit status, see USAGE."""
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    with ItemDecoder(MediaConfig(follow_symlinks=True)) as decoder:
        outcomes = [examine(path, decoder) for path in arguments]
        print(table(outcomes))
        print(f"sandbox: {decoder.layers}")
    return int(any(outcome.reason for outcome in outcomes))
