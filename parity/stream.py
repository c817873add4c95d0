"""A pass of the reference that is read while it runs, so that nobody ever holds all that its layers produced."""

import threading
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from parity.trace import Call, Key, Recorder, Trace


class Stream:
    """A pass in a thread of its own, which goes on only while somebody waits for something of it.

    What a layer was given and what it returned is kept until everybody who wants it is done with it. As two models run
    through their layers in about the same order, that is one layer's, and those of the layers that it lies in.

    Args:
        run: The pass: called with the recorder to use, returns its trace.
        wanted: For each reader the paths whose calls it will ask for and release.
    """

    def __init__(self, run: Callable[[Recorder], Trace], wanted: tuple[Collection[str], ...]) -> None:
        self.readers = tuple(Reader(self, number) for number in range(len(wanted)))
        self._run, self._wanted = run, wanted
        self._condition = threading.Condition()
        self._entered: dict[Key, Call] = {}
        self._left: dict[Key, Call] = {}
        self._released: dict[Key, set[int]] = {}
        self._waiting: list[tuple[dict[Key, Call], Key]] = []
        self._trace: Trace | None = None
        self._error: BaseException | None = None
        self._closed: set[int] = set()
        self._done = self._draining = self._abandoned = False
        self._thread = threading.Thread(target=self._produce, daemon=True)

    def __enter__(self) -> "Stream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._abandoned = True
            self._condition.notify_all()
        self._thread.join()
        self._entered.clear()
        self._left.clear()

    def finish(self) -> Trace:
        """Lets the pass run to its end.

        Returns:
            Its trace without the arrays of its layers: which calls there were, and the statistics.

        Raises:
            BaseException: Whatever ended the pass.
        """
        with self._condition:
            self._draining = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._done)
        if self._error is not None:
            raise self._error
        assert self._trace is not None
        return self._trace

    def wait(self, side: dict[Key, Call], key: Key) -> Call | None:
        """A call that began or ended; None if the pass ends without it."""
        with self._condition:
            if key not in side and not self._done:
                self._waiting.append((side, key))
                self._condition.notify_all()
                self._condition.wait_for(lambda: key in side or self._done)
            return side.get(key)

    def release(self, key: Key, reader: int) -> None:
        """Says that a reader is done with a call; the last one frees its arrays."""
        with self._condition:
            self._released.setdefault(key, set()).add(reader)
            self._drop(key)

    def close(self, reader: int) -> None:
        """Says that a reader will ask for nothing more."""
        with self._condition:
            self._closed.add(reader)
            for key in [*self._entered, *self._left]:
                self._drop(key)

    @property
    def held(self) -> int:
        """Bytes of the arrays that are kept now, each counted once."""
        with self._condition:
            arrays = {
                id(array): array.nbytes
                for call in (*self._entered.values(), *self._left.values())
                for array in (*(call.inputs or ()), *call.outputs)
                if isinstance(array, np.ndarray)
            }
        return sum(arrays.values())

    def _drop(self, key: Key) -> None:
        if not self._unread(key):
            self._entered.pop(key, None)
            self._left.pop(key, None)

    def _unread(self, key: Key) -> set[int]:
        """Readers that are not done with a call."""
        readers = {number for number, paths in enumerate(self._wanted) if key[0] in paths}
        return readers - self._closed - self._released.get(key, set())

    def _produce(self) -> None:
        trace: Trace | None = None
        error: BaseException | None = None
        try:
            self._pause()
            trace = self._run(_StreamRecorder(self._publish))
        except BaseException as raised:  # noqa: BLE001  whoever waits has to learn of it, whatever it is
            error = raised
        with self._condition:
            self._trace, self._error, self._done = trace, error, True
            self._condition.notify_all()

    def _publish(self, call: Call, ended: bool) -> None:
        key = (call.path, call.index)
        with self._condition:
            if self._unread(key) and not self._draining:
                (self._left if ended else self._entered)[key] = call
            self._waiting = [(side, wanted) for side, wanted in self._waiting if wanted not in side]
            self._condition.notify_all()
        self._pause()

    def _pause(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._draining or self._abandoned)
            if self._abandoned:
                raise _AbandonedError


class Reader:
    """One reader's view of a stream, which is asked as a ``Trace`` is."""

    def __init__(self, stream: Stream, number: int) -> None:
        self._stream, self._number = stream, number

    def entered(self, key: Key) -> Call | None:
        """A call with its inputs; waits until it begins."""
        return self._stream.wait(self._stream._entered, key)

    def left(self, key: Key) -> Call | None:
        """A call with its outputs; waits until it ends."""
        return self._stream.wait(self._stream._left, key)

    def release(self, key: Key) -> None:
        """Says that the call is no longer needed."""
        self._stream.release(key, self._number)

    def close(self) -> None:
        """Says that nothing more is needed."""
        self._stream.close(self._number)


class Outline(Recorder):
    """Remembers which calls there were, and of the arrays only what the model itself returns."""

    wide = False
    keeps = False

    def end(self, key: Key, inputs: tuple[Any, ...], outputs: tuple[Any, ...], error: str = "") -> None:
        """Registers that a call ended."""
        kept = tuple(np.array(array, dtype=np.float64) for array in outputs) if key == ("", 0) else ()
        super().end(key, (), kept, error)


class Handing(Outline):
    """Hands every call on when it ends, with its arrays, and forgets them."""

    def __init__(self, on_call: Callable[[Call], None]) -> None:
        super().__init__()
        self._on_call = on_call

    def end(self, key: Key, inputs: tuple[Any, ...], outputs: tuple[Any, ...], error: str = "") -> None:
        """Hands a call on."""
        super().end(key, inputs, outputs, error)
        self._on_call(self._call(key, inputs, outputs, error))


class _StreamRecorder(Outline):
    """Hands every call on when it begins and when it ends."""

    keeps = True

    def __init__(self, publish: Callable[[Call, bool], None]) -> None:
        super().__init__()
        self._publish = publish

    def enter(self, key: Key, inputs: tuple[Any, ...]) -> None:
        """Hands on what a call was given."""
        self._publish(self._call(key, inputs, ()), False)

    def end(self, key: Key, inputs: tuple[Any, ...], outputs: tuple[Any, ...], error: str = "") -> None:
        """Hands on what a call returned."""
        super().end(key, inputs, outputs, error)
        self._publish(self._call(key, inputs, outputs, error), True)


class _AbandonedError(BaseException):
    """Nobody reads on. Not an ``Exception``, so that no model takes it for an error of its own."""
