"""Encoder-decoder models by transformers and PEFT, for comparison with a server of them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from softserve.schema.checks import CheckReport


class Transformers:
    """A model there, without what its generation_config.json has for requests to transformers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder)

    def complete(
        self, prompt: str, *, model: Any = None, decoder_prompt: str = "", num_tokens: int = 20
    ) -> tuple[list[int], str]:
        """The tokens that are generated, and their text."""
        start = self._start(decoder_prompt)
        token_ids = (model or self.model).generate(
            input_ids=torch.tensor([self.tokenizer.encode(prompt)]),
            decoder_input_ids=torch.tensor([start]),
            max_new_tokens=num_tokens,
            do_sample=False,
            num_beams=1,
            no_repeat_ngram_size=0,
            min_length=0,
        )[0, len(start) :]
        whole = self.tokenizer.decode([*start, *token_ids], skip_special_tokens=True)
        return token_ids.tolist(), whole.removeprefix(decoder_prompt)

    def search(
        self,
        prompt: str,
        *,
        model: Any = None,
        decoder_prompt: str = "",
        n: int = 1,
        **controls: Any,
    ) -> list[tuple[list[int], str, float]]:
        """The tokens of each completion of a beam search, their text and their score."""
        start = self._start(decoder_prompt)
        found = (model or self.model).generate(
            input_ids=torch.tensor([self.tokenizer.encode(prompt)]),
            decoder_input_ids=torch.tensor([start]),
            num_return_sequences=n,
            return_dict_in_generate=True,
            output_scores=True,
            **{"no_repeat_ngram_size": 0, "min_length": 0} | controls,
        )
        lengths = len(start) + (found.beam_indices >= 0).sum(dim=1)
        completions = []
        for row, length, score in zip(
            found.sequences, lengths, found.sequences_scores, strict=True
        ):
            text = self.tokenizer.decode(row[:length], skip_special_tokens=True)
            token_ids = row[len(start) : length].tolist()
            completions.append((token_ids, text.removeprefix(decoder_prompt), float(score)))
        return completions

    def logprob(self, prompt: str, label: str, num_forced: int = 0) -> float:
        """Of a label and the end behind it, without tokens at its beginning that are forced."""
        labels = torch.tensor([self.tokenizer.encode(label)])
        token_ids = torch.tensor([self.tokenizer.encode(prompt)])
        with torch.inference_mode():
            logits = self.model(input_ids=token_ids, labels=labels).logits
        logprobs = logits.log_softmax(dim=-1).gather(2, labels[..., None])
        return float(logprobs[:, num_forced:].sum())

    def _start(self, decoder_prompt: str) -> list[int]:
        """The tokens that the decoder starts with."""
        token_ids = self.tokenizer.encode(decoder_prompt, add_special_tokens=False)
        return [self.model.config.decoder_start_token_id, *token_ids]


def checked_against_peft(adapter: Path, model: Path, prompt: str) -> CheckReport:
    """What `softserve adapter check` says of an adapter that it takes."""
    command = Path(sys.executable).with_name("softserve")
    checked = subprocess.run(
        [
            *(command, "adapter", "check", adapter, "--model", model),
            *("--against-peft", "--prompt", prompt, "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    return CheckReport.model_validate_json(checked.stdout)


def save_lora(folder: Path, base: Path, targets: str | list[str]) -> PeftModel:
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=targets)
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def save_soft_prompt(folder: Path, base: Path) -> PeftModel:
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return model.eval()


def message_of(response: httpx.Response, status: int = 422) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])


def completion(answer: dict[str, Any], index: int = 0) -> tuple[list[int], str]:
    return answer["completions"][index]["token_ids"], answer["completions"][index]["text"]
