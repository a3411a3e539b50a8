"""The fused kernels: natively if there is a GPU, otherwise in Triton's interpreter on the CPU.

TRITON_INTERPRET=1 applies to a whole process and has to be set before the kernels are imported. If pytest was started
without it, one test runs this file again in a process with it, which executes the other tests.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from mimic_pl.features import FeatureDims
from mimic_pl.units import attention
from mimic_pl.units.attention import global_to_local
from mimic_pl.units.gates import dual_gate
from mimic_pl.units.kernel_choice import uses_triton
from mimic_pl.units.vdlu import VDLU
from tests import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NATIVE = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if NATIVE else "cpu"
EPS = 1e-5

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
runs_kernels = pytest.mark.skipif(not (INTERPRETED or NATIVE), reason="runs in the interpreter process")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def skip_unless_supported(dtype):
    """Skip dtypes that the kernels do not support on this GPU."""
    if not uses_triton("auto" if NATIVE else "triton", torch.empty(0, dtype=dtype, device=DEVICE)):
        pytest.skip(f"no kernel for {dtype} on this GPU")


def attention_tensors(num_mentions, num_entities, entity_tokens, mention_tokens, width, dtype=torch.float32, scale=1.0):
    shapes = [
        (num_entities, entity_tokens, width),
        (num_entities, width),
        (num_mentions, mention_tokens, width),
        (num_mentions, mention_tokens, width),
        (width,),
        (width,),
    ]
    tensors = [torch.randn(shape, device=DEVICE) for shape in shapes]
    for i in (0, 2, 3):
        tensors[i] = (tensors[i] * (scale if i != 3 else 1)).to(dtype)
    return [tensor.requires_grad_() for tensor in tensors]


def masks(num_mentions, num_entities, entity_tokens, mention_tokens):
    query_mask = torch.arange(entity_tokens) < torch.randint(1, entity_tokens + 1, (num_entities, 1))
    key_mask = torch.arange(mention_tokens) < torch.randint(1, mention_tokens + 1, (num_mentions, 1))
    return {"query_mask": query_mask.long().to(DEVICE), "key_mask": key_mask.to(DEVICE)}


def exact(tensors, **masks):
    return global_to_local(*(tensor.detach().double() for tensor in tensors), EPS, kernel="torch", **masks)


ATTENTION_SHAPES = [
    (1, 1, 1, 1, 16),  # size one everywhere
    (3, 7, 40, 40, 96),  # published sizes: three tiles, the last with one entity; two pieces of tokens and of width
    (2, 20, 5, 17, 33),  # 16 entities per tile, the smallest second pieces
    (2, 3, 77, 20, 24),  # one entity per tile
]


@runs_kernels
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention_equals_float64(shape, masked, dtype):
    """16-bit arguments are not converted; the error comes from float16 attention weights and TF32."""
    skip_unless_supported(dtype)
    torch.manual_seed(sum(shape))
    tensors, padding = attention_tensors(*shape, dtype), masks(*shape[:4]) if masked else {}
    scores = global_to_local(*tensors, EPS, kernel="triton", **padding)
    expected = exact(tensors, **padding)
    assert scores.dtype == torch.float32 and scores.shape == shape[:2]
    tolerance = 2e-5 if dtype == torch.float32 else 2e-3
    assert (scores - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)


@runs_kernels
def test_every_program_handles_its_own_mentions(monkeypatch):
    from mimic_pl.units import triton_attention

    skip_unless_supported(torch.float32)
    monkeypatch.setattr(triton_attention, "_MENTIONS", 4)
    torch.manual_seed(7)
    tensors, padding = attention_tensors(9, 5, 9, 3, 8), masks(9, 5, 9, 3)
    scores = global_to_local(*tensors, EPS, kernel="triton", **padding)
    torch.testing.assert_close(scores.double(), exact(tensors, **padding), rtol=1e-4, atol=1e-4)


@runs_kernels
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_logits_of_hundreds_neither_overflow_nor_vanish(masked):
    skip_unless_supported(torch.float32)
    torch.manual_seed(1)
    shape = (4, 5, 3, 20, 16)
    tensors, padding = attention_tensors(*shape, scale=8.0), masks(*shape[:4]) if masked else {}
    scores = global_to_local(*tensors, EPS, kernel="triton", **padding)
    torch.testing.assert_close(scores.double(), exact(tensors, **padding), rtol=1e-3, atol=1e-3)


@runs_kernels
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attention_gradients_equal_those_of_the_torch_path(masked):
    skip_unless_supported(torch.float32)
    torch.manual_seed(2)
    shape = (3, 5, 4, 6, 20)
    tensors, padding = attention_tensors(*shape), masks(*shape[:4]) if masked else {}
    upstream = torch.randn(shape[:2], device=DEVICE)
    got = torch.autograd.grad(global_to_local(*tensors, EPS, kernel="triton", **padding), tensors, upstream)
    wanted = torch.autograd.grad(global_to_local(*tensors, EPS, kernel="torch", **padding), tensors, upstream)
    for gradient, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@runs_kernels
def test_a_query_that_is_not_finite_stays_with_its_entity():
    skip_unless_supported(torch.float32)
    torch.manual_seed(3)
    tensors = attention_tensors(3, 6, 2, 3, 8)
    with torch.no_grad():
        tensors[0][2, 1, 0], tensors[0][4, 0, 0] = torch.nan, torch.inf
    scores = global_to_local(*tensors, EPS, kernel="triton")
    assert scores.isnan().all(dim=0).tolist() == [False, False, True, False, True, False]
    assert scores[:, [0, 1, 3, 5]].isfinite().all()


@runs_kernels
def test_a_text_of_padding_alone_scores_nan():
    skip_unless_supported(torch.float32)
    torch.manual_seed(6)
    tensors, padding = attention_tensors(3, 4, 2, 5, 8), masks(3, 4, 2, 5)
    padding["query_mask"][1], padding["key_mask"][2] = 0, False
    for kernel in ("triton", "torch"):
        scores = global_to_local(*tensors, EPS, kernel=kernel, **padding)
        assert scores.isnan().tolist() == [[False, True, False, False]] * 2 + [[True] * 4]


@runs_kernels
def test_no_pairs_are_no_scores():
    skip_unless_supported(torch.float32)
    query, context, key, value, weight, bias = attention_tensors(2, 3, 4, 5, 8)
    assert global_to_local(query[:0], context[:0], key, value, weight, bias, EPS, kernel="triton").shape == (2, 0)


@runs_kernels
def test_inputs_that_fit_no_tile_fall_back_to_torch_with_a_warning():
    skip_unless_supported(torch.float32)
    tensors = attention_tensors(2, 3, 2, 300, 8)
    with pytest.warns(UserWarning, match=r"no tile for 2 x 300 tokens of width 8 .* torch computes it"):
        scores = global_to_local(*tensors, EPS, kernel="triton")
    assert torch.equal(scores, global_to_local(*tensors, EPS, kernel="torch"))


@runs_kernels
@pytest.mark.parametrize("fits", [16, None])
def test_a_tile_that_does_not_fit_is_halved_until_one_does(fits, monkeypatch):
    """A GPU with little shared memory, simulated by a launch that fails."""
    from triton.runtime.errors import OutOfResources

    from mimic_pl.units import triton_attention

    skip_unless_supported(torch.float32)
    kernel, tried = triton_attention._normed_product, []

    class Small:
        def __getitem__(self, grid):
            def launch(*args, ROWS, **kwargs):
                tried.append(ROWS)
                if fits is None or fits < ROWS:
                    raise OutOfResources(2, 1, "shared memory")
                return kernel[grid](*args, ROWS=ROWS, **kwargs)

            return launch

    monkeypatch.setattr(triton_attention, "_normed_product", Small())
    monkeypatch.setattr(triton_attention, "_fitting_rows", {})
    tensors = attention_tensors(2, 9, 5, 4, 8)
    for _ in range(2):  # the second time uses the stored tile size
        if fits is None:
            with pytest.warns(UserWarning, match="no tile"):
                scores = global_to_local(*tensors, EPS, kernel="triton")
        else:
            scores = global_to_local(*tensors, EPS, kernel="triton")
        torch.testing.assert_close(scores.double(), exact(tensors), rtol=1e-4, atol=1e-4)
    halved = [rows for rows in (128, 64, 32, 16) if rows <= tried[0]]
    assert tried == [*halved, *([16] if fits else [])]


def dual_gate_tensors(num_queries, num_keys, width, dtype=torch.float32):
    """Both sides of one direction of VDLU, from a unit with perturbed norms and biases."""
    dims = FeatureDims(text=4, image=10)
    unit = VDLU(dims, width).to(DEVICE)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    gate = unit.entity_to_mention
    queries = {"query": torch.randn(num_queries, width, device=DEVICE)}
    keys = {name: torch.randn(num_keys, width, device=DEVICE) for name in ("key", "pooled")}
    bias = gate._bias()
    centred = bias - bias.mean()
    sides = [
        *gate.query_side(queries),
        *gate.key_side(keys),
        bias @ gate.gate.weight[0] + gate.gate.bias,
        centred.square().sum(),
    ]
    sides = [side.detach().to(dtype).requires_grad_() for side in sides]
    return gate(gate.query_side(queries), gate.key_side(keys)), sides


def dual_gate_with(kernel, sides):
    from mimic_pl.units.gates import KeySide, QuerySide

    return dual_gate(QuerySide(*sides[:10]), KeySide(*sides[10:20]), *sides[20:], EPS, EPS, kernel=kernel)


@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 70, 96), (65, 5, 33)], ids=str)
def test_the_algebra_of_the_gates_equals_the_unit(shape):
    torch.manual_seed(sum(shape))
    expected, sides = dual_gate_tensors(*shape)
    torch.testing.assert_close(dual_gate_with("torch", sides), expected, rtol=1e-6, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 70, 96), (65, 5, 33), (0, 4, 16)], ids=str)
def test_gate_and_gradients_equal_the_algebra(shape):
    skip_unless_supported(torch.float32)
    torch.manual_seed(sum(shape))
    _, sides = dual_gate_tensors(*shape)
    doubled = [side.detach().double().requires_grad_() for side in sides]
    expected, scores = dual_gate_with("torch", doubled), dual_gate_with("triton", sides)
    assert scores.shape == shape[:2]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn(shape[:2], device=DEVICE)
    wanted = torch.autograd.grad(expected, doubled, upstream.double())
    for gradient, exact in zip(torch.autograd.grad(scores, sides, upstream), wanted, strict=True):
        assert (gradient - exact).abs().max() <= 1e-3 * (1 + exact.abs().max()) if gradient.numel() else True


@runs_kernels
def test_the_gate_accepts_vectors_of_several_dtypes():
    """Under autocast linear layers return bfloat16 and norms float32."""
    skip_unless_supported(torch.bfloat16)
    torch.manual_seed(4)
    _, sides = dual_gate_tensors(5, 6, 16)
    for i in (0, 1, 10, 11, 12):
        sides[i] = sides[i].detach().bfloat16().requires_grad_()
    rounded = [side.detach().double() for side in sides]
    scores = dual_gate_with("triton", sides)
    # Products of bfloat16; |p~ + q~|^2 and |gate c + k|^2 are sums of squares that partly cancel.
    torch.testing.assert_close(scores.double(), dual_gate_with("torch", rounded), rtol=0.05, atol=0.05)
    assert [g.dtype for g in torch.autograd.grad(scores.sum(), sides)] == [side.dtype for side in sides]


@runs_kernels
def test_a_unit_computed_by_both_kernels_equals_the_literal_formula():
    """VDLU computed with the kernel instead of the algebra, against explicit vectors per pair."""
    skip_unless_supported(torch.float32)
    torch.manual_seed(5)
    dims = FeatureDims(text=4, image=10)
    unit = VDLU(dims, 12).to(DEVICE)
    mentions, entities = (reference.random_features(n, dims) for n in (3, 4))
    expected = reference.pairwise(mentions, entities, lambda *pair: reference.vdlu(unit.cpu(), *pair))
    unit.to(DEVICE)
    m, e = (side(features.map(lambda f: f.to(DEVICE))) for side, features in
            ((unit.mention, mentions), (unit.entity, entities)))  # fmt: skip

    def direction(gate, queries, keys):
        bias = gate._bias()
        scalars = bias @ gate.gate.weight[0] + gate.gate.bias, (bias - bias.mean()).square().sum()
        return dual_gate(gate.query_side(queries), gate.key_side(keys), *scalars, EPS, EPS, kernel="triton")

    score = (direction(unit.entity_to_mention, e, m).T + direction(unit.mention_to_entity, m, e)) / 2
    torch.testing.assert_close(score.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not NATIVE, reason="needs a GPU")
def test_auto_uses_the_kernel_on_a_gpu_and_the_torch_path_its_gpu_blocks():
    skip_unless_supported(torch.bfloat16)
    tensors = attention_tensors(3, 4, 5, 6, 16, torch.bfloat16)
    fused = global_to_local(*tensors, EPS, kernel="triton")
    assert torch.equal(global_to_local(*tensors, EPS), fused)
    attention_by_torch = global_to_local(*tensors, EPS, kernel="torch")
    assert attention_by_torch.dtype == torch.float32
    torch.testing.assert_close(attention_by_torch, fused, rtol=0.05, atol=0.1)
    assert attention._logits_at_once(tensors[0]) == attention.LOGITS_AT_ONCE_GPU


@pytest.mark.skipif(INTERPRETED, reason="the interpreter process compiles nothing")
@pytest.mark.parametrize(("name", "dtype"), [("attention", "bf16"), ("gate", "bf16")])
def test_kernels_compile_for_an_h100_and_fit_its_shared_memory(name, dtype, tmp_path, monkeypatch):
    """Compiled to machine code, which needs no GPU: the interpreter accepts much that the compiler rejects."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from mimic_pl.units import triton_attention, triton_gates

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    low = dtype == "bf16"
    constants = {
        "WIDTH": 96,
        "TYPE": tl.bfloat16 if low else tl.float32,
        "PRECISION": "tf32" if low else "tf32x3",
    }
    vectors = ("query", "key", "value", "query_gated", "target", "pooled", "gated")
    if name == "attention":
        kernel = triton_attention._normed_product
        (d1, d2), (t1, t2) = triton_attention._two_pieces(96), triton_attention._two_pieces(40)
        assert (d1, d2, t1, t2) == (64, 32, 32, 16)
        constants |= {"D1": d1, "D2": d2, "T1": t1, "T2": t2, "PER_TILE": 3, "SEGMENTS": 16, "ROWS": 128}
        constants |= {"MENTIONS": 64, "HAS_WEIGHT": True, "HAS_KEY_MASK": True}
        constants |= {"WEIGHT_TYPE": tl.float16 if low else tl.float32}
    else:
        kernel = triton_gates._dual_gate
        constants |= {"TILE": 64, "PIECE": 32}
    types = dict.fromkeys(vectors, f"*{dtype}") | {"key_mask": "*i8", "scale": "fp32", "eps": "fp32"}
    types |= dict.fromkeys(("norm_sum_eps", "norm_eps"), "fp32")
    types |= dict.fromkeys(("gain", "weight", "scores", "columns", "rows", "scalars"), "*fp32")
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()})
    warps = 4 if name == "attention" and low else 8
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 2})
    assert compiled.metadata.shared <= 227 * 1024
    assert "wgmma" in compiled.asm["ptx"]


def test_two_pieces_hold_their_size_and_waste_no_more_than_one():
    from mimic_pl.units.triton_attention import _two_pieces

    for size in range(1, 257):
        pieces = _two_pieces(size)
        assert size <= sum(pieces) <= max(16, 1 << (size - 1).bit_length())
        assert all(piece == 0 or (piece >= 16 and piece & (piece - 1) == 0) for piece in pieces)
