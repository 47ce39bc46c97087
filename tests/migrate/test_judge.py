from __future__ import annotations

import shlex
from dataclasses import fields

import pytest

from tgi_async.arguments import flag_of
from tgi_async.migrate.judge import Judgement, judge
from tgi_async.migrate.launch import Launch
from tgi_async.settings import Settings
from tgi_async.settings_tgi import NOT_BUILT, ONE_NODE, VARIABLES_WITHOUT_MEANING, WITHOUT_MEANING


def judged(arguments: str = "", **variables: str) -> Judgement:
    return judge(Launch("", shlex.split(arguments), variables))


def verdicts(arguments: str = "", **variables: str) -> list[tuple[str, str]]:
    return [(line.verdict, line.given) for line in judged(arguments, **variables).lines]


@pytest.mark.parametrize("name", [one.name for one in fields(Settings)])
def test_every_setting_is_known_as_flag_and_as_variable(name: str) -> None:
    for line in (*judged(f"{flag_of(name)} $x").lines, *judged(**{name.upper(): "$x"}).lines):
        assert line.verdict in ("same", "changed")
        assert line.why != "not read by this server"


@pytest.mark.parametrize("name", WITHOUT_MEANING)
def test_what_has_no_effect_has_the_servers_reason(name: str) -> None:
    for line in (*judged(f"{flag_of(name)} 9").lines, *judged(**{name.upper(): "9"}).lines):
        assert (line.verdict, line.why) == ("no effect", WITHOUT_MEANING[name])


@pytest.mark.parametrize("name", ["master_addr", "master_port"])
def test_where_nodes_meet_has_no_effect_as_tgi_has_one(name: str) -> None:
    for line in (*judged(f"{flag_of(name)} 9").lines, *judged(**{name.upper(): "9"}).lines):
        assert (line.verdict, line.why) == ("no effect", ONE_NODE)
    assert verdicts("--master-port many") == [("refused", "--master-port many")]


@pytest.mark.parametrize("name", VARIABLES_WITHOUT_MEANING)
def test_a_variable_without_effect_has_the_servers_reason(name: str) -> None:
    [line] = judged(**{name: "1"}).lines
    assert (line.verdict, line.why) == ("no effect", VARIABLES_WITHOUT_MEANING[name])


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_is_refused(name: str) -> None:
    judgement = judged(f"{flag_of(name)} 9")
    assert not judgement.starts
    [line] = judgement.lines
    assert NOT_BUILT[name] in line.why


def test_values_that_ask_for_nothing_are_as_in_tgi() -> None:
    assert verdicts("--watermark-gamma 0.5 --ngrok false") == [
        ("same", "--watermark-gamma 0.5"),
        ("same", "--ngrok false"),
    ]


def test_a_value_is_checked_as_the_server_does() -> None:
    judgement = judged("--max-best-of 0", DTYPE="float8")
    assert [line.verdict for line in judgement.lines] == ["refused", "refused"]
    assert judgement.lines[0].why == "--max-best-of must be from 1 to 2147483647. Given: 0."
    assert not judgement.starts


def test_settings_are_checked_together() -> None:
    judgement = judged("--max-input-tokens 9 --max-total-tokens 9")
    assert judgement.problem is not None
    assert "must be less than --max-total-tokens" in judgement.problem
    assert not judgement.starts
    # A value that nobody knows yet is no reason.
    assert judged("--max-input-tokens 9 --max-total-tokens $n").starts


def test_flags_are_read_as_the_server_reads_them() -> None:
    assert verdicts("--json-output --trust-remote-code true -p 81 --port=82") == [
        ("same", "--json-output"),
        ("same", "--trust-remote-code true"),
        ("same", "-p 81"),
        ("same", "--port 82"),
    ]
    assert verdicts("--served-model-name a b --cors-allow-origin c") == [
        ("same", "--served-model-name a b"),
        ("same", "--cors-allow-origin c"),
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--max_total_tokens 9", "no flag of TGI's or of this server's"),
        ("--tensor-parallel-size 2", "no flag of TGI's or of this server's"),
        ("-x", "no flag of TGI's or of this server's"),
        ("a/b", "neither a flag nor the value of one"),
        ("--model-id", "--model-id needs a value"),
    ],
)
def test_what_is_no_flag_is_refused(arguments: str, why: str) -> None:
    judgement = judged(arguments)
    assert (judgement.lines[0].verdict, judgement.lines[0].why) == ("refused", why)


def test_flags_that_print_are_no_start_that_fails() -> None:
    assert judged("--help").starts
    assert verdicts("--env --port 81") == [("same", "--env"), ("same", "--port 81")]


def test_a_difference_is_told_by_the_page() -> None:
    [line] = judged("--max-batch-prefill-tokens 4096").lines
    assert line.verdict == "changed"
    assert line.why.startswith("in TGI must hold the longest prompt")
    [line] = judged("--attention flashinfer").lines
    assert line.why == "TGI's value flashinfer means auto here"


def test_a_flag_counts_before_its_variable() -> None:
    judgement = judged("--port 81", PORT="82", HF_MODEL_ID="a/b", MODEL_ID="c/d")
    assert [(line.verdict, line.why) for line in judgement.lines] == [
        ("same", ""),
        ("no effect", "--port is given too, and counts"),
        ("no effect", "MODEL_ID is given too, and counts"),
        ("same", ""),
    ]


def test_names_of_the_clouds_are_settings() -> None:
    [line] = judged(SM_NUM_GPUS="4").lines
    assert line.verdict == "changed"
    assert "in TGI in the SageMaker image; here always" in line.why
    [port, route] = judged(AIP_HTTP_PORT="no", AIP_HEALTH_ROUTE="/health").lines
    assert (port.verdict, route.verdict) == ("refused", "same")


@pytest.mark.parametrize("name", ["AZUREML_MODEL_DIR", "SM_TGI_PORT"])
def test_what_the_image_reads_is_not_unknown(name: str) -> None:
    [line] = judge(Launch("", [], {name: "/m"}, "tgi")).lines
    assert line.why == "read in this server's image: docs/deploy/docker.md"
    [line] = judged(**{name: "/m"}).lines
    assert line.why == "not read by this server"


@pytest.mark.parametrize("name", ["HF_API_TOKEN", "TGI_ASYNC_CACHE", "CLUSTER_SECRET"])
def test_what_is_read_without_being_a_setting_is_known(name: str) -> None:
    [line] = judged(**{name: "x"}).lines
    assert (line.verdict, line.why) == ("same", "")


def test_variables_of_others_are_left_to_them() -> None:
    lines = judged(HF_TOKEN="x", CUDA_VISIBLE_DEVICES="0", SOMETHING="1", port="2", PORT="").lines
    assert {line.verdict for line in lines} == {"same"}
    assert [line.why for line in lines[:4]] == [
        "read by huggingface_hub",
        "read by CUDA",
        "not read by this server",
        "not read by this server",
    ]


def test_defaults_that_differ_are_told_where_they_hold() -> None:
    def told(arguments: str, **variables: str) -> str:
        return " ".join(line.given for line in judged(arguments, **variables).defaults)

    assert "without --model-id" in told("")
    assert "without --model-id" not in told("--model-id a/b")
    assert "without --model-id" not in told("", HF_MODEL_ID="a/b")
    assert "defaults of --max-best-of" in told("--max-best-of 3")
