#!/bin/sh
# Renew constraints.txt: versions only, for every Python the project supports. $1: the environment's bin folder.
set -eu

cd "$(dirname "$0")/.."
"$1/uv" pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
    --no-header --no-annotate -o constraints.txt
