"""From texts to tokens, with tokenizers that are made here: one word is one token."""

from typing import Any

import pytest
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Rules
from transformers import PreTrainedTokenizerFast

from app.engine.vllm.tokenizer import Tokenizer

UNKNOWN = "<unk>"
NAMED = {"unk_token": UNKNOWN, "bos_token": "<s>", "eos_token": "</s>"}
WORDS = [UNKNOWN, "<s>", "</s>", "<tool>", "[gMASK]", "hello", "there"]


def made(in_front: str = "", behind: str = "", **fields: Any) -> Tokenizer:
    """A tokenizer that puts these special tokens around every text."""
    rules = Rules(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [*in_front.split(), *behind.split()]
    rules.post_processor = processors.TemplateProcessing(
        single=f"{in_front} $A {behind}".strip(),
        special_tokens=[(token, WORDS.index(token)) for token in around],
    )
    rules.add_tokens([AddedToken("<tool>", special=False)])
    rules.add_special_tokens(["[gMASK]"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rules, **NAMED, **fields))


def words(token_ids: list[int]) -> str:
    return " ".join(WORDS[token_id] for token_id in token_ids)


def test_special_tokens_are_those_that_a_text_leaves_out() -> None:
    assert made().special_tokens == {"<unk>", "<s>", "</s>", "[gMASK]"}


def test_the_ids_of_special_tokens() -> None:
    assert made().ids_of_special_tokens(["hello", "</s>", "<tool>", "[gMASK]", "s>"]) == [2, 4]


@pytest.mark.parametrize(
    ("in_front", "behind", "text", "tokens"),
    [
        ("<s>", "", "hello there", "<s> hello there"),
        ("<s>", "", "<s> hello", "<s> hello"),
        ("<s>", "", "<s>hello", "<s> hello"),
        ("<s>", "", "<s>", "<s>"),
        ("<s>", "", "<s> <s> hello", "<s> <s> hello"),
        ("<s>", "", "hello <s>", "<s> hello <s>"),
        ("<s>", "</s>", "<s> hello", "<s> hello </s>"),
        ("[gMASK] <s>", "", "[gMASK] <s> hello", "[gMASK] <s> hello"),
        ("[gMASK] <s>", "", "<s> hello", "[gMASK] <s> <s> hello"),
        ("", "</s>", "</s> hello", "</s> hello </s>"),
        ("", "", "<s> <s> hello", "<s> <s> hello"),
        ("", "", "hello hello", "hello hello"),
    ],
)
async def test_what_a_tokenizer_puts_in_front_is_there_once(
    in_front: str, behind: str, text: str, tokens: str
) -> None:
    assert words(await made(in_front, behind).tokenize(text)) == tokens


async def test_without_special_tokens_nothing_is_added_or_taken() -> None:
    tokens = await made("<s>").tokenize("<s> <s> hello", add_special_tokens=False)

    assert words(tokens) == "<s> <s> hello"
