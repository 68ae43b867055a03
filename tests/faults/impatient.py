"""The ledger's origin behind something that gives up on it: the effect is written down, and the answer is a 503.

    python -m tests.faults.impatient PORT FILE

`X-Origin` names who answers: one of `GIVE_UP`, or `busy` (503 with Retry-After, and no effect), or `cut` (an effect
and no byte). That is for the first request of a key; each later one is an effect too, and answered well.
"""

from __future__ import annotations

import asyncio
import json
import sys

import h11

from .ledger import Ledger


def _lines(*lines: str, body: str) -> bytes:
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", body)).encode()


#: None of them says Retry-After, and in each case the handler behind it runs on. Go's is what http.TimeoutHandler of
#: Go 1.27 wrote, and Envoy's what Envoy 1.40 wrote when its upstream closed the connection. Express's is put together
#: from the sources of connect-timeout and finalhandler (with a stack cut short), Heroku's H12 from what its router's
#: clients have shown.
GIVE_UP = {
    "go": b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Date: Tue, 24 Nov 2026 13:43:50 GMT\r\n"
    b"Content-Length: 77\r\n"
    b"Content-Type: text/html; charset=utf-8\r\n"
    b"\r\n"
    b"<html><head><title>Timeout</title></head><body><h1>Timeout</h1></body></html>",
    "express": _lines(
        "HTTP/1.1 503 Service Unavailable",
        "X-Powered-By: Express",
        "Content-Security-Policy: default-src 'none'",
        "X-Content-Type-Options: nosniff",
        "Content-Type: text/html; charset=utf-8",
        "Date: Tue, 24 Nov 2026 13:43:50 GMT",
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
        body='<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Error</title>\n</head>\n'
        "<body>\n<pre>ServiceUnavailableError: Response timeout<br> &nbsp; &nbsp;at IncomingMessage.&lt;anonymous&gt; "
        "(/app/node_modules/connect-timeout/index.js:84:8)</pre>\n</body>\n</html>\n",
    ),
    "heroku": _lines(
        "HTTP/1.1 503 Service Unavailable",
        "Connection: close",
        "Server: Cowboy",
        "Date: Tue, 24 Nov 2026 13:43:50 GMT",
        "Content-Type: text/html; charset=utf-8",
        "Cache-Control: no-cache, no-store",
        body="<!DOCTYPE html>\n\t<html>\n\t  <head>\n"
        '\t\t<meta name="viewport" content="width=device-width, initial-scale=1">\n\t\t<meta charset="utf-8">\n'
        '\t\t<title>Application Error</title>\n\t\t<style media="screen">\n'
        "\t\t  html,body,iframe {\n\t\t\tmargin: 0;\n\t\t\tpadding: 0;\n\t\t  }\n"
        "\t\t  html,body {\n\t\t\theight: 100%;\n\t\t\toverflow: hidden;\n\t\t  }\n"
        "\t\t  iframe {\n\t\t\twidth: 100%;\n\t\t\theight: 100%;\n\t\t\tborder: 0;\n\t\t  }\n"
        "\t\t</style>\n\t  </head>\n\t  <body>\n"
        '\t\t<iframe src="//www.herokucdn.com/error-pages/application-error.html"></iframe>\n\t  </body>\n\t</html>',
    ),
    "envoy": b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-length: 95\r\n"
    b"content-type: text/plain\r\n"
    b"date: Tue, 24 Nov 2026 13:43:50 GMT\r\n"
    b"server: envoy\r\n"
    b"\r\n"
    b"upstream connect error or disconnect/reset before headers. reset reason: connection termination",
}
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class Impatient(Ledger):
    """A payment API as both SDKs understand it, and who answers in its place."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._known: set[str] = set()

    async def _answer(
        self,
        request: h11.Request,
        parser: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        fields = {name.decode(): value.decode() for name, value in request.headers}
        key, who = fields["idempotency-key"], fields["x-origin"]
        first = key not in self._known
        self._known.add(key)
        line = self.write(key, effect=not (first and who == "busy"))
        if first and who == "cut":
            return False
        if first:
            answer = BUSY if who == "busy" else GIVE_UP[who]
        else:
            body = json.dumps({"id": line["nonce"], "object": "payment"})
            answer = _lines("HTTP/1.1 200 OK", "Content-Type: application/json", body=body)
        # h11 is told that an answer left, and not how it looked.
        for event in (h11.Response(status_code=200, headers=[("Content-Length", "0")]), h11.EndOfMessage()):
            parser.send(event)
        writer.write(answer)
        await writer.drain()
        return b"\r\nConnection: close\r\n" not in answer


async def main(port: int, path: str) -> None:
    origin = Impatient(path)
    server = await asyncio.start_server(origin.serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
