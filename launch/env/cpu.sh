# shellcheck shell=bash
# Virtual devices are asked for by vljax train --cpu-devices.
export JAX_PLATFORMS=cpu
export OPENBLAS_NUM_THREADS=1
