"""`imagegate conform`: it passes workers that keep their promises, and names what others break."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from faulty_worker import FAULTS, KEY, serving
from gateway import ROOT, TOOLS, run

EXAMPLES = ROOT / "examples"


@pytest.fixture
def conform(tmp_path):
    """Runs the kit: the exit code, the report, and the ids of the checks by their outcome."""

    def conform(uri, *args):
        finished = run(["conform", uri, "--json", *args], tmp_path, {"PAINT_KEY": KEY}, timeout=100)
        assert finished.stdout, finished.stderr
        report = json.loads(finished.stdout)
        outcomes = {}
        for check in report["checks"]:
            outcomes.setdefault(check["outcome"], set()).add(check["id"])
        return finished.returncode, report, outcomes

    return conform


@pytest.fixture
def example(tmp_path):
    """Starts an example in the way its README says, where its packages are installed."""
    started = []

    def example(name, *args):
        if name == "worker-node":
            # Node looks for packages beside the program, and the program for the protos above itself.
            (tmp_path / "proto").symlink_to(ROOT / "proto")
            folder = tmp_path / "examples" / name
            shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("node_modules"))
            (folder / "node_modules").symlink_to(TOOLS / "node" / "node_modules")
            command = ["node", folder / "worker.mjs"]
        else:
            command = [sys.executable, "-u", EXAMPLES / name / "worker.py"]
        worker = subprocess.Popen(
            [*map(str, command), *args, "127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        started.append(worker)
        return "http://" + re.search(r"127\.0\.0\.1:\d+", worker.stdout.readline())[0]

    yield example
    for worker in started:
        worker.terminate()
        worker.wait(10)


@pytest.mark.parametrize("name", ["worker-python", "worker-node"])
def test_the_examples_conform(conform, example, name):
    code, report, outcomes = conform(example(name, "--conform"), "--strict")
    assert (code, outcomes.get("failed")) == (0, None), report
    assert outcomes["not_applicable"] == {"inputs", "bad-credential"}


def test_the_shortest_worker_of_the_guide_conforms(conform, tmp_path):
    guide = (ROOT / "docs" / "writing-a-worker.md").read_text()
    program = tmp_path / "dots.py"
    program.write_text(re.search(r"```python\n(import .*?)```", guide, re.DOTALL)[1])
    protos = [f"imagegate/v1/{name}.proto" for name in ("image", "worker")]
    into = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "proto", *into, *protos], check=True)
    worker = subprocess.Popen([sys.executable, program, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        uri = "http://" + re.search(r"127\.0\.0\.1:\d+", worker.stdout.readline())[0]
        code, report, outcomes = conform(uri)
        assert (code, outcomes.get("failed")) == (0, None), report
    finally:
        worker.terminate()
        worker.wait(10)


def test_the_guide_lists_every_check(conform):
    with serving() as uri:
        _, report, _ = conform(uri)
    guide = (ROOT / "docs" / "writing-a-worker.md").read_text().split("## The kit")[1]
    assert [check["id"] for check in report["checks"] if f"`{check['id']}`" not in guide] == []


@pytest.mark.parametrize("name", ["worker-python/worker.py", "worker-node/worker.mjs"])
def test_the_examples_stay_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 150


def test_the_node_example_and_the_tests_use_the_same_packages():
    wanted, installed = (
        json.loads((folder / "package.json").read_text())["dependencies"]
        for folder in (EXAMPLES / "worker-node", ROOT / "tests" / "clients" / "node")
    )
    assert wanted.items() <= installed.items()


def test_without_its_test_models_an_example_conforms_but_not_strictly(conform, example):
    uri = example("worker-python")
    code, report, outcomes = conform(uri)
    assert (code, outcomes.get("failed")) == (0, None), report
    assert outcomes["not_observed"] == {"refusal", "rate-limit", "large-image", "deadline", "cancellation"}
    assert conform(uri, "--strict")[0] == 1


def test_our_own_worker_conforms(conform, start):
    worker = start("worker", "--provider", "sandbox", "--listen", "127.0.0.1:0")
    code, report, outcomes = conform("http://" + worker.address("worker"), "--strict")
    assert (code, outcomes.get("failed")) == (0, None), report
    # Its record takes any model, needs no credential, and has no limit for prompts.
    assert outcomes["not_applicable"] == {"unknown-model", "bad-credential", "prompt"}


def test_an_honest_worker_has_every_check_passed(conform):
    with serving() as uri:
        code, report, outcomes = conform(uri, "--strict", "--api-key-env", "PAINT_KEY")
    assert code == 0 and set(outcomes) == {"passed"}, report


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(conform, fault):
    with serving(fault) as uri:
        code, report, outcomes = conform(uri, "--api-key-env", "paint=PAINT_KEY")
    assert (code, report["conforms"]) == (1, False)
    findings = {check["id"]: check["findings"] for check in report["checks"] if check["findings"]}
    assert set(findings) == outcomes["failed"] == FAULTS[fault][1], findings
    assert KEY not in json.dumps(report)


def test_without_a_credential_only_what_needs_none_is_checked(conform):
    with serving() as uri:
        code, _, outcomes = conform(uri)
    assert code == 0
    assert outcomes["passed"] == {"health", "describe", "record", "unknown-provider", "bad-credential"}
    assert "call" in outcomes["not_observed"]


def test_a_person_reads_what_was_found(tmp_path):
    with serving("WrongSize") as uri:
        finished = run(["conform", uri, "--api-key-env", "PAINT_KEY"], tmp_path, {"PAINT_KEY": KEY})
    assert finished.returncode == 1
    assert "FAIL  size" in finished.stdout
    assert "paint paint-1, size 64x64: image 0: it is 72x64, not 64x64" in finished.stdout
    assert finished.stdout.splitlines()[-1].startswith(f"{uri} does not conform: ")


def test_where_nothing_can_be_checked_it_says_so(tmp_path):
    with serving() as uri:
        for args, reason in [
            (["http://127.0.0.1:9"], "nothing answers at http://127.0.0.1:9"),
            (["not a uri"], "not a uri"),
            ([uri, "--provider", "pain"], 'does not serve "pain"'),
            ([uri, "--api-key-env", "UNSET"], "UNSET is not set"),
            ([], "<URI>"),
        ]:
            finished = run(["conform", *args], tmp_path)
            assert finished.returncode == 2, finished.stdout
            assert reason in finished.stderr
