"""Requests from other sites, of other hosts, without a token."""

import pytest

pytest.importorskip("fastapi", reason="needs fastapi, of the extra studio")
pytest.importorskip("httpx", reason="needs httpx, of the group dev")

from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from tokvid.errors import UserError
from tokvid.studio import serving
from tokvid.studio.guard import LOOPBACK, Guard
from tokvid.studio.serving import is_loopback, listen


def client(hosts, token=None, base="http://127.0.0.1:7860"):
    return TestClient(Guard(PlainTextResponse("inside"), hosts, token, most_upload=1000), base_url=base)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:7860"}, 421),
        ({"host": "evil.example:7860@127.0.0.1"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://127.0.0.1:7861"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"content-length": "-1"}, 413),
        ({"content-length": "999999999999"}, 413),
    ],
)
def test_only_the_page_itself_may_ask(headers, status):
    answer = client(LOOPBACK).post("/", headers=headers)
    assert answer.status_code == status
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


def test_another_sites_page_may_only_link_here():
    inside, elsewhere = client(LOOPBACK), {"sec-fetch-site": "cross-site"}
    answers = {
        method: inside.request(method, "/", headers=elsewhere).status_code for method in ("GET", "PUT", "DELETE")
    }
    assert answers == {"GET": 200, "PUT": 403, "DELETE": 403}


def test_browsers_get_no_header_that_they_would_ignore_and_complain_of():
    bases = {
        "http://127.0.0.1": LOOPBACK,
        "http://localhost": None,
        "http://studio.example:7860": None,
        "https://a.b": None,
    }
    policies = [
        "cross-origin-opener-policy" in client(hosts, "t", base).get("/").headers for base, hosts in bases.items()
    ]
    assert policies == [True, True, False, True]


def test_a_token_opens_the_door_and_no_other():
    open_to_all = client(None, "Secret-1", "http://studio.example:7860")
    assert open_to_all.get("/api/takes").status_code == 401
    assert open_to_all.get("/?token=Secret-2", follow_redirects=False).status_code == 401
    assert open_to_all.get("/api/takes?token=Secret-1").status_code == 401  # links to the page only
    assert open_to_all.get("/api/takes", headers={"authorization": "Bearer Secret-1"}).status_code == 200
    assert open_to_all.get("/api/takes", headers={"cookie": "tokvid-studio=no; =; ,;"}).status_code == 401
    answer = open_to_all.get("/?token=Secret-1", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert {"httponly", "samesite=strict"} <= set(answer.headers["set-cookie"].lower().split("; "))
    assert open_to_all.get("/api/takes").text == "inside"  # by the cookie


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "localhost.evil.example")))


@pytest.mark.parametrize("host, named", [("127.0.0.2", "127.0.0.2"), ("localhost", "localhost")])
def test_the_page_answers_on_the_address_that_it_is_served_on(monkeypatch, tmp_path, host, named):
    def application(studio, hosts, token):
        assert token is None and named in hosts and {*LOOPBACK} <= {*hosts}
        raise UserError("seen")

    monkeypatch.setattr(serving, "Studio", lambda folder, worlds: None)
    monkeypatch.setattr(serving, "application", application)
    with pytest.raises(UserError, match="seen"):
        serving.serve(tmp_path, {}, (host, 0))


def test_a_port_in_use_is_named():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"cannot listen on 127.0.0.1:\d+: .*--port"):
        listen("127.0.0.1", taken.getsockname()[1])
    for host in ("nowhere.invalid", 64 * "a", ".."):
        with pytest.raises(UserError, match=r"cannot listen on .*; check --host"):
            listen(host, 0)
