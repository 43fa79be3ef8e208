"""The one body of every error."""

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What was wrong."""

    type: str = Field(description="A stable name for programs.", examples=["invalid_request"])
    message: str = Field(
        description="A sentence that says what to do.",
        examples=["top_k has no effect at temperature 0: raise the temperature, or leave it out"],
    )
    param: str | None = Field(description="The field at fault, if one is.", examples=["top_k"])
    code: str | None = Field(
        None,
        description="Under `/v1`: the same, in the words of OpenAI's clients.",
        examples=["model_not_found"],
    )


class ErrorAnswer(BaseModel):
    """The one body of every error."""

    error: ErrorDetail = Field(description="What was wrong.")
