"""Everything that softserve refuses, in the domain's own words.

No error here knows HTTP: `app/http/errors.py` holds the one table from error to status. It has a
row for every class that a request can meet, but for those that are only parents of others.
Each message is shown to the caller as it is, so it says what to do.
"""


class SoftserveError(Exception):
    """The root. `param` names the request field at fault, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(SoftserveError):
    """The request contradicts itself, or asks for what this model cannot do."""


class ContextWindowExceeded(InvalidRequest):
    """The prompt and its completion do not fit into the context window."""


class AdapterError(SoftserveError):
    """Something is wrong with an adapter, or with what is asked of one."""


class AdapterNotFound(AdapterError):
    """No adapter goes by this name, or it has no such version."""


class AdapterRejected(AdapterError):
    """The files are not an adapter that this server can run; the message says why."""


class AdapterTooLarge(AdapterRejected):
    """The files are over a size limit."""


class AdapterConflict(AdapterError):
    """What is asked contradicts what is there: another kind of adapter, nothing to go back to."""


class TemplateError(SoftserveError):
    """Something is wrong with a prompt template, or with what is asked of one."""


class TemplateNotFound(TemplateError):
    """No template goes by this name, or it has no such version."""


class TemplateRejected(TemplateError):
    """It is not a template that can be served; the message says why."""


class TemplateConflict(TemplateError):
    """What is asked contradicts what is there: nothing to go back to."""


class KeyRequired(SoftserveError):
    """What needs a key came without one, or with one that is not known here."""


class NotPermitted(SoftserveError):
    """Who asks may not do this: the key lacks a role or a name, or the request came from a page."""


class KeyNotFound(SoftserveError):
    """No key goes by this name."""


class KeyConflict(SoftserveError):
    """What is asked contradicts the keys that there are, or there is no file for them."""


class TryAgainLater(SoftserveError):
    """Another try may succeed; `retry_after_seconds` is the server's estimate of when."""

    retry_after_seconds: float = 1

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, param=param)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(TryAgainLater):
    """The caller has used up what its key allows for now."""


class Unavailable(TryAgainLater):
    """The server cannot take this request now."""


class ServerFull(Unavailable):
    """As much work is in flight as the server admits."""


class RequestTimedOut(Unavailable):
    """The request's time was up before the engine began to work for it."""


class EngineStarting(Unavailable):
    """The model is still loading."""

    retry_after_seconds = 5

    def __init__(
        self,
        message: str = "the model is still loading: try again in a few seconds",
        *,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)


class ServerDraining(Unavailable):
    """The server finishes what runs and takes nothing new."""

    retry_after_seconds = 5


class StoreUnavailable(Unavailable):
    """The disk that holds a store is full, read-only or failing; nothing has changed."""

    retry_after_seconds = 30


class OriginUnavailable(Unavailable):
    """The origin of versions cannot be reached, or does not have what it should."""

    retry_after_seconds = 5


class EngineStalled(Unavailable):
    """The engine process lives and does not answer; the server takes work again when it does."""

    retry_after_seconds = 5


class EngineDied(Unavailable):
    """The engine process ended; the server will end too, for a supervisor to restart it."""

    retry_after_seconds = 30


class StartError(SoftserveError):
    """The server cannot start: one sentence for the operator, exit code 1."""


class ModelNotFound(StartError):
    """No folder and no hub repository goes by the given name."""


class ModelNotLoadable(StartError):
    """The model is there, but the engine cannot run it."""


class InvalidEngineArgument(StartError):
    """An `--engine-arg` that vLLM does not know, or that softserve sets itself."""


class QuantizationFailed(SoftserveError):
    """A checkpoint cannot be made in INT8: one sentence for the operator, exit code 1."""


class ReferenceFailed(SoftserveError):
    """transformers and PEFT cannot run a model or an adapter, with which an engine is compared."""
