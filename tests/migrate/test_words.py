from __future__ import annotations

import pytest

from tgi_async.errors import StartError
from tgi_async.migrate.words import commands, launch_of, split


def test_flags_of_docker_are_told_from_the_launchers() -> None:
    launch = launch_of(
        split(
            "sudo docker container run -d -it --rm --name tgi --gpus=all -e A=1 --env B "
            "-v x:/data tgi:3 --model-id a/b -p 81"
        )
    )
    assert launch.image == "tgi:3"
    assert launch.arguments == ["--model-id", "a/b", "-p", "81"]
    assert launch.variables == {"A": "1", "B": "$B"}
    given = [line.given for line in launch.around]
    assert given == ["-d", "-it", "--rm", "--name tgi", "--gpus all", "-v x:/data", "tgi:3"]


def test_values_may_follow_a_letter_at_once() -> None:
    launch = launch_of(split("docker run -eA=1 -p80:80 -vx:/data -it tgi"))
    assert launch.variables == {"A": "1"}
    assert [line.given for line in launch.around] == ["-p 80:80", "-v x:/data", "-it", "tgi"]


def test_an_entrypoint_is_the_program() -> None:
    launch = launch_of(split("podman run --entrypoint text-generation-launcher tgi --port 1"))
    assert (launch.place, launch.arguments) == ("podman run", ["--port", "1"])
    with pytest.raises(StartError, match="The container runs bash, not TGI's launcher"):
        launch_of(split("docker run --entrypoint bash tgi -c x"))


def test_variables_before_the_command_are_its() -> None:
    launch = launch_of(split("CUDA_VISIBLE_DEVICES=0,1 exec text-generation-launcher --port 1"))
    assert launch.variables == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert launch.arguments == ["--port", "1"]
    assert launch_of(["--model-id", "a/b"]).arguments == ["--model-id", "a/b"]


def test_other_hardware_is_named() -> None:
    launch = launch_of(split("docker run --runtime habana --device=/dev/kfd tgi"))
    assert [line.verdict for line in launch.around] == ["refused", "no effect", "changed"]


def test_a_file_of_variables_is_not_read() -> None:
    [line, _] = launch_of(split("docker run --env-file .env tgi")).around
    assert "were not looked at" in line.why


def test_commands_of_a_script_are_found() -> None:
    script = """
model=a/b  # text-generation-inference
docker pull ghcr.io/huggingface/text-generation-inference:3
docker run --gpus all \\
  ghcr.io/huggingface/text-generation-inference:3 --model-id $model
"""
    [found] = commands(script)
    assert found[-2:] == ["--model-id", "$model"]


def test_line_ends_and_comments_are_no_words() -> None:
    assert split("a \\\n  'b c' # d") == ["a", "b c"]
