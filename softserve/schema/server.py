"""`GET /info` and `GET /health/...`: what is loaded, and whether requests are taken."""

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt


class Limits(BaseModel):
    """The limits on one request and on the work in flight; `GET /info` shows them."""

    max_prompts: PositiveInt = Field(32, description="Prompts in one request.", examples=[32])
    max_messages: PositiveInt = Field(256, description="Messages in one request.", examples=[256])
    max_n: PositiveInt = Field(16, description="Completions of one prompt.", examples=[16])
    max_stop_strings: PositiveInt = Field(
        8, description="Stop strings in one request.", examples=[8]
    )
    max_stop_length: PositiveInt = Field(
        128, description="Characters in one stop string.", examples=[128]
    )
    max_structure_length: PositiveInt = Field(
        16_384,
        description="Characters in one json_schema, regex or choice.",
        examples=[16_384],
    )
    max_body_bytes: PositiveInt = Field(
        1_048_576, description="Bytes in one request body.", examples=[1_048_576]
    )
    max_virtual_tokens: NonNegativeInt = Field(
        256, description="Virtual tokens of one soft prompt; 0 turns them off.", examples=[256]
    )
    max_lora_rank: PositiveInt = Field(32, description="The rank of one LoRA.", examples=[32])
    max_adapter_bytes: PositiveInt = Field(
        1 << 30, description="Bytes in the files of one adapter.", examples=[1 << 30]
    )
    max_sequences_in_flight: PositiveInt = Field(
        256,
        description="Completions generated or waiting at once, over all requests; beyond, 503.",
        examples=[256],
    )
    max_waiting_prompt_tokens: PositiveInt = Field(
        131_072,
        description="Tokens of all prompts that wait for the engine; beyond, 503.",
        examples=[131_072],
    )
    max_timeout_seconds: float | None = Field(
        3600.0,
        gt=0,
        description="The most that a request's timeout_seconds may be, and what one without has.",
        examples=[3600.0],
    )


class WeightsOut(BaseModel):
    """How the model's weights are held in memory."""

    precision: str = Field(description="Their precision.", examples=["int8"])
    made: str = Field(
        description="How they came to be in it; the default model's were held in 4 bits before.",
        examples=["int8 weight-only (per channel), quantized at load"],
    )
    linear_bytes: int = Field(description="Bytes of the linear layers.", examples=[106_790_400])
    other_bytes: int = Field(
        description="Bytes of embeddings, norms and the output head.", examples=[143_992_544]
    )


class ModelInfo(BaseModel):
    """What is loaded."""

    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    device: str = Field(description="What it runs on.", examples=["cpu"])
    dtype: str = Field(
        description="The type of activations, and of weights that are not quantized.",
        examples=["float32"],
    )
    weights: WeightsOut = Field(description="How the weights are held.")
    kv_cache_bytes: int = Field(description="Bytes of the KV cache.", examples=[2_147_483_648])
    context_window: int = Field(
        description="Tokens in prompt and completion; of an encoder-decoder model, those of its "
        "decoder.",
        examples=[8192],
    )
    encoder_window: int | None = Field(
        None,
        description="Of an encoder-decoder model: tokens in a prompt and its soft prompt.",
        examples=[None],
    )
    forced_bos_token_id: int | None = Field(
        None,
        description="Of an encoder-decoder model that forces it: the first token of a completion, "
        "where a request has no `decoder_prompt`.",
        examples=[None],
    )
    vocabulary_size: int = Field(description="Tokens that it knows.", examples=[49152])
    max_running_sequences: int = Field(
        description="Completions that the engine generates at a time; the others wait.",
        examples=[256],
    )
    schedules_by_priority: bool = Field(
        description="Whether more important requests go first.", examples=[False]
    )
    pauses_completions: bool = Field(
        description="Whether the engine can pause a completion whose reader is slow.",
        examples=[True],
    )
    lora_kernel: str | None = Field(
        None,
        description="What multiplies with LoRAs on a CPU: `native` is compiled for it, `torch` is "
        "slower. Null on a GPU, and without LoRAs.",
        examples=["native"],
    )
    engine: str = Field(description="The engine.", examples=["vllm"])
    engine_version: str = Field(description="The engine's version.", examples=["0.32.0"])
    server_version: str = Field(description="softserve's version.", examples=["0.1.0"])
    limits: Limits = Field(description="The limits in force.")


class Health(BaseModel):
    """Whether the server lives, takes requests, or ends."""

    status: str = Field(description="`live`, `ready` or `draining`.", examples=["ready"])
