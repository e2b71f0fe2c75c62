"""Process 1 of a test host: `python -S init.py`. Whatever it inherits is reaped, for a raylet left as a zombie looks alive to its
workers; when it is killed, all of the host's processes are."""

from __future__ import annotations

import os
import signal


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # none is missed between a look and the next wait
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, 1.0)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue  # there are none


if __name__ == "__main__":
    main()
