"""Numbers of a step, on their way to fixed places."""

from __future__ import annotations

import numpy as np
import torch

from workers.graphs.input_buffers import ALIGNMENT, DEPTH, InputBuffers, Layout

CPU = torch.device("cpu")


def test_parts_are_where_they_are_looked_for_filled_up_and_aligned() -> None:
    layout = Layout({"rows": 3, "parts": 5, "more": 4})
    numbers = np.full(40, 77, np.int32)
    rest = np.array([21, 22, 23], np.int32)
    end = layout.write(
        numbers,
        {
            "parts": (np.array([4, 5], np.int64), 9),
            "rows": (np.array([1, 2, 3], np.int32), -1),
            "more": (np.empty(0, np.int32), -7),
        },
        rest,
    )
    assert end == layout.size + 3
    found = layout.views(torch.from_numpy(numbers))
    assert {name: x[:5].tolist() for name, x in found.items()} == {
        "rows": [1, 2, 3],
        "parts": [4, 5, 9, 9, 9],
        "more": [-7] * 4,
        "rest": [21, 22, 23, 77, 77],
    }
    for x in found.values():
        assert x.storage_offset() % ALIGNMENT == 0


def test_each_step_is_sent_from_memory_of_its_own_to_one_place() -> None:
    buffers = InputBuffers(6, CPU)
    place = buffers.on_device.data_ptr()
    hosts = []
    for step in range(DEPTH + 1):
        host = buffers.next()
        host[:] = step
        hosts.append(host.__array_interface__["data"][0])
        buffers.send(4)
        assert buffers.on_device.tolist()[:4] == [step] * 4
        assert buffers.on_device.data_ptr() == place
    assert len(set(hosts)) == DEPTH
    assert hosts[0] == hosts[-1]
    assert buffers.on_device.tolist()[4:] == [0, 0]
