def handle(inputs):
    return {"said": repr(sorted(inputs.items())), "unsaid": None, "undeclared": object()}
