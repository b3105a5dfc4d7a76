#!/usr/bin/env bash
# Builds two real images from Debian packages: `small` (base, python, application: 3 layers) and `large` (base, python,
# node, java, compilers, application: 6 layers, more than 1 GB plain), as tags of one OCI layout.
#
# Every layer is the upper directory of an overlayfs mount in which apt ran. Packages come from the machine's own apt
# mirror. Package lists and archives are bind-mounted into the tree, so they are in no layer.
#
# usage: build-debian.sh DIRECTORY UPPER_TO_IMAGE     (the second is the program of that name in this crate)
# The layout is DIRECTORY/layout; the file DIRECTORY/complete says that it is whole. A second run then does nothing.
set -euo pipefail

directory=$1 tool=$2
mkdir -p "$directory"
directory=$(realpath "$directory")
exec 9>"$directory/lock"
flock 9
[[ -e $directory/complete ]] && exit 0

for command in debootstrap unshare apt-get; do
	command -v "$command" >/dev/null || { echo "$command is missing: run tests/setup.sh" >&2; exit 1; }
done
[[ $(id -u) == 0 ]] || { echo "building images needs root (mount, chroot)" >&2; exit 1; }
# A mount namespace of our own: whatever happens, no mount is left behind.
if [[ ${IN_NAMESPACE:-} != 1 ]]; then
	IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi

suite=bookworm
mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed 's|/*$||' | grep -m 1 '/debian$' || true)
[[ -n $mirror ]] || { echo "apt has no Debian mirror configured" >&2; exit 1; }
eval "$(apt-config shell proxy Acquire::http::Proxy)"
export http_proxy=${proxy:-${http_proxy:-}}
[[ -n $http_proxy ]] || unset http_proxy

work=$directory/work
rm -rf "$work" "$directory/layout"
mkdir -p "$work" "$directory/lists/partial" "$directory/archives/partial"

in_tree() { # TREE COMMAND: runs a shell command in the tree
	chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root \
		DEBIAN_FRONTEND=noninteractive ${http_proxy:+http_proxy="$http_proxy"} /bin/sh -ec "$2"
}

clean() { # UPPER: what is different in every build
	rm -rf "$1"/var/log/* "$1"/var/cache/apt/* "$1"/var/cache/ldconfig "$1"/var/lib/apt/lists/* \
		"$1"/var/lib/apt/extended_states "$1"/tmp/* "$1"/run/* "$1"/debootstrap
}

store() { # NAME: turns the upper directory of a layer into a stored layer, while the next one is being built
	"$tool" layer "$directory/layout" "$work/$1/upper" "$work/$1/record" &
	storing+=($!)
}

base() {
	mkdir -p "$work/base/upper"
	# debootstrap keeps the archives it fetched; a second build needs no network for them.
	debootstrap --variant=minbase --cache-dir="$directory/archives" "$suite" "$work/base/upper" "$mirror" >"$work/base/log" 2>&1 ||
		{ tail -n 20 "$work/base/log" >&2; exit 1; }
	: >"$work/base/upper/etc/resolv.conf"
	rm -f "$work/base/upper/etc/hostname"
	clean "$work/base/upper"
	mkdir -p "$work/base/upper/var/cache/apt/archives" "$work/base/upper/var/lib/apt/lists" "$work/base/upper/var/log"
	store base
}

layer() { # NAME PARENTS COMMAND: the changes that a command makes on top of the parents, highest first
	local name=$1 parents=$2 command=$3 tree=$work/$1/tree
	mkdir -p "$work/$name"/{upper,overlay,tree}
	mount -t overlay overlay -o "lowerdir=$parents,upperdir=$work/$name/upper,workdir=$work/$name/overlay,redirect_dir=off,metacopy=off" "$tree"
	mount -t proc proc "$tree/proc"
	mount --bind /dev "$tree/dev"
	mount --bind /etc/resolv.conf "$tree/etc/resolv.conf"
	mount --bind "$directory/lists" "$tree/var/lib/apt/lists"
	mount --bind "$directory/archives" "$tree/var/cache/apt/archives"
	in_tree "$tree" "$command" >"$work/$name/log" 2>&1 || { tail -n 20 "$work/$name/log" >&2; exit 1; }
	umount "$tree"/{var/cache/apt/archives,var/lib/apt/lists,etc/resolv.conf,dev,proc} "$tree"
	clean "$work/$name/upper"
	store "$name"
}

install() { # PACKAGES: a command that installs them without starting anything
	echo "printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
		apt-get -qq -y --no-install-recommends -o APT::Sandbox::User=root -o Dpkg::Options::=--force-unsafe-io install $*
		rm /usr/sbin/policy-rc.d"
}

application='mkdir -p /app
cat >/app/main.py <<END
import datetime, json
print("READY", json.dumps({"year": datetime.date(2023, 11, 14).year}), flush=True)
END
rm /usr/share/common-licenses/GPL
ln /app/main.py /app/same.py
chmod 4755 /usr/bin/env'

storing=()
base
u() { echo "$work/$1/upper"; }
layer python "$(u base)" "apt-get -qq update; $(install python3)"
layer node "$(u python):$(u base)" "$(install nodejs)"
layer java "$(u node):$(u python):$(u base)" "$(install openjdk-17-jre-headless)"
layer compilers "$(u java):$(u node):$(u python):$(u base)" "$(install gcc g++ clang-14 llvm-14 libllvm14)"
layer application "$(u python):$(u base)" "$application"
for process in "${storing[@]}"; do wait "$process"; done

r() { for name in "$@"; do echo "$work/$name/record"; done; }
run='/usr/bin/python3 /app/main.py'
"$tool" image "$directory/layout" small "$run" $(r base python application)
"$tool" image "$directory/layout" large "$run" $(r base python node java compilers application)
rm -rf "$work"
touch "$directory/complete"
