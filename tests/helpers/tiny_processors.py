"""Processors of images with small numbers, in the files that real checkpoints of a kind have."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.helpers.vision_tokens import IMAGE_SIZE, PATCH_SIZE, SPECIALS, token_id

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
STEPS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
}
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
OF_LLAVA = {
    **STEPS,
    **CLIP,
    "crop_size": SQUARE,
    "do_center_crop": True,
    "resample": 3,
    "size": {"shortest_edge": IMAGE_SIZE},
}
OF_IDEFICS3 = {
    **STEPS,
    **HALF,
    "do_image_splitting": True,
    "do_pad": True,
    "max_image_size": {"longest_edge": IMAGE_SIZE},
    "resample": 1,
    "size": {"longest_edge": 4 * IMAGE_SIZE},
}
OF_QWEN = {
    **STEPS,
    **CLIP,
    "image_processor_type": "Qwen2VLImageProcessor",
    "max_pixels": 40 * (2 * PATCH_SIZE) ** 2,
    "merge_size": 2,
    "min_pixels": 2 * (2 * PATCH_SIZE) ** 2,
    "patch_size": PATCH_SIZE,
    "resample": 3,
    "temporal_patch_size": 2,
}
PREPROCESSORS: dict[str, dict[str, Any]] = {
    "idefics": {
        **CLIP,
        "image_num_channels": 3,
        "image_processor_type": "IdeficsImageProcessor",
        "image_size": IMAGE_SIZE,
        "processor_class": "IdeficsProcessor",
    },
    "idefics2": {
        **STEPS,
        **HALF,
        "do_image_splitting": True,
        "do_pad": True,
        "image_processor_type": "Idefics2ImageProcessor",
        "processor_class": "Idefics2Processor",
        "resample": 2,
        "size": {"longest_edge": 2 * IMAGE_SIZE, "shortest_edge": IMAGE_SIZE},
    },
    "idefics3": {
        **OF_IDEFICS3,
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
    },
    "smolvlm": {
        **OF_IDEFICS3,
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "video_sampling": {
            "fps": 1,
            "max_frames": 64,
            "video_size": {"longest_edge": IMAGE_SIZE},
        },
    },
    "llava": {
        **OF_LLAVA,
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
    },
    "llava_next": {
        **OF_LLAVA,
        "do_pad": True,
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
    },
    "paligemma": {
        **STEPS,
        **HALF,
        "do_convert_rgb": None,
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": 16,
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "size": SQUARE,
    },
    "qwen2_vl": {**OF_QWEN, "processor_class": "Qwen2VLProcessor"},
    "qwen2_5_vl": {**OF_QWEN, "processor_class": "Qwen2_5_VLProcessor"},
    "qwen3_vl": {**OF_QWEN, **HALF, "processor_class": "Qwen3VLProcessor"},
    "gemma3": {
        **STEPS,
        **HALF,
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 4,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "size": SQUARE,
    },
    "mllama": {
        **STEPS,
        **CLIP,
        "do_pad": True,
        "image_processor_type": "MllamaImageProcessor",
        "max_image_tiles": 4,
        "processor_class": "MllamaProcessor",
        "resample": 2,
        "size": SQUARE,
    },
}
OF_LLAVA_PROCESSORS = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": PATCH_SIZE,
    "vision_feature_select_strategy": "default",
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "idefics2": {"image_seq_len": 4},
    "idefics3": {"image_seq_len": 4},
    "smolvlm": {"image_seq_len": 4},
    "llava": OF_LLAVA_PROCESSORS,
    "llava_next": OF_LLAVA_PROCESSORS,
    "gemma3": {"image_seq_length": 4},
}
"""Of the kinds that have a processor_config.json."""
UTTERANCES = (
    "{% for message in messages %}{{ message['role'].capitalize() }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{{ 'Assistant:' if add_generation_prompt }}"
)
IMAGES_FIRST = (
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
)
QWEN = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "idefics2": UTTERANCES,
    "idefics3": "<|begin_of_text|>" + UTTERANCES,
    "smolvlm": "<|im_start|>" + UTTERANCES,
    "llava": (
        "{% for message in messages %}"
        "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
        + IMAGES_FIRST
        + "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "llava_next": (
        "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
        + IMAGES_FIRST
        + "[/INST]{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}"
        "{% endfor %}"
    ),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "gemma3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role'])"
        " + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<start_of_image>"
        "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}"
        "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mllama": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|image|>"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}
"""Of the kinds that have one, in the style of the real ones."""
JINJA = ("smolvlm", "qwen2_5_vl", "gemma3")
"""Kinds whose template is in a file of its own; that of the others is in chat_template.json."""
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
LLAMA_3 = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>", "pad_token": "<pad>"}
GEMMA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
QWEN_2 = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<pad>"}
SPECIAL_TOKENS: dict[str, dict[str, Any]] = {
    "idefics": {**LLAMA, "additional_special_tokens": [*SPECIALS[4:7]]},
    "idefics2": {**LLAMA, "additional_special_tokens": [*SPECIALS[4:7]]},
    "idefics3": LLAMA_3,
    "smolvlm": {
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "extra_special_tokens": {
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
    },
    "llava": {**LLAMA, "pad_token": "<pad>", "extra_special_tokens": {"image_token": "<image>"}},
    "llava_next": {
        **LLAMA,
        "pad_token": "<pad>",
        "extra_special_tokens": {"image_token": "<image>"},
    },
    "paligemma": {**GEMMA, "extra_special_tokens": {"image_token": "<image>"}},
    "qwen2_vl": QWEN_2,
    "qwen2_5_vl": QWEN_2,
    "qwen3_vl": QWEN_2,
    "gemma3": {
        **GEMMA,
        "extra_special_tokens": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    },
    "mllama": LLAMA_3,
}
OF_QWEN_2 = tuple(kind for kind, tokens in SPECIAL_TOKENS.items() if tokens is QWEN_2)
BEGINS = tuple(kind for kind in SPECIAL_TOKENS if kind not in ("smolvlm", *OF_QWEN_2))
"""Kinds whose tokenizer adds the token of the beginning by itself."""
KINDS = tuple(PREPROCESSORS)


def save_processor(kind: str, folder: Path, **changed: Any) -> Path:
    """Write the files of a kind's processor into `folder`, beside those of a model.

    `changed` are fields of preprocessor_config.json.
    """
    named = {"processor_class": PREPROCESSORS[kind]["processor_class"]}
    save_tokenizer(folder, {**SPECIAL_TOKENS[kind], **named}, begins=kind in BEGINS)
    _write(folder / "preprocessor_config.json", {**PREPROCESSORS[kind], **changed})
    if kind in PROCESSORS:
        _write(folder / "processor_config.json", {**PROCESSORS[kind], **named})
    if kind in JINJA:
        (folder / "chat_template.jinja").write_text(TEMPLATES[kind])
    elif kind in TEMPLATES:
        _write(folder / "chat_template.json", {"chat_template": TEMPLATES[kind]})
    return folder


def load_processor(kind: str, folder: Path) -> Any:
    """Return transformers' processor of these files, whose class is the kind's own.

    What it needs for videos alone, and is not installed here, is left out.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    of_smolvlm: Any = import_module("transformers.models.smolvlm.processing_smolvlm")
    of_smolvlm.num2words = of_smolvlm.num2words or str
    classes = {
        "qwen2_vl": Qwen2VLProcessor,
        "qwen2_5_vl": Qwen2_5_VLProcessor,
        "qwen3_vl": Qwen3VLProcessor,
        "smolvlm": of_smolvlm.SmolVLMProcessor,
    }
    if kind not in classes:
        return AutoProcessor.from_pretrained(folder)
    of_images_alone = type(
        classes[kind].__name__,
        (classes[kind],),
        {"check_argument_for_proper_class": lambda self, name, value: type(value)},
    )
    template = folder / "chat_template.jinja"
    return of_images_alone(
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        AutoTokenizer.from_pretrained(folder),
        SimpleNamespace(num_frames=1, fps=1),  # for videos
        chat_template=template.read_text() if template.exists() else TEMPLATES[kind],
        **PROCESSORS.get(kind, {}),
    )


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2))


def save_tokenizer(folder: Path, config: dict[str, Any], *, begins: bool = True) -> None:
    """Write a tokenizer of bytes and `SPECIALS`, and what its tokenizer_config.json says.

    If it `begins` texts, it writes their first token by itself.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in SPECIALS]
    )
    if begins and (begin := config["bos_token"]):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", "$B"],
            special_tokens=[(begin, token_id(begin))],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    rest = {
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(folder / "tokenizer_config.json", {**config, **rest})
