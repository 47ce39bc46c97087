"""The OpenAPI document and the page made of it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

URL = "/api-doc/openapi.json"


async def document_of(client):
    return (await client.get(URL)).json()


def references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


@pytest.fixture(params=[False, True], ids=["without KServe", "with KServe"])
def kserve(settings, request):
    settings.kserve = request.param


@pytest.mark.usefixtures("kserve")
class TestRoutes:
    async def test_every_route_is_described_and_no_other(self, app, client):
        found = {
            (method.lower(), route.path.replace(":path}", "}"))
            for route in app.routes
            for method in route.methods
            if method != "HEAD"
        }
        paths = (await document_of(client))["paths"]
        assert {(method, path) for path in paths for method in paths[path]} == found


async def test_every_reference_leads_to_a_schema(client):
    found = await document_of(client)
    names = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    used = set(references(found))
    assert "#/components/schemas/ChatRequest" in used
    assert used <= names


async def test_bounds_are_those_of_this_server(client):
    schemas = (await document_of(client))["components"]["schemas"]
    fields = schemas["GenerateParameters"]["properties"]
    assert fields["truncate"]["anyOf"][0]["maximum"] == 100
    assert fields["best_of"]["anyOf"][0]["maximum"] == 3
    assert fields["top_n_tokens"]["anyOf"][0]["maximum"] == 5
    assert fields["temperature"]["anyOf"][0]["exclusiveMinimum"] == 0
    assert fields["stop"]["anyOf"][0]["maxItems"] == 2


async def test_a_format_with_a_schema_has_it_under_one_of_its_names(client):
    schemas = (await document_of(client))["components"]["schemas"]
    either = [{"required": [name]} for name in ("json_schema", "value", "schema")]
    assert schemas["JsonSchemaFormat"]["anyOf"] == either


async def test_headers_say_their_unit(client):
    paths = (await document_of(client))["paths"]
    headers = paths["/generate"]["post"]["responses"]["200"]["headers"]
    assert "in seconds" in headers["x-compute-time"]["description"]
    assert "in milliseconds" in headers["x-queue-time"]["description"]


async def test_without_a_key_none_is_asked_for(client):
    found = await document_of(client)
    assert "securitySchemes" not in found["components"]
    assert "401" not in found["paths"]["/generate"]["post"]["responses"]


class TestWithKey:
    @pytest.fixture(autouse=True)
    def key(self, settings):
        settings.api_key = "secret"
        settings.kserve = True

    async def test_routes_that_need_it_are_marked(self, client):
        paths = (await document_of(client))["paths"]
        for path, methods in paths.items():
            for method, operation in methods.items():
                target = path.format(model="m", version="1")
                status = (await client.request(method, target)).status_code
                assert (status == 401) is ("security" in operation), path
                assert ("401" in operation["responses"]) is ("security" in operation)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.loaded, self.words = set(), set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a":
            self.links.add(found["href"])
        if "id" in found:
            self.anchors.add("#" + found["id"])
        if tag in ("script", "link", "img", "iframe") or "src" in found:
            self.loaded.add(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
async def test_the_page_has_every_operation_and_loads_nothing(client, path):
    response = await client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(response.text)
    assert page.loaded == set()
    assert page.links - page.anchors == {URL}
    text = "".join(page.words)
    for path, methods in (await document_of(client))["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text
    assert "max_new_tokens" in text
