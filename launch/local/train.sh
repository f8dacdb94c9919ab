#!/usr/bin/env bash
# Trains on this machine, in one process or in several:
#
#   launch/local/train.sh CONFIG WORKDIR [--processes N] [--devices M] [--gpu] [--dry-run]
#                         [--config.FIELD=VALUE ...]
#
# Each of the N processes has M devices: virtual ones of the CPU, or with --gpu the machine's GPUs,
# M at a time. Each tells what it does in WORKDIR/logs/process_I.log; process 0 here, too.
# SIGTERM and Ctrl-C go to all of them: they save one and the same step and exit with 143 or 130.
# When one fails the others are ended, and its exit code is this script's. A run that was stopped
# goes on where it was when the same command is given again.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2
  exit 2
}

[ $# -ge 2 ] || usage
config=$1 workdir=$2
shift 2

processes=1 devices= gpu= dry=
flags=()
while [ $# -gt 0 ]; do
  case $1 in
    --processes | --devices)
      [[ ${2-} =~ ^[1-9][0-9]*$ ]] || { echo "$0: $1: got '${2-}', expected a number" >&2; exit 2; }
      if [ "$1" = --processes ]; then processes=$2; else devices=$2; fi
      shift ;;
    --gpu) gpu=1 ;;
    --dry-run) dry=1 ;;
    *) flags+=("$1") ;;
  esac
  shift
done

command=(vljax train "--config=$config" "--config.workdir=$workdir" ${flags[@]+"${flags[@]}"})
if [ -n "$devices" ] && [ -z "$gpu" ]; then command+=(--cpu-devices "$devices"); fi

if [ "$processes" = 1 ]; then
  if [ -n "$gpu" ] && [ -n "$devices" ]; then
    CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((devices - 1)))
    export CUDA_VISIBLE_DEVICES
    echo "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES ${command[*]}"
  else
    echo "${command[*]}"
  fi
  [ -n "$dry" ] || exec "${command[@]}"
  exit 0
fi

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

command+=(--coordinator "127.0.0.1:$(free_port)" --processes "$processes")
visible() { # the GPUs of process $1
  seq -s, $(($1 * ${devices:-1})) $((($1 + 1) * ${devices:-1} - 1))
}
for ((i = 0; i < processes; i++)); do
  echo "${gpu:+CUDA_VISIBLE_DEVICES=$(visible "$i") }${command[*]} --process $i"
done
[ -z "$dry" ] || exit 0

mkdir -p "$workdir/logs"
pids=()
set -m # a group for each process: Ctrl-C reaches them through this script alone
for ((i = 0; i < processes; i++)); do
  [ -z "$gpu" ] || export CUDA_VISIBLE_DEVICES=$(visible "$i")
  "${command[@]}" --process "$i" >"$workdir/logs/process_$i.log" 2>&1 &
  pids+=($!)
done
tail -n +1 -f "$workdir/logs/process_0.log" &
tail=$!
set +m

tell_all() {
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}
end_after() { # so many seconds, unless it is told not to
  trap 'kill "$sleeping"; exit' TERM
  trap - EXIT
  sleep "$1" &
  sleeping=$!
  wait "$sleeping"
  tell_all KILL
}
trap 'tell_all TERM' TERM
trap 'tell_all INT' INT
trap 'tell_all KILL; kill "$tail" $timer 2>/dev/null || true' EXIT

code=0 ending= timer=
left=("${pids[@]}")
while [ ${#left[@]} -gt 0 ]; do
  ended=0 finished=
  wait -n -p finished "${left[@]}" || ended=$?
  [ -n "${finished-}" ] || continue # a signal was forwarded
  still=()
  for pid in "${left[@]}"; do [ "$pid" = "$finished" ] || still+=("$pid"); done
  left=(${still[@]+"${still[@]}"})
  [ "$ended" = 0 ] || [ "$code" != 0 ] || code=$ended
  # Those that are left may wait for the one that is gone for ever. Where it was stopped they were,
  # too, and are about to end.
  [ "$ended" != 0 ] && [ ${#left[@]} -gt 0 ] && [ -z "$ending" ] || continue
  ending=1
  if [ "$ended" = 143 ] || [ "$ended" = 130 ]; then
    end_after 60 &
    timer=$!
  else
    echo "$0: process $finished ended with $ended; the others are ended, see $workdir/logs" >&2
    tell_all KILL
  fi
done
sleep 0.2 # for tail
exit "$code"
