"""The Helm chart: every value, every example, what it refuses, and whether the binary takes the files that it makes."""

import fnmatch
import ipaddress
import json
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import chart
from chart import DEFAULTS, EXAMPLES, HELMS, NAMESPACE, at, helm, kubernetes_problems, leaves, merged, notes, owned
from chart import refusal, render
from gateway import ROOT, eventually, run

NAME = f"{chart.RELEASE}-imagegate"

# --- Values that make others matter ---

KEY = {"existingSecret": "keys", "key": "a"}
CALLERS = {"router": {"networkPolicy": {"callers": [{"podSelector": {}}]}}}
GATEWAY = [{"name": "public", "namespace": "gateways"}]
SCALED = {"enabled": True, "targetInFlight": 20}
ISSUER = at("tls.certManager.issuerRef.name", "internal")
MTLS = merged(at("tls.mode", "certManager"), ISSUER)
OPEN = {"config": {"auth": "open"}, "allowOpenWithCredentials": True}
OWN_CERTIFICATES = at(
    "tls", {"mode": "existingSecrets", "existingSecrets": {"router": "r", "shim": "s", "workers": {"sandbox": "w"}}}
)

# Keys that have no effect by themselves, by pattern: what else must be set. The first that fits holds.
CONTEXTS = [
    ("*.autoscaling.behavior", lambda c: at(f"{c}.autoscaling", SCALED)),
    (
        "*.autoscaling.engine",
        lambda c: merged(at(f"{c}.autoscaling", SCALED), at("keda.serverAddress", "http://prom:9090")),
    ),
    ("*.autoscaling.enabled", None),
    ("*.autoscaling.*", lambda c: at(f"{c}.autoscaling", SCALED)),
    ("*.pdb.*", lambda c: at(f"{c}.replicas", 3)),
    ("*.persistence.enabled", None),
    ("*.persistence.existingClaim", lambda c: at(f"{c}.persistence.enabled", True)),
    ("*.persistence.emptyDirSizeLimit", None),
    ("*.persistence.*", lambda c: at(f"{c}.persistence.enabled", True)),
    ("router.clientService.enabled", lambda c: CALLERS),
    (
        "router.clientService.nodePort",
        lambda c: merged(CALLERS, at("router.clientService", {"enabled": True, "type": "NodePort"})),
    ),
    ("router.clientService.*", lambda c: merged(CALLERS, at("router.clientService.enabled", True))),
    ("shim.service.nodePort", lambda c: at("shim.service.type", "NodePort")),
    ("shim.service.externalTrafficPolicy", lambda c: at("shim.service.type", "LoadBalancer")),
    ("shim.service.loadBalancer*", lambda c: at("shim.service.type", "LoadBalancer")),
    ("workerDefaults.networkPolicy.*", lambda c: at("workers.other.enabled", True)),
    ("network.clusterDomain", lambda c: MTLS),
    ("*.credentials", lambda c: OPEN),
    ("caBundle.[kr]*", lambda c: at("caBundle.existingSecret", "authorities")),
    ("tls.mode", lambda c: ISSUER),
    ("tls.ca.key", lambda c: merged(MTLS, at("tls.ca.existingSecret", "authority"))),
    (
        "tls.certManager.caDuration",
        lambda c: merged(at("tls.mode", "certManager"), at("tls.certManager.selfSigned", True)),
    ),
    # Instead of the issuer that the other keys are tried with.
    ("tls.certManager.selfSigned", lambda c: at("tls.mode", "certManager")),
    ("tls.existingSecrets.*", lambda c: OWN_CERTIFICATES),
    ("tls.*", lambda c: MTLS),
    ("redis.existingSecret", None),
    ("redis.*", lambda c: at("redis.existingSecret", "redis")),
    ("networkPolicy.redis.*", lambda c: at("redis.existingSecret", "redis")),
    ("store.existingSecret", None),
    ("store.*", lambda c: at("store.existingSecret", "store")),
    ("networkPolicy.store.*", lambda c: at("store.existingSecret", "store")),
    ("images.url", None),
    ("images.*ccessKey*", lambda c: at("images", {"url": "s3://pictures", "existingSecret": "images"})),
    ("images.*", lambda c: at("images.url", "s3://pictures")),
    ("networkPolicy.images.*", lambda c: at("images.url", "s3://pictures")),
    ("ingress.enabled", None),
    ("ingress.*", lambda c: at("ingress.enabled", True)),
    ("httpRoute.enabled", lambda c: at("httpRoute.parentRefs", GATEWAY)),
    ("httpRoute.*", lambda c: at("httpRoute", {"enabled": True, "parentRefs": GATEWAY})),
    ("grpcRoute.enabled", lambda c: merged(CALLERS, at("grpcRoute.parentRefs", GATEWAY))),
    ("grpcRoute.*", lambda c: merged(CALLERS, at("grpcRoute", {"enabled": True, "parentRefs": GATEWAY}))),
    ("metrics.*.enabled", None),
    ("metrics.serviceMonitor.*", lambda c: at("metrics.serviceMonitor.enabled", True)),
    ("metrics.podMonitor.*", lambda c: at("metrics.podMonitor.enabled", True)),
    ("metrics.prometheusRule.*", lambda c: at("metrics.prometheusRule.enabled", True)),
    ("metrics.dashboard.*", lambda c: at("metrics.dashboard.enabled", True)),
    (
        "keda.*",
        lambda c: merged(
            at("router.autoscaling", SCALED | {"engine": "keda"}), at("keda.serverAddress", "http://prom:9090")
        ),
    ),
    ("tests.apiKey.key", lambda c: at("tests.apiKey.existingSecret", "callers")),
]


def context(path):
    for pattern, make in CONTEXTS:
        if fnmatch.fnmatch(path, pattern):
            return make(path.partition(".")[0]) if make else {}
    return {}


# --- Other values than the defaults ---

PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}
EGRESS = {"to": [PEER], "ports": [{"port": 8080, "protocol": "TCP"}]}
ENVIRONMENT = {"name": "SAMPLE", "value": "sample"}
RELABELING = {"sourceLabels": ["pod"], "targetLabel": "instance"}
HEADER_FILTER = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"set": [{"name": "x-sample", "value": "1"}]},
}

