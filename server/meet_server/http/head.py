"""Bounds what a connection may send before anything of it is complete: a head, or the trailers of a body.

`bounds` sees headers once they are all there, and keys are asked for later still; until then uvicorn holds whatever
comes, of any length. Knows no app. Imports uvicorn and httptools, which vLLM brings.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SLACK = 64 << 10
"""Bytes of a head that are no names and values: the request's line, colons and ends of lines."""

_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 29\r\nconnection: close\r\n\r\nThe request's head is too big"
)


def bounded_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which refuses heads that are clearly larger: `bounds` has the better words for the others."""
    limit = max_header_bytes + SLACK

    class BoundedProtocol(HttpToolsProtocol):
        _num_pending = 0
        _moved_on = False
        _in_head = False

        def data_received(self, data: bytes) -> None:
            self._moved_on = False
            super().data_received(data)
            self._num_pending = 0 if self._moved_on else self._num_pending + len(data)
            if self._num_pending > limit and not self.transport.is_closing():
                self.transport.write(_REFUSAL)
                self.transport.close()

        def on_message_begin(self) -> None:
            self._moved_on = self._in_head = True
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._in_head:  # a trailer is no header, and would join them after they were checked
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._moved_on, self._in_head = True, False
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._moved_on = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._moved_on = True
            super().on_message_complete()

    return BoundedProtocol
