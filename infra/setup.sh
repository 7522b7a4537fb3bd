#!/bin/sh
# Work pools, deployments and automations on the server that PREFECT_API_URL names. Run it again after every upgrade.
#
#     PAHI_POOL_TYPE=process or kubernetes: what the pools are; those that are there keep their type, new ones are process
#     PAHI_HOME, PAHI_NIGHTLY, PAHI_CHAIN: see prefect.yaml
set -eu
cd "$(dirname "$0")/.."
case "${PAHI_POOL_TYPE:-}" in
  '' | process | kubernetes) ;;
  *) echo "error: PAHI_POOL_TYPE=$PAHI_POOL_TYPE: expected process or kubernetes" >&2; exit 2 ;;
esac
# The Python that prefect runs in.
python="$(dirname "$(command -v prefect)")/python"

for pool in pahi-cpu pahi-gpu; do
  # A pool's type cannot be changed, and with the template of another it would start nothing.
  there="$(prefect --no-prompt work-pool inspect "$pool" --output json 2>/dev/null | sed -n 's/^  "type": "\(.*\)",*$/\1/p')"
  type="${PAHI_POOL_TYPE:-${there:-process}}"
  if [ "$type" != "${there:-$type}" ]; then
    echo "error: PAHI_POOL_TYPE=$type, and the pool $pool is of type $there: \`prefect work-pool delete $pool\` first" >&2
    exit 2
  fi
  case "$type" in
    process) prefect --no-prompt work-pool create "$pool" --type process --overwrite ;;
    kubernetes)
      prefect --no-prompt work-pool create "$pool" --type kubernetes --overwrite \
        --base-job-template "infra/kubernetes/$pool.json" ;;
  esac
done

prefect --no-prompt deploy --all
"$python" -m flows.forms

# One automation of each name: an older one goes first.
sed -n 's/^ *- name: *//p' infra/automations.yaml | while read -r name; do
  prefect --no-prompt automation delete "$name" >/dev/null 2>&1 || true
done
prefect --no-prompt automation create --from-file infra/automations.yaml
