from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tgi_async.telemetry.instruments import Counter, Histogram, gauge


def samples(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and label values. An independent parser reads them too.

    It adds `_total` to the names of counters, so that what it read is compared without.
    """
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            sample = re.fullmatch(r"(\w+)(?:{(.*)})? (\S+)", line)
            assert sample is not None
            name, labels, value = sample.groups()
            found[name, ",".join(re.findall(r'"(.*?)"', labels or ""))] = float(value)
    parsed = {
        (sample.name.removesuffix("_total"), ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert parsed == found
    return found


def test_a_counter_keeps_its_name() -> None:
    counter = Counter("tgi_request_count", "Requests")
    counter.add()
    counter.add(2)
    text = "".join(counter.lines())
    assert text == (
        "# HELP tgi_request_count Requests\n# TYPE tgi_request_count counter\ntgi_request_count 3\n"
    )


def test_a_counter_starts_at_zero_and_a_labelled_one_with_nothing() -> None:
    assert samples("".join(Counter("a", "A").lines())) == {("a", ""): 0}
    assert samples("".join(Counter("a", "A", "err").lines())) == {}
    assert samples("".join(Counter("a", "A", "err", ("x",)).lines())) == {("a", "x"): 0}


def test_a_counter_counts_by_label() -> None:
    counter = Counter("a", "A", "err")
    counter.add(label="x")
    counter.add(label="y")
    counter.add(label="y")
    assert samples("".join(counter.lines())) == {("a", "x"): 1, ("a", "y"): 2}


@pytest.mark.parametrize(
    ("value", "counts"), [(0, (1, 1, 1)), (1, (1, 1, 1)), (1.5, (0, 1, 1)), (9, (0, 0, 1))]
)
def test_a_bucket_includes_its_bound(value: float, counts: tuple[int, int, int]) -> None:
    histogram = Histogram("a", "A", [1, 2])
    histogram.observe(value)
    read = samples("".join(histogram.lines()))
    assert tuple(read["a_bucket", bound] for bound in ("1", "2", "+Inf")) == counts
    assert read["a_sum", ""] == value
    assert read["a_count", ""] == 1


def test_a_histogram_counts_by_label() -> None:
    histogram = Histogram("a", "A", [1], "method")
    histogram.observe(0.5, "decode")
    histogram.observe(3, "decode")
    histogram.observe(3, "prefill")
    read = samples("".join(histogram.lines()))
    assert read["a_bucket", "decode,1"] == 1
    assert read["a_bucket", "decode,+Inf"] == 2
    assert read["a_count", "prefill"] == 1


def test_a_gauge_is_what_it_is_now() -> None:
    assert samples(gauge("a", "A", 5)) == {("a", ""): 5}
