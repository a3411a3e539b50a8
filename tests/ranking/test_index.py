"""What an index keeps, and what it hands out."""

import pytest
import torch

from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex
from mimic_pl.units import Matcher, published_units
from tests import reference


def states(count):
    return {
        "text": {"query": torch.randn(count, 4, 48) * 7, "mask": torch.ones(count, 4, dtype=torch.int64)},
        "vision": {"key": torch.randn(count, 8)},
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("on_host", [False, True])
def test_blocks_and_selections_are_what_was_put_in(dtype, on_host):
    torch.manual_seed(0)
    whole = states(23)
    index = MemoryIndex(23, dtype=dtype, on_host=on_host)
    for start in range(0, 23, 5):
        index.append({u: {n: t[start : start + 5] for n, t in s.items()} for u, s in whole.items()})
    assert len(index) == 23
    positions = torch.tensor([22, 0, 7, 7])
    picked = index.select(positions).states
    blocks = list(index.blocks(6))
    assert [where.tolist() for where, _ in blocks] == [[*range(s, min(s + 6, 23))] for s in range(0, 23, 6)]
    for unit, state in whole.items():
        for name, tensor in state.items():
            joined = torch.cat([block.states[unit][name] for _, block in blocks])
            assert joined.dtype == tensor.dtype
            assert torch.equal(picked[unit][name], joined[positions])
            if not tensor.is_floating_point() or dtype == "float32":
                assert torch.equal(joined, tensor)
            else:
                # bfloat16 rounds to 8 bits of each number, int8 to 127 steps of the largest of each vector.
                step = tensor.abs() * 2**-7 if dtype == "bfloat16" else tensor.abs().amax(-1, keepdim=True) / 126
                assert ((joined - tensor).abs() <= step / 2 + 1e-7).all()


def test_vectors_of_zeros_and_of_huge_and_tiny_numbers_survive_8_bits():
    values = torch.tensor([[0.0, 0.0, 0.0], [3e37, -1e37, 0.0], [1e-30, 2e-30, -1e-30]]).repeat(1, 50)
    index = MemoryIndex(3, dtype="int8")
    index.append({"unit": {"values": values}})
    kept = index.select(torch.arange(3)).states["unit"]["values"]
    assert torch.isfinite(kept).all()
    torch.testing.assert_close(kept, values, rtol=0.02, atol=0.0)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 4832 * 4), ("bfloat16", 9_700), ("int8", 5_200)])
def test_bytes_of_an_entity_at_published_sizes(dtype, most):
    """The numbers of the units; 25 bytes of state_hashes and finiteness come on top."""
    dims = FeatureDims(512, 96)
    matcher = Matcher(dims, published_units())
    index = MemoryIndex(2, dtype=dtype)
    with torch.no_grad():
        index.append(matcher.entity(reference.random_features(2, dims, tokens=40, patches=50)))
    assert index.bytes_per_entity <= most + 25


def test_a_unit_of_few_numbers_keeps_them_in_bfloat16_where_others_have_8_bits():
    few, many = torch.randn(5, 96), torch.randn(5, 3, 96)
    index = MemoryIndex(5, dtype="int8")
    index.append({"few": {"x": few}, "many": {"x": many}})
    kept = index.select(torch.arange(5)).states
    assert torch.equal(kept["few"]["x"], few.bfloat16().float())
    assert not torch.equal(kept["many"]["x"], many.bfloat16().float())


def test_equal_entities_are_of_one_kind_and_others_are_not():
    torch.manual_seed(1)
    table = torch.randn(4, 6)
    index = MemoryIndex(40)
    which = torch.randint(0, 4, (40,))
    index.append({"a": {"x": table[which]}, "b": {"x": torch.randn(40, 3)}})
    state_hashes = index.select(torch.arange(40)).state_hashes
    assert torch.equal(state_hashes["a"][:, None] == state_hashes["a"], which[:, None] == which)
    assert len(state_hashes["b"].unique()) == 40


def test_more_entities_than_announced_are_refused():
    index = MemoryIndex(3)
    index.append(states(2))
    with pytest.raises(ValueError, match="3 entities"):
        index.append(states(2))
