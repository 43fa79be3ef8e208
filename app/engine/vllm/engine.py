"""The engine on vLLM's `AsyncLLM`: one process for this class, further ones for the model.

The plot: find the model's folder, build the engine arguments, load, then translate requests and
outputs between softserve's language and vLLM's. `vllm` itself is imported inside functions, after
`prepare_environment`, because it reads its environment when it is imported.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from copy import copy
from dataclasses import replace
from math import ceil
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import ValidationError

from app.engine.generation import Chat, GenerationChunk, Structure
from app.engine.model.decoder_tokens import DecoderTokens, decoder_tokens
from app.engine.model.find import base_names, check_model_folder, find_model
from app.engine.model.precision import INT8_METHOD, Device, WeightFormat, choose_format
from app.engine.proof import prove
from app.engine.protocol import AdapterFiles, Architecture, Decoding, EngineInfo, Prompt, Weights
from app.engine.vllm.architecture import NO_PLUGIN, describe_architecture, why_vllm_runs_no_loras
from app.engine.vllm.arguments import (
    check_tool_parser,
    joined_arguments,
    parse_engine_arguments,
)
from app.engine.vllm.calls import DIED_MESSAGE, answer_of
from app.engine.vllm.device import this_device
from app.engine.vllm.encoder_decoder import (
    check_precision,
    check_served,
    encoder_decoder_arguments,
    encoder_decoder_input,
    is_encoder_decoder,
)
from app.engine.vllm.environment import loads_plugin, prepare_cpu_environment, prepare_environment
from app.engine.vllm.fork_server import start_fork_server
from app.engine.vllm.loras import LoRAs, engine_rank, withdraw_metric
from app.engine.vllm.outputs import chunk_of, tell_limit
from app.engine.vllm.soft_prompts import SoftPrompts
from app.engine.vllm.structures import Structures, compiled_structure
from app.engine.vllm.threads import run_in_daemon_thread
from app.engine.vllm.tokenizer import Tokenizer
from app.errors import EngineDied, EngineStarting, InvalidRequest, ModelNotLoadable, ServerFull
from app.settings import Settings
from softserve.schema.controls import BEAMS, CONTROLS, STRUCTURES, Sampling

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.inputs.engine import EngineInput
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.engine.async_llm import AsyncLLM

    from app.engine.vllm.beams import Beams
    from app.engine.vllm.openai import VLLMOpenAI

log = structlog.get_logger(__name__)

WORKER = "app.engine.plugin.worker.Worker"
GIB = 1 << 30
STOP_TIMEOUT_SECONDS = 10.0


class VLLMEngine:
    """`Engine` on vLLM. Parallelism, executors and speculative decoding are vLLM's own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._llm: AsyncLLM | None = None
        self._tokenizer: Tokenizer
        self._name: str
        self._weight_format: WeightFormat
        self._loras: LoRAs
        self._soft_prompts: SoftPrompts
        self._openai: VLLMOpenAI
        self._structures: Structures | None = None
        self._decoder: DecoderTokens | None = None
        self._beams: Beams | None = None
        self._info: EngineInfo | None = None
        self._architecture: Architecture | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineStarting
        return self._info

    @property
    def architecture(self) -> Architecture:
        if self._architecture is None:
            raise EngineStarting
        return self._architecture

    @property
    def died(self) -> bool:
        return self._llm is not None and bool(self._llm.errored)

    async def ping(self, *, is_busy: bool) -> None:
        # Through the workers, where most of what can hang is; but after each call they wait for the
        # next one in a loop for a second, which is half a core where nothing else is done.
        if is_busy:
            await answer_of(self.llm, self.llm.collective_rpc("check_health"))
        else:
            await answer_of(self.llm, self.llm.is_sleeping())

    async def start(self) -> None:
        await run_in_daemon_thread(self._load)
        self._architecture = await _with_unadapted(self.architecture, self.llm)
        self._info = await _describe(self._name, self._weight_format, self.llm, self._decoder)
        await prove(self)

    async def stop(self) -> None:
        # Forget it here: otherwise its destructor runs when the interpreter is half gone.
        llm, self._llm = self._llm, None
        if llm is not None:
            # It would log that its engine has ended, as a failure.
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown, STOP_TIMEOUT_SECONDS)
        if self._structures is not None:
            await self._structures.stop()

    def _load(self) -> None:
        prepare_environment(self._settings)
        with _interrupts_blocked():
            start_fork_server(self._settings)
        check_tool_parser(self._settings.tool_parser)
        self._name, folder = find_model(self._settings)
        check_model_folder(folder)
        chosen = choose_format(self._settings.precision, folder, this_device())
        log.info("precision", precision=chosen.precision, made=chosen.made, reason=chosen.reason)
        self._weight_format = chosen
        with _interrupts_blocked():
            self._llm = _start_async_llm(folder, self._settings)
        from app.engine.vllm.detokenizer import keep_prompts_out_of_completions

        self._decoder = decoder_tokens(folder) if is_encoder_decoder(folder) else None
        keep_prompts_out_of_completions(has_encoder=self._decoder is not None)
        self._tokenizer = _tokenizer_of(folder, self._llm.model_config)
        withdraw_metric(self._llm)
        self._loras = LoRAs(self._llm)
        self._soft_prompts = SoftPrompts(self._llm.model_config.dtype)
        self._structures = Structures(self._tokenizer, self._llm.model_config.get_vocab_size())
        self._architecture = describe_architecture(
            base_names(self._settings, folder), self._llm.vllm_config, self._settings
        )
        self._openai = self._make_openai()
        if self._decoder is not None:
            self._beams = self._make_beams(self._decoder)
        # What is loaded now stays: keep the garbage collector from walking it again and again.
        gc.collect()
        gc.freeze()

    @property
    def openai(self) -> "VLLMOpenAI":
        return self._openai

    def _make_openai(self) -> "VLLMOpenAI":
        from app.engine.vllm.openai import VLLMOpenAI

        return VLLMOpenAI(self, self._settings.tool_parser)

    def _make_beams(self, decoder: DecoderTokens) -> "Beams":
        from vllm.sampling_params import SamplingParams

        from app.engine.vllm.beams import Beams

        # What vLLM takes for the end of any other completion.
        params = SamplingParams()
        params.update_from_generation_config(
            self.llm.input_processor.generation_config_fields,
            self.llm.renderer.get_eos_token_id(),
        )
        return Beams(
            self.outputs,
            self.llm.tokenizer,
            self.llm.model_config.get_vocab_size(),
            decoder,
            params.all_stop_token_ids,
        )

    @property
    def special_tokens(self) -> frozenset[str]:
        return self._tokenizer.special_tokens

    def ids_of_special_tokens(self, texts: Iterable[str]) -> list[int]:
        """The ids of those texts that are special tokens."""
        return self._tokenizer.ids_of_special_tokens(texts)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return await self._tokenizer.tokenize(text, add_special_tokens=add_special_tokens)

    async def fewest_tokens(self, text: str) -> int:
        return await self._tokenizer.fewest_tokens(text)

    def chat_prompt(self, chat: Chat) -> str:
        if self._decoder is not None:
            raise InvalidRequest(
                "an encoder-decoder model has no chat template: write the whole prompt yourself "
                f"and leave {chat.asked_by} out",
                param=chat.asked_by,
            )
        return self._tokenizer.chat_prompt(chat)

    async def check_structure(self, sampling: Sampling) -> None:
        if (structure := compiled_structure(sampling)) is not None:
            assert self._structures is not None, "the engine has not started"
            await self._structures.check(structure)

    def token_text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id)

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        if adapter.kind == "lora":
            await self._loras.load(adapter)
        else:
            await asyncio.to_thread(self._soft_prompts.load, adapter)

    async def unload_adapter(self, adapter: AdapterFiles) -> None:
        if adapter.kind == "lora":
            await self._loras.unload(adapter.digest)
        else:
            self._soft_prompts.unload(adapter.digest)

    async def generate(
        self, request_id: str, prompt: Prompt, decoding: Decoding
    ) -> AsyncGenerator[GenerationChunk]:
        if decoding.sampling.num_beams > 1:
            assert self._beams is not None, "the model has no encoder"
            async with aclosing(self._beams.generate(request_id, prompt, decoding)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        # A special token is not in the text, where stop strings are looked for.
        stop_ids = self.ids_of_special_tokens(decoding.sampling.stop)
        params = _sampling_params(decoding.sampling, decoding.logprobs, stop_ids)
        async for output in self.outputs(request_id, prompt, params, decoding.priority):
            for completion in output.outputs:
                yield chunk_of(prompt, output, completion, decoding.logprobs)

    async def pause(self, request_id: str, prompt_index: int) -> None:
        await self._call_for_prompt("softserve_pause", request_id, prompt_index)

    async def resume(self, request_id: str, prompt_index: int) -> None:
        await self._call_for_prompt("softserve_resume", request_id, prompt_index)

    async def abort(self, request_id: str, prompt_index: int) -> None:
        if self._beams is not None:
            self._beams.abort(request_id, prompt_index)
        await self.llm.abort(_prompt_id(request_id, prompt_index))

    async def abort_all(self) -> None:
        if self._beams is not None:
            self._beams.abort_all()
        paused = self.llm.pause_generation(mode="abort", clear_cache=False)
        await answer_of(self.llm, paused)

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        from vllm.sampling_params import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=-1, flat_logprobs=True, detokenize=False
        )
        distribution = np.full(self.info.vocabulary_size, -np.inf, dtype=np.float32)
        async for output in self.outputs(request_id, prompt, params):
            # The chosen token comes first and once more at its rank: the same value twice.
            scores = output.outputs[0].logprobs
            distribution[np.asarray(scores.token_ids)] = scores.logprobs
        return distribution

    async def outputs(
        self, request_id: str, prompt: Prompt, params: "SamplingParams", priority: int = 0
    ) -> AsyncGenerator["RequestOutput"]:
        """vLLM's outputs, its errors translated."""
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        outputs = self.llm.generate(
            self._engine_input(prompt, params),
            self._with_space_in_front(prompt, params),
            _prompt_id(request_id, prompt.index),
            lora_request=self._loras.request(prompt.lora),
            # vLLM takes the lowest first.
            priority=-priority,
        )
        forced_eos = () if self._decoder is None else self._decoder.last_of(params)
        try:
            async for output in outputs:
                if forced_eos:
                    tell_limit(output, params, forced_eos)
                yield output
        except EngineDeadError as error:
            raise EngineDied(DIED_MESSAGE) from error
        except GracefulHTTPError as error:
            raise ServerFull("the engine's queue is full: try again") from error
        except VLLMClientError as error:
            raise InvalidRequest(f"the engine refuses the request: {error}") from error
        finally:
            await outputs.aclose()

    def _with_space_in_front(self, prompt: Prompt, params: "SamplingParams") -> "SamplingParams":
        """Where the first space of a completion is left out of its text, a choice has one.

        That is so of a text that begins, in tokens that are pieces of text.
        """
        from vllm.sampling_params import StructuredOutputsParams

        structure = params.structured_outputs
        begins = self._decoder is not None and not prompt.decoder_ids
        if not (structure and structure.choice and begins and self._tokenizer.has_sentence_pieces):
            return params
        as_they_are = [text for text in structure.choice if not text.startswith(" ")]
        choice = [*(f" {text}" for text in structure.choice), *as_they_are]
        params = copy(params)
        params.structured_outputs = StructuredOutputsParams(choice=choice)
        return params

    def _engine_input(self, prompt: Prompt, params: "SamplingParams") -> "EngineInput":
        window = self.info.encoder_window
        if window is not None and len(prompt.token_ids) + prompt.num_virtual_tokens > window:
            # It would die: there are no positions for these.
            raise InvalidRequest(
                f"the engine refuses the request: its encoder takes {window:,} tokens"
            )

        from vllm.inputs.engine import tokens_input

        if self._decoder is not None:
            decoder_ids = self._decoder.prompt(prompt.decoder_ids, params)
            if (digest := prompt.soft_prompt) is None:
                return encoder_decoder_input(prompt.token_ids, decoder_ids)
            rows = self._soft_prompts.rows(digest)
            return encoder_decoder_input(prompt.token_ids, decoder_ids, digest, rows)
        if prompt.soft_prompt is None:
            return tokens_input(prompt.token_ids)
        return self._soft_prompts.input(prompt.token_ids, prompt.soft_prompt, prompt.task)

    async def _call_for_prompt(self, method: str, request_id: str, prompt_index: int) -> None:
        """Call a method of vLLM's engine core with the requests that a prompt has become there."""
        name = _prompt_id(request_id, prompt_index)
        internal_ids = list(self.llm.output_processor.external_req_ids.get(name, ()))
        if internal_ids:
            call = self.llm.engine_core.call_utility_async(method, internal_ids)
            await answer_of(self.llm, call)

    @property
    def llm(self) -> "AsyncLLM":
        """vLLM's own, once it is there."""
        assert self._llm is not None, "the engine has not started"
        return self._llm


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal's group, but none that is started meanwhile.

    A blocked signal is inherited by the engine's processes, so that they outlive it and running
    requests can finish.
    """
    # Python's resource tracker would unblock it again when it starts: let it be running.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _start_async_llm(folder: Path, settings: Settings) -> "AsyncLLM":
    from vllm.v1.engine.async_llm import AsyncLLM

    config = engine_config(folder, settings)
    # A folder without one is refused now, not after its weights are loaded.
    _tokenizer_of(folder, config.model_config)
    try:
        return AsyncLLM.from_vllm_config(config)
    except Exception as error:
        raise ModelNotLoadable(
            f"vLLM could not load {folder}: {_reason(error)} (the engine's own error is above)"
        ) from error


def engine_config(folder: Path, settings: Settings, **changes: Any) -> "VllmConfig":
    """vLLM's configuration for these settings; `changes` are engine arguments that come last.

    Raises:
        InvalidEngineArgument: an `--engine-arg` that cannot be.
        ModelNotLoadable: vLLM cannot serve this model, or not so.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    device = this_device()
    if is_encoder_decoder(folder):
        check_served(folder, settings.encoder_window, settings.context_window)
        if not loads_plugin():
            raise ModelNotLoadable(f"{folder} needs softserve's plugin, and {NO_PLUGIN}")
    given = parse_engine_arguments(settings.engine_arg, AsyncEngineArgs)
    arguments = joined_arguments(engine_arguments(folder, settings, device), given) | changes
    if is_encoder_decoder(folder):
        check_precision(folder, arguments["quantization"])
    if device.is_cpu:
        prepare_cpu_environment(eager=bool(arguments["enforce_eager"]))
    if arguments.get("quantization") == INT8_METHOD and not loads_plugin():
        raise ModelNotLoadable(f"--precision int8 needs softserve's plugin, and {NO_PLUGIN}")
    try:
        config = _engine_config(arguments)
        if config.lora_config and why_vllm_runs_no_loras(config.model_config):
            config = _engine_config(arguments | {"enable_lora": False})
    # vLLM refuses a model or an argument with whatever its check happens to raise.
    except Exception as error:
        raise ModelNotLoadable(f"vLLM cannot serve {folder}: {_reason(error)}") from error
    if config.model_config.quantization == INT8_METHOD and config.model_config.get_num_experts():
        raise ModelNotLoadable(
            f"{folder} is a mixture of experts, which --precision int8 cannot quantize: use bf16"
        )
    return config


