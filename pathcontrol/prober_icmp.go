package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// ICMP probes by an echo request, ICMPv6 if Addr is an IPv6 address. Only Addr
// must be set, and not be changed after the first use. It may be used by
// several goroutines at a time, which share one socket.
//
// An answer has the identifier and the number of its request, and the payload,
// which is random: who has not seen the request cannot answer it. Where an ICMP
// error comes back instead, the probe ends at once with an [*UnreachableError].
type ICMP struct {
	// Addr is whom to ask. An IPv6 link-local address needs its zone, or
	// Through.Interface.
	Addr netip.Addr
	// Through says how packets leave this host.
	Through Through
	// Size is how many bytes the payload has, by default 56, at least 16 and
	// at most 65000.
	Size int

	mu     sync.Mutex
	echo   *echoer // nil: not open
	closed bool
}

const (
	defaultSize = 56
	minSize     = 16
	maxSize     = 65000
)

// ErrICMPClosed is returned by Probe after Close. It is a net.ErrClosed.
var ErrICMPClosed error = closedError{}

// UnreachableError is an ICMP error that came back for an echo request. It
// unwraps to what the system calls it, such as syscall.EHOSTUNREACH.
type UnreachableError struct {
	// From is who sent it: a router, or an address of this host. It is not
	// valid where the system does not say.
	From netip.Addr
	// Type and Code are those of the ICMP or ICMPv6 message. Both are zero
	// where the kernel of this host found out by itself.
	Type, Code int
	// Err is what the system calls it.
	Err error
}

// Error says who found what.
func (e *UnreachableError) Error() string {
	if !e.From.IsValid() {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v, says %v", e.Err, e.From)
}

// Unwrap returns Err.
func (e *UnreachableError) Unwrap() error { return e.Err }

// String returns "icmp" and the address.
func (p *ICMP) String() string { return "icmp " + p.Addr.String() }

// Validate checks the fields.
func (p *ICMP) Validate() error {
	addr, source := p.Addr.Unmap(), p.Through.Source.Unmap()
	switch {
	case !addr.IsValid():
		return errors.New("ICMP.Addr is not set")
	case addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("ICMP.Addr is %v, which is not the address of one host", addr)
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "" && p.Through.Interface == "":
		return fmt.Errorf("ICMP.Addr is %v, which is link-local and needs a zone, as in %v%%eth0", addr, addr)
	case source.IsValid() && source.Is4() != addr.Is4():
		return fmt.Errorf("ICMP.Through.Source is %v, which is not of the family of %v", source, addr)
	case p.Size != 0 && (p.Size < minSize || p.Size > maxSize):
		return fmt.Errorf("ICMP.Size is %d, not %d to %d; zero means %d", p.Size, minSize, maxSize, defaultSize)
	}
	return p.Through.supported()
}

// Open opens the socket, which Probe does otherwise when it is called first. An
// error says what the process lacks. A socket belongs to the network namespace
// of the thread that opens it; one whose interface is gone is opened again by
// Probe.
func (p *ICMP) Open() error {
	_, err := p.open()
	return err
}

func (p *ICMP) open() (*echoer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrICMPClosed
	}
	if p.echo != nil {
		return p.echo, nil
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("pathcontrol: %w", err)
	}
	addr, through := p.Addr.Unmap(), p.Through
	through.Source = through.Source.Unmap()
	if addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "" {
		addr = addr.WithZone(through.Interface)
	}
	c, err := openEcho(addr, through)
	if err != nil {
		return nil, err
	}
	p.echo = newEchoer(c, addr.Is6(), orDefault(p.Size, defaultSize))
	return p.echo, nil
}

// Probe implements [Prober].
func (p *ICMP) Probe(ctx context.Context) (time.Duration, error) {
	e, err := p.open()
	if err != nil {
		return 0, err
	}
	rtt, err := e.probe(ctx)
	if errors.Is(err, errStale) {
		p.forget(e)
	}
	return rtt, err
}

// forget closes a socket that may be bound to what is not there any more.
func (p *ICMP) forget(e *echoer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.echo == e {
		p.echo = nil
		e.conn.close()
	}
}

// Close closes the socket and ends the probes that are under way. A second call
// does nothing.
func (p *ICMP) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.echo == nil {
		return nil
	}
	err := p.echo.conn.close()
	p.echo = nil
	return err
}