# Where a value needs a shape that its schema does not tell, by pattern. The first that fits holds.
SAMPLES = [
    ("config", {"retired_models": "fail"}),
    ("workerDefaults.config", {"retired_models": "fail"}),
    ("workers", {"other": {"enabled": True, "provider": "openai"}}),
    ("*.credentials", {"SAMPLE": KEY}),
    ("*.extraEnv", [ENVIRONMENT]),
    ("*.extraEnvFrom", [{"secretRef": {"name": "sample"}}]),
    ("*.resources", {"requests": {"cpu": "777m"}}),
    ("*.podSecurityContext", {"fsGroup": 777}),
    ("*.securityContext", {"runAsUser": 777}),
    ("*.tolerations", [{"key": "sample", "operator": "Exists"}]),
    ("*.affinity", {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}),
    ("*.topologySpreadConstraints", [{"maxSkew": 7, "topologyKey": "sample", "whenUnsatisfiable": "DoNotSchedule"}]),
    ("*.dnsConfig", {"options": [{"name": "ndots", "value": "1"}]}),
    ("*.hostAliases", [{"ip": "10.0.0.7", "hostnames": ["sample"]}]),
    ("*.extraVolumes", [{"name": "sample", "emptyDir": {}}]),
    ("*.extraVolumeMounts", [{"name": "tmp", "mountPath": "/sample"}]),
    ("*.initContainers", [{"name": "sample", "image": "sample:1"}]),
    ("*.extraContainers", [{"name": "sample", "image": "sample:1"}]),
    ("*.lifecycle", {"preStop": {"sleep": {"seconds": 7}}}),
    ("*.terminationGracePeriodSeconds", 777),
    ("*.strategy", {"type": "Recreate"}),
    ("*.behavior", {"scaleDown": {"stabilizationWindowSeconds": 77}}),
    ("*.pdb.maxUnavailable", "50%"),
    ("*.pdb.minAvailable", 2),
    ("*.persistence.accessModes", ["ReadWriteMany"]),
    ("*.callers", [PEER]),
    ("*.extraEgress", [EGRESS]),
    ("*.loadBalancerSourceRanges", ["10.7.0.0/16"]),
    ("networkPolicy.dns.to", [PEER]),
    ("networkPolicy.redis.to", [PEER]),
    ("networkPolicy.store.to", [PEER]),
    ("networkPolicy.images.to", [PEER]),
    ("images.url", "s3://other/prefix"),
    ("images.endpoint", "https://minio:9000"),
    ("networkPolicy.scrapers", [PEER]),
    ("*.listenHost", "127.0.0.1"),
    ("*.appProtocol", "example.com/sample"),
    ("*.publicUrl", "https://images.example.com"),
    ("*.serverAddress", "http://elsewhere:9090"),
    ("*.privateKey", {"size": 384}),
    ("ingress.hosts", [{"host": "sample.example.com", "paths": [{"path": "/v1"}]}]),
    ("ingress.tls", [{"hosts": ["sample.example.com"], "secretName": "sample"}]),
    ("*.parentRefs", [{"name": "sample"}]),
    ("*.hostnames", ["sample.example.com"]),
    ("httpRoute.matches", [{"path": {"type": "PathPrefix", "value": "/v1"}}]),
    ("grpcRoute.matches", [{"method": {"service": "imagegate.v1.RouterService"}}]),
    ("*.filters", [HEADER_FILTER]),
    ("httpRoute.timeout", "10m"),
    ("*elabelings", [RELABELING]),
    ("*.disabled", ["ImagegateRedisErrors"]),
    ("*.extraRules", [{"record": "sample", "expr": "vector(1)"}]),
    ("tls.existingSecrets.workers", {"sandbox": "other"}),
    ("*.authenticationRef", {"name": "sample"}),
    ("extraObjects", [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-sample"}}]),
    ("deadlines.attemptSeconds", 200),
    ("*.scrapeTimeout", "7s"),
    ("network.ipFamilies", ["IPv6"]),
    ("*.dns.ports", [5353]),
    ("*.networkPolicy.ports", [8443]),
    ("*mage.digest", "sha256:" + "7" * 64),
    ("*.minReplicas", 3),
    ("*.storageClass", "sample"),
    ("tls.certManager.selfSigned", True),
]
TEXTS = ["sample", "7Gi", "777h", "77s"]


def other(path, schema):
    """A valid value that is not the default."""
    for pattern, value in SAMPLES:
        if fnmatch.fnmatch(path, pattern):
            return value
    old = chart.default(path)
    if "enum" in schema:
        return next(value for value in reversed(schema["enum"]) if value not in (old, False, "existingSecrets", ""))
    kind = schema.get("type")
    if kind == "boolean":
        return not old
    if kind in ("integer", "number"):
        return old + 1 if old + 1 <= schema.get("maximum", 10**9) else old * 0.9
    if kind == "array":
        return [other_text(schema["items"])]
    if kind == "object":
        return {"sample.example.com/key": "sample"} if schema.get("additionalProperties") else {"sample": "sample"}
    return other_text(schema)


def other_text(schema):
    for option in schema.get("anyOf", [schema]):
        for text in TEXTS:
            if re.search(option.get("pattern", ""), text):
                return text
    raise AssertionError(f"no sample for {schema}: add one to SAMPLES")


LEAVES = dict(leaves())
# Of a map by name; what its entries can have is workerDefaults' business.
WORKER_KEYS = {"workers.sandbox.enabled": False, "workers.sandbox.provider": "openai"}


# --- The values ---


def test_values_and_schema_have_the_same_keys():
    for path, schema in owned():
        values = chart.default(path) if path else DEFAULTS
        assert set(values) == set(schema["properties"]), path or "top level"
        if path != "global":
            assert schema["additionalProperties"] is False, f"{path}: takes misspelt keys"
    for path, schema in chart.leaves():
        assert schema.get("additionalProperties") is not False or not schema.get("properties"), path


def without_required(schema):
    """A schema of which anything may be left out."""
    if not isinstance(schema, dict):
        return schema
    return {key: without_required(value) for key, value in schema.items() if key != "required"}


def test_a_worker_has_the_keys_of_worker_defaults():
    worker = chart.SCHEMA["definitions"]["worker"]["properties"]
    defaults = without_required(chart.SCHEMA["properties"]["workerDefaults"]["properties"])
    own = {name: schema for name, schema in worker.items() if name not in ("enabled", "provider")}
    assert without_required(own) == defaults


@pytest.mark.parametrize("path", [*LEAVES, *WORKER_KEYS])
def test_every_value_changes_what_is_rendered(path):
    base = context(path)
    value = WORKER_KEYS[path] if path in WORKER_KEYS else other(path, LEAVES[path])
    if path == "allowOpenWithCredentials":
        # It lets pass what is refused otherwise.
        open_to_all = merged(at("config.auth", "open"), at("router.credentials", {"SAMPLE": KEY}))
        assert "allowOpenWithCredentials" in refusal(open_to_all)
        assert render(merged(open_to_all, at(path, True))).config("router")["auth"] == "open"
        return
    before, after = render(MTLS if path == "tls.certManager.selfSigned" else base), render(
        merged(base, at(path, value))
    )
    assert before.text != after.text, f"{path}: {value} has no effect"
    assert not kubernetes_problems(after, ["1.34"])


NEEDED = {f"{path}.{key}".lstrip(".") for path, schema in owned() for key in schema.get("required", ())}


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in NEEDED])
def test_what_is_not_needed_can_be_null(path):
    """helm takes null for "without the default". Where that makes no sense the schema refuses it."""
    assert not kubernetes_problems(render(at(path, None)), ["1.34"])


def test_no_map_of_the_chart_can_be_null():
    assert {path for path, _ in owned() if path} <= NEEDED


def test_a_worker_can_say_otherwise_in_everything():
    """All at once: what workerDefaults changes for all workers, a worker changes for itself."""
    samples = {
        path: other(path, schema)
        for path, schema in leaves()
        if path.startswith("workerDefaults.") and "config" not in path.lower()
    }
    for_all = merged(*(at(path, value) for path, value in samples.items()), at("workers.sandbox.networkPolicy", None))
    for_one = merged(*(at(path.replace("workerDefaults", "workers.sandbox"), value) for path, value in samples.items()))
    base = merged(OPEN, at("keda.serverAddress", "http://prom:9090"))
    assert render(merged(base, for_all)).objects == render(merged(base, for_one)).objects


