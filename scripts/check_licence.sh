#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fails if a source file lacks the licence line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
line="# SPDX-License-Identifier: Apache-2.0"
lacking=$(grep -rLxF "$line" --include='*.py' --include='*.sh' cw_grpo examples recipe scripts tests upstream || true)
[ -z "$lacking" ] && exit
echo "error: no line '$line' in:" $lacking >&2
exit 1
