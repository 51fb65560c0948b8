#!/bin/sh
# Both notebooks, from start to end, under the versions that Colab ships (August 2026), on the demo model and the CPU.
#
#   scripts/check_colab.sh [FOLDER] [PYTHON]    FOLDER keeps the environment (default: a temporary one)
#
# Colab's own torch is a CUDA build; this takes the CPU build of the version below. The package is installed last and
# must change none of the versions: the check fails where pip would replace one.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
python=${2:-python3}
versions="torch==2.13.0 transformers==5.15.0 accelerate==1.14.0 numpy==2.1.3 matplotlib==3.10.0 seaborn==0.13.2
 ipywidgets==7.7.1 tqdm==4.67.3 ipython==7.34.0 ipykernel==6.17.1 notebook==6.5.7"

"$python" -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip --disable-pip-version-check"
# shellcheck disable=SC2086
$pip install -q $versions nbclient nbformat pytest
$pip freeze | sort > "$folder/before.txt"
$pip install -q "$root"
$pip freeze | sort > "$folder/after.txt"
replaced=$(comm -23 "$folder/before.txt" "$folder/after.txt")
if [ -n "$replaced" ]; then
    echo "installing the package replaced: $replaced" >&2
    exit 1
fi
$pip list 2>/dev/null | grep -E "^(torch|transformers|accelerate|numpy|matplotlib|seaborn|ipywidgets|tqdm|ipython|ipykernel) "
cd "$root"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$folder/venv/bin/python" -m pytest -o addopts= -q tests/test_notebooks.py
