"""The lab's own parts: what a wire does to packets, and who clears up after a killed run."""

import json
import subprocess
import sys

import pytest

from tests.netlab.lab import lab, remove_leftovers, run, why_not
from tests.netlab.wire import NAMESPACES, Quality

DELAY_MS = 20.0
LOSS = 0.2
PACKETS = 400
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 7000))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(2000)
    server.sendto(data, peer)
"""
ASK = """
import json, socket, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.1.0.2", 7000))
client.settimeout(0.5)
while True:  # the first ones make the neighbours known to each other
    client.send(b"first")
    try:
        client.recv(2000)
        break
    except TimeoutError:
        continue
client.settimeout(0.3)
count = int(sys.argv[1])
for number in range(count):
    client.send(b"%d %d" % (number, time.monotonic_ns()))
seen, trips = [], []
while True:
    try:
        data = client.recv(2000)
    except TimeoutError:
        break
    if data != b"first":
        number, sent = map(int, data.split())
        seen.append(number)
        trips.append((time.monotonic_ns() - sent) / 1e6)
print(json.dumps({"seen": seen, "shortest_ms": min(trips)}))
"""


def test_a_wire_delays_loses_and_keeps_the_order() -> None:
    reason = why_not(nat=False, line=True)
    if reason:
        pytest.skip(reason)
    quality = Quality(DELAY_MS, LOSS)
    with lab(nat=False, line=quality, forwards=True) as networks:
        echo = subprocess.Popen(
            [*networks.inside("home"), sys.executable, "-c", ECHO], stdout=subprocess.PIPE
        )
        try:
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
            command = [*networks.inside("office"), sys.executable, "-c", ASK, str(PACKETS)]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        finally:
            echo.kill()
            echo.communicate()
    assert found["seen"] == sorted(found["seen"])
    assert found["shortest_ms"] >= 4 * DELAY_MS, "two wires, there and back"
    arrived = len(found["seen"]) / PACKETS
    assert (1 - LOSS) ** 4 - 0.12 < arrived < (1 - LOSS) ** 4 + 0.12


def test_what_a_killed_run_left_behind_is_removed_and_nothing_else() -> None:
    reason = why_not(nat=False)
    if reason:
        pytest.skip(reason)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with lab(nat=False) as networks:
        run("ip", "netns", "add", f"aimo{dead.pid}-home")
        remove_leftovers()
        assert not (NAMESPACES / f"aimo{dead.pid}-home").exists()
        assert (NAMESPACES / networks.inside("home")[-1]).exists()
