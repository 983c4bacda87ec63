"""Work ahead of what uses its results."""

import signal
import threading

import pytest

from tokvid.io.threads import one_ahead


def test_the_next_item_is_computed_while_the_last_one_is_used():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    taken = []
    for number in one_ahead(items()):
        taken.append(number)
        assert all(event.wait(10) for event in begun[: number + 2])
        assert not any(event.is_set() for event in begun[number + 2 :])
    assert taken == [0, 1, 2, 3]


def test_an_error_is_raised_in_its_place():
    def items():
        yield 1
        raise ValueError("of the second")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="of the second"):
        next(ahead)
    assert not list(ahead)


def test_whoever_stops_asking_goes_on_at_once_and_leaves_no_thread():
    threads, go_on = set(threading.enumerate()), threading.Event()

    def items():
        yield 0
        yield go_on.wait(60)

    ahead = one_ahead(items())
    assert next(ahead) == 0
    ahead.close()
    assert not go_on.is_set()
    (left,) = set(threading.enumerate()) - threads
    go_on.set()
    left.join(10)
    assert not left.is_alive()


def test_ctrl_c_is_heard_while_an_item_is_computed():
    go_on = threading.Event()

    def items():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        yield go_on.wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(one_ahead(items()))
        assert not go_on.is_set()
    finally:
        go_on.set()
        signal.signal(signal.SIGINT, before)
