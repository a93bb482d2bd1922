#!/usr/bin/env python3
"""Throw damaged frames at the codec and at sessions until something other than the protocol gives.

Coverage-guided when `atheris` is installed, otherwise a seeded loop that mutates dialogues
and the golden vectors. Prints inputs per second; a finding is printed with the input that
reproduces it (exit 1).

    scripts/fuzz_protocol.py --seconds 60 [--seed 7]
    scripts/fuzz_protocol.py --reproduce 03ff00…
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aimo_node.domain.answer import Finish, Usage  # noqa: E402 (the path comes first)
from aimo_node.domain.ids import (  # noqa: E402
    REQUEST_ID_BYTES,
    ContentType,
    Endpoint,
    FinishReason,
    PeerId,
    RequestId,
)
from aimo_node.errors import RemoteProtocolError  # noqa: E402
from aimo_node.protocol import codec, limits  # noqa: E402
from aimo_node.protocol.asking import Terms  # noqa: E402
from aimo_node.protocol.descriptors import (  # noqa: E402
    describe,
    heartbeat_of,
    read_descriptor,
    status_of,
)
from aimo_node.protocol.events import (  # noqa: E402
    Event,
    LinkClosed,
    PartReceived,
    RequestReceived,
)
from aimo_node.protocol.frames import (  # noqa: E402
    Accepted,
    Body,
    Cancel,
    Credit,
    Descriptor,
    DescriptorBody,
    Directory,
    Engine,
    Error,
    Frame,
    FrameType,
    GoAway,
    Heartbeat,
    Hello,
    MessageBody,
    MessageFrame,
    Model,
    Ping,
    Pong,
    Request,
    Response,
    StreamChunk,
    Subscribe,
    UsageCount,
)
from aimo_node.protocol.handshake import Admission  # noqa: E402
from aimo_node.protocol.session import Session  # noqa: E402

VECTORS = ROOT / "tests" / "vectors" / "v1"
VECTOR_ID = bytes.fromhex("0f8fad5bd9cb469fa165708679fad1f4")
"""The request id in most vectors, so that their frames meet a request that runs."""
OTHER_ID = RequestId(bytes(16))
FINISH = Finish(FinishReason.STOP, Usage(1, 2, 3))
INPUT_BYTES_MAX = 100_000
SMALL_INPUT_BYTES = 2_000
"""Only such inputs are fed byte by byte."""
DEEPER_SHARE = 0.7
"""How often a field within a nested array is changed, where there is one."""
FIELD_VALUES: list[object] = [
    *(0, 1, 7, 255, -1, 2**16, 2**32 - 1, 2**32, 2**63, 1.5, True, None),
    *(b"", "", "\0", "m", VECTOR_ID, OTHER_ID, bytes(70)),
    *([], {}, {"a": "b"}, [[]], [0, 0, 0], ["m", "m", 3]),
]
REPORT_SECONDS = 5.0


class Finding(Exception):  # noqa: N818 (what a fuzzer calls it)
    """The wire did something it never may."""


def check(data: bytes) -> None:
    """One input. The first byte chooses the scene, the second the size of the pieces.

    Raises:
        Finding: or whatever the code under test raised.
    """
    if len(data) < 2:
        return
    scene, piece, rest = data[0] % len(SCENES), 1 + data[1] * 16, data[2:]
    SCENES[scene](rest, piece)


def _codec(data: bytes, _piece: int) -> None:
    for kind in (DescriptorBody, MessageBody, MessageFrame):
        with contextlib.suppress(RemoteProtocolError):
            codec.decode_part(data, kind)
    with contextlib.suppress(RemoteProtocolError):
        read_descriptor(Descriptor(data, bytes(limits.SIGNATURE_BYTES)))
    with contextlib.suppress(RemoteProtocolError):
        for frame in codec.FrameReader().feed(data):
            if codec.decode(codec.encode_bare(frame)) != frame:
                raise Finding(f"{frame!r} changes when it is written and read again")
            _believe(frame)


def _believe(frame: Frame) -> None:
    """What a relay or an edge makes of an announcement."""
    directory = frame if isinstance(frame, Directory) else Directory(full=False)
    for heartbeat in (*directory.statuses, *([frame] if isinstance(frame, Heartbeat) else ())):
        if status_of(heartbeat_of(status_of(heartbeat))) != status_of(heartbeat):
            raise Finding(f"{heartbeat!r} changes when it is passed on")
    for told in (*directory.descriptors, *([frame] if isinstance(frame, Descriptor) else ())):
        with contextlib.suppress(RemoteProtocolError):
            said = read_descriptor(told)
            # A larger one may have no room left for what it left out.
            if len(told.body) < limits.DESCRIPTOR_BYTES_MAX // 2:
                again = Descriptor(describe(said), told.signature)
                if read_descriptor(again) != said:
                    raise Finding(f"{said!r} changes when it is described again")


def _session() -> Session:
    return Session(Admission(PeerId("us")), PeerId("them"), 0.0)


def _opened() -> Session:
    session = _session()
    session.receive_data(codec.encode(Hello([1])), 0.0)
    return session


def _asking() -> Session:
    """One request waits for its answer, another has an upload."""
    session = _opened()
    for request_id, size in ((RequestId(VECTOR_ID), 2), (OTHER_ID, 40_000)):
        session.asking.open(
            request_id, Endpoint.CHAT, bytes(size), stream=True, terms=Terms(deadline_ms=1_000)
        )
    return session


def _play(session: Session, data: bytes, piece: int) -> None:
    ended, now = 0, 0.0
    for start in range(0, len(data), piece):
        now += 0.001
        events = session.receive_data(data[start : start + piece], now)
        ended += sum(isinstance(event, LinkClosed) for event in events)
        _react(session, events)
        if start % 3 == 0:
            session.take_output()
    _examine(session, ended, now)


def _react(session: Session, events: list[Event]) -> None:
    """What a node would do: serve requests, take what has arrived."""
    for event in events:
        if isinstance(event, PartReceived):
            session.asking.consumed(event.request_id, event.size)
        elif isinstance(event, RequestReceived):
            request_id = RequestId(event.request.request_id)
            size = event.request.deadline_ms % 40_000
            session.answering.accept(request_id, b"", 0)
            if not event.request.stream:
                session.answering.respond(request_id, ContentType.JSON, bytes(size), FINISH)
                continue
            session.answering.send_text(request_id, "hello")
            session.answering.send_json(request_id, bytes(size))
            session.answering.send_text(request_id, "x" * size)
            session.answering.finish(request_id, FINISH)


def _examine(session: Session, ended: int, now: float) -> None:
    if ended != session.closed:
        raise Finding(f"the link ended {ended} times, closed is {session.closed}")
    windows = [state.window.size for state in session.asking.requests.values()]
    windows += [s.window.size for s in session.answering.requests.values() if s.window is not None]
    budget = session.asking._budget.left  # noqa: SLF001 (accounts are what is examined)
    if budget + sum(windows) != limits.CREDIT_LINK_BYTES_MAX:
        raise Finding(f"windows of {sum(windows)} bytes, but {budget} bytes of budget left")
    if not session.next_deadline() > now:
        raise Finding("the next deadline is in the past")
    while output := session.take_output():
        if len(output) > limits.WRITE_BYTES_MAX:
            raise Finding(f"a write of {len(output)} bytes")
    if session.closed and (session.busy or session.has_output):
        raise Finding("a link that has ended holds requests or output")


def _scene(start: Callable[[], Session]) -> Callable[[bytes, int], None]:
    return lambda data, piece: _play(start(), data, piece)


SCENES: list[Callable[[bytes, int], None]] = [
    _codec,
    _scene(_session),
    _scene(_opened),
    _scene(_asking),
]


def vectors() -> list[bytes]:
    """The wire bytes of every golden vector, invalid ones too."""
    found: list[str] = []
    for path in sorted(VECTORS.glob("*.txt")):
        taking = False
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("wire: "):
                taking = True
                found.append(line.removeprefix("wire: "))
            elif taking and line.startswith(" "):
                found[-1] += line
            else:
                taking = False
    return [wire for text in found if len(wire := _unhexed(text)) <= INPUT_BYTES_MAX]


def _unhexed(text: str) -> bytes:
    parts = (token.partition("*") for token in text.split())
    return b"".join(bytes.fromhex(plain) * int(count or 1) for plain, _, count in parts)


def stories() -> list[list[bytes]]:
    """Dialogues without a mistake: damage is done to links in the middle of one."""
    usage, known = UsageCount(3, 2, 1), RequestId(VECTOR_ID)
    chunks: list[Frame] = [StreamChunk(known, n, n % 2, b"[1]") for n in range(4)]
    final = StreamChunk(known, 4, 0, b"", True, 1, usage)  # noqa: FBT003 (as on the wire)
    head = Response(known, 200, 1, b"", {}, 1, usage, b"", 20_000)
    told: list[list[Frame]] = [
        [Accepted(known), *chunks, final],
        [Accepted(known), *chunks[:2], Error(13, "died", {"retry_after_ms": "9"}, known)],
        [Accepted(known), Response(known, 200, 0, b"hi", {}, 2, usage)],
        [Accepted(known), head, *_pieces(known)],
        [Accepted(OTHER_ID), Credit(OTHER_ID, 9_000, 0), Credit(OTHER_ID, 20_000, 0)],
        [_request(7), Credit(_id(7), 20_000, 0), Credit(_id(7), 30_000, 0), Cancel(_id(7), 0)],
        [_request(8, body_bytes=20_000), *_pieces(_id(8)), Credit(_id(8), 9_000, 0)],
        [_request(9, stream=False), Cancel(_id(9), 0), Ping(1), Pong(1)],
        [_descriptor(), Heartbeat("them", 1, 1, 1, 500, 2, 1, 900, 415, 187)],
        [GoAway(9, "draining"), _request(6), Subscribe(["tiny"]), Directory(full=True)],
    ]
    return [[codec.encode(frame) for frame in story] for story in told]


def _descriptor() -> Descriptor:
    """Two models, one of them loaded on demand, and an engine that failed. Nobody's signature."""
    models = [Model("tiny", b"\x11" * 32, 2_048, [1, 2], ["tools"], 1, 2, 2), Model("big", state=0)]
    engines = [Engine("llama", "llama", 2, ["tiny", "big"], 4), Engine("gpu", "vllm", 4)]
    body = DescriptorBody("them", 1, models, ["/ip4/192.0.2.1/tcp/1"], "llama", 2, engines=engines)
    return Descriptor(codec.encode_part(body), bytes(limits.SIGNATURE_BYTES))


