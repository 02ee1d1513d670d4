package tunneltest

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Bounds of a [Network], as on a Linux host.
const (
	defaultBacklog = 128               // connections that wait for Accept
	synTimeout     = 127 * time.Second // a dial that nobody answers: tcp_syn_retries = 6
	firstEphemeral = 49152             // RFC 6335 §6
	lastEphemeral  = 65535
)

// Network is an in-memory network: listeners and dialers with addresses that look
// real, connections ([Conn]) that behave like TCP, and faults on demand. Its zero
// value is an empty network, ready for use.
//
// All addresses live in one flat space, 127.0.0.1 included. Networks are "tcp", "tcp4", "tcp6" (with
// *net.TCPAddr) and "unix" (with *net.UnixAddr, any text as the path). A host is an
// IP address or a name; a name that is used for the first time with Listen or
// [Network.Host] gets an address of 10.0.0.0/8, and [Network.SetHost] gives it any.
//
// The exported fields must not be changed after the first use. All methods may be
// called by several goroutines at once. A Network starts no goroutine. To use it
// in a [Bubble], make it there.
type Network struct {
	// Buffer is how many bytes a connection holds in each direction before a
	// writer blocks. Zero and negative mean 256 KiB.
	Buffer int

	// Backlog is how many connections may wait for Accept at each listener.
	// Further dials wait, as on Linux where the SYN is dropped. Zero and negative
	// mean 128.
	Backlog int

	mu        sync.Mutex
	cond      sync.Cond            // a listener, a backlog or a fault changed
	listeners map[string]*listener // by key of the address
	pairs     map[*pair]struct{}
	hosts     map[string][]net.IP
	nextHost  int
	nextPort  int
	frozen    map[string]struct{}
	delays    map[link]time.Duration
}

// lock also completes the zero value.
func (n *Network) lock() {
	n.mu.Lock()
	if n.cond.L == nil {
		n.cond.L = &n.mu
		n.listeners = make(map[string]*listener)
		n.pairs = make(map[*pair]struct{})
		n.hosts = map[string][]net.IP{"localhost": {net.IPv4(127, 0, 0, 1)}}
		n.frozen = make(map[string]struct{})
		n.delays = make(map[link]time.Duration)
	}
}

// Host is one host's view of a [Network]: where its dials come from.
type Host struct {
	n    *Network
	name string
}

// Host returns the host of that name or IP address. A new name gets an address.
func (n *Network) Host(name string) *Host {
	n.lock()
	defer n.mu.Unlock()
	n.addrsOf(name, true)
	return &Host{n, name}
}

// Listen is [Network.Listen] where an empty or unspecified host in the address means
// all addresses that this host has now.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	return h.n.listen(h.name, network, address)
}

// Dial is [Network.Dial] from this host.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return h.n.dial(ctx, h.name, network, address)
}

// Listen returns a listener for the address. An empty or unspecified host means
// localhost (127.0.0.1), port 0 an ephemeral port. An address in use answers
// EADDRINUSE. Closing the listener resets the connections that were not accepted.
func (n *Network) Listen(network, address string) (net.Listener, error) {
	return n.listen("localhost", network, address)
}

// Dial connects to a listener from localhost. The context governs the dial and not
// the life of the connection.
//
// Errors are *net.OpError with what a real dial has inside: ECONNREFUSED when nothing
// listens, *net.DNSError for a name that is not known, ETIMEDOUT after 127 s without
// an answer (a frozen host, a full backlog), and the timeout or cancellation of the
// context, which also is the context's error for errors.Is.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.dial(ctx, "localhost", network, address)
}

