package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// A Prober asks once whether a path works, and says how long the answer took.
// [ICMP], [TCP] and [HTTP] are some; [ProberFunc] makes one of a function, as of
// what a link knows of itself by its own PINGs.
//
// A Controller calls Probe in goroutines of its own, several at a time while
// answers are missing. Probe is to return when its context ends, which is
// Timeout of [Hysteresis] after its call; one that does not is a miss all the
// same, and with ten such calls, by default, it is not asked any more until some
// have returned. One that panics is a miss too.
//
// Where a Prober has a method String, that is what errors and [Status] call it.
// Where it has a method Validate() error, Run asks that first and returns the
// error.
type Prober interface {
	// Probe returns the time that the answer took, or why there is none.
	Probe(ctx context.Context) (rtt time.Duration, err error)
}

// ErrGone is for a Prober that knows that nobody is there, by what it was told and
// not by silence. An error for which errors.Is finds it takes the path down at
// once, without Hysteresis.Fall misses. [HTTP] returns it for status 410 (Gone).
var ErrGone = errors.New("pathcontrol: it is gone, by what is known of it")

// ProberFunc is a function that is a Prober.
type ProberFunc func(ctx context.Context) (rtt time.Duration, err error)

// Probe calls f.
func (f ProberFunc) Probe(ctx context.Context) (time.Duration, error) { return f(ctx) }

// Named is a Prober with a name for errors and for [Status].
type Named struct {
	Name string
	Prober
}

// String returns the name.
func (n Named) String() string { return n.Name }

// Validate asks the Prober, if it has an opinion.
func (n Named) Validate() error {
	if n.Prober == nil {
		return fmt.Errorf("the prober named %q is nil", n.Name)
	}
	return validate(n.Prober)
}

func validate(p Prober) error {
	if v, ok := p.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// proberName is what an operator knows the i-th prober of a path by.
func proberName(p Prober, i int) string {
	if s, ok := p.(fmt.Stringer); ok {
		return s.String()
	}
	return fmt.Sprintf("prober %d", i+1)
}

// Through says how the packets of a prober leave this host, so that they go
// through one path whatever the routes say. Its zero value leaves that to the
// routes.
type Through struct {
	// Interface is the one that packets leave by and answers come by. It
	// needs linux, and before Linux 5.7 CAP_NET_RAW.
	Interface string
	// Mark is the fwmark that rules of the routing policy look for. It needs
	// linux and CAP_NET_ADMIN; zero means none.
	Mark uint32
	// Source is the address that packets come from. It must be one of this
	// host's, and of the family of the address that is probed.
	Source netip.Addr
}

// Dialer returns a new [net.Dialer] whose connections go through, for probers
// of other kinds.
func (t Through) Dialer() *net.Dialer {
	d := &net.Dialer{KeepAlive: -1}
	if t.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.Source, 0))
	}
	if t.Interface != "" || t.Mark != 0 {
		d.Control = t.control
	}
	return d
}

// dial opens a connection with d, or through t if that is nil.
func (t Through) dial(ctx context.Context, d func(context.Context, string, string) (net.Conn, error), address string) (net.Conn, error) {
	if d == nil {
		d = t.Dialer().DialContext
	}
	c, err := d(ctx, "tcp", address)
	if err == nil {
		return c, nil
	}
	if c != nil {
		c.Close()
	}
	return nil, plain(ctx, err)
}

// plain strips an error of what the name of the prober says already, and makes
// one of the context of what only says that the time is over.
func plain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if isDeadline(err) {
		return os.ErrDeadlineExceeded
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

func isDeadline(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}
