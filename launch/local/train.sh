#!/usr/bin/env bash
# Trains on this machine: launch/local/train.sh CONFIG WORKDIR [--dry-run] [--config.FIELD=VALUE ...]
#
# A run that was stopped goes on where it was when the same command is given again.
set -euo pipefail

usage() {
  echo "usage: $0 CONFIG WORKDIR [--dry-run] [--config.FIELD=VALUE ...]" >&2
  echo "  for example: $0 configs/tiny.py:stage=all runs/tiny" >&2
  exit 2
}

[ $# -ge 2 ] || usage
config=$1 workdir=$2
shift 2

dry=
flags=()
for flag in "$@"; do
  if [ "$flag" = --dry-run ]; then dry=1; else flags+=("$flag"); fi
done

command=(vljax train "--config=$config" "--config.workdir=$workdir" ${flags[@]+"${flags[@]}"})
echo "${command[*]}"
[ -n "$dry" ] || exec "${command[@]}"
