#!/usr/bin/env bash
# What a node of a `ray up` cluster needs once, on Ubuntu 24.04 with NVIDIA's driver where there is a GPU:
#   bash cluster/prepare_node.sh [NFS_SERVER:/PATH]
# Local SSDs become /mnt/local (temporary files, Ray's object spilling, copies of shards), the NFS export, if any,
# /shared (runs), and the checkout that this file lies in gets its .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(make python3-venv python3-dev g++ nfs-common mdadm xfsprogs)
if ! dpkg -s "${packages[@]}" &>/dev/null; then
    sudo apt-get update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "${packages[@]}"
fi

if ! mountpoint -q /mnt/local; then
    sudo mkdir -p /mnt/local
    # AWS names its local SSDs by their model, GCP by their links; network disks are neither.
    mapfile -t disks < <(
        lsblk -dnpo NAME,MODEL | awk '/Instance Storage/ {print $1}'
        find /dev/disk/by-id -name 'google-local-nvme-ssd-*' ! -name '*-part*' -exec readlink -f {} + 2>/dev/null || true
    )
    # An image may have mounted them already, as AWS's deep-learning ones do.
    mapfile -t mounted < <(for disk in "${disks[@]}"; do lsblk -npo MOUNTPOINT "$disk" | grep / || true; done | sort -u)
    if ((${#mounted[@]})); then
        sudo mount --bind "${mounted[0]}" /mnt/local
    elif ((${#disks[@]} > 1)); then
        sudo mdadm --create /dev/md0 --run --level=0 --raid-devices=${#disks[@]} "${disks[@]}"
        sudo mkfs.xfs -q -f /dev/md0
        sudo mount -o noatime /dev/md0 /mnt/local
    elif ((${#disks[@]} == 1)); then
        sudo mkfs.xfs -q -f "${disks[0]}"
        sudo mount -o noatime "${disks[0]}" /mnt/local
    fi
    sudo chmod 1777 /mnt/local
fi

if [[ -n "${1:-}" ]] && ! mountpoint -q /shared; then
    sudo mkdir -p /shared
    sudo mount -t nfs4 -o nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport "$1" /shared
fi

make setup
