#!/usr/bin/env bash
# The same run through xpk: xpk.sh CONFIG WORKDIR [--dry-run] [flags of vljax train]
#
# Settings, from the environment: WORKLOAD (its name), CLUSTER, IMAGE (of launch/gke/Dockerfile),
# ZONE, PROJECT_ID, TPU_TYPE (v5litepod-16) or DEVICE_TYPE (h100-80gb-8), CHIP (v5e, h100); and if
# wanted SLICES (1), NODES (1, machines with GPUs), STORAGE (attached by xpk storage attach, where
# WORKDIR lies). A run that was stopped and made again goes on.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"

take_dry_run "$@"
[ ${#ARGS[@]} -ge 2 ] || fail "got ${#ARGS[@]} arguments, expected: CONFIG WORKDIR [--dry-run] [flags of vljax train]"
need WORKLOAD CLUSTER IMAGE ZONE PROJECT_ID CHIP
[ -f "$(dirname "$0")/../env/$CHIP.sh" ] || fail "CHIP: got '$CHIP', expected a name in launch/env"
if [ -n "${TPU_TYPE-}" ]; then
  device=("--tpu-type=$TPU_TYPE" "--num-slices=${SLICES:-1}")
else
  need DEVICE_TYPE
  device=("--device-type=$DEVICE_TYPE" "--num-nodes=${NODES:-1}")
fi

train_command "${ARGS[@]}"
# xpk restarts what exits with 143: it was told to go, and has saved a step.
run xpk workload create "--workload=$WORKLOAD" "--cluster=$CLUSTER" "--zone=$ZONE" \
  "--project=$PROJECT_ID" "${device[@]}" "--docker-image=$IMAGE" ${STORAGE:+"--storage=$STORAGE"} \
  --max-restarts=100 --termination-grace-period-seconds=120 \
  "--command=source launch/env/$CHIP.sh && exec $(quoted "${TRAIN[@]}")"
