import os
import time


def handle(inputs):
    seen = os.path.exists("/tmp/result.txt")
    with open("/tmp/result.txt", "a") as result:
        result.write(str(inputs["number"]))
    time.sleep(0.05)
    return {"file": "/tmp/result.txt", "seen": seen}
