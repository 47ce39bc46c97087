from __future__ import annotations

import argparse
from dataclasses import MISSING, fields

import pytest

from tgi_async.arguments import add_arguments, flag_of, resolve, without_effect
from tgi_async.errors import StartError
from tgi_async.settings import COUNT, SECRETS, Settings
from tgi_async.settings_tgi import (
    NOT_BUILT,
    OF_SEVERAL_NODES,
    ONE_NODE,
    VARIABLES_WITHOUT_MEANING,
    WITHOUT_MEANING,
)

CERTIFICATE = ["--ssl-certfile", "c"]
BESIDE = {
    "rope_scaling": ["--rope-factor", "2"],
    "rope_factor": ["--rope-scaling", "linear"],
    "ssl_keyfile": CERTIFICATE,
    "tenant_header": ["--forwarded-allow-ips", "10.0.0.0/8"],
    "ssl_ca_certs": CERTIFICATE,
    "ssl_cert_reqs": [*CERTIFICATE, "--ssl-ca-certs", "a"],
}
"""Flags that another one needs."""
FLAGS = [one for one in fields(Settings) if one.name not in SECRETS]
NUMBERS = [one for one in fields(Settings) if one.metadata["kind"] is int]
OF_TGI = [
    "model-id",
    "revision",
    "validation-workers",
    "sharded",
    "num-shard",
    "quantize",
    "speculate",
    "dtype",
    "kv-cache-dtype",
    "trust-remote-code",
    "max-concurrent-requests",
    "max-best-of",
    "max-stop-sequences",
    "max-top-n-tokens",
    "max-input-tokens",
    "max-input-length",
    "max-total-tokens",
    "waiting-served-ratio",
    "max-batch-prefill-tokens",
    "max-batch-total-tokens",
    "max-waiting-tokens",
    "max-batch-size",
    "cuda-graphs",
    "hostname",
    "port",
    "prometheus-port",
    "shard-uds-path",
    "master-addr",
    "master-port",
    "huggingface-hub-cache",
    "weights-cache-override",
    "disable-custom-kernels",
    "cuda-memory-fraction",
    "rope-scaling",
    "rope-factor",
    "json-output",
    "otlp-endpoint",
    "otlp-service-name",
    "cors-allow-origin",
    "api-key",
    "watermark-gamma",
    "watermark-delta",
    "ngrok",
    "ngrok-authtoken",
    "ngrok-edge",
    "tokenizer-config-path",
    "disable-grammar-support",
    "max-client-batch-size",
    "lora-adapters",
    "usage-stats",
    "payload-limit",
    "enable-prefill-logprobs",
    "graceful-termination-timeout",
]
"""Every flag of text-generation-launcher 3.3.6, but for --env."""


