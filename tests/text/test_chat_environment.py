from __future__ import annotations

from datetime import datetime
from typing import Any

import jinja2
import pytest

from tgi_async.text.chat_environment import environment


def render(source: str, **variables: Any) -> str:
    return environment().from_string(source).render(variables)


def test_blocks_leave_no_blank_lines() -> None:
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n") == "x\n"


def test_loops_can_break() -> None:
    source = "{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}"
    assert render(source) == "01"


def test_json_is_not_escaped_for_html() -> None:
    assert render('{{ {"a": "<é>"} | tojson }}') == '{"a": "<é>"}'
    assert render('{{ {"b": 1, "a": 2} | tojson(indent=1, sort_keys=true) }}') == (
        '{\n "a": 2,\n "b": 1\n}'
    )


def test_text_is_not_escaped_for_html() -> None:
    assert render("{{ text }}", text="<b>&") == "<b>&"


def test_the_marks_of_training_are_a_scope_and_no_more() -> None:
    source = "a{% set x = 1 %}{% generation %}b{{ y }}{% set x = 2 %}{% endgeneration %}{{ x }}"
    assert render(source, y="y") == "aby1"


def test_the_date_is_there() -> None:
    before = datetime.now().year
    assert before <= int(render("{{ strftime_now('%Y') }}")) <= datetime.now().year


def test_a_template_can_refuse() -> None:
    with pytest.raises(jinja2.TemplateError, match="no"):
        render("{{ raise_exception('no') }}")


def test_dict_makes_dicts_and_is_not_the_class() -> None:
    assert render("{{ dict(a=1) }}{{ dict.fromkeys('b') }}") == "{'a': 1}{'b': None}"
    assert render("{{ dict.mro is defined }}") == "False"


def test_a_namespace_keeps_what_is_set_in_a_loop() -> None:
    source = "{% set n = namespace(self=0) %}{% for i in [1, 2] %}{% set n.self = i %}{% endfor %}"
    assert render(source + "{{ n.self }}") == "2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ namespace(_a=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ items.append(1) }}",
    ],
)
def test_what_leads_out_of_the_sandbox_is_refused(source: str) -> None:
    with pytest.raises(jinja2.exceptions.SecurityError):
        render(source, items=[])
