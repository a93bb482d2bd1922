"""Exit 0 if the node in this container is ready, 1 otherwise. Standard library only."""

import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("AIMO_HEALTH_URL", "http://127.0.0.1:8000/readyz")
TIMEOUT_SECONDS = 2.0


def is_ready() -> bool:
    """Ask once, without any proxy the environment may name."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(URL, timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_ready() else 1)
