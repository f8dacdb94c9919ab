# shellcheck shell=bash
# Settings of a TPU VM, from the environment: TPU_NAME, ZONE, ACCELERATOR_TYPE (v5litepod-16); and if
# wanted PROJECT_ID, RUNTIME_VERSION, and BUCKET, a Cloud Storage bucket that all workers mount as
# ~/bucket. Several hosts need one: their run's folder must be the same for all.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

take_dry_run "$@"
need TPU_NAME ZONE ACCELERATOR_TYPE
place=("--zone=$ZONE" ${PROJECT_ID:+"--project=$PROJECT_ID"})
tpus=(gcloud compute tpus)

case $ACCELERATOR_TYPE in
  v4-*) CHIP=v4 RUNTIME_VERSION=${RUNTIME_VERSION:-tpu-ubuntu2204-base} ;;
  v5litepod-*) CHIP=v5e RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite} ;;
  v5p-*) CHIP=v5p RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5} ;;
  v6e-*) CHIP=v6e RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv6e} ;;
  *) fail "ACCELERATOR_TYPE: got '$ACCELERATOR_TYPE', expected v4-N, v5litepod-N, v5p-N or v6e-N" ;;
esac
export CHIP RUNTIME_VERSION

# on WORKERS COMMAND: the command on 0 or on all of them.
on() {
  run "${tpus[@]}" tpu-vm ssh "$TPU_NAME" "${place[@]}" "--worker=$1" "--command=$2"
}

# The state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; nothing if none.
queued_state() {
  "${tpus[@]}" queued-resources describe "$TPU_NAME" "${place[@]}" \
    '--format=value(state.state)' 2>/dev/null || true
}

vm_exists() {
  "${tpus[@]}" tpu-vm describe "$TPU_NAME" "${place[@]}" '--format=value(state)' >/dev/null 2>&1
}
