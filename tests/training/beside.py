"""A process as `training.sidecar` starts it: it answers, falls silent, or ends, as it is told."""

import os
import time

from training.sidecar import messages, own_output, say

if __name__ == "__main__":
    out = own_output()
    for message in messages():
        if message.get("do") == "hang":
            time.sleep(60)
        if message.get("do") == "die":
            os._exit(3)
        print("this goes to the log")  # noqa: T201 (what a library might print)
        say(out, {"heard": message["n"]})
    say(out, {"heard": "the end"})
