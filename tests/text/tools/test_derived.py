"""Formats and marks that are derived from what a chat template writes."""

# ruff: noqa: E501 (templates)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.text.test_chat_like_transformers import FILES
from tests.text.tools.test_constraint import Held
from tests.text.tools.test_parser import calls_of, read, text_of, ways_to_cut
from tgi_async.errors import TemplateError
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.chat_renderer import Renderer
from tgi_async.text.tools.constraint import arguments_schema, forced_calls
from tgi_async.text.tools.format import Format, Marks
from tgi_async.text.tools.parser import answer_parser
from tgi_async.text.tools.templates import Traits

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": "Säo Paulo, 서울", "days": 3, "exact": True, "units": ["C", "F"]}),
    ("get_time", {"zone": "UTC"}),
]
KINDS = {str: "string", int: "integer", bool: "boolean", list: "array"}
SCHEMAS: dict[str, Any] = {
    name: {
        "properties": {key: {"type": KINDS[type(value)]} for key, value in arguments.items()},
        "required": list(arguments),
    }
    for name, arguments in CALLS
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A function.",
            "parameters": {
                "type": "object",
                **schema,
                "properties": {
                    key: {**one, "description": "It."} for key, one in schema["properties"].items()
                },
            },
        },
    }
    for name, schema in SCHEMAS.items()
]


class Template(NamedTuple):
    """A chat template: how it writes each call, what is around them, and around thoughts."""

    call: str
    begin: str = ""
    between: str = ""
    end: str = ""
    answer: tuple[str, str] = ("", "")
    thoughts: tuple[str, str] = ("", "")
    opened: str = ""
    """What of a thought is in the prompt."""
    most: str = ""
    """Which calls are shown; all if empty."""

    @property
    def source(self) -> str:
        shown = f"m.tool_calls[{self.most}]" if self.most else "m.tool_calls"
        return (
            "{% for m in messages %}<|{{ m.role }}|>"
            f"{{% if m.reasoning_content %}}{self.thoughts[0]}{{{{ m.reasoning_content }}}}"
            f"{self.thoughts[1]}{{% endif %}}{{% if m.tool_calls %}}{self.begin}{{% for c in {shown} "
            f"%}}{{% if not loop.first %}}{self.between}{{% endif %}}{self.call}{{% endfor %}}"
            f"{self.end}{{% elif m.role == 'assistant' %}}{self.answer[0]}{{{{ m.content }}}}"
            f"{self.answer[1]}{{% else %}}{{{{ m.content }}}}{{% endif %}}<|end|>{{% endfor %}}"
            f"{{% if add_generation_prompt %}}<|assistant|>{self.opened}{{% endif %}}"
            "{% if tools %}{% endif %}"
        )


NAME, ARGUMENTS = "{{ c.function.name }}", "{{ c.function.arguments | tojson }}"
EACH = "{% for k, v in c.function.arguments.items() %}"
VALUE = "{{ v if v is string else v | tojson }}"
TEMPLATES = {
    "object in marks": Template(
        f'<call>{{"function": "{NAME}", "args": {ARGUMENTS}}}</call>', between="\n"
    ),
    "list of objects": Template(
        f'{{"id": "{{{{ loop.index }}}}", "name": "{NAME}", "parameters": {ARGUMENTS}}}',
        begin="[CALLS][",
        between=", ",
        end="]",
    ),
    "with an id behind": Template(
        f'{{"name": "{NAME}", "arguments": {ARGUMENTS}, "id": "{{{{ c.id }}}}"}}',
        begin="<calls>[",
        between=", ",
        end="]</calls>",
    ),
    "name as key": Template(
        f'{{"{NAME}": {ARGUMENTS}}}', begin="<|tools|>[", between=", ", end="]<|/tools|>"
    ),
    "header with an id": Template(
        f"<|call|>{{{{ c.id }}}}<|name|>{NAME}<|args|>{ARGUMENTS}<|/call|>",
        begin="<|calls|>",
        answer=("<|content|>", "<|/content|>"),
    ),
    "header with a counter": Template(
        f"<|call|>tools.{NAME}:{{{{ loop.index0 }}}}<|args|>{ARGUMENTS}<|/call|>",
        begin="<|calls|>",
        end="<|/calls|>",
    ),
    "tags": Template(
        f"<do:{NAME}>{EACH}<arg={{{{ k }}}}>{VALUE}</arg>{{% endfor %}}</do>", between="\n"
    ),
    "tags on lines": Template(
        f"<fn {NAME}>\n{EACH}<arg {{{{ k }}}}>\n{VALUE}\n</arg>\n{{% endfor %}}</fn>\n",
        begin="<fns>\n",
        end="</fns>",
        thoughts=("<reason>\n", "\n</reason>\n"),
        opened="<reason>\n",
    ),
    "tags that say what is a string": Template(
        f"<fn {NAME}>{EACH}<arg {{{{ k }}}}{{{{ ' text' if v is string else ' json' }}}}>{VALUE}</arg>"
        "{% endfor %}</fn>",
        thoughts=("<reason>", "</reason>"),
    ),
    "name twice": Template(
        f'<|to|>{NAME}<|is|><fn name="{NAME}">\n{EACH}<arg name="{{{{ k }}}}">{VALUE}</arg>\n'
        "{% endfor %}</fn>",
        between="<|next|>",
    ),
    "one call": Template(f"<|call|>{NAME} {ARGUMENTS}", most=":1"),
    "python": Template(
        f"{NAME}({EACH}{{{{ k }}}}={{% if v is string %}}'{{{{ v }}}}'{{% else %}}{{{{ v }}}}"
        "{% endif %}{% if not loop.last %}, {% endif %}{% endfor %})",
        begin="<|do|>[",
        between=", ",
        end="]<|/do|>",
    ),
    "words before thoughts": Template(
        f'<call>{{"name": "{NAME}", "arguments": {ARGUMENTS}}}</call>',
        thoughts=("", "\n[BEGIN ANSWER]\n"),
        opened="My steps:\n",
    ),
}
THOUGHTS = {
    "tags on lines": Marks("<reason>", "</reason>"),
    "tags that say what is a string": Marks("<reason>", "</reason>"),
    "words before thoughts": Marks("My steps:", "[BEGIN ANSWER]"),
}


