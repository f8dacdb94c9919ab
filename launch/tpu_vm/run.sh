#!/usr/bin/env bash
# Starts a run on all workers: run.sh CONFIG WORKDIR [--dry-run] [flags of vljax train]
#
# It lives in tmux: a lost connection does not stop it. Where it runs already nothing is done. Given
# again after it has ended, it goes on from its last checkpoint. Paths are those of the workers,
# relative to the repository's folder: ../bucket/runs/tiny lies in the bucket.
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

[ ${#ARGS[@]} -ge 2 ] || fail "got ${#ARGS[@]} arguments, expected: CONFIG WORKDIR [--dry-run] [flags of vljax train]"
train_command "${ARGS[@]}"
on all "bash vljax/launch/tpu_vm/on_worker.sh start $CHIP $(quoted "${TRAIN[@]}")"
