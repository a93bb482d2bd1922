"""A child for `test_llama_engine` that never lets go of Python's lock, like weights being loaded.

Usage: spinning_child.py GO. With GO ``parent`` it starts itself as a child and waits.
"""

import subprocess
import sys
import time

from providers.children.parent_watch import die_with_parent

if sys.argv[1] == "parent":
    child = subprocess.Popen(
        [sys.executable, __file__, "child"], stdin=subprocess.PIPE, start_new_session=True
    )
    time.sleep(1000)
else:
    die_with_parent()
    grandchild = subprocess.Popen(["sleep", "1000"])
    sys.setswitchinterval(1000)
    sys.stderr.write(f"{grandchild.pid}\n")
    while True:
        pass
