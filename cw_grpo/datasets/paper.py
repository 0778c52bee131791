# SPDX-License-Identifier: Apache-2.0
"""``cw-grpo data paper``: the paper's training set and benchmarks, from the Hugging Face hub or from local files.

No row is dropped in silence: a row that cannot be used is skipped, counted and listed, and so are kept rows whose
reference is in doubt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cw_grpo.datasets.benchmarks import Benchmark, benchmarks
from cw_grpo.datasets.conversion import ConversionSettings, convert
from cw_grpo.datasets.hub import read_hub
from cw_grpo.datasets.reading import FORMATS, read_file
from cw_grpo.datasets.rows import write_rows

logger = logging.getLogger(__name__)


def make_benchmark(
    benchmark: Benchmark,
    out: Path,
    *,
    source: Path | None,
    settings: ConversionSettings,
    allow_size_mismatch: bool = False,
    strict: bool = False,
) -> None:
    """Read a benchmark, log a report on it, and write it to ``out``, whole or not at all.

    Args:
        benchmark: which one.
        out: a parquet file.
        source: a local file; None for the hub.
        settings: of the conversion.
        allow_size_mismatch: accept another number of rows from the hub than the paper's; a local file's is accepted
            in any case, with a warning.
        strict: reject a file with a row that would be skipped, or with a reference that is in doubt.

    Raises:
        ValueError: rows, columns or their number are not as they should be.
        RuntimeError: the hub is out of reach, or the reward does not start.
        OSError: a file cannot be read or written.
    """
    rows = read_hub(benchmark) if source is None else read_file(source)
    origin = benchmark.id if source is None else str(source)
    try:
        result = convert(benchmark, rows, settings)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    if result.num_read != benchmark.size:
        size = f"{origin} has {result.num_read} rows; the paper's {benchmark.name} has {benchmark.size}"
        if source is None and not allow_size_mismatch:
            raise ValueError(f"{size}; nothing was written (--allow-size-mismatch accepts it)")
        logger.warning("%s: WARNING: %s", benchmark.name, size)
    if strict and (result.skipped or result.doubtful):
        raise ValueError(f"{origin} ({result.columns}): {'; '.join(result.report())}; nothing was written (--strict)")
    write_rows(result.rows, out)
    logger.info(f"{benchmark.name}: {len(result.rows)} of {result.num_read} questions in {out} ({result.columns})")
    for line in result.report():
        logger.info("%s: %s", benchmark.name, line)


def make_benchmarks(
    names: Sequence[str],
    *,
    out: Path,
    source: Path | None = None,
    settings: ConversionSettings,
    allow_size_mismatch: bool = False,
    strict: bool = False,
) -> list[str]:
    """Make several benchmarks; one that fails does not stop the others.

    Args:
        names: of ``benchmarks.yaml``.
        out: a directory for ``<name>.parquet``; with one name, a path that ends in ``.parquet`` is the file itself.
        source: None for the hub, or a local file; or a directory of ``<name>.parquet`` (or another of
            :data:`~cw_grpo.datasets.reading.FORMATS`).
        settings: of the conversion.
        allow_size_mismatch: as in :func:`make_benchmark`.
        strict: as in :func:`make_benchmark`.

    Returns:
        one message for each that failed.

    Raises:
        ValueError: an unknown name, or ``out`` or ``source`` does not fit.
        FileNotFoundError: ``source`` does not exist.
    """
    known = benchmarks()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown benchmark {', '.join(unknown)}; known are {', '.join(known)}")
    several = len(names) > 1
    if several and out.suffix == ".parquet":
        raise ValueError(f"--out {out}: several benchmarks need a directory")
    if source is not None and not source.exists():
        raise FileNotFoundError(f"--from {source}: no such file or directory")
    if several and source is not None and not source.is_dir():
        raise ValueError(f"--from {source}: several benchmarks need a directory of files with their names")
    if settings.tokenizer is None:
        logger.info("prompt lengths are not checked (--tokenizer checks them)")
    failures = []
    for name in names:
        target = out if out.suffix == ".parquet" else out / f"{name}.parquet"
        try:
            file = _source_file(name, source)
            if file is not None and target.exists() and file.samefile(target):
                raise ValueError(f"{target} is the file that is read: write to another place with --out")
            make_benchmark(
                known[name],
                target,
                source=file,
                settings=settings,
                allow_size_mismatch=allow_size_mismatch,
                strict=strict,
            )
        except (ValueError, RuntimeError, OSError) as error:
            failures.append(str(error))
    return failures


def _source_file(name: str, source: Path | None) -> Path | None:
    if source is None or not source.is_dir():
        return source
    found = [source / f"{name}{suffix}" for suffix in FORMATS if (source / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        what = " and ".join(path.name for path in found) or "none"
        raise ValueError(f"--from {source} must have one of {', '.join(name + s for s in FORMATS)}; it has {what}")
    return found[0]
