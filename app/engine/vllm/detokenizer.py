"""From tokens to the text of a completion, which never depends on the text of its prompt.

vLLM begins the decoding of a completion with its prompt's tokens, so that a tokenizer which drops
the space before a text's first word keeps it. Where the prompt's own text ends in U+FFFD, the
decoder takes the whole prompt for a character that is not yet complete, and gives it out with the
completion. Here a short text of ours stands in place of the prompt: what the decoder never gets, it
cannot give out.

This module imports vLLM, so it is imported when the engine starts.
"""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from vllm.sampling_params import SamplingParams
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens
from vllm.v1.engine import EngineCoreRequest, detokenizer

# Any word will do that ends in a whole character.
TEXT_IN_FRONT = "a"


class CompletionDetokenizer(detokenizer.FastIncrementalDetokenizer):  # type: ignore[misc]
    """vLLM's detokenizer for tokenizers of the `tokenizers` library, without the prompt."""

    def __init__(self, tokenizer: Any, request: EngineCoreRequest) -> None:
        super().__init__(tokenizer, request)
        text = self.text_in_front(request)
        self.stream = DecodeStream(
            ids=self.tokenizer.encode(text, add_special_tokens=False).ids,
            skip_special_tokens=self.skip_special_tokens,
        )

    def text_in_front(self, request: EngineCoreRequest) -> str:
        return TEXT_IN_FRONT


class DecodedDetokenizer(CompletionDetokenizer):
    """For encoder-decoder models, whose completions begin texts of their own.

    Nothing is in front of one but the token that starts all of them, unless the request has more
    than that and than special tokens, as the code of a language.
    """

    def text_in_front(self, request: EngineCoreRequest) -> str:
        _, *given = request.prompt_token_ids or [0]
        return TEXT_IN_FRONT if self.tokenizer.decode(given, skip_special_tokens=True) else ""


def keep_prompts_out_of_completions(*, has_encoder: bool = False) -> None:
    """Have vLLM use it for every request from now on."""
    detokenizer.FastIncrementalDetokenizer = (
        DecodedDetokenizer if has_encoder else CompletionDetokenizer
    )


def text_of_completion(
    tokenizer: Any, decoder_ids: Sequence[int], token_ids: Sequence[int], ends: Collection[int]
) -> str:
    """The text of tokens behind a decoder's, as vLLM makes it piece by piece."""
    request = EngineCoreRequest(
        request_id="",
        prompt_token_ids=[*decoder_ids],
        mm_features=None,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    made = detokenizer.IncrementalDetokenizer.from_new_request(tokenizer, request)
    made.update([*token_ids], bool(token_ids) and token_ids[-1] in ends)
    text: str = made.get_next_output_text(finished=True, delta=False)
    return text


def texts_of_tokens(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """The text of each token alone, as vLLM tells of it with log probabilities."""
    texts: list[str] = convert_ids_list_to_tokens(tokenizer, [*token_ids])
    return texts
