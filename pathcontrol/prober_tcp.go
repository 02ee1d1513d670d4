package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"time"
)

// TCP probes by opening a connection, which it closes at once. Only Addr must
// be set. It may be used by several goroutines at a time, and keeps nothing from
// one probe to the next.
type TCP struct {
	// Addr is the host:port to dial. A name is looked up for each probe, and
	// not Through but as the routes say: an address is better.
	Addr string
	// Through says how packets leave this host. It is not used with Dial.
	Through Through
	// Dial opens the connection; nil means a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Refused makes an answer of a closed port: the host is there, even if
	// nothing listens. By default that is a miss, since something else on the
	// way may have said so.
	Refused bool
}

// String returns "tcp" and the address.
func (p *TCP) String() string { return "tcp " + p.Addr }

// Validate checks the fields.
func (p *TCP) Validate() error {
	if _, port, err := net.SplitHostPort(p.Addr); err != nil {
		return fmt.Errorf("TCP.Addr: %w", err)
	} else if port == "" || port == "0" {
		return fmt.Errorf("TCP.Addr: %q has no port", p.Addr)
	}
	if p.Dial != nil && p.Through != (Through{}) {
		return errors.New("TCP.Through has no effect with Dial")
	}
	return p.Through.supported()
}

// Probe implements [Prober]. The time is that of the dial.
func (p *TCP) Probe(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	c, err := p.Through.dial(ctx, p.Dial, p.Addr)
	rtt := time.Since(start)
	switch {
	case err == nil:
		c.Close()
	case !p.Refused || !isRefused(err):
		return 0, err
	}
	return rtt, nil
}

// isRefused knows what Windows calls it, too.
func isRefused(err error) bool {
	const wsaeconnrefused = syscall.Errno(10061)
	return errors.Is(err, syscall.ECONNREFUSED) || runtime.GOOS == "windows" && errors.Is(err, wsaeconnrefused)
}