def test_a_worker_can_switch_off_what_worker_defaults_switches_on():
    values = merged(at("workerDefaults.autoscaling.enabled", True), at("workers.sandbox.autoscaling.enabled", False))
    rendered = render(merged(values, at("workers.openai.enabled", True)))
    assert [found["metadata"]["name"] for found in rendered.kinds("HorizontalPodAutoscaler")] == [
        f"{NAME}-worker-openai"
    ]


def test_misspelt_keys_and_wrong_types_are_refused():
    for values, word in (
        (at("ruoter.replicas", 2), "ruoter"),
        (at("router.replica", 2), "replica"),
        (at("router.probes.startup.period", 2), "period"),
        (at("workers.openai.enable", True), "enable"),
        (at("workers.Open_AI.enabled", True), "Open_AI"),
        (at("workers.openai.pdb", None), "pdb"),
        (at("router.credentials.KEY", "a secret"), "KEY"),
        (at("router.credentials.KEY", {"existingSecret": "a"}), "key"),
        (at("router.replicas", "two"), "replicas"),
        (at("router.pdb.maxUnavailable", "half"), "maxUnavailable"),
        (at("tls.mode", "on"), "mode"),
        (at("image.digest", "sha256:123"), "digest"),
        (at("httpRoute.timeout", "3 minutes"), "timeout"),
        (at("deadlines.totalSeconds", None), "totalSeconds"),
    ):
        for version in HELMS:
            said = refusal(values, version=version)
            assert "schema" in said and word in said, said


def test_yaml_may_say_off_without_quotes():
    assert render(at("tls.mode", False)).text == render(at("tls.mode", "off")).text


# --- Switches ---

# What a switch asks for when it is alone: the words of its refusal, and then what it is given.
NEEDS = {
    ("router.clientService.enabled", True): ("router.networkPolicy.callers", CALLERS),
    ("httpRoute.enabled", True): ("httpRoute.parentRefs", at("httpRoute.parentRefs", GATEWAY)),
    ("grpcRoute.enabled", True): ("grpcRoute.parentRefs", merged(CALLERS, at("grpcRoute.parentRefs", GATEWAY))),
    ("tls.mode", "certManager"): ("tls.certManager.issuerRef.name", ISSUER),
    ("tls.mode", "existingSecrets"): ("tls.existingSecrets.workers.sandbox", OWN_CERTIFICATES),
}


def switches():
    for path, schema in leaves():
        for value in [True, False] if schema.get("type") == "boolean" else schema.get("enum", ()):
            if value != chart.default(path):
                yield path, value
    yield "workers.sandbox.enabled", False
    yield "workers.openai.enabled", True


@pytest.mark.parametrize("path, value", switches())
def test_every_switch_alone(path, value):
    values = at(path, value)
    if (path, value) in NEEDS:
        words, needed = NEEDS[path, value]
        assert words in refusal(values)
        values = merged(needed, values)
    with_helm_3, with_helm_4 = (render(values, version=version) for version in HELMS)
    assert with_helm_3.objects == with_helm_4.objects
    assert not kubernetes_problems(with_helm_3)
    check_restricted(with_helm_3)


# --- Examples ---

CASES = [None, *EXAMPLES]


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("example", CASES)
def test_lint_has_no_complaint(example, version):
    files = ["--values", EXAMPLES[example]] if example else []
    assert "0 chart(s) failed" in helm("lint", "--strict", chart.CHART, *files, version=version)


@pytest.mark.parametrize("example", CASES)
def test_examples_are_valid_and_the_same_with_both_helms(example):
    with_helm_3, with_helm_4 = (render(example=example, version=version) for version in HELMS)
    assert with_helm_3.objects == with_helm_4.objects
    assert not kubernetes_problems(with_helm_3)
    assert not re.search(r"[ \t]$", with_helm_3.text, re.MULTILINE), "white space at the end of a line"


def test_the_chart_can_be_packaged(tmp_path):
    for version in HELMS:
        helm("package", chart.CHART, "--destination", tmp_path / version, version=version)
        (package,) = (tmp_path / version).glob("imagegate-*.tgz")
        names = subprocess.run(["tar", "tzf", package], capture_output=True, text=True, check=True).stdout.splitlines()
        assert "imagegate/dashboards/imagegate.json" in names and not [name for name in names if "/ci/" in name]


IMPORTANT = ("Deployment", "Service", "NetworkPolicy", "ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler")


@pytest.mark.parametrize("example", [None, "production"])
def test_important_objects_are_as_they_were(example):
    """UPDATE_SNAPSHOTS=1 takes what is rendered for right."""
    folder = chart.FIXTURES / "snapshots" / (example or "defaults")
    rendered = {
        f"{found['kind'].lower()}-{found['metadata']['name'].removeprefix(NAME).lstrip('-')}.yaml": yaml.safe_dump(
            found, sort_keys=True, width=120
        )
        for found in render(example=example).objects
        if found["kind"] in IMPORTANT and not found["metadata"]["name"].endswith("dashboard")
    }
    if os.environ.get("UPDATE_SNAPSHOTS"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.yaml"):
            file.unlink()
        for name, text in rendered.items():
            (folder / name).write_text(text)
    kept = {file.name: file.read_text() for file in folder.glob("*.yaml")}
    assert sorted(rendered) == sorted(kept)
    for name, text in rendered.items():
        assert text == kept[name], f"{name} differs; with UPDATE_SNAPSHOTS=1 it is taken for right"


# --- Pod Security Standards ---

RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}


def check_restricted(rendered):
    """The standard "restricted", which includes "baseline", of every pod."""
    for name, pod in rendered.pods():
        whole = pod.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            assert not pod.get(field), f"{name}: {field}"
        assert not whole.get("sysctls"), f"{name}: sysctls"
        for volume in pod.get("volumes", ()):
            assert set(volume) - {"name"} <= RESTRICTED_VOLUMES, f"{name}: volume {volume}"
        for container in pod.get("initContainers", []) + pod["containers"]:
            where, own = f"{name}/{container['name']}", container.get("securityContext", {})
            assert not own.get("privileged"), f"{where}: privileged"
            assert own.get("allowPrivilegeEscalation") is False, f"{where}: allowPrivilegeEscalation"
            assert own.get("runAsNonRoot", whole.get("runAsNonRoot")) is True, f"{where}: runAsNonRoot"
            assert own.get("runAsUser", whole.get("runAsUser")) != 0, f"{where}: runAsUser"
            profile = own.get("seccompProfile", whole.get("seccompProfile", {}))
            assert profile.get("type") in ("RuntimeDefault", "Localhost"), f"{where}: seccompProfile"
            assert own.get("procMount", "Default") == "Default", f"{where}: procMount"
            capabilities = own.get("capabilities", {})
            assert "ALL" in capabilities.get("drop", ()), f"{where}: capabilities.drop"
            assert set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}, f"{where}: capabilities.add"
            assert not [port for port in container.get("ports", ()) if port.get("hostPort")], f"{where}: hostPort"


