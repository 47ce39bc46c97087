from __future__ import annotations

from typing import Any

import pytest

from tgi_async.errors import TemplateError, ValidationError
from tgi_async.text.chat_renderer import Renderer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNTRIMMED = CHATML.replace(" | trim", "")
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
    renderer = Renderer({"default": source}, SPECIAL_TOKENS)
    return renderer.render(messages or [user("Hi")], **options)


def test_ends_where_the_assistant_begins() -> None:
    assert render(CHATML) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_assistants_beginning_can_be_left_out() -> None:
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize("source", [CHATML, UNTRIMMED])
@pytest.mark.parametrize("said", ["Well", "assistant", "user", "Hi", "Well  \n"])
def test_an_assistants_message_at_the_end_is_continued_and_trimmed(source: str, said: str) -> None:
    prompt = render(source, user("Hi"), assistant(said))
    assert prompt.endswith(f"<|im_start|>assistant\n{said.rstrip()}")
    assert prompt.count("<|im_end|>") == 1


@pytest.mark.parametrize("choice", ["continue_final_message", "add_generation_prompt"])
def test_nothing_is_continued_where_the_client_decides_otherwise(choice: str) -> None:
    options = {choice: choice == "add_generation_prompt"}
    prompt = render(CHATML, user("Hi"), assistant("Well"), **options)
    assert prompt.endswith("Well<|im_end|>\n<|im_start|>assistant\n")


def test_continuing_where_asked_keeps_the_white_space_that_the_template_keeps() -> None:
    said = [user("Hi"), assistant("Well  \n")]
    assert render(UNTRIMMED, *said, continue_final_message=True).endswith("assistant\nWell  \n")
    assert render(CHATML, *said, continue_final_message=True).endswith("assistant\nWell")


def test_any_message_can_be_continued_where_asked() -> None:
    assert render(CHATML, user("Hi"), continue_final_message=True) == "<|im_start|>user\nHi"


def test_the_last_text_of_parts_is_continued() -> None:
    shown = "{{ '<i>' if p.type == 'image' else p.text }}"
    source = "{% for p in messages[0].content %}" + shown + "{% endfor %}!"
    image = {"type": "image", "text": "<i>"}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, image]
    message = {"role": "assistant", "content": parts}
    assert render(source, message, continue_final_message=True) == "ab"


def test_an_empty_assistants_message_at_the_end_is_an_ordinary_one() -> None:
    prompt = render(CHATML, user("Hi"), assistant(""))
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{{ messages[-1].content | upper }}"]
)
def test_a_template_that_hides_the_last_message_cannot_continue_it(source: str) -> None:
    with pytest.raises(TemplateError, match="End with a user message"):
        render(source, user("Hi"), assistant("Well"))


def test_a_message_without_text_cannot_be_continued() -> None:
    call = {"role": "assistant", "tool_calls": []}
    with pytest.raises(TemplateError, match="no text that could be continued"):
        render("{{ messages }}", call, continue_final_message=True)


def test_special_tokens_are_variables() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>Hi</s>"


def test_tools_and_documents_are_none() -> None:
    assert render("{% if tools is none and documents is none %}none{% endif %}") == "none"


def test_a_text_in_a_message_is_not_a_template() -> None:
    assert render("{{ messages[0].content }}", user("{{ 1 + 1 }}")) == "{{ 1 + 1 }}"


def test_variables_that_the_template_reads_arrive() -> None:
    assert render("{{ my_tone }}", variables={"my_tone": "kind"}) == "kind"


def test_variables_that_many_models_know_are_accepted_by_all() -> None:
    assert render("x", variables={"enable_thinking": False}) == "x"


@pytest.mark.parametrize("name", ["tone", "range", "x" * 999])
def test_a_variable_that_nothing_reads_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="is not read by this model's template") as refused:
        render("{{ mood }}{{ range(1) }}", variables={name: 1})
    assert "Allowed: enable_thinking, mood" in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token"])
