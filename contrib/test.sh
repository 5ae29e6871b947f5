#!/bin/sh
# The whole check: lint, format, types, layers, tests. Installs what it needs first.
#
#   contrib/test.sh [PYTEST-ARGUMENT...]
#
# Stops at the first stage that fails. Exit codes: 2 to 7 as in contrib/prepare.sh (it cannot run
# here), 11 lint, 12 format, 13 types, 14 layers, 15 tests.
set -eu

cd "$(dirname "$0")/.."

stage() { # exit code, name, command...
    code=$1 name=$2
    shift 2
    printf '\n== %s\n' "$name"
    "$@" || {
        printf '\ntest: %s failed; repeat it with: %s\n' "$name" "$*" >&2
        exit "$code"
    }
}

contrib/prepare.sh test
stage 11 "lint" .venv/bin/ruff check
stage 12 "format" .venv/bin/ruff format --check
stage 13 "types" .venv/bin/mypy
stage 14 "layers" .venv/bin/lint-imports
stage 15 "tests" .venv/bin/pytest -n auto --dist worksteal "$@"
printf '\ntest: everything passed\n'
