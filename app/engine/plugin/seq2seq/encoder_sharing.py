"""Equal encoder inputs are encoded once.

vLLM 0.32 shares what an encoder makes among the requests of other models, but runs it for every
request of an encoder-decoder model. Here requests with the same input, soft prompt and LoRA share
an output, within a step and among those that are not far apart: the beams of a search ask for the
same one in every step, and so do the labels of a template.

vLLM's identifier of an input tells them apart: it has the digests of tokens, soft prompt and LoRA.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.lora.layers import LoRAMapping, LoRAMappingType
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

# Of some dozens of inputs of the usual lengths; of T5's largest model 128 MiB in FP32.
MAX_KEPT_TOKENS = 8192

_execute_encoder = GPUModelRunner._execute_mm_encoder  # noqa: SLF001


def register() -> None:
    """Have vLLM's runner encode only what is new."""
    GPUModelRunner._execute_mm_encoder = _encode_what_is_new  # noqa: SLF001


class Encoded:
    """An encoder's last outputs, (tokens, d_model) each, by the identifiers of their inputs."""

    def __init__(self, max_tokens: int = MAX_KEPT_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._outputs: OrderedDict[str, Tensor] = OrderedDict()

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._outputs

    def put(self, identifier: str, output: Tensor) -> None:
        # It is a part of what was made for all inputs of a step.
        self._outputs[identifier] = output.clone()
        self._num_tokens += len(output)

    def use(self, identifiers: list[str]) -> list[Tensor]:
        """Those of a step; then the ones that have not been used for longest are forgotten."""
        used = [self._outputs[identifier] for identifier in identifiers]
        for identifier in identifiers:
            self._outputs.move_to_end(identifier)
        while self._num_tokens > self._max_tokens:
            _, forgotten = self._outputs.popitem(last=False)
            self._num_tokens -= len(forgotten)
        return used


def _encode_what_is_new(runner: Any, scheduler_output: Any) -> list[Tensor]:
    inputs = scheduler_output.scheduled_encoder_inputs
    if not inputs or not runner.model_config.is_encoder_decoder:
        outputs: list[Tensor] = _execute_encoder(runner, scheduler_output)
        return outputs
    encoded: Encoded = runner.__dict__.setdefault("softserve_encoded", Encoded())
    # In the order of the batch; every request has one input.
    identifiers, _, references = runner._batch_mm_inputs_from_scheduler(scheduler_output)  # noqa: SLF001
    request_ids = [request_id for request_id, _ in references]
    by_identifier = dict(zip(identifiers, request_ids, strict=True))
    new = {each: by_identifier[each] for each in identifiers if each not in encoded}
    only_new = {request_id: inputs[request_id] for request_id in new.values()}
    made = _execute_encoder(runner, replace(scheduler_output, scheduled_encoder_inputs=only_new))
    in_order = sorted(new, key=lambda identifier: request_ids.index(new[identifier]))
    for identifier, output in zip(in_order, made, strict=True):
        encoded.put(identifier, output)
    outputs = encoded.use(identifiers)
    if len(made) < len(outputs) and runner.lora_config is not None:
        lengths = [len(output) for output in outputs]
        _map_loras(runner, request_ids, lengths)
    return outputs


def _map_loras(runner: Any, request_ids: list[str], lengths: list[int]) -> None:
    """Have vLLM know whose LoRA is for which of the encoder's tokens, the shared ones included.

    Of what was new it does; but cross-attention has keys and values of every request.
    """
    batch = runner.input_batch
    lora_ids = [
        int(batch.request_lora_mapping[batch.req_id_to_index[request_id]])
        for request_id in request_ids
    ]
    by_token = [each for each, length in zip(lora_ids, lengths, strict=True) for _ in range(length)]
    requests = {batch.lora_id_to_lora_request[each] for each in lora_ids if each}
    mapping = LoRAMapping(
        tuple(by_token), tuple(lora_ids), is_prefill=True, type=LoRAMappingType.TOWER
    )
    runner.lora_manager.set_active_adapters(requests, mapping)
