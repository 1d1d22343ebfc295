"""Real images of an exact size."""

import functools
import io

from PIL import Image

COLOURS = ["#c0392b", "#2980b9", "#27ae60", "#f39c12", "#8e44ad", "#16a085", "#2c3e50", "#d35400", "#7f8c8d", "#c2185b"]


@functools.lru_cache(maxsize=64)
def picture(width, height, colour=0, kind="png"):
    """A plain picture with a diagonal, so that no two colours and sizes have the same bytes."""
    image = Image.new("RGB", (width, height), COLOURS[colour % len(COLOURS)])
    for i in range(min(width, height)):
        image.putpixel((i, i), (255, 255, 255))
    return encode(image, kind)


@functools.lru_cache(maxsize=16)
def mask(width, height):
    """White, with a transparent hole in its middle: what OpenAI's API wants as a mask."""
    image = Image.new("RGBA", (width, height), (255, 255, 255, 255))
    image.paste((0, 0, 0, 0), (width // 4, height // 4, width // 2, height // 2))
    return encode(image, "png")


def encode(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format={"jpg": "JPEG"}.get(kind, kind.upper()), **({"compress_level": 1} if kind == "png" else {}))
    return buffer.getvalue()


def look(data):
    """Decodes an image completely. Fails on anything that is not one."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
