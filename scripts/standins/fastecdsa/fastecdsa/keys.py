"""Make, derive and export keys. A private key is an integer, as in the original."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fastecdsa.curve import Curve
from fastecdsa.point import Point


class PEMEncoder:
    """The only export format on offer; passed to `export_key` as in the original."""

    binary_data = False


def gen_private_key(curve: Curve) -> int:
    """Draw a private key from the operating system's randomness."""
    return ec.generate_private_key(curve.implementation).private_numbers().private_value


def get_public_key(private_key: int, curve: Curve) -> Point:
    """Derive the public key. A number outside the curve's order raises ValueError."""
    numbers = ec.derive_private_key(private_key, curve.implementation).public_key().public_numbers()
    return Point(numbers.x, numbers.y, curve)


def export_key(private_key: int, curve: Curve, *, encoder: type[PEMEncoder] = PEMEncoder) -> str:
    """Write a private key as PEM (`EC PRIVATE KEY`), unencrypted, as the original does."""
    if encoder is not PEMEncoder:
        raise NotImplementedError("the stand-in exports PEM only")
    key = ec.derive_private_key(private_key, curve.implementation)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode("ascii")
