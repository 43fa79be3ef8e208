"""The model's tokenizer: from texts to tokens, and what it adds to them by itself."""

import asyncio
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from math import ceil
from typing import Any

from app.engine.generation import Chat
from app.errors import InvalidRequest

SHORT_TEXT_LENGTH = 4096
# Pre-tokenizers that leave spaces out, as the `tokenizers` library writes them.
STEPS_THAT_DROP = ('"Removed"', '"Whitespace', '"BertPreTokenizer"', '"CharDelimiterSplit"')
# In several scripts: a small vocabulary may have one of them.
PLAIN_TEXT = "Hello, 1 you, 你好!"


class Tokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def makes_tokens(self) -> bool:
        """Whether it knows anything of a plain text; without its files, a tokenizer does not."""
        token_ids = self._tokenizer.encode(PLAIN_TEXT, add_special_tokens=False)
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        return any(token_id != unknown for token_id in token_ids)

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        return frozenset(self._tokenizer.all_special_tokens) | {
            token.content for token in added if token.special
        }

    @cached_property
    def rules(self) -> str | None:
        """A fast tokenizer's in JSON, as the `tokenizers` library reads them; None of any other."""
        from transformers import TokenizersBackend

        if not isinstance(self._tokenizer, TokenizersBackend):
            return None
        rules = for_structures(self._tokenizer.backend_tokenizer)
        rules.no_padding()
        rules.no_truncation()
        text: str = rules.to_str()
        return text

    @cached_property
    def has_sentence_pieces(self) -> bool:
        """Whether its tokens are pieces of text and no bytes, as T5's.

        Then there are characters that no token has, and a space before a text is no part of it.
        """
        rules = getattr(self._tokenizer, "backend_tokenizer", None)
        return rules is not None and _replacement(rules) is not None

    def missing_characters(self, text: str) -> str:
        """Those of a text that are no token of their own, where tokens are pieces of text."""
        rules = self._tokenizer.backend_tokenizer
        pieces = {each: _replacement(rules) if each == " " else each for each in text}
        return "".join(each for each in pieces if rules.token_to_id(pieces[each]) is None)

    @property
    def size(self) -> int:
        return len(self._tokenizer)

    @property
    def end(self) -> int | None:
        """The id of the end-of-sequence token."""
        token_id: int | None = self._tokenizer.eos_token_id
        return token_id

    def ids_of_special_tokens(self, texts: Iterable[str]) -> list[int]:
        """The ids of those texts that are special tokens."""
        special = [text for text in texts if text in self.special_tokens]
        return [self._tokenizer.convert_tokens_to_ids(text) for text in special]

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        encode = partial(
            self._tokenizer.encode, text, add_special_tokens=add_special_tokens, verbose=False
        )
        # In a thread where that takes longer than the way there and back.
        token_ids: list[int] = (
            encode() if len(text) <= SHORT_TEXT_LENGTH else await asyncio.to_thread(encode)
        )
        num_in_front = len(self._ids_in_front) if add_special_tokens else 0
        # A text that begins with them itself, as a chat that is written by hand, has them once.
        if token_ids[num_in_front : 2 * num_in_front] == self._ids_in_front:
            return token_ids[num_in_front:]
        return token_ids

    async def fewest_tokens(self, text: str) -> int:
        if len(text) <= SHORT_TEXT_LENGTH:
            return 0
        return await asyncio.to_thread(self._fewest_tokens, text)

    def _fewest_tokens(self, text: str) -> int:
        from tokenizers.normalizers import ByteLevel

        if self._longest_token is None:
            return 0
        rules = self._tokenizer.backend_tokenizer
        taken = text if rules.normalizer is None else rules.normalizer.normalize_str(text)
        if not rules.model.byte_fallback:
            # Each byte becomes the character that stands for it in the vocabulary.
            taken = ByteLevel().normalize_str(taken)
            if any(rules.token_to_id(byte) is None for byte in set(taken)):
                return 0
        return ceil(len(taken) / self._longest_token)

    @cached_property
    def _longest_token(self) -> int | None:
        """The most characters that one token can stand for, where every byte has a token.

        None where that has no limit: where a tokenizer leaves characters out, or takes all unknown
        ones that follow each other for one token.
        """
        from tokenizers import models

        rules = getattr(self._tokenizer, "backend_tokenizer", None)
        if rules is None or not isinstance(rules.model, models.BPE):
            return None
        vocabulary = rules.get_vocab()
        steps = "" if rules.pre_tokenizer is None else rules.pre_tokenizer.__getstate__().decode()
        has_bytes = (
            all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
            if rules.model.byte_fallback
            else '"ByteLevel"' in steps
        )
        drops = any(step in steps for step in STEPS_THAT_DROP) or any(
            token.lstrip or token.rstrip for token in rules.get_added_tokens_decoder().values()
        )
        return max(map(len, vocabulary)) if has_bytes and not drops else None

    def chat_prompt(self, chat: Chat) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequest(
                f"this model has no chat template: {_write_it_yourself(chat)}", param=chat.asked_by
            )
        self._check_template_shows(chat)
        return self._in_chat_template(chat)

    def _check_template_shows(self, chat: Chat) -> None:
        """Raises `InvalidRequest` where the template drops a message without a word."""
        roles = [message.role for message in chat.messages]
        # Digits stay as they are in whatever a template does to a text.
        marks = [f"{number:020}" for number, _ in enumerate(roles, start=730_915_826)]
        text = self._in_chat_template(
            replace(chat, messages=Chat.of(*zip(roles, marks, strict=True)).messages)
        )
        for role, mark in zip(roles, marks, strict=True):
            if mark not in text:
                advice = (
                    "leave the system message out, and put what it says into the user's"
                    if "system" in roles
                    else _write_it_yourself(chat)
                )
                raise InvalidRequest(
                    f"the model's chat template leaves out the {role} message: {advice}",
                    param=chat.asked_by,
                )

    def _in_chat_template(self, chat: Chat) -> str:
        """The messages, and the beginning of the answer."""
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": each.role, "content": each.content} for each in chat.messages],
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages ({error}): take turns of user "
                f"and assistant, without a system message, or {_write_it_yourself(chat)}",
                param=chat.asked_by,
            ) from error
        return text

    @cached_property
    def _ids_in_front(self) -> list[int]:
        """What the tokenizer puts in front of every text: of most models, nothing or one token."""
        plain = self._tokenizer.encode(PLAIN_TEXT, add_special_tokens=False)
        whole: list[int] = self._tokenizer.encode(PLAIN_TEXT)
        starts = range(len(whole) - len(plain) + 1)
        return whole[: next((i for i in starts if whole[i : i + len(plain)] == plain), 0)]

    def token_text(self, token_id: int) -> str:
        text: str = self._tokenizer.decode([token_id])
        return text


def for_structures(rules: Any) -> Any:
    """A copy of a tokenizer's rules, as llguidance has to be given them.

    Of SentencePiece's tokens it wants a decoder that says which character stands for a space, and
    makes tokens of any part of a text: there a space in front is one.
    """
    from tokenizers import decoders, normalizers, pre_tokenizers

    rules = copy(rules)
    if (replacement := _replacement(rules)) is not None:
        rules.normalizer = normalizers.Replace(" ", replacement)
        rules.pre_tokenizer = pre_tokenizers.Sequence([])
        steps = [decoders.Replace(replacement, " "), decoders.ByteFallback(), decoders.Fuse()]
        rules.decoder = decoders.Sequence(steps)
    return rules


def _replacement(rules: Any) -> str | None:
    """What stands for a space in tokens that are pieces of text, else None."""
    from tokenizers import decoders

    decoder = rules.decoder
    return decoder.replacement if isinstance(decoder, decoders.Metaspace) else None


def _write_it_yourself(chat: Chat) -> str:
    return f"write the whole prompt yourself and leave {chat.asked_by} out"
