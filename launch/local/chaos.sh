#!/usr/bin/env bash
# Kills a real run of the tiny model again and again, and compares what it leaves with what an
# undisturbed one does, bit for bit:
#
#   launch/local/chaos.sh FOLDER [KILLS] [PROCESSES] [--config.FIELD=VALUE ...]
#
# By default 20 kills of one process. FOLDER must not be there; both runs are kept in it.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ $# -ge 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2; exit 2; }
folder=$1
shift
kills=20 processes=1
[[ ${1-} =~ ^[0-9]+$ ]] && { kills=$1; shift; }
[[ ${1-} =~ ^[0-9]+$ ]] && { processes=$1; shift; }

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$folder/cache}
exec python launch/local/chaos.py "$folder" --kills "$kills" --processes "$processes" -- \
  vljax train --config=configs/tiny.py:stage=text --config.workdir={workdir} \
  --config.world.clips=50 --config.steps=120 --config.save_every=4 --config.log_every=1 \
  --cpu-devices 1 "$@"
