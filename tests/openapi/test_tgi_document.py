"""TGI's published document as a subset of ours: what ours lacks is what is wrong in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Settings
from tests.openapi.fields import highest, names
from tgi_async.api.openapi.docs import Docs
from tgi_async.api.openapi.document import document
from tgi_async.api.routes import operations

SHARED = Path(os.environ.get("TGI_ASYNC_SHARED", Path(__file__).parents[3] / "shared"))
DOCUMENT = SHARED / "contract" / "tgi-openapi-3.3.6.json"

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


@pytest.fixture(scope="module")
def tgi() -> Any:
    if not DOCUMENT.exists():
        pytest.skip(f"TGI's document is not at {DOCUMENT}; TGI_ASYNC_SHARED names its folder")
    return json.loads(DOCUMENT.read_bytes())


def ours(settings: Settings) -> set[str]:
    limits = settings.limits
    return names(document(operations(limits, Docs()), limits, "0"))


def test_what_ours_lacks_is_what_is_wrong_in_tgis(tgi: Any) -> None:
    lacking = highest(names(tgi) - ours(Settings(strict_tgi=True)))
    assert lacking == WRONG_IN_TGI
    lacking = highest(names(tgi) - ours(Settings()))
    assert lacking == WRONG_IN_TGI | OTHERWISE_HERE


def test_all_that_is_compared_is_found(tgi: Any) -> None:
    found = names(tgi)
    assert len(found) > 500
    assert "POST /generate takes .parameters.top_k" in found
    assert "POST / 200 application/json [].details.finish_reason=eos_token" in found
    assert "POST /v1/chat/completions takes .messages[].content[].type=text" in found
