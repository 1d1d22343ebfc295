"""What can go wrong at a provider. Each function makes an entry for `Emulator.script`.

A fault is `async (emulator, request, connection) -> bool`: whether the connection can carry another request.
"""

import asyncio

from .server import Reply

HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"


def status(code, **headers):
    """An error in the provider's own shape. Header names are written with underscores."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.error(code, {k.replace("_", "-"): v for k, v in headers.items()}))

    return fault


def refusal():
    """The prompt is refused, in the provider's own way."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.refusal(request))

    return fault


def filtered():
    """A success whose image is withheld or blurred by the safety filter, as the provider marks it."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.filtered(request))

    return fault


def empty():
    """A success without images."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.empty(request))

    return fault


def fewer():
    """A success with one image less than asked for."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.fewer(request))

    return fault


def by_address():
    """A success that gives an address, whatever shape was asked for, as some servers do."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.by_address(request))

    return fault


def another_size():
    """A success whose image has not the size that was asked for."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.another_size(request))

    return fault


def broken_base64():
    """A success whose image is not base64."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.with_image_text(request, "!!! this is not base64 !!!"))

    return fault


def truncated_png():
    """A success whose image ends in the middle."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, emulator.truncated(request))

    return fault


def html(code):
    """A page of some proxy in between."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, Reply(code, HTML, {"content-type": "text/html; charset=utf-8"}))

    return fault


def not_json(code=200):
    """Something that says it is JSON."""

    async def fault(emulator, request, connection):
        return await _answer(connection, request, Reply(code, b'{"data": [', {"content-type": "application/json"}))

    return fault


def half_body():
    """The connection ends in the middle of a good answer."""

    async def fault(emulator, request, connection):
        reply = emulator.reply_to(request)
        connection.write_head(reply.status, {**reply.headers, "content-length": len(reply.body)})
        connection.writer.write(reply.body[: len(reply.body) // 2])
        await connection.writer.drain()
        request.answered = True
        return False

    return fault


def reset():
    """The request is read, then the connection is reset."""

    async def fault(emulator, request, connection):
        request.answered = True
        connection.reset()
        return False

    return fault


def hang():
    """No answer until the caller hangs up or the emulator closes."""

    async def fault(emulator, request, connection):
        await _gate_or_gone(emulator, connection)
        return False

    return fault


def hang_in_body():
    """Headers and half the body come at once, the rest never."""

    async def fault(emulator, request, connection):
        reply = emulator.reply_to(request)
        connection.write_head(reply.status, {**reply.headers, "content-length": len(reply.body)})
        connection.writer.write(reply.body[: len(reply.body) // 2])
        await connection.writer.drain()
        await _gate_or_gone(emulator, connection)
        return False

    return fault


def hold(fault=None):
    """A normal answer (or another fault), but only once the test calls `emulator.release()`."""

    async def held(emulator, request, connection):
        if await _gate_or_gone(emulator, connection):
            return False
        if fault is not None:
            return await fault(emulator, request, connection)
        return await _answer(connection, request, emulator.reply_to(request))

    return held


def hold_last():
    """A good answer of events, whose last one comes only once the test calls `emulator.release()`."""

    async def fault(emulator, request, connection):
        reply = emulator.reply_to(request)
        *first, last = reply.stream
        connection.write_head(reply.status, reply.headers)
        for event in first:
            connection.writer.write(event)
        await connection.writer.drain()
        if await _gate_or_gone(emulator, connection):
            return False
        connection.writer.write(last)
        await connection.writer.drain()
        request.answered = True
        return False

    return fault


def drip(pieces=20, pause=0.01):
    """A good answer in small pieces."""

    async def fault(emulator, request, connection):
        reply = emulator.reply_to(request)
        connection.write_head(reply.status, {**reply.headers, "content-length": len(reply.body)})
        size = max(1, len(reply.body) // pieces)
        for start in range(0, len(reply.body), size):
            connection.writer.write(reply.body[start : start + size])
            await connection.writer.drain()
            await asyncio.sleep(pause)
        request.answered = True
        return True

    return fault


async def _answer(connection, request, reply):
    await connection.send(reply)
    request.answered = True
    return True


async def _gate_or_gone(emulator, connection):
    """Waits for the gate; whether the caller went away first."""
    while not emulator.gate.is_set():
        try:
            await asyncio.wait_for(connection.protocol.gone.wait(), 0.005)
            return True
        except TimeoutError:
            pass
    return connection.protocol.gone.is_set()