def _id(number: int) -> RequestId:
    return RequestId(number.to_bytes(REQUEST_ID_BYTES, "big"))


def _request(number: int, *, body_bytes: int = 0, stream: bool = True) -> Request:
    payload = b"" if body_bytes else b"{}"
    return Request(_id(number), "", 1, 1, 1, payload, body_bytes, stream, {}, 39_000, "")


def _pieces(request_id: RequestId) -> list[Frame]:
    most = limits.BODY_PIECE_BYTES
    return [
        Body(request_id, 0, bytes(most), last=False),
        Body(request_id, most, bytes(20_000 - most), last=True),
    ]


class Mutator:
    """Makes inputs out of dialogues and vectors; the same seed makes the same inputs."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._vectors = [wire for wire in vectors() if len(wire) < 4_000]
        self._stories = stories()
        self._hello = codec.encode(Hello([1]))

    def next_input(self) -> bytes:
        """One input for `check`."""
        chance = self._chance
        scene = chance.randrange(len(SCENES))
        frames = [self._hello] if scene == 1 and chance.random() < 0.8 else []
        for _ in range(chance.randint(1, 3)):
            frames += chance.choice(self._stories)
        for _ in range(chance.choice([0, 1, 1, 2, 5])):
            self._mutate(frames)
        data = b"".join(frames)
        pieces = [0, 1, 9, 255] if len(data) < SMALL_INPUT_BYTES else [9, 255]
        return bytes([scene, chance.choice(pieces)]) + data

    def _mutate(self, frames: list[bytes]) -> None:
        chance = self._chance
        place, other = chance.randrange(len(frames)), chance.randrange(len(frames))
        match chance.randrange(6):
            case 0:
                frames[place] = self._damage(frames[place])
            case 1 | 2:
                frames[place] = self._change_field(frames[place])
            case 3:
                frames.insert(place, chance.choice(self._vectors))
            case 4:
                frames.insert(place, frames[other])
            case _:
                frames[place], frames[other] = frames[other], frames[place]

    def _damage(self, wire: bytes) -> bytes:
        chance, data = self._chance, bytearray(wire[4:])
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data) + 1)
            what = chance.randrange(4)
            if what == 0 and data:
                data[place % len(data)] = chance.choice(
                    [0, 0x7F, 0x80, 0xFF, chance.randrange(256)]
                )
            elif what == 1:
                data[place:place] = chance.randbytes(chance.randint(1, 8))
            elif what == 2:
                del data[place : place + chance.randint(1, 8)]
            else:
                data += data[place : place + 64]
        return self._framed(bytes(data))

    def _change_field(self, wire: bytes) -> bytes:
        try:
            fields = msgspec.msgpack.decode(wire[4:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return wire
        if not isinstance(fields, list) or not fields:
            return wire
        if fields[0] == FrameType.Descriptor and self._chance.random() < DEEPER_SHARE:
            with contextlib.suppress(
                msgspec.MsgspecError, UnicodeDecodeError, TypeError, IndexError
            ):
                body = msgspec.msgpack.decode(fields[1])
                self._change_list(body)
                fields[1] = msgspec.msgpack.encode(body)
                return self._framed(msgspec.msgpack.encode(fields))
        self._change_list(fields)
        return self._framed(msgspec.msgpack.encode(fields))

    def _change_list(self, fields: list[object]) -> None:
        """Change, add or replace one element, here or in one of the lists within."""
        within = [value for value in fields if isinstance(value, list)]
        if within and self._chance.random() < DEEPER_SHARE:
            self._change_list(self._chance.choice(within))
            return
        place = self._chance.randrange(len(fields) + 1)
        fields[place : place + self._chance.randint(0, 1)] = [self._chance.choice(FIELD_VALUES)]

    def _framed(self, body: bytes) -> bytes:
        size = len(body) if self._chance.random() < 0.95 else self._chance.randrange(2**32)
        return size.to_bytes(4, "big") + body


def run_mutations(seed: int, seconds: float, inputs_max: int) -> int:
    """Mutate until the time or the number of inputs is used up; the exit code."""
    mutator = Mutator(seed)
    print(f"atheris is not installed: seeded mutations, seed {seed}")
    start = reported = time.monotonic()
    inputs = 0
    while inputs < inputs_max and time.monotonic() - start < seconds:
        data = mutator.next_input()
        try:
            check(data)
        except Exception as error:  # noqa: BLE001 (any exception is a finding, and is printed)
            return report(data, error)
        inputs += 1
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{inputs} inputs, {inputs / (reported - start):.0f} per second", flush=True)
    spent = max(time.monotonic() - start, 1e-9)
    print(f"{inputs} inputs, {inputs / spent:.0f} per second, no finding")
    return 0


def report(data: bytes, error: Exception) -> int:
    """Print a finding and how to see it again; the exit code."""
    traceback.print_exception(error, file=sys.stdout)
    print(f"finding: {type(error).__name__}: {error}")
    print(f"scripts/fuzz_protocol.py --reproduce {data.hex()}")
    return 1


def run_guided(seed: int, seconds: float, inputs_max: int) -> int:
    """Let atheris choose the inputs; it prints its own statistics and never returns."""
    import atheris  # noqa: PLC0415 (optional: not one of the project's dependencies)

    for module in [name for name in sys.modules if name.startswith("aimo_node.protocol")]:
        for value in vars(sys.modules[module]).values():
            if isinstance(value, type) and value.__module__ == module:
                _instrument(atheris, value)
    with tempfile.TemporaryDirectory() as corpus:
        spoken = [b"".join(story) for story in stories()]
        for number, wire in enumerate(vectors() + spoken):
            for scene in range(len(SCENES)):
                Path(corpus, f"{number}-{scene}").write_bytes(bytes([scene, 9]) + wire)
        flags = [f"-seed={seed or 1}", f"-max_total_time={int(seconds)}", f"-runs={inputs_max}"]
        atheris.Setup([sys.argv[0], corpus, f"-max_len={INPUT_BYTES_MAX}", *flags], check)
        atheris.Fuzz()
    return 0


def _instrument(atheris: object, kind: type) -> None:
    """Count branches inside the methods of one class."""
    for name, member in list(vars(kind).items()):
        if callable(member) and hasattr(member, "__code__"):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(kind, name, atheris.instrument_func(member))  # type: ignore[attr-defined]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="mutate even if atheris is installed")
    parser.add_argument("--reproduce", metavar="HEX", help="run one input, as a finding prints it")
    options = parser.parse_args(arguments)
    if options.reproduce is not None:
        data = bytes.fromhex(options.reproduce)
        try:
            check(data)
        except Exception as error:  # noqa: BLE001 (any exception is a finding)
            return report(data, error)
        print("no finding")
        return 0
    with contextlib.suppress(ImportError):
        if not options.plain:
            return run_guided(options.seed, options.seconds, min(options.inputs, 2**31 - 1))
    return run_mutations(options.seed, options.seconds, options.inputs)


if __name__ == "__main__":
    sys.exit(main())
