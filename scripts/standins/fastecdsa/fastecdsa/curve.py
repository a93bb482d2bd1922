"""The one curve libp2p uses."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True, slots=True)
class Curve:
    """A named curve, with its implementation in `cryptography`."""

    name: str
    implementation: ec.EllipticCurve


P256 = Curve("P256", ec.SECP256R1())
