# shellcheck shell=bash
# What all GPUs share. O1 has XLA hide collectives behind computation; the flags that once asked for
# it one by one are gone, and a flag XLA does not know ends the program.
export JAX_PLATFORMS=cuda
export JAX_OPTIMIZATION_LEVEL=O1
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