func (n *Network) listen(host, network, address string) (net.Listener, error) {
	n.lock()
	defer n.mu.Unlock()
	fail := func(addr net.Addr, err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: addr, Err: err}
	}
	addrs, err := n.resolve(host, network, address, true)
	if err != nil {
		return fail(nil, err)
	}
	if !isWildcard(address) {
		addrs = addrs[:1]
	}
	if tcp, ok := addrs[0].(*net.TCPAddr); ok && tcp.Port == 0 {
		port := n.ephemeral(func(port int) bool {
			setPort(addrs, port)
			return n.unused(addrs)
		})
		setPort(addrs, port)
		if port == 0 {
			return fail(addrs[0], os.NewSyscallError("bind", syscall.EADDRINUSE))
		}
	}
	if !n.unused(addrs) {
		return fail(addrs[0], os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	l := &listener{n: n, addrs: addrs}
	for _, a := range addrs {
		n.listeners[key(a)] = l
	}
	n.cond.Broadcast()
	return l, nil
}

func setPort(addrs []net.Addr, port int) {
	for _, a := range addrs {
		a.(*net.TCPAddr).Port = port
	}
}

func (n *Network) unused(addrs []net.Addr) bool {
	for _, a := range addrs {
		if n.listeners[key(a)] != nil {
			return false
		}
	}
	return true
}

func key(a net.Addr) string { return a.Network() + " " + a.String() }

// ephemeral returns the next port that the caller finds free, or 0.
func (n *Network) ephemeral(free func(port int) bool) int {
	for range lastEphemeral - firstEphemeral + 1 {
		port := firstEphemeral + n.nextPort%(lastEphemeral-firstEphemeral+1)
		n.nextPort++
		if free(port) {
			return port
		}
	}
	return 0
}

func (n *Network) dial(ctx context.Context, host, network, address string) (net.Conn, error) {
	n.lock()
	defer n.mu.Unlock()
	fail := func(addr net.Addr, err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addr, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(nil, dialError(err))
	}
	addrs, err := n.resolve(host, network, address, false)
	if err != nil {
		return fail(nil, err)
	}
	// The condition is all that a dial waits for, so the end of its context must
	// signal it.
	defer context.AfterFunc(ctx, n.wake)()

	// One address after the other, the first error counts: what net.Dialer does
	// with addresses of one family.
	var first error
	for _, addr := range addrs {
		c, err := n.dialAddr(ctx, host, addr)
		if err == nil {
			return c, nil
		}
		if first == nil {
			_, first = fail(addr, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// dialAddr is the handshake: half a round trip to the listener, half of one back.
func (n *Network) dialAddr(ctx context.Context, host string, to net.Addr) (net.Conn, error) {
	from, err := n.source(host, to)
	if err != nil {
		return nil, err
	}
	giveUp := time.Now().Add(synTimeout)
	if err := n.sleep(ctx, n.delayOf(from, to), giveUp); err != nil {
		return nil, err
	}
	var l *listener
	for {
		if !n.isFrozen(from, to) {
			if l = n.listeners[key(to)]; l == nil {
				// The refusal travels back like everything else.
				if err := n.sleep(ctx, n.delayOf(to, from), giveUp); err != nil {
					return nil, err
				}
				return nil, os.NewSyscallError("connect", refused(to))
			}
			if len(l.queue) < n.backlog() {
				break
			}
		}
		if err := n.pause(ctx, giveUp); err != nil {
			return nil, err
		}
	}
	p := newPair(from, to, n.Buffer)
	p.onGone = func() { n.forget(p) }
	n.applyFaults(p)
	n.pairs[p] = struct{}{}
	l.queue = append(l.queue, p.ends[1])
	n.cond.Broadcast()
	if err := n.sleep(ctx, n.delayOf(to, from), giveUp); err != nil {
		// Both locks are never held together the other way round: onGone locks
		// the network.
		n.mu.Unlock()
		p.ends[0].Reset()
		n.mu.Lock()
		return nil, err
	}
	return p.ends[0], nil
}

// refused is what the kernel says when nobody listens: for a Unix socket the file
// is not there.
func refused(to net.Addr) error {
	if to.Network() == "unix" {
		return syscall.ENOENT
	}
	return syscall.ECONNREFUSED
}

// source picks the address that a dial from a host comes from.
func (n *Network) source(host string, to net.Addr) (net.Addr, error) {
	remote, ok := to.(*net.TCPAddr)
	if !ok {
		return &net.UnixAddr{Net: "unix"}, nil
	}
	ips := n.addrsOf(host, true)
	if len(ips) == 0 {
		return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
	}
	from := &net.TCPAddr{IP: ips[0]}
	for _, ip := range ips {
		if (ip.To4() == nil) == (remote.IP.To4() == nil) {
			from.IP = ip // of the same family
			break
		}
	}
	from.Port = n.ephemeral(func(port int) bool {
		if n.nextPort <= lastEphemeral-firstEphemeral+1 {
			return true // the first time round every port is new
		}
		local := (&net.TCPAddr{IP: from.IP, Port: port}).String()
		for p := range n.pairs {
			if c := p.ends[0]; c.remote.String() == to.String() && c.local.String() == local {
				return false
			}
		}
		return true
	})
	if from.Port == 0 {
		return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
	}
	return from, nil
}

func (n *Network) forget(p *pair) {
	n.lock()
	defer n.mu.Unlock()
	delete(n.pairs, p)
}

// Conns returns the ends of connections that are not closed yet, in no order: none
// after a test that closed everything. Ends that wait for Accept count.
func (n *Network) Conns() []*Conn {
	n.lock()
	defer n.mu.Unlock()
	var open []*Conn
	for p := range n.pairs {
		p.mu.Lock()
		for _, c := range p.ends {
			if !c.closed {
				open = append(open, c)
			}
		}
		p.mu.Unlock()
	}
	return open
}

func (n *Network) backlog() int {
	if n.Backlog <= 0 {
		return defaultBacklog
	}
	return n.Backlog
}

func (n *Network) wake() {
	n.lock()
	defer n.mu.Unlock()
	n.cond.Broadcast()
}

// sleep waits for d with the lock released.
func (n *Network) sleep(ctx context.Context, d time.Duration, giveUp time.Time) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := n.pause(ctx, sooner(end, giveUp)); err != nil && (ctx.Err() != nil || !time.Now().Before(giveUp)) {
			return err
		}
	}
	return nil
}

// pause waits for a change or the end of the context; at the given time it returns
// ETIMEDOUT.
func (n *Network) pause(ctx context.Context, until time.Time) error {
	if ctx.Err() == nil && time.Now().Before(until) {
		t := time.AfterFunc(time.Until(until), n.wake)
		n.cond.Wait()
		t.Stop()
	}
	if err := ctx.Err(); err != nil {
		return dialError(err)
	}
	if !time.Now().Before(until) {
		return os.NewSyscallError("connect", syscall.ETIMEDOUT)
	}
	return nil
}

// dialError gives the end of a context the shape that net.Dialer gives it.
func dialError(err error) error {
	if err == context.DeadlineExceeded {
		return &ctxError{err, "i/o timeout"}
	}
	return &ctxError{err, "operation was canceled"}
}

type ctxError struct {
	err  error
	text string
}

func (e *ctxError) Error() string   { return e.text }
func (e *ctxError) Unwrap() error   { return e.err }
func (e *ctxError) Timeout() bool   { return e.err == context.DeadlineExceeded }
func (e *ctxError) Temporary() bool { return e.Timeout() }

// splitPort splits host:port with a numeric port.
func splitPort(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	p, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, &net.AddrError{Err: "invalid port", Addr: address}
	}
	return host, int(p), nil
}
