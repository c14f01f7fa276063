"""Epochs of a training run on the terminal and in MLflow, as they happen, each once even after a retry."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty
from typing import Any

from ray.util.queue import Queue

from avrec_ray.pipelines.tracking import Run


@contextmanager
def epoch_progress(run: Run, num_epochs: int, log: Callable[[str], None], every_seconds: float = 5.0) -> Iterator[Any]:
    """Yield a queue for rank 0 to put {"epoch": int, "metrics": {...}} into; print a line now and then.

    A restarted run tells the metrics of the epochs before its checkpoint as {"history": [...]}, and repeats those
    since; each is logged once, also by the driver that follows one that was killed. Validation metrics, `val/...`, keep
    their name, the others become `train/...`. Any worker may put {"note": text}, which is printed, or
    {"file": name, "text": text}, which is kept with the run.
    """
    queue: Any = Queue(actor_options={"num_cpus": 0})
    stop = threading.Event()

    def drain() -> None:
        last_epoch, printed = run.last_step("train/loss"), 0.0
        first_epoch, first_at = -1, 0.0  # the rate counts from the first report: what comes before is start-up
        while not (stop.is_set() and queue.empty()):
            try:
                report: Mapping[str, Any] = queue.get(timeout=0.5)
            except Empty:
                continue
            if "note" in report:
                log(str(report["note"]))
                continue
            if "file" in report:
                run.artifact_text(str(report["text"]), str(report["file"]))
                continue
            if "history" in report:
                for epoch, metrics in enumerate(report["history"][last_epoch + 1 :], last_epoch + 1):
                    run.metrics(_logged(metrics), step=epoch)
                last_epoch = max(last_epoch, len(report["history"]) - 1)
                continue
            epoch, metrics = report["epoch"], report["metrics"]
            if epoch <= last_epoch:
                log(f"epoch {epoch + 1} again after a restart")
                continue
            last_epoch = epoch
            run.metrics(_logged(metrics), step=epoch)
            now = time.monotonic()
            if first_epoch < 0:
                first_epoch, first_at = epoch, now
            if now - printed >= every_seconds or epoch + 1 == num_epochs:
                printed = now
                rate = (epoch - first_epoch) / max(now - first_at, 1e-9)
                left = f"  {rate:.1f} epochs/s  {(num_epochs - epoch - 1) / rate:.0f} s left" if rate else ""
                log(f"epoch {epoch + 1}/{num_epochs}  loss {metrics['loss']:.4f}{_of_data(metrics)}{left}")

    thread = threading.Thread(target=drain, name="epoch-progress", daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        stop.set()
        thread.join(timeout=30)
        queue.shutdown()


def _logged(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name if name.startswith("val/") else f"train/{name}": value for name, value in metrics.items()}


def _of_data(metrics: Mapping[str, float]) -> str:
    """How long the trainers waited for batches, and how many items these had to do without."""
    waited = f"  data wait {metrics['data_wait_share']:.0%}" if "data_wait_share" in metrics else ""
    prefix = "left_out_"
    reasons = [f"{name.removeprefix(prefix)} {n:.0f}" for name, n in metrics.items() if name.startswith(prefix)]
    return waited + (f"  left out: {', '.join(reasons)}" if reasons else "")
