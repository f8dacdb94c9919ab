#!/usr/bin/env bash
# Queues for a TPU VM and says how the request stands: queue.sh [--spot] [--dry-run]
#
# A request that has failed or was preempted is deleted and made again.
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

for flag in ${ARGS[@]+"${ARGS[@]}"}; do
  [ "$flag" = --spot ] || fail "got '$flag', expected --spot or --dry-run"
done
request() {
  run "${tpus[@]}" queued-resources create "$TPU_NAME" "${place[@]}" "--node-id=$TPU_NAME" \
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION" ${ARGS[@]+"${ARGS[@]}"}
}

state=
[ -n "$dry" ] || state=$(queued_state)
case $state in
  '') request ;;
  SUSPENDED | SUSPENDING | FAILED)
    run "${tpus[@]}" queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
    request
    ;;
  *) echo "$TPU_NAME: $state" ;;
esac
