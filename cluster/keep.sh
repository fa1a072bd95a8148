#!/usr/bin/env bash
# What stands beside Ray on a node, and outlives it: the end of the node.
#     bash ~/raygen/cluster/keep.sh head | worker SECONDS      after `ray start`
set -euo pipefail
case $1 in
head)
    # The provider renews the lease while there are workers; until it first does, an hour counts.
    setsid nohup python -m raygen.cost.watchdog ~/.raygen-life --ttl 3600 \
        --command "$RAYGEN_END_COMMAND" </dev/null >~/keep.log 2>&1 &
    ;;
worker)
    # Drains the node on a notice, and ends it when its head has been gone for so many seconds.
    setsid nohup python -m cluster.watcher "$RAY_HEAD_IP:6379" --ttl "$2" \
        --command "$RAYGEN_END_COMMAND" </dev/null >~/keep.log 2>&1 &
    ;;
esac
