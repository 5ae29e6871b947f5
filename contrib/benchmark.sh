#!/bin/sh
# How fast tapefs is, against a reference measured in the same run; a Markdown table comes out.
# Installs what it needs first. Takes two hours for everything at whole size, and 15 GiB of disk.
#
#   contrib/benchmark.sh [ROW...] [--runs N] [--json FILE [--add]] [--picture FILE.svg] [--compare FILE]
#
# --help says more. Exit codes: 0, 1 a row failed, 2 wrong usage, 2 to 7 as in contrib/prepare.sh.
set -eu

cd "$(dirname "$0")/.."
contrib/prepare.sh test >&2
PYTHONPATH=tests exec .venv/bin/python -m benchmarks "$@"
