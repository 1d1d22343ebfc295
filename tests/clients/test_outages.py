"""Requests go on whatever becomes of the store, one alarm says what it is, and nothing is lost that there is room for."""

import json
import sqlite3
import threading
import time

import grpc
import pytest

import faulty_disk
from gateway import eventually, founding_config
from grpc_client import Admin
from memory import (
    EXPIRY, Store, alarms, answered, image, logged, metric, sandbox_traffic, saved_config, stored_key,
)
from slow_link import Link

SANDBOX = {"configs": {"pc-sandbox": {"provider": "sandbox"}}, "virtual_keys": {}}
RATE = 25
# Seconds. Whoever waited for a store that is slow would wait longer than that, and a busy machine does not.
NOTICEABLE = 1.0
# Whoever manages something gets an answer within this many seconds: docs/management.md.
ANSWER = 15
# In an outage, calls of management are either refused, or answered, or either, as it happens.
REFUSED, ANSWERED, EITHER = {503}, {200}, {200, 503}


class Outage:
    """What becomes of a store: `begin` and `end` do it."""

    state = "takes nothing that is written"
    reads, writes, up = ANSWERED, REFUSED, 0

    def __init__(self, request, tmp_path):
        self.store = Store(tmp_path)
        self.env = {}

    def close(self):
        pass


class Locked(Outage):
    """Another process writes for two seconds at a time."""

    state, writes, up = "slow", EITHER, 1

    def __init__(self, request, tmp_path):
        super().__init__(request, tmp_path)
        self._file, self._ended, self._thread = tmp_path / "data" / "imagegate.db", threading.Event(), None

    def begin(self):
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self):
        database = sqlite3.connect(self._file, isolation_level=None, timeout=30)
        while not self._ended.is_set():
            database.execute("BEGIN IMMEDIATE")
            time.sleep(2)
            database.execute("ROLLBACK")
            time.sleep(0.1)
        database.close()

    def end(self):
        self._ended.set()
        self._thread.join()


class BadDisk(Outage):
    def __init__(self, request, tmp_path, fault):
        super().__init__(request, tmp_path)
        if missing := faulty_disk.needs():
            pytest.skip(missing)
        self._fault, self._disk = fault, faulty_disk.Disk(f"{tmp_path}/data/")
        self.env = self._disk.env
        if fault in ("slow", "stuck"):
            self.state, self.writes, self.up = "slow", EITHER, 1

    def begin(self):
        self._disk.fail(self._fault)

    def end(self):
        self._disk.mend()

    def close(self):
        self._disk.close()


class Database(Outage):
    """A PostgreSQL with which something happens."""

    def __init__(self, request, tmp_path):
        super().__init__(request, tmp_path)
        self.postgres = request.getfixturevalue("postgres")
        self.store = Store(tmp_path, self.postgres)


class Late(Database):
    """Every answer takes two seconds."""

    state, reads, writes, up = "slow", EITHER, EITHER, 1

    def __init__(self, request, tmp_path):
        super().__init__(request, tmp_path)
        self._link = Link(self.postgres.port)
        self.store.env["STORE_URL"] = self.postgres.url(self._link.port)

    def begin(self):
        self._link.delay = 2

    def end(self):
        self._link.delay = 0

    def close(self):
        self._link.close()


class Gone(Database):
    state, reads = "away", REFUSED

    def begin(self):
        self.postgres.kill()

    def end(self):
        self.postgres.start()


class Frozen(Database):
    state, reads = "away", REFUSED

    def begin(self):
        self.postgres.freeze()

    def end(self):
        self.postgres.thaw()


