#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Install those of the named packages that are missing, on Debian 12 or 13;
# silent if none is. Elsewhere that is left to whoever calls this.
set -eu
command -v dpkg-query >/dev/null || exit 0
missing=
for package; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "installing with apt:$missing"
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get -qq update
# shellcheck disable=SC2086 # a list
$sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends $missing >/dev/null
