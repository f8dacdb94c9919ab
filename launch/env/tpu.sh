# shellcheck shell=bash
# What all TPUs share. A program compiled ahead of time runs under the flags it was compiled with:
# source the same file for both. Of several slices, gradients cross the data-centre network while the
# next ones are computed, whatever their sizes.
export LIBTPU_INIT_ARGS="--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true"
export JAX_PLATFORMS=tpu,cpu
