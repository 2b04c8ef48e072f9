"""The guard: which requests reach the app, and how the others are answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline_engine.api.serving.guard import Guard, GuardSettings, host_names
from pipeline_engine.decoding import Secret

HOSTS = host_names([("127.0.0.1", 8085), ("::1", 8085)], extra=["box.lan", "proxy.lan:443"])
SERVER = ("127.0.0.1", 8085)
UNIX = ("/run/pipeline-engine.sock", None)


def scope_of(
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    target: bytes = b"/v1/jobs",
    host: bytes | None = b"localhost:8085",
    server: tuple[str, int | None] | None = SERVER,
) -> dict[str, Any]:
    named = [] if host is None else [(b"host", host)]
    return {
        "type": "http",
        "method": method,
        "path": target.decode("latin1"),
        "raw_path": target,
        "query_string": b"",
        "headers": [*named, *headers],
        "server": server,
        "client": None,
    }


class Seen:
    """An app that remembers with which scope it was called."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope


async def messages_of(app: Any, scope: dict[str, Any], **settings: Any) -> list[Any]:
    """What the guard, with the app behind it, sends for this request."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the guard reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, settings=GuardSettings(allowed_hosts=HOSTS, **settings))
    await guard(scope, receive, send)
    return sent


async def ask(
    scope: dict[str, Any], **settings: Any
) -> tuple[int, dict[bytes, bytes], dict[str, Any]] | dict[str, Any]:
    """The answer of the guard (status, headers, error), or the scope with which the app was called."""
    app = Seen()
    sent = await messages_of(app, scope, **settings)
    if app.scope is not None:
        assert sent == []
        return app.scope
    start, body = sent
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert int(headers[b"content-length"]) == len(body["body"])
    error = json.loads(body["body"])["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["message"]
    return start["status"], headers, error


async def assert_passes(scope: dict[str, Any], **settings: Any) -> dict[str, Any]:
    seen = await ask(scope, **settings)
    assert isinstance(seen, dict), seen
    return seen


async def assert_refused(scope: dict[str, Any], status: int, code: str, **settings: Any) -> dict[bytes, bytes]:
    answer = await ask(scope, **settings)
    assert isinstance(answer, tuple), "the app was called"
    assert (answer[0], answer[2]["code"]) == (status, code)
    return answer[1]


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LOCALHOST:8085",
        b"127.0.0.1:8085",
        b"127.0.0.1",
        b"[::1]:8085",
        b"[::1]",
        b"box.lan",
        b"Box.lan:8085",
        b"proxy.lan:443",
    ],
)
async def test_a_host_that_names_this_server_passes(host: bytes) -> None:
    await assert_passes(scope_of(host=host))


@pytest.mark.parametrize(
    "host",
    [
        None,
        b"",
        b"evil.example",
        b"evil.example:8085",
        b"127.0.0.1.evil.example",
        b"169.254.169.254",
        b"localhost:9999",
        b"localhost.:8085",
        b"user@localhost:8085",
        b"localhost:8085, evil.example",
        b"proxy.lan",
        b"proxy.lan:8085",
        b"\xff",
        b"10.1.2.3:8085",
    ],
)
async def test_any_other_host_is_forbidden(host: bytes | None) -> None:
    headers = await assert_refused(scope_of(host=host), 403, "forbidden")
    assert headers[b"connection"] == b"close"


async def test_two_hosts_are_forbidden_even_if_both_are_ours() -> None:
    await assert_refused(scope_of((b"host", b"localhost:8085")), 403, "forbidden")


async def test_the_address_on_which_the_connection_arrived_is_a_host_of_ours() -> None:
    arrived = ("10.1.2.3", 8085)
    await assert_passes(scope_of(host=b"10.1.2.3:8085", server=arrived))
    await assert_passes(scope_of(host=b"[fd00::1]:8085", server=("fd00::1", 8085)))
    await assert_refused(scope_of(host=b"10.1.2.3:80", server=arrived), 403, "forbidden")


async def test_an_absolute_target_is_judged_by_its_authority_and_passed_on_as_a_path() -> None:
    scope = await assert_passes(scope_of(target=b"http://127.0.0.1:8085/v1/jobs"))
    assert (scope["raw_path"], scope["path"]) == (b"/v1/jobs", "/v1/jobs")
    scope = await assert_passes(scope_of(target=b"http://localhost:8085"))
    assert (scope["raw_path"], scope["path"]) == (b"/", "/")
    for target in (b"http://evil.example/v1/jobs", b"http://localhost:8085@evil.example/", b"http:///v1/jobs"):
        await assert_refused(scope_of(target=target), 403, "forbidden")


@pytest.mark.parametrize("target", [b"*", b"localhost:8085", b"ftp://localhost:8085/", b"//evil.example/x", b"v1/jobs"])
async def test_other_targets_are_invalid(target: bytes) -> None:
    await assert_refused(scope_of(target=target), 400, "invalid_request")


@pytest.mark.parametrize(
    "origin", [b"http://localhost:8085", b"http://127.0.0.1:8085", b"https://box.lan:8085", b"app://ui"]
)
async def test_our_own_and_allowed_origins_pass(origin: bytes) -> None:
    await assert_passes(scope_of((b"origin", origin)), allowed_origins=frozenset({b"app://ui"}))


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"null",
        b"",
        b"http://localhost.evil.example",
        b"http://localhost",  # another server of this machine, on port 80
        b"http://localhost:3000",
        b"ftp://localhost:8085",
    ],
)
async def test_foreign_origins_are_forbidden(origin: bytes) -> None:
    await assert_refused(scope_of((b"origin", origin)), 403, "forbidden")


async def test_two_origins_are_forbidden() -> None:
    ours = (b"origin", b"http://localhost:8085")
    await assert_refused(scope_of(ours, (b"origin", b"https://evil.example")), 403, "forbidden")
    await assert_refused(scope_of(ours, ours), 403, "forbidden")


async def test_requests_from_other_sites_are_forbidden_unless_their_origin_is_allowed() -> None:
    for site in (b"same-origin", b"none"):
        await assert_passes(scope_of((b"sec-fetch-site", site)))
    for site in (b"cross-site", b"same-site", b"", b"None"):
        await assert_refused(scope_of((b"sec-fetch-site", site)), 403, "forbidden")
    cross = scope_of((b"sec-fetch-site", b"cross-site"), (b"origin", b"app://ui"))
    await assert_passes(cross, allowed_origins=frozenset({b"app://ui"}))


@pytest.mark.parametrize("given", [b"Bearer k-123", b"bearer k-123", b"BEARER  k-123"])
async def test_the_key_opens(given: bytes) -> None:
    await assert_passes(scope_of((b"Authorization", given)), api_key=Secret("k-123"))


@pytest.mark.parametrize("given", [None, b"", b"Bearer", b"Bearer wrong", b"Bearer k-1234", b"Basic k-123", b"k-123"])
async def test_without_the_key_a_call_is_unauthorized(given: bytes | None) -> None:
    headers = () if given is None else ((b"authorization", given),)
    answer = await assert_refused(scope_of(*headers), 401, "unauthorized", api_key=Secret("k-123"))
    assert answer[b"www-authenticate"] == b"Bearer"
    assert b"connection" not in answer


async def test_two_authorizations_are_none() -> None:
    key = (b"authorization", b"Bearer k-123")
    await assert_refused(scope_of(key, key), 401, "unauthorized", api_key=Secret("k-123"))


async def test_open_paths_need_no_key_and_lead_nowhere_else() -> None:
    for target in (b"/health", b"/health/ready", b"/ui", b"/ui/", b"/ui/app.js"):
        await assert_passes(scope_of(target=target), api_key=Secret("k"))
    for target in (b"/uix", b"/", b"/healthy", b"/health/", b"/ui/../v1/jobs", b"/metrics", b"/v1/jobs/health"):
        await assert_refused(scope_of(target=target), 401, "unauthorized", api_key=Secret("k"))


async def test_the_unix_socket_needs_no_key_but_an_unknown_address_does() -> None:
    await assert_passes(scope_of(server=UNIX), api_key=Secret("k"))
    await assert_refused(scope_of(server=None), 401, "unauthorized", api_key=Secret("k"))
    await assert_refused(scope_of(server=UNIX, host=b"evil.example"), 403, "forbidden", api_key=Secret("k"))


async def answers(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers, and has a policy of its own."""
    headers = [(b"Content-Security-Policy", b"mine"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def headers_of(scope: dict[str, Any], **settings: Any) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer; no header comes twice."""
    start = (await messages_of(answers, scope, **settings))[0]
    names = [name.decode().lower() for name, _ in start["headers"]]
    assert len(names) == len(set(names))
    return start["status"], dict(zip(names, (value.decode() for _, value in start["headers"]), strict=True))


async def test_every_answer_forbids_other_sites_what_browsers_would_allow_them() -> None:
    for scope in (scope_of(), scope_of(host=b"evil.example"), scope_of((b"origin", b"https://evil.example"))):
        _, headers = await headers_of(scope)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control-")]
    assert (await headers_of(scope_of()))[1]["content-security-policy"] == "mine"
    refused = (await headers_of(scope_of(host=b"evil.example")))[1]["content-security-policy"]
    assert refused == "default-src 'none'; frame-ancestors 'none'"


APP = b"https://app.example"
ALLOWED: Any = {"allowed_origins": frozenset({APP})}
ASKS = (b"access-control-request-method", b"POST")


async def test_the_pages_of_an_allowed_origin_may_read_answers_and_refusals() -> None:
    for origin in (APP, b"https://APP.example"):
        status, headers = await headers_of(scope_of((b"origin", origin)), **ALLOWED)
        assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, origin.decode(), "Origin")
        assert "Location" in headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in headers
    status, headers = await headers_of(scope_of((b"origin", APP)), api_key=Secret("k"), **ALLOWED)
    assert (status, headers["access-control-allow-origin"]) == (401, APP.decode())


async def test_nobody_else_may_read_and_caches_can_tell_them_apart() -> None:
    for origin in (b"https://evil.example", b"https://app.example.evil.example", b"http://localhost:8085"):
        _, headers = await headers_of(scope_of((b"origin", origin)), **ALLOWED)
        assert "access-control-allow-origin" not in headers
        assert headers["vary"] == "Origin"
    assert (await headers_of(scope_of(), **ALLOWED))[1]["vary"] == "Origin"
    assert "vary" not in (await headers_of(scope_of()))[1]


async def test_a_preflight_of_an_allowed_origin_is_answered_before_the_key_is_asked_for() -> None:
    for key in (None, Secret("k")):
        scope = scope_of((b"origin", APP), (b"sec-fetch-site", b"cross-site"), ASKS, method="OPTIONS")
        status, headers = await headers_of(scope, api_key=key, **ALLOWED)
        assert (status, headers["access-control-allow-origin"]) == (204, APP.decode())
        assert headers["access-control-allow-methods"] == "GET, HEAD, POST, PUT, DELETE"
        assert {"Authorization", "Content-Type"} <= set(headers["access-control-allow-headers"].split(", "))
        assert "access-control-allow-private-network" not in headers
    private = (b"access-control-request-private-network", b"true")
    _, headers = await headers_of(scope_of((b"origin", APP), ASKS, private, method="OPTIONS"), **ALLOWED)
    assert headers["access-control-allow-private-network"] == "true"


async def test_no_other_options_call_passes_as_a_preflight() -> None:
    for origin in (b"https://evil.example", b"http://localhost:8085"):
        status, headers = await headers_of(
            scope_of((b"origin", origin), ASKS, method="OPTIONS"), api_key=Secret("k"), **ALLOWED
        )
        assert status in (401, 403)
        assert "access-control-allow-methods" not in headers
    assert (await headers_of(scope_of((b"origin", APP), method="OPTIONS"), api_key=Secret("k"), **ALLOWED))[0] == 401
    foreign_host = scope_of((b"origin", APP), ASKS, method="OPTIONS", host=b"evil.example")
    assert (await headers_of(foreign_host, **ALLOWED))[0] == 403


LENGTH = (b"content-length", b"2")
CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_a_body_must_be_json(method: str) -> None:
    for media_type in (b"application/json", b"Application/JSON; charset=utf-8"):
        await assert_passes(scope_of(LENGTH, (b"content-type", media_type), method=method))
    for media_type in (b"text/plain", b"", b"application/x-www-form-urlencoded", b"text/plain; application/json"):
        for body in (LENGTH, CHUNKED):
            scope = scope_of(body, (b"content-type", media_type), method=method)
            await assert_refused(scope, 415, "unsupported_media_type")
    await assert_refused(scope_of(CHUNKED, method=method), 415, "unsupported_media_type")
    json_type = (b"content-type", b"application/json")
    twice = scope_of(LENGTH, json_type, (b"content-type", b"text/plain"), method=method)
    await assert_refused(twice, 415, "unsupported_media_type")


async def test_no_body_needs_no_type() -> None:
    await assert_passes(scope_of(method="POST"))
    await assert_passes(scope_of((b"content-length", b"0"), (b"content-type", b"text/plain"), method="POST"))
    await assert_passes(scope_of(LENGTH, method="DELETE"))


async def test_websockets_are_refused_and_the_lifespan_passes() -> None:
    app = Seen()
    guard = Guard(app, settings=GuardSettings(allowed_hosts=HOSTS))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await guard({"type": "websocket"}, receive, send)
    assert app.scope is None
    assert [message["type"] for message in sent] == ["websocket.close"]
    await guard({"type": "lifespan"}, receive, send)
    assert app.scope == {"type": "lifespan"}
