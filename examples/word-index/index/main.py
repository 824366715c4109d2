"""Reads a text once, and answers which lines of it a word stands in: GET /river gives 1 2."""

import http.server
import os

LINES = {}
for number, line in enumerate(os.environ["text"].splitlines(), 1):
    for word in set(line.split()):
        LINES.setdefault(word, []).append(str(number))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        word = self.path.strip("/")
        found = " ".join(LINES.get(word, []))
        self.send_response(200 if found or word == "health" else 404)
        self.end_headers()
        self.wfile.write(found.encode())


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["ATOLL_PORT"])), Handler).serve_forever()
