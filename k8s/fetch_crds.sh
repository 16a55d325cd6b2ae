#!/usr/bin/env bash
# Fetches the CRDs of KubeRay 1.7.0 into k8s/.crds, checked by digest: the tests validate k8s/ against them.
set -euo pipefail

into="${1:-$(dirname "$0")/.crds}"
source="${KUBERAY_SOURCE:-https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases}"
mkdir -p "$into"
cd "$into"
while read -r digest file; do
  curl --fail --silent --show-error --location --output "$file.partial" "$source/$file"
  echo "$digest  $file.partial" | sha256sum --check --quiet
  mv "$file.partial" "$file"
done << 'END'
c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1 ray.io_rayclusters.yaml
01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5 ray.io_rayjobs.yaml
0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab ray.io_rayservices.yaml
END
echo "KubeRay's CRDs are in $PWD"
