"""Work that must not keep the process alive."""

import asyncio
import threading
from collections.abc import Callable


async def run_in_daemon_thread(work: Callable[[], None]) -> None:
    """Run `work` off the event loop. Unlike `asyncio.to_thread`, exiting does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:  # noqa: BLE001 (it is raised again, where it is awaited)
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, daemon=True, name=work.__qualname__).start()
    await done
