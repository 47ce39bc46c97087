from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.api.tiny_tokenizer import tiny_tokenizer
from tgi_async.errors import TemplateError, ValidationError
from tgi_async.subprocess_pool.pool import PIPE_BYTES
from tgi_async.text import chat_process
from tgi_async.text.chat import ChatTemplate

HI = [{"role": "user", "content": "Hi"}]
NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


Make = Callable[..., ChatTemplate]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes templates that are closed in the end."""
    made: list[ChatTemplate] = []

    def make(source: str, **options: Any) -> ChatTemplate:
        made.append(ChatTemplate(source, {"bos_token": "<s>"}, **options))
        return made[-1]

    yield make
    for template in made:
        template.close()


def running_of(template: ChatTemplate) -> subprocess.Popen[bytes]:
    """The first process of a template."""
    running = template._pool._processes[0]._running
    assert running is not None
    return running


def test_renders(make: Make) -> None:
    template = make("{{ bos_token }}{{ messages[0].content }}{{ tools }}{{ tone }}")
    said = [{"role": "user", "content": "\n\u2028“Hi”\0"}]
    assert template.render(said, tools=[{}], variables={"tone": 2}) == "<s>\n\u2028“Hi”\0[{}]2"


def test_a_chat_longer_than_a_pipe_holds_comes_whole(make: Make) -> None:
    said = "é" * (3 * PIPE_BYTES)
    assert make("{{ messages[0].content }}").render([{"role": "user", "content": said}]) == said


def test_errors_are_those_of_the_renderer(make: Make) -> None:
    template = make("{{ raise_exception('no') }}")
    with pytest.raises(TemplateError) as refused:
        template.render(HI)
    assert str(refused.value) == "Template error: syntax error: no (in <string>:1)"
    with pytest.raises(ValidationError, match=r"^Input validation error: `chat_template_kwargs.x`"):
        template.render(HI, variables={"x": 1})


def test_a_template_that_cannot_be_compiled_is_an_error_of_requests(make: Make) -> None:
    with pytest.raises(TemplateError, match="syntax error"):
        make("{% if %}").render(HI)


def test_the_end_of_an_answer_is_the_mark_behind_it(make: Make) -> None:
    template = make("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", n_processes=1)
    assert template.ends(tiny_tokenizer()) == [257]
    assert template.render(HI) == "Hi<|im_end|>"


@pytest.mark.parametrize("source", [NESTED, "{{ 9 ** (9 ** 9) }}", "{% if %}"])
def test_a_template_that_cannot_be_run_has_no_endings(make: Make, source: str) -> None:
    assert make(source, seconds=0.2).ends(tiny_tokenizer()) == []


@pytest.mark.parametrize(
    "source", ["'-' * 100000 + '<|im_end|>'", "'\\n'", "'\\ud800'", "' [/INST]'"]
)
def test_an_ending_without_a_mark_is_none(make: Make, source: str) -> None:
    template = make("{{ messages[-1].content }}{{ " + source + " }}")
    assert template.ends(tiny_tokenizer()) == []


@pytest.mark.parametrize("other", ["<|im_start|>", "<|im_end|>"])
def test_a_mark_that_is_also_written_within_a_turn_ends_nothing(make: Make, other: str) -> None:
    """As in templates that close thoughts and answers alike."""
    thoughts = "{% if m.reasoning %}{{ m.reasoning }}" + other + "{% endif %}"
    template = make("{% for m in messages %}" + thoughts + "{{ m.content }}<|im_end|>{% endfor %}")
    assert template.ends(tiny_tokenizer()) == ([257] if other == "<|im_start|>" else [])
    calls = "{% for c in m.tool_calls or () %}" + other + "{{ c.function.name }}{% endfor %}"
    template = make("{% for m in messages %}{{ m.content }}" + calls + "<|im_end|>{% endfor %}")
    assert template.ends(tiny_tokenizer()) == ([257] if other == "<|im_start|>" else [])


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(NESTED, id="loop"),
        pytest.param("{% set n = messages | length %}{{ (9 * n) ** (9 ** (9 * n)) }}", id="step"),
    ],
)
def test_what_takes_too_long_is_ended_and_the_next_is_served(make: Make, endless: str) -> None:
    source = "{% if messages | length > 9 %}" + endless + "{% endif %}ok"
    template = make(source, n_processes=1, seconds=0.2)
    with pytest.raises(TemplateError, match=r"more than 0\.2 seconds.*Send fewer or shorter"):
        template.render(HI * 10)
    assert template.render(HI) == "ok"


def test_compiling_is_bounded_too(make: Make) -> None:
    template = make("{{ 9 ** (9 ** 9) }}", seconds=0.2)
    for _ in range(2):
        with pytest.raises(TemplateError, match="seconds of processor time"):
            template.render(HI)


def test_memory_is_bounded(make: Make) -> None:
    template = make("{{ ('a' * (10 ** messages | length)) | length }}")
    with pytest.raises(TemplateError, match="MemoryError"):
        template.render(HI * 11)
    assert template.render(HI * 3) == "1000"


def test_the_prompt_is_bounded(make: Make) -> None:
    with pytest.raises(TemplateError, match="the prompt is longer than 33554432 characters"):
        make("{{ 'a' * 40000000 }}").render(HI)


def test_a_process_that_died_is_replaced(make: Make) -> None:
    template = make("ok", n_processes=1)
    template.render(HI)
    running = running_of(template)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert template.render(HI) == "ok"


def test_nested_too_deep_is_an_error_of_the_request(make: Make) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    template = make("ok")
    with pytest.raises(TemplateError, match="the messages cannot be shown"):
        template.render(HI, documents=nested)
    assert template.render(HI) == "ok"


def test_many_threads_share_few_processes(make: Make) -> None:
    template = make("{{ messages[0].content }}", n_processes=2)
    texts = [str(n) for n in range(50)]
    with ThreadPoolExecutor(8) as threads:
        rendered = threads.map(
            lambda text: template.render([{"role": "u", "content": text}]), texts
        )
        assert list(rendered) == texts


def test_one_process_is_enough_without_a_crowd(make: Make) -> None:
    template = make("ok", n_processes=3)
    for _ in range(3):
        template.render(HI)
    assert sum(process._running is not None for process in template._pool._processes) == 1


def test_secrets_of_the_environment_are_not_passed_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    template = make("ok", n_processes=1)
    template.render(HI)
    environment = Path(f"/proc/{running_of(template).pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc here")
    assert b"HF_TOKEN" not in environment.read_bytes()


@pytest.mark.parametrize("end", ["close", "forget"])
def test_the_process_ends_with_the_template(end: str) -> None:
    template = ChatTemplate("ok", {}, n_processes=1)
    template.render(HI)
    running = running_of(template)
    if end == "close":
        template.close()
    del template
    assert running.poll() is not None


def test_the_process_ends_when_its_input_does() -> None:
    """So that it never outlives the server, however that ends."""
    start = {"templates": {"default": "ok"}, "special_tokens": {}, "seconds": 1.0}
    job = {"messages": HI}
    requests = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in (start, job)))
    replies = io.BytesIO()
    chat_process.serve(requests, replies)
    assert json.loads(replies.getvalue()) == {"text": "ok"}
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_templates_of_a_folder(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path, {}) is None
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    template = ChatTemplate.from_folder(tmp_path, {"eos_token": "</s>"})
    assert template is not None
    assert template.render(HI) == "</s>"
    template.close()
