# shellcheck shell=sh disable=SC2154 # Nix hands over the attributes of a derivation as variables
# wrapPython's functions, and makeWrapper's, which come with it. They write real wrappers.
installModule() {
  installMetadata
  mkdir -p "$site/$module"
  echo "__version__ = \"$version\"" > "$site/$module/__init__.py"
  if [ -f "${src:-}/pyproject.toml" ]; then installProject; fi
}

installMetadata() {
  site=$out/lib/python3.12/site-packages
  mkdir -p "$site/$module-$version.dist-info"
  printf 'Metadata-Version: 2.4\nName: %s\nVersion: %s\n' "$module" "$version" \
    > "$site/$module-$version.dist-info/METADATA"
}

# Of a project, what hatchling would install of this one: its package, data files and program.
installProject() {
  cp -r "$src/python/$module" "$site/"
  chmod -R u+w "$site/$module"
  for _pair in $included; do
    mkdir -p "$site/$(dirname "${_pair#*=}")"
    cp -r "$src/${_pair%%=*}" "$site/${_pair#*=}"
  done
  mkdir -p "$out/bin"
  printf '#!/bin/sh\nexec python3.12 -m %s "$@"\n' "$module" > "$out/bin/$pname"
  chmod +x "$out/bin/$pname"
}

# Sets program_PATH and program_PYTHONPATH to the closure of the given packages.
buildPythonPath() {
  program_PATH=
  program_PYTHONPATH=
  _seen=" "
  for _package in $1; do _addToPythonPath "$_package"; done
}

_addToPythonPath() {
  case $_seen in *" $1 "*) return 0 ;; esac
  _seen="$_seen$1 "
  if [ -d "$1/lib/python3.12/site-packages" ]; then
    program_PYTHONPATH=$program_PYTHONPATH${program_PYTHONPATH:+:}$1/lib/python3.12/site-packages
  fi
  if [ -d "$1/bin" ]; then program_PATH=$program_PATH${program_PATH:+:}$1/bin; fi
  if [ -f "$1/nix-support/propagated-build-inputs" ]; then
    # shellcheck disable=SC2013 # store paths hold no blanks, and one line has several
    for _next in $(cat "$1/nix-support/propagated-build-inputs"); do _addToPythonPath "$_next"; done
  fi
}

makeWrapper() { makeShellWrapper "$@"; }

makeShellWrapper() { # PROGRAM WRAPPER [--prefix VAR SEP VALUE] [--set VAR VALUE] [--run COMMAND]
  _program=$1 _wrapper=$2
  shift 2
  mkdir -p "$(dirname "$_wrapper")"
  echo '#!/bin/sh -e' > "$_wrapper"
  while [ $# -gt 0 ]; do
    case $1 in
      --prefix) echo "export $2='$4'\${$2:+'$3'}\$$2" >> "$_wrapper"; shift 4 ;;
      --set) echo "export $2='$3'" >> "$_wrapper"; shift 3 ;;
      --run) echo "$2" >> "$_wrapper"; shift 2 ;;
      *) echo "makeWrapper doesn't understand the arg $1" >&2; exit 1 ;;
    esac
  done
  echo "exec '$_program' \"\$@\"" >> "$_wrapper"
  chmod +x "$_wrapper"
}

wrapProgramShell() { # PROGRAM [as makeWrapper]
  _inner=$(dirname "$1")/.$(basename "$1")-wrapped
  while [ -e "$_inner" ]; do _inner=${_inner}_; done
  mv "$1" "$_inner"
  _outer=$1
  shift
  makeShellWrapper "$_inner" "$_outer" "$@"
}

wrapPythonPrograms() {
  if [ ! -d "$out/bin" ]; then return 0; fi
  buildPythonPath "$out ${pythonPath:-}"
  for _script in "$out"/bin/*; do
    wrapProgramShell "$_script" --prefix PATH : "$program_PATH" \
      --prefix PYTHONPATH : "$program_PYTHONPATH" --set PYTHONNOUSERSITE true
  done
}
