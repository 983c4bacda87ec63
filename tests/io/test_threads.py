"""Work ahead of what uses its results."""

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


def test_whoever_stops_asking_leaves_no_thread():
    threads = threading.active_count()
    ahead = one_ahead(iter(range(9)))
    assert next(ahead) == 0 and threading.active_count() == threads + 1
    ahead.close()
    assert threading.active_count() == threads
