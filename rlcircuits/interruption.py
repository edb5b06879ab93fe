"""Ctrl-C, and the SIGTERM of a batch system, at moments where nothing is left half done.

Python raises `KeyboardInterrupt` wherever the program happens to be: between the two halves of starting a process, or
in a callback, which can only print it and go on. Long work that starts processes notes the signal instead, and asks for
it where it can end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interruptions:
    """The wish to end, noted when it comes and raised where it is asked for.

    >>> import os
    >>> with Interruptions().noted() as wish:
    ...     os.kill(os.getpid(), signal.SIGINT)
    ...     bool(wish)
    True
    """

    def __init__(self) -> None:
        self._came = False

    def __bool__(self) -> bool:
        return self._came

    @contextlib.contextmanager
    def noted(self) -> Iterator[Interruptions]:
        """Note SIGINT and SIGTERM instead of being ended by them. A second one is not put off: it raises
        `KeyboardInterrupt` at once.

        A signal that this process ignores, as those in a shell's background ignore Ctrl-C, stays ignored; and in other
        threads than the main one, which signals never reach, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            KeyboardInterrupt: someone wishes this to end.
        """
        if self._came:
            raise KeyboardInterrupt

    def _note(self, *_: Any) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A SIGTERM ends what runs within as a Ctrl-C does, with `KeyboardInterrupt`; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterruptible_children() -> Iterator[None]:
    """Processes started within ignore the Ctrl-C of the terminal they share with this one, from their first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
