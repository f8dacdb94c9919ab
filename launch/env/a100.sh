# shellcheck shell=bash
# shellcheck source=launch/env/gpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
