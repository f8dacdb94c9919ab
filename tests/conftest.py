"""What has to be set before anything else is imported: eight host devices, quiet libraries."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NPROC", "32")  # XLA's threads: with fewer, collectives wait for each other

import jax

jax.config.update("jax_num_cpu_devices", 8)
