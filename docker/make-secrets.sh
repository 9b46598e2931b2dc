#!/usr/bin/env bash
# Make the secrets of compose.yaml that are missing; what is there stays as it is.
# The folder is closed to others (0700). The files in it are readable, for a container's user is none
# of this machine's, and each container sees only those that it is given.
set -euo pipefail
folder="${1:-$(dirname "${BASH_SOURCE[0]}")/secrets}"
mkdir -p "$folder"
cd "$folder"
chmod 0700 .

random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
keep() {
  [[ -s "$1" ]] || printf '%s\n' "$2" >"$1"
  chmod 0444 "$1"
}

for name in postgres_password token_pepper metrics_token grafana_password; do
  keep "$name" "$(random)"
done
keep valkey_auth "requirepass $(random)"
keep database_url "postgresql://fhv:$(<postgres_password)@postgres/fhv"
keep broker_url "redis://:$(cut -d' ' -f2 valkey_auth)@valkey:6379/0"
# This one is the coordinator's to give: see README.md. Until then the file is empty.
[[ -e worker_token ]] || : >worker_token
chmod 0644 worker_token
