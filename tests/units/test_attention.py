"""TGLU's global-to-local term against the literal formula, pair by pair."""

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.units import TGLU, attention
from mimic_pl.units.attention import global_to_local, global_to_local_pairs
from tests import reference

EPS = 1e-5


def random_tensors(num_mentions, num_entities, entity_tokens, mention_tokens, width, dtype=torch.float64, scale=1.0):
    """Query, context, key, value, and weight and bias of the norm, all of which require gradients."""
    shapes = [
        (num_entities, entity_tokens, width),
        (num_entities, width),
        (num_mentions, mention_tokens, width),
        (num_mentions, mention_tokens, width),
        (width,),
        (width,),
    ]
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    for i in (0, 2):
        tensors[i] *= scale
    return [tensor.requires_grad_() for tensor in tensors]


def random_masks(num_mentions, num_entities, entity_tokens, mention_tokens):
    """Ragged masks with at least one real token."""
    return {
        "query_mask": (torch.arange(entity_tokens) < torch.randint(1, entity_tokens + 1, (num_entities, 1))).long(),
        "key_mask": (torch.arange(mention_tokens) < torch.randint(1, mention_tokens + 1, (num_mentions, 1))).long(),
    }


def literal(query, context, key, value, weight, bias, eps, query_mask=None, key_mask=None):
    """The published order of operations, one pair at a time, without padding tokens."""
    rows = []
    for m in range(len(key)):
        real_keys = slice(None) if key_mask is None else key_mask[m].bool()
        row = []
        for e in range(len(query)):
            real_queries = slice(None) if query_mask is None else query_mask[e].bool()
            q, k, v = query[e][real_queries], key[m][real_keys], value[m][real_keys]
            contexts = torch.softmax(q @ k.T / k.shape[-1] ** 0.5, dim=-1) @ v
            row.append(context[e] @ layer_norm(contexts.mean(dim=0), bias.shape, weight, bias, eps))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gradients(function, tensors, upstream, **masks):
    scores = function(*tensors, EPS, **masks)
    return scores, torch.autograd.grad(scores, tensors, upstream.to(scores.dtype))


