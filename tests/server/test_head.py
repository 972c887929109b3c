"""What uvicorn holds of a connection before anything of it is complete, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvicorn

from meet_server.http.head import SLACK, bounded_protocol

LIMIT = 2048
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


async def names(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the names of the headers, when the body is there, and its length."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    said = json.dumps([[name.decode() for name, _ in scope["headers"]], size]).encode()
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


def talk(with_it: Talk) -> Any:
    """Runs a conversation with a server of the app."""

    async def run() -> Any:
        config = uvicorn.Config(
            names, http=bounded_protocol(LIMIT), port=0, lifespan="off", log_level="error", access_log=False
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        try:
            return await asyncio.wait_for(with_it(reader, writer), 20)
        finally:
            writer.close()
            server.should_exit = True
            await serving

    return asyncio.run(run())


def status_after(pieces: Sequence[bytes]) -> int:
    """Of the reply, once all pieces are sent or it comes."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return int((await reader.readline()).split()[1])
        except (ConnectionError, IndexError):
            return 431  # closed under what was still to be sent

    return int(talk(converse))


async def replied(reader: asyncio.StreamReader) -> Any:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.startswith(b"content-length"))
    return json.loads(await reader.readexactly(length))


MUCH = [b"a" * 8192] * (2 * (LIMIT + SLACK) // 8192) + [b"a" * (1 << 20)] * 2


def test_heads_without_an_end() -> None:
    assert status_after([HEAD, b"x: ", *MUCH]) == 431
    assert status_after([HEAD, *(b"x-%d: 1\r\n" % number * 100 for number in range(20_000))]) == 431
    assert status_after([b"GET /", *MUCH]) == 431


def test_trailers_without_an_end() -> None:
    assert status_after([CHUNKED, b"1\r\nx\r\n0\r\nx: ", *MUCH]) == 431


def test_what_is_a_little_too_large_reaches_the_app_which_says_so() -> None:
    assert status_after([HEAD, b"x: " + b"a" * 2 * LIMIT, b"\r\ncontent-length: 0\r\n\r\n"]) == 200


def test_a_large_body_is_no_head() -> None:
    pieces = [b"x" * 8192] * 64
    said = str(sum(map(len, pieces))).encode()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):  # on one connection
            for piece in (HEAD, b"content-length: " + said + b"\r\n\r\n", *pieces):
                writer.write(piece)
                await writer.drain()
            assert (await replied(reader))[1] == int(said)

    talk(converse)


def test_trailers_are_no_headers() -> None:
    """They come when keys and bounds have seen the headers."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"0\r\nx-meet-preference: formal\r\n\r\n")
        assert await replied(reader) == [["host", "transfer-encoding"], 1]
        writer.write(HEAD + b"x: 1\r\ncontent-length: 0\r\n\r\n")
        assert await replied(reader) == [["host", "x", "content-length"], 0]

    talk(converse)
