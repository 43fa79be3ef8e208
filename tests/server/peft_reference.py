"""Adapters as PEFT saves them, on the default model, and what PEFT itself generates with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from rich.progress import Progress
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from app.engine.model.default import default_model
from app.engine.vllm.architecture import modules_of, without_weights
from app.settings import Settings

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# By name: what PEFT is asked for. Between them: list and string targets, rslora, a rank of its own
# for one kind of module.
LORAS: dict[str, dict[str, Any]] = {
    "rank4": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rank8": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "rank16": {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"},
    "rank32": {
        "r": 32,
        "lora_alpha": 32,
        "target_modules": ALL_LINEAR,
        "rank_pattern": {"down_proj": 4},
    },
}
HIDDEN_SIZE = 576
# The default model's modules, without the model.
SMOLLM2_MODULES = modules_of(
    without_weights(
        AutoConfig.for_model(
            "llama",
            hidden_size=HIDDEN_SIZE,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
        )
    )
)
SOFT_PROMPTS = {"virtual8": 8, "virtual20": 20, "virtual100": 100}


def default_base() -> Any:
    """The default model in FP32, by transformers."""
    model = default_model(Settings().cache_dir, Progress(disable=True))
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


class PeftReference:
    """The default model in FP32 with the adapters of this module, saved below `folder`.

    `change` may change the model's weights before anything is made on top of them.
    """

    def __init__(self, folder: Path, change: Callable[[Any], None] = lambda base: None) -> None:
        self.folder = folder
        model = default_model(Settings().cache_dir, Progress(disable=True))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        base = default_base()
        change(base)
        # Before LoRAs are put into the base model, which they share.
        for name, num_virtual_tokens in SOFT_PROMPTS.items():
            self._make_soft_prompt(base, name, num_virtual_tokens)
        self._model = self._make_loras(base)
        self._embed = base.get_input_embeddings()

    def _make_soft_prompt(self, base: Any, name: str, num_virtual_tokens: int) -> None:
        torch.manual_seed(num_virtual_tokens)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)
        get_peft_model(base, config).save_pretrained(self.folder / name)

    def _make_loras(self, base: Any) -> PeftModel:
        model: Any = None
        for name, options in LORAS.items():
            config = LoraConfig(task_type="CAUSAL_LM", **options)
            if model is None:
                model = get_peft_model(base, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
        generator = torch.Generator().manual_seed(7)
        for parameter_name, weights in model.named_parameters():
            # PEFT begins with B = 0, which changes nothing. (out_features, rank)
            if "lora_B" in parameter_name:
                scale = 0.4 / weights.shape[1]
                weights.data = scale * torch.randn(weights.shape, generator=generator)
        # One folder for each, below the given one.
        model.save_pretrained(self.folder)
        return model.eval()

    def path(self, name: str) -> Path:
        return self.folder / name

    def generate(
        self,
        prompt: str,
        *,
        adapter: str | None = None,
        soft_prompt: str | None = None,
        max_new_tokens: int = 16,
        repetition_penalty: float = 1.0,
    ) -> list[int]:
        """The new token ids of greedy decoding."""
        token_ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        embeddings = self._embeddings(token_ids, soft_prompt)
        options = {
            "inputs_embeds": embeddings,
            "attention_mask": torch.ones(embeddings.shape[:2], dtype=torch.long),
            "do_sample": False,
            "max_new_tokens": max_new_tokens,
            "logits_processor": [_PenalizeText(token_ids, repetition_penalty)],
        }
        with self._adapted(adapter):
            output = self._model.generate(**options)
        new_token_ids: list[int] = output[0].tolist()
        return new_token_ids

    def next_token_logprobs(
        self, prompt: str, *, adapter: str | None = None, soft_prompt: str | None = None
    ) -> torch.Tensor:
        """Of the token after a prompt, in FP64 from the FP32 logits."""
        token_ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        with self._adapted(adapter):
            logits = self._model(inputs_embeds=self._embeddings(token_ids, soft_prompt)).logits
        return logits[0, -1].double().log_softmax(dim=-1)

    def _embeddings(self, token_ids: torch.Tensor, soft_prompt: str | None) -> torch.Tensor:
        embeddings: torch.Tensor = self._embed(token_ids)
        if soft_prompt is None:
            return embeddings
        saved = load_file(self.path(soft_prompt) / "adapter_model.safetensors")
        return torch.cat([saved["prompt_embeddings"][None], embeddings], dim=1)

    @contextmanager
    def _adapted(self, adapter: str | None) -> Iterator[None]:
        if adapter is not None:
            self._model.set_adapter(adapter)
        with nullcontext() if adapter else self._model.disable_adapter(), torch.inference_mode():
            yield


class _PenalizeText(LogitsProcessor):  # type: ignore[misc]
    """A repetition penalty on the prompt's tokens too, which embeddings do not tell."""

    def __init__(self, prompt_ids: torch.Tensor, penalty: float) -> None:
        self._prompt_ids = prompt_ids
        self._penalize = RepetitionPenaltyLogitsProcessor(penalty)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        text = torch.cat([self._prompt_ids, input_ids], dim=1)
        penalized: torch.Tensor = self._penalize(text, scores)
        return penalized
