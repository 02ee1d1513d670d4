// Package netfilter is the packet filter of the programs that have a tunnel
// device: on the far side it hides who comes out of the tunnel, on the near side
// it lets nobody in who was not asked.
//
//	seed                         tunnel                          shoot
//	kube-apiserver ─► device ═══════════════► device ─► gate, masquerade ─► pods, nodes, services
//	               ◄─ only answers and echo ═
//
// The far side forwards to its networks only, in the shoot's own name:
//
//	gate := &netfilter.Gate{Device: "tun0", Networks: networks}
//	if err := gate.Up(); err != nil { … }
//	defer gate.Close()
//	if err := netfilter.Forward(networks, logger); err != nil { … }
//	hide := &netfilter.Masquerade{Device: "tun0", Networks: networks}
//	if err := hide.Up(); err != nil { … }
//	defer hide.Close()
//
// and the near side is closed:
//
//	wall := &netfilter.Firewall{Device: "bond0"}
//	if err := wall.Up(); err != nil { … }
//	defer wall.Close()
//
// # What is ours
//
// Each has one nftables table of the family inet, named after its purpose and
// device: rhizome-gate-tun0, rhizome-masquerade-tun0, rhizome-firewall-bond0. Up replaces the table
// in one transaction, so that the rules of a killed predecessor count until the
// moment in which the new ones do, and Close deletes it. No other table is
// looked at. Devices are compared by name: they may come and go, and need not be
// there at the start. The network namespace is that of the thread that calls Up.
//
// A packet goes on only if all tables let it: what another table drops stays
// dropped, and what others accept the firewall and the gate still drop.
//
// # What it does not do
//
// It clamps no MSS, since package packet does; it does not use iptables where the
// kernel lacks nftables; and it limits nobody's speed. It says nothing about the
// packets that this host sends into the tunnel.
package netfilter
