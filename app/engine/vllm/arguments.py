"""`--engine-arg NAME=VALUE`: any argument of vLLM's engine that softserve does not set itself."""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any

from app.errors import InvalidEngineArgument

# Each of these has a flag of its own, or must stay as it is for softserve to keep its promises.
OWNED = {
    "model": "use --model",
    "dtype": "use --precision",
    "quantization": "use --precision",
    "worker_extension_cls": "GET /info reads the memory in use through it",
    "max_model_len": "use --context-window",
    "kv_cache_memory_bytes": "use --kv-cache-gib",
    "shutdown_timeout": "use --drain-timeout-seconds",
    "served_model_name": "use --served-model-name",
    "max_logprobs": "POST /inspect needs the whole distribution",
    "logprobs_mode": "logprobs are those of the model, before the sampling controls",
    "structured_outputs_config": "softserve tries structures in the backend that it has chosen",
    "disable_log_stats": "GET /metrics and the timings need them",
}


def parse_engine_arguments(texts: Iterable[str], arguments_class: type) -> dict[str, Any]:
    """Parse NAME=VALUE texts; VALUE is JSON where it parses as such, else a string.

    `arguments_class` is vLLM's dataclass of engine arguments. Names may be written as its flags are
    (`tensor-parallel-size`).

    Raises:
        InvalidEngineArgument: no `=`, a name that vLLM does not know, or one that softserve sets.
    """
    known = {field.name for field in dataclasses.fields(arguments_class)}
    arguments = {}
    for text in texts:
        name, separator, value = _split(text)
        if not separator:
            raise InvalidEngineArgument(f"--engine-arg {text!r} has no value: write NAME=VALUE")
        if name in OWNED:
            raise InvalidEngineArgument(f"--engine-arg {name} is softserve's own: {OWNED[name]}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InvalidEngineArgument(f"vLLM has no engine argument {name!r}{hint}")
        arguments[name] = _parse_value(value)
    return arguments


def joined_arguments(ours: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """softserve's arguments and the operator's, which count where both are: of several, both do."""
    joined = ours | given
    for name in ours.keys() & given.keys():
        match ours[name], given[name]:
            case dict(), dict():
                joined[name] = ours[name] | given[name]
            case list(), list():
                joined[name] = ours[name] + given[name]
    return joined


def check_tool_parser(name: str | None) -> None:
    """Raises `InvalidEngineArgument` where vLLM has no such parser."""
    if name is None:
        return
    from vllm.tool_parsers import ToolParserManager

    known = ToolParserManager.list_registered()
    if name not in known:
        raise InvalidEngineArgument(
            f"vLLM has no tool parser {name!r}: choose one of {', '.join(sorted(known))}"
        )


def names_of(texts: Iterable[str]) -> set[str]:
    """The arguments' names, whether vLLM knows them or not."""
    return {_split(text)[0] for text in texts}


def _split(text: str) -> tuple[str, str, str]:
    name, separator, value = text.partition("=")
    return name.removeprefix("--").replace("-", "_"), separator, value


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
