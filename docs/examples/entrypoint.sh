#!/bin/sh
# A container's entry: audit the environment for the card that is here, then serve. Exit code 5 stops it.
# With a volume at XDG_CACHE_HOME the second start reads only what changed.
set -e
vllm-variants audit "${VLLM_ENVIRONMENT:-/opt/venv}" --fail-on missing --fail-on driver >&2
exec vllm serve "$@"
