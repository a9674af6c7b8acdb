import asyncio
import threading

import pytest

from vitrail_server.runtime.lane import Lane


async def test_calls_run_on_one_thread_of_that_name_in_order_of_arrival() -> None:
    lane = Lane("loading")
    done: list[int] = []
    futures = [lane.submit(done.append, number) for number in range(20)]
    name = await lane.run(lambda: threading.current_thread().name)
    assert done == list(range(20))
    assert all(future.done() for future in futures)
    assert name.startswith("loading")
    lane.close()


async def test_results_and_errors_come_back_to_the_event_loop() -> None:
    lane = Lane("lane")
    assert await lane.run(divmod, 7, 2) == (3, 1)
    assert await lane.run(int, "11", base=2) == 3
    with pytest.raises(ZeroDivisionError):
        await lane.run(divmod, 7, 0)
    lane.close()


async def test_giving_up_the_wait_does_not_stop_a_call_that_has_begun() -> None:
    lane, loop = Lane("lane"), asyncio.get_running_loop()
    begun, may_end = asyncio.Event(), threading.Event()
    done: list[bool] = []

    def call() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        done.append(True)

    wait = asyncio.create_task(lane.run(call))
    await begun.wait()
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    may_end.set()
    assert await lane.run(lambda: list(done)) == [True]
    lane.close()


async def test_closing_waits_for_the_call_that_has_begun_and_drops_the_others() -> None:
    lane, loop = Lane("lane"), asyncio.get_running_loop()
    begun, may_end = asyncio.Event(), threading.Event()
    done: list[int] = []

    def call(number: int) -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        done.append(number)

    first, second = (lane.submit(call, number) for number in range(2))
    await begun.wait()
    # The second is dropped while the first still runs: only then may that end.
    second.add_done_callback(lambda _: may_end.set())
    lane.close()
    assert done == [0]
    assert first.done()
    assert second.cancelled()
