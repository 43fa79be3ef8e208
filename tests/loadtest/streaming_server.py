"""A small server that streams `/v1/completions`: one word a token, no model.

It appends every request to the file `--record`, as [its process, prompt, tokens asked for]. Of a
completion it generates `--short-by` tokens fewer than it was asked for.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

SECONDS_PER_EVENT = 0.001

Event = dict[str, Any]


def events_of(num_prompt_tokens: int, num_new_tokens: int) -> Iterator[Event]:
    for _ in range(num_new_tokens):
        yield {"choices": [{"index": 0, "text": " word"}], "usage": None}
    usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_new_tokens}
    yield {"choices": [], "usage": usage}


async def complete(record: Path, short_by: int, request: web.Request) -> web.StreamResponse:
    body = await request.json()
    note(record, os.getpid(), body["prompt"], body["max_tokens"])
    num_new_tokens = body["max_tokens"] - short_by
    return await stream(request, events_of(len(body["prompt"].split()), num_new_tokens))


def note(record: Path, *request: object) -> None:
    with record.open("a") as file:
        file.write(json.dumps(request) + "\n")


async def stream(request: web.Request, events: Iterable[Event]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await asyncio.sleep(SECONDS_PER_EVENT)
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def health(request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--short-by", type=int, default=0)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    app = web.Application()
    app.router.add_get("/health", health)
    handler = partial(complete, arguments.record, arguments.short_by)
    app.router.add_post("/v1/completions", handler)
    web.run_app(app, host=arguments.host, port=arguments.port, print=None)


if __name__ == "__main__":
    main()
