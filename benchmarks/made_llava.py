"""A LLaVA out of SmolLM2 and an encoder of random weights, in the sizes of LLaVA 1.5's images.

    python -m benchmarks.made_llava FOLDER

Texts are those of the language model where there is no image; what an image says is noise. The
images are prepared as LLaVA 1.5's are, 336 pixels in 576 patches, and the encoder is small unless
`--layers` says otherwise: it is the preparation and the tokens that are measured. Needs the package
of the embedded model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from workers.models.embedded import prepare_embedded

PLACEHOLDER = "<image>"
IMAGE_SIZE, PATCH_SIZE = 336, 14
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": IMAGE_SIZE},
}


def make(base: Path, folder: Path, n_layers: int) -> None:
    """Write the model."""
    folder.mkdir(parents=True, exist_ok=True)
    text = AutoConfig.from_pretrained(base)
    placeholder = text.vocab_size
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": 128,
        },
        text_config=text.to_dict(),
        image_token_index=placeholder,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    weights = load_file(base / "model.safetensors")
    own = {name.removeprefix("model."): one for name, one in weights.items()}
    missing = model.model.language_model.load_state_dict(own, strict=False)
    if missing.missing_keys or set(missing.unexpected_keys) - {"lm_head.weight"}:
        raise SystemExit(f"the weights do not fit: {missing}")
    model.save_pretrained(folder)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        {"id": placeholder, "content": PLACEHOLDER, "special": True, "normalized": False}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))
    processor = {
        "image_token": PLACEHOLDER,
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_SIZE,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    shutil.copy(base / "generation_config.json", folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.made_llava", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2, help="of the encoder")
    options = parser.parse_args()
    make(prepare_embedded(), options.folder, options.layers)
    print(options.folder)


if __name__ == "__main__":
    main()
