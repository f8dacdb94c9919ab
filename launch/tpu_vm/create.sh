#!/usr/bin/env bash
# Creates a TPU VM at once, if there is none of its name: create.sh [--spot] [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

for flag in ${ARGS[@]+"${ARGS[@]}"}; do
  [ "$flag" = --spot ] || fail "got '$flag', expected --spot or --dry-run"
done
if [ -z "$dry" ] && vm_exists; then
  echo "$TPU_NAME is there already"
else
  run "${tpus[@]}" tpu-vm create "$TPU_NAME" "${place[@]}" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--version=$RUNTIME_VERSION" ${ARGS[@]+"${ARGS[@]}"}
fi
