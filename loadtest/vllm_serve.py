"""vLLM's own OpenAI server, on softserve's engine arguments and environment variables.

    SOFTSERVE_CONTEXT_WINDOW=4096 python -m loadtest.vllm_serve --port 9000

The settings are read as softserve reads them (`SOFTSERVE_MODEL`, `SOFTSERVE_KV_CACHE_GIB`, ...),
and turned by softserve's own code into what the engine is given; what is on the command line is
passed on to vLLM. Then this process becomes `python -m vllm.entrypoints.openai.api_server`.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from app.engine.model.find import find_model
from app.engine.vllm.arguments import parse_engine_arguments
from app.engine.vllm.device import this_device
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.settings import Settings

API_SERVER = "vllm.entrypoints.openai.api_server"


def main() -> None:
    settings = Settings()
    prepare_environment(settings)
    name, folder = find_model(settings)
    from vllm.engine.arg_utils import AsyncEngineArgs

    device = this_device()
    arguments = engine_arguments(folder, settings, device) | parse_engine_arguments(
        settings.engine_arg, AsyncEngineArgs
    )
    if device.is_cpu:
        prepare_cpu_environment(eager=bool(arguments["enforce_eager"]))
    arguments["served_model_name"] = name
    command = [sys.executable, "-m", API_SERVER, *command_line(arguments), *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606 (a shell would add nothing)


def command_line(arguments: dict[str, Any]) -> Iterator[str]:
    """Engine arguments as vLLM's command line takes them: `--enforce-eager`, `--dtype=float32`."""
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                continue
            case True:
                yield f"--{flag}"
            case False:
                yield f"--no-{flag}"
            case dict() | list():
                yield f"--{flag}={json.dumps(value)}"
            case _:
                yield f"--{flag}={value}"


if __name__ == "__main__":
    main()
