"""Turns, deadlines, priorities, and readers that take their time, through the whole app."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from app.access.caller import ANONYMOUS
from app.engine.generation import GenerationChunk, GenerationRequest, resolve_sampling
from tests.api.support import (
    Served,
    add_lora,
    error_of,
    occupied,
    serving,
    until,
    until_in_flight,
    until_waiting,
)
from tests.fake_engine import FakeEngine

LONG = "x" * 100


async def test_what_is_over_the_engines_places_waits_for_its_turn(engine: FakeEngine) -> None:
    async with serving(engine, max_running_sequences=2) as served:
        engine.hold()
        asked = [asyncio.create_task(served.generate(text)) for text in ("a", "b", "c", "d")]
        await until(lambda: served.admission.places.num_waiting == 2)
        assert (len(engine.open), served.admission.sequences_in_flight) == (2, 4)
        engine.release()
        answers = await asyncio.gather(*asked)
    assert [answer.json()["completions"][0]["text"] for answer in answers] == ["a", "b", "c", "d"]


async def test_the_prompts_of_one_request_take_turns_too(engine: FakeEngine) -> None:
    async with serving(engine, max_running_sequences=1) as served:
        answer = (await served.generate(["a", "b"], n=3, temperature=1)).json()
        assert len(answer["completions"]) == 6
        assert (served.admission.places.num_held, served.admission.sequences_in_flight) == (0, 0)


async def test_an_inspection_takes_its_turn(engine: FakeEngine) -> None:
    async with occupied(engine) as (served, running):
        inspecting = asyncio.create_task(served.inspect("b"))
        await until_waiting(served)
        engine.release()
        assert (await inspecting).status_code == (await running).status_code == 200


async def test_who_leaves_while_waiting_leaves_no_place_behind(engine: FakeEngine) -> None:
    async with occupied(engine) as (served, running):
        leaving = asyncio.create_task(served.generate("b"))
        await until_waiting(served)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until_in_flight(served, 1)
        engine.release()
        await running
        assert (await served.generate("c")).status_code == 200
        assert served.admission.places.num_held == 0


async def test_the_way_a_full_server_says_when(engine: FakeEngine) -> None:
    async with serving(engine, max_sequences_in_flight=2) as served:
        engine.hold()
        running = asyncio.create_task(served.generate(["a", "b"]))
        await until_in_flight(served, 2)
        response = await served.generate()
        assert error_of(response) == (503, "server_full", None)
        assert int(response.headers["retry-after"]) >= 1
        engine.release()
        await running


async def test_prompts_that_wait_are_bounded(engine: FakeEngine) -> None:
    settings = {"max_running_sequences": 1, "max_waiting_prompt_tokens": 30}
    async with serving(engine, **settings) as served:
        engine.hold()
        asked = [asyncio.create_task(served.generate("x" * 20)) for _ in range(2)]
        await until(lambda: served.admission.num_waiting_prompt_tokens == 20)
        response = await served.generate("x" * 60)
        assert error_of(response) == (503, "server_full", None)
        assert "prompts of 20 tokens wait" in response.json()["error"]["message"]
        engine.release()
        await asyncio.gather(*asked)
        assert served.admission.num_waiting_prompt_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_time_is_up_while_it_waits(engine: FakeEngine, stream: bool) -> None:
    async with occupied(engine) as (served, running):
        response = await served.generate("b", timeout_seconds=0.05, stream=stream)
        assert error_of(response) == (503, "request_timed_out", None)
        assert response.headers["retry-after"]
        engine.release()
        await running
        assert await served.requests("generate", "refused") == 1


async def test_an_adapter_that_loads_holds_up_its_own_requests_only(engine: FakeEngine) -> None:
    async with serving(engine, max_loaded_adapters=2, max_running_sequences=1) as served:
        for seed, name in enumerate(("evicted", "loaded", "newest")):
            await add_lora(served, name, seed)
        engine.hold_loads()
        waiting = asyncio.create_task(served.generate("a", adapter="evicted"))
        await until(lambda: len(engine.loads) == 4)
        assert (await served.generate("b")).status_code == 200
        assert (await served.generate("b", adapter="newest")).status_code == 200
        assert not waiting.done()
        engine.release_loads()
        assert (await waiting).status_code == 200


async def test_time_is_up_while_its_adapter_loads(engine: FakeEngine) -> None:
    async with serving(engine, max_loaded_adapters=1) as served:
        for seed, name in enumerate(("evicted", "newest")):
            await add_lora(served, name, seed)
        engine.hold_loads()
        response = await served.generate("b", adapter="evicted", timeout_seconds=0.05)
        assert error_of(response) == (503, "request_timed_out", None)
        engine.release_loads()
        assert (await served.generate("b", adapter="evicted")).status_code == 200


async def test_time_is_up_before_the_first_token(engine: FakeEngine, served: Served) -> None:
    engine.hold(scores=False)
    response = await served.generate("b", timeout_seconds=0.05)
    (completion,) = response.json()["completions"]
    assert (completion["finish_reason"], completion["text"]) == ("timeout", "")


async def test_time_is_up_while_it_runs(engine: FakeEngine) -> None:
    class Slow(FakeEngine):
        async def _go_on(
            self, num_chunks: int, permission: asyncio.Event, aborted: asyncio.Event | None = None
        ) -> None:
            if num_chunks == 3:
                self.hold()
            await super()._go_on(num_chunks, permission, aborted)

    async with serving(Slow()) as served:
        answer = (await served.generate("hello", timeout_seconds=0.2)).json()
        (completion,) = answer["completions"]
        assert (completion["text"], completion["finish_reason"]) == ("hel", "timeout")
        assert answer["usage"]["completion_tokens"] == 3
        assert await served.requests("generate", "success") == 1


async def test_of_several_prompts_those_that_had_no_turn_are_empty(engine: FakeEngine) -> None:
    async with serving(engine, max_running_sequences=1) as served:
        engine.hold()
        answer = (await served.generate(["a", "b"], timeout_seconds=0.1)).json()
        reasons = [completion["finish_reason"] for completion in answer["completions"]]
        assert reasons == ["timeout", "timeout"]
        assert answer["usage"]["prompt_tokens"] == 2


async def test_the_servers_maximum(engine: FakeEngine) -> None:
    async with serving(engine, max_timeout_seconds=0.1) as served:
        response = await served.generate(timeout_seconds=1)
        assert error_of(response) == (422, "invalid_request", "timeout_seconds")
        assert "1 and the server's limit is 0.1" in response.json()["error"]["message"]
        engine.hold()
        (completion,) = (await served.generate()).json()["completions"]
        assert completion["finish_reason"] == "timeout", "what names no time has the maximum"


@pytest.mark.parametrize("seconds", [0, -1, "soon", 1e999])
async def test_a_time_that_is_none(served: Served, seconds: object) -> None:
    body = json.dumps({"prompt": "a", "timeout_seconds": seconds}).encode()
    assert error_of(await served.post_bytes("/generate", body))[2] == "timeout_seconds"


async def test_priority_without_effect_is_refused(served: Served) -> None:
    response = await served.generate(priority=1)
    assert error_of(response) == (422, "invalid_request", "priority")
    assert "--engine-arg scheduling-policy=priority" in response.json()["error"]["message"]


async def test_priority_is_the_keys_to_allow() -> None:
    async with serving(FakeEngine(schedules_by_priority=True)) as served:
        assert error_of(await served.generate(priority=1)) == (403, "not_permitted", "priority")
        assert (await served.generate(priority=-1)).status_code == 200


async def _generating(
    served: Served, **sampling: object
) -> AsyncGenerator[AsyncGenerator[GenerationChunk]]:
    request = GenerationRequest("id", 1, resolve_sampling(**sampling))
    service = served.app.state.service
    async with service.generate(ANONYMOUS, request, [LONG]) as generation:
        yield generation.items


async def test_a_place_is_free_when_the_last_token_is_made(
    served: Served, engine: FakeEngine
) -> None:
    async with aclosing(_generating(served)) as generating:
        chunks = await anext(generating)
        await anext(chunks)
        await until(lambda: len(engine.finished) == 1)
        await until_in_flight(served, 0)
        assert served.admission.places.num_held == 0
        assert served.admission.num_open_requests == 1, "its reader has not read it all"
        assert len([chunk async for chunk in chunks]) == 100


async def test_a_slow_reader_has_its_completion_paused(engine: FakeEngine) -> None:
    async with serving(engine, max_unread_tokens=10) as served:
        async with aclosing(_generating(served)) as generating:
            chunks = await anext(generating)
            read = [await anext(chunks)]
            await until(lambda: len(engine.paused) == 1)
            assert served.admission.places.num_held == 0, "nothing runs for it"
            assert (await served.generate("another")).status_code == 200
            while not engine.num_resumes:
                read.append(await anext(chunks))
                await asyncio.sleep(0.001)
            assert 5 <= len(read) <= 10, "it goes on when half is read"
            read += [chunk async for chunk in chunks]
        assert "".join(chunk.text for chunk in read) == LONG
        assert not engine.paused


async def test_a_paused_completion_waits_for_its_turn(engine: FakeEngine) -> None:
    async with serving(engine, max_unread_tokens=10, max_running_sequences=1) as served:
        async with aclosing(_generating(served)) as generating:
            chunks = await anext(generating)
            read = [await anext(chunks)]
            await until(lambda: len(engine.paused) == 1)
            engine.hold()
            other = asyncio.create_task(served.generate("another"))
            await until(lambda: len(engine.open) == 2)
            read += [await anext(chunks) for _ in range(10)]
            await until_waiting(served)
            assert len(engine.paused) == 1
            engine.release()
            read += [chunk async for chunk in chunks]
            assert (await other).status_code == 200
        assert len(read) == 101


async def test_a_slow_reader_can_have_its_completion_aborted(engine: FakeEngine) -> None:
    async with serving(engine, max_unread_tokens=10, slow_reader="abort") as served:
        async with aclosing(_generating(served)) as generating:
            chunks = await anext(generating)
            await anext(chunks)
            await until_in_flight(served, 0)
            *read, last = [chunk async for chunk in chunks]
        assert last.finish_reason == "abort"
        assert 10 <= len(read) <= 12


async def test_a_paused_completion_ends_at_its_deadline(engine: FakeEngine) -> None:
    async with serving(engine, max_unread_tokens=10, max_timeout_seconds=0.2) as served:
        async with aclosing(_generating(served)) as generating:
            chunks = await anext(generating)
            await anext(chunks)
            await until(lambda: len(engine.paused) == 1)
            await until_in_flight(served, 0)
            *_, last = [chunk async for chunk in chunks]
        assert last.finish_reason == "timeout"


async def test_a_reader_that_leaves_a_paused_completion_leaves_nothing(engine: FakeEngine) -> None:
    async with serving(engine, max_unread_tokens=10) as served:
        async with aclosing(_generating(served)) as generating:
            chunks = await anext(generating)
            await anext(chunks)
            await until(lambda: len(engine.paused) == 1)
        assert (engine.open, served.admission.sequences_in_flight) == ([], 0)
        assert served.admission.num_open_requests == 0


async def test_two_requests_of_one_id_do_not_share_their_fate(
    served: Served, engine: FakeEngine
) -> None:
    engine.hold()
    headers = {"x-request-id": "same"}
    asked = [
        asyncio.create_task(
            served.client.post("/generate", json={"prompt": "a"} | fields, headers=headers)
        )
        for fields in ({}, {"timeout_seconds": 0.1})
    ]
    await until(lambda: len(set(engine.open)) == 2)
    (ended,) = (await asked[1]).json()["completions"]
    assert ended["finish_reason"] == "timeout"
    engine.release()
    (completion,) = (await asked[0]).json()["completions"]
    assert completion["text"] == "a"
