"""Work that is shown by the clock, work that is stopped, and steps of which not each is looked at."""

import threading
import time

import numpy as np
import pytest

from highrank import progress
from highrank.evaluate import DynamicSettings, dynamic_evaluate, evaluate, gradient_statistics
from highrank.progress import CLOCK_EVERY_S, READ_EVERY_S, SILENT, Pace, UntilStopped, by_the_clock
from tests.parity import small_model
from tests.telling import Telling


def test_work_that_takes_longer_than_expected_does_not_come_to_an_end() -> None:
    display = Telling()
    assert by_the_clock(lambda: time.sleep(5 * CLOCK_EVERY_S), display, "sleeping", 0.1) is None
    *waiting, (_, last, end, _) = display.shown
    assert len(waiting) >= 3
    assert all(total is not None and done < total for _, done, total, _ in waiting)
    assert last == end
    display = Telling()
    by_the_clock(lambda: time.sleep(2 * CLOCK_EVERY_S), display, "sleeping")
    assert display.shown[0] == ("sleeping", 0, None, "seconds")


def test_work_ends_at_the_first_progress_after_it_was_stopped() -> None:
    told, stopping = Telling(), threading.Event()
    display = UntilStopped(told, stopping, TimeoutError("stopped"))
    display.progress("working", 1, 2, 3.0, unit="words")
    stopping.set()
    with pytest.raises(TimeoutError, match="stopped"):
        display.progress("working", 2, 2)
    display.message("said")
    assert (told.shown, told.losses, told.messages) == ([("working", 1, 2, "words")], [3.0], ["said"])


def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise TimeoutError("of the work itself")

    with pytest.raises(TimeoutError, match="of the work itself"):
        by_the_clock(fail, Telling(), "failing", 10)


def test_without_a_display_there_is_no_thread() -> None:
    assert by_the_clock(threading.current_thread, SILENT, "x", 1) is threading.current_thread()
    assert by_the_clock(threading.current_thread, Telling(), "x", 1) is not threading.current_thread()


def test_a_pace_is_that_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 10.1, 10.5, 10.6, 10.9, 11.1, 20.0, 20.1])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    pace = Pace()
    assert [pace.is_due() for _ in range(7)] == [False, True, False, False, True, True, False]


def test_a_loss_is_read_twice_a_second_whatever_the_number_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each segment takes a fifth of a second here; what is computed is the same without anybody looking."""
    model = small_model(17)
    train, text = (np.random.default_rng(0).integers(17, size=size, dtype=np.int32) for size in (304, 301))
    settings = DynamicSettings(lamb=0.1, lr=0.01, epsilon=0.01)
    unseen = gradient_statistics(model, train, batch=4)
    alone = dynamic_evaluate(model, text, unseen, settings).loss_nats
    seconds = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds) * READ_EVERY_S / 2.5)
    display = Telling()
    statistics = gradient_statistics(model, train, batch=4, display=display)
    for name, square in statistics.squares.items():
        assert square.equal(unseen.squares[name])
    assert [done for _, done, _, _ in display.shown] == list(range(60, 301, 60))
    display = Telling()
    assert dynamic_evaluate(model, text, statistics, settings, display=display).loss_nats == alone
    assert [done for _, done, _, _ in display.shown] == [*range(15, 301, 15), 300]
    alone = evaluate(model, text, segment=5).loss_nats
    display = Telling()
    assert evaluate(model, text, segment=5, display=display).loss_nats == alone
    assert [done for _, done, _, _ in display.shown] == [*range(15, 301, 15), 300]
