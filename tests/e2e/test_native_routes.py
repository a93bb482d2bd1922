"""The node's own routes and any HTTP client, against an edge three processes from a model."""

import json
import re
import subprocess

import pytest
import websockets.exceptions
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_socket

from tests.e2e.http_client import ask, chat, echo_text, metric, stream_chat
from tests.e2e.mesh import until_known
from tests.e2e.node_process import eventually


def message(name: str | int, **settings) -> str:
    body = chat("echo", "one two", **settings)
    return json.dumps(
        {"type": "request", "id": name, "endpoint": "/v1/chat/completions", "body": body}
    )


def receive(socket: ClientConnection) -> dict:
    return json.loads(socket.recv(timeout=10))


def text_of(data: dict) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in data["choices"])


@pytest.fixture
def socket(shared):
    with connect_socket(f"ws://127.0.0.1:{shared.port}/v1/stream", proxy=None) as socket:
        yield socket


def test_curl_shows_the_tokens_as_server_sent_events(shared):
    command = [
        *("curl", "-sSN", "--noproxy", "*", f"{shared.edge.url}/v1/chat/completions"),
        *("-H", "content-type: application/json", "-D", "-", "--max-time", "20"),
        *("-d", json.dumps(chat("echo", "one two", max_tokens=4))),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    head, _, body = shown.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head
    events = body.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    text = "".join(text_of(json.loads(event.removeprefix("data: "))) for event in events[:-1])
    assert text == echo_text("one two", 4)


async def test_answer_names_request_provider_path_and_attempts(shared):
    stream = await stream_chat(shared.port, "echo", max_tokens=1)
    assert stream.provider == shared.provider.peer_id
    assert stream.headers["x-aimo-path"] == "direct"
    assert stream.headers["x-aimo-attempts"] == "1"
    assert re.fullmatch("[0-9a-f]{32}", stream.headers["x-aimo-request-id"])


async def test_request_to_one_provider_by_its_address(shared, guests):
    """Both serve the model; the one that is asked answers."""
    other = guests.provider("echo")
    await until_known(shared.edge, other)
    for provider in (shared.provider, other, shared.provider, other):
        answer = await ask(
            shared.port,
            "POST",
            f"/v1/request/{provider.peer_id}",
            {
                "endpoint": "/v1/chat/completions",
                "body": chat("echo", "one", max_tokens=2) | {"stream": False},
            },
        )
        assert answer.status == 200
        assert answer.headers["x-aimo-provider"] == provider.peer_id
        assert answer.json["choices"][0]["message"]["content"] == "one w0 "
        pinned = await stream_chat(shared.port, f"{provider.peer_id}:echo", "one", max_tokens=2)
        assert pinned.provider == provider.peer_id
        assert pinned.text == "one w0 "


async def test_request_to_a_provider_nobody_knows_is_not_found(shared):
    stranger = shared.edge.peer_id
    body = {"endpoint": "/v1/chat/completions", "body": chat("echo")}
    for path in (f"/v1/request/{stranger}", "/v1/request/nonsense"):
        answer = await ask(shared.port, "POST", path, body)
        assert (answer.status, answer.error["code"]) == (404, "provider_not_found")


async def test_bad_field_of_a_native_request_is_named_by_its_whole_path(shared):
    path = f"/v1/request/{shared.provider.peer_id}"
    wrong_body = {"endpoint": "/v1/chat/completions", "body": chat("echo", temperature="hot")}
    answer = await ask(shared.port, "POST", path, wrong_body)
    assert (answer.status, answer.error["param"]) == (400, "body.temperature")
    answer = await ask(shared.port, "POST", path, {"endpoint": "/etc/passwd", "body": {}})
    assert (answer.status, answer.error["param"]) == (400, "endpoint")


async def test_providers_and_models_are_listed(shared):
    listed = (await ask(shared.port, "GET", "/v1/providers")).json
    assert listed["object"] == "list"
    provider = next(one for one in listed["data"] if one["id"] == shared.provider.peer_id)
    assert provider["models"] == ["echo"]
    assert (provider["status"], provider["path"], provider["engine"]) == (
        "healthy",
        "direct",
        "echo",
    )
    assert provider["running"] == provider["waiting"] == 0
    assert "echo" in [
        one["id"] for one in (await ask(shared.port, "GET", "/v1/models")).json["data"]
    ]
    assert (await ask(shared.port, "GET", "/v1/models/echo")).json["id"] == "echo"
    assert (await ask(shared.port, "GET", "/v1/models/none")).status == 404


async def test_health_readiness_and_numbers_of_edge_and_provider(shared):
    before = await metric(shared.port, "aimo_chunks_total", role="edge")
    served = await metric(shared.provider.port, "aimo_chunks_total", role="provider")
    await stream_chat(shared.port, "echo", max_tokens=7)
    assert await metric(shared.port, "aimo_chunks_total", role="edge") == before + 7
    assert await metric(shared.provider.port, "aimo_chunks_total", role="provider") == served + 7
    for node in (shared.edge, shared.provider):
        assert (await ask(node.port, "GET", "/v1/health")).json["status"] == "ok"
        assert (await ask(node.port, "GET", "/readyz")).status == 200
    assert await metric(shared.port, "aimo_links_open") >= 2
    assert await metric(shared.port, "aimo_directory_providers") >= 1


async def test_provider_with_a_door_for_numbers_takes_no_requests(shared):
    answer = await ask(shared.provider.port, "POST", "/v1/chat/completions", chat("echo"))
    assert answer.status == 404


def test_several_requests_share_one_socket(socket):
    tokens = {"a": 40, "b": 3, 7: 20}
    for name, count in tokens.items():
        socket.send(message(name, max_tokens=count, delay_ms=5))
    texts: dict[str | int, str] = dict.fromkeys(tokens, "")
    ends: list[str | int] = []
    order = []
    while len(ends) < len(tokens):
        came = receive(socket)
        order.append(came["id"])
        if came["type"] == "chunk":
            assert came["id"] not in ends
            texts[came["id"]] += text_of(came["data"])
        else:
            assert came["type"] == "done", came
            ends.append(came["id"])
    assert texts == {name: echo_text("one two", count) for name, count in tokens.items()}
    assert ends == ["b", 7, "a"]
    assert order.index(7) < len(order) - 1 - order[::-1].index("a"), "one after the other"


def test_request_on_a_socket_is_cancelled_and_the_others_go_on(socket):
    socket.send(message("long", max_tokens=1000, delay_ms=20))
    socket.send(message("short", max_tokens=30, delay_ms=20))
    assert receive(socket)["type"] == "chunk"
    socket.send(json.dumps({"type": "cancel", "id": "long"}))
    ends = {}
    while len(ends) < 2:
        came = receive(socket)
        if came["type"] != "chunk":
            ends[came["id"]] = came["type"]
        else:
            assert came["id"] not in ends
    assert ends == {"long": "cancelled", "short": "done"}


def test_socket_answers_pings_and_says_what_is_wrong(socket):
    socket.send(json.dumps({"type": "ping"}))
    assert receive(socket) == {"type": "pong"}
    socket.send("no JSON")
    came = receive(socket)
    assert (came["type"], came["id"]) == ("error", None)
    socket.send(message("x", temperature="hot"))
    came = receive(socket)
    assert (came["type"], came["id"], came["error"]["param"]) == ("error", "x", "body.temperature")
    socket.send(message("y", max_tokens=1))
    assert receive(socket)["type"] == "chunk"


async def test_closing_a_socket_stops_what_runs_on_it(shared):
    async def idle() -> bool:
        return not await metric(shared.provider.port, "aimo_requests_running", role="provider")

    async def busy() -> bool:
        return await metric(shared.provider.port, "aimo_requests_running", role="provider") == 5

    with connect_socket(f"ws://127.0.0.1:{shared.port}/v1/stream", proxy=None) as socket:
        for number in range(5):
            socket.send(message(number, max_tokens=5000, delay_ms=20))
        await eventually(busy, 5, "the requests do not run", shared.edge)
    await eventually(idle, 2, "requests of a closed socket still run", shared.edge)


def test_web_page_of_elsewhere_cannot_open_a_socket(shared):
    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as caught,
        connect_socket(
            f"ws://127.0.0.1:{shared.port}/v1/stream", origin="https://evil.example", proxy=None
        ),
    ):
        pass
    assert caught.value.response.status_code == 403
