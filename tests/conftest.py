"""What every test starts from: one thread a product, and three sizes of search."""

import os
import sys

# Before NumPy and torch are imported: they read these once. Small products on several
# threads of a busy machine are up to ten times slower, and their bits may differ.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# deadline=None: a first example pays for imports and warm-up, and would fail by the
# clock alone. print_blob=True: a failure in CI is then replayed from its log.
settings.register_profile("dev", max_examples=10, deadline=None, print_blob=True)
settings.register_profile(
    "ci", max_examples=25, derandomize=True, deadline=None, print_blob=True
)
settings.register_profile("nightly", max_examples=500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture
def cuda(monkeypatch):
    """PyTorch on a GPU as the programs set it up; but for the allocator, undone later.

    Skips the test where there is none.
    """
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use")
    from parity.training import Backend

    for owner, name in (
        (torch.backends.cudnn, "allow_tf32"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    backend = Backend.load("torch", device="cuda")
    backend.prepare()
    yield backend
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
