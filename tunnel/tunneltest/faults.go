package tunneltest

import (
	"net"
	"time"
)

// link is a direction between two hosts; "" is any.
type link struct{ from, to string }

// Freeze stops all delivery to and from a host, as if it were stopped or the way
// to it dropped all packets: see [Conn.Freeze]. Dials to and from it wait until
// [Network.Thaw] or their context's end. Host is a name, an IP address, either with
// a port (then only connections with that end are meant), the path of a Unix socket,
// or "" for the whole network. It holds for connections of now and later.
func (n *Network) Freeze(host string) {
	n.change(func() { n.frozen[host] = struct{}{} })
}

// Thaw ends a Freeze of the same host.
func (n *Network) Thaw(host string) {
	n.change(func() { delete(n.frozen, host) })
}

// SetDelay makes everything that travels from one host to the other take d (half of
// a round trip); "" is any host. It holds for bytes written from now on and for
// dials, which take both directions. Zero and negative end it. Where several
// settings fit, the one that names both hosts counts, then from, then to.
func (n *Network) SetDelay(from, to string, d time.Duration) {
	n.change(func() {
		if d <= 0 {
			delete(n.delays, link{from, to})
		} else {
			n.delays[link{from, to}] = d
		}
	})
}

// Cut resets the present connections with an end at the host (see [Network.Freeze]
// for what names one) and returns how many these were. Connections dialled later are
// not affected.
func (n *Network) Cut(host string) int {
	n.lock()
	defer n.mu.Unlock()
	count := 0
	for p := range n.pairs {
		if a := p.ends[0]; n.isAt(host, a.local) || n.isAt(host, a.remote) {
			p.set((*pair).cutNow)
			count++
		}
	}
	return count
}

// change applies new faults to every connection and lets dials look again.
func (n *Network) change(f func()) {
	n.lock()
	defer n.mu.Unlock()
	f()
	for p := range n.pairs {
		n.applyFaults(p)
	}
	n.cond.Broadcast()
}

func (n *Network) applyFaults(p *pair) {
	a, b := p.ends[0].local, p.ends[0].remote
	frozen, there, back := n.isFrozen(a, b), n.delayOf(a, b), n.delayOf(b, a)
	p.set(func(p *pair) { p.netFrozen, p.dir[0].net, p.dir[1].net = frozen, there, back })
}

func (n *Network) isFrozen(a, b net.Addr) bool {
	for host := range n.frozen {
		if n.isAt(host, a) || n.isAt(host, b) {
			return true
		}
	}
	return false
}

func (n *Network) delayOf(from, to net.Addr) time.Duration {
	var best time.Duration
	rank := -1
	for l, d := range n.delays {
		r := 0
		if l.from != "" {
			r += 2
		}
		if l.to != "" {
			r++
		}
		if r > rank && n.isAt(l.from, from) && n.isAt(l.to, to) {
			best, rank = d, r
		}
	}
	return best
}

// isAt reports whether an address belongs to what a fault names.
func (n *Network) isAt(host string, a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if host == "" || !ok {
		return host == "" || host == a.String()
	}
	port := 0
	if h, p, err := splitPort(host); err == nil {
		host, port = h, p
	}
	if port != 0 && port != tcp.Port {
		return false
	}
	for _, ip := range n.addrsOf(host, false) {
		if ip.Equal(tcp.IP) {
			return true
		}
	}
	return false
}