def renderer(source: str) -> Callable[..., str | None]:
    made = Renderer({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})

    def render(messages: list[dict[str, Any]], **settings: Any) -> str | None:
        try:
            return made.render(messages, **settings)
        except TemplateError:
            return None

    return render


def transcript(source: str, n_calls: int) -> str | None:
    """What a model writes if it calls as the template shows calls, with the end of its turn."""
    render = renderer(source)
    calls = [
        {
            "id": f"call0000{place}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for place, (name, arguments) in enumerate(CALLS[:n_calls])
    ]
    user = {"role": "user", "content": "Which?"}
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    text = render([user, answer], tools=TOOLS, add_generation_prompt=False)
    return None if text is None else text[text.rindex("Which?") + len("Which?") :]


def read_back(format: Format, text: str, traits: Traits) -> list[tuple[str, Any]]:
    parser = answer_parser(format, SCHEMAS, turn=traits.turn)
    return [(name, json.loads(arguments)) for name, arguments in calls_of(read(parser, [text]))]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_of_no_known_family_is_understood(name: str, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    traits = Traits.of([template.source], renderer(template.source))
    format = traits.format
    assert format.name == "derived"
    calls = CALLS[: 1 if template.most else None]
    written = transcript(template.source, 2)
    assert written is not None
    text = written.removeprefix("<|end|><|assistant|>").removesuffix("<|end|>")
    for pieces in ways_to_cut(text):
        events = read(answer_parser(format, SCHEMAS, turn=traits.turn), pieces)
        assert [(one, json.loads(given)) for one, given in calls_of(events)] == calls
        assert text_of(events) == ""
    assert read_back(format, format.text(calls), traits) == calls
    held = Held(tmp_path)
    functions = [(one, arguments_schema(schema)) for one, schema in SCHEMAS.items()]
    grammar = forced_calls(format, functions, held.terms_of)
    assert held.accepts(grammar, format.text(calls))
    assert not held.accepts(grammar, format.text([("rm_rf", {})]))
    assert traits.turn.thoughts == THOUGHTS.get(name)
    assert traits.turn.answer == template.answer[0]


@pytest.mark.parametrize(
    "marks", [("<reason>", "</reason>"), ("<|go|>plan<|sep|>", "<|stop|>plan<|sep|>")]
)
@pytest.mark.parametrize("opened", [False, True])
def test_thoughts_are_in_whatever_marks_the_template_has(
    marks: tuple[str, str], opened: bool
) -> None:
    template = Template("", thoughts=marks, opened=marks[0] if opened else "")
    traits = Traits.of([template.source], renderer(template.source))
    if opened and marks[0] != "<reason>":
        return  # nothing parts the mark from what is before it
    assert traits.turn.thoughts == Marks(*marks)


@pytest.mark.parametrize(
    "call",
    [
        f"{NAME} {ARGUMENTS}",
        "{{ raise_exception('no calls') }}",
        "<call>{{ c.function.arguments | tojson }}</call>",
        f"<call>{NAME}{EACH}<{{{{ k }}}}>{VALUE}</{{{{ k }}}}>{{% endfor %}}</call>",
        "<call>",
    ],
)
def test_what_is_not_understood_is_json(call: str) -> None:
    source = Template(call).source
    assert Traits.of([source], renderer(source)).format.name == "json"


def test_the_server_looks_at_it_in_a_process_that_can_be_ended() -> None:
    template = ChatTemplate(TEMPLATES["tags"].source, {})
    assert template.traits.format.name == "derived"
    template.close()
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(f"{endless}{{{{ tool_calls }}}}", {}, seconds=0.1)
    assert template.traits.format.name == "json"
    template.close()


NOT_READ = {
    "MiniMax-M3": "values inside of each other",
    "Kimi-K2-Instruct": "its template appends to a list",
    "Kimi-K2-Thinking": "its template appends to a list",
    "meetkai-functionary-medium-v3.2": "the mark is in the prompt",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_calls_as_a_published_template_shows_them_are_read(file: Path) -> None:
    source = file.read_text("utf-8")
    render = renderer(source)
    traits = Traits.of([source], render)
    text = transcript(source, 2)
    n_calls = 2
    if text is None or CALLS[1][0] not in text:
        text, n_calls = transcript(source, 1), 1
    if text is None or CALLS[0][0] not in text:
        assert file.stem in NOT_READ or not traits.shows_calls or "tool_calls" not in source
        return
    assert (read_back(traits.format, text, traits) == CALLS[:n_calls]) == (
        file.stem not in NOT_READ
    )
