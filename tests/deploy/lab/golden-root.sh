#!/bin/sh
# Builds one golden root: what a freshly installed Debian server is before anybody put Tor or circuitloom on it.
#
# Usage: golden-root.sh SUITE DIRECTORY MIRROR [SECURITY_MIRROR]
#
# The mirrors are arguments: they are read from the machine's own apt sources. The root holds a small apt
# repository with Tor and the agent's dependencies, so that a test host installs them with plain apt and no
# route to anywhere. Whatever changes here changes the key of the cache (golden.py).
set -eu

suite=$1 root=$2 mirror=$3 security=${4:-}

# What the role may install on a host, and nothing else: a package the role forgets to ask for is then missing.
offline="tor python3-stem python3-yaml python3-jsonschema python3-prometheus-client python3-sdnotify python3-venv"

# python3-apt is what Ansible's apt module speaks through; everything else is a bare server with SSH.
debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,iproute2 \
    "$suite" "$root" "$mirror"

in_root() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

# 1. The newest packages of the release, security updates among them, as a maintained host has them.
{
    echo "deb $mirror $suite main"
    echo "deb $mirror $suite-updates main"
    if [ -n "$security" ]; then echo "deb $security $suite-security main"; fi
} > "$root/etc/apt/sources.list"
# Nothing may start in the chroot: Tor least of all, which would go to the public network.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
in_root apt-get update -q
in_root apt-get upgrade -qy --no-install-recommends
in_root apt-get clean
# shellcheck disable=SC2086  # a list of words
in_root apt-get install -qy --no-install-recommends --download-only $offline

# 2. Those archives as a flat repository. No Release file: an empty one breaks apt, none is fine.
mkdir -p "$root/srv/repo"
mv "$root"/var/cache/apt/archives/*.deb "$root/srv/repo/"
(
    cd "$root/srv/repo"
    for archive in *.deb; do
        dpkg-deb -f "$archive"
        printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' \
            "$archive" "$(stat -c %s "$archive")" "$(sha256sum "$archive" | cut -d ' ' -f 1)"
    done > Packages
)
echo "deb [trusted=yes] file:/srv/repo ./" > "$root/etc/apt/sources.list"
rm -rf "$root"/etc/apt/sources.list.d/* "$root"/var/lib/apt/lists/*
in_root apt-get update -q
rm -f "$root/usr/sbin/policy-rc.d"

# 3. What differs from host to host, or would leak from this machine or from the build into a test.
: > "$root/etc/machine-id"
: > "$root/etc/resolv.conf"
rm -rf "$root/etc/hostname" "$root"/var/log/journal "$root"/var/cache/apt/*.bin
mkdir -p "$root/var/log/journal"
# The lab gives the address and there is no name service; both would only wait for a network.
in_root systemctl mask -q systemd-networkd.service systemd-resolved.service systemd-networkd-wait-online.service
# A timer that wakes up inside a test (apt, man-db, fstrim) is noise in its journal.
in_root systemctl mask -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
mkdir -p "$root/root/.ssh"
chmod 700 "$root/root/.ssh"
