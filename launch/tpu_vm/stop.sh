#!/usr/bin/env bash
# Has the run save a step and end, on all workers: stop.sh [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

[ ${#ARGS[@]} = 0 ] || fail "got '${ARGS[0]}', expected --dry-run or nothing"
on all "bash vljax/launch/tpu_vm/on_worker.sh stop"
