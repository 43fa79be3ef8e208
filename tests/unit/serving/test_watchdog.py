"""The watchdog opens again only what it has closed."""

import asyncio

from app.errors import EngineStalled, ServerDraining
from app.serving.admission import Admission
from app.serving.watchdog import Watchdog
from app.tasks import end
from tests.api.support import until
from tests.fake_engine import FakeEngine


async def test_it_does_not_open_a_server_that_drains_meanwhile(engine: FakeEngine) -> None:
    admission = Admission(max_sequences=1, max_waiting_prompt_tokens=1)
    admission.open(max_running_sequences=1)
    engine.stall()
    watching = asyncio.create_task(Watchdog(engine, admission, timeout_seconds=0.01).run())
    await until(lambda: isinstance(admission.refusal, EngineStalled))

    draining = ServerDraining("the server is shutting down")
    admission.close(draining)
    engine.answer()
    for _ in range(10):
        await asyncio.sleep(0)

    assert admission.refusal is draining
    await end([watching])
