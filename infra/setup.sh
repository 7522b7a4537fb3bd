#!/bin/sh
# Work pools, deployments and automations on the server that PREFECT_API_URL names. Run it again after every upgrade.
#
#     PAHI_POOL_TYPE=process (default) or kubernetes: what the pools are
#     PAHI_HOME, PAHI_NIGHTLY, PAHI_CHAIN: see prefect.yaml
set -eu
cd "$(dirname "$0")/.."
type="${PAHI_POOL_TYPE:-process}"

for pool in pahi-cpu pahi-gpu; do
  case "$type" in
    process) prefect --no-prompt work-pool create "$pool" --type process --overwrite ;;
    kubernetes)
      prefect --no-prompt work-pool create "$pool" --type kubernetes --overwrite \
        --base-job-template "infra/kubernetes/$pool.json" ;;
    *) echo "error: PAHI_POOL_TYPE=$type: expected process or kubernetes" >&2; exit 2 ;;
  esac
done

prefect --no-prompt deploy --all

# One automation of each name: an older one goes first.
sed -n 's/^ *- name: *//p' infra/automations.yaml | while read -r name; do
  prefect --no-prompt automation delete "$name" >/dev/null 2>&1 || true
done
prefect --no-prompt automation create --from-file infra/automations.yaml
