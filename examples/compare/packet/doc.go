// Packet measures the packet tunnel beside OpenVPN over TCP, and beside a cable, with
// iperf3 and ping between network namespaces:
//
//	cd examples/compare && sudo go run ./packet                   # about four minutes
//	sudo go run ./packet -rounds 1 -time 1s                       # a quick look
//
// All contenders are up at once and take turns, each round begins with another,
// and what is printed is the median of the rounds, their spread, and the ratio to
// ours. The load shares the processors with the contender: ratios say something,
// figures little. "cable" is the veth pair that the others go over.
//
//   - cable: nothing between, the limit.
//   - rhizome: vpn-server and vpn-client, TUN, TLS 1.3 over TCP.
//   - rhizome-tap: the same with TAP and the user-space bond of one link, through
//     the server's switch.
//   - openvpn: OpenVPN over TCP, AES-256-GCM, TUN, otherwise as it comes.
//
// It needs linux, root, iperf3, ping and openvpn (apt-get install iperf3
// iputils-ping openvpn), and Go to build the programs.
package main