@pytest.mark.parametrize("example", CASES)
def test_pods_are_restricted_and_more(example):
    rendered = render(example=example)
    check_restricted(rendered)
    for name, pod in rendered.pods():
        # What the standard does not ask for: a user that nodes can tell, nothing to write to, no token.
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 65532, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod.get("initContainers", []) + pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name
    for account in rendered.kinds("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


# --- Files of the binary ---


class Authority:
    """Issues what cert-manager would: a key and a certificate with these names, and who signed it."""

    def __init__(self):
        self.key, self.name = ec.generate_private_key(ec.SECP256R1()), self._name("authority")
        self.certificate = self._certificate(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None))

    def write(self, folder, names):
        """Puts tls.crt, tls.key and ca.crt into a folder. Everything is on this machine, so that is a name too."""
        key = ec.generate_private_key(ec.SECP256R1())
        san = [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = self._certificate(self._name("role"), key, x509.SubjectAlternativeName(san))
        pem = serialization.Encoding.PEM
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tls.crt").write_bytes(certificate.public_bytes(pem))
        (folder / "ca.crt").write_bytes(self.certificate.public_bytes(pem))
        (folder / "tls.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    @staticmethod
    def _name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def _certificate(self, name, key, extension):
        now = datetime.now(UTC)
        certificate = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
        certificate = certificate.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        certificate = certificate.not_valid_after(now + timedelta(days=1)).add_extension(extension, critical=False)
        return certificate.sign(self.key, hashes.SHA256())


def unpack(config, folder):
    """Puts what a file mentions into a folder, as the pod has it in /etc/imagegate."""
    for path in re.findall(r"/etc/imagegate/(\S+)", config):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("secret")
    Authority().write(folder / "tls", [])
    file = folder / "imagegate.yaml"
    file.write_text(config.replace("/etc/imagegate", str(folder)))
    return file


# What the binary checks the form of.
SECRETS = {
    "REDIS_URL": "redis://127.0.0.1",
    "STORE_URL": "postgres://a:b@127.0.0.1/c",
    "VAULT_KEY": "A" * 43 + "=",
}

# Files worth a look of the binary besides those of the examples.
FILES = {
    "mutual-tls-callers-with-keys-only": merged(MTLS, at("tls.requireRouterClients", False)),
    "dual-stack": at("network.ipFamilyPolicy", "PreferDualStack"),
    "redis": at("redis", {"existingSecret": "redis", "prefix": "other", "timeoutMs": 50}),
    "store": at("store", {"existingSecret": "store"}),
    "several-without-store": at("router.replicas", 3),
    "bucket-by-key": at("images", {"url": "s3://pictures/a", "region": "eu-central-1", "existingSecret": "images"}),
    "bucket-by-role": at(
        "images",
        {"url": "s3://pictures", "endpoint": "http://minio:9000", "allowHttp": True, "virtualHosted": True},
    ),
    "pre-stop-sleep": at("drain.preStopSleep", True),
    "egress": at("config.egress.allow", ["10.20.0.0/16"]),
    "credentials": merged(
        at("router.credentials", {"OPENAI": KEY, "TEAM": KEY, "HOOKS": KEY | {"asFile": True}}),
        at("workers.openai.enabled", True),
        at(
            "config",
            {
                "virtual_keys": {"openai": {"provider": "openai", "api_key": {"env": "OPENAI"}}},
                "configs": {"standard": {"virtual_key": "openai"}},
                "api_keys": [{"name": "team", "key": "${TEAM}"}],
            },
        ),
    ),
}
CONFIG_CASES = {
    **{example or "defaults": ({}, example) for example in CASES},
    **{k: (v, None) for k, v in FILES.items()},
}


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_the_binary_accepts_the_files(case, tmp_path):
    values, example = CONFIG_CASES[case]
    rendered = render(values, example)
    for name, text in rendered.configs().items():
        folder = tmp_path / name
        folder.mkdir()
        environment = {
            variable["name"]: SECRETS.get(variable["name"], f"secret-{variable['name']}")
            for variable in rendered.named("Deployment", name)["spec"]["template"]["spec"]["containers"][0]["env"]
            if "valueFrom" in variable
        }
        finished = run(["check", unpack(text, folder)], folder, environment)
        assert finished.returncode == 0, f"{name}:\n{finished.stdout}{finished.stderr}\n{text}"


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_the_binary_knows_the_arguments(case):
    values, example = CONFIG_CASES[case]
    for name, pod in render(values, example).pods():
        for container in pod.get("initContainers", []) + pod["containers"]:
            # Arguments are read from left to right, so an unknown one is met before the last.
            finished = run([*container["args"], "--help"], "/")
            assert finished.returncode == 0, f"{name}: {shlex.join(container['args'])}\n{finished.stderr}"


@pytest.mark.parametrize("tls", [{}, MTLS], ids=["plain", "mutual TLS"])
def test_what_the_chart_starts_makes_an_image(start, tmp_path, tls):
    """Every Deployment's container and the test pod, as processes on this machine instead of pods."""
    rendered = render(merged(tls, at("drain.delaySeconds", 0)))
    authority = Authority()
    moved = {"/tmp/": f"{tmp_path}/", "/data": f"{tmp_path}/data"}
    moved |= {"0.0.0.0:": "127.0.0.1:", ":8787": ":0", ":9090": ":0"}

    def here(text):
        for old, new in moved.items():
            text = text.replace(old, new)
        return text

    def started(component, role, port=None):
        """Starts it, and lets what starts after it find it."""
        moved[f"127.0.0.1:{port}"] = "127.0.0.1:0"
        moved["/etc/imagegate"] = str(tmp_path / component)
        (tmp_path / component).mkdir()
        if tls:
            names = rendered.named("Certificate", f"{NAME}-{component}")["spec"]["dnsNames"]
            authority.write(tmp_path / component / "tls", names)
        if port:
            (tmp_path / component / "imagegate.yaml").write_text(here(rendered.config_text(component)))
        process = start(*map(here, rendered.container(component)["args"]))
        moved[f"{NAME}-{component}:{port}"] = process.address(role)
        return process

    worker, router, shim = (
        started("worker-sandbox", "worker", 50061),
        started("router", "grpc", 50051),
        started("shim", "http"),
    )
    for process in (worker, router, shim):
        ready = f"http://{process.address('admin')}/readyz"
        eventually(lambda ready=ready: requests.get(ready, timeout=5).status_code == 200)
    (container,) = rendered.named("Pod", f"{NAME}-test")["spec"]["containers"]
    finished = run(map(here, container["args"]), tmp_path)
    assert finished.returncode == 0, f"{finished.stderr}\n{router.log}\n{worker.log}"
    assert (tmp_path / "lighthouse.png").read_bytes().startswith(b"\x89PNG")
    if tls:
        moved["/etc/imagegate"] = str(tmp_path / "worker-sandbox")
        assert run(map(here, container["args"]), tmp_path).returncode, "the router took a worker for a caller"
    body = {"prompt": "a lighthouse at dusk", "size": "256x256"}
    answer = requests.post(f"http://{shim.address('http')}/v1/images/generations", json=body, timeout=30)
    assert answer.status_code == 200 and answer.json()["provider"] == "sandbox", answer.text


def test_the_router_s_file_has_what_the_chart_knows():
    config = render(at("workers.openai.enabled", True)).config("router")
    assert config["listen"] == {"grpc": "0.0.0.0:50051", "admin": "0.0.0.0:9090"}
    assert config["workers"] == {
        "sandbox": f"http://{NAME}-worker-sandbox:50061",
        "openai": f"http://{NAME}-worker-openai:50061",
    }
    assert config["tls"] == "off" and config["auth"] == "open" and "redis" not in config
    assert config["limits"] == {"total_timeout_ms": 330000, "attempt_timeout_ms": 300000, "max_body_bytes": 67108864}
    assert (config["shutdown_delay_s"], config["shutdown_grace_s"]) == (10, 330)
    assert config["default_config"] == "demo" and config["configs"]["demo"]["provider"] == "sandbox"


def test_callers_keys_close_the_gateway():
    values = merged(
        at("config.api_keys", [{"name": "a", "key": {"env": "KEY"}}]), at("router.credentials", {"KEY": KEY})
    )
    assert "auth" not in render(values).config("router")


def test_workers_elsewhere_stay_beside_the_chart_s():
    workers = render(at("config.workers", {"fal": ["http://10.0.0.7:50061", "http://10.0.0.8:50061"]})).config(
        "router"
    )["workers"]
    assert workers["fal"] == ["http://10.0.0.7:50061", "http://10.0.0.8:50061"] and "sandbox" in workers


def test_no_secret_is_in_a_config_map():
    for example in EXAMPLES:
        rendered = render(example=example)
        assert not rendered.kinds("Secret")
        for text in rendered.configs().values():
            config = yaml.safe_load(text)
            secrets = [key.get("api_key") for key in config.get("virtual_keys", {}).values()]
            secrets += [key["key"] for key in config.get("api_keys", ())] + [config.get("redis", {}).get("url")]
            assert all(set(secret) <= {"env", "file"} for secret in secrets if secret), secrets


def test_a_changed_file_replaces_the_pods_only_where_that_is_wanted():
    def checksum(values):
        annotations = (
            render(values).named("Deployment", f"{NAME}-router")["spec"]["template"]["metadata"].get("annotations", {})
        )
        return annotations.get("checksum/config")

    changed = at("config.retired_models", "fail")
    assert checksum({}) != checksum(changed)
    still = at("rollOnConfigChange", False)
    assert checksum(still) is None and checksum(merged(still, changed)) is None
    assert checksum(at("existingConfigMap", "own")) is None


def test_files_arrive_as_a_whole_and_are_checked_first():
    """A subPath mount never changes; one projected volume changes in one step."""
    for name, pod in render(example="production").pods():
        for container in pod.get("initContainers", []) + pod["containers"]:
            assert not [mount for mount in container["volumeMounts"] if "subPath" in mount], name
    pod = render(example="production").pod("worker-stability-ai")
    (etc,) = [volume["projected"] for volume in pod["volumes"] if volume["name"] == "etc"]
    paths = [item["path"] for source in etc["sources"] for item in next(iter(source.values()))["items"]]
    assert paths == ["imagegate.yaml", "tls/tls.crt", "tls/tls.key", "tls/ca.crt", "credentials/stability"]
    (check,) = pod["initContainers"]
    assert check["args"] == ["check", "/etc/imagegate/imagegate.yaml"]
    assert check["volumeMounts"] == pod["containers"][0]["volumeMounts"] and check["env"] == pod["containers"][0]["env"]


def test_a_worker_of_ones_own_is_checked_by_our_image():
    pod = render(at("workers.own", {"enabled": True, "image": {"repository": "team/worker", "tag": "7"}})).pod(
        "worker-own"
    )
    assert pod["containers"][0]["image"] == "ghcr.io/team/worker:7"
    assert pod["initContainers"][0]["image"] == "ghcr.io/imagegate/imagegate:0.1.0"


# --- Deadlines ---


@pytest.mark.parametrize("sleep", [False, True])
def test_grace_follows_from_deadlines(sleep):
    values = {
        "deadlines": {"totalSeconds": 200, "attemptSeconds": 90},
        "drain": {"delaySeconds": 7, "preStopSleep": sleep},
    }
    rendered = render(values)
    for component, grace in (("router", 200), ("shim", 200), ("worker-sandbox", 90)):
        pod, container = rendered.pod(component), rendered.container(component)
        assert pod["terminationGracePeriodSeconds"] == 7 + grace + 10
        if component == "shim":
            arguments = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
            delay, told = int(arguments["--shutdown-delay-s"]), int(arguments["--shutdown-grace-s"])
        else:
            config = rendered.config(component)
            delay, told = config["shutdown_delay_s"], config["shutdown_grace_s"]
        assert told == grace
        assert delay == (0 if sleep else 7)
        assert container.get("lifecycle") == ({"preStop": {"sleep": {"seconds": 7}}} if sleep else None)
    limits = rendered.config("router")["limits"]
    assert (limits["total_timeout_ms"], limits["attempt_timeout_ms"]) == (200_000, 90_000)


def test_what_stands_in_front_waits_as_long():
    values = merged(
        at("deadlines", {"totalSeconds": 190, "attemptSeconds": 90}),
        at("ingress.enabled", True),
        at("httpRoute", {"enabled": True, "parentRefs": GATEWAY}),
    )
    rendered = render(values)
    nginx = rendered.named("Ingress", f"{NAME}-shim")["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert nginx[prefix + "proxy-read-timeout"] == "190" and nginx[prefix + "proxy-body-size"] == "64m"
    assert nginx[prefix + "proxy-buffering"] == "off"
    (rule,) = rendered.named("HTTPRoute", f"{NAME}-shim")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "190s"}


# --- What is refused ---

OPENAI_KEY = at("config.virtual_keys.openai", {"provider": "openai", "api_key": {"env": "OPENAI"}})
NGINX = "nginx.ingress.kubernetes.io/proxy-read-timeout"
REFUSALS = {
    "open with a credential": (
        merged(at("config.auth", "open"), at("router.credentials", {"KEY": KEY})),
        "config.auth: `open` lets everybody who reaches the gateway spend the money of router.credentials.KEY",
    ),
    "open with a worker's credential": (
        merged(at("config.auth", "open"), at("workers.sandbox.credentials", {"KEY": KEY})),
        "the money of workers.sandbox.credentials.KEY",
    ),
    "a credential and no callers": (
        merged(OPENAI_KEY, at("router.credentials", {"OPENAI": KEY})),
        "config.api_keys: there are none, and config.virtual_keys.openai, router.credentials.OPENAI would be open",
    ),
    "listen": (at("config.listen.grpc", "0.0.0.0:1"), "config.listen: the chart sets it"),
    "tls in the file": (at("config.tls", {"key": "/k"}), "config.tls: set tls.mode instead"),
    "redis in the file": (at("config.redis", {"url": "redis://a"}), "config.redis: set redis.existingSecret instead"),
    "store in the file": (at("config.store", "off"), "config.store: set store.existingSecret instead"),
    "images in the file": (at("config.images.url", "s3://pictures"), "config.images: set images.url instead"),
    "a bucket in plain text": (
        at("images", {"url": "s3://pictures", "endpoint": "http://minio:9000"}),
        "images.endpoint: http://minio:9000 is plain text: write https, or set images.allowHttp",
    ),
    "camelCase": (at("config.shutdownGraceS", 3), "config.shutdownGraceS: it follows from deadlines"),
    "tls in a worker's file": (
        at("workers.sandbox.config.tls", "off"),
        "workers.sandbox.config.tls: set tls.mode instead",
    ),
    "a worker twice": (at("config.workers.sandbox", "http://a:1"), "config.workers.sandbox: an enabled worker"),
    "a provider twice": (
        at("workers.other", {"enabled": True, "provider": "sandbox"}),
        "workers.sandbox.provider: sandbox is served by workers.other already",
    ),
    "a key in plain text": (
        at("config.virtual_keys.openai", {"provider": "openai", "api_key": "sk-123"}),
        "config.virtual_keys.openai.api_key: a secret in plain text",
    ),
    "a caller's key in plain text": (
        at("config.api_keys", [{"name": "a", "key": "b"}]),
        "config.api_keys[0].key: a secret",
    ),
    "a worker's key in plain text": (
        at("workers.sandbox.config.virtual_keys.a", {"provider": "sandbox", "api_key": "b"}),
        "write { env: NAME } and name its Secret in workers.sandbox.credentials",
    ),
    "a webhook secret in plain text": (at("config.webhooks.secret", "whsec_a"), "config.webhooks.secret: a secret"),
    "a collector's key in plain text": (
        at("config.otlp.headers", {"x-tenant": "a", "Authorization": "Bearer a"}),
        "config.otlp.headers.Authorization: a secret",
    ),
    "a variable that nobody sets": (
        OPENAI_KEY,
        "config.virtual_keys.openai.api_key: reads the variable OPENAI, which neither",
    ),
    "a variable in a text that nobody sets": (
        at("config.api_keys", [{"name": "a", "key": "${TEAM}"}]),
        "config.api_keys[0].key: reads the variable TEAM",
    ),
    "a key that its worker does not hold": (
        merged(
            at("workers.openai.enabled", True), at("config.virtual_keys.k", {"provider": "openai", "held_by": "worker"})
        ),
        "config.virtual_keys.k: held_by worker, but workers.openai.config.virtual_keys has no k",
    ),
    "an attempt longer than all": (
        at("deadlines", {"totalSeconds": 60, "attemptSeconds": 90}),
        "one attempt (90 s) cannot take longer than all together, deadlines.totalSeconds (60 s)",
    ),
    "a limit that contradicts": (
        at("config.limits.total_timeout_ms", 600000),
        "config.limits.total_timeout_ms: 600000 contradicts deadlines.totalSeconds, which makes it 330000",
    ),
    "a limit in camelCase": (
        at("config.limits.attemptTimeoutMs", 1000),
        "config.limits.attemptTimeoutMs: 1000 contradicts",
    ),
    "a limit of bodies": (
        at("config.limits.max_body_bytes", 1024),
        "config.limits.max_body_bytes: 1024 contradicts maxBodyBytes",
    ),
    "a target slower than an attempt": (
        at("config.configs.slow", {"targets": [{"provider": "sandbox", "request_timeout": 400000}]}),
        "config.configs.slow.targets[0].request_timeout: 400000 ms is longer than deadlines.attemptSeconds (300 s)",
    ),
    "a short end": (
        at("router.terminationGracePeriodSeconds", 60),
        "router.terminationGracePeriodSeconds: 60 s would kill requests in flight: drain.delaySeconds (10 s) + the "
        "longest deadline (330 s) + 10 s are 350 s",
    ),
    "a worker's short end": (at("workers.sandbox.terminationGracePeriodSeconds", 319), "+ 10 s are 320 s"),
    "a short ingress": (
        at("ingress", {"enabled": True, "annotations": {NGINX: "60"}}),
        f"ingress.annotations.{NGINX}: 60 s end before deadlines.totalSeconds (330 s)",
    ),
    "a short route": (
        at("httpRoute", {"enabled": True, "parentRefs": GATEWAY, "timeout": "1m30s"}),
        "httpRoute.timeout: 1m30s (90 s) ends before deadlines.totalSeconds (330 s)",
    ),
    "a route to nowhere": (at("httpRoute.enabled", True), "httpRoute.parentRefs: name the Gateway"),
    "callers that are not let in": (at("router.clientService.enabled", True), "router.networkPolicy.callers"),
    "fewest above most": (
        at("shim.autoscaling", {"enabled": True, "minReplicas": 20}),
        "shim.autoscaling: minReplicas (20) is more than maxReplicas (10)",
    ),
    "nothing to scale by": (
        at("shim.autoscaling", {"enabled": True, "targetCPUUtilizationPercentage": 0}),
        "shim.autoscaling: has nothing to scale by",
    ),
    "keda without Prometheus": (
        at("router.autoscaling", SCALED | {"engine": "keda"}),
        "keda.serverAddress: router.autoscaling asks Prometheus",
    ),
    "a budget that blocks": (
        merged(at("router.replicas", 2), at("router.pdb.minAvailable", 2)),
        "router.pdb.minAvailable: 2 of 2 pods blocks the drain",
    ),
    "a budget of everything": (
        merged(at("shim.replicas", 2), at("shim.pdb.minAvailable", "100%")),
        "100% blocks the drain",
    ),
    "a budget of nothing": (
        merged(at("shim.replicas", 2), at("shim.pdb.maxUnavailable", 0)),
        "shim.pdb.maxUnavailable: 0",
    ),
    "a volume for one node": (
        merged(at("shim.replicas", 2), at("shim.persistence.enabled", True)),
        "shim.persistence.accessModes: 2 pods cannot share a volume without ReadWriteMany",
    ),
    "two hooks": (
        merged(at("drain.preStopSleep", True), at("router.lifecycle.preStop.sleep.seconds", 3)),
        "router.lifecycle.preStop: drain.preStopSleep sets it too",
    ),
    "no issuer": (at("tls.mode", "certManager"), "tls.certManager.issuerRef.name: name a private issuer"),
    "two issuers": (
        merged(MTLS, at("tls.certManager.selfSigned", True)),
        "either selfSigned or issuerRef.name, not both",
    ),
    "a secret is missing": (
        merged(OWN_CERTIFICATES, at("workers.openai.enabled", True)),
        "tls.existingSecrets.workers.openai: missing",
    ),
    "two authorities": (at("caBundle", {"existingConfigMap": "a", "existingSecret": "b"}), "caBundle: either"),
    "two monitors": (
        at("metrics", {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}),
        "serviceMonitor and podMonitor would read everything twice",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_together_is_refused(case):
    values, words = REFUSALS[case]
    for version in HELMS:
        assert words in refusal(values, version=version)


def test_all_problems_are_told_at_once():
    said = refusal(
        merged(*(values for values, _ in (REFUSALS["listen"], REFUSALS["a short end"], REFUSALS["no issuer"])))
    )
    assert "3 problems" in said and "config.listen" in said and "tls.certManager" in said


def test_a_native_sleep_needs_its_kubernetes():
    values = at("drain.preStopSleep", True)
    assert "needs Kubernetes 1.30, this is v1.29.0" in refusal(values, kube_version="1.29.0")
    assert render(values, kube_version="1.30.0")


@pytest.mark.parametrize(
    "values",
    [
        at("router.terminationGracePeriodSeconds", 350),
        at("config.limits.total_timeout_ms", 330000),
        at("ingress", {"enabled": True, "annotations": {NGINX: "330"}}),
        at("httpRoute", {"enabled": True, "parentRefs": GATEWAY, "timeout": "5m30s"}),
        at("httpRoute", {"enabled": True, "parentRefs": GATEWAY, "timeout": "0s"}),
        merged(at("router.replicas", 3), at("router.pdb.minAvailable", 2)),
        at("config.virtual_keys.local", {"provider": "openai", "base_url": "http://a:1", "api_key": "none"})
        | {"allowOpenWithCredentials": True},
        merged(
            OPENAI_KEY, {"router": {"extraEnvFrom": [{"secretRef": {"name": "all"}}]}, "allowOpenWithCredentials": True}
        )
        | {"config": OPENAI_KEY["config"] | {"auth": "open"}},
    ],
)
def test_what_just_fits_is_not_refused(values):
    if values.get("allowOpenWithCredentials"):
        values = merged(values, at("config.auth", "open"))
    assert not kubernetes_problems(render(values), ["1.34"])


# --- Services, policies, certificates, monitoring ---


def test_callers_find_every_pod_of_router_and_workers():
    rendered = render()
    for component, port in (("router", 50051), ("worker-sandbox", 50061)):
        spec = rendered.named("Service", f"{NAME}-{component}")["spec"]
        assert spec["clusterIP"] == "None" and spec["publishNotReadyAddresses"] is False
        assert spec["ports"] == [
            {"name": "grpc", "port": port, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"}
        ]
    shim = rendered.named("Service", f"{NAME}-shim")["spec"]
    assert "clusterIP" not in shim and shim["ports"][0]["appProtocol"] == "http"
    assert render(MTLS).named("Service", f"{NAME}-router")["spec"]["ports"][0]["appProtocol"] == "https"


def matches(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


@pytest.mark.parametrize("example", CASES)
def test_selectors_find_their_own_pods_and_no_others(example):
    rendered = render(merged(at("metrics.serviceMonitor.enabled", example != "production"), {}), example)
    pods = {
        found["metadata"]["name"]: found["spec"]["template"]["metadata"]["labels"]
        for found in rendered.kinds("Deployment")
    }
    test = {found["metadata"]["name"]: found["metadata"]["labels"] for found in rendered.kinds("Pod")}
    for service in rendered.kinds("Service"):
        name = service["metadata"]["name"]
        found = {pod for pod, labels in {**pods, **test}.items() if matches(service["spec"]["selector"], labels)}
        own = name.removesuffix("-client")
        assert found == (set(pods) if name == f"{NAME}-metrics" else {own}), name
    for kind in ("NetworkPolicy", "PodDisruptionBudget", "Deployment"):
        for thing in rendered.kinds(kind):
            selector = thing["spec"]["podSelector" if kind == "NetworkPolicy" else "selector"]["matchLabels"]
            assert {pod for pod, labels in pods.items() if matches(selector, labels)} == {thing["metadata"]["name"]}
            assert not [name for name, labels in test.items() if matches(selector, labels)]


def test_selectors_do_not_change_with_the_version():
    for found in render(at("image.tag", "9.9.9")).kinds("Deployment"):
        assert set(found["spec"]["selector"]["matchLabels"]) <= {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
            "imagegate/worker",
        }


def test_workers_are_called_by_routers_alone():
    policy = render().named("NetworkPolicy", f"{NAME}-worker-sandbox")["spec"]
    calls, scrapes = policy["ingress"]
    assert calls["ports"] == [{"port": 50061, "protocol": "TCP"}]
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in calls["from"]] == ["router"]
    assert scrapes["ports"] == [{"port": 9090, "protocol": "TCP"}]
    # The sandbox calls nobody: names only.
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53]


@pytest.mark.parametrize("private", [True, False])
def test_workers_never_reach_metadata_services(private):
    values = at("workers.openai", {"enabled": True, "networkPolicy": {"denyPrivateRanges": not private}})
    _, public = render(values).named("NetworkPolicy", f"{NAME}-worker-openai")["spec"]["egress"]
    blocks = [peer["ipBlock"] for peer in public["to"]]

    def reachable(address):
        address = ipaddress.ip_address(address)
        for block in blocks:
            inside = ipaddress.ip_network(block["cidr"])
            if address.version == inside.version and address in inside:
                return not any(address in ipaddress.ip_network(out) for out in block["except"])
        return False

    for address in (
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fe80::a9fe:a9fe",
    ):
        assert not reachable(address), address
    for address in ("10.1.2.3", "172.20.0.1", "192.168.7.7", "fd12::1"):
        assert reachable(address) is private, address
    for address in ("8.8.8.8", "2001:4860:4860::8888"):
        assert reachable(address), address


def test_there_is_no_budget_for_a_single_pod():
    assert not render().kinds("PodDisruptionBudget")
    assert len(render(at("router.replicas", 2)).kinds("PodDisruptionBudget")) == 1
    assert len(render(at("router.autoscaling.enabled", True)).kinds("PodDisruptionBudget")) == 1


def test_an_autoscaler_and_a_deployment_do_not_fight_over_replicas():
    rendered = render(at("router.autoscaling", SCALED))
    assert "replicas" not in rendered.named("Deployment", f"{NAME}-router")["spec"]
    (scaler,) = rendered.kinds("HorizontalPodAutoscaler")
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == "imagegate_requests_in_flight"


def test_a_volume_for_one_node_is_not_waited_for():
    strategy = render(at("shim.persistence.enabled", True)).named("Deployment", f"{NAME}-shim")["spec"]["strategy"]
    assert strategy == {"type": "Recreate"}


def test_keda_tells_workers_apart_whose_names_begin_alike():
    scaling = {"enabled": True, "autoscaling": SCALED | {"engine": "keda"}}
    values = at("keda.serverAddress", "http://prom:9090") | {
        "workers": {"openai": scaling, "openai-compatible": scaling}
    }
    query = render(values).named("ScaledObject", f"{NAME}-worker-openai")["spec"]["triggers"][0]["metadata"]["query"]
    (pods,) = re.findall(r'pod=~"([^"]+)"', query)
    assert re.fullmatch(pods, f"{NAME}-worker-openai-7d9f8b6c5d-x2x4z")
    assert not re.fullmatch(pods, f"{NAME}-worker-openai-compatible-7d9f8b6c5d-x2x4z")


def test_certificates_have_the_names_that_peers_ask_for():
    rendered = render(example="production")
    for component in ("router", "shim", "worker-openai"):
        certificate = rendered.named("Certificate", f"{NAME}-{component}")["spec"]
        assert {"server auth", "client auth"} <= set(certificate["usages"])
        for suffix in ("", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local"):
            assert f"{NAME}-{component}{suffix}" in certificate["dnsNames"]
    router, worker = rendered.config("router"), rendered.config("worker-openai")
    for uri in router["workers"].values():
        host = re.fullmatch(r"https://([^:]+):50061", uri)[1]
        assert host in rendered.named("Certificate", host)["spec"]["dnsNames"]
    assert router["tls"]["clients"][0] in rendered.named("Certificate", f"{NAME}-shim")["spec"]["dnsNames"]
    assert worker["tls"]["clients"] == [f"{NAME}-router.{NAMESPACE}.svc"]
    assert worker["tls"]["clients"][0] in rendered.named("Certificate", f"{NAME}-router")["spec"]["dnsNames"]


def test_issuers_of_tokens_are_callers_like_api_keys():
    issuers = [{"issuer": "https://idp.example", "audience": "imagegate"}]
    rendered = render(merged(at("config.jwt_issuers", issuers), OPENAI_KEY, at("router.credentials", {"OPENAI": KEY})))
    assert rendered.config("router")["jwt_issuers"] == issuers
    assert "auth" not in rendered.config("router")


def test_api_keys_alone_can_be_enough_for_the_router():
    rendered = render(merged(MTLS, at("tls.requireRouterClients", False)))
    assert "clients" not in rendered.config("router")["tls"]
    assert rendered.config("worker-sandbox")["tls"]["clients"]


def test_the_chart_s_own_authority_signs_for_all():
    rendered = render(merged(at("tls.mode", "certManager"), at("tls.certManager.selfSigned", True)))
    authority = rendered.named("Certificate", f"{NAME}-ca")["spec"]
    assert authority["isCA"] and authority["issuerRef"]["name"] == f"{NAME}-selfsigned"
    assert rendered.named("Issuer", f"{NAME}-ca")["spec"] == {"ca": {"secretName": authority["secretName"]}}
    for component in ("router", "shim", "worker-sandbox"):
        assert rendered.named("Certificate", f"{NAME}-{component}")["spec"]["issuerRef"]["name"] == f"{NAME}-ca"


def test_probes_ask_the_admin_port_whatever_tls_is():
    for values in ({}, MTLS):
        for component in ("router", "shim", "worker-sandbox"):
            container = render(values).container(component)
            services = [container[f"{probe}Probe"]["grpc"] for probe in ("startup", "readiness", "liveness")]
            assert services == [{"port": 9090, "service": name} for name in ("liveness", "readiness", "liveness")]


def test_the_test_pod_makes_an_image_as_the_shim_would():
    rendered = render(example="production")
    pod = rendered.named("Pod", f"{NAME}-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["args"][0] == "generate" and f"https://{NAME}-router:50051" in container["args"]
    (etc,) = [volume["projected"] for volume in pod["spec"]["volumes"] if volume["name"] == "etc"]
    assert etc["sources"][0]["secret"]["name"] == f"{NAME}-shim-tls"
    callers = rendered.named("NetworkPolicy", f"{NAME}-router")["spec"]["ingress"][0]["from"]
    assert [
        peer
        for peer in callers
        if matches(peer.get("podSelector", {}).get("matchLabels", {"": ""}), pod["metadata"]["labels"])
    ]


def test_registries_tags_and_digests():
    digest = "sha256:" + "1" * 64

    def image(values, component="router"):
        return render(values).container(component)["image"]

    assert image({}) == "ghcr.io/imagegate/imagegate:0.1.0"
    assert image(at("global.imageRegistry", "r:5000")) == "r:5000/imagegate/imagegate:0.1.0"
    assert image(at("image.digest", digest)) == f"ghcr.io/imagegate/imagegate@{digest}"
    assert image(at("image.registry", "")) == "imagegate/imagegate:0.1.0"
    assert (
        image(merged(at("image.digest", digest), at("router.image.tag", "next"))) == "ghcr.io/imagegate/imagegate:next"
    )
    assert (
        image(merged(at("image.digest", digest), at("workers.sandbox.image.repository", "own")), "worker-sandbox")
        == "ghcr.io/own:latest"
    )


def test_long_names_stay_apart():
    values = {"fullnameOverride": "a" * 63, "workers": {"b" * 40: {"enabled": True}, "b" * 39: {"enabled": True}}}
    assert not kubernetes_problems(render(values), ["1.34"])


def test_every_alert_says_what_and_where_to_look():
    (rule,) = render(example="production").kinds("PrometheusRule")
    alerts = rule["spec"]["groups"][0]["rules"]
    assert len(alerts) >= 10
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning") and alert["labels"]["team"] == "images"
        assert alert["annotations"]["summary"] and alert["annotations"]["description"]
        assert alert["annotations"]["runbook_url"].endswith("docs/operations.md#" + alert["alert"].lower())
        assert f'namespace="{NAMESPACE}"' in alert["expr"]


def metrics_used():
    """Every metric of ours in alerts, the dashboard and autoscalers."""
    texts = [(chart.CHART / "dashboards" / "imagegate.json").read_text()]
    texts += [json.dumps(render(example="production").objects)]
    found = re.findall(r"\bimagegate_[a-z_]+", " ".join(texts))
    return {re.sub(r"_seconds_(bucket|count)$", "_seconds", name) for name in found}


def metrics_counted():
    """Every metric that the sources name."""
    return {
        name for file in (ROOT / "src").rglob("*.rs") for name in re.findall(r'"(imagegate_[a-z_]+)"', file.read_text())
    }


def test_metrics_are_those_of_the_binary():
    assert metrics_used() <= metrics_counted()


def test_the_dashboard_is_whole():
    board = json.loads((chart.CHART / "dashboards" / "imagegate.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["targets"]
    carried = render(at("metrics.dashboard.enabled", True)).named("ConfigMap", f"{NAME}-dashboard")
    assert json.loads(carried["data"]["imagegate.json"]) == board


# --- What people read ---


def test_the_readme_is_current():
    command = [sys.executable, ROOT / "helm" / "readme.py", "--check"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_readme_s_example_is_taken():
    (example,) = re.findall(r"```yaml\n(.*?)```", (chart.CHART / "README.md").read_text(), re.DOTALL)
    rendered = render(yaml.safe_load(example))
    assert not kubernetes_problems(rendered, ["1.34"])
    assert rendered.config("router")["virtual_keys"] == {"openai": {"provider": "openai", "held_by": "worker"}}


def test_objects_of_ones_own_are_filled_in():
    text = 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ include "imagegate.fullname" . }}-text'
    mapped = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-map"}}
    rendered = render({"extraObjects": [text, mapped]})
    assert rendered.named("ConfigMap", f"{NAME}-text") and rendered.named("ConfigMap", f"{chart.RELEASE}-map")


def test_notes_tell_the_first_request():
    said = notes()
    assert f"port-forward svc/{NAME}-shim 8787:8787" in said and "/v1/images/generations" in said
    assert "callers need no key" in said and "plain text" in said
    assert "kept" not in said and "a link works at one of them only" not in said


def test_notes_warn_of_what_replicas_do_not_share():
    said = notes(merged(at("shim.replicas", 2), at("router.replicas", 2)))
    assert "2 shims" in said and "a link works at one of them only" in said
    assert "2 routers share neither cache nor idempotency keys" in said and "2 routers keep jobs" in said


def test_notes_have_no_warning_for_production():
    said = notes(example="production")
    assert said.count("WARNING") == 1 and "the Gateway of grpcRoute must speak TLS to the router" in said
    assert "https://images.example.com/v1" in said and "authorization: Bearer $IMAGEGATE_API_KEY" in said


def test_notes_tell_of_a_provider_without_a_worker():
    values = merged(
        OPENAI_KEY,
        at("router.credentials", {"OPENAI": KEY}),
        at("config.auth", "open"),
        {"allowOpenWithCredentials": True},
    )
    assert "config.virtual_keys.openai is for openai, which no enabled worker serves" in notes(values)
