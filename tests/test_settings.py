from __future__ import annotations

import argparse
from dataclasses import MISSING, fields

import pytest

from tgi_async.errors import StartError
from tgi_async.settings import COUNT, NOT_BUILT, Settings, add_arguments, resolve

NUMBERS = [one for one in fields(Settings) if one.metadata["kind"] is int]


def settings(*flags: str, **environment: str) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return resolve(vars(parser.parse_args(flags)), environment)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_nothing_given_gives_the_defaults_of_tgi() -> None:
    found = settings()
    assert found == Settings()
    assert (found.hostname, found.port) == ("0.0.0.0", 3000)
    assert found.max_concurrent_requests == 128
    assert (found.max_best_of, found.max_stop_sequences, found.max_top_n_tokens) == (2, 4, 5)
    assert (found.max_client_batch_size, found.payload_limit) == (4, 2_000_000)
    assert (found.validation_workers, found.graceful_termination_timeout) == (2, 90)
    assert all(one.default is not MISSING for one in fields(Settings))


def test_a_flag_comes_before_a_variable_and_that_before_the_default() -> None:
    assert settings(PORT="81").port == 81
    assert settings("--port", "80", PORT="81").port == 80
    assert settings(PORT="").port == 3000
    assert settings("--port", "80", PORT="nonsense").port == 80


def test_short_flags_are_those_of_tgi() -> None:
    found = settings("-p", "99", "-g", "7")
    assert (found.port, found.graceful_termination_timeout) == (99, 7)


@pytest.mark.parametrize("one", fields(Settings), ids=lambda one: one.name)
def test_every_setting_has_a_flag_and_a_variable(one: object) -> None:
    name, meta = one.name, one.metadata  # type: ignore[attr-defined]
    text = {bool: "true", int: "2", tuple: "x", str: "x"}[meta["kind"]]
    if meta["choices"]:
        text = meta["choices"][-1]
    wanted = {bool: True, int: 2, tuple: ("x",), str: text}[meta["kind"]]
    assert getattr(settings(flag(name), text), name) == wanted
    if name != "hostname":
        assert getattr(settings(**{name.upper(): text}), name) == wanted


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.name)
def test_every_number_is_bounded(one: object) -> None:
    name, meta = one.name, one.metadata  # type: ignore[attr-defined]
    least, most = meta["least"], meta["most"] or COUNT
    for number in (least, most):
        if (name, number) != ("max_total_tokens", COUNT):
            assert getattr(settings(f"{flag(name)}={number}"), name) == number
    for number in (least - 1, most + 1):
        with pytest.raises(StartError, match=f"{flag(name)} must be from {least} to {most}"):
            settings(f"{flag(name)}={number}")
    for text in ("many", "1.5", "1e3", "nan", "inf", "", "9" * 5000):
        with pytest.raises(StartError, match=f"{flag(name)} must be a whole number"):
            settings(f"{flag(name)}={text}")
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
    with pytest.raises(StartError, match=f"{flag(name)} must not be empty"):
        settings(flag(name), "")
    assert settings(**{name.upper(): ""}) == Settings()


def test_dtype_is_one_of_three() -> None:
    assert settings(DTYPE="float32").dtype == "float32"
    with pytest.raises(StartError, match=r"bfloat16, float16, float32\. Given: 'int8'"):
        settings("--dtype", "int8")


def test_max_input_length_is_the_old_name_of_max_input_tokens() -> None:
    assert settings("--max-input-length", "77").input_limit == 77
    assert settings(MAX_INPUT_TOKENS="78").input_limit == 78
    assert settings().input_limit is None
    with pytest.raises(StartError, match="give only --max-input-tokens"):
        settings("--max-input-length", "77", MAX_INPUT_TOKENS="77")


@pytest.mark.parametrize("name", ["max_input_tokens", "max_input_length"])
def test_a_prompt_must_leave_room_for_an_answer(name: str) -> None:
    with pytest.raises(StartError, match=r"less than --max-total-tokens\. Given: 100 and 100"):
        settings(flag(name), "100", "--max-total-tokens", "100")
    assert settings(flag(name), "99", "--max-total-tokens", "100").input_limit == 99


def test_a_request_must_fit_in_the_pool() -> None:
    with pytest.raises(StartError, match=r"--max-batch-total-tokens\. Given: 101 and 100"):
        settings("--max-total-tokens", "101", "--max-batch-total-tokens", "100")


def test_origins_are_repeated_flags_or_a_list_in_a_variable() -> None:
    flags = ("--cors-allow-origin", "http://a", "--cors-allow-origin", "http://b")
    assert settings(*flags).cors_allow_origin == ("http://a", "http://b")
    assert settings(CORS_ALLOW_ORIGIN="http://a, http://b").cors_allow_origin == (
        "http://a",
        "http://b",
    )


@pytest.mark.parametrize("host", ["3f1c0de5ab12", "my-pod-7", "localhost"])
def test_the_name_that_a_container_gives_itself_is_no_address_to_listen_on(host: str) -> None:
    assert settings(HOSTNAME=host).hostname == "0.0.0.0"
    assert settings("--hostname", host).hostname == host
    assert settings("--hostname", "127.0.0.1", HOSTNAME=host).hostname == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1", "10.0.0.7"])
def test_an_address_in_hostname_is_used(host: str) -> None:
    assert settings(HOSTNAME=host).hostname == host


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(StartError, match=rf"^{flag(name)} asks for .* not built"):
        settings(flag(name), "7")
    with pytest.raises(StartError, match=rf"^{flag(name)} asks for"):
        settings(flag(name))
    with pytest.raises(StartError, match=rf"^the environment variable {name.upper()} asks for"):
        settings(**{name.upper(): "7"})
    assert settings(**{name.upper(): ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "harmless"),
    [("num_shard", "1"), ("sharded", "false"), ("cuda_memory_fraction", "1.0")],
)
def test_what_asks_for_nothing_of_that_is_fine(name: str, harmless: str) -> None:
    assert settings(flag(name), harmless) == Settings()
    assert settings(**{name.upper(): harmless}) == Settings()


def test_the_help_tells_the_variable_and_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "[env MAX_BEST_OF] [default 2]" in shown
    assert "--quantize" not in shown
