# shellcheck shell=bash
# shellcheck source=launch/env/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
