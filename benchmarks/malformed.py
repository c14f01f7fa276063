"""What becomes of malformed media: every generated case, and the files of folders named, each decoded in the sandbox.

Run: python -m benchmarks.malformed [FOLDER...]. For the generated files of each family, for the hostile decoders and
for each folder: how many files, how many gave clips, how many were set aside for which reason; then the longest time
and the largest memory of a decoding process, and the connections that a listener on loopback counted. Exit status 1
when a file took over 20 s, memory went over 2 GiB, somebody connected, a file that can hold no media gave clips, or a
good file in between did not.
"""

import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder
from tests.media.canary import canary
from tests.media.hostile_decoders import LIES, MARK, MISDEEDS
from tests.media.malformed import NEVER_MEDIA, cases

HOSTILE = "tests.media.hostile_decoders:extract_or_misbehave"
MAX_SECONDS, MAX_BYTES = 20.0, 2 * 2**30
GOOD_EVERY = 10


@dataclass
class Run:
    """Outcomes of all files so far."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Family to counts by reason; "clips" for files that gave some."""
    slowest: tuple[float, str] = (0.0, "")
    wrong: list[str] = field(default_factory=list)

    def add(self, family: str, path: Path, decoder: ItemDecoder) -> str:
        """Decode one file and note what came of it."""
        began = time.monotonic()
        try:
            decoder.decode(path.name, str(path))
            outcome = "clips"
        except MediaError as error:
            outcome = error.reason
        self.slowest = max(self.slowest, (time.monotonic() - began, path.name))
        self.outcomes.setdefault(family, Counter())[outcome] += 1
        return outcome


def main(folders: list[str]) -> int:
    """All cases, then the folders; the exit status."""
    run = Run()
    with tempfile.TemporaryDirectory() as place, canary() as listener, ItemDecoder(MediaConfig(), HOSTILE) as decoder:
        print(f"sandbox: {decoder.layers}")
        good = None
        for number, path in enumerate(written(Path(place), listener.port)):
            good = good or Path(place) / "sources" / "film.mp4"
            family = path.name.split("-")[0]
            if run.add(family, path, decoder) == "clips" and family in {*NEVER_MEDIA, "hostile"}:
                run.wrong.append(path.name)
            if number % GOOD_EVERY == 0 and run.add("good", good, decoder) != "clips":
                run.wrong.append(f"good file after {path.name}")
        for folder in folders:
            for path in sorted(entry for entry in Path(folder).rglob("*") if entry.is_file()):
                run.add(folder, path.absolute(), decoder)
        num_connections = listener.num_connections()
    return report(run, num_connections)


def written(place: Path, port: int) -> Iterator[Path]:
    """Files of the generated cases and of the hostile decoders' words."""
    (place / "sources").mkdir()
    words = {f"hostile-{word}": MARK + word.encode() for word in (*MISDEEDS, *LIES, f"connect:{port}")}
    for name, content in (*cases(place / "sources", seed=0, port=port), *words.items()):
        path = place / name
        path.write_bytes(content)
        yield path


def report(run: Run, num_connections: int) -> int:
    """Print the table and the figures."""
    reasons = sorted({reason for counts in run.outcomes.values() for reason in counts})
    names = [Path(family).name for family in run.outcomes]
    width = max(len(name) for name in (*names, "family", "all"))
    total = sum(run.outcomes.values(), Counter[str]())
    print("  ".join(["family".ljust(width), "files", *reasons]))
    for name, counts in (*zip(names, run.outcomes.values(), strict=True), ("all", total)):
        numbers = [str(counts[reason] or "").rjust(len(reason)) for reason in reasons]
        print("  ".join([name.ljust(width), str(counts.total()).rjust(5), *numbers]))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    seconds, slowest = run.slowest
    print(f"longest {seconds:.1f} s ({slowest}); largest memory of a decoding process {memory / 2**20:.0f} MiB")
    print(f"connections on loopback: {num_connections}; wrong: {', '.join(run.wrong) or 'none'}")
    return int(seconds > MAX_SECONDS + 5 or memory > MAX_BYTES or bool(num_connections) or bool(run.wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
