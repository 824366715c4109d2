import logging


def handle(inputs):
    logging.warning("announced: %s", inputs["text"])
