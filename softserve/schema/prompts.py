"""What is completed: texts, the messages of a conversation, or tokens. A body has one of them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from softserve.schema.fields import (
    Body,
    Count,
    NonEmptyText,
    OneOrMore,
    Text,
    one_list_or_more,
    one_or_more,
)

Role = Literal["system", "user", "assistant"]


class Message(Body):
    """One message of a conversation."""

    role: Role = Field(description="Who says it.", examples=["user"])
    content: Text = Field(description="What is said.", examples=["Tell me the capital of France."])


Conversation = Annotated[list[Message], Field(min_length=1)]
TokenIds = Annotated[list[Count], Field(min_length=1)]

# Not unions: an error would be told once for each of their members.
Prompts = Annotated[
    list[NonEmptyText], Field(min_length=1), one_or_more(str, "a text"), OneOrMore()
]
Conversations = Annotated[
    list[Conversation], Field(min_length=1), BeforeValidator(one_list_or_more), OneOrMore()
]
TokenPrompts = Annotated[
    list[TokenIds], Field(min_length=1), BeforeValidator(one_list_or_more), OneOrMore()
]

PROMPT_FIELDS = ("prompt", "messages", "prompt_token_ids")

SHOWN_MESSAGES = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "Tell me the capital of France."},
]
SHOWN_TOKEN_IDS = [504, 3575, 282, 4649, 314]
