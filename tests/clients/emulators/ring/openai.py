"""OpenAI in the ring: the emulator that every other test of it uses, asked for the model that is the default."""

from ..openai import OpenAI
from . import RingProvider

# Of text and of output images, as the emulator counts them for the ring's prompt (20 characters, one image).
TEXT_TOKENS, IMAGE_TOKENS = 6, 1056


class OpenAi(OpenAI, RingProvider):
    provider = "openai"
    model = "gpt-image-2"
    max_n = 10
    edits = True
    price_usd = (5 * TEXT_TOKENS + 30 * IMAGE_TOKENS) / 1e6

    def __init__(self):
        super().__init__(self.key)
