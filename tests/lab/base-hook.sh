#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Run by mmdebstrap with the new root folder as $1: the kernel without its initramfs machinery,
# the modules that an emulated machine can use, and the users that the platform has.
set -eu
chroot "$1" sh -eu <<'EOF'
cd /var/tmp
kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
kernel=${kernel%%
*}
# Debian 14 has the kernel and its modules in packages of their own.
# shellcheck disable=SC2046 # several names
apt-get -q download "$kernel" $(apt-cache depends "$kernel" |
    sed -n 's/.*Depends: \(linux-binary-[0-9].*\|linux-modules-[0-9].*\)/\1/p')
for package in linux-*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x -C / --keep-directory-symlink \
    --exclude=./usr/share --exclude='*/sound/pci/*' --exclude='*/sound/soc/*' \
    --exclude='*/sound/isa/*' --exclude='*/sound/firewire/*' --exclude='*/sound/hda/*' \
    --exclude='*/drivers/net/[a-lo-tv-z]*/*' --exclude='*/drivers/scsi/*/*' \
    --exclude='*/drivers/gpu/*' --exclude='*/drivers/media/[a-ln-z]*' --exclude='*/drivers/infiniband/*' \
    --exclude='*/drivers/iio/*' --exclude='*/drivers/staging/*' --exclude='*/drivers/md/[a-ce-z]*' \
    --exclude='*/drivers/mtd/*' --exclude='*/drivers/ata/*' --exclude='*/drivers/hwmon/*' \
    --exclude='*/drivers/isdn/*' --exclude='*/drivers/edac/*' --exclude='*/drivers/nvme/*' \
    --exclude='*/drivers/target/*' --exclude='*/drivers/platform/*' \
    --exclude='*/drivers/bluetooth/*' --exclude='*/drivers/comedi/*' --exclude='*/drivers/i2c/*' \
    --exclude='*/drivers/mfd/*' --exclude='*/drivers/video/*' --exclude='*/drivers/crypto/*' \
    --exclude='*/fs/btrfs/*' --exclude='*/fs/xfs/*' --exclude='*/fs/ocfs2/*' \
    --exclude='*/fs/nfs*' --exclude='*/fs/ceph/*' --exclude='*/fs/f2fs/*' --exclude='*/fs/gfs2/*' \
    --exclude='*/fs/smb/*' --exclude='*/fs/reiserfs/*' --exclude='*/fs/jfs/*' \
    --exclude='*/net/netfilter/*' --exclude='*/net/mac80211/*' --exclude='*/net/wireless/*' \
    --exclude='*/net/bluetooth/*' --exclude='*/net/sched/*' --exclude='*/net/ceph/*' \
    --exclude='*/net/sunrpc/*' --exclude='*/net/tipc/*' --exclude='*/net/batman-adv/*' \
    --exclude='*/net/openvswitch/*' --exclude='*/net/ipv[46]/*' --exclude=./boot/System.map-*
done
rm linux-*.deb
depmod -- "$(ls /lib/modules)"
# Where the exporter does not find it, until a test wants that.
mv /usr/bin/usbguard /opt
groupadd --system qubes
useradd --create-home --groups qubes,audio,plugdev --shell /bin/bash user
rm -rf /usr/share/locale /usr/share/man /usr/share/info /usr/share/doc
EOF
