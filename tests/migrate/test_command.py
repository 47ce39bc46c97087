from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.migrate.found import FOUND
from tests.migrate.public import STARTS as WELL_KNOWN
from tests.migrate.public import Start
from tgi_async.migrate import words
from tgi_async.migrate.command import becomes, migrate
from tgi_async.migrate.judge import judge

STARTS = [*WELL_KNOWN, *FOUND]
PAGE = Path(__file__).parents[2] / "docs" / "migrate-from-tgi.md"


def given(start: Start, folder: Path) -> list[str]:
    if not start.name:
        return [start.text]
    file = folder / start.name
    file.write_text(start.text)
    return [str(file)]


def test_no_public_start_is_there_twice() -> None:
    assert len({start.source for start in STARTS}) == len(STARTS) >= 35


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.source)
def test_a_public_start(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = migrate(given(start, tmp_path))
    printed = capsys.readouterr().out
    told = [line.strip() for line in printed.splitlines()]
    assert status == (0 if start.starts else 1)
    assert f"would start: {'yes' if start.starts else 'no'}" in told
    for wanted in start.verdicts:
        assert any(line == wanted or line.startswith(f"{wanted}  ") for line in told), printed


@pytest.mark.parametrize(
    "start", [one for one in STARTS if not one.name], ids=lambda start: start.source
)
def test_what_a_command_becomes_is_read_again_and_loses_nothing_more(start: Start) -> None:
    launch = words.launch_of(words.split(start.text))
    first = becomes(launch, judge(launch))
    again = words.launch_of(words.split(first))
    assert becomes(again, judge(again)) == first
    assert all(
        one.verdict in ("same", "changed")
        for one in judge(again).lines
        if one.given.startswith("-")
    )


def test_what_has_no_effect_and_what_is_refused_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = (
        "docker run -p 80:81 -e PREFIX_CACHING=1 -e API_KEY=k tgi:1 --model-id a/b "
        "--lora-adapters c --ngrok"
    )
    assert migrate(command.split()) == 1
    assert (
        "becomes: docker run -e API_KEY=k tgi-async:cpu --model-id a/b\n" in capsys.readouterr().out
    )


def test_the_home_folder_is_left_to_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    migrate(["docker run -v ~/.cache/huggingface:/data tgi:1 --model-id '~/a b'"])
    printed = capsys.readouterr().out
    assert "run -v ~/.cache/huggingface:/data tgi-async:cpu --model-id '~/a b'\n" in printed


def test_a_variable_of_the_shell_is_left_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    migrate(["text-generation-launcher --model-id $model --api-key 'a b'"])
    assert "text-generation-launcher --model-id $model --api-key 'a b'" in capsys.readouterr().out


def test_one_start_of_several_that_fails_fails_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.sh"
    file.write_text(
        "#!/bin/sh\n# serves\ntext-generation-launcher --model-id a/b &\n"
        "text-generation-launcher --model-id c/d --port no\n"
    )
    assert migrate([str(file)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("would start: ") == 2
    assert "--port must be a whole number. Given: 'no'." in printed


def test_it_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("image: tgi:2\nargs: [--model-id, a/b]\n"))
    assert migrate([]) == 0
    assert "= --model-id a/b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["docker", "ps"], "`docker run` starts a server; given: docker ps."),
        (["vllm", "serve", "a/b"], "This starts no server of TGI's: give `docker run ... IMAGE"),
        (["docker run tgi 'x"], "The command cannot be read: No closing quotation."),
        (["docker", "run", "--gpus"], "--gpus has no value, and no image follows."),
        (["docker", "run", "-it"], "No image is named."),
    ],
)
def test_what_starts_no_tgi_is_an_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrate(words) == 2
    assert message in capsys.readouterr().err


def test_a_binary_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff\xfe\x00")
    assert migrate([str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _, command, _, printed, *_ = PAGE.read_text().split("```")
    assert migrate(words.split(command.removeprefix("sh\n"))[2:]) == 0
    assert capsys.readouterr().out.strip() == printed.strip()


def test_help_shows_what_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate(["--help"]) == 0
    assert "tgi-async migrate FILE" in capsys.readouterr().out
