"""`cw-grpo train`: makes what a job needs, runs stock verl, and shows its progress."""
