from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.tiny_processors import TEMPLATES
from tgi_async.errors import TemplateError
from tgi_async.text.chat_renderer import Renderer

PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
LISTS_ONLY = "{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}"
TEXTS_ONLY = "{{ messages[0].content }}"
EITHER = (
    "{% if messages[0].content is string %}[{{ messages[0].content }}]{% else %}"
    + LISTS_ONLY
    + "{% endif %}"
)


def render(source: str, **message: Any) -> str:
    return Renderer({"default": source}, {}).render([{"role": "user"} | message])


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        (TEXTS_ONLY, "Hello", "Hello"),
        (TEXTS_ONLY, PARTS, "Hello"),
        (EITHER, "Hello", "[Hello]"),
        (EITHER, PARTS, "[Hel][lo]"),
        (LISTS_ONLY, "Hello", "[Hello]"),
        (LISTS_ONLY, PARTS, "[Hel][lo]"),
        ("{{ messages | tojson }}", PARTS, '[{"role": "user", "content": "Hello"}]'),
    ],
)
def test_content_has_the_form_that_the_template_shows(
    source: str, content: list[dict[str, Any]] | str, text: str
) -> None:
    assert render(source, content=content) == text


IMAGE = {"type": "image", "text": "<i>"}
SHOWS = (
    "{% for p in messages[0].content %}"
    "{% if p.type == 'image' %}({{ p | length }}){% else %}[{{ p.text }}]{% endif %}{% endfor %}"
)
ASSERTS = SHOWS.replace("[{{", "{{ raise_exception('no') if p.type != 'text' }}[{{")


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        (SHOWS, [IMAGE, *PARTS, IMAGE], "(1)[Hel][lo](1)"),
        (EITHER.replace(LISTS_ONLY, SHOWS), [IMAGE, *PARTS], "(1)[Hel][lo]"),
        (EITHER.replace(LISTS_ONLY, SHOWS), "Hello", "[Hello]"),
        ("{% if messages[0].content is string %}-{% endif %}" + SHOWS, [IMAGE], "(1)"),
        (TEXTS_ONLY, [IMAGE, *PARTS, IMAGE], "<i>Hello<i>"),
        (LISTS_ONLY, [IMAGE, *PARTS], "[<i>][Hel][lo]"),
        (ASSERTS.replace("(1)", ""), [IMAGE, *PARTS], "(1)[Hel][lo]"),
        ("{{ messages[0].content | tojson }}", [IMAGE, *PARTS], '"<i>Hello"'),
    ],
)
def test_an_image_is_a_part_or_a_text_as_the_template_shows_it(
    source: str, content: list[dict[str, Any]] | str, text: str
) -> None:
    assert render(source, content=content) == text


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_of_models_that_see_show_images_as_parts(kind: str) -> None:
    renderer = Renderer({"default": TEMPLATES[kind]}, {"bos_token": "<s>"})
    parts = [IMAGE, {"type": "text", "text": "What?"}, IMAGE]
    user: dict[str, Any] = {"role": "user", "content": parts}
    said: dict[str, Any] = {"role": "assistant", "content": "A cat"}
    asked: dict[str, Any] = {"role": "user", "content": "Sure?"}
    text = renderer.render([user, said, asked])
    shown = max(text.count(one) for one in ("<image>", "<|image|>", "<|image_pad|>"))
    assert shown + text.count("<start_of_image>") == 2
    assert "<i>" not in text
    assert text.index("What?") < text.index("A cat") < text.index("Sure?")


def test_messages_with_images_are_merged_where_a_template_wants_turns() -> None:
    turns = (
        "{% for m in messages %}"
        "{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}"
        + SHOWS.replace("messages[0]", "m")
        + "|{% endfor %}"
    )
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be"},
        {"role": "user", "content": [IMAGE]},
        {"role": "user", "content": [*PARTS, IMAGE]},
    ]
    assert Renderer({"default": turns}, {}).render(chat) == "[Be\n\n](1)[\n\n][Hel][lo](1)|"


@pytest.mark.parametrize("given", ['{"a": "ü"}', {"a": "ü"}])
@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("{{ arguments | tojson }}", '{"a": "ü"}'),
        ("{% for k, v in arguments.items() %}{{ k }}={{ v }}{% endfor %}", "a=ü"),
        ("{{ arguments }}", '{"a": "ü"}'),
        ("{{ 'f' + arguments }}", 'f{"a": "ü"}'),
    ],
)
def test_arguments_of_calls_have_the_form_that_the_template_shows(
    shown: str, text: str, given: dict[str, Any] | str
) -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{% set arguments = c.function.arguments %}" + shown + "{% endfor %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": given}}
    assert render(source, tool_calls=[call]) == text


@pytest.mark.parametrize("arguments", ["{broken", "[1]", "[" * 100_000])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments }}"
    call = {"function": {"arguments": arguments}}
    assert render(source, tool_calls=[call]) == arguments


# As GLM's and Qwen3-Coder's templates: each argument by its name.
BY_NAME = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}>"
    "{% endfor %}{% endfor %}"
)
# As DeepSeek-R1's: calls are shown where the content is null.
BESIDE_NULL = (
    "{% for m in messages %}{% if m['content'] is none %}{% for c in m['tool_calls'] %}"
    "{{ '<' + c['function']['name'] + ' ' + c['function']['arguments'] + '>' }}{% endfor %}"
    "{% else %}{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"a": 1}', "<f a=1>"),
        ("null", "<f>"),
        ("", "<f>"),
        (None, "<f>"),
        ('{"a": "cut of', '<f arguments={"a": "cut of>'),
        ('"a"', '<f arguments="a">'),
        ('["a"]', '<f arguments=["a"]>'),
    ],
)
def test_every_call_is_shown_where_arguments_are_shown_by_name(
    arguments: str | None, text: str
) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    assert render(BY_NAME, tool_calls=[call]) == text


