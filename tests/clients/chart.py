"""Renders the Helm chart and judges what comes out. Knows where helm is, the schemas of Kubernetes and of the chart."""

import copy
import functools
import json
import os
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from gateway import ROOT, TOOLS

CHART = ROOT / "helm" / "imagegate"
FIXTURES = ROOT / "tests" / "fixtures" / "chart"
HELMS = ("helm3", "helm4")
EXAMPLES = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*-values.yaml"))}
KUBERNETES = ("1.31", "1.34", "1.37")
# A namespace and a release of their own, so that neither is taken for a default.
NAMESPACE, RELEASE = "images", "pictures"

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def helm(*args, version="helm3", stdin=None):
    """Runs helm: its output, or its complaint as an exception."""
    command = [str(TOOLS / version / "helm" / "helm"), *map(str, args)]
    # It is gone before collecting its garbage would pay, and it is started a thousand times.
    env = {**os.environ, "GOGC": "off"}
    finished = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=60)
    if finished.returncode:
        raise Refused(finished.stderr + finished.stdout)
    return finished.stdout


class Refused(Exception):
    """What helm said when it did not render."""


class Rendered:
    """Objects of one rendering, by kind and name."""

    def __init__(self, text):
        self.text = text
        self.objects = [found for found in yaml.load_all(text, Loader=Loader) if found]

    def kinds(self, kind):
        return [found for found in self.objects if found["kind"] == kind]

    def named(self, kind, name):
        (found,) = [found for found in self.kinds(kind) if found["metadata"]["name"] == name]
        return found

    def pods(self):
        """Everything that makes pods: their name and their spec."""
        for found in self.objects:
            if found["kind"] == "Pod":
                yield found["metadata"]["name"], found["spec"]
            elif found["kind"] == "Deployment":
                yield found["metadata"]["name"], found["spec"]["template"]["spec"]

    def pod(self, component):
        """The pod of a Deployment of the release."""
        return self.named("Deployment", f"{RELEASE}-imagegate-{component}")["spec"]["template"]["spec"]

    def container(self, component):
        return self.pod(component)["containers"][0]

    def config(self, component):
        """What imagegate.yaml says."""
        return yaml.load(self.config_text(component), Loader=Loader)

    def config_text(self, component):
        return self.named("ConfigMap", f"{RELEASE}-imagegate-{component}")["data"]["imagegate.yaml"]

    def configs(self):
        return {
            found["metadata"]["name"]: found["data"]["imagegate.yaml"]
            for found in self.kinds("ConfigMap")
            if "imagegate.yaml" in found["data"]
        }


def render(values=None, example=None, version="helm3", kube_version="1.34.0"):
    """The chart with these values, above those of an example."""
    return _render(json.dumps(values or {}, sort_keys=True), example, version, kube_version)


@functools.cache
def _render(values, example, version, kube_version):
    files = ["--values", EXAMPLES[example]] if example else []
    return Rendered(
        helm(
            *["template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kube_version],
            *[*files, "--values", "-"],
            version=version,
            stdin=values,
        )
    )


def refusal(values, **more):
    """Why the chart is not rendered with these values."""
    try:
        render(values, **more)
    except Refused as refused:
        return str(refused)
    raise AssertionError(f"rendered all the same: {values}")


def notes(values=None, example=None):
    """What is printed after an installation. Helm 3 prints it with a cluster only."""
    files = ["--values", EXAMPLES[example]] if example else []
    printed = helm(
        *["install", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=client", *files, "--values", "-"],
        version="helm4",
        stdin=json.dumps(values or {}),
    )
    return printed.partition("\nNOTES:\n")[2]


def merged(*all_values):
    """Values above one another, as helm does it."""
    result = {}
    for values in all_values:
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def at(path, value):
    """`{a: {b: value}}` for `a.b`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


# What Kubernetes takes.


@functools.cache
def _definitions(version):
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return folder, Registry().with_resource("_definitions.json", definitions).crawl()


@functools.cache
def _validator(version, api, kind):
    own = FIXTURES / "crds" / f"{kind.lower()}.json"
    if own.exists():
        return Draft202012Validator(json.loads(own.read_text()))
    folder, registry = _definitions(version)
    # rbac.authorization.k8s.io/v1 is called rbac-v1 there.
    name = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = folder / f"{kind.lower()}-{name}.json"
    assert schema.exists(), f"Kubernetes {version} has no {kind} of {api}, and there is no schema of ours"
    return Draft202012Validator(json.loads(schema.read_text()), registry=registry)


@functools.cache
def _problems(version, text):
    found = json.loads(text)
    errors = _validator(version, found["apiVersion"], found["kind"]).iter_errors(found)
    where = f"{version} {found['kind']}/{found['metadata'].get('name')}"
    return [f"{where} {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


def kubernetes_problems(rendered, versions=KUBERNETES):
    """What Kubernetes would say to the objects, strictly: unknown fields are problems too."""
    texts = [json.dumps(found, sort_keys=True) for found in rendered.objects]
    problems = [problem for version in versions for text in texts for problem in _problems(version, text)]
    keys = [
        (found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in rendered.objects
    ]
    problems += [f"twice: {key}" for key in set(keys) if keys.count(key) > 1]
    for kind, _, name in keys:
        # Services are names in DNS, and everything else here follows them.
        if len(name) > 63:
            problems.append(f"{kind}/{name}: the name is longer than 63")
    return problems


# What values there are.

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


def resolve(schema):
    """The schema behind a $ref."""
    return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def leaves(schema=SCHEMA, path=""):
    """Every key that has no keys of the chart's own below it: `(path, schema)`."""
    for key, below in schema["properties"].items():
        here, below = f"{path}.{key}".lstrip("."), resolve(below)
        if below.get("properties"):
            yield from leaves(below, here)
        else:
            yield here, below


def owned(schema=SCHEMA, path=""):
    """Every map whose keys are the chart's: `(path, schema)`."""
    yield path, schema
    for key, below in schema["properties"].items():
        below = resolve(below)
        if below.get("properties"):
            yield from owned(below, f"{path}.{key}".lstrip("."))


def default(path):
    value = DEFAULTS
    for key in path.split("."):
        value = value[key]
    return value
