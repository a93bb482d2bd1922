"""Points on a curve: public keys, and what a key exchange yields."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from fastecdsa.curve import P256, Curve


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """The x coordinate of a product; a Diffie-Hellman exchange never reveals the other one."""

    x: int


@dataclass(frozen=True, slots=True)
class Point:
    """A public key as coordinates. A point that is not on the curve raises ValueError."""

    x: int
    y: int
    curve: Curve = P256

    def __post_init__(self) -> None:
        self.public_key()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The same point as a key of `cryptography`, which checks that it lies on the curve."""
        return ec.EllipticCurvePublicNumbers(self.x, self.y, self.curve.implementation).public_key()

    def __mul__(self, private_key: int) -> SharedSecret:
        private = ec.derive_private_key(private_key, self.curve.implementation)
        return SharedSecret(int.from_bytes(private.exchange(ec.ECDH(), self.public_key()), "big"))
