# SPDX-License-Identifier: Apache-2.0
"""`cw-grpo train`: makes what a job needs, runs stock verl, and shows its progress."""
