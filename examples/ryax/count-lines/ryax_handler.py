def handle(inputs):
    with open(inputs["text"], encoding="utf-8") as text:
        lines = sum(1 for line in text if line.strip() or not inputs["skip_blank"])
    print(f"{lines} lines")
    return {"lines": lines}
