#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Applies a patch of upstream/ to a checkout of verl, or changes nothing and says why.
#   bash scripts/upstream_patch.sh CHECKOUT [upstream/verl-estimator.patch | upstream/verl-cw-grpo.patch]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
checkout=${1:?name a checkout of verl}
patch=$(realpath "${2:-$root/upstream/verl-estimator.patch}")
if ! [ -f "$checkout/verl/version/version" ]; then
    echo "error: $checkout is not a checkout of verl" >&2
    exit 2
fi
if ! problem=$(cd "$checkout" && git apply --check "$patch" 2>&1); then
    echo "error: ${patch##*/}, made for verl 0.9.1, does not apply to verl $(cat "$checkout/verl/version/version"):" >&2
    echo "$problem" >&2
    echo "nothing was changed; make the patch's change by hand, or check out v0.9.1" >&2
    exit 2
fi
cd "$checkout"
git apply "$patch"
echo "applied ${patch##*/} to $checkout; its tests: pytest $(sed -n 's|^+++ b/\(tests/.*\)|\1|p' "$patch" | tr '\n' ' ')"
