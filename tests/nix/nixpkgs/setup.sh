# shellcheck shell=sh disable=SC2154 # Nix hands over the attributes of a derivation as variables
# The builder of every derivation in the model: POSIX sh and the host's coreutils, nothing else.
# It does what stdenv's setup.sh does, as far as this project can tell the difference.
set -eu
PATH=/usr/bin:/bin:/run/current-system/sw/bin
export PATH
umask 022

# ── functions that phases and hooks call ──
runHook() { eval "${1}_hook=\${$1:-}; eval \"\$${1}_hook\""; }

getAllOutputNames() { echo "$outputs"; }

substituteInPlace() { # FILE, then --replace-fail OLD NEW or --replace-warn OLD NEW, as often as wanted
  file=$1
  shift
  while [ "$#" -ge 3 ]; do
    if ! grep -qF -- "$2" "$file"; then
      echo "substituteInPlace: '$2' is not in $file" >&2
      if [ "$1" = --replace-fail ]; then exit 1; fi
    fi
    old=$(printf '%s' "$2" | sed 's/[][\.*^$/]/\\&/g')
    new=$(printf '%s' "$3" | sed 's/[\&/]/\\&/g')
    sed -i "s/$old/$new/" "$file"
    shift 3
  done
}

# ── phases ──
mkdir -p "$NIX_BUILD_TOP/work"
cd "$NIX_BUILD_TOP/work"
for output in $outputs; do eval "mkdir -p \"\$$output\""; done

for dep in ${nativeBuildInputs:-}; do
  if [ -d "$dep/bin" ]; then PATH=$PATH:$dep/bin; fi
  # shellcheck source=/dev/null
  if [ -f "$dep/nix-support/setup-hook" ]; then . "$dep/nix-support/setup-hook"; fi
done

for phase in postUnpack buildPhase installPhase; do runHook "$phase"; done

if [ -n "${propagatedBuildInputs:-}" ]; then
  mkdir -p "$out/nix-support"
  echo "$propagatedBuildInputs" > "$out/nix-support/propagated-build-inputs"
fi
for phase in postInstall fixupPhase postFixup ${postPhases:-}; do runHook "$phase"; done
