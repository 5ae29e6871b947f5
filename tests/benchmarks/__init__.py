"""Benchmarks: how fast tapefs is, against a reference measured in the same run.

    contrib/benchmark.sh [ROW...] [--runs N] [--json FILE [--add]] [--picture FILE.svg]
                         [--compare FILE]

prints a Markdown table. None of this is a test: no figure makes
anything fail. `tests/test_benchmarks.py` runs every row at toy size, so that none of them rots.

To add a row: write a module with `ROWS`, a tuple of `benchmarks.row.Row`, and name it in
`benchmarks/registry.py`. A row's `measure` gets a `Run` (an empty directory, whether to be small,
and where to note a timeline) and returns one number for each of its figures. What needs a mount
takes `benchmarks.mounts.tapefs`, and as reference `benchmarks.mounts.pass_through`.
"""
