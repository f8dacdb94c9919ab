"""What has to be set before anything else is imported: eight host devices, quiet libraries."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NPROC", "32")  # XLA's threads: with fewer, collectives wait for each other
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # programs of several tests compile once
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vljax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """``slow_but_for``: of a test of many cases, those that are not named are slow."""
    for item in items:
        for mark in item.iter_markers("slow_but_for"):
            if not set(mark.args) & set(map(str, item.callspec.params.values())):
                item.add_marker("slow")
