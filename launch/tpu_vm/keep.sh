#!/usr/bin/env bash
# Sees a run through on spot VMs: keep.sh CONFIG WORKDIR [--dry-run] [flags of vljax train]
#
# Queues, sets up, starts; and does so again after each preemption, until the run is done. It may be
# ended and given again at any time. PAUSE: seconds between two looks (60). WORKDIR must outlast the
# VM: ../bucket/runs/NAME.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/tpu_vm/common.sh
source "$here/common.sh"

[ ${#ARGS[@]} -ge 2 ] || fail "got ${#ARGS[@]} arguments, expected: CONFIG WORKDIR [--dry-run] [flags of vljax train]"
need BUCKET

if [ -n "$dry" ]; then
  echo "# until the run is done; queue.sh also whenever the VM was preempted"
  bash "$here/queue.sh" --spot --dry-run
  bash "$here/setup.sh" --dry-run
  exec bash "$here/run.sh" "${ARGS[@]}" --dry-run
fi

start() {
  bash "$here/setup.sh" && bash "$here/run.sh" "${ARGS[@]}"
}

# "absent", "running", "ended CODE"; or nothing when the worker does not answer.
told() {
  "${tpus[@]}" tpu-vm ssh "$TPU_NAME" "${place[@]}" --worker=0 \
    --command='bash vljax/launch/tpu_vm/on_worker.sh status 2>/dev/null || echo absent' 2>/dev/null || true
}

while true; do
  if [ "$(queued_state)" != ACTIVE ]; then
    bash "$here/queue.sh" --spot || echo "$TPU_NAME: the request did not succeed; trying again"
  else
    status=$(told)
    echo "$TPU_NAME: ${status:-does not answer}"
    case $status in
      absent) start || echo "$TPU_NAME: could not start; trying again" ;;
      'ended 0') exit 0 ;;
      ended*) # it was told to stop, or has failed: no reason to try for ever, unless the VM goes now
        sleep "${PAUSE:-60}"
        [ "$(queued_state)" != ACTIVE ] || exit "${status#ended }"
        ;;
    esac
  fi
  sleep "${PAUSE:-60}"
done