def parsed(*flags: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return vars(parser.parse_args(flags))


def settings(*flags: str, **environment: str) -> Settings:
    return resolve(parsed(*flags), environment)


def lines(*flags: str, **environment: str) -> list[str]:
    return without_effect(parsed(*flags), environment)


def test_nothing_given_gives_the_defaults() -> None:
    found = settings()
    assert found == Settings()
    assert (found.hostname, found.port) == ("0.0.0.0", 3000)
    assert found.max_concurrent_requests == 128
    assert (found.max_best_of, found.max_stop_sequences, found.max_top_n_tokens) == (8, 16, 20)
    assert (found.max_client_batch_size, found.payload_limit) == (32, None)
    assert found.payload_limit_for(images=False) == 2_000_000
    assert found.queue_size == 512
    assert (found.validation_workers, found.graceful_termination_timeout) == (2, 90)
    assert all(one.default is not MISSING for one in fields(Settings))


def test_strict_tgi_has_the_defaults_of_tgi() -> None:
    found = settings("--strict-tgi")
    assert (found.max_best_of, found.max_top_n_tokens, found.max_client_batch_size) == (2, 5, 4)
    assert found.queue_size == 0
    assert settings(STRICT_TGI="true") == found


def test_what_is_given_counts_with_strict_tgi_too() -> None:
    found = settings("--strict-tgi", "--max-best-of", "3", "--max-queued-requests", "9")
    assert (found.max_best_of, found.queue_size, found.max_top_n_tokens) == (3, 9, 5)
    assert settings("--strict-tgi", MAX_TOP_N_TOKENS="20").max_top_n_tokens == 20
    assert settings("--max-concurrent-requests", "3").queue_size == 12
    assert settings("--max-queued-requests", "0").queue_size == 0


def test_a_flag_comes_before_a_variable_and_that_before_the_default() -> None:
    assert settings(PORT="81").port == 81
    assert settings("--port", "80", PORT="81").port == 80
    assert settings(PORT="").port == 3000
    assert settings("--port", "80", PORT="nonsense").port == 80


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--rope-scaling", "linear"], "go together"),
        (["--rope-factor", "2"], "go together"),
        (["--rope-scaling", "yarn", "--rope-factor", "2"], "one of linear, dynamic"),
        (["--rope-scaling", "linear", "--rope-factor", "nan"], "from 1 to 1024"),
        (["--cuda-graphs", "1,two"], "numbers of rows from 1 to 65536 .* Given: '1,two'"),
        (["--cuda-graphs", "0,2"], "numbers of rows"),
        (["--cuda-graphs", "65537"], "numbers of rows"),
        (["--cuda-memory-fraction", "0"], "above 0 and at most 1"),
        (["--cuda-memory-fraction", "1.1"], "above 0 and at most 1"),
        (["--cuda-memory-fraction", "nan"], "above 0 and at most 1"),
        (["--rope-scaling", "linear", "--rope-factor", "0.5"], "from 1 to 1024"),
        (["--rope-scaling", "linear", "--rope-factor", "twice"], "must be a number"),
    ],
)
def test_rope_scaling_is_a_kind_and_a_factor(flags: list[str], reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        settings(*flags)


def test_short_flags_are_those_of_tgi() -> None:
    found = settings("-p", "99", "-g", "7")
    assert (found.port, found.graceful_termination_timeout) == (99, 7)


@pytest.mark.parametrize("one", FLAGS, ids=lambda one: one.name)
def test_every_setting_has_a_flag_and_a_variable(one: object) -> None:
    name, meta = one.name, one.metadata  # type: ignore[attr-defined]
    text = {bool: "true", int: "2", float: "1", tuple: "x", str: "debug"}[meta["kind"]]
    if meta["choices"]:
        text = meta["choices"][-1]
    own = {"cuda_graphs": "1,2", "root_path": "/x", "forwarded_allow_ips": "unix"}
    own["tenant_header"] = "x-tenant"
    text = own.get(name, text)
    wanted = {bool: True, int: 2, float: 1.0, tuple: (text,), str: text}[meta["kind"]]
    others = BESIDE.get(name, [])
    assert getattr(settings(flag_of(name), text, *others), name) == wanted
    if name != "hostname":
        assert getattr(settings(*others, **{name.upper(): text}), name) == wanted


def test_a_secret_has_a_variable_and_no_flag() -> None:
    assert settings(SSL_KEYFILE_PASSWORD="x").ssl_keyfile_password == "x"
    with pytest.raises(SystemExit):
        settings("--ssl-keyfile-password", "x")


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.name)
def test_every_number_is_bounded(one: object) -> None:
    name, meta = one.name, one.metadata  # type: ignore[attr-defined]
    least, most = meta["least"], meta["most"] or COUNT
    for number in (least, most):
        if (name, number) != ("max_total_tokens", COUNT):
            found = settings(f"{flag_of(name)}={number}", *BESIDE.get(name, []))
            assert getattr(found, name) == number
    for number in (least - 1, most + 1):
        with pytest.raises(StartError, match=f"{flag_of(name)} must be from {least} to {most}"):
            settings(f"{flag_of(name)}={number}")
    for text in ("many", "1.5", "1e3", "nan", "inf", "", "9" * 5000):
        with pytest.raises(StartError, match=f"{flag_of(name)} must be a whole number"):
            settings(f"{flag_of(name)}={text}")
    with pytest.raises(StartError, match=f"variable {name.upper()} must be from"):
        settings(**{name.upper(): str(most + 1)})


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        (("--json-output",), True),
        (("--json-output", "true"), True),
        (("--json-output=True",), True),
        (("--json-output", "1"), True),
        (("--json-output", "false"), False),
        (("--json-output", "0"), False),
        (("--json-output", "--port", "1"), True),
    ],
)
def test_a_switch_may_have_a_value(flags: tuple[str, ...], given: bool) -> None:
    assert settings(*flags).json_output is given
    assert settings(*flags, JSON_OUTPUT="true" if not given else "false").json_output is given


def test_a_switch_takes_no_other_word() -> None:
    with pytest.raises(StartError, match=r"TRUST_REMOTE_CODE must be true or false\. Given: 'yes'"):
        settings(TRUST_REMOTE_CODE="yes")


@pytest.mark.parametrize("name", ["model_id", "api_key", "hostname", "dtype", "revision"])
def test_an_empty_text_is_refused_as_a_flag_and_absent_as_a_variable(name: str) -> None:
    with pytest.raises(StartError, match=f"{flag_of(name)} must not be empty"):
        settings(flag_of(name), "")
    assert settings(**{name.upper(): ""}) == Settings()


