"""What the locked list puts in place of libp2p's own wishes works with libp2p.

scripts/locks leaves fastecdsa out and scripts/standins/fastecdsa takes its place. The checks run
in a process of their own, with the stand-in in front of whatever is installed here.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "scripts" / "standins" / "fastecdsa"

# What fastecdsa 2.3.2 itself answers for this private key.
GOLDEN = """
PRIVATE_KEY = 0x1234567890ABCDEF1234567890ABCDEF
PUBLIC_KEY = bytes.fromhex("02f9ebe464147cc102d92324d099d927c1a50e42d57a08a116ffec0a29819d8c65")
SHARED_TIMES_77 = 105401113841330862847599773181945748068149170584783296290501865269446128166258
PEM_BODY = (
    "MHcCAQEEIAAAAAAAAAAAAAAAAAAAAAASNFZ4kKvN7xI0VniQq83voAoGCCqGSM49"
    "AwEHoUQDQgAE+evkZBR8wQLZIyTQmdknwaUOQtV6CKEW/+wKKYGdjGVwuvfRKIiQ"
    "KmoMHWet0QMSPIWatpv46UMck4STDUt+7g=="
)
"""


def run_with_standin(program: str) -> str:
    """Run a program with the stand-in found first; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(STANDIN)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GOLDEN + program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_standin_answers_what_the_original_answers() -> None:
    printed = run_with_standin("""
import fastecdsa
from fastecdsa import curve, keys
from fastecdsa.encoding.sec1 import InvalidSEC1PublicKey, SEC1Encoder
from fastecdsa.encoding.util import int_bytelen

point = keys.get_public_key(PRIVATE_KEY, curve.P256)
assert SEC1Encoder.encode_public_key(point) == PUBLIC_KEY
assert SEC1Encoder.decode_public_key(PUBLIC_KEY, curve.P256) == point
assert (point * 77).x == SHARED_TIMES_77
pem = keys.export_key(PRIVATE_KEY, curve.P256, encoder=keys.PEMEncoder).split()
assert "".join(pem[4:-4]) == PEM_BODY, pem
assert [int_bytelen(number) for number in (0, 1, 255, 256)] == [0, 1, 1, 2]
for wrong in (b"", b"\\x04" + bytes(64), PUBLIC_KEY[:-1], b"\\x05" + PUBLIC_KEY[1:]):
    try:
        SEC1Encoder.decode_public_key(wrong, curve.P256)
    except InvalidSEC1PublicKey:
        continue
    raise AssertionError(wrong)
print(fastecdsa.__file__)
""")
    assert Path(printed.strip()).is_relative_to(STANDIN)


def test_libp2p_makes_and_exchanges_keys_with_the_standin() -> None:
    """This is all that libp2p 0.8.1 does with it, and only for SecIO, which no node offers."""
    run_with_standin("""
from libp2p.crypto import ecc, key_exchange

pair = ecc.create_new_key_pair("P-256")
again = ecc.ECCPublicKey.from_bytes(pair.public_key.to_bytes(), "P-256")
assert again.impl == pair.public_key.impl
assert pair.private_key.to_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----")

ours, our_secret = key_exchange.create_ephemeral_key_pair("P-256")
theirs, their_secret = key_exchange.create_ephemeral_key_pair("P-256")
assert our_secret(theirs.to_bytes()) == their_secret(ours.to_bytes())
""")


def test_libp2p_needs_no_more_of_fastecdsa_than_the_standin_has() -> None:
    """A newer libp2p that uses it elsewhere must not find the stand-in wanting in the field."""
    printed = run_with_standin("""
import re
from pathlib import Path
import libp2p
folder = Path(libp2p.__file__).parent
for path in sorted(folder.rglob("*.py")):
    if re.search(r"^\\s*(from|import) fastecdsa", path.read_text(), re.MULTILINE):
        print(path.relative_to(folder))
""")
    assert printed.split() == ["crypto/ecc.py", "crypto/key_exchange.py"]


def test_installed_packages_satisfy_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
