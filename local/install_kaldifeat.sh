#!/usr/bin/env bash
# Build kaldifeat (fbank on CUDA) from source, for the installed torch.
#
# Usage: local/install_kaldifeat.sh
#
# Optional: without kaldifeat, lhotse computes features on the CPU, where it is the faster
# one.  Needs a C++ compiler, CMake, network access for pip, and about 3 minutes on 2
# cores.  Uses the environment of local/install.sh, or $ICEFALL_KD_VENV.
# Tested with torch 2.13 without CUDA.  A torch built for CUDA, such as 1.13.1 of the
# package index, also needs that CUDA toolkit; this was not tested.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"

version=1.24
python=$ICEFALL_KD_VENV/bin/python

works() {
  # env.sh sets the library path only if kaldifeat exists: source it again.
  bash -c "source '$REPO_ROOT/local/env.sh'; python -c 'import torch, kaldifeat'" \
    2>/dev/null
}

check_tools() {
  local cuda toolkit
  command -v c++ >/dev/null ||
    die "the C++ compiler is missing. Run apt-get install g++, or set CXX"
  command -v cmake >/dev/null ||
    die "cmake is missing. Run apt-get install cmake, or $python -m pip install cmake"
  cuda=$("$python" -c 'import torch; print(torch.version.cuda or "")') ||
    die "torch cannot be imported. Run $python -m icefall_kd.bin.doctor"
  if [[ -z $cuda ]]; then
    return
  fi
  toolkit=$("${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" --version 2>/dev/null |
    sed -n 's/.*release \([0-9.]*\),.*/\1/p') || true
  if [[ ${toolkit%%.*} != "${cuda%%.*}" ]]; then
    die "cannot build kaldifeat: torch was built for CUDA $cuda, the CUDA toolkit is" \
      "${toolkit:-missing}. Install the toolkit $cuda and set CUDA_HOME, or do without" \
      "kaldifeat: lhotse computes features on the CPU"
  fi
}

build() {  # temporary folder
  local work=$1 tools=$1/tools
  # CMake would download pybind11 from GitHub: use the package index instead.
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
    die "cannot build kaldifeat: $(grep -m 1 -iE 'error' \
      "$ICEFALL_KD_VENV/kaldifeat.log"). See $ICEFALL_KD_VENV/kaldifeat.log." \
      "kaldifeat is optional"
  "$python" -m pip install -q --no-deps --force-reinstall "$work"/kaldifeat-*.whl
}

if works; then
  log "kaldifeat is installed already"
  exit 0
fi
check_tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build "$work"
works || die "kaldifeat cannot be imported. Run $python -m icefall_kd.bin.doctor"
log "installed kaldifeat $version. local/env.sh adds its libraries to the path"
