#!/usr/bin/env bash
# Download the Asterisk prompts of one language: 16 kHz G.722 audio and transcripts.
#
# Usage: local/fetch_asterisk.sh LANGUAGE DIR
#
# Tries the Debian packages asterisk-core-sounds-LANGUAGE and -LANGUAGE-g722, then the site
# of the Asterisk project.  Skips files that exist in DIR.  CC BY-SA 3.0: cite the corpus
# when you use it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../../.." && pwd)
source "$root/local/log.sh"

language=${1:?LANGUAGE is missing: en, es, fr, it or ru}
into=${2:?DIR is missing}
site=${ASTERISK_SITE:-https://downloads.asterisk.org/pub/telephony/sounds/releases}
version=1.6.1 # the release of splits/

package=asterisk-core-sounds-$language
if bash "$root/local/debian_packages.sh" --into "$into" "$package" "$package-g722"; then
  exit 0
fi

archive=$package-g722-$version.tar.gz
log "no Debian packages, downloading $site/$archive"
mkdir -p "$into"
if [[ ! -f $into/$archive ]]; then
  # -C - resumes an interrupted download.
  if ! curl -fL --retry 3 --connect-timeout 30 -C - \
    -o "$into/$archive.partial" "$site/$archive"; then
    die "cannot download the Asterisk prompts ($language). Check the network, or unpack" \
      "$archive and give its folder with --corpus-dir (English), or copy $archive to $into"
  fi
  gzip -t "$into/$archive.partial" || {
    rm "$into/$archive.partial"
    die "$site/$archive: damaged download, deleted. Run the command again"
  }
  mv "$into/$archive.partial" "$into/$archive"
fi
tar -xzf "$into/$archive" -C "$into"
log "unpacked $archive into $into"
