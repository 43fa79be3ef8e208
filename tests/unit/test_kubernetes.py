"""deploy/kubernetes: what Helm and Kubernetes' schemas say of it, and what it takes for granted.

No cluster is asked: docs/kubernetes.md says what that leaves open.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute

from app.http.application import create_app
from app.settings import Settings
from softserve import __version__
from tests.chart import CHART, ChartRefusedError, Helm, HelmIsNotHereError, Objects, Values
from tests.deployment import ALERTS, DASHBOARD, OF_EVERY_TARGET, labels_of, metrics_of
from tests.fake_engine import FakeEngine

ROOT = CHART.parents[2]
SCHEMAS = ROOT / "tests" / "custom_resources"
# The oldest that the chart is for, and the newest that is known.
KUBERNETES = ("1.30", "1.37")
ENGINE_ARGUMENTS = ["max-num-seqs=64", 'compilation-config={"level": 0}', "it's=quoted"]
EVERYTHING: Values = {
    "replicas": 2,
    "image": {"pullSecrets": [{"name": "registry"}]},
    "model": "organisation/model",
    "modelTokenSecret": "hub",
    "settings": {
        "max_adapter_bytes": 4_294_967_296,
        "kv_cache_gib": 1.5,
        "open_docs": True,
        "precision": "bf16",
        "engine_arg": ENGINE_ARGUMENTS,
    },
    # A name that YAML would take for a number.
    "keys": {"secret": "123", "allowAnonymous": True},
    "origin": {"url": "s3://bucket/softserve", "credentialsSecret": "bucket"},
    "cache": {"create": True, "storageClassName": "nfs"},
    "service": {"annotations": {"a": "b"}},
    "autoscaling": {
        "kind": "keda",
        "keda": {"serverAddress": "http://prometheus:9090", "triggerAuthentication": "prometheus"},
    },
    "metrics": {
        "open": True,
        "keySecret": "operator",
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}},
    "networkPolicy": {"enabled": True},
    "serviceAccount": {"annotations": {"a": "b"}},
    "env": [{"name": "OTEL_SERVICE_NAME", "value": "softserve"}],
    "volumes": [{"name": "adapters", "persistentVolumeClaim": {"claimName": "adapters"}}],
    "volumeMounts": [{"name": "adapters", "mountPath": "/opt/softserve/adapters"}],
    "podLabels": {"team": "models"},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "fast"},
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
}
ALWAYS = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}
# By name: what is given on top of values.yaml, and the kinds of objects that it makes besides.
VARIANTS: dict[str, tuple[tuple[Values | str, ...], set[str]]] = {
    "cpu": ((), set()),
    "gpu": (("values-gpu.yaml",), set()),
    "hpa": (({"autoscaling": {"kind": "hpa"}},), {"HorizontalPodAutoscaler"}),
    "gpu-hpa": (
        ("values-gpu.yaml", {"autoscaling": {"kind": "hpa"}}),
        {"HorizontalPodAutoscaler"},
    ),
    "everything": (
        (EVERYTHING,),
        {
            *("PersistentVolumeClaim", "ScaledObject", "PodMonitor", "PrometheusRule"),
            *("ConfigMap", "InferencePool", "NetworkPolicy"),
        },
    ),
}
# Settings that have values of their own, or that the chart knows.
OF_THE_CHART = {
    *("model", "port", "admin_key", "keys_file", "allow_anonymous", "open_metrics", "origin"),
    *("adapter_store", "cache_dir", "drain_timeout_seconds"),
}
BOUNDS = {"type", "enum", "items", "minimum", "exclusiveMinimum", "maximum"}


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    try:
        return Helm(tmp_path_factory.mktemp("helm"))
    except HelmIsNotHereError as error:
        pytest.skip(f"nothing has checked deploy/kubernetes: {error}")


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> dict[str, Objects]:
    return {name: helm.render(*given) for name, (given, _) in VARIANTS.items()}


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest, rendered: dict[str, Objects]) -> Objects:
    """Those of each variant."""
    return rendered[request.param]


@pytest.fixture
def everything(rendered: dict[str, Objects]) -> Objects:
    return rendered["everything"]


def of_kind(kind: str, objects: Objects) -> dict[str, Any]:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def pod_of(objects: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind("Deployment", objects)["spec"]["template"]["spec"]
    return spec


def container_of(objects: Objects) -> dict[str, Any]:
    (container,) = pod_of(objects)["containers"]
    found: dict[str, Any] = container
    return found


def environment_of(objects: Objects) -> dict[str, str | None]:
    """Variables by name; None where the value is a Secret's or the pod's."""
    return {each["name"]: each.get("value") for each in container_of(objects)["env"]}


# What Helm and Kubernetes say.


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_has_nothing_to_say(helm: Helm, variant: str) -> None:
    assert "0 chart(s) failed" in helm.lint(*VARIANTS[variant][0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_the_objects_that_it_asks_for(
    rendered: dict[str, Objects], variant: str
) -> None:
    kinds = [each["kind"] for each in rendered[variant]]
    assert sorted(kinds) == sorted(ALWAYS | VARIANTS[variant][1])


def is_custom(each: dict[str, Any]) -> bool:
    return schema_path(each["kind"]).exists()


def schema_path(kind: str) -> Path:
    return SCHEMAS / f"{kind.lower()}.json"


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(objects: Objects, version: str) -> None:
    for each in objects:
        if not is_custom(each):
            assert kubernetes_validate.validate(each, version, strict=True) == version


def test_a_misspelt_field_would_be_found(everything: Objects) -> None:
    deployment = json.loads(json.dumps(of_kind("Deployment", everything)))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenessProbe"]["failureTreshold"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="failureTreshold"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


def test_custom_resources_have_the_fields_of_their_kinds(everything: Objects) -> None:
    custom = [each for each in everything if is_custom(each)]
    assert {each["kind"] for each in custom} == {
        *("ScaledObject", "PodMonitor", "PrometheusRule", "InferencePool"),
    }
    for each in custom:
        schema = json.loads(schema_path(each["kind"]).read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(each, schema, cls=jsonschema.Draft202012Validator)


def test_all_speak_of_the_same_pods(everything: Objects) -> None:
    deployment = of_kind("Deployment", everything)["spec"]
    chosen = deployment["selector"]["matchLabels"]
    assert chosen.items() <= deployment["template"]["metadata"]["labels"].items()
    assert of_kind("Service", everything)["spec"]["selector"] == chosen
    for kind in ("PodDisruptionBudget", "PodMonitor", "InferencePool"):
        assert of_kind(kind, everything)["spec"]["selector"]["matchLabels"] == chosen
    assert of_kind("NetworkPolicy", everything)["spec"]["podSelector"]["matchLabels"] == chosen
    name = of_kind("Deployment", everything)["metadata"]["name"]
    assert of_kind("ScaledObject", everything)["spec"]["scaleTargetRef"]["name"] == name


# Values that are refused.


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"replica": 2}, "'replica' not allowed"),
        ({"keys": {"secrets": "keys"}}, "'secrets' not allowed"),
        ({"settings": {"max_lora": 4}}, "'max_lora' not allowed"),
        ({"settings": {"max_loras": "four"}}, "/settings/max_loras"),
        ({"settings": {"precision": "int4"}}, "/settings/precision"),
        ({"settings": {"admin_key": "secret"}}, "'admin_key' not allowed"),
        ({"autoscaling": {"kind": "vpa"}}, "/autoscaling/kind"),
        ({"replicas": "two"}, "/replicas"),
        ({"keys": {"secret": ""}}, "keys.allowAnonymous"),
        ({"cache": {"claim": "models", "create": True}}, "not both"),
        ({"origin": {"credentialsSecret": "bucket"}}, "set origin.url"),
        ({"resources": {"limits": {"cpu": None}}}, "limitThreads"),
        ({"autoscaling": {"kind": "keda"}}, "autoscaling.keda.serverAddress"),
        ({"autoscaling": {"minReplicas": 9}}, "more than maxReplicas"),
        ({"metrics": {"podMonitor": {"enabled": True}}}, "keySecret"),
        ({"inferencePool": {"enabled": True}}, "endpointPicker.name"),
        (
            {"inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}}},
            "set metrics.open",
        ),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(helm: Helm, values: Values, reason: str) -> None:
    with pytest.raises(ChartRefusedError, match=re.escape(reason)):
        helm.render(values)


def leaves(schema: dict[str, Any], values: Any, path: str = "") -> Iterator[tuple[str, bool, bool]]:
    """Each path in the schema or in the values, and in which of them it is."""
    properties = schema.get("properties", {})
    if not properties or not isinstance(values, dict):
        return
    for name in sorted(properties.keys() | values.keys()):
        yield f"{path}{name}", name in properties, name in values
        yield from leaves(properties.get(name, {}), values.get(name), f"{path}{name}.")


def test_every_value_has_a_default_and_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # Helm's own, and those that the server has defaults of.
    ignored = ("global", "settings.")
    one_sided = [
        path
        for path, in_schema, in_values in leaves(schema, values)
        if in_schema != in_values and not path.startswith(ignored)
    ]
    assert one_sided == []


def settings_schema() -> dict[str, dict[str, Any]]:
    """What values.schema.json has to say of each setting."""
    found = {}
    for name, setting in Settings.model_json_schema()["properties"].items():
        one = setting.get("anyOf", [setting])[0]
        kept = {key: value for key, value in one.items() if key in BOUNDS}
        if "enum" in kept:
            del kept["type"]
        if "items" in kept:
            kept["items"] = {"type": "string"}
        found[name] = kept
    return {name: kept for name, kept in found.items() if name not in OF_THE_CHART}


def test_settings_are_those_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["settings"]["properties"] == settings_schema()


# What the pods take for granted of the server.


def test_the_server_understands_its_environment(
    everything: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment_of(everything).items():
        if name.startswith("SOFTSERVE_"):
            monkeypatch.setenv(name, "from a Secret" if value is None else value)
    settings = Settings()
    assert settings.model == "organisation/model"
    assert settings.max_adapter_bytes == 4_294_967_296
    assert settings.kv_cache_gib == 1.5
    assert settings.open_docs
    assert settings.open_metrics
    assert settings.allow_anonymous
    assert settings.precision == "bf16"
    assert settings.engine_arg == tuple(ENGINE_ARGUMENTS)
    assert settings.drain_timeout_seconds == 120
    assert settings.admin_key is not None


def test_every_variable_is_a_setting(objects: Objects) -> None:
    names = [name for name in environment_of(objects) if name.startswith("SOFTSERVE_")]
    assert names
    # `origin` is not one yet.
    known = Settings.model_fields.keys() | {"origin"}
    assert {name.removeprefix("SOFTSERVE_").lower() for name in names} <= known


def test_an_origin_is_passed_on_where_it_is_set(rendered: dict[str, Objects]) -> None:
    assert environment_of(rendered["everything"])["SOFTSERVE_ORIGIN"] == "s3://bucket/softserve"
    assert container_of(rendered["everything"])["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert "SOFTSERVE_ORIGIN" not in environment_of(rendered["cpu"])
    assert "envFrom" not in container_of(rendered["cpu"])


def test_no_service_becomes_a_setting(objects: Objects) -> None:
    """A Service called softserve would set SOFTSERVE_PORT."""
    assert pod_of(objects)["enableServiceLinks"] is False


def test_a_pod_outlives_its_drain(objects: Objects) -> None:
    """By half a minute: a server whose engine never answers takes no longer."""
    pod = pod_of(objects)
    drain = int(environment_of(objects)["SOFTSERVE_DRAIN_TIMEOUT_SECONDS"] or "")
    sleep = container_of(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] == sleep + drain + 30
    update = of_kind("Deployment", objects)["spec"]["strategy"]["rollingUpdate"]
    assert update["maxUnavailable"] == 0


@cache
def paths() -> set[str]:
    app = create_app(Settings(), FakeEngine(), print, print)
    return {route.path for route in app.routes if isinstance(route, APIRoute)}


def test_what_is_probed_and_scraped_is_there(everything: Objects) -> None:
    container = container_of(everything)
    probed = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert probed == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
    (endpoint,) = of_kind("PodMonitor", everything)["spec"]["podMetricsEndpoints"]
    assert {*probed.values(), endpoint["path"]} <= paths()


def test_the_first_start_may_take_as_long_as_is_said(objects: Objects) -> None:
    probe = container_of(objects)["startupProbe"]
    patience = probe["periodSeconds"] * probe["failureThreshold"]
    assert patience == yaml.safe_load((CHART / "values.yaml").read_text())["startupTimeoutSeconds"]
    assert of_kind("Deployment", objects)["spec"]["progressDeadlineSeconds"] > patience


def test_pods_are_as_the_image_has_it(objects: Objects) -> None:
    image = (ROOT / "Dockerfile").read_text()
    pod, container = pod_of(objects), container_of(objects)
    user, group = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)[0]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["fsGroup"] == int(group)
    written = re.findall(r"^VOLUME (.+)$", image, re.MULTILINE)[0].split()
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    assert {*written, "/tmp", "/dev/shm"} <= mounted  # noqa: S108
    assert environment_of(objects)["HOME"] in mounted
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in image
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_a_gpu_is_asked_for_and_threads_are_not_limited(rendered: dict[str, Objects]) -> None:
    limits = container_of(rendered["gpu"])["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    assert "OMP_NUM_THREADS" not in environment_of(rendered["gpu"])
    assert "OMP_NUM_THREADS" in environment_of(rendered["cpu"])


# What is watched.


def test_dashboard_and_alerts_are_those_of_deploy(everything: Objects) -> None:
    dashboard = of_kind("ConfigMap", everything)["data"]["softserve.json"]
    assert dashboard == DASHBOARD.read_text()
    rules = of_kind("PrometheusRule", everything)["spec"]
    assert rules == yaml.safe_load(ALERTS.read_text())


def test_the_job_is_that_of_the_alerts(everything: Objects) -> None:
    monitor = of_kind("PodMonitor", everything)["spec"]
    labels = of_kind("Deployment", everything)["spec"]["template"]["metadata"]["labels"]
    assert f'up{{job="{labels[monitor["jobLabel"]]}"}}' in ALERTS.read_text()


def test_pods_are_counted_by_a_metric_of_the_server(rendered: dict[str, Objects]) -> None:
    (trigger,) = of_kind("ScaledObject", rendered["everything"])["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    (metric,) = metrics_of(query)
    app = create_app(Settings(), FakeEngine(), print, print)
    assert metric in {family.name for family in app.state.service.metrics.shown.collect()}
    labels = of_kind("PodMonitor", rendered["everything"])["spec"]["podTargetLabels"]
    given = {re.sub(r"[./-]", "_", label) for label in labels} | {"namespace"}
    assert labels_of(query, metric) <= given | OF_EVERY_TARGET
    (of_a_gpu,) = of_kind("HorizontalPodAutoscaler", rendered["gpu-hpa"])["spec"]["metrics"]
    assert of_a_gpu["pods"]["metric"]["name"] == metric


def test_the_chart_is_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


@pytest.mark.parametrize("value", yaml.safe_load((CHART / "values.yaml").read_text()))
def test_every_value_is_documented(value: str) -> None:
    rows = (ROOT / "docs" / "kubernetes.md").read_text().splitlines()
    assert any(row.startswith("| ") and f"`{value}`" in row.split("|")[1] for row in rows)