SHAPES = [(1, 1, 1, 1, 8), (1, 5, 3, 4, 6), (4, 1, 3, 4, 6), (5, 7, 1, 3, 6), (5, 7, 3, 1, 6), (6, 5, 4, 9, 12)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_scores_and_gradients_equal_the_literal_formula(shape, masked):
    torch.manual_seed(sum(shape))
    tensors, masks = random_tensors(*shape), random_masks(*shape[:4]) if masked else {}
    upstream = torch.randn(shape[:2], dtype=torch.float64)
    expected, expected_gradients = gradients(literal, tensors, upstream, **masks)
    scores, got = gradients(global_to_local, tensors, upstream, **masks)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    for gradient, wanted in zip(got, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_gradients_pass_gradcheck(masked, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE_CPU", 24)
    masks = random_masks(3, 4, 2, 3) if masked else {}
    tensors = random_tensors(3, 4, 2, 3, 5)
    assert torch.autograd.gradcheck(lambda *args: global_to_local(*args, EPS, **masks), tensors)


@pytest.mark.parametrize("logits", [1, 12, 100, 250, 1 << 20])
def test_block_sizes_do_not_change_the_result(logits, monkeypatch):
    torch.manual_seed(2)
    tensors, masks = random_tensors(7, 11, 3, 4, 6), random_masks(7, 11, 3, 4)
    upstream = torch.randn(7, 11, dtype=torch.float64)
    expected, expected_gradients = gradients(global_to_local, tensors, upstream, **masks)
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE_CPU", logits)
    scores, got = gradients(global_to_local, tensors, upstream, **masks)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(got, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logits", [1, 12, 100, 250, 1 << 20])
@pytest.mark.parametrize(("num_mentions", "num_entities"), [(1, 1), (7, 11), (1, 40), (40, 1), (0, 3), (3, 0)])
def test_blocks_cover_every_pair_once_and_keep_to_their_size(logits, num_mentions, num_entities, monkeypatch):
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE_CPU", logits)
    times = torch.zeros(num_mentions, num_entities)
    for mentions, entities in attention._blocks(torch.empty(num_entities, 3, 2), torch.empty(num_mentions, 4, 2)):
        times[mentions, entities] += 1
        assert times[mentions, entities].numel() * 12 <= max(logits, 12)
    assert times.eq(1).all()


@settings(max_examples=40)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(2, 20), st.booleans(),
    st.sampled_from([0.1, 1.0, 5.0]), st.integers(0, 99),
)  # fmt: skip
def test_float32_is_as_close_as_float32_allows(mentions, entities, s, t, width, masked, scale, seed):
    torch.manual_seed(seed)
    shape = (mentions, entities, s, t, width)
    tensors, masks = random_tensors(*shape, torch.float32, scale), random_masks(*shape[:4]) if masked else {}
    upstream = torch.randn(shape[:2])
    doubled = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = literal(*doubled, EPS, **masks)
    plain = literal(*tensors, EPS, **masks)
    scores, got = gradients(global_to_local, tensors, upstream, **masks)
    assert scores.dtype == torch.float32
    # The tolerance is the error of the literal order in float32: narrow norms divide by small deviations.
    allowed = 20 * (plain - expected).abs().max() + 2e-5 * expected.abs().max()
    assert (scores - expected).abs().max() <= allowed
    for gradient, wanted in zip(got, torch.autograd.grad(expected, doubled, upstream.double()), strict=True):
        assert (gradient - wanted).abs().max() <= 1e-3 * (1 + wanted.abs().max())


@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_logits_of_hundreds_neither_overflow_nor_vanish(offset, masked):
    torch.manual_seed(3)
    shape = (4, 5, 3, 6, 4)
    tensors, masks = random_tensors(*shape, torch.float32, scale=6.0), random_masks(*shape[:4]) if masked else {}
    with torch.no_grad():  # q . k / 2 is shifted by the offset for every pair of tokens
        tensors[0][..., 0], tensors[2][..., 0] = 10.0, offset / 5
    logits = tensors[0][:, :, None, None] @ tensors[2].mT / 2
    assert (logits.mean() - offset).abs() < 30
    assert logits.abs().max() > 100
    doubled = [tensor.detach().double().requires_grad_() for tensor in tensors]
    upstream = torch.randn(shape[:2])
    expected, expected_gradients = gradients(literal, doubled, upstream, **masks)
    scores, got = gradients(global_to_local, tensors, upstream, **masks)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=2e-3)
    for gradient, wanted in zip(got, expected_gradients, strict=True):
        assert (gradient - wanted).abs().max() <= 5e-3 * (1 + wanted.abs().max())


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_operations_of_other_devices_give_the_same_result(masked, monkeypatch):
    """On other devices softmax is that of torch; here those operations run on the CPU."""
    torch.manual_seed(8)
    shape = (5, 6, 3, 4, 8)
    tensors, masks = random_tensors(*shape), random_masks(*shape[:4]) if masked else {}
    upstream = torch.randn(shape[:2], dtype=torch.float64)
    rows = {name: mask[:5] for name, mask in masks.items()}
    pairs = [*(tensor[:5] for tensor in tensors[:4]), *tensors[4:]]
    expected, expected_gradients = gradients(global_to_local, tensors, upstream, **masks)
    monkeypatch.setattr(attention, "_on_cpu", lambda tensor: False)
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE_GPU", 60)
    scores, got = gradients(global_to_local, tensors, upstream, **masks)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    for gradient, wanted in zip(got, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)
    selected = global_to_local_pairs(*pairs, EPS, **rows)
    torch.testing.assert_close(selected, expected.diagonal()[:5], rtol=1e-10, atol=1e-10)


def test_padding_may_hold_anything_finite():
    torch.manual_seed(4)
    tensors, masks = random_tensors(3, 4, 5, 6, 8, torch.float32), random_masks(3, 4, 5, 6)
    expected = global_to_local(*tensors, EPS, **masks)
    with torch.no_grad():
        tensors[0][masks["query_mask"] == 0] = 50.0
        for i in (2, 3):
            tensors[i][masks["key_mask"] == 0] = -1e4
    torch.testing.assert_close(global_to_local(*tensors, EPS, **masks), expected, rtol=1e-5, atol=1e-5)


def test_a_value_that_is_not_finite_stays_with_its_entity():
    tensors = random_tensors(3, 4, 5, 6, 8, torch.float32)
    with torch.no_grad():
        tensors[0][2, 1, 0] = torch.nan
    assert global_to_local(*tensors, EPS).isnan().any(dim=0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("path", ["autocast", "arguments"])
def test_bfloat16_rounds_the_large_product_alone(path):
    """Products of bfloat16 carry 8 bits: scores agree to a hundredth of their spread, gradients to a fiftieth."""
    torch.manual_seed(5)
    tensors = random_tensors(8, 9, 12, 10, 32, torch.float32)
    upstream = torch.randn(8, 9)
    doubled = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected, expected_gradients = gradients(literal, doubled, upstream)
    if path == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            scores = global_to_local(*tensors, EPS)
        got = torch.autograd.grad(scores, tensors, upstream)
    else:
        for i in (0, 2, 3):
            tensors[i] = tensors[i].detach().bfloat16().requires_grad_()
        scores, got = gradients(global_to_local, tensors, upstream)
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 0.01 * expected.std()
    for tensor, gradient, wanted in zip(tensors, got, expected_gradients, strict=True):
        assert gradient.dtype == tensor.dtype
        assert (gradient - wanted).abs().max() < 0.02 * (wanted.abs().max())


def test_autocast_does_not_change_float64():
    tensors = random_tensors(2, 3, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        scores = global_to_local(*tensors, EPS)
    assert torch.equal(scores, global_to_local(*tensors, EPS))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_it_is_the_local_half_of_the_units_score(mask_padding):
    torch.manual_seed(6)
    dims = FeatureDims(text=12, image=10)
    unit = TGLU(dims, 8, mask_padding).double()
    mentions = reference.random_features(4, dims, dtype=torch.float64)
    entities = reference.random_features(5, dims, tokens=3, dtype=torch.float64)
    m, e = unit.mention(mentions), unit.entity(entities)
    norm = unit.norm
    local = global_to_local(
        e["query"], e["context"], m["key"], m["value"], norm.weight, norm.bias, norm.eps, e.get("mask"), m.get("mask")
    )
    expected = reference.pairwise(mentions, entities, lambda *pair: reference.tglu(unit, *pair))
    torch.testing.assert_close((m["global"] @ e["global"].T + local) / 2, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("logits", [1, 40, 1 << 20])
def test_selected_pairs_equal_those_of_the_score_matrix(dtype, masked, logits, monkeypatch):
    torch.manual_seed(7)
    shape = (5, 6, 3, 4, 8)
    query, context, key, value, weight, bias = tensors = random_tensors(*shape, dtype)
    masks = random_masks(*shape[:4]) if masked else {}
    m, e = torch.cartesian_prod(torch.arange(5), torch.arange(6))[torch.randperm(30)].T
    rows = {name: mask[e if name == "query_mask" else m] for name, mask in masks.items()}
    expected = literal(*(tensor.double() for tensor in tensors), EPS, **masks)[m, e]
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE_CPU", logits)
    got = global_to_local_pairs(query[e], context[e], key[m], value[m], weight, bias, EPS, **rows)
    assert got.dtype == dtype and not got.requires_grad
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_no_pairs_are_no_scores():
    query, context, key, value, weight, bias = random_tensors(2, 3, 4, 5, 6)
    assert global_to_local_pairs(query[:0], context[:0], key[:0], value[:0], weight, bias, EPS).shape == (0,)
    assert global_to_local(query[:0], context[:0], key, value, weight, bias, EPS).shape == (2, 0)
    assert global_to_local(query, context, key[:0], value[:0], weight, bias, EPS).shape == (0, 3)


def test_autograd_keeps_nothing_larger_than_an_argument():
    tensors = random_tensors(30, 30, 8, 8, 16, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        global_to_local(*tensors, EPS)
    assert max(tensor.numel() for tensor in kept) <= max(tensor.numel() for tensor in tensors)


@pytest.mark.slow
def test_memory_of_a_training_step_does_not_grow_with_the_pairs():
    """256 x 256 pairs of 40 x 40 tokens of 96, float32.

    Arguments and gradients are 24 MB, a few blocks of 4 MB come and go, scores and gradient are 0.5 MB. One
    [entities, mentions, tokens, 96] tensor would be 1 GB, the attention itself 420 MB, weights averaged over the
    entity's tokens 10 MB.
    """
    code = """
        import resource
        import torch
        from mimic_pl.units.attention import global_to_local

        def step(batch):
            shapes = [(batch, 40, 96), (batch, 96), (batch, 40, 96), (batch, 40, 96), (96,), (96,)]
            tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
            global_to_local(*tensors, 1e-5).sum().backward()

        torch.set_num_threads(1)
        step(24)  # loads what the libraries load once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step(256)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in kilobytes on Linux only")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_triton_on_the_cpu_is_rejected_with_advice(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r'kernel = "triton" cannot run: .*Use kernel = "auto" or "torch"'):
        global_to_local(*random_tensors(1, 1, 1, 1, 2, torch.float32), EPS, kernel="triton")


def test_triton_in_float64_is_rejected():
    with pytest.raises(ConfigError, match="triton"):
        global_to_local(*random_tensors(1, 1, 1, 1, 2), EPS, kernel="triton")


def test_an_unknown_kernel_is_rejected():
    with pytest.raises(ConfigError, match="'cuda' is unknown"):
        global_to_local(*random_tensors(1, 1, 1, 1, 2), EPS, kernel="cuda")


def test_triton_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what makes an import of it fail
    tensors = random_tensors(2, 3, 1, 1, 2, torch.float32)
    assert global_to_local(*tensors, EPS, kernel="auto").shape == (2, 3)
    with pytest.raises(ConfigError, match="triton is not installed"):
        global_to_local(*tensors, EPS, kernel="triton")