class Replica(Database):
    """It answers, and nothing can be written: what is left after a failover."""

    def begin(self):
        self._set("on")

    def end(self):
        self._set("off")

    def _set(self, value):
        self.postgres.sql(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        self.postgres.sql("SELECT pg_reload_conf()")


class FullDatabase(Database):
    """The disk of its tables has no more room. What fits into their pages is still taken."""

    writes = EITHER

    def __init__(self, request, tmp_path):
        super().__init__(request, tmp_path)
        if missing := faulty_disk.needs():
            pytest.skip(missing)
        self._disk = faulty_disk.Disk("/data/base/")
        self.postgres.kill()
        self.postgres.env = self._disk.env
        self.postgres.start()

    def begin(self):
        self._disk.fail("full")

    def end(self):
        self._disk.mend()

    def close(self):
        self._disk.close()


# In pairs of a long one and a short one: as many processes as there are pairs take about as long each.
OUTAGES = {
    "postgres-late": Late,
    "postgres-full": FullDatabase,
    "postgres-gone": Gone,
    "postgres-readonly": Replica,
    "postgres-frozen": Frozen,
    "sqlite-full": lambda *given: BadDisk(*given, "full"),
    "sqlite-stuck": lambda *given: BadDisk(*given, "stuck"),
    "sqlite-readonly": lambda *given: BadDisk(*given, "readonly"),
    "sqlite-slow": lambda *given: BadDisk(*given, "slow"),
    "sqlite-locked": Locked,
}


@pytest.fixture(params=OUTAGES)
def outage(request, tmp_path):
    outage = OUTAGES[request.param](request, tmp_path)
    yield outage
    outage.end()
    outage.close()


def status(admin, call, **fields):
    """The status of a call of management, which must come in time."""
    began = time.monotonic()
    try:
        admin.ask(call, timeout=ANSWER + 5, **fields)
        found = 200
    except grpc.RpcError as error:
        detail = admin.details(error).get("ErrorDetail")
        assert detail is not None, f"{call} had no answer within {ANSWER} s: {error}"
        found = detail.status
    assert time.monotonic() - began < ANSWER, call
    return found


def is_well(gateway):
    """Whether the gateway has said that the outage is over."""
    said = [event["fields"].get("message") for event in gateway.back.events]
    return "the store is well again" in said


@pytest.mark.timeout(180)
def test_requests_go_on_whatever_becomes_of_the_store(remembering, outage):
    gateway = remembering(outage.store, outage.env, **SANDBOX)
    admin = Admin(gateway)
    slug = saved_config(admin, {"provider": "sandbox"})
    key = admin.ask("CreateApiKey", name="b", scopes=["generate"], default_config=slug).key
    config = json.dumps({"provider": "sandbox", "request_timeout": 1000})
    traffic = sandbox_traffic(gateway, RATE, key)
    time.sleep(0.5)
    healthy = time.monotonic()
    time.sleep(3)
    assert alarms(gateway) == [] and metric(gateway, "imagegate_store_up") == 1

    outage.begin()
    broken = time.monotonic()
    time.sleep(3)
    reads = [status(admin, call) for call in ("ListConfigs", "ListRequests")]
    during = {"name": "during", "slug": "pc-during", "config_json": config}
    wrote = {
        "config": status(admin, "CreateConfig", **during),
        "update": status(admin, "UpdateConfig", slug=slug, config_json=config),
        "key": status(admin, "CreateVirtualKey", name="k", slug="during", provider="openai", key="sk"),
    }
    time.sleep(max(0, broken + 7 - time.monotonic()))
    assert set(reads) <= outage.reads and set(wrote.values()) <= outage.writes, (reads, wrote)
    (alarm,) = eventually(lambda: alarms(gateway), 30, "the alarm")
    assert outage.state in alarm["message"], alarm
    eventually(lambda: metric(gateway, "imagegate_store_up") == outage.up, 5, "the outage in the metrics")

    outage.end()
    over = time.monotonic()
    # Five calm seconds after the last write that took more than one, which a busy disk may take now and then.
    eventually(lambda: is_well(gateway), 60, "the end of the outage")
    eventually(lambda: metric(gateway, "imagegate_store_up") == 1, 5, "the end of the outage in the metrics")
    time.sleep(1)
    traffic.end()
    p99 = {"healthy": traffic.p99(healthy, broken), "broken": traffic.p99(broken, over)}
    print(" ".join(f"{state} {time * 1000:.1f} ms" for state, time in p99.items()), alarm, reads, wrote)
    assert p99["broken"] < p99["healthy"] + NOTICEABLE, p99
    assert traffic.failures == [] and len(alarms(gateway)) == 1, alarms(gateway)

    # What was refused has left nothing behind, and can be done now.
    if wrote["config"] == 503 and outage.writes is REFUSED:
        admin.ask("CreateConfig", **during)
    if wrote["update"] == 503 and outage.writes is REFUSED:
        assert admin.ask("GetConfig", slug=slug).config.version == 1
    if wrote["key"] == 503 and outage.writes is REFUSED:
        admin.ask("CreateVirtualKey", name="k", slug="during", provider="openai", key="sk")
    for slug in [config.slug for config in admin.ask("ListConfigs").configs]:
        answered(image(gateway, slug, size="32x32"))
    # The log has all of it.
    asked = {answer.result for answer in traffic.answers}
    eventually(lambda: asked <= {record.trace_id for record in admin.requests()}, 10, "all of the log")
    assert metric(gateway, "imagegate_request_log_lost_total") == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["readonly", "full", "corrupt"])
