from __future__ import annotations

import pytest

from tgi_async.errors import StartError
from tgi_async.migrate.documents import launches
from tgi_async.migrate.launch import Launch


def only(text: str, name: str = "file.yaml") -> Launch:
    [launch] = launches(text, name)
    return launch


@pytest.mark.parametrize(
    "environment",
    ["{A: 1, B: true, C: null}", "['A=1', 'B=true', 'C']"],
    ids=["mapping", "list"],
)
def test_a_service_of_compose(environment: str) -> None:
    launch = only(
        "services:\n  web: {image: nginx}\n  llm:\n    image: registry/tgi:3\n"
        f"    environment: {environment}\n    command: --model-id 'a b' --port ${{P:-81}}\n"
        "    ports: ['8080:81/tcp', 82]\n"
    )
    assert launch.place == "service llm"
    assert launch.arguments == ["--model-id", "a b", "--port", "81"]
    assert launch.variables == {"A": "1", "B": "true", "C": "$C"}
    assert [(line.given, line.verdict) for line in launch.around[1:]] == [
        ("port 8080:81/tcp", "same"),
        ("port 82", "no effect"),
    ]


def test_containers_of_kubernetes_are_found_wherever_they_are() -> None:
    text = """
kind: Service
---
kind: Deployment
spec: {template: {spec: {
  initContainers: [{name: fetch, image: busybox}],
  containers: [
    {name: proxy, image: envoy, args: [--port, '1']},
    {name: server, image: mirror/llm:1, command: [sh, -c, 'exec text-generation-launcher --port 1'],
     env: [{name: MODEL_ID, value: a/b}, {name: HF_TOKEN, valueFrom: {secretKeyRef: {}}}],
     ports: [{containerPort: 1}],
     readinessProbe: {httpGet: {path: /health}}, livenessProbe: {httpGet: {path: /health}}}]}}}
"""
    launch = only(text)
    assert launch.place == "container server"
    assert launch.arguments == ["--port", "1"]
    assert launch.variables == {"MODEL_ID": "a/b", "HF_TOKEN": "$HF_TOKEN"}
    assert [(line.given, line.verdict) for line in launch.around[1:]] == [
        ("port 1", "same"),
        ("readinessProbe /health", "same"),
        ("livenessProbe /health", "changed"),
    ]


def test_variables_of_a_container_are_filled_into_its_arguments() -> None:
    launch = only(
        "image: tgi\nargs: ['--model-id=$(MODEL)', '--revision=$(OTHER)']\n"
        "env: [{name: MODEL, value: a/b}]\n"
    )
    assert launch.arguments == ["--model-id=a/b", "--revision=$(OTHER)"]


def test_a_command_in_a_block_of_yaml_keeps_its_containers_variables() -> None:
    launch = only(
        "image: mirror/llm\nenv: [{name: PORT, value: '81'}]\ncommand: [sh, -c]\n"
        "args:\n- |\n  text-generation-launcher --model-id a/b\n"
    )
    assert (launch.arguments, launch.port) == (["--model-id", "a/b"], "81")


def test_other_images_with_these_letters_are_no_tgi() -> None:
    for image in ("fastcgi-tgis:1", "nextgi:2"):
        with pytest.raises(StartError, match="has no start of TGI"):
            only(f"image: {image}\n")


def test_a_container_that_is_alive_by_our_route_stays() -> None:
    launch = only("image: tgi\nlivenessProbe: {httpGet: {path: /health/live}}\n")
    assert launch.around[1].verdict == "same"


def test_an_endpoint_of_hugging_faces() -> None:
    launch = only(
        '{"model": {"image": {"custom": {"url": "tgi:2", "healthRoute": "/health", '
        '"env": {"MODEL_ID": "/repository"}}}}}',
        "endpoint.json",
    )
    assert launch.variables == {"MODEL_ID": "/repository"}
    assert launch.around[1].given == "health route /health"


def test_a_dockerfile_runs_what_its_last_stage_says() -> None:
    launch = only(
        'FROM python AS tools\nENV X=1\nCMD ["python"]\n'
        "FROM --platform=linux/amd64 tgi:3\nENV A=1 \\\n  B='x y'\nENV C d\nCOPY a /a\n"
        'ENTRYPOINT ["text-generation-launcher"]\nCMD ["--port", "81"]\n',
        "Dockerfile",
    )
    assert launch.image == "tgi:3"
    assert launch.variables == {"A": "1", "B": "x y", "C": "d"}
    assert launch.arguments == ["--port", "81"]
    assert [line.given for line in launch.around] == ["tgi:3", "COPY a /a"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("services: {web: {image: nginx}}", "a.yaml", "a.yaml has no start of TGI: a container"),
        ("a: [", "a.yaml", "a.yaml has no start .* read as YAML, a Docker.* or a shell script."),
        ("FROM nginx\n", "Dockerfile", "does not run TGI: it is built from nginx."),
        ('FROM tgi\nCMD ["bash"]\n', "Dockerfile", "does not run TGI"),
        ("image: tgi\ncommand: [python, a.py]\n", "a.yaml", "a.yaml runs python, not TGI's"),
        ("", "empty", "empty has no start of TGI"),
    ],
)
def test_what_starts_no_tgi_is_said(text: str, name: str, message: str) -> None:
    with pytest.raises(StartError, match=f"(?s){message}"):
        launches(text, name)