def test_a_variable_that_would_replace_another_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"chat_template_kwargs.{name}` is made by the serv"):
        render("{{ bos_token }}{{ messages }}{{ tools }}", variables={name: []})


class TestSeveral:
    sources = {"default": "default", "tool_use": "tool_use", "rag": "rag"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("given", "chosen"),
        [
            ({}, "default"),
            ({"tools": [{}]}, "tool_use"),
            ({"documents": [{}]}, "rag"),
            ({"tools": [{}], "documents": [{}]}, "tool_use"),
        ],
    )
    def test_what_is_given_chooses(self, given: dict[str, Any], chosen: str) -> None:
        assert Renderer(self.sources, {}).render([user("Hi")], **given) == chosen

    @pytest.mark.parametrize("given", [{"tools": [{}]}, {"documents": [{}]}])
    def test_default_is_used_where_there_is_no_other(self, given: dict[str, Any]) -> None:
        assert Renderer({"default": "default"}, {}).render([user("Hi")], **given) == "default"

    def test_without_a_default_one_says_so(self) -> None:
        with pytest.raises(
            TemplateError, match=r"template not found.*Its templates: rag, tool_use"
        ):
            Renderer({"tool_use": "x", "rag": "y"}, {}).render([user("Hi")])


def test_a_template_refuses_in_tgis_form() -> None:
    with pytest.raises(TemplateError) as refused:
        render("{# roles #}\n{{ raise_exception('roles must alternate') }}")
    reported = "Template error: syntax error: roles must alternate (in <string>:2)"
    assert str(refused.value) == reported


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ 'a' + 1 }}",
        "{% for n in range(10 ** 9) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_what_goes_wrong_within_is_a_template_error(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize("source", ["\n{% if %}", "\n{% endfor %}"])
def test_a_template_that_cannot_be_compiled_is_an_error_of_requests(source: str) -> None:
    renderer = Renderer({"default": source}, {})
    with pytest.raises(TemplateError, match=r"syntax error: .* \(in <string>:2\)"):
        renderer.render([user("Hi")])


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        (CHATML, "<|im_end|>\n"),
        (
            CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"),
            "<|im_end|>\n<|im_start",
        ),
        ("{% for m in messages %}{{ ' ' + m.content + ' ' + eos_token }}{% endfor %}", " </s>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "\n"),
        (
            "{% for m in messages %}{{ m.content[0].text }}{% if loop.last %}<|return|>{% else %}"
            "<|end|>{% endif %}{% endfor %}",
            "<|return|>",
        ),
    ],
)
def test_the_ending_of_an_answer_is_what_a_template_writes_behind_it(
    source: str, ending: str
) -> None:
    [(found, within)] = Renderer({"default": source}, SPECIAL_TOKENS).endings()
    assert found.startswith(ending)
    assert within == ""


def test_what_is_within_a_turn_is_what_a_template_writes_between_its_parts() -> None:
    source = (
        "{% for m in messages %}{% if m.thinking %}{{ m.thinking }}[/think]{% endif %}"
        "{{ m.content }}{% for c in m.tool_calls or () %}[call]{{ c.function.name }}{% endfor %}"
        "[end]{% endfor %}"
    )
    assert Renderer({"default": source}, {}).endings() == [("[end]", "[/think][call]")]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}<|im_end|>",
        "{{ raise_exception('no assistant here') }}",
        "{% if %}",
    ],
)
def test_a_template_that_shows_no_answer_has_no_ending(source: str) -> None:
    assert Renderer({"default": source}, SPECIAL_TOKENS).endings() == []


def test_each_template_of_a_model_has_its_ending() -> None:
    templates = {"default": CHATML, "tool_use": CHATML.replace("im_end", "eot")}
    assert Renderer(templates, {}).endings() == [("<|im_end|>\n", ""), ("<|eot|>\n", "")]
