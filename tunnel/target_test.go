package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// dialLog keeps what an agent dialled, and when.
type dialLog struct {
	mu    sync.Mutex
	start time.Time
	dials []string
}

func (d *dialLog) wrap(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		d.mu.Lock()
		d.dials = append(d.dials, fmt.Sprintf("%s %v", address, time.Since(d.start)))
		d.mu.Unlock()
		return dial(ctx, network, address)
	}
}

func (d *dialLog) reset() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	dials := d.dials
	d.dials, d.start = nil, time.Now()
	return dials
}

// targets is a world whose agent keeps a dialLog.
func targets(t *testing.T, configure func(*Agent)) (*world, *dialLog) {
	w := newWorld(t, nil)
	log := &dialLog{start: time.Now()}
	w.agent("a", "agent-1", func(a *Agent) {
		a.DialTarget = log.wrap(a.DialTarget)
		if configure != nil {
			configure(a)
		}
	})
	w.ready("a", 1)
	log.reset()
	return w, log
}

// A name is resolved by the agent, each address is judged, and only what was
// allowed is dialled.
func TestOnlyAllowedAddressesAreDialled(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w, log := targets(t, nil)
		w.net.SetHost("both.example", "127.0.0.1", "10.0.0.7", "169.254.169.254")
		w.net.SetHost("Mixed.example", "10.0.0.7")
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "both.example:10250")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != "both.example:10250" {
			t.Errorf("remote address %s", got)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		if got := log.reset(); !slices.Equal(got, []string{"10.0.0.7:10250 0s"}) {
			t.Errorf("dialled %q", got)
		}
		w.net.SetHost("none.example", "127.0.0.1", "::1")
		if _, err := w.server.Dialer("a")(t.Context(), "tcp", "none.example:80"); !errors.Is(err, connect.ErrProhibited) {
			t.Errorf("only denied addresses: %v", err)
		}
		if got := log.reset(); len(got) != 0 {
			t.Errorf("dialled %q", got)
		}
	})
}

// Rules see the name in lower case without its final dot, and the address.
func TestWhatAllowSees(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []string
		w, _ := targets(t, func(a *Agent) {
			a.ResolveTarget = func(_ context.Context, host string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.7"), netip.MustParseAddr("64:ff9b::192.0.2.1")}, nil
			}
			a.Allow = func(t Target) error {
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, fmt.Sprint(t.Host, " ", t.Port, " ", t.Addr))
				return errors.New("no")
			}
		})
		if _, err := w.server.Dialer("a")(t.Context(), "tcp", "Node.EXAMPLE.:443"); !errors.Is(err, connect.ErrProhibited) {
			t.Errorf("dial: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"node.example 443 10.0.0.7", "node.example 443 192.0.2.1"}; !slices.Equal(seen, want) {
			t.Errorf("asked %q, want %q", seen, want)
		}
	})
}

