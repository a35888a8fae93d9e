"""Several real Debian hosts and a private Tor network on one machine, to test the role and the units.

A lab is one set of network namespaces joined by a bridge: the controller (where ansible-playbook and ssh
run), a private Tor network (authorities, relays, an echo server) and up to three systemd-nspawn hosts. No
namespace has a default route, so nothing in a lab can reach anything outside it, the public Tor network
least of all.

| module | what lives there |
|---|---|
| `requirements` | whether this machine can run a lab, and what is missing in words |
| `shell` | run a program, with a bound, and say what it printed when it fails |
| `golden` | the cached root file systems (debootstrap) |
| `lab` | names, namespaces, control groups, state directory; and the reaper that removes all of it |
| `host` | one systemd-nspawn host: boot, commands by ssh, power off |
| `tornet` | the private Tor network and its echo server |
| `playbook` | ansible-playbook, and its recap as numbers |
| `guest` | the script that opens SOCKS streams inside a host and asks Tor itself where they went |
"""
