"""What every test starts from: one thread a product, and three sizes of search."""

import os

# Before NumPy and torch are imported: they read these once. Small products on several
# threads of a busy machine are up to ten times slower, and their bits may differ.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from hypothesis import settings  # noqa: E402

# deadline=None: a first example pays for imports and warm-up, and would fail by the
# clock alone. print_blob=True: a failure in CI is then replayed from its log.
settings.register_profile("dev", max_examples=10, deadline=None, print_blob=True)
settings.register_profile(
    "ci", max_examples=25, derandomize=True, deadline=None, print_blob=True
)
settings.register_profile("nightly", max_examples=500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
