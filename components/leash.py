"""`python components/leash.py COMMAND…`: run a command that must not outlive the process that started it.

That process keeps this one's stdin open and starts it in a session of its own. When stdin closes, by intent or because
the process is dead, the command and all that it started in the session are ended, by SIGTERM and then by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

_GRACE_S = 5.0


def main(*command: str) -> int:
    """Run the command; the exit code is its own, or for a signal what a shell gives."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # `_end` means the others; a handler is not inherited
    let_go = threading.Event()
    ending = threading.Thread(target=_end, args=(let_go,), daemon=True)
    ending.start()
    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    if let_go.is_set():
        ending.join()  # the command is gone, what it started may not be
    return code if code >= 0 else 128 - code


def _end(let_go: threading.Event) -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written, so it returns when the other end closes
    let_go.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
