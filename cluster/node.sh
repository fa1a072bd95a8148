# The environment of a node: cluster/install.sh has every shell on it source this.
# The code lies in ~/raygen; what it needs was built into /opt/raygen by cluster/install.sh.
export PATH=/opt/raygen/bin:$PATH
export PYTHONPATH=$HOME/raygen
# DeepSpeed's operators, built at image time: no node compiles when it starts.
export TORCH_EXTENSIONS_DIR=/opt/raygen-ops
export RAY_AUTH_MODE=token
# boto3 asks the metadata service once, for a second: slow once, and the autoscaler would be without
# credentials for ever.
export AWS_METADATA_SERVICE_TIMEOUT=20 AWS_METADATA_SERVICE_NUM_ATTEMPTS=5
# A zone that has no capacity is asked once, and then the next one: cluster.market says when again.
export BOTO_CREATE_MAX_RETRIES=1
# What was asked for and did not come (EC2 may give fewer) is asked for again after so long.
export RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S=180
# What ends the machine, and with it the bill, when a lease on it is over.
export RAYGEN_END_COMMAND="sudo shutdown -h now"
ulimit -n 65536 2>/dev/null || true
