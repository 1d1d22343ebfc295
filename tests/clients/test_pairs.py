"""A fallback from every provider to every other gives what the caller asked for, whoever answers."""

import base64
import itertools
import json

import pytest
import requests

from emulators import faults
from emulators.pictures import look
from emulators.ring import everyone

PROVIDERS = everyone()


class Sandbox:
    """The provider that calls nobody has no emulator: what it does is in its model's name."""

    provider = "sandbox"
    always = None

    @property
    def model(self):
        return "sandbox-fail-503" if self.always else "sandbox-1"


@pytest.fixture
def ring(serve):
    """All providers of the ring behind one gateway."""
    emulators = {name: kind() for name, kind in PROVIDERS.items()}
    keys = {
        name: {
            "provider": name,
            **emulator.credential(f"KEY_{i}"),
            "base_url": emulator.base_url,
            **emulator.options,
        }
        for i, (name, emulator) in enumerate(emulators.items())
    }
    gateway = serve(
        {
            "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "virtual_keys": {**keys, "sandbox": {"provider": "sandbox"}},
            "egress": {"allow": ["127.0.0.0/8"]},
        },
        env={f"KEY_{i}": emulator.key for i, emulator in enumerate(emulators.values())},
    )
    yield gateway, [*emulators.values(), Sandbox()]
    for emulator in emulators.values():
        emulator.close()


def target(provider):
    return {"virtual_key": provider.provider, "override_params": {"model": provider.model}, "breaker": False}


@pytest.mark.parametrize("failing", [*PROVIDERS, Sandbox.provider])
def test_every_pair_gives_the_shape_that_was_asked_for(ring, failing):
    gateway, providers = ring
    assert len(providers) >= 15
    for i, (first, second) in enumerate(itertools.permutations(providers, 2)):
        if first.provider != failing:
            continue
        shape, format = ("url", "PNG") if i % 3 == 0 else ("b64_json", ["JPEG", "PNG"][i % 2])
        # Not once only: of several calls at a time the others are given up, and may still arrive for the next pair.
        first.always = faults.status(503)
        config = {"strategy": {"mode": "fallback"}, "targets": [target(first), target(second)]}
        body = {"prompt": "a lighthouse", "n": 2, "response_format": shape, "output_format": format.lower()}
        answer = gateway.post(body=body, key=None, headers={"x-portkey-config": json.dumps(config)})
        pair = f"{first.provider} -> {second.provider}: {answer.text[:500]}"
        assert answer.status_code == 200, pair
        assert answer.headers["x-portkey-last-used-option-index"] == "config.targets[1]", pair
        found = answer.json()["data"]
        assert len(found) == 2 and all(set(image) & {"url", "b64_json"} == {shape} for image in found), pair
        for image in found:
            data = requests.get(image["url"], timeout=10).content if shape == "url" else base64.b64decode(image["b64_json"])
            assert look(data).format == format, pair
        first.always = None
