# SPDX-License-Identifier: Apache-2.0
"""``cw-grpo doctor``: whether verl in this Python, and on every node of a cluster, applies CW-GRPO."""
