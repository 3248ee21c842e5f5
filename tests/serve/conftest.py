"""A service over the shipped digits, with a state of its own, and clients of it."""

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from ctm.models import load_model
from ctm.safety import State
from ctm.safety.filters import Limits
from ctm.serve.app import create_app
from ctm.serve.service import Service, Settings
from ctm.serve.signing import Signing

from .browser import axe, chromium


class Brightness:
    """A filter whose score is the mean of the picture's pixels, in [0, 1]."""

    name, checksum, categories, limits = "brightness", "0" * 64, ("bright",), Limits()

    def __call__(self, images):
        return [{"bright": float(np.mean(image)) / 255} for image in images]


OPEN = {"thresholds": {"brightness": {"bright": {"hold": 1.0, "block": 1.0}}}}  # lets all pass but white


@pytest.fixture(scope="session")
def digits():
    return load_model("models/digits-ctm")


class Maker:
    """Makes services, and stops them at the end."""

    def __init__(self, folder, models):
        self.folder, self.models, self.made = folder, models, []

    def __call__(self, *, policy=None, filters=None, keys=(), models=None, name="state", sign=None, **settings):
        """A service; keys: (name, role) of API keys to make, whose texts are then in `service.texts`."""
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**OPEN, **(policy or {})}))
        state = State.open(self.folder / name, file)
        watermark = state.folder / "keys" / "watermark.key"
        if not watermark.exists():  # a mark is missed now and then: always the same one, so that tests end alike
            watermark.write_bytes(bytes(range(32)))
        texts = [state.keys.create(*key) for key in keys]
        filters = [Brightness()] if filters is None else filters
        sign = sign or Signing.load_or_create(state.folder / "keys")
        service = Service(models or self.models, state, filters=filters, sign=sign, settings=Settings(**settings))
        service.texts = texts
        self.made.append(service)
        return service

    def close(self):
        for service in self.made:
            if service.ready:
                service.stop()


@pytest.fixture
def make_service(tmp_path, digits):
    made = Maker(tmp_path, {"digits-ctm": digits})
    yield made
    made.close()


@pytest.fixture
def service(make_service):
    return make_service()


@pytest.fixture
def client(service):
    with TestClient(create_app(service, stop=False)) as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory, digits):
    """A service that a module's tests share, with its client."""
    made = Maker(tmp_path_factory.mktemp("service"), {"digits-ctm": digits})
    service = made(policy={"max_images": 200, "rates": {"anonymous": {"per_minute": 1000000, "per_day": 1000000}}})
    with TestClient(create_app(service, stop=False)) as client:
        yield service, client
    made.close()


@pytest.fixture(scope="module")
def browser():
    """Chromium; the tests of the page are slow and share it within a file."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="session")
def axe_script(request):
    return axe(request.config.cache.mkdir("axe"))
