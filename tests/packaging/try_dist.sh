#!/usr/bin/env bash
# Install one built file (wheel or sdist) into an empty environment, far from the source tree, and
# try it there: the smoke test with nothing but Perdure's own dependencies, then the test suite.
#
#   try_dist.sh PYTHON FILE [--smoke-only | pytest's arguments]
#
# Tests, examples and docs are copied beside the environment, without the sources, so that
# `perdure` can only be the installed one. Tests marked `checkout` skip themselves there.
set -euo pipefail

python=$1 dist=$(realpath "$2")
shift 2
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
elsewhere=$(mktemp -d "${TMPDIR:-/tmp}/perdure-dist.XXXXXX")
trap 'rm -rf "$elsewhere"' EXIT

"$python" -m venv "$elsewhere/env"
bin=$elsewhere/env/bin
pip=("$bin/python" -m pip install -qq --disable-pip-version-check)
"${pip[@]}" 'pip>=25.1'
"${pip[@]}" "$dist"

mkdir "$elsewhere/tree"
cd "$elsewhere/tree"
for part in tests examples docs README.md pyproject.toml; do
    [ ! -e "$tree/$part" ] || cp -R "$tree/$part" .
done
echo "$(basename "$dist"): smoke test in an empty environment"
"$bin/python" -I tests/packaging/smoke.py
[ "${1:-}" != --smoke-only ] || exit 0

"${pip[@]}" --group test
echo "$(basename "$dist"): the test suite"
PATH=$bin:$PATH "$bin/pytest" "$@"