// A blackholed address costs 250 ms, a refused one nothing (RFC 8305).
func TestRaceOfAddresses(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w, log := targets(t, nil)
		for _, dead := range []string{"10.9.9.8", "10.9.9.9"} {
			w.net.Host(dead)
			w.net.Freeze(dead)
		}
		for _, tt := range []struct {
			name  string
			addrs []string
			took  time.Duration
			dials []string
		}{
			{"blackholed", []string{"10.9.9.9", "10.0.0.7"}, 250 * time.Millisecond, []string{"10.9.9.9:10250 0s", "10.0.0.7:10250 250ms"}},
			{"two blackholed", []string{"10.9.9.9", "10.9.9.8", "10.0.0.7"}, 500 * time.Millisecond, []string{"10.9.9.9:10250 0s", "10.9.9.8:10250 250ms", "10.0.0.7:10250 500ms"}},
			{"refused", []string{"10.0.0.99", "10.0.0.7"}, 0, []string{"10.0.0.99:10250 0s", "10.0.0.7:10250 0s"}},
			{"good first", []string{"10.0.0.7", "10.9.9.9"}, 0, []string{"10.0.0.7:10250 0s"}},
		} {
			w.net.SetHost("race.example", tt.addrs...)
			log.reset()
			start := time.Now()
			c, err := w.server.Dialer("a")(t.Context(), "tcp", "race.example:10250")
			took := time.Since(start)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if took != tt.took {
				t.Errorf("%s: took %v, want %v", tt.name, took, tt.took)
			}
			if err := roundTrip(c); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if got := log.reset(); !slices.Equal(got, tt.dials) {
				t.Errorf("%s: dialled %q, want %q", tt.name, got, tt.dials)
			}
		}
		w.net.SetHost("race.example", "10.0.0.98", "10.0.0.99")
		_, err := w.server.Dialer("a")(t.Context(), "tcp", "race.example:10250")
		if !errors.Is(err, connect.ErrRefused) || !errors.Is(err, syscall.ECONNREFUSED) ||
			!strings.Contains(err.Error(), "10.0.0.98") || !strings.Contains(err.Error(), "all 2 addresses") {
			t.Errorf("all refused: %v", err)
		}
		w.until("no conn to a target is left", func() bool { return w.server.Clusters()[0].Streams == 0 })
	})
}

// Of two addresses that accept at the same time one is kept, the other closed.
func TestRaceClosesTheLoser(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var far []net.Conn
		w, _ := targets(t, func(a *Agent) {
			a.DialTarget = func(ctx context.Context, _, address string) (net.Conn, error) {
				if strings.HasPrefix(address, "10.0.0.1:") {
					time.Sleep(300 * time.Millisecond) // and does not listen to ctx
				} else {
					time.Sleep(50 * time.Millisecond)
				}
				near, other := tunneltest.Pipe()
				mu.Lock()
				far = append(far, other)
				mu.Unlock()
				return near, nil
			}
		})
		w.net.SetHost("race.example", "10.0.0.1", "10.0.0.2")
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "race.example:80")
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		open := 0
		for _, f := range far {
			_ = f.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := f.Read(make([]byte, 1)); err != io.EOF {
				open++
			}
		}
		if len(far) != 2 || open != 1 {
			t.Errorf("%d of %d conns are open", open, len(far))
		}
		c.Close()
		for _, f := range far {
			f.Close()
		}
	})
}

func TestNetworks(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w, log := targets(t, nil)
		w.echo("[2001:db8::7]:10250")
		w.net.SetHost("dual.example", "2001:db8::7", "10.0.0.7")
		w.net.SetHost("four.example", "10.0.0.7")
		for _, tt := range []struct {
			network, target string
			dialled         string
			reason          error
		}{
			{"tcp", "dual.example:10250", "[2001:db8::7]:10250 0s", nil},
			{"tcp4", "dual.example:10250", "10.0.0.7:10250 0s", nil},
			{"tcp6", "dual.example:10250", "[2001:db8::7]:10250 0s", nil},
			{"tcp6", "four.example:10250", "", connect.ErrDNS},
			{"tcp4", "10.0.0.7:10250", "10.0.0.7:10250 0s", nil},
			{"tcp6", "10.0.0.7:10250", "", connect.ErrUnroutable},
			{"tcp4", "[2001:db8::7]:10250", "", connect.ErrUnroutable},
			{"tcp6", "[2001:db8::7]:10250", "[2001:db8::7]:10250 0s", nil},
			{"udp", "10.0.0.7:53", "", connect.ErrRequest},
			{"", "10.0.0.7:53", "", connect.ErrRequest},
		} {
			log.reset()
			c, err := w.server.Dialer("a")(t.Context(), tt.network, tt.target)
			if tt.reason != nil {
				if !errors.Is(err, tt.reason) {
					t.Errorf("%s %s: %v, want %v", tt.network, tt.target, err, tt.reason)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s %s: %v", tt.network, tt.target, err)
				continue
			}
			c.Close()
			if got := log.reset(); !slices.Equal(got, []string{tt.dialled}) {
				t.Errorf("%s %s: dialled %q", tt.network, tt.target, got)
			}
		}
		// An agent does not trust the server about the network.
		d := &targetDial{agent: &Agent{}, network: "unix"}
		if _, err := d.dial(t.Context(), "tcp", "10.0.0.7:80"); !errors.Is(err, connect.ErrRequest) {
			t.Errorf("a foreign network: %v", err)
		}
		if _, err := d.dial(t.Context(), "tcp", "10.0.0.7"); err == nil {
			t.Error("a target without a port")
		}
	})
}

