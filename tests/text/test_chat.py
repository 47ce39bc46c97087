from __future__ import annotations

import json
from datetime import datetime

import pytest

from tgi_async.errors import TemplateError
from tgi_async.text.chat import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def render(source: str, *messages: dict[str, str]) -> str:
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate(source, special_tokens).render(messages or [user("Hi")])


def test_ends_where_the_assistant_begins():
    assert render(CHATML) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("said", ["Well", "assistant", "user", "Hi", "Well  \n"])
def test_an_assistants_message_at_the_end_is_continued(said):
    prompt = render(CHATML, user("Hi"), assistant(said))
    assert prompt.endswith(f"<|im_start|>assistant\n{said.rstrip()}")
    assert prompt.count("<|im_end|>") == 1


def test_an_empty_assistants_message_at_the_end_is_an_ordinary_one():
    prompt = render(CHATML, user("Hi"), assistant(""))
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_hides_the_last_message_cannot_continue_it():
    with pytest.raises(TemplateError, match="End with a user message"):
        render("{{ messages[0].content }}", user("Hi"), assistant("Well"))


def test_special_tokens_are_variables():
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>Hi</s>"


def test_blocks_leave_no_blank_lines_as_in_transformers():
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n") == "x\n"


def test_loops_can_break():
    assert (
        render("{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}")
        == "01"
    )


def test_json_is_not_escaped_for_html():
    assert render('{{ {"a": "<é>"} | tojson }}') == '{"a": "<é>"}'
    assert render('{{ {"b": 1, "a": 2} | tojson(indent=1, sort_keys=true) }}') == (
        '{\n "a": 2,\n "b": 1\n}'
    )


def test_text_is_not_escaped_for_html():
    assert render("{{ messages[0].content }}", user("<b>&")) == "<b>&"


def test_the_marks_of_training_change_nothing():
    assert render("a{% generation %}b{{ bos_token }}{% endgeneration %}c") == "ab<s>c"


def test_the_date_is_there():
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year)}


def test_tools_and_documents_are_none():
    assert render("{% if tools is none and documents is none %}none{% endif %}") == "none"


def test_a_text_in_a_message_is_not_a_template():
    assert render("{{ messages[0].content }}", user("{{ 1 + 1 }}")) == "{{ 1 + 1 }}"


def test_a_template_can_refuse_in_its_own_words():
    with pytest.raises(TemplateError, match="Template error: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'a' + 1 }}",
        "{% for n in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_what_goes_wrong_within_is_a_template_error(source):
    with pytest.raises(TemplateError):
        render(source)


def test_a_template_that_cannot_be_compiled_is_an_error_of_requests():
    template = ChatTemplate("{% if %}", {})
    with pytest.raises(TemplateError, match="syntax error"):
        template.render([user("Hi")])


def test_a_file_of_its_own_goes_first(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.from_folder(tmp_path, {}).render([user("Hi")]) == "file"


@pytest.mark.parametrize(
    "entry",
    [
        "one",
        [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}],
    ],
)
def test_the_configuration_may_have_one_or_several(tmp_path, entry):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}))
    assert ChatTemplate.from_folder(tmp_path, {}).render([user("Hi")]) == "one"


@pytest.mark.parametrize(
    "config", [{}, {"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}]
)
def test_a_model_may_have_none(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_folder(tmp_path, {}) is None


def test_no_configuration_is_no_template(tmp_path):
    assert ChatTemplate.from_folder(tmp_path, {}) is None
