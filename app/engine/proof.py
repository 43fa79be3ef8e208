"""Proof before ready: short requests along every path that an engine says it has.

An engine can load a model and then die at the first request along some path, with the requests of
everybody, or load an adapter and answer as if there were none. It is better that this happens
before `ready`, and with the name of the path.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import structlog
from numpy.typing import NDArray
from safetensors.numpy import save_file

from app.engine.effect import Logprobs, measure_effect
from app.engine.generation import resolve_sampling
from app.engine.protocol import AdapterFiles, Architecture, Decoding, Engine, ModuleShape, Prompt
from app.errors import AdapterRejected, EngineDied, ModelNotLoadable
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

log = structlog.get_logger(__name__)

Tensor = NDArray[np.float32]

REQUEST_ID = "proof"
LORA, SOFT_PROMPT = "proof-lora", "proof-soft-prompt"
DECODING = Decoding(resolve_sampling(max_new_tokens=2), logprobs=1)
EXPERTS = ".experts"
LAYER = re.compile(r".*?\.\d+\.")


async def prove(engine: Engine) -> None:
    """Have a started engine answer along each path, and with each adapter otherwise than without.

    Raises:
        ModelNotLoadable: it dies on one of them, or an adapter changes nothing; the sentence names
            the path.
    """
    prompt = Prompt(0, await engine.tokenize("Hello"))
    with _naming_deaths(engine, "of the base model: see its own error above"):
        await _generate(engine, prompt)
        base = await engine.next_token_logprobs(REQUEST_ID, prompt)
    with_adapter = {
        "lora": (
            replace(prompt, lora=LORA),
            "with a lora: start the server with --max-loras 0",
        ),
        "soft_prompt": (
            replace(prompt, soft_prompt=SOFT_PROMPT, num_virtual_tokens=1),
            "with a soft prompt: start the server with --max-virtual-tokens 0",
        ),
    }
    async with _adapters(engine) as adapters:
        for adapter in adapters:
            await _prove_path(engine, base, *with_adapter[adapter.kind])


async def _prove_path(engine: Engine, base: Logprobs, prompt: Prompt, which: str) -> None:
    """What /generate asks of an engine, and what /inspect does; `which` request, and the advice."""
    with _naming_deaths(engine, which):
        await _generate(engine, prompt)
        effect = await measure_effect(engine, REQUEST_ID, prompt, base)
    if not effect.changed:
        raise ModelNotLoadable(
            f"the engine loads {engine.info.model}, and answers as the base model alone at a "
            f"request {which}"
        )


async def _generate(engine: Engine, prompt: Prompt) -> None:
    async with aclosing(engine.generate(REQUEST_ID, prompt, DECODING)) as chunks:
        async for _ in chunks:
            pass


@contextmanager
def _naming_deaths(engine: Engine, which: str) -> Iterator[None]:
    try:
        yield
    except EngineDied as error:
        raise ModelNotLoadable(
            f"the engine loads {engine.info.model}, and dies at a request {which}"
        ) from error


@asynccontextmanager
async def _adapters(engine: Engine) -> AsyncIterator[list[AdapterFiles]]:
    """A small random adapter of each kind that the engine takes, loaded."""
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
    """Of values as large as a model's own: what they change is lost in no precision."""
    random = np.random.default_rng(0)
    adapters = []
    modules = _modules_of_a_layer(architecture)
    if architecture.no_loras is None and modules:
        targets = sorted({name.rpartition(".")[2] for name in modules})
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": targets}
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            half_a = random.standard_normal((1, module.in_features), np.float32)
            half_b = random.standard_normal((module.out_features, 1), np.float32)
            tensors[f"base_model.model.{name}.lora_A.weight"] = half_a / sqrt(module.in_features)
            tensors[f"base_model.model.{name}.lora_B.weight"] = half_b
        adapters.append(AdapterFiles(LORA, "lora", _write(folder / LORA, config, tensors)))
    if architecture.no_soft_prompts is None:
        config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1}
        rows = random.standard_normal((1, architecture.hidden_size), np.float32)
        written = _write(folder / SOFT_PROMPT, config, {"prompt_embeddings": rows})
        adapters.append(AdapterFiles(SOFT_PROMPT, "soft_prompt", written))
    return adapters


def _modules_of_a_layer(architecture: Architecture) -> dict[str, ModuleShape]:
    """The linear modules of the first layer that has any to adapt.

    All of them, because one may change nothing: queries do not where there is one token to look at.
    """
    linear = {
        name: module
        for name, module in architecture.modules.items()
        # vLLM takes experts in forms of its own.
        if module.kind == "linear" and name not in architecture.unadapted and EXPERTS not in name
    }
    first = next(filter(None, map(_layer_of, linear)), "")
    return {name: module for name, module in linear.items() if _layer_of(name) == first}


def _layer_of(name: str) -> str:
    """Up to the first number in a module's name, nothing where there is none."""
    match = LAYER.match(name)
    return "" if match is None else match[0]


def _write(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder
