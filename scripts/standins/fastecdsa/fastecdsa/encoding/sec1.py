"""SEC1 encoding of public keys, sections 2.3.3 and 2.3.4."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fastecdsa.curve import Curve
from fastecdsa.point import Point


class InvalidSEC1PublicKey(Exception):  # noqa: N818 - the original's name
    """The bytes are not a point of the curve."""


class SEC1Encoder:
    """Public keys to bytes and back."""

    binary_data = True

    @staticmethod
    def encode_public_key(point: Point, compressed: bool = True) -> bytes:  # noqa: FBT001, FBT002 - the original's signature
        """Encode a point: 33 bytes compressed, 65 bytes otherwise (for P-256)."""
        form = (
            serialization.PublicFormat.CompressedPoint
            if compressed
            else serialization.PublicFormat.UncompressedPoint
        )
        return point.public_key().public_bytes(serialization.Encoding.X962, form)

    @staticmethod
    def decode_public_key(key: bytes, curve: Curve) -> Point:
        """Decode either form. Anything that is not a point raises InvalidSEC1PublicKey."""
        try:
            numbers = ec.EllipticCurvePublicKey.from_encoded_point(
                curve.implementation, key
            ).public_numbers()
        except ValueError as error:
            raise InvalidSEC1PublicKey(str(error)) from error
        return Point(numbers.x, numbers.y, curve)
