"""vLLM's own OpenAI server, on softserve's engine arguments and environment variables.

    SOFTSERVE_CONTEXT_WINDOW=4096 python -m loadtest.vllm_serve --port 9000

The settings are read as softserve reads them (`SOFTSERVE_MODEL`, `SOFTSERVE_KV_CACHE_GIB`, ...),
and turned by softserve's own code into what the engine is given; what is on the command line is
passed on to vLLM. Then this process becomes `python -m vllm.entrypoints.openai.api_server`, without
softserve's plugin, which vLLM would load as it is installed beside it; INT8 needs it.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from app.engine.model.find import find_model
from app.engine.model.precision import INT8_METHOD
from app.engine.vllm.arguments import parse_engine_arguments
from app.engine.vllm.device import this_device
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.settings import Settings

API_SERVER = "vllm.entrypoints.openai.api_server"


def main() -> None:
    settings = Settings()
    prepare_environment(settings)
    name, arguments = model_and_arguments(settings)
    if this_device().is_cpu:
        prepare_cpu_environment(eager=bool(arguments["enforce_eager"]))
    arguments["served_model_name"] = name
    if arguments["quantization"] != INT8_METHOD:
        os.environ["VLLM_PLUGINS"] = ""
    command = [sys.executable, "-m", API_SERVER, *command_line(arguments), *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606 (a shell would add nothing)


def model_and_arguments(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The served name of the model, and the engine arguments that softserve gives to vLLM.

    vLLM is imported: `prepare_environment` comes first.
    """
    name, folder = find_model(settings)
    from vllm.engine.arg_utils import AsyncEngineArgs

    given = parse_engine_arguments(settings.engine_arg, AsyncEngineArgs)
    return name, engine_arguments(folder, settings, this_device()) | given


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
