"""Why something was not done: a class for each kind of reason, and the sentence for a person."""

from typing import ClassVar

from softserve.schema.errors import ErrorDetail


class ClientError(Exception):
    """The root. `message` says what to do.

    `nothing_began`: the server has surely not begun with it, so that it can be tried again.
    """

    nothing_began: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotAnUpload(ClientError):
    """What is to be uploaded is not the files of an adapter, or cannot be read."""


class Unreachable(ClientError):
    """There is no connection to the server."""

    nothing_began = True


class Interrupted(ClientError):
    """The connection ended, or was silent for too long. What the server has done is not known."""


class NotSoftserve(ClientError):
    """Something answers, but not as softserve does."""


class Refused(ClientError):
    """The server's own error: its sentence, its name for it, and the field at fault, if one is."""

    def __init__(
        self,
        message: str,
        *,
        type: str,
        param: str | None = None,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.param = param
        # None where it came in a stream, whose status was spent.
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(Refused):
    """The request contradicts itself, or asks for what this server cannot do."""


class ContextWindowExceeded(InvalidRequest):
    """The prompt and its completion do not fit into the context window."""


class KeyRequired(Refused):
    """A key is needed, or this one is not known."""


class NotPermitted(Refused):
    """The key lacks the role, or may not use the name."""


class NotFound(Refused):
    """No such adapter, template, key, version or path."""


class Conflict(Refused):
    """It contradicts what is there."""


class Rejected(Refused):
    """The files are not an adapter, or a template, that can be served."""


class TooLarge(Refused):
    """Over the server's limit of bytes."""


class QuotaExceeded(Refused):
    """The key has used what it may for now."""

    nothing_began = True


class Unavailable(Refused):
    """The server cannot do it now, and another try may succeed."""


class ServerFull(Unavailable):
    """As much work is in flight as the server admits."""

    nothing_began = True


class EngineStarting(Unavailable):
    """The model is still loading."""

    nothing_began = True


class ServerDraining(Unavailable):
    """The server ends; the next one may be there soon."""

    nothing_began = True


class EngineDown(Unavailable):
    """The engine does not answer, or has died, perhaps while it worked on this."""


class RequestTimedOut(Unavailable):
    """Its `timeout_seconds` were over before the engine came to it."""


class StoreUnavailable(Unavailable):
    """The disk of the store is full, or cannot be written."""


class OriginUnavailable(Unavailable):
    """The origin that replicas share versions through is out of reach, or damaged."""


class ServerFailed(Refused):
    """A defect of the server; its log has the reason."""


# By the server's names for them; any other is `Refused`.
CLASSES: dict[str, type[Refused]] = {
    "invalid_request": InvalidRequest,
    "context_window_exceeded": ContextWindowExceeded,
    "key_required": KeyRequired,
    "not_permitted": NotPermitted,
    "not_found": NotFound,
    "key_not_found": NotFound,
    "adapter_not_found": NotFound,
    "template_not_found": NotFound,
    "key_conflict": Conflict,
    "adapter_conflict": Conflict,
    "template_conflict": Conflict,
    "adapter_rejected": Rejected,
    "template_rejected": Rejected,
    "body_too_large": TooLarge,
    "adapter_too_large": TooLarge,
    "quota_exceeded": QuotaExceeded,
    "server_full": ServerFull,
    "too_many_connections": ServerFull,
    "engine_starting": EngineStarting,
    "server_draining": ServerDraining,
    "engine_stalled": EngineDown,
    "engine_died": EngineDown,
    "request_timed_out": RequestTimedOut,
    "store_unavailable": StoreUnavailable,
    "origin_unavailable": OriginUnavailable,
    "internal_error": ServerFailed,
}


def refusal(
    detail: ErrorDetail, status: int | None = None, retry_after_seconds: float | None = None
) -> Refused:
    """The error that the server told."""
    return CLASSES.get(detail.type, Refused)(
        detail.message,
        type=detail.type,
        param=detail.param,
        status=status,
        retry_after_seconds=retry_after_seconds,
    )
