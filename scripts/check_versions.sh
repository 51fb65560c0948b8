#!/usr/bin/env bash
# Run the tests (the notebooks apart) against the oldest or the newest set of libraries, in an environment of its own.
#   scripts/check_versions.sh old|new [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
which="${1:?old or new}"
env="${2:-/tmp/conceptvec-$which}"
case "$which" in
  # Python 3.11. Torch 2.13.0 is the one that comes as a small CPU build; the others are the lower bounds.
  old) pins=(torch==2.13.0 transformers==4.50.3 numpy==1.26.4 tqdm==4.66.6 jsonschema==4.20.0 tabulate==0.9.0 psutil==5.9.8
       ipywidgets==7.7.1 ipykernel==6.17.1) ;;
  new) pins=(torch==2.13.0 transformers numpy ipywidgets) ;;
  *) echo "old or new" >&2; exit 2 ;;
esac
[ -x "$env/bin/python" ] || python3 -m venv "$env"
"$env/bin/pip" install -q "${pins[@]}" accelerate safetensors matplotlib seaborn snowballstemmer \
  jsonschema tabulate psutil tqdm "pytest>=8" pytest-xdist hypothesis
"$env/bin/python" -c "import torch, transformers, numpy; print('torch', torch.__version__, 'transformers', transformers.__version__, 'numpy', numpy.__version__)"
"$env/bin/python" -m pytest --ignore tests/test_notebooks.py
