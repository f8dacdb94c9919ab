# shellcheck shell=bash
# shellcheck source=launch/env/gpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
# Hopper alone: NVSwitch reduces in the network, and one queue keeps collectives in their order.
export NCCL_NVLS_ENABLE=1
export CUDA_DEVICE_MAX_CONNECTIONS=1
