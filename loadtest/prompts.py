"""Prompts of an exact number of tokens, different from each other, the same in every run."""

import random
from collections.abc import Callable
from pathlib import Path

Tokenize = Callable[[str], list[int]]

# Common words, most of them one token in any vocabulary.
TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them these so some her would make like him "
    "into time has look two more write go see number no way could people my than first water been "
    "call who its now find long down day did get come made may part over new sound take only "
    "little work know place year live me back give most very after thing our just name good man "
    "think say great where help through much before line right too mean old any same tell boy "
    "follow came want show also around form three small set put end does another well large must "
    "big even such because turn here why ask went men read need land different home us move try "
    "kind hand picture again change off play spell air away animal house point page letter mother"
)
WORDS = TEXT.split()
MAX_TRIES = 1000


def make_prompts(count: int, num_tokens: int, tokenize: Tokenize, seed: int) -> list[str]:
    """`count` prompts, each of `num_tokens` tokens by `tokenize`."""
    source = random.Random(seed)  # noqa: S311 (repeatable, not secret)
    return [make_prompt(num_tokens, tokenize, source) for _ in range(count)]


def make_prompt(num_tokens: int, tokenize: Tokenize, source: random.Random) -> str:
    """Random words that are `num_tokens` tokens by `tokenize`.

    Raises:
        ValueError: no words come out at exactly so many tokens.
    """
    for _ in range(MAX_TRIES):
        words = source.choices(WORDS, k=num_tokens)
        while words and (excess := len(tokenize(" ".join(words))) - num_tokens) > 0:
            del words[-excess:]
        if words and excess == 0:
            return " ".join(words)
    raise ValueError(f"this tokenizer makes no {num_tokens} tokens of common words: ask for more")


def tokenizer_of(folder: Path) -> Tokenize:
    """As both servers tokenize a prompt: special tokens of the model included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenize(text: str) -> list[int]:
        token_ids: list[int] = tokenizer.encode(text)
        return token_ids

    return tokenize
