#!/usr/bin/env bash
# What the other scripts have a worker do: on_worker.sh setup [BUCKET] | start CHIP COMMAND... | stop | status
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
cd "$(dirname "$0")/../.."
export PATH=$PWD/.venv/bin:$HOME/.local/bin:$PATH
action=${1-}
[ $# = 0 ] || shift

# The image's own Python may be older than 3.11; uv brings one.
setup() {
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python -e '.[tpu,data]'
  [ -z "${1-}" ] || mount_bucket "$1"
  rm -f exit_code
}

mount_bucket() {
  mountpoint -q ~/bucket && return
  if ! command -v gcsfuse >/dev/null; then
    local release key=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
    release=$(lsb_release -cs)
    curl -fsS "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $site gcsfuse-$release main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
  fi
  mkdir -p ~/bucket
  gcsfuse --implicit-dirs --rename-dir-limit=100000 "$1" ~/bucket
}

running() {
  tmux has-session -t vljax 2>/dev/null
}

start() {
  [ $# -ge 2 ] || fail "start: got $# arguments, expected: CHIP COMMAND..."
  [ -f "launch/env/$1.sh" ] || fail "start: got '$1', expected a name in launch/env"
  if running; then
    echo "$(hostname): runs already"
    return
  fi
  rm -f exit_code
  tmux new-session -d -s vljax \
    "bash $(quoted "$PWD/launch/tpu_vm/on_worker.sh") inside $(quoted "$@")"
  echo "$(hostname): started; what it says is in $PWD/run.log"
}

# In tmux: the run's own process id, for stop; and how it ended, for status.
inside() {
  local code=0
  # shellcheck source=/dev/null
  source "launch/env/$1.sh"
  shift
  "$@" >>run.log 2>&1 &
  echo $! >run.pid
  wait $! || code=$?
  rm -f run.pid
  echo "$code" >exit_code
}

stop() {
  if [ -f run.pid ]; then kill -TERM "$(cat run.pid)"; else echo "$(hostname): nothing runs"; fi
}

status() {
  if running; then
    echo running
  elif [ -f exit_code ]; then
    echo "ended $(cat exit_code)"
  else
    echo absent
  fi
}

case $action in
  setup | start | stop | status | inside) "$action" "$@" ;;
  *) fail "got '$action', expected setup, start, stop or status" ;;
esac
