"""verl on a machine without an accelerator: opt-in, never imported by a GPU job."""
