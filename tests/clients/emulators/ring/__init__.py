"""Providers that every case of test_ring.py is run against: one module each, with one `RingProvider`."""

import importlib
import pkgutil

from ..server import Emulator, Reply


class RingProvider(Emulator):
    """A provider that test_ring.py knows how to ask.

    Strict: whatever the real provider rejects (unknown fields, wrong types, sizes, credentials, methods, paths) is
    answered with the error that the real one gives. Its images are real: see `pictures.picture`.
    """

    provider = ""  # as configs name it
    model = ""  # one that generates
    size = "1024x1024"  # one that the model takes
    max_n = 1  # images per call
    key = "test-key-of-the-ring"
    has_key = True  # a wrong key is refused
    refuses = True  # it looks at what is asked for
    options = {}  # further fields of the virtual key
    polls = False  # a job is submitted, then asked for
    cancels = False  # a job whose caller goes away is given up: `cancelled` counts them
    cancelled = 0
    edits = False  # a model takes an input image
    edit_model = ""  # which, if not `model`
    price_usd = None  # of one image of `size`, where the data has a price
    retry_after = ("retry-after", "7")  # how it tells a pause; None: it never does

    @property
    def base_url(self):
        """What replaces everything before the operation's own path."""
        return self.url

    def credential(self, variable):
        """The virtual key's fields that make up the credential, whose secret is in this environment variable."""
        return {"api_key": {"env": variable}}

    def refusal(self, request):
        """The prompt is refused, in the provider's own disguise."""
        raise NotImplementedError

    def malformed(self, request):
        """A success without anything that it promises."""
        return Reply.json(200, {"unexpected": True})

    def hold_jobs(self):
        """From now on, jobs do not finish."""
        raise NotImplementedError


def everyone():
    """The classes, by provider id."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, RingProvider) and value.provider:
                found[value.provider] = value
    return dict(sorted(found.items()))
