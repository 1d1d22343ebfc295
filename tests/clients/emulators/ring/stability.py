"""Stability AI in the ring, by a model of v2beta: v1, which has no price any more and knows one format, is the founding
program's. Of v2beta, sd3.5-large is a model that generates, edits and has a price."""

from ..stability import Stability
from . import RingProvider


class StabilityAi(Stability, RingProvider):
    provider = "stability-ai"
    model = "sd3.5-large"
    edits = True
    price_usd = 0.065

    def __init__(self):
        super().__init__(self.key)