def test_dtype_is_one_of_three() -> None:
    assert settings(DTYPE="float32").dtype == "float32"
    with pytest.raises(StartError, match=r"bfloat16, float16, float32\. Given: 'int8'"):
        settings("--dtype", "int8")


def test_origins_are_repeated_flags_or_a_list_in_a_variable() -> None:
    flags = ("--cors-allow-origin", "http://a", "--cors-allow-origin", "http://b")
    assert settings(*flags).cors_allow_origin == ("http://a", "http://b")
    assert settings(CORS_ALLOW_ORIGIN="http://a, http://b").cors_allow_origin == (
        "http://a",
        "http://b",
    )


def test_names_of_the_model_are_given_in_one_flag_or_in_several() -> None:
    assert settings().served_model_name == ()
    assert settings("--served-model-name", "a/b", "c").served_model_name == ("a/b", "c")
    flags = ("--served-model-name", "a", "--port", "1", "--served-model-name=b")
    assert settings(*flags).served_model_name == ("a", "b")
    assert settings(SERVED_MODEL_NAME="a,b").served_model_name == ("a", "b")


@pytest.mark.parametrize("host", ["3f1c0de5ab12", "my-pod-7", "localhost"])
def test_the_name_that_a_container_gives_itself_is_no_address_to_listen_on(host: str) -> None:
    assert settings(HOSTNAME=host).hostname == "0.0.0.0"
    assert settings("--hostname", host).hostname == host
    assert settings("--hostname", "127.0.0.1", HOSTNAME=host).hostname == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1", "10.0.0.7"])
def test_an_address_in_hostname_is_used(host: str) -> None:
    assert settings(HOSTNAME=host).hostname == host


@pytest.mark.parametrize("flag", OF_TGI)
def test_every_flag_of_tgi_is_known_and_has_one_fate(flag: str) -> None:
    name = flag.replace("-", "_")
    assert name in parsed(f"--{flag}=1")
    own = {one.name for one in fields(Settings)}
    assert [name in own, name in NOT_BUILT, name in WITHOUT_MEANING].count(True) == 1


def test_nothing_but_the_flags_of_tgi_is_idle_or_refused() -> None:
    known = {flag.replace("-", "_") for flag in OF_TGI}
    of_vllm = {"enable_ssl_refresh"}
    assert set(NOT_BUILT) | set(WITHOUT_MEANING) - of_vllm <= known


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(StartError, match=rf"^{flag_of(name)} asks for .* not built"):
        settings(flag_of(name), "7")
    with pytest.raises(StartError, match=rf"^{flag_of(name)} asks for"):
        settings(flag_of(name))
    with pytest.raises(StartError, match=rf"^the environment variable {name.upper()} asks for"):
        settings(**{name.upper(): "7"})
    assert settings(**{name.upper(): ""}) == Settings()
    assert lines(flag_of(name), "7") == []


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("watermark_gamma", "0.5"),
        ("watermark_delta", "2.0"),
    ],
)
def test_what_asks_for_nothing_of_that_is_fine(name: str, harmless: str) -> None:
    assert settings(flag_of(name), harmless) == Settings()
    assert settings(**{name.upper(): harmless}) == Settings()


@pytest.mark.parametrize("name", WITHOUT_MEANING)
def test_what_has_no_meaning_here_is_accepted_with_one_line(name: str) -> None:
    reported = f"{flag_of(name)} has no effect: {WITHOUT_MEANING[name]}"
    for value in ([], ["7"], ["true"]):
        assert settings(flag_of(name), *value) == Settings()
        assert lines(flag_of(name), *value, **{name.upper(): "7"}) == [reported]
    assert lines(**{name.upper(): "7"}) == [
        f"the environment variable {name.upper()} has no effect: {WITHOUT_MEANING[name]}"
    ]
    assert lines(flag_of(name), "false") == lines(**{name.upper(): ""}) == lines() == []


@pytest.mark.parametrize("name", OF_SEVERAL_NODES)
def test_what_several_nodes_need_has_no_effect_on_one(name: str) -> None:
    assert lines(flag_of(name), "7", **{name.upper(): "8"}) == [
        f"{flag_of(name)} has no effect: {ONE_NODE}"
    ]
    assert lines(**{name.upper(): "8"}) == [
        f"the environment variable {name.upper()} has no effect: {ONE_NODE}"
    ]
    assert without_effect(parsed(flag_of(name), "7"), {}, one_node=False) == []


