"""Schemathesis over the application's own document: every answer is one that the document declares, and none is 5xx."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from ctm.serve.app import create_app
from ctm.serve.outbox import as_png

from ..conftest import mostly_slow

OPTIONS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
    "derandomize": True,
}


@pytest.fixture(scope="module")
def schema(shared):
    import schemathesis  # here and below, as it takes seconds to import, and one process of two runs these tests

    service, _ = shared
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(service, stop=False))


PICTURE = as_png(np.arange(256, dtype=np.uint8).reshape(8, 8, 4)[:, :, :1])
ROUTES = [
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "POST /v1/images/variations",
    "GET /v1/images/{id}",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/reports",
    "POST /v1/ctm/compare",
    "POST /v1/ctm/path",
    "POST /v1/ctm/stroke",
    "POST /v1/ctm/interpolate",
    "POST /v1/ctm/likelihood",
    "GET /v1/moderation/held",
    "GET /v1/moderation/reports",
    "GET /v1/moderation/pictures/{id}",
    "GET /v1/moderation/pictures/{id}/png",
    "POST /v1/moderation/pictures/{id}/release",
    "POST /v1/moderation/pictures/{id}/reject",
    "POST /v1/moderation/reports/{id}/close",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
]
FORMS = ("/edits", "/variations", "/stroke", "/interpolate", "/likelihood")
SOLVED = ["POST /v1/ctm/interpolate", "POST /v1/ctm/likelihood"]  # a second each


@st.composite
def negative(draw, operation):
    """A case that breaks the document in some way.

    Schemathesis (4.32) filters such cases by jsonschema-rs, which refuses Schemathesis' own class for bytes, `Binary`, with a
    ValueError, while a case of a form is still being generated: no request was made. Whether it draws one depends on
    its pool of constants, which is of all modules that the process has imported. Exactly this error of the generator throws
    the draw away; what the service answers is checked as for every other case, outside of this strategy."""
    from schemathesis import GenerationMode

    try:
        return draw(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    except ValueError as error:
        if str(error) != "Unsupported type: 'Binary'":
            raise
        reject()


def check(schema, route, examples):
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    method, path = route.split()
    operation = schema[path][method]
    # a document cannot say what is a picture, a class of the model or a grid that fits; nor does a form have an empty list
    unsayable = [positive_data_acceptance, *([negative_data_rejection] if path.endswith(FORMS) else [])]

    @settings(max_examples=examples, **OPTIONS)
    @given(
        case=operation.as_strategy() | negative(operation),
        real=st.booleans(),
    )
    def answers(case, real):
        body = case.body if isinstance(case.body, dict) else {}
        if real:
            body |= {name: PICTURE for name in ("image", "first", "second") if name in body}
        if isinstance(body.get("steps"), int):
            body["steps"] = min(body["steps"], 200)  # so that those that are allowed are quick
        if route in SOLVED and isinstance(body.get("n"), int):
            body["n"] = min(body["n"], 5)
        if isinstance(body.get("n"), int) and 4 < body["n"] <= 200:  # 200: the most that this policy allows
            body["n"] = 4
        case.call_and_validate(excluded_checks=unsayable)

    answers()


def test_these_are_all_routes(schema):
    assert {found.ok().label for found in schema.get_all_operations()} == set(ROUTES)


QUICK = [
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "GET /v1/images/{id}",
    "GET /v1/models/{model}",
    "POST /v1/reports",
    "POST /v1/ctm/path",
    "GET /v1/moderation/held",
    "POST /v1/moderation/pictures/{id}/reject",
    "GET /metrics",
]


@pytest.mark.parametrize("route", mostly_slow(ROUTES, *QUICK))
def test_every_answer_is_declared(schema, route):
    check(schema, route, 6)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_of_many_is_declared(schema, route):
    check(schema, route, 40 if route in SOLVED else 400)


class Drawn:
    """Stands for an operation whose generator fails, or does not."""

    def __init__(self, made):
        self.made = made

    def as_strategy(self, generation_mode):
        return st.integers(0, 9).map(self.made)


def test_only_the_generators_own_error_is_a_draw_thrown_away():
    """Of the cases without it none is lost, and every other error is one."""

    def made(number, words):
        if number == 3:
            raise ValueError(words)
        return number

    def cases(words):
        seen = set()

        @settings(max_examples=60, database=None, **OPTIONS)
        @given(case=negative(Drawn(lambda number: made(number, words))))
        def draw(case):
            seen.add(case)

        draw()
        return seen

    assert cases("Unsupported type: 'Binary'") == {*range(10)} - {3}
    with pytest.raises(ValueError, match="Unsupported type: 'Other'"):
        cases("Unsupported type: 'Other'")
