import os

from phrases import hello
from ryax_execution.ryax_source_protocol import RyaxRunStatus
from ryax_wrapper import RyaxSourceProtocol

WORD = open("word.txt").read().strip()
assert RyaxRunStatus.DONE.value == 1 and RyaxSourceProtocol


def handle(inputs):
    beside = sorted(os.listdir("."))
    with open("word.txt") as word:
        again = word.read().strip()
    assert again == WORD and inputs["key"]
    return {"greeting": hello(WORD, inputs["name"]), "where": ",".join(beside)}
