"""A lock that searches share and a change has alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Any number of readers, or one writer. Readers that come while a writer waits let it go first.

    Not reentrant: a reader that asks to read again while a writer waits would wait for itself.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._num_readers = 0
        self._num_waiting = 0
        self._is_writing = False

    def start_reading(self) -> None:
        """Wait until nobody writes; pair with `stop_reading` in a `finally`. Two calls cost half of a `with`."""
        with self._mutex:
            while self._is_writing or self._num_waiting:
                self._changed.wait()
            self._num_readers += 1

    def stop_reading(self) -> None:
        """The end of what `start_reading` began."""
        with self._mutex:
            self._num_readers -= 1
            if not self._num_readers and self._num_waiting:
                self._changed.notify_all()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody writes inside."""
        self.start_reading()
        try:
            yield
        finally:
            self.stop_reading()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else reads or writes inside."""
        with self._mutex:
            self._num_waiting += 1
            try:
                while self._is_writing or self._num_readers:
                    self._changed.wait()
                self._is_writing = True
            finally:
                self._num_waiting -= 1
                if not self._is_writing:  # interrupted while it waited: who waited for it goes on
                    self._changed.notify_all()
        try:
            yield
        finally:
            with self._mutex:
                self._is_writing = False
                self._changed.notify_all()
