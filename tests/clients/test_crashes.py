"""A process that is killed loses nothing that it has acknowledged, and nothing of its request log."""

import json
import secrets
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from gateway import OPS_KEY, TEAM_KEY, eventually
from grpc_client import Admin
from memory import SOON, answered, image, metric, sandbox_traffic, saved_config

ROUNDS = 20
RATE = 200
SANDBOX = {"configs": {"pc-sandbox": {"provider": "sandbox"}}, "virtual_keys": {}}


class Writer:
    """Saves what it can until the gateway is killed. What was answered counts."""

    def __init__(self):
        self.configs, self.keys, self.callers = {}, set(), {}
        self.killed = False

    def run(self, admin, number):
        try:
            for i in range(10_000):
                content = {"provider": "sandbox", "override_params": {"seed": i}}
                slug = saved_config(admin, content, f"c{number}")
                self.configs[slug] = content
                content = {**content, "request_timeout": 1000 + i}
                admin.ask("UpdateConfig", slug=slug, config_json=json.dumps(content))
                self.configs[slug] = content
                fields = {"provider": "openai", "key": f"sk-{i}"}
                self.keys.add(admin.ask("CreateVirtualKey", name=f"k{number}", **fields).virtual_key.slug)
                made = admin.ask("CreateApiKey", name=f"a{number}", scopes=["generate"])
                self.callers[made.api_key.id] = made.key
        except grpc.RpcError:
            assert self.killed, "a write failed before the crash"

    def check(self, gateway, admin):
        """All of it is there."""
        assert set(self.configs) <= {config.slug for config in admin.ask("ListConfigs").configs}
        for slug, content in list(self.configs.items())[-3:]:
            kept = json.loads(admin.ask("GetConfig", slug=slug).config.config_json)
            # An update that was written but not answered counts either way.
            assert kept.items() >= content.items()
            answered(image(gateway, slug, size="32x32"))
        assert self.keys <= {key.slug for key in admin.ask("ListVirtualKeys").virtual_keys}
        assert set(self.callers) <= {key.id for key in admin.ask("ListApiKeys").api_keys}
        for key in list(self.callers.values())[-1:]:
            answered(image(gateway, "pc-sandbox", key=key, size="32x32"))


def check_file(data, tmp_path):
    """SQLite finds nothing wrong with the file as the crash has left it."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in data.glob("imagegate.db*"):
        shutil.copy(file, copy)
    with sqlite3.connect(copy / "imagegate.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_crash_loses_nothing_that_was_acknowledged_and_nothing_of_the_log(remembering, store, tmp_path):
    writer, traces, began_ms, recovered, answers = Writer(), [], 0, 0, 0
    for number in range(ROUNDS + 1):
        gateway = remembering(store, **SANDBOX)
        admin = Admin(gateway)
        if number > 0:
            writer.check(gateway, admin)

            def missing():
                found = {record.trace_id for record in admin.requests(from_unix_ms=began_ms)}
                return [trace for trace in traces if trace not in found]

            eventually(lambda: not missing(), SOON, f"the log after crash {number}")
            recovered += metric(gateway, "imagegate_request_log_recovered_total")
            # Of the write that the kill has cut. Whose request that was had no answer yet: the others are all there.
            lost = "imagegate_request_log_lost_total"
            assert metric(gateway, lost) == metric(gateway, f'{lost}{{reason="crash"}}') <= 1
        if number == ROUNDS:
            break
        began_ms, writer.killed = int(time.time() * 1000) - 1000, False
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(writer.run, admin, number)
            traffic = sandbox_traffic(gateway, RATE, config="pc-sandbox")
            saved = len(writer.callers)
            enough = max(saved, number + 1)
            eventually(lambda: len(writer.callers) > enough, 30, "something to save")
            # So that crashes fall everywhere between two writings of the log, which are half a second apart.
            time.sleep(0.3 + 0.025 * number)
            writer.killed = True
            gateway.back.kill()
            traffic.end()
            work.result(30)
        admin.close()
        traces = [answer.result for answer in traffic.answers]
        answers += len(traces)
        if not store.postgres:
            check_file(tmp_path / "data", tmp_path)
    print(f"{ROUNDS} crashes: {answers} requests answered, {recovered:.0f} taken over by the next process, 0 lost")
    assert min(len(writer.configs), len(writer.keys), len(writer.callers)) > ROUNDS, "there was too little to save"
    assert answers > ROUNDS * RATE / 4, "there was too little traffic to say anything"
    assert recovered > ROUNDS, "no crash left anything to recover: this test has shown nothing"


def test_what_the_store_does_not_take_at_the_end_is_written_at_the_next_start(remembering, shared, postgres):
    gateway = remembering(shared, **SANDBOX)
    postgres.kill()
    trace = answered(image(gateway, "pc-sandbox", size="32x32")).headers["x-portkey-trace-id"]
    gateway.back.terminate()
    assert gateway.back.wait() == 0
    postgres.start()
    gateway = remembering(shared, **SANDBOX)
    eventually(lambda: Admin(gateway).requests(trace_id=trace), SOON, "the request of before")
    gateway.back.terminate()
    assert gateway.back.wait() == 0


def test_a_journal_that_ends_in_the_middle_is_counted(remembering, store, tmp_path):
    gateway = remembering(store, **SANDBOX, log={"flush_ms": 60_000})
    traces = [answered(image(gateway, "pc-sandbox", size="32x32")).headers["x-portkey-trace-id"] for _ in range(3)]
    gateway.back.kill()
    (file,) = [path for path in (tmp_path / "data" / "journal").iterdir() if path.stat().st_size > 0]
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    file.write_bytes(file.read_bytes()[:-1])
    gateway = remembering(store, **SANDBOX)
    eventually(lambda: len(Admin(gateway).requests()) == 2, SOON, "what was whole")
    assert {record.trace_id for record in Admin(gateway).requests()} == set(traces[:2])
    assert metric(gateway, "imagegate_request_log_recovered_total") == 2
    assert metric(gateway, "imagegate_request_log_lost_total") == 1
    eventually(lambda: not file.exists(), SOON, "the end of the old file")


def test_no_prompt_waits_in_a_file_that_may_not_be_kept(remembering, store, tmp_path):
    prompt = "a canary " + secrets.token_hex(8)
    gateway = remembering(store, **SANDBOX, log={"flush_ms": 60_000})
    answered(image(gateway, "pc-sandbox", size="32x32", prompt=prompt))
    written = b"".join(path.read_bytes() for path in (tmp_path / "data" / "journal").iterdir())
    assert written and prompt.encode() not in written
    assert TEAM_KEY.encode() not in written and OPS_KEY.encode() not in written
