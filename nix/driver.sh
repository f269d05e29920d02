# shellcheck shell=sh
# driver.sh [ROOT] - offer this host's NVIDIA driver, and nothing else of the host, to a program
# built by Nix. Prints a directory for LD_LIBRARY_PATH, or nothing where there is nothing to do.
# POSIX sh; PATH need hold only coreutils. ROOT is for tests: a folder that stands for the host's /.
#
# Such a program looks for libcuda.so.1 in /run/opengl-driver/lib, which only NixOS has. Putting
# /usr/lib before it would offer the host's libc and libstdc++ too, so the driver's libraries are
# linked into a directory of their own. That is harmless to child processes of the host as well:
# there they find what they would have found anyway.
#
# The directory is in the user's cache, not in XDG_RUNTIME_DIR, which a logout removes under a
# server that still runs. It is named after what it holds, made aside and renamed, and used only
# when no one else can write to it; where there is no such cache, each start makes one in TMPDIR.
set -eu
umask 077
root=${1-}

# ── is there anything to do? ──
[ ! -e "$root/run/opengl-driver/lib/libcuda.so.1" ] || exit 0 # NixOS, and hosts set up like it

set -f
IFS=:
for entry in ${LD_LIBRARY_PATH-}; do # the person, or a start before this one, has chosen
  if [ -n "$entry" ] && [ -e "$entry/libcuda.so.1" ]; then exit 0; fi
done
unset IFS
set +f

# ── where is the driver? ──
case $(uname -m) in
  x86_64) abi=x86-64 triple=x86_64-linux-gnu ;;
  aarch64) abi=AArch64 triple=aarch64-linux-gnu ;;
  *) exit 0 ;;
esac

# libcuda.so.1 of this ABI in the dynamic linker's cache.
from_ldconfig() {
  for ldconfig in "$root/sbin/ldconfig" "$root/usr/sbin/ldconfig"; do
    [ -x "$ldconfig" ] || continue
    "$ldconfig" -p 2>/dev/null | while read -r name kind rest; do
      case "$name $kind $rest" in
        "libcuda.so.1 "*"$abi"*" => "*)
          echo "$root$(dirname "${rest##*=> }")"
          break
          ;;
      esac
    done
    break
  done
}

# WSL's folder first: a Linux driver installed there by mistake does not work. Then what the
# host's own programs use, then containers' folders and the usual ones.
candidates() {
  echo "$root/usr/lib/wsl/lib"
  from_ldconfig
  for folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib "/usr/lib/$triple" \
    "/usr/lib/$triple/nvidia/current" /usr/lib64 /usr/lib64/nvidia /usr/lib "/lib/$triple" /lib64; do
    echo "$root$folder"
  done
}

driver=$(
  candidates | while read -r folder; do
    if [ -e "$folder/libcuda.so.1" ]; then
      echo "$folder"
      break
    fi
  done
)
[ -n "$driver" ] || exit 0

# ── its libraries: CUDA, NVML, the PTX compiler and what they load; libdxcore is WSL's ──
set --
for library in "$driver"/libcuda.so* "$driver"/libcudadebugger.so* "$driver"/libnvidia-*.so* \
  "$driver"/libnvcuvid.so* "$driver"/libdxcore.so; do
  if [ -e "$library" ]; then set -- "$@" "$library"; fi
done

# ── a directory of links to them ──
mine() { # DIRECTORY PATTERN: is it a real one, my own, with such permissions?
  # shellcheck disable=SC2254,SC3067 # a pattern it is; bash and dash have -O
  [ -O "$1" ] && [ ! -L "$1" ] && case $(stat -c %A "$1") in $2) ;; *) false ;; esac
}

link_into() { # DIRECTORY LIBRARY...
  into=$1
  shift
  ln -s "$@" "$into/"
}

cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
ours=$cache/vllm-variants-driver
case $cache in
  *[:\;]*) cache= ;; # would be two entries of LD_LIBRARY_PATH
  /*) mkdir -p "$ours" 2>/dev/null || cache= ;;
  *) cache= ;;
esac

# No stranger may write to the cache, and nobody else to what is in ours.
if [ -n "$cache" ] && mine "$cache" 'd???????-?' && mine "$ours" 'd????-??-?'; then
  sum=$(printf '%s\n' "$@" | sha256sum)
  links=$ours/${sum%% *}
  if [ ! -d "$links" ]; then
    new=$(mktemp -d "$ours/.new.XXXXXX")
    link_into "$new" "$@"
    mv -T "$new" "$links" 2>/dev/null || rm -rf "$new" # another start was first
  fi
else
  links=$(mktemp -d "${TMPDIR:-/tmp}/vllm-variants-driver.XXXXXX" 2>/dev/null) || exit 0
  link_into "$links" "$@"
fi
echo "$links"