@pytest.mark.parametrize("variable", VARIABLES_WITHOUT_MEANING)
def test_a_variable_of_tgi_without_a_flag_is_reported_too(variable: str) -> None:
    (line,) = lines(**{variable: "0"})
    assert line.startswith(f"the environment variable {variable} has no effect: ")


@pytest.mark.parametrize("value", ["flashinfer", "flashdecoding", "paged"])
def test_the_attention_of_tgi_is_ours_to_choose(value: str) -> None:
    assert settings(ATTENTION=value) == Settings()
    assert lines(ATTENTION=value) == [
        f"the environment variable ATTENTION has TGI's value {value}, which means auto here"
    ]
    assert settings("--attention", "flash", ATTENTION=value).attention == "flash"
    assert lines("--attention", "flash", ATTENTION=value) == []
    with pytest.raises(StartError, match="must be one of auto, triton, flash, varlen"):
        settings(ATTENTION="x")


def test_an_unknown_format_of_calls_is_refused_with_the_list_of_names() -> None:
    with pytest.raises(StartError, match=r"--tool-call-parser must be one of .*hermes.*Given: 'x'"):
        resolve({"tool_call_parser": "x"}, {})
    assert resolve({}, {"TOOL_CALL_PARSER": "hermes"}).tool_call_parser == "hermes"


def test_the_names_of_sagemaker_are_understood() -> None:
    found = settings(
        HF_MODEL_ID="a/b", HF_MODEL_REVISION="c", HF_MODEL_TRUST_REMOTE_CODE="true", SM_NUM_GPUS="1"
    )
    assert found == Settings(model_id="a/b", revision="c", trust_remote_code=True, num_shard=1)
    assert settings(HF_MODEL_ID="a/b", MODEL_ID="c/d").model_id == "c/d"
    assert settings(SM_NUM_GPUS="4").num_shard == 4
    assert settings(HF_MODEL_QUANTIZE="awq").quantize == "awq"


@pytest.mark.parametrize("route", ["AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"])
def test_vertex_ai_says_on_which_port_it_asks(route: str) -> None:
    assert settings(AIP_HTTP_PORT="8081", PORT="80", **{route: "/x"}).port == 8081
    assert settings("-p", "79", AIP_HTTP_PORT="8081", **{route: "/x"}).port == 79
    assert settings(PORT="80", **{route: "/x"}).port == 80
    assert settings(AIP_HTTP_PORT="8081", PORT="80").port == 80
    with pytest.raises(StartError, match="variable AIP_HTTP_PORT must be a whole number"):
        settings(AIP_HTTP_PORT="http", **{route: "/x"})


def test_the_help_has_groups_variables_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--help")
    text = capsys.readouterr().out
    shown = " ".join(text.split())
    assert "[env MAX_BEST_OF] [default 8, with strict-tgi 2]" in shown
    for group in (
        "model:",
        "HTTP:",
        "what clients see:",
        "of TGI and vLLM, accepted without effect:",
    ):
        assert f"\n{group}\n" in text
    refused = text[text.index("of TGI, not built yet: refused at start:") :]
    assert "--lora-adapters" in refused
    assert "--ngrok" not in refused


@pytest.mark.parametrize(
    ("given", "sizes"), [([], None), (["0"], []), (["8, 1,32"], [1, 8, 32]), (["65536"], [65536])]
)
def test_numbers_of_rows_that_are_recorded(given: list[str], sizes: list[int] | None) -> None:
    assert settings(*(["--cuda-graphs", *given] if given else [])).graph_sizes == sizes


def test_the_size_of_images_has_tgis_variable_and_flag() -> None:
    assert settings(MAX_IMAGE_FETCH_SIZE="7").max_image_fetch_size == 7
    assert settings("--max-image-fetch-size", "8").max_image_fetch_size == 8
    assert settings().max_image_fetch_size == 32 << 20
    assert settings("--strict-tgi").max_image_fetch_size == 1 << 30


def test_like_tgi_images_are_fetched_from_anywhere_public() -> None:
    assert settings().allow_image_domains == ()
    assert settings("--strict-tgi").allow_image_domains == ("*",)
    given = settings("--strict-tgi", "--allow-image-domains", "a.example")
    assert given.allow_image_domains == ("a.example",)
    given = settings("--allow-image-domains", "a.example,*.b.example:81", "c.example")
    assert given.image_domains.allowed == ("a.example", "*.b.example:81", "c.example")
    given = settings(ALLOW_IMAGE_DOMAINS="a.example, *.b.example:81")
    assert given.allow_image_domains == ("a.example", "*.b.example:81")
    assert not given.allow_private_image_addresses
