import math
import time


def run(source, river, seconds):
    # Where the last reading that started a run has left off, also if this process, its site or the link died since.
    reading = source.offset or 0
    while True:
        reading += 1
        level = round(2 + math.sin(reading / 10), 2)
        print(f"{river}: {level} m")
        # Returns when the run that it starts is certain.
        source.emit({"river": river, "reading": reading, "level": level}, offset=reading)
        time.sleep(seconds)
