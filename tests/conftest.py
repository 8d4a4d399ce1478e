"""Four simulated CPU devices for every test, set before jax is first imported.

Programs are compiled without the costlier optimisations, and what one process has compiled the
others read from disk: most of the tests' time is compiling.
"""

import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()

_COMPILED = "JAX_COMPILATION_CACHE_DIR"
_OURS = None
if _COMPILED not in os.environ:  # The first process of the run, whose folder the others inherit.
    _OURS = os.environ[_COMPILED] = tempfile.mkdtemp(prefix="rlhf_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure():
    """Leave nothing behind."""
    if _OURS:
        shutil.rmtree(_OURS, ignore_errors=True)