def _tokenizer_of(folder: Path, config: "ModelConfig") -> Tokenizer:
    from vllm.tokenizers import cached_tokenizer_from_config

    advice = "copy the tokenizer's files (tokenizer.json, tokenizer_config.json) there"
    try:
        # Not `AsyncLLM.get_tokenizer`: that one copies itself, for half a second, whenever a second
        # caller comes before the first is done.
        tokenizer = Tokenizer(cached_tokenizer_from_config(config))
        makes_tokens = tokenizer.makes_tokens
    except Exception as error:
        raise ModelNotLoadable(
            f"the tokenizer of {folder} cannot be used ({_reason(error)}): {advice}"
        ) from error
    if not makes_tokens:
        raise ModelNotLoadable(f"{folder} has no tokenizer that knows any word: {advice}")
    return tokenizer


def _engine_config(arguments: dict[str, Any]) -> "VllmConfig":
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    # As app/engine/vllm/structure_trial.py tries them.
    structured_outputs = StructuredOutputsConfig(backend="guidance")
    all_arguments = AsyncEngineArgs(**arguments, structured_outputs_config=structured_outputs)
    # vLLM's batch sizes on a large GPU are those of a server only where it is told of one.
    return all_arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)


def engine_arguments(folder: Path, settings: Settings, device: Device) -> dict[str, Any]:
    """vLLM's engine arguments for these settings, before any `--engine-arg`."""
    weight_format = choose_format(settings.precision, folder, device)
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": weight_format.dtype,
        "quantization": weight_format.quantization,
        "worker_extension_cls": WORKER,
        "max_model_len": settings.context_window,
        # The whole distribution, for POST /inspect.
        "max_logprobs": -1,
        "shutdown_timeout": ceil(settings.drain_timeout_seconds),
        # Compiling gains 12 % on a CPU and makes the start 80 s longer.
        "enforce_eager": device.is_cpu,
    }
    # Without the plugin, vLLM's LoRAs on a CPU answer base requests wrongly.
    if settings.max_loras and loads_plugin():
        arguments |= {
            "enable_lora": True,
            "max_loras": settings.max_loras,
            "max_cpu_loras": max(settings.max_loras, settings.max_loaded_adapters),
            "max_lora_rank": engine_rank(settings.max_lora_rank),
        }
    if settings.max_virtual_tokens:
        # There is no encoder to profile, and no item that would be worth keeping.
        arguments |= {"skip_mm_profiling": True, "mm_processor_cache_gb": 0}
    if is_encoder_decoder(folder):
        windows = (settings.encoder_window, settings.context_window)
        arguments |= encoder_decoder_arguments(folder, *windows)
        if device.is_cpu:
            # Blocks are gathered whole, used or not.
            arguments["block_size"] = 32
    kv_cache_gib = settings.kv_cache_gib or (2.0 if device.is_cpu else None)
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
    return arguments


