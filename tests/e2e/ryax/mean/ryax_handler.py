def handle(inputs):
    assert isinstance(inputs["a"], float) and isinstance(inputs["b"], float)
    mean = (inputs["a"] + inputs["b"]) / 2
    return {"mean": int(mean), "whole": mean // 1, "text": 5}