def test_a_call_may_lack_its_arguments() -> None:
    assert render(BY_NAME, tool_calls=[{"function": {"name": "f"}}]) == "<f>"
    assert render(BESIDE_NULL, tool_calls=[{"function": {"name": "f"}}]) == "<f {}>"


@pytest.mark.parametrize("content", [None, "", []])
def test_a_call_without_words_is_shown_where_only_null_lets_it(
    content: list[Any] | str | None,
) -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    assert render(BESIDE_NULL, content=content, tool_calls=[call]) == '<f {"a": 1}>'


@pytest.mark.parametrize("content", [None, "", []])
def test_the_missing_words_of_a_call_are_not_shown(content: list[Any] | str | None) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    assert render(BY_NAME, content=content, tool_calls=[call]) == "<f>"


# As Llama 3's.
ONE_AT_A_TIME = (
    "{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.tool_calls|length != 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}<{{ m.content }}|{{ f.name }} {{ f.arguments|tojson }}>"
    "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["1", "2"], "<Well|f {}>[one]<|g {}>[two][?]"),
        (["2", "1"], "<Well|f {}>[two]<|g {}>[one][?]"),
        ([None, None], "<Well|f {}>[one]<|g {}>[two][?]"),
        (["2", "9"], "<Well|f {}><|g {}>[one][two][?]"),
    ],
)
def test_several_calls_are_shown_where_a_message_has_one(ids: list[Any], text: str) -> None:
    calls = [{"id": id, "function": {"name": name}} for id, name in (("1", "f"), ("2", "g"))]
    results = [
        {"role": "tool", "content": content, "tool_call_id": id}
        for content, id in zip(("one", "two"), ids, strict=True)
    ]
    messages = [
        {"role": "assistant", "content": "Well", "tool_calls": calls},
        *results,
        {"role": "user", "content": "?"},
    ]
    assert Renderer({"default": ONE_AT_A_TIME}, {}).render(messages) == text


def test_several_calls_stay_together_where_they_may() -> None:
    calls = [{"function": {"name": name}} for name in "fg"]
    assert render(BY_NAME, content="Well", tool_calls=calls) == "Well<f><g>"


@pytest.mark.parametrize("call", [{}, {"function": None}])
def test_a_call_of_another_shape_is_left_to_the_template(call: dict[str, Any]) -> None:
    assert render("{{ messages[0].tool_calls[0] | tojson }}", tool_calls=[call]) == json.dumps(call)


def test_a_field_that_is_null_is_not_there() -> None:
    assert render("{{ messages[0].keys() | list }}", content=None, name=None) == "['role']"


@pytest.mark.parametrize("given", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_thoughts_are_found_under_every_name(given: str, read: str) -> None:
    assert render("{{ messages[0]." + read + " }}", **{given: "hm"}) == "hm"


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    assert render("{{ messages[0].role }}", role="developer") == "system"
    assert render("{# developer #}{{ messages[0].role }}", role="developer") == "developer"


# As the templates of Gemma 2 and Mistral 7B refuse what they do not know.
ALTERNATING = """
{%- for m in messages -%}
{%- if m.role not in ('user', 'assistant') -%}{{ raise_exception('no such role') }}{%- endif -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('no turn') }}{%- endif -%}
<{{ m.role }}>{{ m.content }}
{%- endfor -%}
"""
HELLO = {"role": "user", "content": "Hello"}
AGAIN = {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}
ANSWER = {"role": "assistant", "content": "Hi"}
BRIEF = {"role": "system", "content": "Be brief."}
DEVELOPER = {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([BRIEF, HELLO], "<user>Be brief.\n\nHello"),
        ([BRIEF, DEVELOPER, AGAIN], "<user>Be brief.\n\nBe kind.\n\nAB"),
        ([{"role": "system", "content": ""}, HELLO], "<user>Hello"),
        ([HELLO, AGAIN, ANSWER, AGAIN, HELLO], "<user>Hello\n\nAB<assistant>Hi<user>AB\n\nHello"),
        ([BRIEF, HELLO, HELLO], "<user>Be brief.\n\nHello\n\nHello"),
    ],
)
def test_what_a_template_refuses_is_put_into_the_users_message(
    messages: list[dict[str, Any]], text: str
) -> None:
    assert (
        Renderer({"default": ALTERNATING}, {}).render(messages, add_generation_prompt=True) == text
    )


@pytest.mark.parametrize(
    "messages", [[BRIEF], [BRIEF, ANSWER], [HELLO, BRIEF], [HELLO, ANSWER, ANSWER]]
)
def test_what_has_no_place_in_a_users_message_stays_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(TemplateError, match=r"no such role|no turn"):
        Renderer({"default": ALTERNATING}, {}).render(messages, add_generation_prompt=True)


def test_a_template_that_takes_system_messages_and_turns_gets_them() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    made = Renderer({"default": source}, {}).render([BRIEF, HELLO, HELLO])
    assert made == "<system>Be brief.<user>Hello<user>Hello"
