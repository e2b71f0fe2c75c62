#!/bin/sh
# All checks of the tree, each of them even where an earlier one failed. $1: the environment's bin folder.
set -u

bin=$1
cd "$(dirname "$0")/.." || exit 1
failed=

check() {
    name=$1
    shift
    started=$(date +%s)
    if "$@"; then
        printf 'lint: %s: ok (%s s)\n' "$name" "$(($(date +%s) - started))"
    else
        printf 'lint: %s: FAILED\n' "$name" >&2
        failed="$failed $name"
    fi
}

check ruff-check "$bin/ruff" check --quiet --output-format concise .
check ruff-format "$bin/ruff" format --check --quiet --output-format concise .
check mypy "$bin/mypy" --no-error-summary
check architecture "$bin/lint-imports" --no-logo
check tree "$bin/python" tools/check_tree.py

[ -z "$failed" ] || {
    printf 'lint: failed:%s\n' "$failed" >&2
    exit 1
}
