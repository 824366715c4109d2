import os


def handle(inputs: dict) -> dict:
    # Ryax gives each execution a clean /tmp.
    os.mkdir("/tmp/parts")
    with open(inputs["text"]) as text:
        for number, line in enumerate(text):
            with open(f"/tmp/parts/{number}.txt", "w") as part:
                part.write(line)
    return {"parts": "/tmp/parts"}
