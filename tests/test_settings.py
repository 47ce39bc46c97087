from __future__ import annotations

import ssl
from typing import Any

import pytest

from tgi_async.errors import StartError
from tgi_async.images.addresses import place_of
from tgi_async.settings import Settings


def test_max_input_length_is_the_old_name_of_max_input_tokens() -> None:
    assert Settings(max_input_length=77).input_limit == 77
    assert Settings(max_input_tokens=78).input_limit == 78
    assert Settings().input_limit is None
    with pytest.raises(StartError, match="give only --max-input-tokens"):
        Settings(max_input_length=77, max_input_tokens=77)


def limited(name: str, n: int) -> Settings:
    limit: dict[str, Any] = {name: n}
    return Settings(max_total_tokens=100, **limit)


@pytest.mark.parametrize("name", ["max_input_tokens", "max_input_length"])
def test_a_prompt_must_leave_room_for_an_answer(name: str) -> None:
    with pytest.raises(StartError, match=r"less than --max-total-tokens\. Given: 100 and 100"):
        limited(name, 100)
    assert limited(name, 99).input_limit == 99


def test_a_request_must_fit_in_the_pool() -> None:
    with pytest.raises(StartError, match=r"--max-batch-total-tokens\. Given: 101 and 100"):
        Settings(max_total_tokens=101, max_batch_total_tokens=100)


@pytest.mark.parametrize("text", ["debug", "WARN", "off", "info,text_generation_router=debug"])
def test_a_log_level_is_one_of_tgi(text: str) -> None:
    assert Settings(log_level=text).log_level == text


@pytest.mark.parametrize("text", ["loud", "info,loud", ""])
def test_another_log_level_is_refused(text: str) -> None:
    with pytest.raises(StartError, match=r"^--log-level must be one of trace, debug, info, "):
        Settings(log_level=text)


def test_domains_of_images_are_read_at_the_start() -> None:
    domains = Settings(allow_image_domains=("a.example",)).image_domains
    domains.check(place_of("https://a.example/"))
    assert not Settings().image_domains
    with pytest.raises(StartError, match=r"^--allow-image-domains: 'https://a' is not a dom"):
        Settings(allow_image_domains=("b.example", "https://a"))


def test_private_addresses_are_for_domains_that_are_named() -> None:
    place = place_of("http://a.example/")
    named = Settings(allow_image_domains=("a.example",), allow_private_image_addresses=True)
    named.image_domains.check_addresses(place, ["10.0.0.1"])


def test_a_model_of_images_takes_larger_bodies_unless_it_is_asked_for_tgis() -> None:
    assert Settings().payload_limit_for(images=False) == 2_000_000
    assert Settings().payload_limit_for(images=True) == 20_000_000
    assert Settings(strict_tgi=True).payload_limit_for(images=True) == 2_000_000
    assert Settings(payload_limit=5).payload_limit_for(images=True) == 5


def test_tls_begins_with_a_certificate() -> None:
    assert Settings().certificate_files is None
    found = Settings(ssl_certfile="c").certificate_files
    assert found is not None
    assert (found.certificate, found.key, found.clients) == ("c", "c", ssl.CERT_NONE)
    found = Settings(ssl_certfile="c", ssl_keyfile="k", ssl_keyfile_password="p").certificate_files
    assert found is not None
    assert (found.key, found.password) == ("k", "p")
    for name in ("ssl_keyfile", "ssl_ca_certs"):
        given: dict[str, Any] = {name: "x"}
        with pytest.raises(StartError, match=r"--ssl-\w+(-\w+)? needs --ssl-certfile"):
            Settings(**given)


def test_clients_must_show_a_certificate_where_authorities_are_given() -> None:
    for asked, wanted in ((None, ssl.CERT_REQUIRED), (0, ssl.CERT_NONE), (1, ssl.CERT_OPTIONAL)):
        found = Settings(ssl_certfile="c", ssl_ca_certs="a", ssl_cert_reqs=asked).certificate_files
        assert found is not None
        assert found.clients is wanted
    with pytest.raises(StartError, match="--ssl-cert-reqs 2 needs --ssl-ca-certs"):
        Settings(ssl_certfile="c", ssl_cert_reqs=2)


@pytest.mark.parametrize("path", ["llm", "/llm/", "/", "https://test/llm"])
def test_a_root_path_begins_with_a_slash_and_does_not_end_with_one(path: str) -> None:
    with pytest.raises(StartError, match=r"--root-path must be a path that begins with a slash"):
        Settings(root_path=path)
    assert Settings(root_path="/llm/v2").root_path == "/llm/v2"


def test_trusted_proxies_are_networks() -> None:
    assert Settings().trusted_proxies is None
    assert Settings(forwarded_allow_ips=("10.0.0.0/8",)).trusted_proxies is not None
    with pytest.raises(StartError, match=r"--forwarded-allow-ips: 'proxy' .*Allowed are"):
        Settings(forwarded_allow_ips=("proxy",))
