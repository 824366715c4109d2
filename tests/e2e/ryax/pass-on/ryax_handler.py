import os


def handle(inputs):
    return {"same": inputs["file"], "bytes": os.path.getsize(inputs["file"])}
