from __future__ import annotations

import pytest

from tgi_async.migrate.launch import (
    Launch,
    about_image,
    about_port,
    filled,
    launcher_arguments,
)


@pytest.mark.parametrize(
    ("arguments", "variables", "image", "port"),
    [
        (["--port", "81"], {"PORT": "82"}, "tgi", "81"),
        (["--port=81"], {}, "tgi", "81"),
        (["-p", "81"], {}, None, "81"),
        ([], {"PORT": "82"}, "tgi", "82"),
        ([], {}, "tgi", "80"),
        ([], {}, None, "3000"),
    ],
)
def test_the_port_is_where_the_server_listens(
    arguments: list[str], variables: dict[str, str], image: str | None, port: str
) -> None:
    assert Launch("", arguments, variables, image).port == port


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (["--port", "1"], ["--port", "1"]),
        ([], []),
        (["/usr/local/bin/text-generation-launcher", "--port", "1"], ["--port", "1"]),
        (["serve"], []),
        (["tgi-async", "serve", "--port", "1"], ["--port", "1"]),
        (["tgi-async", "env"], None),
        (["python", "server.py"], None),
    ],
)
def test_a_command_is_the_launchers_or_another_ones(
    command: list[str], arguments: list[str] | None
) -> None:
    assert launcher_arguments(command) == arguments


@pytest.mark.parametrize(
    ("image", "verdict", "why"),
    [
        ("ghcr.io/huggingface/text-generation-inference:3.3.6", "changed", "for CUDA or for CPUs"),
        ("tgi:3-intel-cpu", "changed", "image for CPUs"),
        ("tgi:3-trtllm", "changed", "no engine is compiled"),
        ("tgi:3-llamacpp", "changed", "reads GGUF files"),
        ("tgi:3-rocm", "refused", "NVIDIA GPUs and on CPUs"),
        ("tgi:3-neuron", "refused", "NVIDIA GPUs and on CPUs"),
    ],
)
def test_an_image_is_replaced_unless_it_is_for_other_hardware(
    image: str, verdict: str, why: str
) -> None:
    line = about_image(image)
    assert line.verdict == verdict
    assert why in line.why


def test_a_port_on_which_nothing_listens_has_no_effect() -> None:
    assert about_port("-p 1:80", "80", "80").verdict == "same"
    assert about_port("-p 1:80", "$PORT", "80").verdict == "same"
    assert about_port("-p 1:81", "80", "81").why == "the server's port in the container is 80"


def test_defaults_of_compose_are_filled_in() -> None:
    assert filled("${A:-x} ${B-y} ${C} $D", {}) == "x y ${C} $D"
    assert filled("${A:-x}", {"A": "z"}) == "z"
