# SPDX-License-Identifier: Apache-2.0
"""``cw-grpo eval``: answers from verl's generation servers, scored with the recipe's reward, and the paper's tables.

A directory holds what belongs together, and the same command resumes where it was stopped:

    settings.json                       what the answers in this directory share; other settings are rejected
    <model>/<benchmark>.answers.jsonl   one line per answer, written when it is finished
    <model>/<benchmark>.json            its scores, question by question, and their statistics
    scores.csv                          one row per model and benchmark, in percent
    verl.log                            all that verl and Ray print

:mod:`checkpoints` finds the models, :mod:`questions` reads the benchmarks, :mod:`model_requests` puts them to a model
as its run was trained (:mod:`run_settings`), :mod:`answer_store` keeps the answers. The servers run in a process
(:mod:`servers`), which :mod:`generation` watches; :mod:`scores` and :mod:`tables` need no verl.
"""
