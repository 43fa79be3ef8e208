"""From texts to tokens, with tokenizers that are made here."""

from collections.abc import Iterable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Rules
from transformers import PreTrainedTokenizerFast

from app.engine.generation import Chat
from app.engine.vllm.tokenizer import Tokenizer
from app.errors import InvalidRequest
from softserve.schema.prompts import Message, Role

UNKNOWN = "<unk>"
NAMED = {"unk_token": UNKNOWN, "bos_token": "<s>", "eos_token": "</s>"}
WORDS = [UNKNOWN, "<s>", "</s>", "<tool>", "[gMASK]", "hello", "there"]


def made(in_front: str = "", behind: str = "", **fields: Any) -> Tokenizer:
    """Every word is a token; these special ones are put around every text."""
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


@pytest.mark.parametrize(
    ("words", "makes_tokens"), [([], False), (["Hi"], False), (["you,"], True), (["你好!"], True)]
)
def test_a_tokenizer_without_a_vocabulary_makes_no_tokens(
    words: list[str], makes_tokens: bool
) -> None:
    rules = Rules(
        models.WordLevel({word: i for i, word in enumerate([UNKNOWN, *words])}, unk_token=UNKNOWN)
    )
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rules, **NAMED))

    assert tokenizer.makes_tokens is makes_tokens


def test_a_tokenizer_that_drops_what_it_does_not_know_makes_no_tokens() -> None:
    rules = Rules(models.BPE({}, []))

    assert not Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rules)).makes_tokens


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


ALL = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[model]"
NO_SYSTEM = "{% for m in messages if m.role == 'user' %}[user] {{ m.content }} {% endfor %}[model]"
FIRST = "[user] {{ messages[0].content }} [model]"
DEFAULT_SYSTEM = (
    "[system] {{ messages[0].content if messages[0].role == 'system' else 'Be kind.' }} "
    "[user] {{ messages[-1].content }} [model]"
)
IN_CAPITALS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim | upper }} {% endfor %}[model]"
)
PARTS = "{% for part in messages[-1].content %}{{ part.text }}{% endfor %}"
WRITE_IT = "write the whole prompt yourself and leave use_chat_template out"
ADVICE = "leave the system message out, and put what it says into the user's"


@pytest.mark.parametrize(
    ("template", "system", "text"),
    [
        (ALL, None, "[user] Hello [model]"),
        (ALL, "Be brief.", "[system] Be brief. [user] Hello [model]"),
        (ALL, "", "[system]  [user] Hello [model]"),
        (NO_SYSTEM, None, "[user] Hello [model]"),
        (FIRST, None, "[user] Hello [model]"),
        (DEFAULT_SYSTEM, None, "[system] Be kind. [user] Hello [model]"),
        (DEFAULT_SYSTEM, "Be kind.", "[system] Be kind. [user] Hello [model]"),
        (IN_CAPITALS, " Be brief.\n", "[system] BE BRIEF. [user] HELLO [model]"),
    ],
)
def test_a_chat_template_shows_every_message(template: str, system: str | None, text: str) -> None:
    chat = Chat.of(("system", system), ("user", "Hello"))
    assert made(chat_template=template).chat_prompt(chat) == text


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (NO_SYSTEM, "Be brief.", f"leaves out the system message: {ADVICE}"),
        # Its text is there all the same.
        (NO_SYSTEM, "Hello", f"leaves out the system message: {ADVICE}"),
        (NO_SYSTEM, "user", f"leaves out the system message: {ADVICE}"),
        (FIRST, "Be brief.", f"leaves out the user message: {ADVICE}"),
        (PARTS, None, f"leaves out the user message: {WRITE_IT}"),
    ],
)
def test_a_chat_template_that_drops_a_message_is_refused(
    template: str, system: str | None, message: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        made(chat_template=template).chat_prompt(Chat.of(("system", system), ("user", "Hello")))
    assert raised.value.message == f"the model's chat template {message}"
    assert raised.value.param == "use_chat_template"


SAID: list[tuple[Role, str]] = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
TURNS = Chat(tuple(Message(role=role, content=content) for role, content in SAID))


def test_a_conversation_is_in_the_chat_template() -> None:
    text = "[user] Hi [assistant] Hello [user] Bye [model]"
    assert made(chat_template=ALL).chat_prompt(TURNS) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "this model has no chat template: write the whole prompt yourself and leave messages"),
        (DEFAULT_SYSTEM, "the model's chat template leaves out the user message: write the whole"),
        ("{{ raise_exception('no') }}", "the model's chat template refuses these messages (no): "),
    ],
)
def test_a_conversation_that_the_template_cannot_show(template: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        made(chat_template=template).chat_prompt(TURNS)
    assert raised.value.message.startswith(message)
    assert raised.value.param == "messages"


ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def bytes_and(
    *words: str, alphabet: Iterable[str] = ALPHABET, normalizer: Any = None, added: Any = "<|x|>"
) -> Tokenizer:
    """Every byte is a token, and each of these words."""
    rules = Rules(models.BPE({word: i for i, word in enumerate([*alphabet, *words])}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        rules.normalizer = normalizer
    rules.add_special_tokens([added])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rules))


async def test_a_text_has_as_many_tokens_as_the_longest_of_them_take_at_the_least() -> None:
    tokenizer = bytes_and("Ġplan", "x" * 100)

    assert await tokenizer.fewest_tokens("a" * 1_000_001) == 10_001
    assert await tokenizer.fewest_tokens("short") == 0


async def test_what_counts_is_the_text_that_the_tokenizer_makes_of_it() -> None:
    spaces_to_one = normalizers.Replace(Regex(" {2,}"), " ")

    assert await bytes_and("x" * 100).fewest_tokens(" " * 10_000) == 100
    assert await bytes_and("x" * 100, normalizer=spaces_to_one).fewest_tokens(" " * 10_000) == 1


async def test_only_the_bytes_of_the_text_have_to_be_tokens() -> None:
    tokenizer = bytes_and("x" * 100, alphabet="aÃ©")

    assert await tokenizer.fewest_tokens("é" * 10_000) == 200
    assert await tokenizer.fewest_tokens("aé" * 5_000) == 150
    assert await tokenizer.fewest_tokens("e" * 10_000) == 0


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(made(), id="unknown words are one token"),
        pytest.param(bytes_and(alphabet="abc"), id="a byte that is no token is left out"),
        pytest.param(bytes_and(added=AddedToken("<x>", lstrip=True)), id="a token takes spaces"),
    ],
)
async def test_a_token_that_can_stand_for_any_number_of_characters(tokenizer: Tokenizer) -> None:
    assert await tokenizer.fewest_tokens(" " * 10_000) == 0
