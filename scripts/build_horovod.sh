#!/usr/bin/env bash
# Builds Horovod 0.28.1 (the last release) from its source distribution against the TensorFlow of the active environment.
#
#   scripts/build_horovod.sh PYTHON
#
# One of its files, xla_mpi_ops.cc, includes XLA headers that TensorFlow no longer ships. Its code is compiled out on CPU, so
# empty headers with the same names are enough: they are made here from the #include lines of that very file.
set -euo pipefail

python=${1:?usage: build_horovod.sh PYTHON}
version=0.28.1
if "$python" -c 'import horovod.tensorflow' 2>/dev/null; then
  echo "horovod is already built"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH="$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH"

"$python" -m pip download -q --no-deps --no-build-isolation --no-binary=horovod -d "$work" "horovod==$version"
tar -xzf "$work/horovod-$version.tar.gz" -C "$work"
source_file="$work/horovod-$version/horovod/tensorflow/xla_mpi_ops.cc"
grep -oE '"(tensorflow/compiler|xla|tensorflow/core/.*xla)[^"]*\.h"' "$source_file" | tr -d '"' | while read -r header; do
  mkdir -p "$work/include/$(dirname "$header")"
  : > "$work/include/$header"
done

HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITH_TENSORFLOW=1 \
HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
CXXFLAGS="-I$work/include" MAKEFLAGS="-j$(nproc)" \
  "$python" -m pip install --no-build-isolation --no-deps --no-cache-dir "$work/horovod-$version"
"$python" -c 'import horovod.tensorflow as hvd; hvd.init(); print("horovod built: mpi", hvd.mpi_built(), "gloo", hvd.gloo_built())'
