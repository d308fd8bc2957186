#!/usr/bin/env bash
# A Garage cluster of three nodes on this machine, with nine buckets that skygate takes for hosts. For trying out and
# measuring; see garage.md.
#
#   garage.sh start  FOLDER   starts it (makes it the first time), and says how to start skygate on it
#   garage.sh status FOLDER   what the cluster says of itself
#   garage.sh stop   FOLDER   stops its nodes; the data stays
#
# `garage` has to be on PATH: cargo install garage. BASE_PORT (default 3900) is the first of nine ports that are taken.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# = 2 ] || usage
command=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
base_port=${BASE_PORT:-3900}
buckets=(pool-{1..9})

port() { echo $((base_port + 10 * ($1 - 1) + $2)); }       # port NODE WHICH: 0 S3, 1 between nodes, 2 admin
on() { garage -c "$folder/$1/garage.toml" "${@:2}"; }        # on NODE COMMAND...

command -v garage >/dev/null || { echo "error: no garage on PATH: cargo install garage" >&2; exit 1; }

write_configuration() {
    local secret node
    secret=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
    for node in 1 2 3; do
        mkdir -p "$folder/$node"
        cat >"$folder/$node/garage.toml" <<TOML
metadata_dir = "$folder/$node/meta"
data_dir = "$folder/$node/data"
db_engine = "sqlite"
replication_factor = 3
metadata_fsync = true
data_fsync = true

rpc_secret = "$secret"
rpc_bind_addr = "127.0.0.1:$(port $node 1)"
rpc_public_addr = "127.0.0.1:$(port $node 1)"

[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$(port $node 0)"

[admin]
api_bind_addr = "127.0.0.1:$(port $node 2)"
TOML
        chmod 600 "$folder/$node/garage.toml"
    done
}

start_nodes() {
    local node
    for node in 1 2 3; do
        if [ -f "$folder/$node/pid" ] && kill -0 "$(cat "$folder/$node/pid")" 2>/dev/null; then continue; fi
        garage -c "$folder/$node/garage.toml" server >>"$folder/$node/log" 2>&1 &
        echo $! >"$folder/$node/pid"
    done
    for node in 1 2 3; do
        for _ in $(seq 100); do
            on $node status >/dev/null 2>&1 && continue 2
            sleep 0.1
        done
        echo "error: node $node did not start; see $folder/$node/log" >&2
        exit 1
    done
}

# A cluster that is started again needs a moment until its nodes have found each other.
wait_for_each_other() {
    for _ in $(seq 100); do
        [[ $(on 1 status) == *'FAILED NODES'* ]] || return 0
        sleep 0.1
    done
    echo "error: the nodes do not reach each other; see $folder/1/log" >&2
    exit 1
}

# The nodes learn of each other, share the data, and get a key and nine buckets.
make_cluster() {
    local node id
    for node in 1 2 3; do
        id=$(on $node node id -q)
        for other in 1 2 3; do
            [ $other = $node ] || on $other node connect "$id" >/dev/null
        done
        on 1 layout assign -z "zone-$node" -c 10G "${id%%@*}" >/dev/null
    done
    on 1 layout apply --version 1 >/dev/null
    on 1 key create skygate >"$folder/key.txt"
    for bucket in "${buckets[@]}"; do
        on 1 bucket create "$bucket" >/dev/null
        on 1 bucket allow --read --write "$bucket" --key skygate >/dev/null
    done
    write_skygate_configuration
}

# Each node answers for three of the hosts.
write_skygate_configuration() {
    local id secret index=0 bucket
    id=$(sed -n 's/^ *Key ID: *//p' "$folder/key.txt")
    secret=$(sed -n 's/^ *Secret key: *//p' "$folder/key.txt")
    [ -n "$id" ] && [ -n "$secret" ] || { echo "error: cannot read the new key; see $folder/key.txt" >&2; exit 1; }
    (umask 077 && printf 'aws_access_key_id = %s\naws_secret_access_key = %s\n' "$id" "$secret" >"$folder/key")
    rm "$folder/key.txt"
    for bucket in "${buckets[@]}"; do
        printf '[[hosts]]\nurl = "s3://%s"\nendpoint = "http://127.0.0.1:%s"\nregion = "garage"\naccess_key_file = "%s"\n\n' \
            "$bucket" "$(port $((index % 3 + 1)) 0)" "$folder/key"
        index=$((index + 1))
    done >"$folder/skygate.toml"
}

case $command in
start)
    [ -f "$folder/1/garage.toml" ] || write_configuration
    start_nodes
    [ -f "$folder/skygate.toml" ] || make_cluster
    wait_for_each_other
    on 1 status
    echo
    echo "Now: skygate serve --config $folder/skygate.toml"
    ;;
status)
    on 1 status
    on 1 stats
    ;;
stop)
    for node in 1 2 3; do
        [ ! -f "$folder/$node/pid" ] || kill "$(cat "$folder/$node/pid")" 2>/dev/null || true
        rm -f "$folder/$node/pid"
    done
    ;;
*) usage ;;
esac
