#!/bin/busybox sh
# The first program in the machine: makes it usable, runs the command it was started for, hands over what that left.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 NO_COLOR=1 COLUMNS=120
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
# Each plugin that pytest finds by itself has its whole package compiled anew at every start.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTEST_PLUGINS=pytest_timeout,_hypothesis_pytestplugin
stty -onlcr </dev/console
ip link set lo up
# Of an installation that is always the same one, as its files are.
echo 0c9a1d5e6b7f4832a1b0c2d3e4f50617 >/etc/machine-id
. /testbed/environment
# Where the kernel hasn't KVM built in.
for module in $TESTBED_MODULES; do insmod "/$module.ko"; done

cd /work
timeout -k 5 "$TESTBED_LIMIT_S" sh /testbed/command
status=$?
# busybox has no status of its own for a command that ran out of time: it is the signal's.
if [ "$status" -ge 128 ] && [ "$(cut -d. -f1 /proc/uptime)" -ge "$TESTBED_LIMIT_S" ]; then status=124; fi
echo "$status" >/testbed/status

stty raw -echo <"$TESTBED_FILES"
tar -c -z -C / testbed/status out >"$TESTBED_FILES"
echo 0 >/proc/sys/kernel/printk
poweroff -f
