def handle(inputs):
    return [{"name": str(n), "square": n * n} for n in range(inputs["count"])]
