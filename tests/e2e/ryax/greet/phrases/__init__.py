def hello(word, name):
    return f"{word}, {name}!"