// The agent is told how long the dial may take, so that its own answer comes
// before the server's patience ends: the error says what the agent saw.
func TestAgentAnswersBeforeDeadline(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w, _ := targets(t, nil)
		w.net.Host("10.9.9.9")
		w.net.Freeze("10.9.9.9")
		for _, patience := range []time.Duration{time.Second, 10 * time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			start := time.Now()
			_, err := w.server.Dialer("a")(ctx, "tcp", "10.9.9.9:80")
			took := time.Since(start)
			cancel()
			var de *DialError
			if !errors.As(err, &de) || de.Err.Reason != connect.ErrTimeout || de.Agent != "agent-1" || de.Err.Status != 504 || !de.Timeout() {
				t.Errorf("%v: %v; want the agent's own 504", patience, err)
			}
			if want := patience - min(patience/10, 250*time.Millisecond); took != want {
				t.Errorf("%v: took %v, want %v", patience, took, want)
			}
		}
	})
}

func TestDialTimeoutHeader(t *testing.T) {
	for _, tt := range []struct {
		own   time.Duration
		asked string
		want  time.Duration
	}{
		{20 * time.Second, "", 20 * time.Second},
		{20 * time.Second, "500", 500 * time.Millisecond},
		{20 * time.Second, "60000", 20 * time.Second},
		{-1, "60000", time.Minute},
		{-1, "", -1},
		{20 * time.Second, "0", 20 * time.Second},
		{20 * time.Second, "-5", 20 * time.Second},
		{20 * time.Second, "1e3", 20 * time.Second},
		{-1, "9223372036854775807", -1},
	} {
		if got := dialTimeout(tt.own, tt.asked); got != tt.want {
			t.Errorf("own %v, asked %q: %v, want %v", tt.own, tt.asked, got, tt.want)
		}
	}
}

// A rule that is taken away ends the streams that it alone admitted, after 30 s.
func TestAllowIsAskedAgain(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		denied := ""
		w, _ := targets(t, func(a *Agent) {
			a.Allow = func(t Target) error {
				mu.Lock()
				defer mu.Unlock()
				if t.Addr.String() == denied {
					return errors.New("taken away")
				}
				return nil
			}
		})
		w.echo("10.0.0.8:80")
		dial := func(address string) net.Conn {
			c, err := w.server.Dialer("a")(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		ends, stays := dial("10.0.0.7:10250"), dial("10.0.0.8:80")
		deny := func(addr string) { mu.Lock(); denied = addr; mu.Unlock() }
		deny("10.0.0.7")
		time.Sleep(admit.Grace - time.Second)
		deny("") // it comes back in time
		time.Sleep(time.Minute)
		if _, err := ends.Write([]byte("x")); err != nil {
			t.Errorf("a rule that came back in time: %v", err)
		}
		deny("10.0.0.7")
		start := time.Now()
		if _, err := io.ReadAll(ends); !errors.Is(err, ErrReset) || !strings.Contains(err.Error(), "no longer allowed") {
			t.Errorf("read: %v", err)
		}
		if d := time.Since(start); d < admit.Grace || d > admit.Grace+2*admit.Every {
			t.Errorf("reset after %v", d)
		}
		ends.Close()
		if err := roundTrip(stays); err != nil {
			t.Errorf("the other stream: %v", err)
		}
		if _, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250"); !errors.Is(err, connect.ErrProhibited) {
			t.Errorf("a new dial: %v", err)
		}
	})
}
