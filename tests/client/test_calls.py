import pytest

from vitrail import calls
from vitrail.errors import InvalidArgument, Unavailable, VitrailError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_deadline_leaves_the_server_room_to_keep_the_budget() -> None:
    assert calls.deadline(None) is None
    assert calls.deadline(10.0) == pytest.approx(11.5)


def test_a_token_is_sent_as_a_bearer() -> None:
    assert calls.metadata(None) == ()
    assert calls.metadata("secret") == (("authorization", "Bearer secret"),)


def test_the_time_left_shrinks_and_never_goes_below_0() -> None:
    clock = Clock()
    retry = calls.Retry(5.0, clock)

    assert retry.remaining == 5.0
    clock.now += 3
    assert retry.remaining == 2.0
    clock.now += 3
    assert retry.remaining == 0.0
    assert calls.Retry(None, clock).remaining is None


def test_pauses_double_up_to_the_longest() -> None:
    retry = calls.Retry(1000.0, Clock())

    pauses = [retry.pause(Unavailable("starting", retry_delay=0.0)) for _ in range(6)]

    assert pauses == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_the_servers_delay_is_kept_where_it_is_longer() -> None:
    assert calls.Retry(60.0, Clock()).pause(Unavailable("loading", retry_delay=7.0)) == 7.0


def test_without_a_timeout_a_call_is_tried_five_times() -> None:
    retry = calls.Retry(None, Clock())

    pauses = [retry.pause(Unavailable("starting", retry_delay=0.0)) for _ in range(5)]

    assert pauses == [0.2, 0.4, 0.8, 1.6, None]


def test_nothing_is_tried_beyond_the_timeout() -> None:
    assert calls.Retry(5.0, Clock()).pause(Unavailable("loading", retry_delay=5.0)) is None


@pytest.mark.parametrize(
    "error", [InvalidArgument("wrong", retry_delay=1.0), Unavailable("broken for good"), VitrailError("?")]
)
def test_what_trying_again_does_not_help_is_not_tried(error: VitrailError) -> None:
    assert calls.Retry(None, Clock()).pause(error) is None
