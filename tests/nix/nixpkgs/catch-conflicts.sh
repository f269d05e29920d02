# shellcheck shell=sh disable=SC2154 # Nix hands over the attributes of a derivation as variables
# pythonCatchConflictsHook: a build whose closure holds two of one distribution fails.
catchConflicts() {
  buildPythonPath "$out"
  _names=$(
    IFS=:
    for _site in $program_PYTHONPATH; do
      for _info in "$_site"/*.dist-info; do
        if [ -d "$_info" ]; then basename "$_info" | sed 's/-.*//'; fi
      done
    done | sort | uniq -d
  )
  if [ -n "$_names" ]; then
    echo "Found duplicated packages in closure for dependency '$_names'" >&2
    exit 1
  fi
}
