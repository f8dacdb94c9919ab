# shellcheck shell=bash
# shellcheck source=launch/env/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
# Its vector memory is 128 MiB: leave fused matmuls 96 of them.
export LIBTPU_INIT_ARGS="$LIBTPU_INIT_ARGS --xla_tpu_scoped_vmem_limit_kib=98304"
