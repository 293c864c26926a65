#!/usr/bin/env bash
# Download Debian packages and unpack them, without root.
#
# Usage: local/debian_packages.sh NAME... --into DIR
#
# Downloads each package with apt and unpacks it into DIR (DIR/usr/share/...), without
# installing it.  Skips packages that are unpacked already.  If the package lists of the
# machine are empty or too old, it downloads new ones into DIR/.apt.  It unpacks a file
# NAME_*.deb in DIR instead of downloading the package.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/log.sh"

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

into=
names=()
while (($# > 0)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --into) into=${2:?--into: the folder is missing}; shift 2 ;;
    --into=*) into=${1#*=}; shift ;;
    -*) usage >&2; die "unknown option $1. Known options: --into, --help" ;;
    *) names+=("$1"); shift ;;
  esac
done
if [[ -z $into || ${#names[@]} -eq 0 ]]; then
  usage >&2
  exit 2
fi
mkdir -p "$into"
into=$(cd "$into" && pwd)
apt_log=$into/.apt.log

# Mirror, proxy and sources are those of the machine.
apt_options=(
  -q=1 -o Acquire::Retries=2 -o Acquire::http::Timeout=30
  -o APT::Sandbox::User=root  # the user _apt may have no access to the folder
)
private_lists=(
  -o Dir::State="$into/.apt/state" -o Dir::Cache="$into/.apt/cache"
  -o Dir::State::status=/var/lib/dpkg/status
)

apt_download() {  # name, further options; writes NAME_*.deb to the current folder
  local name=$1
  shift
  apt-get "${apt_options[@]}" "$@" download "$name" >>"$apt_log" 2>&1
}

refresh_lists() {  # once per call; unreachable sources are ignored
  if [[ ${refreshed:-false} == true ]]; then
    return
  fi
  log "downloading package lists"
  mkdir -p "$into"/.apt/{state/lists,cache/archives}/partial
  apt-get "${apt_options[@]}" "${private_lists[@]}" update >>"$apt_log" 2>&1 || true
  refreshed=true
}

remedy() {
  printf '%s' "Check the network and run the command again, or copy $1_*.deb from a" \
    " Debian mirror to $into"
}

download() {  # name; writes NAME_*.deb to the current folder
  local name=$1
  if ! command -v apt-get >/dev/null; then
    die "cannot download the package $name: apt-get is missing. $(remedy "$name")"
  fi
  : >"$apt_log"
  if apt_download "$name"; then
    return
  fi
  if [[ -d $into/.apt/state ]] && apt_download "$name" "${private_lists[@]}"; then
    return
  fi
  refresh_lists
  if apt_download "$name" "${private_lists[@]}"; then
    return
  fi
  grep '^E:' "$apt_log" | sort -u | tail -n 3 >&2 || true
  die "cannot download the package $name with apt. $(remedy "$name")"
}

unpack() {  # deb file, name
  if ! dpkg-deb --info "$1" >/dev/null 2>&1; then
    die "$1: not a Debian package, or damaged. Delete it and run the command again"
  fi
  dpkg -x "$1" "$into"
  mkdir -p "$into/.unpacked"
  basename "$1" >"$into/.unpacked/$2.partial"
  mv "$into/.unpacked/$2.partial" "$into/.unpacked/$2"
}

if ! command -v dpkg >/dev/null; then
  die "dpkg is missing. Install it to unpack Debian packages"
fi
work=$(mktemp -d "$into/.download.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
count=0
for name in "${names[@]}"; do
  count=$((count + 1))
  if [[ -f $into/.unpacked/$name ]]; then
    log "[$count/${#names[@]}] $name: skip, unpacked before"
    continue
  fi
  given=$(compgen -G "$into/${name}_*.deb" | tail -n 1 || true)
  if [[ -z $given ]]; then
    log "[$count/${#names[@]}] $name: downloading"
    download "$name"
    given=$(compgen -G "$work/${name}_*.deb" | tail -n 1)
  fi
  log "[$count/${#names[@]}] $name: unpacking $(basename "$given")"
  unpack "$given" "$name"
  if [[ $given == "$work"/* ]]; then
    rm "$given"
  fi
done
