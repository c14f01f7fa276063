import threading

from avrec_ray.retrieval.read_write_lock import ReadWriteLock

SOON = 0.05
LATE = 30


def started(work: object) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_readers_share_and_a_writer_waits_for_all_of_them() -> None:
    lock, written = ReadWriteLock(), threading.Event()

    def write() -> None:
        with lock.writing():
            written.set()

    with lock.reading():
        lock.start_reading()
        writer = started(write)
        assert not written.wait(SOON)
        lock.stop_reading()
        assert not written.wait(SOON)
    assert written.wait(LATE)
    writer.join(LATE)


def test_readers_that_come_later_let_a_waiting_writer_go_first() -> None:
    lock, order, waiting = ReadWriteLock(), [], threading.Event()

    def write() -> None:
        waiting.set()
        with lock.writing():
            order.append("write")

    def read() -> None:
        with lock.reading():
            order.append("read")

    with lock.reading():
        writer = started(write)
        assert waiting.wait(LATE)
        while not lock._num_waiting:
            pass
        reader = started(read)
        reader.join(SOON)
        assert order == []
    writer.join(LATE)
    reader.join(LATE)
    assert order == ["write", "read"]


def test_a_change_that_fails_lets_others_go_on() -> None:
    lock = ReadWriteLock()
    for enter in (lock.writing, lock.reading, lock.writing):
        try:
            with enter():
                raise KeyError
        except KeyError:
            pass
    with lock.reading():
        pass
