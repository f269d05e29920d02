#!/bin/sh
# Makes echarts.min.js anew, from the npm registry: the parts of ECharts that echarts.entry.js names, which are
# half of the whole. The same versions give the same bytes; their hash stands in echarts.toml.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cp "$here/echarts.entry.js" "$folder"
cd "$folder"
npm init --yes >/dev/null
npm install --silent echarts@6.1.0 zrender@6.1.0 tslib@2.3.0 esbuild@0.28.2
npx esbuild echarts.entry.js --bundle --minify --format=iife --global-name=echarts --legal-comments=none \
  --charset=utf8 --define:process.env.NODE_ENV='"production"' --outfile=made.js
{
  echo "/*! Apache ECharts 6.1.0 (Apache-2.0) with zrender 6.1.0 (BSD-3-Clause) and tslib 2.3.0 (0BSD);" \
    "the parts named in echarts.entry.js */"
  cat made.js
} >"$here/echarts.min.js"
sha256sum "$here/echarts.min.js"
