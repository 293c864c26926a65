#!/usr/bin/env bash
# Build kaldifeat (fbank on CUDA) from its source package, for the torch that is here.
#
# Usage: local/install_kaldifeat.sh
#
# Optional: without it features are computed on the CPU by lhotse, which is faster
# there.  Needs a C++ compiler, CMake, network access for pip, and about 3 minutes on 2
# cores.  Uses the environment of local/install.sh, or $ICEFALL_KD_VENV.
# Verified: builds with torch 2.13 without CUDA.  A torch built for CUDA (1.13.1 of the
# package index is) needs that CUDA toolkit, since torch's CMake files ask for it; this is
# not verified beyond the message that says so where the toolkit is missing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"

version=1.24
python=$ICEFALL_KD_VENV/bin/python

works() {
  # The library path of env.sh was set before kaldifeat was there: set it anew.
  bash -c "source '$REPO_ROOT/local/env.sh'; python -c 'import torch, kaldifeat'" \
    2>/dev/null
}

check_tools() {
  local cuda toolkit
  command -v c++ >/dev/null ||
    die "no C++ compiler. Remedy: apt-get install g++, or name one in \$CXX"
  command -v cmake >/dev/null ||
    die "no cmake. Remedy: apt-get install cmake, or $python -m pip install cmake"
  cuda=$("$python" -c 'import torch; print(torch.version.cuda or "")') ||
    die "torch cannot be imported; see: $python -m icefall_kd.bin.doctor"
  if [[ -z $cuda ]]; then
    return
  fi
  toolkit=$("${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" --version 2>/dev/null |
    sed -n 's/.*release \([0-9.]*\),.*/\1/p') || true
  if [[ ${toolkit%%.*} != "${cuda%%.*}" ]]; then
    die "kaldifeat cannot be built: this torch was built for CUDA $cuda, and the CUDA" \
      "toolkit here is: ${toolkit:-none}. Remedy: install the toolkit $cuda and name it" \
      "in CUDA_HOME, or leave kaldifeat out: features are then computed on the CPU"
  fi
}

build() {  # in a folder that is thrown away
  local work=$1 tools=$1/tools
  # CMake would fetch pybind11 from the web: give it the package index's instead.
  "$python" -m pip install -q --no-compile --target "$tools" pybind11
  mkdir "$work/pybind11"
  cat >"$work/pybind11/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.8)
find_package(pybind11 CONFIG REQUIRED)
CMAKE
  export KALDIFEAT_CMAKE_ARGS="
    -DCMAKE_BUILD_TYPE=Release
    -DFETCHCONTENT_SOURCE_DIR_PYBIND11=$work/pybind11
    -DCMAKE_FIND_PACKAGE_TARGETS_GLOBAL=ON
    -Dpybind11_DIR=$tools/pybind11/share/cmake/pybind11
    -DCMAKE_CXX_STANDARD=17
    -Dkaldifeat_BUILD_TESTS=OFF"
  KALDIFEAT_CMAKE_ARGS=$(tr '\n' ' ' <<<"$KALDIFEAT_CMAKE_ARGS")
  export KALDIFEAT_MAKE_ARGS="-j$OMP_NUM_THREADS"
  log "building kaldifeat $version, about 3 minutes"
  "$python" -m pip wheel -q --no-build-isolation --no-deps --no-binary kaldifeat \
    -w "$work" "kaldifeat==$version" >"$ICEFALL_KD_VENV/kaldifeat.log" 2>&1 ||
    die "kaldifeat could not be built: $(grep -m 1 -iE 'error' \
      "$ICEFALL_KD_VENV/kaldifeat.log"). The whole output is in" \
      "$ICEFALL_KD_VENV/kaldifeat.log. kaldifeat is optional: nothing else was changed"
  "$python" -m pip install -q --no-deps --force-reinstall "$work"/kaldifeat-*.whl
}

if works; then
  log "kaldifeat is there and works"
  exit 0
fi
check_tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build "$work"
works || die "kaldifeat was installed but cannot be imported; see the doctor's report"
log "kaldifeat $version is installed; local/env.sh lets Python find its libraries"
