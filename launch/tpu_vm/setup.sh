#!/usr/bin/env bash
# Copies this folder to all workers and installs it there, or brings them up to date: setup.sh [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu_vm/common.sh
source "$(dirname "$0")/common.sh"

[ ${#ARGS[@]} = 0 ] || fail "got '${ARGS[0]}', expected --dry-run or nothing"
root=$(cd "$(dirname "$0")/../.." && pwd)
archive=${TMPDIR:-/tmp}/vljax-$TPU_NAME.tar.gz
trap 'rm -f "$archive"' EXIT
run tar --create --gzip --file "$archive" --directory "$root" --exclude=./runs --exclude='./.*' \
  --exclude=__pycache__ .
run "${tpus[@]}" tpu-vm scp "$archive" "$TPU_NAME:vljax.tar.gz" "${place[@]}" --worker=all
on all "mkdir -p vljax && tar -xzf vljax.tar.gz -C vljax && bash vljax/launch/tpu_vm/on_worker.sh setup ${BUCKET-}"
