#!/usr/bin/env bash
# A real SLURM on this one machine, to try the job scripts: one_machine.sh start|stop FOLDER [--dry-run]
#
# Needs root and Debian's packages slurm-wlm and munge; no systemd. Keys, sockets, logs and the state
# of the queue live in FOLDER; stop ends all daemons and jobs and deletes it. start prints what to
# export before sbatch and squeue. SLURM_CPUS and SLURM_GPUS are what the node claims to have (the
# machine's processors; none): the GPUs lead to /dev/null, to see who would be given which.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"

take_dry_run "$@"
[ ${#ARGS[@]} = 2 ] || fail "got ${#ARGS[@]} arguments, expected: start|stop FOLDER [--dry-run]"
action=${ARGS[0]} folder=$(realpath -m "${ARGS[1]}")
cpus=${SLURM_CPUS:-$(nproc)} gpus=${SLURM_GPUS:-0}

free_port() {
  local port
  for port in $(seq "$1" "$(($1 + 200))"); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
  done
  fail "got no free port from $1 on; name another by SLURM_PORT"
}

# Jobs find the first task's host by the node's name, so that name has to resolve: localhost does.
configuration() {
  cat <<CONF
ClusterName=one-machine
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$1
SlurmdPort=$2
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$cpus Gres=gpu:$gpus State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

write_configuration() {
  mkdir -p "$folder/state" "$folder/spool"
  local first=${SLURM_PORT:-16817} controller
  controller=$(free_port "$first")
  configuration "$controller" "$(free_port "$((controller + 1))")" >"$folder/slurm.conf"
  : >"$folder/gres.conf"
  if [ "$gpus" -gt 0 ]; then
    mkdir "$folder/dev"
    local i
    for i in $(seq 0 "$((gpus - 1))"); do ln -s /dev/null "$folder/dev/gpu$i"; done
    echo "Name=gpu File=$folder/dev/gpu[0-$((gpus - 1))]" >"$folder/gres.conf"
  fi
  (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none)
}

wait_until_idle() {
  local tries
  for tries in $(seq 60); do
    if [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; then return; fi
    sleep 0.5
  done
  tail -n 5 "$folder/slurmctld.log" "$folder/slurmd.log" >&2 || true
  fail "the node is not idle after $((tries / 2)) s; the logs in $folder say why"
}

start() {
  if [ -z "$dry" ]; then
    if alive "$folder/slurmctld.pid"; then told "runs already" && return; fi
    [ -z "$(ls -A "$folder" 2>/dev/null)" ] || fail "got $folder, expected an empty folder; stop clears one of ours"
    [ "$(id -u)" = 0 ] || fail "got user $(id -un), expected root"
    local program
    for program in munged slurmctld slurmd; do
      command -v "$program" >/dev/null || fail "no $program here: apt-get install slurm-wlm munge"
    done
    write_configuration
  else
    echo "# $folder/slurm.conf" && configuration 16817 16818
  fi
  export SLURM_CONF=$folder/slurm.conf
  # --force: the folder may lie where others can write, which is no matter on a machine of one's own.
  run munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  run slurmctld -f "$folder/slurm.conf" -c
  run slurmd -f "$folder/slurm.conf" -N localhost
  [ -n "$dry" ] || wait_until_idle
  told "started"
}

jobs_run() {
  [ -n "$(squeue --noheader --states=RUNNING,COMPLETING 2>/dev/null)" ]
}

# The daemons must not go before they have told the jobs to.
wait_for_jobs() {
  local tries
  for tries in $(seq 120); do
    jobs_run || return 0
    sleep 0.5
  done
  echo "one_machine.sh: jobs did not end in $((tries / 2)) s; processes of theirs may be left" >&2
}

# Whether the daemon of a file NAME.pid runs; the number may be another program's by now.
alive() {
  local id
  id=$(cat "$1" 2>/dev/null) && [[ $(readlink "/proc/$id/exe") == */"$(basename "$1" .pid)"* ]]
}

told() {
  echo "# $1; next: export SLURM_CONF=$folder/slurm.conf"
}

stop() {
  [ -n "$dry" ] || [ -e "$folder/slurm.conf" ] || { echo "# nothing in $folder" && return; }
  export SLURM_CONF=$folder/slurm.conf
  [ -n "$dry" ] || ! jobs_run || { run scancel --full --signal=KILL --user="$(id -un)" && wait_for_jobs; }
  local name
  for name in slurmd slurmctld munged; do
    if [ -n "$dry" ]; then echo "kill \$(cat $folder/$name.pid)"; else end "$folder/$name.pid"; fi
  done
  run rm -rf "$folder"
}

end() {
  local id tries
  alive "$1" || return 0
  id=$(cat "$1")
  kill "$id"
  for tries in $(seq 100); do
    alive "$1" || return 0
    sleep 0.1
  done
  echo "one_machine.sh: process $id of $1 did not end in $((tries / 10)) s; killed" >&2
  kill -KILL "$id"
}

case $action in
  start | stop) "$action" ;;
  *) fail "got '$action', expected start or stop" ;;
esac
