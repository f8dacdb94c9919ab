# shellcheck shell=bash
# What the scripts share: one sentence for a bad call, and --dry-run, which may stand anywhere.

fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Sets dry to 1 or nothing, and ARGS to the other arguments.
take_dry_run() {
  dry='' ARGS=()
  local arg
  for arg in "$@"; do
    if [ "$arg" = --dry-run ]; then dry=1; else ARGS+=("$arg"); fi
  done
}

# A command as it can be pasted into a shell.
quoted() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "${line# }"
}

# Prints a command, and runs it unless this is a dry run.
run() {
  quoted "$@"
  [ -n "$dry" ] || "$@"
}

# need NAME...: the settings without which a script can do nothing.
need() {
  local name
  for name in "$@"; do
    [ -n "${!name-}" ] || fail "$name: got nothing, expected it in the environment; the first lines of $0 or of common.sh beside it say more"
  done
}

# train_command CONFIG WORKDIR [FLAG...]: sets TRAIN to the words that every script ends in.
train_command() {
  local config=$1 workdir=$2
  shift 2
  # shellcheck disable=SC2034
  TRAIN=(vljax train "--config=$config" "--config.workdir=$workdir" --distributed "$@")
}
