# SPDX-License-Identifier: Apache-2.0
"""How the processes of a CPU job start: `cluster=cpu` names this function as Ray's `worker_process_setup_hook`.

Ray calls it in each of its workers before anything of verl is imported there, so this module imports Python's library
alone.
"""

import gc


def collect_garbage_less_often() -> None:
    """Look for garbage in cycles after 10,000 new objects instead of Python's 700.

    verl's import makes half a million objects, all to stay; looking through them again and again takes a quarter of
    the import's time, and a sixth of a step of a small model.
    """
    gc.set_threshold(10_000, 10, 10)
