import os


def handle(inputs):
    texts = []
    for name in sorted(os.listdir(inputs["parts"])):
        with open(os.path.join(inputs["parts"], name)) as part:
            texts.append(part.read())
    text = "".join(texts) * int(inputs["times"])
    with open("joined.txt", "w") as joined:
        joined.write(text.upper() if inputs["mode"] == "loud" else text)
    kinds = ",".join(type(inputs[name]).__name__ for name in ("mode", "times", "weight"))
    return {"joined": "joined.txt", "kinds": kinds}
