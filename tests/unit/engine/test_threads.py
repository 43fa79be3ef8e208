"""Work in a daemon thread: awaited like any other, and never waited for at exit."""

import asyncio
import threading

import pytest

from app.engine.vllm.threads import run_in_daemon_thread


async def test_work_is_done_off_the_event_loop() -> None:
    threads: list[threading.Thread] = []
    await run_in_daemon_thread(lambda: threads.append(threading.current_thread()))
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.daemon


async def test_what_it_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run_in_daemon_thread(work)


async def test_leaving_early_harms_nothing() -> None:
    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait()
        done.set()

    waiting = asyncio.create_task(run_in_daemon_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    release.set()
    assert await asyncio.to_thread(done.wait, 60)
