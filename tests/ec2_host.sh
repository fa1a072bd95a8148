# The first process of a host, in namespaces of its own:
#     bash ec2_host.sh FOLDER NAME KEPT...      FOLDER: etc/, keys; KEPT: what stays visible
# It has this machine's programs, and /tmp, /home, /root, /opt, /run and /dev/shm to itself.
set -e
folder=$1 name=$2
shift 2
hostname "$name"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd /run/host /run/kept
mount --bind "$folder" /run/host
n=0
for path in "$@"; do
    n=$((n + 1))
    mkdir "/run/kept/$n"
    mount --bind "$path" "/run/kept/$n"
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777,size=8g tmpfs /dev/shm
for path in /home /root /opt /usr/local/sbin; do mount -t tmpfs -o mode=755 tmpfs $path; done
n=0
for path in "$@"; do
    n=$((n + 1))
    mkdir -p "$path"
    mount --bind "/run/kept/$n" "$path"
done
# The image: an environment at /opt/raygen, and DeepSpeed's operators beside it.
mkdir /opt/raygen /opt/raygen-ops
mount --bind "$1" /opt/raygen
cp -a /run/host/ops/. /opt/raygen-ops
for file in hosts resolv.conf passwd group shadow sudoers; do mount --bind "/run/host/etc/$file" "/etc/$file"; done
install -d -o ubuntu -g ubuntu /home/ubuntu
install -o ubuntu -g ubuntu /dev/null /home/ubuntu/.bashrc
chown -R ubuntu:ubuntu /opt/raygen-ops
# What ends a machine: whoever brought it up looks for this file.
printf '#!/bin/sh\ntouch /run/host/shutdown\n' >/usr/local/sbin/shutdown
chmod 755 /usr/local/sbin/shutdown
/usr/sbin/sshd -D -e -f /run/host/sshd_config &
wait
