"""Signals are noted where they must be, raised where they are asked for, and their handlers put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from rlcircuits.interruption import Interruptions, terminable, uninterruptible_children

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def unchanged():
    """Whatever a test does, the handlers are afterwards what they were."""
    before = [signal.getsignal(number) for number in BOTH]
    yield
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_one_is_noted_and_raised_where_it_is_asked_for(number: signal.Signals) -> None:
    with Interruptions().noted() as interruptions:
        interruptions.check()
        os.kill(os.getpid(), number)
        assert interruptions
        with pytest.raises(KeyboardInterrupt):
            interruptions.check()


def test_a_second_one_is_not_put_off() -> None:
    with pytest.raises(KeyboardInterrupt), Interruptions().noted():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruptions().noted() as interruptions:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruptions
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_sigterm_is_a_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)


def test_in_another_thread_nothing_changes() -> None:
    failures: list[BaseException] = []

    def body() -> None:
        try:
            with terminable(), uninterruptible_children(), Interruptions().noted() as interruptions:
                interruptions.check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.parametrize("shielded", [True, False])
def test_children_ignore_the_terminals_ctrl_c(shielded: bool) -> None:
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"]
    if shielded:
        with uninterruptible_children():
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    else:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert (child.communicate()[0] == b"alive\n") == shielded
