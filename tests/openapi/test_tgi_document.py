"""TGI's published document as a subset of ours: what ours lacks is what is wrong in it."""

from __future__ import annotations

from pathlib import Path

from tests.api.conftest import Settings
from tests.openapi.fields import highest, names
from tgi_async.api.openapi.docs import Docs
from tgi_async.api.openapi.document import document
from tgi_async.api.routes import operations

TGI = frozenset(Path(__file__).with_name("tgi_names.txt").read_text("utf-8").splitlines())
"""Every path, field and value that TGI 3.3.6's document names, by `fields.names`."""

WRONG_IN_TGI = {
    # A list is answered, and there is always a model.
    "GET /v1/models 200 application/json .created",
    "GET /v1/models 200 application/json .id",
    "GET /v1/models 200 application/json .owned_by",
    "GET /v1/models 404",
    # What these refuse is a 422.
    "POST /tokenize 404",
    "POST /chat_tokenize 404",
    # Once the body was read, errors are events of a stream with status 200.
    "POST /generate_stream 422 text/event-stream",
    "POST /generate_stream 424",
    "POST /generate_stream 429",
    "POST /generate_stream 500",
    # The route calls the handler of `/`, which answers with a list of one; TGI's document has that
    # list for `/` itself.
    "POST /invocations 200 application/json .generated_text",
    "POST /invocations 200 application/json .details",
}

OTHERWISE_HERE = {
    # As at OpenAI, what is wrong with a request is a 400.
    "POST /v1/chat/completions 422",
    "POST /v1/completions 422",
}


def ours(settings: Settings) -> set[str]:
    limits = settings.limits
    return names(document(operations(limits, Docs()), limits, "0"))


def test_what_ours_lacks_is_what_is_wrong_in_tgis() -> None:
    lacking = highest(TGI - ours(Settings(strict_tgi=True)))
    assert lacking == WRONG_IN_TGI
    lacking = highest(TGI - ours(Settings()))
    assert lacking == WRONG_IN_TGI | OTHERWISE_HERE


def test_all_that_is_compared_is_found() -> None:
    assert len(TGI) > 500
    assert "POST /generate takes .parameters.top_k" in TGI
    assert "POST / 200 application/json [].details.finish_reason=eos_token" in TGI
    assert "POST /v1/chat/completions takes .messages[].content[].type=text" in TGI
