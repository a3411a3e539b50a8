"""What an index stores and returns."""

import pytest
import torch

from mimic_pl.errors import DataError
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex
from mimic_pl.units import Matcher, published_units
from tests import reference
from tests.ranking.tables import add


def states(count):
    return {
        "text": {"query": torch.randn(count, 4, 64) * 7, "mask": torch.ones(count, 4, dtype=torch.int64)},
        "vision": {"key": torch.randn(count, 8)},
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("on_host", [False, True])
def test_blocks_and_selections_return_what_was_added(dtype, on_host):
    torch.manual_seed(0)
    whole = states(23)
    index = MemoryIndex(dtype=dtype, on_host=on_host)
    for start in range(0, 23, 5):
        add(index, {u: {n: t[start : start + 5] for n, t in s.items()} for u, s in whole.items()})
    assert len(index) == 23
    positions = torch.tensor([22, 0, 7, 7])
    selected = index.select(positions).states
    blocks = list(index.blocks(6))
    assert [where.tolist() for where, _ in blocks] == [[*range(s, min(s + 6, 23))] for s in range(0, 23, 6)]
    for unit, state in whole.items():
        for name, tensor in state.items():
            joined = torch.cat([block.states[unit][name] for _, block in blocks])
            assert joined.dtype == tensor.dtype
            assert torch.equal(selected[unit][name], joined[positions])
            if not tensor.is_floating_point() or dtype == "float32":
                assert torch.equal(joined, tensor)
            else:
                # bfloat16 rounds to 8 bits of each number, int8 to 127 steps of the largest of each vector, int4 to 7
                # of the largest of each 32 values of a token.
                step = tensor.abs() * 2**-7 if dtype == "bfloat16" else tensor.abs().amax(-1, keepdim=True) / 126
                if dtype == "int4" and name == "query":
                    groups = tensor.unflatten(-1, (2, 32)).abs().amax(-1) / 6.9
                    step = groups.repeat_interleave(32, dim=-1)
                assert ((joined - tensor).abs() <= step / 2 + 1e-7).all()


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.02), ("int4", 0.15)])
def test_zero_huge_and_tiny_vectors_survive_quantization(dtype, error):
    values = torch.tensor([[0.0, 0.0, 0.0], [3e37, -3e37, 0.0], [1e-30, 2e-30, -2e-30]]).repeat(1, 64)[:, None]
    index = MemoryIndex(dtype=dtype)
    add(index, {"unit": {"values": values}})
    kept = index.select(torch.arange(3)).states["unit"]["values"]
    assert torch.isfinite(kept).all()
    torch.testing.assert_close(kept, values, rtol=error, atol=0.0)


@pytest.mark.parametrize(
    ("dtype", "at_most"), [("float32", 4832 * 4), ("bfloat16", 9_700), ("int8", 5_200), ("int4", 3_300)]
)
def test_bytes_of_an_entity_at_published_sizes(dtype, at_most):
    """The states of the units; 25 bytes of state hashes and finiteness are added."""
    dims = FeatureDims(512, 96)
    matcher = Matcher(dims, published_units())
    index = MemoryIndex(dtype=dtype)
    with torch.no_grad():
        add(index, matcher.entity(reference.random_features(2, dims, tokens=40, patches=50)))
    assert index.bytes_per_entity <= at_most + 25


def test_a_unit_with_small_states_is_stored_as_bfloat16_in_an_int8_index():
    few, many = torch.randn(5, 96), torch.randn(5, 3, 96)
    index = MemoryIndex(dtype="int8")
    add(index, {"few": {"x": few}, "many": {"x": many}})
    kept = index.select(torch.arange(5)).states
    assert torch.equal(kept["few"]["x"], few.bfloat16().float())
    assert not torch.equal(kept["many"]["x"], many.bfloat16().float())


def test_entities_share_a_state_hash_if_and_only_if_their_states_are_equal():
    torch.manual_seed(1)
    table = torch.randn(4, 6)
    index = MemoryIndex()
    which = torch.randint(0, 4, (40,))
    add(index, {"a": {"x": table[which]}, "b": {"x": torch.randn(40, 3)}})
    state_hashes = index.select(torch.arange(40)).state_hashes
    assert torch.equal(state_hashes["a"][:, None] == state_hashes["a"], which[:, None] == which)
    assert len(state_hashes["b"].unique()) == 40


def test_entities_are_found_by_id_and_by_order_number():
    whole = states(9)
    index = MemoryIndex()
    order = torch.tensor([70, 3, 41, 5, 0, 9, 8, 100, 2])
    ids = [f"Q{number}" for number in order.tolist()]
    for part in (slice(0, 2), slice(2, 3), slice(3, 9)):
        some = {unit: {name: tensor[part] for name, tensor in state.items()} for unit, state in whole.items()}
        index.add(ids[part], some, order[part])
    assert index.ids == ids and torch.equal(index.order, order) and len(index) == 9
    assert index.order_of(["Q41", "Q2", "Q41"]).tolist() == [41, 2, 41]
    assert index.ids_of(torch.tensor([100, 0])) == ["Q100", "Q0"]
    found = index.select(torch.tensor([9, 70, 9])).states["text"]["query"]
    assert torch.equal(found, whole["text"]["query"][[5, 0, 5]])
    assert index.holds(torch.tensor([4, 5])).tolist() == [False, True]
    with pytest.raises(DataError, match="no entity 'Q6', 'Q7'"):
        index.order_of(["Q41", "Q6", "Q7"])
    for number in (4, 101):
        with pytest.raises(DataError, match=f"no entity with the order number {number}"):
            index.select(torch.tensor([3, number]))
    index.add(["new"], states(1))
    assert index.order_of(["new"]).tolist() == [101], "one more than the largest"


def test_an_entity_is_added_once():
    index = MemoryIndex()
    index.add(["a", "b"], states(2))
    with pytest.raises(DataError, match="id 'b' is already in the index"):
        index.add(["c", "b"], states(2))
    with pytest.raises(DataError, match="id 'd' is already in the index"):
        index.add(["d", "d"], states(2))
    with pytest.raises(DataError, match="order number 1 is already in the index"):
        index.add(["c"], states(1), torch.tensor([1]))
    with pytest.raises(ValueError, match="2 ids, 2 order numbers, states of 3 entities"):
        index.add(["c", "d"], states(3))
    index.add(["c", "d"], states(2))
    assert index.ids == ["a", "b", "c", "d"] and index.order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("capacity", "at_most"), [(0, 20), (500, 1)])
def test_adding_one_by_one_rarely_reallocates(capacity, at_most):
    """And never with a capacity, so that the states are never in memory twice."""
    index, memory = MemoryIndex(capacity=capacity), set()
    for number in range(500):
        index.add([str(number)], {"a": {"x": torch.full((1, 2), float(number))}})
        memory.add(index.order.data_ptr())
    assert len(memory) <= at_most
    assert torch.equal(index.select(torch.arange(500)).states["a"]["x"][:, 0], torch.arange(500.0))
