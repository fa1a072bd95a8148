#!/usr/bin/env bash
# What raygen's nodes need, under /opt: run once for an image, or by nodes that have it not.
#     bash ~/raygen/cluster/install.sh
# Debian or Ubuntu with Python 3.11 or newer and, for GPUs, NVIDIA's driver. Minutes the first time,
# nothing from then on.
set -euo pipefail
grep -qs raygen/cluster/node.sh ~/.bashrc || echo '. ~/raygen/cluster/node.sh' >>~/.bashrc
[ -x /opt/raygen/bin/raygen ] && exit
sudo apt-get update -qq
sudo apt-get install -qqy python3-venv python3-dev g++ rsync >/dev/null
sudo mkdir -p /opt/raygen /opt/raygen-ops
sudo chown "$(id -u):$(id -g)" /opt/raygen /opt/raygen-ops
python3 -m venv /opt/raygen
/opt/raygen/bin/pip install --quiet --disable-pip-version-check ~/raygen
# DeepSpeed's operator for groups of CPU ranks, which otherwise the first of them would compile.
# With the same ninja as later: another one's log would have it all compiled again.
export PATH=/opt/raygen/bin:$PATH
TORCH_EXTENSIONS_DIR=/opt/raygen-ops DS_ACCELERATOR=cpu python -c \
    "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Op; Op().load(verbose=False)"
