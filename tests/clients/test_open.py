"""A gateway without callers' keys, which only its own machine may use."""

import requests

from gateway import founding_config, openai_error

SMALL = {"prompt": "a red fox", "size": "1024x1024", "response_format": "b64_json"}


def test_a_page_cannot_use_an_open_gateway_under_a_name_of_its_own(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    keys = config.pop("api_keys")
    gateway = serve(config)
    port = gateway.url.rsplit(":", 1)[1]
    assert gateway.post(body=SMALL, key=None).status_code == 200
    assert requests.get(f"http://localhost:{port}/v1/configs", timeout=5).status_code == 200
    rebound = {"host": f"evil.example:{port}"}
    for method, path in [("GET", "/configs"), ("GET", "/models"), ("POST", "/images/generations"), ("GET", "/logs")]:
        answer = requests.request(method, gateway.base_url + path, headers=rebound, json=SMALL, timeout=5)
        assert answer.status_code == 403 and "api_keys" in openai_error(answer)["message"]
    across = gateway.post(body=SMALL, key=None, headers={"origin": "https://evil.example"})
    assert across.status_code == 403
    # Whoever has callers, or says that it is open, may have any name.
    for more in ({"api_keys": keys}, {"auth": "open"}):
        named = serve({**config, **more}, name=next(iter(more)))
        answer = named.post(body=SMALL, headers={**rebound, "origin": "https://a.example"})
        assert answer.status_code == 200, answer.text
