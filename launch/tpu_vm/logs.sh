#!/usr/bin/env bash
# Follows what a worker says: logs.sh [WORKER, 0 by default] [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

[ ${#ARGS[@]} -le 1 ] || fail "got ${#ARGS[@]} arguments, expected at most one: the number of a worker"
on "${ARGS[0]:-0}" "tail -n 100 -F vljax/run.log"
