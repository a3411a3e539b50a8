"""What was written is what is read: any type, any rows, any process."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mimic_pl.store import Column, Store, StoreWriter
from tests.store.conftest import COLUMNS, KIND, ROWS, content, files, write


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_round_trip_of_all_types(folder):
    store = Store.open(folder, KIND)
    assert len(store) == ROWS and store.columns == COLUMNS
    assert store.bytes_per_row == sum(t.numel() * t.element_size() for t in content(1).values())
    same(store.slice(0, ROWS), content())
    same(store.select(torch.arange(ROWS)), content())
    assert store.description == {"model": "abc", "text template": "{name} [SEP] {attr}"}
    store.verify()


def test_shards_are_plain_safetensors(folder):
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    assert [len(shard["bias"]) for shard in shards] == [16] * 6 + [7]
    same({name: torch.cat([shard[name] for shard in shards]) for name in COLUMNS}, content())


@pytest.mark.parametrize("batch", [1, 16, 17, 50, ROWS])
def test_batches_leave_no_trace(folder, tmp_path, batch):
    other = write(tmp_path / "other", batch, description=Store.open(folder, KIND).description)
    assert files(other) == files(folder)


def test_rows_of_any_layout_in_memory(tmp_path):
    rows = torch.arange(60, dtype=torch.float32).view(3, 20).T  # not contiguous
    with StoreWriter(tmp_path, KIND, {"x": Column(torch.float32, (3,))}, rows=20) as writer:
        writer.append({"x": rows})
    assert torch.equal(Store.open(tmp_path, KIND).slice(0, 20)["x"], rows)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return Store.open(write(tmp_path_factory.mktemp("store")), KIND)


@given(bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted))
@settings(deadline=None)
def test_any_slice(opened, bounds):
    start, stop = bounds
    same(opened.slice(start, stop), {name: tensor[start:stop] for name, tensor in content().items()})


@given(
    runs=st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(1, 30), st.sampled_from([1, -1, 0])), max_size=6),
    names=st.sets(st.sampled_from(sorted(COLUMNS))),
)
@settings(deadline=None)
def test_any_rows(opened, runs, names):
    """Forwards, backwards and repeated, within shards and across them."""
    rows = np.array([(start + step * i) % ROWS for start, length, step in runs for i in range(length)], np.int64)
    expected = {
        name: tensor.view(torch.uint8).numpy()
        for name, tensor in content().items()
        if name in names and tensor.ndim > 1
    }
    found = opened.select(torch.from_numpy(rows), names)
    assert found.keys() == names
    for name, bits in expected.items():
        assert np.array_equal(found[name].view(torch.uint8).numpy(), bits[rows])


@pytest.mark.parametrize("bounds", [(-1, 4), (5, 4), (100, ROWS + 1)])
def test_rows_that_are_not_there(opened, bounds):
    with pytest.raises(IndexError, match=f"of a store with {ROWS} rows"):
        opened.slice(*bounds)
    with pytest.raises(IndexError, match=f"of a store with {ROWS} rows"):
        opened.select(torch.tensor([3, bounds[0] if bounds[0] < 0 else ROWS]))


def _sum_of(store, queue):
    torch.set_num_threads(1)  # the threads of the forked process are not there
    queue.put(int(store.select(torch.arange(ROWS))["position"].sum() + store.slice(3, 40)["position"].sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(folder, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    context = multiprocessing.get_context(method)
    store = Store.open(folder, KIND)
    store.slice(0, 10)  # a shard is known before the fork
    queue = context.Queue()
    process = context.Process(target=_sum_of, args=(store, queue))
    process.start()
    position = content()["position"]
    assert queue.get(timeout=120) == int(position.sum() + position[3:40].sum())
    process.join()
    assert process.exitcode == 0


def test_a_pickle_carries_no_data(folder):
    store = Store.open(folder, KIND)
    store.slice(0, ROWS)
    pickled = pickle.dumps(store)
    assert len(pickled) < 20_000
    same(pickle.loads(pickled).slice(0, ROWS), content())


@pytest.mark.parametrize("rows", [None, 0])
def test_no_rows(tmp_path, rows):
    with StoreWriter(tmp_path, KIND, COLUMNS, rows):
        pass
    store = Store.open(tmp_path, KIND)
    assert len(store) == 0
    same(store.slice(0, 0), content(0))
    same(store.select(torch.zeros(0, dtype=torch.int64)), content(0))
    store.verify()
