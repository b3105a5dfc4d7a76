#!/usr/bin/env bash
# Installs a Debian 12 with systemd and containerd, and nothing that they do not need, into a directory: a machine on which nobody has
# done anything yet. Packages come from the machine's own apt mirror.
#
# usage: build-machine.sh DIRECTORY
# The system is DIRECTORY/root; the file DIRECTORY/complete says that it is whole. A second run then does nothing.
set -euo pipefail

directory=$1
mkdir -p "$directory"
directory=$(realpath "$directory")
exec 9>"$directory/lock"
flock 9
[[ -e $directory/complete ]] && exit 0

command -v debootstrap >/dev/null || { echo "debootstrap is missing: run tests/setup.sh" >&2; exit 1; }
[[ $(id -u) == 0 ]] || { echo "installing a system needs root (mount, chroot)" >&2; exit 1; }
# A mount namespace of our own: whatever happens, no mount is left behind.
if [[ ${IN_NAMESPACE:-} != 1 ]]; then
	IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi

mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed 's|/*$||' | grep -m 1 '/debian$' || true)
[[ -n $mirror ]] || { echo "apt has no Debian mirror configured" >&2; exit 1; }
eval "$(apt-config shell proxy Acquire::http::Proxy)"
export http_proxy=${proxy:-${http_proxy:-}}
[[ -n $http_proxy ]] || unset http_proxy

mkdir -p "$directory/archives"
rm -rf "$directory/root"
debootstrap --variant=minbase --include=systemd,systemd-sysv,containerd,ca-certificates --cache-dir="$directory/archives" \
	bookworm "$directory/root" "$mirror" >"$directory/log" 2>&1 ||
	{ tail -n 20 "$directory/log" >&2; exit 1; }
rm -rf "$directory"/root/var/cache/apt/* "$directory"/root/var/lib/apt/lists/* "$directory/archives"
touch "$directory/complete"
