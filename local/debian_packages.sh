#!/usr/bin/env bash
# Obtain Debian packages without root and unpack them.
#
# Usage: local/debian_packages.sh NAME... --into DIR
#
# Downloads each package with apt and unpacks it below DIR (DIR/usr/share/...); nothing
# is installed.  A package that was unpacked before is left alone; a killed call goes on
# with the package it was at.  When the machine's package lists are empty or too old,
# fresh lists are kept in DIR/.apt.  A file NAME_*.deb that already lies in DIR is used
# instead of a download.
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
    --into) into=${2:?--into wants a folder}; shift 2 ;;
    --into=*) into=${1#*=}; shift ;;
    -*) usage >&2; die "unknown option $1" ;;
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

# apt's own settings (mirror, proxy, sources) stay as the machine has them.
apt_options=(
  -q=1 -o Acquire::Retries=2 -o Acquire::http::Timeout=30
  -o APT::Sandbox::User=root  # the folder need not be readable by the user _apt
)
private_lists=(
  -o Dir::State="$into/.apt/state" -o Dir::Cache="$into/.apt/cache"
  -o Dir::State::status=/var/lib/dpkg/status
)

apt_download() {  # name, further options; leaves NAME_*.deb in the current folder
  local name=$1
  shift
  apt-get "${apt_options[@]}" "$@" download "$name" >>"$apt_log" 2>&1
}

refresh_lists() {  # once per call; one unreachable source of many is no failure here
  if [[ ${refreshed:-false} == true ]]; then
    return
  fi
  log "reading fresh package lists (no root needed)"
  mkdir -p "$into"/.apt/{state/lists,cache/archives}/partial
  apt-get "${apt_options[@]}" "${private_lists[@]}" update >>"$apt_log" 2>&1 || true
  refreshed=true
}

remedy() {
  printf '%s' "Remedy: give the machine network access and run this again, or put" \
    " $1_*.deb (from any Debian mirror) into $into"
}

download() {  # name; the current folder is the one that gets NAME_*.deb
  local name=$1
  if ! command -v apt-get >/dev/null; then
    die "cannot obtain the package $name: there is no apt-get here. $(remedy "$name")"
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
    die "$1 is no readable Debian package; delete it and run this again"
  fi
  dpkg -x "$1" "$into"
  mkdir -p "$into/.unpacked"
  basename "$1" >"$into/.unpacked/$2.partial"
  mv "$into/.unpacked/$2.partial" "$into/.unpacked/$2"
}

if ! command -v dpkg >/dev/null; then
  die "cannot unpack Debian packages: there is no dpkg here. Remedy: install dpkg"
fi
work=$(mktemp -d "$into/.download.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
count=0
for name in "${names[@]}"; do
  count=$((count + 1))
  if [[ -f $into/.unpacked/$name ]]; then
    log "[$count/${#names[@]}] $name: unpacked before"
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
