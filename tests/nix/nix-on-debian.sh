#!/bin/sh
# nix-on-debian.sh PREFIX - puts Nix 2.26 into PREFIX, for the tests, out of the packages of Debian's
# stable release. Installs nothing, adds no source of apt's, needs no root: PREFIX can be deleted.
#
# It asks the mirror that this machine's own apt uses, with lists and a cache of its own, and checks
# Debian's signatures. When it cannot, its last line says why and it exits with 1.
set -eu
suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
prefix=${1:?usage: nix-on-debian.sh PREFIX}

refuse() {
  echo "no Nix for the tests: $1" >&2
  exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

case $prefix in /*) ;; *) refuse "PREFIX must be an absolute path, not $prefix" ;; esac
if "$prefix/bin/nix" --version 2>/dev/null; then exit 0; fi
if ! has apt-get || ! has dpkg-deb; then refuse "this is not Debian (no apt-get)"; fi
[ "$(dpkg --print-architecture)" = amd64 ] || refuse "only the packages for amd64 were tried"
[ -r "$keyring" ] || refuse "$keyring is missing: install debian-archive-keyring"

mkdir -p "$(dirname "$prefix")" || refuse "$(dirname "$prefix") cannot be made"
if has flock && [ -z "${NIX_ON_DEBIAN_LOCKED-}" ]; then # one of several test processes at a time
  NIX_ON_DEBIAN_LOCKED=1 exec flock "$prefix.lock" sh "$0" "$prefix"
fi
work=$(mktemp -d "$prefix.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# ── an apt of our own: empty status, so that it resolves everything; this machine's proxy holds ──
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
mirror=$(apt-get -o Debug::NoLocking=1 update --print-uris 2>/dev/null |
  sed -n "s|^'\(.*\)/dists/$release/InRelease'.*|\1|p" | sed -n 1p)
[ -n "$mirror" ] || refuse "apt's sources name no Debian mirror for ${release:-this system}"

apt=$work/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/none"
: >"$apt/status"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources"
cat >"$apt/conf" <<END
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Dir::Log "$apt";
Dir::Etc::sourcelist "$apt/sources";
Dir::Etc::sourceparts "$apt/none";
Dir::Etc::preferences "$apt/none/preferences";
Dir::Etc::preferencesparts "$apt/none";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
END
ours() { apt-get -c "$apt/conf" -qq "$@"; }

ours update >"$work/said" 2>&1 || refuse "Debian's mirror does not answer: $(sed -n 1p "$work/said")"

# ── Nix with the libraries that it loads, a static shell, and patchelf to point Nix at them ──
ours install -s nix-bin patchelf | awk '$1 == "Inst" { print $2 }' |
  grep -E '^(nix-bin|bash-static|patchelf|zlib1g|lib.+)$' |
  grep -vE '^lib(perl|pam|semanage|sepol|debconf|systemd|audit|c-gconv)|-perl$' >"$apt/names"
(cd "$apt/cache" && xargs apt-get -c "$apt/conf" -qq download <"$apt/names") >"$work/said" 2>&1 ||
  refuse "packages could not be downloaded: $(sed -n 1p "$work/said")"
for package in "$apt"/cache/*.deb; do dpkg-deb -x "$package" "$work/tree"; done

new=$work/new
mkdir -p "$new/bin" "$new/libexec" "$new/etc/nix" "$new/share"
cp -a "$work/tree/usr/lib/x86_64-linux-gnu" "$new/lib"
cp -a "$work"/tree/usr/bin/nix* "$work/tree/usr/bin/bash-static" "$new/libexec/"
cp -a "$work/tree/usr/share/doc/nix-bin/copyright" "$new/share/"
"$new/lib/ld-linux-x86-64.so.2" --library-path "$new/lib" "$work/tree/usr/bin/patchelf" \
  --set-interpreter "$prefix/lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$prefix/lib" "$new/libexec/nix"

# No sandbox: the model's derivations use the host's shell. No substituter: they are all built here.
cat >"$new/etc/nix/nix.conf" <<END
experimental-features = nix-command flakes
build-users-group =
sandbox = false
substituters =
flake-registry =
END
for program in "$new"/libexec/nix*; do
  name=${program##*/}
  cat >"$new/bin/$name" <<END
#!/bin/sh
NIX_CONF_DIR=\${NIX_CONF_DIR:-$prefix/etc/nix} exec $prefix/libexec/$name "\$@"
END
  chmod 755 "$new/bin/$name"
done
rm -rf "$prefix"
mv "$new" "$prefix"
"$prefix/bin/nix" --version
