"""Names the packages that a script lacks, before an import fails in the middle of it."""

import importlib.util


def require(*packages: str) -> None:
    """Leave with one line that mends it if any of these packages cannot be imported.

    Args:
        packages: top-level import names, which are also the names to install.

    Raises:
        SystemExit: at least one is missing.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        listed = " ".join(missing)
        raise SystemExit(f"this script also needs {listed}: pip install {listed}")
