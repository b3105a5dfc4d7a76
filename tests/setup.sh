#!/usr/bin/env bash
# Installs what the tests need on Debian 12, as root. Running it again changes nothing.
set -euo pipefail

temporary=()
trap 'rm -rf "${temporary[@]}"' EXIT

packages=(
	acl attr binutils ca-certificates containerd containernetworking-plugins debootstrap docker-registry e2fsprogs erofs-utils fuse3 g++ iproute2 jq kmod
	libcap2-bin mount nginx-light openssl pigz podman procps runc skopeo systemd umoci util-linux zstd
)
missing=()
for package in "${packages[@]}"; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
	# Packages must not start their services here: every test starts its own.
	if [[ ! -e /usr/sbin/policy-rc.d ]]; then
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
		chmod 755 /usr/sbin/policy-rc.d
		temporary+=(/usr/sbin/policy-rc.d)
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
fi
for module in fuse overlay erofs; do
	grep -qw "$module" /proc/filesystems || modprobe "$module" 2>/dev/null || echo "the kernel has no $module" >&2
done

# Packages of Debian unstable with every library they need, unpacked beside the build, installed nowhere.
top=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}

# unpack_unstable PACKAGE DIRECTORY: the package with its dependencies in a directory of their own.
unpack_unstable() {
	local package=$1 directory=$2 mirror work archive
	mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed 's|/*$||' | grep -m 1 '/debian$' || true)
	[[ -n $mirror ]] || { echo "apt has no Debian mirror configured" >&2; exit 1; }
	work=$(mktemp -d)
	temporary+=("$work")
	mkdir -p "$work"/{etc/preferences.d,state/lists/partial,cache/archives/partial,root}
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/etc/sources.list"
	: >"$work/status"
	# A mirror may be frozen at some day: its signature counts, not its age.
	local apt=(apt-get -qq -o Acquire::Check-Valid-Until=false -o Dir::Etc::sourcelist="$work/etc/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=/dev/null
		-o Dir::State="$work/state" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache"
		-o APT::Sandbox::User=root -o APT::Install-Recommends=false)
	"${apt[@]}" update
	"${apt[@]}" -y --download-only install "$package" >/dev/null
	for archive in "$work"/cache/archives/*.deb; do dpkg-deb -x "$archive" "$work/root"; done
	rm -rf "$directory"
	mkdir -p "$(dirname "$directory")"
	mv "$work/root" "$directory"
}

erofs=${SLUICE_EROFS_UTILS:-$target/erofs-utils}
[[ -x $erofs/usr/bin/fsck.erofs ]] || unpack_unstable erofs-utils "$erofs"
# Tools that write lazy images in formats of their own, as they are made today.
stargz=${SLUICE_STARGZ:-$target/stargz}
[[ -x $stargz/usr/bin/ctr-remote ]] || unpack_unstable stargz-snapshotter "$stargz"
skopeo=${SLUICE_SKOPEO:-$target/skopeo}
[[ -x $skopeo/usr/bin/skopeo ]] || unpack_unstable skopeo "$skopeo"
# Of this one, only containerd, its client and its shim are run, with the libraries of the system, for which its runc is too
# new.
containerd=${SLUICE_CONTAINERD_2:-$target/containerd-2}
[[ -x $containerd/usr/bin/containerd ]] || unpack_unstable containerd "$containerd"
rm -f "$containerd"/usr/{bin,sbin}/runc
