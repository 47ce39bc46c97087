"""Images over HTTP, from clients to the model and back, against transformers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import InferenceClient
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.helpers.tiny_processors import load_processor, save_processor
from tests.helpers.tiny_vision import save_vision
from tests.integration.server import Server

N_NEW = 12
MOST_IMAGES = 3
MOST_PIXELS = 1_000_000
MOST_TOKENS = 700


class Seen:
    """A tiny model that takes images: being served, and as transformers runs it."""

    def __init__(self, kind: str, folder: Path, server: Server) -> None:
        self.server = server
        self.processor = load_processor(kind, folder)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def expected(self, *messages: dict[str, Any]) -> tuple[int, str]:
        """Return the number of tokens and the greedy text of a chat in transformers' form."""
        return self._generated(
            self.processor.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )

    def expected_of_text(self, text: str, *images: Image.Image) -> tuple[int, str]:
        """The same of a text with a placeholder for each image."""
        return self._generated(self.processor(text=text, images=list(images), return_tensors="pt"))

    def _generated(self, given: Any) -> tuple[int, str]:
        with torch.inference_mode():
            made = self._model.generate(**given, max_new_tokens=N_NEW, do_sample=False)
        n_prompt = given["input_ids"].shape[1]
        text: str = self.processor.tokenizer.decode(made[0, n_prompt:], skip_special_tokens=True)
        return n_prompt, text

    def ask(self, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        body = {"messages": messages, "max_tokens": N_NEW, "temperature": 0, **fields}
        response = httpx.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=60)
        assert response.is_success, response.text
        reply: dict[str, Any] = response.json()
        return reply


def picture(width: int = 60, height: int = 40, shade: int = 0) -> Image.Image:
    """An image in which each pixel has a colour of its own."""
    pixels = bytes(
        (x * 5 + shade, y * 6, (x * y + shade * 3) % 256)[channel] % 256
        for y in range(height)
        for x in range(width)
        for channel in range(3)
    )
    return Image.frombytes("RGB", (width, height), pixels)


def url_of(image: Image.Image, kind: str = "png") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(*parts: str | Image.Image, **more: Any) -> dict[str, Any]:
    """A message as OpenAI's clients send it."""
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": url_of(part), **more}}
        for part in parts
    ]
    return {"role": "user", "content": content}


def parts(*parts: str | Image.Image) -> dict[str, Any]:
    """The same message for transformers."""
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def serving(kind: str, folder: Path) -> Iterator[Seen]:
    save_vision(kind, folder)
    save_processor(kind, folder)
    flags = {
        "--model-id": folder,
        "--dtype": "float32",
        "--max-images-per-request": MOST_IMAGES,
        "--max-image-pixels": MOST_PIXELS,
        "--max-input-tokens": MOST_TOKENS,
        "--max-total-tokens": MOST_TOKENS + 100,
    }
    given = [str(one) for pair in flags.items() for one in pair]
    with Server.running(folder / "log", *given) as server:
        yield Seen(kind, folder, server)