async def _with_unadapted(architecture: Architecture, llm: "AsyncLLM") -> Architecture:
    """The architecture with the modules that no worker adds LoRAs to."""
    if architecture.no_loras is not None:
        return architecture
    names = list(architecture.modules)
    adapted = await llm.collective_rpc("softserve_adapted_modules", args=(names,))
    return replace(architecture, unadapted=frozenset(names).difference(*adapted))


async def _describe(
    name: str, weight_format: WeightFormat, llm: "AsyncLLM", decoder: DecoderTokens | None
) -> EngineInfo:
    import vllm
    from vllm.platforms import current_platform

    # Each worker holds a part of the model.
    reports = await llm.collective_rpc("softserve_memory")
    memory = {part: sum(report[part] for report in reports) for part in reports[0]}
    model, scheduler = llm.model_config, llm.vllm_config.scheduler_config
    return EngineInfo(
        model=name,
        device=current_platform.get_device_name(),
        dtype=str(model.dtype).removeprefix("torch."),
        weights=Weights(
            precision=weight_format.precision,
            made=weight_format.made,
            linear_bytes=memory["linear_weight_bytes"],
            other_bytes=memory["other_weight_bytes"],
        ),
        kv_cache_bytes=memory["kv_cache_bytes"],
        context_window=model.max_model_len,
        vocabulary_size=model.get_vocab_size(),
        max_running_sequences=scheduler.max_num_seqs,
        schedules_by_priority=scheduler.policy == "priority",
        pauses_completions=_can_pause(llm.vllm_config),
        lora_kernel=await _lora_kernel(llm),
        engine="vllm",
        engine_version=vllm.__version__,
        encoder_window=None if decoder is None else model.hf_config.encoder_window,
        forced_bos_token_id=None if decoder is None else decoder.forced_bos,
    )


