"""What `distributed.start` starts in tests: process 1 ends as its argument says, process 0 would work on."""

import os
import signal
import sys
import time

ENDS = {
    "well": lambda: None,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "failed": lambda: sys.exit(3),
    "stopped": lambda: (os.kill(os.getppid(), signal.SIGTERM), time.sleep(60)),
}

if __name__ == "__main__":
    said = " ".join(os.environ[name] for name in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS"))
    os.write(2, f"{said}\n".encode())  # one write: two processes share the file
    if os.environ["RANK"] == "1":
        ENDS[sys.argv[1]]()
    elif sys.argv[1] != "well":
        time.sleep(60)
