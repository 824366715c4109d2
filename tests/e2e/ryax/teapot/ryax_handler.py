from dataclasses import dataclass


@dataclass
class RyaxException(Exception):
    message: str
    code: int


def handle(inputs):
    raise RyaxException(message=f"no {inputs['brew']} here", code=418)
