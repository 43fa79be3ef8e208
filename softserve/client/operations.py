"""Everything that can be asked of a server, described once for both clients."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

from softserve.client.call import Call, as_model, as_nothing, as_text
from softserve.client.connection import Options
from softserve.client.errors import InvalidRequest
from softserve.client.operation import Group, Link, operation, streaming
from softserve.client.parameters import (
    GenerateParameters,
    IclParameters,
    InspectParameters,
    KeyParameters,
    RenderParameters,
)
from softserve.client.uploads import OnProgress, Upload, files_of
from softserve.schema.adapters import AdapterList, AdapterOut
from softserve.schema.fields import name_refusal
from softserve.schema.generation import GenerateAnswer
from softserve.schema.icl import IclGenerateAnswer, RenderAnswer
from softserve.schema.inspection import InspectAnswer
from softserve.schema.keys import KeyCreated, KeyList, UsageReport
from softserve.schema.server import Health, ModelInfo
from softserve.schema.templates import Template, TemplateList, TemplateOut
from softserve.schema.versions import NameFields, Sticky, Wait

Named = TypeVar("Named", bound=NameFields)

URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 600.0
RETRY_SECONDS = 30.0
MAX_CONNECTIONS = 100

Prompt = str | Sequence[str]
Inputs = Mapping[str, str | Sequence[str]]


class Names(Group[Link], Generic[Link, Named]):
    """What adapters and templates have alike: names, and versions that they point to."""

    _what: str
    _path: str
    _answer_type: type[Named]

    @operation
    def show(self, name: str) -> Call[Named]:
        """One name, and the versions that it has and had."""
        return Call("GET", self._path_of(name), as_model(self._answer_type))

    @operation
    def remove(self, name: str) -> Call[None]:
        """Remove it with its versions, once the requests that use it have ended."""
        return Call("DELETE", self._path_of(name), as_nothing, patient=True)

    @operation
    def rollback(
        self, name: str, version: str | None = None, *, wait: Wait | None = None
    ) -> Call[Named]:
        """Make an older version live again; without `version`, the one before the live one."""
        return self._post(name, "rollback", {"version": version}, wait)

    @operation
    def promote(
        self, name: str, version: str | None = None, *, wait: Wait | None = None
    ) -> Call[Named]:
        """Make the version live that was tried, in a split or as a shadow."""
        return self._post(name, "promote", {"version": version}, wait)

    @operation
    def split(
        self,
        name: str,
        versions: Mapping[str, int],
        *,
        sticky: Sticky = "none",
        wait: Wait | None = None,
    ) -> Call[Named]:
        """Share its requests among versions, by weight; `promote` or `rollback` ends it."""
        return self._post(name, "split", {"versions": dict(versions), "sticky": sticky}, wait)

    @operation
    def shadow(self, name: str, version: str, *, percent: float) -> Call[Named]:
        """Run copies of its requests on a version, and compare them."""
        return self._post(name, "shadow", {"version": version, "percent": percent})

    @operation
    def end_shadow(self, name: str) -> Call[Named]:
        """Have no shadow any more."""
        return Call("DELETE", f"{self._path_of(name)}/shadow", as_model(self._answer_type))

    def _post(
        self, name: str, action: str, body: Mapping[str, Any], wait: Wait | None = None
    ) -> Call[Named]:
        return Call(
            "POST",
            f"{self._path_of(name)}/{action}",
            as_model(self._answer_type),
            _given(body),
            query=_query(wait=wait),
            patient=True,
        )

    def _path_of(self, name: str) -> str:
        return _path(self._path, self._what, name)


class Adapters(Names[Link, AdapterOut]):
    """LoRAs and soft prompts."""

    _what, _path, _answer_type = "an adapter", "/adapters", AdapterOut

    @operation
    def list(self) -> Call[AdapterList]:
        """Every adapter that the key may use."""
        return Call("GET", self._path, as_model(AdapterList))

    @operation
    def upload(
        self,
        name: str,
        source: str | Path,
        *,
        force: bool = False,
        task: int | None = None,
        live: bool = True,
        wait: Wait | None = None,
        on_progress: OnProgress | None = None,
    ) -> Call[AdapterOut]:
        """Send a folder of this machine that PEFT wrote, or an archive of one.

        It answers when the version is checked, loaded and live, or beside the live one; with `wait`
        on every replica that is alive, where several share an origin.
        """
        fields = {"force": "true"} if force else {}
        if task is not None:
            fields["task"] = str(task)
        upload = Upload(files_of(Path(source).expanduser()), fields, on_progress)
        return self._put(name, _query(live, wait), upload=upload)

    @operation
    def add(
        self,
        name: str,
        source: str,
        *,
        revision: str | None = None,
        force: bool = False,
        task: int | None = None,
        live: bool = True,
        wait: Wait | None = None,
    ) -> Call[AdapterOut]:
        """Name a folder on the server's machine, or a hub id, for the server to fetch."""
        body = {"source": source, "revision": revision, "force": force or None, "task": task}
        return self._put(name, _query(live, wait), body=_given(body))

    def _put(self, name: str, query: dict[str, str], **content: Any) -> Call[AdapterOut]:
        return Call(
            "PUT",
            self._path_of(name),
            as_model(AdapterOut),
            query=query,
            patient=True,
            **content,
        )


class Templates(Names[Link, TemplateOut]):
    """Prompt templates for in-context learning."""

    _what, _path, _answer_type = "a template", "/icl/templates", TemplateOut

    @operation
    def list(self) -> Call[TemplateList]:
        """Every template that the key may use."""
        return Call("GET", self._path, as_model(TemplateList))

    @operation
    def add(
        self,
        name: str,
        template: Template | Mapping[str, Any],
        *,
        live: bool = True,
        wait: Wait | None = None,
    ) -> Call[TemplateOut]:
        """Add a template, or a new version of one."""
        return Call(
            "PUT",
            self._path_of(name),
            as_model(TemplateOut),
            body=_template(template),
            query=_query(live, wait),
            patient=True,
        )


