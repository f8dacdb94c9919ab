#!/usr/bin/env bash
# Deletes the TPU VM and its place in the queue, whichever there is: delete.sh [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

[ ${#ARGS[@]} = 0 ] || fail "got '${ARGS[0]}', expected --dry-run or nothing"
if [ -n "$dry" ] || [ -n "$(queued_state)" ]; then
  run "${tpus[@]}" queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
fi
if [ -n "$dry" ] || vm_exists; then
  run "${tpus[@]}" tpu-vm delete "$TPU_NAME" "${place[@]}" --quiet
fi
