"""What is known of one request."""

from __future__ import annotations

from tgi_async.api.request_context import RequestContext


def test_a_field_is_reported_once() -> None:
    context = RequestContext()
    context.ignore(["a", "b"])
    context.ignore(["b", "c"])
    assert context.ignored == ["a", "b", "c"]


def test_a_tenant_is_an_address_with_a_key_and_shows_neither() -> None:
    one = RequestContext(peer="10.0.0.7", authorization=b"Bearer secret")
    again = RequestContext(peer="10.0.0.7", authorization=b"Bearer secret")
    others = [
        RequestContext(peer="10.0.0.8", authorization=b"Bearer secret"),
        RequestContext(peer="10.0.0.7", authorization=b"Bearer other"),
        RequestContext(peer="10.0.0.7"),
        RequestContext(peer="10.0.0.7Bearer secret"),
        RequestContext(),
    ]
    assert one.tenant == again.tenant == one.part(3).tenant
    assert len({one.tenant, *(other.tenant for other in others)}) == 6
    assert len(one.tenant) == 16
    assert one.tenant.isalnum()


def test_a_part_has_the_same_client_and_reports_its_fields_with_the_whole() -> None:
    whole = RequestContext(peer="10.0.0.7", n_bytes=90, unknown={"x": b"1"})
    part = whole.part(30)
    assert (part.peer, part.n_bytes, part.unknown) == ("10.0.0.7", 30, {})
    part.ignore(["instances.a"])
    assert whole.ignored == ["instances.a"]