async def _lora_kernel(llm: "AsyncLLM") -> str | None:
    """What multiplies with LoRAs on a CPU. All workers of a machine have the same."""
    if llm.vllm_config.lora_config is None:
        return None
    kernel: str | None = (await llm.collective_rpc("softserve_lora_kernel"))[0]
    return kernel


def _can_pause(config: "VllmConfig") -> bool:
    """Whether app/engine/plugin/pausing.py is there, and knows all places of a request."""
    return (
        loads_plugin()
        and config.scheduler_config.scheduler_cls is None
        and config.kv_transfer_config is None
        and config.parallel_config.data_parallel_size == 1
    )


def _reason(error: Exception) -> str:
    """The first sentence of an error."""
    text = str(error)
    if isinstance(error, ValidationError):
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
    first_line = text.strip().split("\n")[0]
    return first_line.split(". ")[0] or type(error).__name__


def _prompt_id(request_id: str, prompt_index: int) -> str:
    return f"{request_id}-{prompt_index}"


# What vLLM calls otherwise.
VLLM_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


def _sampling_params(
    sampling: Sampling, logprobs: int | None, stop_token_ids: list[int]
) -> "SamplingParams":
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    names = [name for name in CONTROLS if name not in {*STRUCTURES, *BEAMS}]
    controls = {VLLM_NAMES.get(name, name): getattr(sampling, name) for name in names}
    return SamplingParams(
        **controls | {"top_k": sampling.top_k or 0, "stop": list(sampling.stop)},
        stop_token_ids=stop_token_ids,
        structured_outputs=_structured_outputs(sampling),
        logprobs=logprobs,
        output_kind=RequestOutputKind.DELTA,
    )


def _structured_outputs(sampling: Sampling) -> "StructuredOutputsParams | None":
    from vllm.sampling_params import StructuredOutputsParams

    match compiled_structure(sampling):
        case None:
            return None
        case Structure(kind="json_schema", text=schema):
            return StructuredOutputsParams(json=schema)
        case _:
            return StructuredOutputsParams(regex=sampling.regex, choice=sampling.choice)
