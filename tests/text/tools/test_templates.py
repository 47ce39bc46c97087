"""What chat templates show of tools and thoughts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.published import needs_published
from tests.text.test_chat_like_transformers import FILES
from tgi_async.text.tools.format import Format, Marks
from tgi_async.text.tools.formats import FORMATS, NAMES, format_named, format_of
from tgi_async.text.tools.templates import Traits, opens_thoughts

THINK = Marks("<think>", "</think>")

EXPECTED = {
    "deepseek_r1_distill": "deepseek",
    "deepseekv3": "deepseek",
    "diffusion_gemma": "gemma4",
    "gemma4": "gemma4",
    "gemma4_v2": "gemma4",
    "gemma4_v3": "gemma4",
    "gemma4_v4": "gemma4",
    "gemma4_v5": "gemma4",
    "glm4moe": "glm",
    "gptoss": "harmony",
    "lfm2": "lfm2",
    "lfm2_2_5": "lfm2",
    "lfm2_2_5_v2": "lfm2",
    "lfm2_2_5_vl": "lfm2",
    "lfm2_v2": "lfm2",
    "llama3_1": "llama3",
    "llama3_2": "llama3",
    "nemotron_3_5_lightning": "qwen3_coder",
    "nemotron_3_nano": "qwen3_coder",
    "nemotron_3_super": "qwen3_coder",
    "nemotron_3_ultra": "qwen3_coder",
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_5_nothink": "qwen3_coder",
    "qwen3_5_think": "qwen3_coder",
    "qwen3_6": "qwen3_coder",
    "qwen3_8": "qwen3_coder",
    "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
}
"""The others show no calls, or in a form of their own, which is derived."""
OTHERS = {
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral_args",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral_args",
    "unsloth-mistral-Devstral-Small-2507": "mistral_args",
    "MiMo-VL": "hermes",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen3-Coder": "qwen3_coder",
    "Qwen3.5-4B": "qwen3_coder",
    "StepFun3.5-Flash": "qwen3_coder",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek",
    "deepseek-ai-DeepSeek-V3.1": "deepseek_v31",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "meetkai-functionary-medium-v3.1": "functionary",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "ByteDance-Seed-OSS": "seed_oss",
    "Cohere2MoE": "cohere",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
    "GLM-4.6": "glm",
    "Kimi-K2-Instruct": "kimi_k2",
    "Kimi-K2-Thinking": "kimi_k2",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-8B-A1B": "lfm2",
    "Spark2.5": "glm47",
    "deepseek-ai-DeepSeek-V4": "deepseek_v4",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek_v4",
    "google-gemma-4-31B-it-interleaved": "gemma4",
    "inclusionai-ling-3.0-flash": "glm",
    "moonshotai-Kimi-K2": "kimi_k2",
    "poolside-Laguna-S-2.1": "glm47",
    "poolside-Laguna-XS.2": "glm",
}
"""Of a folder of further templates, under the names that llama.cpp gives them."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_format_of_a_published_template(file: Path) -> None:
    traits = Traits.of([file.read_text("utf-8")])
    # TRL's own variants, for training, show calls as the makers' templates do.
    name = file.stem.removesuffix("_training")
    assert traits.format.name == ({**EXPECTED, **OTHERS}).get(name, "json")


@needs_published
def test_all_templates_whose_format_is_known_were_seen() -> None:
    assert EXPECTED.keys() <= {file.stem for file in FILES}


SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
)
SMOLLM3 = (
    "{{ 'named SmolLM' }}{%- if xml_tools or python_tools -%}{{- 'within <tools></tools> tags' -}}"
    '{{- "<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n'
    '</tool_call>" -}}{%- endif -%}{{ "<think>" }}{{ "</think>" }}'
)
MISTRAL7 = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] [{{ message.tool_calls }}]"


def test_templates_of_smollm() -> None:
    two = Traits.of([SMOLLM2])
    assert (two.format.name, two.tools_variable, two.turn.thoughts) == ("smollm", None, None)
    three = Traits.of([SMOLLM3])
    assert (three.format.name, three.tools_variable) == ("hermes", "xml_tools")
    assert three.turn.thoughts == THINK


def test_a_list_of_mistral() -> None:
    traits = Traits.of([MISTRAL7])
    assert (traits.format.name, traits.shows_calls) == ("mistral", True)


def test_words_of_a_template_are_not_variables() -> None:
    traits = Traits.of(["tools {{ 'use tools' }} {% if message.tools %}{% endif %}"])
    assert traits.tools_variable is None


def test_any_of_several_templates_may_show_it() -> None:
    assert Traits.of([SMOLLM2.replace("SmolLM", "Joe"), MISTRAL7]).tools_variable == "tools"
    assert format_of(["plain", "[TOOL_CALLS]"]).name == "mistral"


def test_a_model_without_a_word_of_calls_writes_json() -> None:
    assert format_of([]).name == format_of(["{{ messages }}"]).name == "json"


def test_names_are_unique_and_find_their_format() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert [format_named(name) for name in NAMES] == list(FORMATS)


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_instructions_show_the_tools_where_there_are_any(one: Format) -> None:
    if one.instructions:
        assert '{"a": "é"}' in one.described([{"a": "é"}])
        assert "{tools}" not in one.described([])


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<think>", True),
        ("<think>\n\n</think>\n\n", False),
        ("What is <think>? <|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_may_end_where_thoughts_begin(prompt: str, opened: bool) -> None:
    assert opens_thoughts(prompt, THINK) is opened