def test_a_gateway_starts_and_serves_without_its_file(remembering, tmp_path, fault):
    if missing := faulty_disk.needs():
        pytest.skip(missing)
    store, data = Store(tmp_path), tmp_path / "data"
    gateway = remembering(store, **SANDBOX)
    saved = saved_config(Admin(gateway), {"provider": "sandbox"})
    gateway.back.stop()
    file, disk = data / "imagegate.db", faulty_disk.Disk(f"{data}/")
    whole = file.read_bytes()
    try:
        if fault == "corrupt":
            file.write_bytes(b"not a database" * 1000)
        elif fault == "full":
            file.unlink()
        if fault != "corrupt":
            disk.fail(fault)
        gateway = remembering(store, disk.env, **SANDBOX)
        answered(image(gateway, "pc-sandbox", size="32x32"))
        (alarm,) = eventually(lambda: alarms(gateway), 10, "the alarm")
        assert "the store" in alarm["message"] and alarm["reason"], alarm
        assert metric(gateway, "imagegate_store_up") == 0
        assert status(Admin(gateway), "CreateConfig", name="x", config_json='{"provider": "sandbox"}') == 503
        if fault == "corrupt":
            for rest in data.glob("imagegate.db-*"):
                rest.unlink()
            file.write_bytes(whole)
        disk.mend()
        # It is tried again until it works; what was saved is in force then, and what was asked meanwhile is in the log.
        eventually(lambda: is_well(gateway), 30, "the store")
        admin = Admin(gateway)
        if fault != "full":
            answered(image(gateway, saved, size="32x32"))
        saved_config(admin, {"provider": "sandbox"}, "later")
        eventually(lambda: admin.requests(config="pc-sandbox"), 5, "the request of before")
        assert len(alarms(gateway)) == 1 and metric(gateway, "imagegate_store_up") == 1
    finally:
        disk.close()


def test_a_key_expires_without_the_store_too(remembering, shared, postgres):
    gateway = remembering(shared)
    admin = Admin(gateway)
    ends = int((time.time() + 3) * 1000)
    brief = admin.ask("CreateApiKey", name="b", scopes=["generate"], expires_unix_ms=ends).key
    old = admin.ask("CreateApiKey", name="c", scopes=["generate"])
    admin.ask("RotateApiKey", id=old.api_key.id, overlap_s=2)
    answered(image(gateway, "pc-openai", key=brief))
    answered(image(gateway, "pc-openai", key=old.key))
    postgres.kill()
    time.sleep(max(0, ends / 1000 - time.time()) + EXPIRY)
    assert [image(gateway, "pc-openai", key=key).status_code for key in (brief, old.key)] == [401, 401]


def test_a_database_that_is_away_at_the_start_is_said(serve, shared, postgres, stability_api, openai_api, tmp_path):
    postgres.kill()
    config = founding_config(stability_api, openai_api, **shared.config)
    with pytest.raises(AssertionError) as failed:
        serve(config, shared.env)
    assert "store" in str(failed.value).lower() and postgres.password not in str(failed.value)


def test_a_stored_key_is_used_while_the_database_is_away(remembering, shared, postgres, openai_api):
    gateway = remembering(shared)
    admin = Admin(gateway)
    virtual_key = stored_key(admin, openai_api)
    postgres.kill()
    answer = answered(image(gateway, {"virtual_key": virtual_key, "override_params": {"model": "dall-e-3"}}))
    postgres.start()
    assert logged(admin, answer, 10).virtual_key == virtual_key
