"""A relay that carries a conversation has no byte of it: not on its wires, in memory or in its log.

The relay sits behind a recorder, through which both ends reach it. They listen nowhere, so that the
circuit is the only way. What is looked for is found in the same way where it may be: in the memory
of the edge and on the consumer's connection to it.
"""

import secrets

from tests.e2e.http_client import CHAT_PATH, ask, chat, echo_text, open_stream
from tests.e2e.node_process import NodeProcess
from tests.e2e.process_memory import found_in_memory
from tests.e2e.recorder import recorded_ends, recording

WORDS = 3
REPEATED = 100
TOKENS = WORDS * REPEATED
PAYLOAD_BYTES = 4 * TOKENS * 41
"""Two prompts and two answers of words of 40 characters."""
FRAGMENT = 16
"""Half a canary counts, too: pieces of an answer end anywhere. 64 random bits come by no chance."""


def canaries() -> list[str]:
    """Words of a conversation that are nowhere else."""
    return [secrets.token_hex(20) for _ in range(WORDS)]


def fragments(words: list[str]) -> list[bytes]:
    """What to look for."""
    return [piece.encode() for word in words for piece in (word[:FRAGMENT], word[-FRAGMENT:])]


def files_of(node: NodeProcess) -> bytes:
    """All it has written: its log, its output and what is in its state folder."""
    files = [path.read_bytes() for path in node.state.rglob("*") if path.is_file()]
    return b"\n".join([node.log.encode(), node.output.encode(), *files])


async def test_a_relay_has_no_byte_of_prompt_or_answer(own_mesh):
    relay = await own_mesh.relay("--log-level", "debug").ready()
    streamed, whole = canaries(), canaries()
    needles = fragments([*streamed, *whole])
    async with recorded_ends(own_mesh, relay, "--log-level", "debug") as (wire, provider, edge):
        before = wire.size
        async with recording(edge.port) as consumer:
            await ask_slowly(consumer.port, streamed, relay)
            await ask_at_once(consumer.port, whole)
            assert consumer.found(*needles) == set(needles), "the recorder sees what goes by"
        assert wire.size - before > 2 * PAYLOAD_BYTES, "all of it came in and went out again"
        assert wire.found(b"/noise") == {b"/noise"}, "the greeting of each connection is plain"
        assert wire.found(*needles) == set()
        assert found_in_memory(edge.pid, *needles), "the search finds what is there"
        assert found_in_memory(provider.pid, *needles)
        assert found_in_memory(relay.pid, *needles, edge.peer_id.encode()) == {
            edge.peer_id.encode()
        }, "it knows who, not what"
    written = files_of(relay)
    assert b"circuit.opened" in written
    assert not [needle for needle in needles if needle in written]


async def ask_slowly(port: int, words: list[str], relay: NodeProcess) -> None:
    """A streamed answer; the relay's memory is searched in the middle of it."""
    prompt = " ".join(words * REPEATED)
    async with open_stream(port, chat("echo", prompt, max_tokens=TOKENS, delay_ms=5)) as stream:
        assert stream.headers["x-aimo-path"] == "circuit"
        await stream.read_until_text(TOKENS // 3)
        assert not stream.is_done
        assert found_in_memory(relay.pid, *fragments(words)) == set()
        await stream.read_to_the_end()
        assert (stream.text, stream.is_done) == (echo_text(prompt, TOKENS), True)


async def ask_at_once(port: int, words: list[str]) -> None:
    """An answer that is not streamed."""
    prompt = " ".join(words * REPEATED)
    body = {**chat("echo", prompt, max_tokens=TOKENS), "stream": False}
    answer = await ask(port, "POST", CHAT_PATH, body)
    assert answer.headers["x-aimo-path"] == "circuit"
    assert answer.json["choices"][0]["message"]["content"] == echo_text(prompt, TOKENS)
