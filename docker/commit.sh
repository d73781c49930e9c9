#!/usr/bin/env bash
# Prints the commit that an image built now holds, with -dirty behind it where what goes into the image is not as committed.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse HEAD 2>/dev/null) || { echo unknown; exit 0; }
goes_in=(':(glob)*.py' requirements.txt requirements-dev.txt flexrl examples k8s docker .dockerignore)
changed=$(git status --porcelain -- "${goes_in[@]}")
echo "$commit${changed:+-dirty}"
