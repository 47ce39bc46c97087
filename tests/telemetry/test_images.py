from __future__ import annotations

from types import SimpleNamespace

from tests.telemetry.test_instruments import samples
from tests.telemetry.test_metrics import IDLE
from tgi_async.telemetry.images import ImageCounts
from tgi_async.telemetry.metrics import Metrics


def made(images: ImageCounts | None) -> Metrics:
    return Metrics(max_input_tokens=10, max_total_tokens=20, images=images)


def read(counts: ImageCounts) -> dict[tuple[str, str], float]:
    return samples(made(counts).expose(IDLE).decode())


def test_results_are_there_from_the_start() -> None:
    values = read(ImageCounts())
    assert [values["tgi_async_images", result] for result in ("prepared", "reused", "refused")] == [
        0,
        0,
        0,
    ]
    assert values["tgi_async_encoded_images", ""] == 0


def test_an_image_from_its_url_to_the_encoder() -> None:
    counts = ImageCounts()
    counts.image_fetched(0.5)
    counts.image_prepared(0.25)
    counts.image_reused()
    counts.image_reused()
    counts.image_refused()
    made(counts).encoded(3, 0.125)
    values = read(counts)
    assert values["tgi_async_images", "prepared"] == 1
    assert values["tgi_async_images", "reused"] == 2
    assert values["tgi_async_images", "refused"] == 1
    assert values["tgi_async_image_fetch_duration_sum", ""] == 0.5
    assert values["tgi_async_image_prepare_duration_sum", ""] == 0.25
    assert values["tgi_async_encoded_images", ""] == 3
    assert values["tgi_async_image_encode_duration_sum", ""] == 0.125
    assert values["tgi_async_image_encode_duration_count", ""] == 1


def test_the_store_is_shown_once_there_is_one() -> None:
    counts = ImageCounts()
    assert ("tgi_async_image_bytes", "") not in read(counts)
    counts.store = SimpleNamespace(n_bytes=5, held_bytes=3, max_bytes=9)
    values = read(counts)
    sizes = ("tgi_async_image_bytes", "tgi_async_image_held_bytes", "tgi_async_image_max_bytes")
    assert [values[name, ""] for name in sizes] == [5, 3, 9]


def test_a_model_without_images_has_no_such_metrics() -> None:
    metrics = made(None)
    metrics.encoded(1, 1.0)
    assert "image" not in metrics.expose(IDLE).decode()
