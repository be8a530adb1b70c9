"""Products and tanh in given memory, whichever library computes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs import processor
from marl.nn import kernels


@pytest.fixture(params=[True, False], ids=["NumPy", "PyTorch"], autouse=True)
def _by_numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BY_NUMPY", request.param)
    monkeypatch.setattr(kernels, "LEAST", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(7, 5, 3), (9, 1, 4), (0, 3, 2), (1, 6, 1)])
def test_products_are_those_of_matrices_and_lie_where_they_were_asked_for(
    rows: int, inner: int, columns: int, dtype: torch.dtype
) -> None:
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=dtype)

    a, b, bias = drawn(rows, inner), drawn(inner, columns), drawn(columns)
    wide = drawn(rows, columns + 2)
    untouched, out = wide[:, :2].clone(), wide[:, 2:]
    assert kernels.product(a, b, out) is out
    assert torch.allclose(out, a @ b, atol=1e-6)
    assert torch.equal(wide[:, :2], untouched)
    assert torch.allclose(kernels.new_product(a, b), a @ b, atol=1e-6)
    assert torch.allclose(kernels.affine(bias, a, b, out), a @ b + bias, atol=1e-6)
    before = out.clone()
    assert kernels.add_product(out, a, b) is out
    assert torch.allclose(out, before + a @ b, atol=1e-6)
    # As the weights' gradients ask for it: of transposed matrices, into a transposed one.
    weight = torch.empty(columns, rows, dtype=dtype)
    kernels.product(a, b, weight.t())
    assert torch.allclose(weight, (a @ b).t(), atol=1e-6)
    gram = torch.empty(inner, columns, dtype=dtype)
    kernels.product(a.t(), out, gram)
    assert torch.allclose(gram, a.t() @ out, atol=1e-6)


@torch.no_grad()
def test_parameters_are_read_as_numbers() -> None:
    weight = torch.nn.Parameter(torch.eye(2))
    assert kernels.new_product(torch.tensor([[1.0, 2.0]]), weight).tolist() == [[1.0, 2.0]]


def test_tanh_is_that_of_twice_the_precision() -> None:
    x = torch.linspace(-20.0, 20.0, 1001)
    exact = x.double().tanh()
    wide = torch.zeros(1001, 2)
    wide[:, 0] = x
    assert torch.allclose(kernels.tanh_(wide[:, 0]).double(), exact, atol=5e-7)
    assert not bool(wide[:, 1].any())


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_passes_without_a_warning() -> None:
    x = torch.tensor([[torch.inf, torch.nan], [3e38, -3e38]])
    found = kernels.new_product(x, torch.full((2, 2), 10.0))
    assert not bool(torch.isfinite(found[0]).any())
    assert bool(torch.isnan(kernels.tanh_(torch.tensor([torch.nan]))))


AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n\n"


@pytest.mark.parametrize(
    ("cpu", "is_loaded", "variable", "expected"),
    [
        (AMD, False, None, True),
        (AMD, False, "1", True),
        (AMD, False, "4", False),
        (AMD, True, None, False),
        (AMD, True, "1", True),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), False, None, False),
        (None, False, None, False),
    ],
)
def test_numpy_is_preferred_on_amd_if_each_product_keeps_to_one_thread(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpu: str | None,
    is_loaded: bool,
    variable: str | None,
    expected: bool,
) -> None:
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setenv(processor.THREADS, variable or "")  # so that the test's end restores it
    if variable is None:
        monkeypatch.delenv(processor.THREADS)
    if not is_loaded:
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
    assert processor.prefers_numpy(tmp_path / "cpuinfo") is expected
    if variable is None:
        assert (os.environ.get(processor.THREADS) == "1") is expected


def test_the_choice_is_made_before_numpy_is_loaded() -> None:
    code = (
        "import sys, envs, os; assert 'numpy' not in sys.modules; "
        "from envs.processor import PREFERS_NUMPY, THREADS; "
        "print(PREFERS_NUMPY, os.environ.get(THREADS)); import marl, marl.nn.kernels"
    )
    environment = {name: x for name, x in os.environ.items() if name != processor.THREADS}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    is_amd = (
        "AuthenticAMD" in Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else False
    )
    assert done.stdout.split() == (["True", "1"] if is_amd else ["False", "None"])
