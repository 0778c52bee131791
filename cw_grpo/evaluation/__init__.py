"""``cw-grpo eval``: answers from verl's generation servers, scored with the recipe's reward, and the paper's tables.

A folder holds what belongs together, and the same command goes on where it was stopped:

    settings.json                  what the answers in this folder share; others are refused
    <model>/<benchmark>.answers.jsonl   a line an answer, written when it is finished
    <model>/<benchmark>.json       its scores, question by question, and their statistics
    scores.csv                     a row for each model and benchmark
    verl.log                       all that verl and Ray print

Models, questions and answers have modules of their own (:mod:`models`, :mod:`questions`, :mod:`answers`). The servers
run in a process (:mod:`servers`), which :mod:`generation` watches; :mod:`scores` and :mod:`tables` need no verl.
"""
