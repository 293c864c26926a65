#!/usr/bin/env bash
# Obtain the Asterisk prompts of one language: 16 kHz G.722 audio and transcripts.
#
# Usage: local/fetch_asterisk.sh LANGUAGE DIR
#
# First as Debian packages (asterisk-core-sounds-LANGUAGE and -LANGUAGE-g722), else
# from the Asterisk project's own site.  CC BY-SA 3.0: cite it when you use it.
# What is in DIR already is not downloaded again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../../.." && pwd)
source "$root/local/log.sh"

language=${1:?which language: en, es, fr, it or ru}
into=${2:?into which folder}
site=${ASTERISK_SITE:-https://downloads.asterisk.org/pub/telephony/sounds/releases}
version=1.6.1 # the release that the splits were made for

package=asterisk-core-sounds-$language
if bash "$root/local/debian_packages.sh" --into "$into" "$package" "$package-g722"; then
  exit 0
fi

archive=$package-g722-$version.tar.gz
log "no Debian packages here; trying $site/$archive"
mkdir -p "$into"
if [[ ! -f $into/$archive ]]; then
  # -C - goes on with a download that was cut off.
  if ! curl -fL --retry 3 --connect-timeout 30 -C - \
    -o "$into/$archive.partial" "$site/$archive"; then
    die "cannot obtain the Asterisk prompts ($language). Remedy: network access, or a" \
      "folder with $archive unpacked, given as --corpus-dir (English) or laid into $into"
  fi
  gzip -t "$into/$archive.partial" || {
    rm "$into/$archive.partial"
    die "$site/$archive arrived damaged and was deleted; run this again"
  }
  mv "$into/$archive.partial" "$into/$archive"
fi
tar -xzf "$into/$archive" -C "$into"
log "unpacked $archive into $into"
