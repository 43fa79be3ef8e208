"""Proof before ready: one short request along every path that an engine says it has.

An engine can load a model and then die at the first request along some path, with the requests of
everybody. It is better that this happens before `ready`, and with the name of the path.
"""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import structlog
from safetensors.numpy import save_file

from app.engine.generation import resolve_sampling
from app.engine.protocol import AdapterFiles, Architecture, Decoding, Engine, Prompt
from app.errors import AdapterRejected, EngineDied, ModelNotLoadable
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

log = structlog.get_logger(__name__)

REQUEST_ID = "proof"
LORA, SOFT_PROMPT = "proof-lora", "proof-soft-prompt"
DECODING = Decoding(resolve_sampling(max_new_tokens=2), logprobs=1)


async def prove(engine: Engine) -> None:
    """Have a started engine answer along each path.

    Raises:
        ModelNotLoadable: it died on one of them, which the sentence names.
    """
    base = Prompt(0, await engine.tokenize("Hello"))
    await _prove_path(engine, base, "of the base model: see its own error above")
    with_adapter = {
        "lora": (replace(base, lora=LORA), "with a lora: start the server with --max-loras 0"),
        "soft_prompt": (
            replace(base, soft_prompt=SOFT_PROMPT, num_virtual_tokens=1),
            "with a soft prompt: start the server with --max-virtual-tokens 0",
        ),
    }
    async with _adapters(engine) as adapters:
        for adapter in adapters:
            await _prove_path(engine, *with_adapter[adapter.kind])


async def _prove_path(engine: Engine, prompt: Prompt, which: str) -> None:
    """What /generate asks of an engine, and what /inspect does; `which` request, and the advice."""
    try:
        async with aclosing(engine.generate(REQUEST_ID, prompt, DECODING)) as chunks:
            async for _ in chunks:
                pass
        await engine.next_token_logprobs(REQUEST_ID, prompt)
    except EngineDied as error:
        raise ModelNotLoadable(
            f"the engine loads {engine.info.model}, and dies at a request {which}"
        ) from error


@asynccontextmanager
async def _adapters(engine: Engine) -> AsyncIterator[list[AdapterFiles]]:
    """The smallest adapter of each kind that the engine takes, loaded; they change nothing."""
    loaded = []
    with TemporaryDirectory(prefix="softserve-proof-") as folder:
        for adapter in _write_adapters(engine.architecture, Path(folder)):
            try:
                await engine.load_adapter(adapter)
            except AdapterRejected as error:
                log.warning("a path is not proven", kind=adapter.kind, why=error.message)
            else:
                loaded.append(adapter)
        yield loaded
        for adapter in loaded:
            await engine.unload_adapter(adapter)


def _write_adapters(architecture: Architecture, folder: Path) -> list[AdapterFiles]:
    adapters = []
    linear = next(
        (
            name
            for name, module in architecture.modules.items()
            if module.kind == "linear" and name not in architecture.unadapted
        ),
        None,
    )
    if architecture.no_loras is None and linear is not None:
        module, last_part = architecture.modules[linear], linear.rpartition(".")[2]
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [last_part]}
        tensors = {
            f"base_model.model.{linear}.lora_A.weight": (1, module.in_features),
            f"base_model.model.{linear}.lora_B.weight": (module.out_features, 1),
        }
        adapters.append(AdapterFiles(LORA, "lora", _write(folder / LORA, config, tensors)))
    if architecture.no_soft_prompts is None:
        config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1}
        tensors = {"prompt_embeddings": (1, architecture.hidden_size)}
        written = _write(folder / SOFT_PROMPT, config, tensors)
        adapters.append(AdapterFiles(SOFT_PROMPT, "soft_prompt", written))
    return adapters


def _write(folder: Path, config: dict[str, object], tensors: dict[str, tuple[int, int]]) -> Path:
    """A PEFT folder whose tensors, by name and shape, are all zero."""
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(
        {name: np.zeros(shape, dtype=np.float32) for name, shape in tensors.items()},
        folder / WEIGHTS_FILE,
    )
    return folder