class Keys(Group[Link]):
    """Who may use the server."""

    @operation
    def list(self) -> Call[KeyList]:
        """The keys, without their secrets."""
        return Call("GET", "/keys", as_model(KeyList))

    @operation
    def create(self, name: str, **parameters: Unpack[KeyParameters]) -> Call[KeyCreated]:
        """Make a key. Its `secret` is in this answer and nowhere else."""
        return Call("POST", "/keys", as_model(KeyCreated), {"name": name, **parameters})

    @operation
    def revoke(self, name: str) -> Call[None]:
        """End a key: it is refused from the next request on."""
        return Call("DELETE", _path("/keys", "a key", name), as_nothing)


class Server(Group[Link]):
    """A running server.

    `key` is what it asks for, if it asks for one. Requests of one `session` get the same version of
    a name that several share. `timeout_seconds`: how long it may be silent; None: for ever.
    `retry_seconds`: how long a call that the server has not begun is tried again; 0: never.
    """

    connect: Callable[[Options], Link]

    def __init__(
        self,
        url: str = URL,
        key: str | None = None,
        *,
        session: str | None = None,
        timeout_seconds: float | None = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        options = Options(
            url.rstrip("/"), key, session, timeout_seconds, retry_seconds, max_connections
        )
        connection = type(self).connect(options)
        super().__init__(connection)
        self.adapters = Adapters(connection)
        self.templates = Templates(connection)
        self.keys = Keys(connection)

    @operation
    def generate(
        self, prompt: Prompt | None = None, **parameters: Unpack[GenerateParameters]
    ) -> Call[GenerateAnswer]:
        """Complete a prompt, or each of several."""
        return _generation("/generate", GenerateAnswer, prompt, parameters)

    @streaming
    def stream(
        self, prompt: Prompt | None = None, **parameters: Unpack[GenerateParameters]
    ) -> Call[GenerateAnswer]:
        """The same, piece by piece. Leaving the stream ends the generation."""
        body = {**parameters, "stream": True}
        return _generation("/generate", GenerateAnswer, prompt, body)

    @operation
    def inspect(
        self, prompt: str | None = None, **parameters: Unpack[InspectParameters]
    ) -> Call[InspectAnswer]:
        """What the sampling controls do to the next token."""
        return _generation("/inspect", InspectAnswer, prompt, parameters)

    @operation
    def icl(
        self,
        template: str | Template | Mapping[str, Any],
        inputs: Inputs | Sequence[Inputs],
        **parameters: Unpack[IclParameters],
    ) -> Call[IclGenerateAnswer]:
        """Make a prompt of a template, or several, and complete them."""
        return _few_shot("/icl/generate", IclGenerateAnswer, template, inputs, parameters)

    @streaming
    def stream_icl(
        self,
        template: str | Template | Mapping[str, Any],
        inputs: Inputs | Sequence[Inputs],
        **parameters: Unpack[IclParameters],
    ) -> Call[IclGenerateAnswer]:
        """The same, piece by piece. Leaving the stream ends the generation."""
        body = {**parameters, "stream": True}
        return _few_shot("/icl/generate", IclGenerateAnswer, template, inputs, body)

    @operation
    def render(
        self,
        template: str | Template | Mapping[str, Any],
        inputs: Inputs | Sequence[Inputs],
        **parameters: Unpack[RenderParameters],
    ) -> Call[RenderAnswer]:
        """The exact prompts of a template, without completing them."""
        return _few_shot("/icl/render", RenderAnswer, template, inputs, parameters)

    @operation
    def info(self) -> Call[ModelInfo]:
        """What is loaded, and the limits in force."""
        return Call("GET", "/info", as_model(ModelInfo))

    @operation
    def ready(self) -> Call[Health]:
        """Whether requests are taken; else it is refused, and `retry_seconds` long tried again."""
        return Call("GET", "/health/ready", as_model(Health))

    @operation
    def usage(self) -> Call[UsageReport]:
        """Requests and tokens by key and adapter."""
        return Call("GET", "/usage", as_model(UsageReport))

    @operation
    def metrics(self) -> Call[str]:
        """The metrics, as Prometheus reads them."""
        return Call("GET", "/metrics", as_text)

    @operation
    def drain(self) -> Call[Health]:
        """End the server: what runs may finish."""
        return Call("POST", "/drain", as_model(Health))


def _path(family: str, what: str, name: str) -> str:
    if (sentence := name_refusal(what, name)) is not None:
        raise InvalidRequest(sentence, type="invalid_request", param="name")
    return f"{family}/{name}"


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _query(live: bool = True, wait: Wait | None = None) -> dict[str, str]:
    return ({} if live else {"live": "false"}) | ({} if wait is None else {"wait": wait})


def _template(template: str | Template | Mapping[str, Any]) -> Any:
    if isinstance(template, Template):
        return template.model_dump(mode="json", exclude_defaults=True)
    return template


def _generation(
    path: str, model: Any, prompt: Prompt | None, parameters: Mapping[str, Any]
) -> Call[Any]:
    body = dict(parameters) if prompt is None else {"prompt": prompt, **parameters}
    return Call("POST", path, as_model(model), body)


def _few_shot(
    path: str,
    model: Any,
    template: str | Template | Mapping[str, Any],
    inputs: Inputs | Sequence[Inputs],
    parameters: Mapping[str, Any],
) -> Call[Any]:
    body = {"template": _template(template), "inputs": inputs, **parameters}
    return Call("POST", path, as_model(model), body)
