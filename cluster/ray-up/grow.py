"""Ask the autoscaler for GPUs and wait until they are there; `0` lets workers go once they have been idle.

    python grow.py 4

Runs on the head. simlap fits a study to the nodes that are alive when it starts and asks for no others, so that the autoscaler
would never hear of it. What is asked for here is kept up: a spot worker that is taken away is replaced, until `python grow.py 0`.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources


def main() -> int:
    """The exit code: 1 where the GPUs do not come in time."""
    parser = argparse.ArgumentParser(description="Ask the autoscaler for GPUs and wait until they are there.")
    parser.add_argument("gpus", type=int, help="how many in all; 0: none are needed any more")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to wait (default 30)")
    arguments = parser.parse_args()
    if arguments.gpus < 0:
        parser.error(f"gpus must be 0 or more (got {arguments.gpus})")
    ray.init(address="auto", log_to_driver=False)
    request_resources(bundles=[{"GPU": 1}] * arguments.gpus)
    if arguments.gpus == 0:
        print("workers go once they have been idle for idle_timeout_minutes")
        return 0
    end = time.monotonic() + 60 * arguments.minutes
    told = -1
    while (there := int(ray.cluster_resources().get("GPU", 0))) < arguments.gpus:
        if there != told:
            print(f"{there} of {arguments.gpus} GPUs", flush=True)
            told = there
        if time.monotonic() > end:
            print(
                f"{there} of {arguments.gpus} GPUs after {arguments.minutes:g} minutes. `ray status` says what is pending and "
                "what failed: no spot capacity, a quota of 0, more than max_workers?",
                file=sys.stderr,
            )
            return 1
        time.sleep(5)
    print(f"{there} GPUs are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