@pytest.fixture(scope="module")
def idefics3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    yield from serving("idefics3", tmp_path_factory.mktemp("idefics3"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    yield from serving("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(params=["idefics3", "llava"])
def seen(request: pytest.FixtureRequest) -> Seen:
    found: Seen = request.getfixturevalue(request.param)
    return found


def test_inference_client_is_told_about_an_image(seen: Seen) -> None:
    client = InferenceClient(model=seen.server.url)
    image = picture()
    output = client.chat_completion(
        messages=[user("What is in this image?", image)], max_tokens=N_NEW, temperature=0
    )
    n_prompt, text = seen.expected(parts("What is in this image?", image))
    assert text
    assert output.choices[0].message.content == text
    assert output.usage.prompt_tokens == n_prompt


def test_it_is_streamed_too(seen: Seen) -> None:
    client = InferenceClient(model=seen.server.url)
    image = picture(28, 28)
    chunks = client.chat_completion(
        messages=[user(image, "What?")], max_tokens=N_NEW, temperature=0, stream=True
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == seen.expected(parts(image, "What?"))[1]


def test_text_generation_takes_markdown(seen: Seen) -> None:
    client = InferenceClient(model=seen.server.url)
    image = picture(33, 50)
    made = client.text_generation(
        f"![]({url_of(image)})What is this?", max_new_tokens=N_NEW, details=True
    )
    text = seen.expected_of_text("<image>What is this?", image)[1]
    assert made.generated_text == text


class TestWhatOtherClientsSend:
    def test_openais_example_of_one_image(self, seen: Seen) -> None:
        image = picture()
        asked = user("What's in this image?", image)
        asked["content"][1]["image_url"]["detail"] = "auto"
        reply = seen.ask(asked, model="gpt-4o-mini", n=2)
        text = seen.expected(parts("What's in this image?", image))[1]
        assert [choice["message"]["content"] for choice in reply["choices"]] == [text] * 2

    def test_openais_example_of_several(self, seen: Seen) -> None:
        images = [picture(), picture(28, 40, shade=9), picture(90, 30, shade=40)]
        said = ["What are in these images?", "Is there any difference between them?"]
        chat: list[str | Image.Image] = [said[0], *images, said[1]]
        reply = seen.ask(user(*chat))
        n_prompt, text = seen.expected(parts(*chat))
        assert reply["choices"][0]["message"]["content"] == text
        assert reply["usage"]["prompt_tokens"] == n_prompt

    def test_langchains_image_message(self, seen: Seen) -> None:
        image = picture(shade=5)
        content = [
            {"type": "text", "text": "Describe the weather in this image"},
            {"type": "image_url", "image_url": {"url": url_of(image, "jpeg")}},
        ]
        body = {
            "messages": [{"content": content, "role": "user"}],
            "model": "tgi",
            "max_completion_tokens": N_NEW,
            "temperature": 0.0,
            "stream": False,
        }
        response = httpx.post(f"{seen.server.url}/v1/chat/completions", json=body, timeout=60)
        with Image.open(io.BytesIO(base64.b64decode(url_of(image, "jpeg").split(",")[1]))) as jpeg:
            shown = parts("Describe the weather in this image", jpeg)
            text = seen.expected(shown)[1]
        assert response.json()["choices"][0]["message"]["content"] == text

    def test_a_conversation_about_images(self, seen: Seen) -> None:
        first, second = picture(shade=3), picture(28, 28, shade=90)
        said: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
        reply = seen.ask(user(first, "Colour?"), said, user("And", second))
        text = seen.expected(parts(first, "Colour?"), said, parts("And", second))[1]
        assert reply["choices"][0]["message"]["content"] == text


def test_equal_images_hit_the_prefix_cache(idefics3: Seen) -> None:
    def cached(image: Image.Image) -> tuple[int, int]:
        usage = idefics3.ask(user("Look at", image, "closely."))["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

    encoded = metric(idefics3, "tgi_async_encoded_images")
    assert cached(picture(70, 70, shade=1))[0] <= 16, "what is before the first placeholder"
    n_cached, n_prompt = cached(picture(70, 70, shade=1))
    assert n_prompt - n_cached <= 16
    assert metric(idefics3, "tgi_async_encoded_images") == encoded + 1
    assert cached(picture(70, 70, shade=2))[0] <= 16, "another image of the same size"

    said: dict[str, Any] = {"role": "assistant", "content": "It is red."}
    first = user("Look at", picture(70, 70, shade=1), "closely.")
    usage = idefics3.ask(first, said, user("And at", picture(50, 50, shade=7)))["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= n_cached - 16, "before a new image"
    assert metric(idefics3, "tgi_async_encoded_images") == encoded + 3


def metric(seen: Seen, name: str) -> float:
    lines = httpx.get(f"{seen.server.url}/metrics").text.splitlines()
    (value,) = (line.split()[-1] for line in lines if line.startswith(f"{name} "))
    return float(value)


def test_what_a_user_types_is_no_image(seen: Seen) -> None:
    """CVE-2026-44222: placeholders that are typed crashed the worker."""
    typed = "Is <image><image> a <fake_token_around_image><row_1_col_1> tag? <|image_pad|>"
    image = picture()
    for messages in ([user(typed)], [user(typed, image)], [{"role": "user", "content": typed}]):
        seen.ask(*messages)
    counted = httpx.post(f"{seen.server.url}/tokenize", json={"inputs": typed}).json()
    assert not {"<image>"}.intersection(token["text"] for token in counted)
    assert "".join(token["text"] for token in counted if token["stop"]) == typed
    found = httpx.post(
        f"{seen.server.url}/chat_tokenize", json={"messages": [user(typed, image, typed)]}
    ).json()
    n_images = [token["text"] for token in found["tokenize_response"]].count("<image>")
    assert n_images == found["templated_text"].count("<image>") - 4
    assert (
        len(found["tokenize_response"])
        == seen.ask(user(typed, image, typed))["usage"]["prompt_tokens"]
    )


PNG = url_of(picture(8, 8))
PDF = "data:image/png;base64," + base64.b64encode(b"%PDF-1.7 and so on").decode()
SVG = "data:image/svg+xml;base64," + base64.b64encode(b"<svg></svg>").decode()
BAD = {
    "not base64": ("data:image/png;base64,###", "base64 encoding is invalid"),
    "not marked as base64": ("data:image/png,AAAA", "a data: URL must be data:<type>;base64,"),
    "cut off": (PNG[:-40], "image"),
    "a PDF": (PDF, "image"),
    "SVG": (SVG, "image"),
    "text": ("data:text/plain;base64,aGVsbG8=", "image"),
    "empty": ("data:image/png;base64,", "base64 encoding is invalid: it is empty"),
    "a file": ("file:///etc/passwd", "http"),
    "ftp": ("ftp://example.com/a.png", "http"),
    "no URL": ("hello", "http"),
    "not allowed": ("https://example.com/a.png", "--allow-image-domains"),
    "too many pixels": (url_of(Image.new("L", (4000, 4000))), f"{MOST_PIXELS}"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_images_are_refused_in_the_routes_words(idefics3: Seen, bad: str) -> None:
    url, reported = BAD[bad]
    given = httpx.post(
        f"{idefics3.server.url}/v1/chat/completions",
        json={
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
            ]
        },
        timeout=60,
    )
    assert given.status_code == 400, given.text
    error = given.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert reported in error["message"]
    as_tgi = httpx.post(
        f"{idefics3.server.url}/generate", json={"inputs": f"![]({url})"}, timeout=60
    )
    assert as_tgi.status_code == 422, as_tgi.text
    refused = as_tgi.json()
    assert refused.keys() == {"error", "error_type"}
    assert refused["error_type"] == "validation"
    assert reported in refused["error"]
    for words in (error["message"], refused["error"]):
        assert not any(hidden in words for hidden in ("PIL", "0x", "Traceback", "/shm"))


def test_more_images_than_the_limit_are_refused(idefics3: Seen) -> None:
    def refused(*messages: dict[str, Any], **fields: Any) -> str:
        response = httpx.post(
            f"{idefics3.server.url}/v1/chat/completions",
            json={"messages": messages, **fields},
            timeout=60,
        )
        assert response.status_code == 400, response.text
        message: str = response.json()["error"]["message"]
        return message

    message = refused(user(*[picture(8, 8)] * (MOST_IMAGES + 1)))
    assert f"at most {MOST_IMAGES} images" in message
    message = refused(user("".join(f"![]({PNG})" for _ in range(5000))))
    assert f"at most {MOST_IMAGES} images" in message
    as_tgi = httpx.post(f"{idefics3.server.url}/generate", json={"inputs": "![](data:)" * 5000})
    assert as_tgi.status_code == 422
    assert f"at most {MOST_IMAGES} images. Given: 5000" in as_tgi.json()["error"]
    message = refused(user(*[picture(112, 112, shade=shade) for shade in range(3)], "w" * 500))
    assert "Its 3 images take" in message


def test_the_server_goes_on(seen: Seen) -> None:
    """After all of the above: nothing has died."""
    assert "died" not in seen.server.log
    assert "Traceback" not in seen.server.log
    assert httpx.get(f"{seen.server.url}/info").json()["model_pipeline_tag"] == (
        "image-text-to-text"
    )
